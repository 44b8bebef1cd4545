//! A disk that a server has: NBD, the protocol of `nbdkit`, `qemu-nbd` and others. With their filters and formats such a server is
//! a plug-in of Ombra's.
//!
//! A server is found by an address ([`Address`]) or is a command that is started ([`Nbd::start`]). Requests are made on the callers' threads;
//! a server that allows several connections gets up to [`MOST`], each with one request at a time.
//!
//! A connection that breaks is not made anew: what was written and not yet flushed may be lost with the server, and a later flush
//! must not say that it is safe. From then on every request fails.
//!
//! Locks: one around the connections that nobody uses, a leaf; who finds none waits.

mod address;
pub mod wire;

pub use address::Address;

use crate::{DiskError, Layer, LayerInfo, OpenError, SECTOR_BYTES, Sector, within};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wire::{Export, Session, Stream, command, flag};

/// Connections to one server.
pub const MOST: usize = 4;
/// Bytes in one request for zeros or a discard.
const MOST_ZEROS: u64 = 128 << 20;
/// Bytes of data in one request.
const MOST_DATA: usize = 1 << 20;
/// Zeros that are written where a server has no request for them.
const ZEROS: usize = 64 << 10;
/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a command may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A disk of a server's.
pub struct Nbd {
    export: Export,
    info: LayerInfo,
    pool: Mutex<Pool>,
    free: Condvar,
    /// Where further connections go.
    address: Option<Address>,
    child: Option<Child>,
}

struct Pool {
    idle: Vec<Session>,
    /// Connections, idle or not.
    made: usize,
    /// One has failed.
    broken: bool,
}

impl std::fmt::Debug for Nbd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nbd").field("export", &self.export).finish_non_exhaustive()
    }
}

impl Nbd {
    /// Connects to a server.
    ///
    /// # Errors
    /// [`OpenError::Nbd`].
    pub fn connect(address: &Address, read_only: bool) -> Result<Self, OpenError> {
        let opened = || {
            let mut stream = address.connect()?;
            patient(&stream)?;
            let export = wire::greet(&mut stream, &address.export)?;
            Self::new(stream, export, read_only)
        };
        let mut nbd = opened().map_err(|source| OpenError::Nbd { at: address.to_string(), source })?;
        nbd.address = Some(address.clone());
        Ok(nbd)
    }

