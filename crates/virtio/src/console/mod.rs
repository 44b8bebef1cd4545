//! Console (VIRTIO 1.2, 5.3): ports with names, each a stream of bytes in both directions, and rings to talk about them.
//!
//! A port is either a console, which Linux makes a terminal of (`hvc0`), or a device that programs open (`/dev/vport0p1`, its name
//! in `/sys/class/virtio-ports`). Its host's side is a [`Source`], a [`Sink`], both or neither. The end of a source closes
//! the port on the host's side, so that who reads in the guest gets the end of file after the last byte.
//!
//! Threads: one for control, which also drops what is written to ports without a sink, one for each source and one for each sink
//! (`ombra-console-N`). A sink that has no room leaves the bytes in the guest's ring; a source is read when the guest has opened
//! the port and has room. Locks: one, a leaf, for messages that wait for the driver.
//!
//! Left out: the size of terminals, emergency writes, ports that come and go.

mod flow;
mod manage;
mod spec;
#[cfg(test)]
mod tests;

use crate::device::{Device, Job, Kind, Start};
use crate::queue::Queue;
use chipset::{RestoreError, Saved};
use flow::{Drain, Feed, Inlet};
use manage::Manager;
use rustix::event::{EventfdFlags, eventfd};
use spec::{CONFIG_BYTES, CONTROL_RECEIVE, CONTROL_TRANSMIT, MOST_PORTS, feature, receive_ring};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Entries of rings that bytes come through; Linux puts a page into each on the way to it.
const ENTRIES: u16 = 128;
/// Entries of rings that nothing comes through.
const FEW: u16 = 4;
/// Entries of the rings of control.
const CONTROL_ENTRIES: u16 = 32;

/// Where a port's bytes come from. Driven by one thread.
pub trait Source: Send {
    /// Readable when there is something, or the end.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The descriptor is readable: appends what is there, without waiting. `false`: nothing will come any more.
    ///
    /// # Errors
    /// The read's; taken as the end.
    fn receive(&mut self, into: &mut Vec<u8>) -> io::Result<bool>;
}

/// Where a port's bytes go. Driven by one thread.
pub trait Sink: Send {
    /// Whether it takes bytes now. If not, [`Sink::fd`] becomes readable when it does.
    fn has_room(&mut self) -> bool;
    /// Takes bytes.
    fn send(&mut self, bytes: &[u8]);
    /// Readable when there may be room again.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// One port.
pub struct Port {
    /// What programs in the guest find it by.
    pub name: String,
    /// It is a console of the guest's, not a device for programs.
    pub is_console: bool,
    /// To the guest.
    pub source: Option<Box<dyn Source>>,
    /// From the guest.
    pub sink: Option<Box<dyn Sink>>,
}

/// What a port's threads and control know of it.
struct PortState {
    name: String,
    is_console: bool,
    /// Somebody in the guest has it open.
    guest_open: AtomicBool,
    /// The host's side is open: always, but for sources that have ended.
    host_open: AtomicBool,
    /// Readable when `guest_open` has become true.
    opened: OwnedFd,
    inlet: Mutex<Option<Inlet>>,
    sink: Mutex<Option<Box<dyn Sink>>>,
    has_source: bool,
    has_sink: bool,
}

/// What all threads share.
struct Shared {
    ports: Vec<PortState>,
    /// Messages that wait for the driver.
    outbox: Mutex<VecDeque<Vec<u8>>>,
    /// Readable when somebody has added a message.
    posted: OwnedFd,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message for the driver, for control's thread to give it.
    fn post(&self, message: Vec<u8>) {
        self.outbox().push_back(message);
        wake(&self.posted);
    }
}

/// Makes an event descriptor readable.
fn wake(fd: &OwnedFd) {
    // Fails only when the counter is full, and then it is readable.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Makes it unreadable again.
fn hear(fd: &OwnedFd) {
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

/// A console.
pub struct Console {
    shared: Arc<Shared>,
}

impl Console {
    /// A console of these ports, at least one.
    ///
    /// # Errors
    /// The host refuses a file descriptor.
    pub fn new(ports: Vec<Port>) -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let state = |port: Port| {
            Ok(PortState {
                name: port.name,
                is_console: port.is_console,
                guest_open: AtomicBool::new(false),
                host_open: AtomicBool::new(true),
                opened: event()?,
                has_source: port.source.is_some(),
                has_sink: port.sink.is_some(),
                inlet: Mutex::new(port.source.map(Inlet::new)),
                sink: Mutex::new(port.sink),
            })
        };
        let ports = ports.into_iter().map(state).collect::<io::Result<_>>()?;
        Ok(Self { shared: Arc::new(Shared { ports, outbox: Mutex::default(), posted: event()? }) })
    }
}

impl Device for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        feature::MULTIPORT
    }

    fn queues(&self) -> Vec<u16> {
        let mut sizes = Vec::new();
        for (number, port) in self.shared.ports.iter().enumerate() {
            sizes.extend([port.has_source, port.has_sink].map(|used| if used { ENTRIES } else { FEW }));
            if number == 0 {
                sizes.extend([CONTROL_ENTRIES; 2]);
            }
        }
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let count = self.shared.ports.len() as u32;
        space[MOST_PORTS..MOST_PORTS + 4].copy_from_slice(&count.to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    /// Emergency writes aren't offered.
    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, start: Start) -> Vec<Job> {
        let has_control = start.features & feature::MULTIPORT != 0;
        let mut queues = start.queues;
        // A driver that goes on after the machine was stopped has its ports open still.
        let is_new = queues.iter().all(Queue::is_new);
        if is_new {
            self.shared.outbox().clear();
            for port in &self.shared.ports {
                port.guest_open.store(!has_control, Ordering::Release);
            }
        }
        let mut take = |index: u16| {
            let at = queues.iter().position(|queue| queue.index() == index)?;
            Some(queues.swap_remove(at))
        };
        let mut jobs = Vec::new();
        let control: Vec<_> = [CONTROL_RECEIVE, CONTROL_TRANSMIT].into_iter().filter_map(&mut take).collect();
        for (number, port) in self.shared.ports.iter().enumerate() {
            if number > 0 && !has_control {
                break;
            }
            let ring = receive_ring(number);
            if port.has_source
                && let Some(queue) = take(ring)
            {
                let work = Box::new(Feed::new(&self.shared, number));
                jobs.push(Job { queues: vec![queue], work });
            }
            if port.has_sink
                && let Some(queue) = take(ring + 1)
            {
                let work = Box::new(Drain::new(&self.shared, number));
                jobs.push(Job { queues: vec![queue], work });
            }
        }
        // What is left over: rings that lead nowhere, whose driver must not wait for ever.
        let queues = control.into_iter().chain(queues).collect();
        jobs.push(Job { queues, work: Box::new(Manager::new(&self.shared, has_control)) });
        jobs
    }

    fn stop(&mut self) {}

    fn save(&self) -> Saved {
        let ports = self.shared.ports.iter();
        Saved(ports.map(|port| port.guest_open.load(Ordering::Acquire).into()).collect())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.0.len() != self.shared.ports.len() || saved.0.iter().any(|open| *open > 1) {
            return Err(RestoreError::Impossible { device: "virtio console", what: "other ports" });
        }
        for (port, open) in self.shared.ports.iter().zip(&saved.0) {
            port.guest_open.store(*open == 1, Ordering::Release);
        }
        Ok(())
    }
}
