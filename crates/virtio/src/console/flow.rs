//! A port's bytes: [`Feed`] moves them to the guest, [`Drain`] from it.
//!
//! Threads: one each. Source and sink are the port's between drivers and the thread's while one is there.

use super::spec::{event, message};
use super::{PortState, Shared, Sink, Source, hear};
use crate::device::{Next, Wakes, Work};
use crate::queue::{Broken, Queue};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Requests done before the thread looks around.
const AT_ONCE: usize = 64;
/// Bytes of the guest's that are passed on at once.
const PIECE: usize = 64 << 10;

fn lock<T>(mutex: &std::sync::Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A source with what has been read from it, but not yet given to the guest.
pub(super) struct Inlet {
    source: Box<dyn Source>,
    waiting: Vec<u8>,
    /// Of `waiting`, what the guest has.
    given: usize,
    ended: bool,
}

impl Inlet {
    pub(super) fn new(source: Box<dyn Source>) -> Self {
        Self { source, waiting: Vec::new(), given: 0, ended: false }
    }

    /// Reads, if there is something and nothing is waiting.
    fn fill(&mut self) {
        if self.given < self.waiting.len() || self.ended {
            return;
        }
        self.waiting.clear();
        self.given = 0;
        let mut fds = [PollFd::from_borrowed_fd(self.source.fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
            return;
        }
        match self.source.receive(&mut self.waiting) {
            Ok(more) => self.ended = !more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!("a console port's input ends: {error}");
                self.ended = true;
            }
        }
    }
}

/// To the guest.
pub(super) struct Feed {
    shared: Arc<Shared>,
    port: usize,
    /// Goes back at the end; `Some` until then.
    inlet: Option<Inlet>,
    /// The guest has given no buffers for what waits.
    has_no_room: bool,
}

impl Feed {
    pub(super) fn new(shared: &Arc<Shared>, port: usize) -> Self {
        let inlet = lock(&shared.ports[port].inlet).take();
        Self { shared: Arc::clone(shared), port, inlet, has_no_room: false }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        *lock(&self.shared.ports[self.port].inlet) = self.inlet.take();
    }
}

impl Work for Feed {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        let (Some(inlet), Some(queue)) = (&mut self.inlet, queues.first_mut()) else { return Ok(Next::Wait) };
        let port = &self.shared.ports[self.port];
        hear(&port.opened);
        self.has_no_room = false;
        queue.mute_doorbell()?;
        for _ in 0..AT_ONCE {
            // What comes for a port that nobody has open would be lost.
            if !port.guest_open.load(Ordering::Acquire) {
                queue.signal()?;
                return Ok(Next::Wait);
            }
            inlet.fill();
            if inlet.given == inlet.waiting.len() {
                queue.signal()?;
                if inlet.ended && port.host_open.swap(false, Ordering::AcqRel) {
                    self.shared.post(message(self.port as u32, event::PORT_OPEN, 0, &[]));
                }
                return Ok(Next::Wait);
            }
            match queue.pop()? {
                Some(mut request) => {
                    let left = &inlet.waiting[inlet.given..];
                    let fits = left.len().min(usize::try_from(request.writable()).unwrap_or(usize::MAX));
                    // A buffer that isn't RAM loses what was for it.
                    let _ = request.write(&left[..fits]);
                    inlet.given += fits;
                    queue.push(request.head(), request.written())?;
                }
                None if queue.want_doorbell()? => queue.mute_doorbell()?,
                None => {
                    queue.signal()?;
                    self.has_no_room = true;
                    return Ok(Next::Wait);
                }
            }
        }
        queue.signal()?;
        Ok(Next::Again)
    }

    fn wakes(&self) -> Wakes<'_> {
        let port = &self.shared.ports[self.port];
        let input = match &self.inlet {
            _ if !port.guest_open.load(Ordering::Acquire) => Some(std::os::fd::AsFd::as_fd(&port.opened)),
            Some(inlet) if !self.has_no_room && !inlet.ended => Some(inlet.source.fd()),
            _ => None,
        };
        Wakes { input, ..Wakes::default() }
    }
}

/// From the guest.
pub(super) struct Drain {
    shared: Arc<Shared>,
    port: usize,
    /// Goes back at the end; `Some` until then.
    sink: Option<Box<dyn Sink>>,
    /// The sink takes nothing at the moment.
    is_full: bool,
    buffer: Vec<u8>,
}

impl Drain {
    pub(super) fn new(shared: &Arc<Shared>, port: usize) -> Self {
        let sink = lock(&shared.ports[port].sink).take();
        Self { shared: Arc::clone(shared), port, sink, is_full: false, buffer: Vec::new() }
    }

    fn port(&self) -> &PortState {
        &self.shared.ports[self.port]
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        *lock(&self.port().sink) = self.sink.take();
    }
}

impl Work for Drain {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        let (Some(sink), Some(queue)) = (&mut self.sink, queues.first_mut()) else { return Ok(Next::Wait) };
        self.is_full = false;
        queue.mute_doorbell()?;
        for _ in 0..AT_ONCE {
            if !sink.has_room() {
                self.is_full = true;
                queue.signal()?;
                return Ok(Next::Wait);
            }
            match queue.pop()? {
                Some(mut request) => {
                    // In pieces, since a descriptor may claim 4 GiB.
                    loop {
                        let len = request.readable().min(PIECE as u64) as usize;
                        self.buffer.resize(len, 0);
                        if len == 0 || request.read(&mut self.buffer).is_err() {
                            break;
                        }
                        sink.send(&self.buffer);
                    }
                    queue.push(request.head(), 0)?;
                }
                None if queue.want_doorbell()? => queue.mute_doorbell()?,
                None => {
                    queue.signal()?;
                    return Ok(Next::Wait);
                }
            }
        }
        queue.signal()?;
        Ok(Next::Again)
    }

    fn wakes(&self) -> Wakes<'_> {
        let input = self.sink.as_ref().filter(|_| self.is_full).map(|sink| sink.fd());
        Wakes { input, ..Wakes::default() }
    }
}