    /// Starts a command that serves a file on its standard input: `sh -c COMMAND`, with the file's name in OMBRA_DISK and `on` or `off` in
    /// OMBRA_READONLY. It is to end when its standard input does.
    ///
    /// # Errors
    /// [`OpenError::Nbd`].
    pub fn start(command: &str, file: &Path, read_only: bool) -> Result<Self, OpenError> {
        let started = || -> io::Result<Self> {
            let (ours, theirs) = UnixStream::pair()?;
            let output = theirs.try_clone()?;
            let child = Command::new("/bin/sh")
                .args(["-c", command])
                .env("OMBRA_DISK", std::path::absolute(file)?)
                .env("OMBRA_READONLY", if read_only { "on" } else { "off" })
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::from(OwnedFd::from(output)))
                .process_group(0)
                .spawn()?;
            // From here on it ends with the value.
            let mut stream = Stream::Unix(ours);
            let mut child = Started(Some(child));
            patient(&stream)?;
            let export = wire::greet(&mut stream, "")?;
            let mut nbd = Self::new(stream, export, read_only)?;
            nbd.child = child.0.take();
            Ok(nbd)
        };
        started().map_err(|source| OpenError::Nbd { at: format!("`{command}` as an NBD server"), source })
    }

    fn new(stream: Stream, export: Export, read_only: bool) -> io::Result<Self> {
        if export.bytes < SECTOR_BYTES {
            return Err(io::Error::other("it has no sector"));
        }
        if u64::from(export.least) > SECTOR_BYTES {
            return Err(io::Error::other(format!("it wants requests of at least {} bytes", export.least)));
        }
        let read_only = read_only || export.flags & flag::READ_ONLY != 0;
        let info = LayerInfo { sectors: export.bytes / SECTOR_BYTES, read_only };
        let pool = Pool { idle: vec![Session::new(stream)], made: 1, broken: false };
        Ok(Self { export, info, pool: Mutex::new(pool), free: Condvar::new(), address: None, child: None })
    }

    fn has(&self, flag: u16) -> bool {
        self.export.flags & flag != 0
    }

    /// A connection that nobody uses: an idle one, a new one, or the next that is given back.
    fn take(&self) -> io::Result<Session> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if pool.broken {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the connection to the server is lost",
                ));
            }
            if let Some(session) = pool.idle.pop() {
                return Ok(session);
            }
            let more = self.address.as_ref().filter(|_| self.has(flag::MULTIPLE) && pool.made < MOST);
            if let Some(address) = more {
                pool.made += 1;
                drop(pool);
                let made = address.connect().and_then(|mut stream| {
                    patient(&stream)?;
                    let export = wire::greet(&mut stream, &address.export)?;
                    if export != self.export {
                        return Err(io::Error::other("the server's disk has changed"));
                    }
                    Ok(Session::new(stream))
                });
                match made {
                    Ok(session) => return Ok(session),
                    // There are others; this was to be faster.
                    Err(error) => tracing::debug!("{address}: no further connection: {error}"),
                }
                pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            pool = self.free.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn request(
        &self,
        command: u16,
        flags: u16,
        at: u64,
        len: usize,
        out: &[u8],
        into: &mut [u8],
    ) -> Result<(), DiskError> {
        let mut session = self.take()?;
        let done = session.request(command, flags, at, len as u32, out, into);
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match done {
            Ok(answer) => {
                pool.idle.push(session);
                self.free.notify_one();
                answer
            }
            Err(error) => {
                pool.broken = true;
                self.free.notify_all();
                Err(match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        io::Error::new(io::ErrorKind::TimedOut, "the server doesn't answer")
                    }
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset => {
                        io::Error::new(io::ErrorKind::NotConnected, "the server has ended")
                    }
                    _ => error,
                })
            }
        };
        Ok(result?)
    }

    fn writable(&self, first: Sector, bytes: u64) -> Result<u64, DiskError> {
        if self.info.read_only {
            return Err(DiskError::ReadOnly);
        }
        within(self.info.sectors, first, bytes)
    }

    /// A request without data for a range, in pieces.
    fn range(&self, command: u16, flags: u16, at: u64, bytes: u64) -> Result<(), DiskError> {
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(MOST_ZEROS);
            self.request(command, flags, at + done, len as usize, &[], &mut [])?;
            done += len;
        }
        Ok(())
    }
}

impl Layer for Nbd {
    fn info(&self) -> LayerInfo {
        self.info
    }

    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        let at = within(self.info.sectors, first, into.len() as u64)?;
        for (at, piece) in (at..).step_by(MOST_DATA).zip(into.chunks_mut(MOST_DATA)) {
            self.request(command::READ, 0, at, piece.len(), &[], piece)?;
        }
        Ok(())
    }

    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        let at = self.writable(first, from.len() as u64)?;
        for (at, piece) in (at..).step_by(MOST_DATA).zip(from.chunks(MOST_DATA)) {
            self.request(command::WRITE, 0, at, piece.len(), piece, &mut [])?;
        }
        Ok(())
    }

    fn zero(&self, first: Sector, count: u64, unmap: bool) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        if self.has(flag::ZEROES) {
            let flags = if unmap { 0 } else { command::NO_HOLE };
            return self.range(command::WRITE_ZEROES, flags, at, bytes);
        }
        let zeros = [0; ZEROS];
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(ZEROS as u64) as usize;
            self.request(command::WRITE, 0, at + done, len, &zeros[..len], &mut [])?;
            done += len as u64;
        }
        Ok(())
    }

    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        if self.has(flag::TRIM) { self.range(command::TRIM, 0, at, bytes) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.info.read_only || !self.has(flag::FLUSH) {
            return Ok(());
        }
        self.request(command::FLUSH, 0, 0, 0, &[], &mut [])
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        for session in pool.idle.drain(..) {
            session.farewell();
        }
        drop(Started(self.child.take()));
    }
}

/// A command that ends with us.
struct Started(Option<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn patient(stream: &Stream) -> io::Result<()> {
    match stream {
        Stream::Unix(stream) => {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))
        }
        Stream::Tcp(stream) => {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))
        }
    }
}

/// Ends a connection in both directions.
fn hang_up(stream: &Stream) {
    let _ = match stream {
        Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
    };
}
