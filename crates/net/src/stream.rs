//! Another process, over a Unix stream socket: each frame behind its length in four bytes, big-endian. QEMU's `-netdev stream`
//! and passt speak this.
//!
//! The other process is not trusted more than a network is: a length that can't be ends the connection.

use crate::frame::{Frame, Offload, Offloads};
use crate::watch::Watch;
use crate::{Backend, Busy, MAX_FRAME, NetError};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LENGTH: usize = 4;
/// What may wait for the other process, in bytes, before it takes no more.
const MOST_OUTGOING: usize = 256 << 10;
/// Read at once. Frames without offloads have 1514 bytes.
const CHUNK: usize = 64 << 10;

/// A connection to another process.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    watch: Watch,
    outgoing: VecDeque<u8>,
    /// What came and wasn't given on, from `taken` on.
    incoming: Vec<u8>,
    taken: usize,
    broken: bool,
}

impl Stream {
    /// Connects to the socket that another process listens on.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, NetError> {
        let refused = |source| NetError::Connect { path: path.to_owned(), source };
        Self::over(UnixStream::connect(path).map_err(refused)?).map_err(refused)
    }

    /// Over a connection that is there already.
    ///
    /// # Errors
    /// The host refuses epoll.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let watch = Watch::new(&socket)?;
        Ok(Self { socket, watch, outgoing: VecDeque::new(), incoming: Vec::new(), taken: 0, broken: false })
    }

    /// For good: who was at the other end doesn't come back.
    fn end(&mut self, why: &str) {
        if !std::mem::replace(&mut self.broken, true) {
            tracing::warn!("the guest's network is gone: {why}");
        }
        self.outgoing.clear();
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.broken {
            match self.socket.write(self.outgoing.as_slices().0) {
                Ok(0) => self.end("its socket takes nothing"),
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.end(&error.to_string()),
            }
        }
    }

    /// Reads some more; false where there is none now.
    fn fill(&mut self) -> bool {
        self.incoming.drain(..self.taken);
        self.taken = 0;
        let before = self.incoming.len();
        self.incoming.resize(before + CHUNK, 0);
        let read = self.socket.read(&mut self.incoming[before..]);
        self.incoming.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.end("the other process hung up"),
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.end(&error.to_string()),
        }
        false
    }
}

impl Backend for Stream {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// The other process isn't told: it sees the guest's frames stop, as on a cable.
    fn reset(&mut self, _deliver: Offloads) {}

    fn wake(&self) -> BorrowedFd<'_> {
        self.watch.wake()
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }

    fn poll(&mut self) {
        self.watch.noted();
        self.flush();
    }

    fn send(&mut self, frame: Frame<'_>) -> Result<(), Busy> {
        if self.broken {
            return Ok(());
        }
        if self.outgoing.len() > MOST_OUTGOING {
            self.flush();
            if self.outgoing.len() > MOST_OUTGOING {
                return Err(Busy);
            }
        }
        self.outgoing.extend((frame.bytes.len() as u32).to_be_bytes());
        self.outgoing.extend(frame.bytes);
        self.flush();
        Ok(())
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        loop {
            let rest = &self.incoming[self.taken..];
            if let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_FRAME {
                    self.end("the other process sends no frames");
                    return None;
                }
                if let Some(frame) = rest.get(..length) {
                    into.clear();
                    into.extend_from_slice(frame);
                    self.taken += LENGTH + length;
                    return Some(Offload::NONE);
                }
            }
            if self.broken || !self.fill() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::over(ours).unwrap(), theirs)
    }

    #[test]
    fn frames_arrive_however_the_stream_is_cut() {
        let (mut stream, mut peer) = pair();
        let mut bytes = Vec::new();
        for number in 1..=3_u8 {
            bytes.extend((u32::from(number) * 100).to_be_bytes());
            bytes.extend(vec![number; usize::from(number) * 100]);
        }
        let mut frame = Vec::new();
        let mut got = Vec::new();
        for piece in bytes.chunks(7) {
            peer.write_all(piece).unwrap();
            while stream.receive(&mut frame).is_some() {
                got.push(frame.clone());
            }
        }
        assert_eq!(got, [vec![1; 100], vec![2; 200], vec![3; 300]]);
    }

    #[test]
    fn a_slow_reader_makes_the_guest_wait_and_loses_nothing() {
        let (mut stream, mut peer) = pair();
        let frame = vec![7; 1500];
        let mut sent = 0;
        while stream.send(Frame::complete(&frame)).is_ok() {
            sent += 1;
            assert!(sent < 10_000, "never busy");
        }
        let mut bytes = vec![0; sent * (LENGTH + frame.len())];
        let reader = std::thread::spawn(move || peer.read_exact(&mut bytes).map(|()| bytes));
        while !stream.outgoing.is_empty() {
            stream.poll();
        }
        let bytes = reader.join().unwrap().unwrap();
        assert!(
            bytes.chunks(LENGTH + frame.len()).all(|one| one[..4] == [0, 0, 5, 220] && one[4..] == frame)
        );
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_connection() {
        let (mut stream, mut peer) = pair();
        peer.write_all(&[255; 64]).unwrap();
        let mut frame = Vec::new();
        assert_eq!(stream.receive(&mut frame), None);
        assert!(stream.broken);
        assert_eq!(stream.send(Frame::complete(&[0; 60])), Ok(()));
    }

    #[test]
    fn a_peer_that_hangs_up_is_no_error_of_the_guests() {
        let (mut stream, peer) = pair();
        drop(peer);
        assert_eq!(stream.receive(&mut Vec::new()), None);
        assert_eq!(stream.send(Frame::complete(&[0; 60])), Ok(()));
    }
}
