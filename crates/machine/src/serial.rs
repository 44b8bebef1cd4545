//! Serial ports: where the UART meets the host's streams.
//!
//! [`attach`] builds COM1 to COM4 as configured. Output goes into a queue with a writer thread of its own (see
//! [`streams`](crate::streams)). Input is read by the event loop into a small buffer and from there given to the UART as it has
//! room; what the caller's [`Input`] keeps for itself (an escape key) is seen even if the guest has stopped reading.
//!
//! Lock order: a feed's lock before its UART's. The UART calls back with its own lock held, and that only sets a flag and
//! wakes the loop.

use crate::MachineError;
use crate::acpi::COM_PORTS;
use crate::board::Slot;
use crate::events::{Events, Watch};
use crate::streams::{Input, Output, Writer};
use chipset::WindowId;
use chipset::uart::{ByteSink, InputRoom, REGISTERS, Uart};
use control::SerialConfig;
use std::fs::File;
use std::io::Write;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

/// Bytes that wait for the guest to read them; more stay with the host.
const INPUT_LIMIT: usize = 4096;
/// Registers of a UART.
const PORTS: u16 = 8;

/// Output that leads nowhere.
struct Nowhere;

impl ByteSink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

impl ByteSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        self.push(bytes);
    }
    fn has_room(&mut self) -> bool {
        Self::has_room(self)
    }
}

/// The UART's end of a feed.
#[derive(Default)]
struct Room {
    is_there: AtomicBool,
    events: OnceLock<Events>,
}

impl InputRoom for Room {
    fn room(&self) {
        self.is_there.store(true, Ordering::Release);
        if let Some(events) = self.events.get() {
            events.look_again();
        }
    }
}

struct Source {
    input: Box<dyn Input>,
    /// Read, but not yet taken by the UART.
    waiting: Vec<u8>,
    /// Nothing more will come.
    ended: bool,
}

/// A source of input, as the event loop watches it.
struct Feed {
    fd: OwnedFd,
    source: Mutex<Source>,
    room: Arc<Room>,
    uart: Weak<Mutex<Uart>>,
    /// A vCPU had the UART when there was something to give it.
    held_up: AtomicBool,
}

impl Feed {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the UART what it has room for. Never waits for a UART: a vCPU may be waiting with it for a slow reader, and the
    /// machine's timers are on this thread.
    fn deliver(&self, source: &mut Source) {
        self.held_up.store(false, Ordering::Release);
        if source.waiting.is_empty() {
            return;
        }
        let Some(uart) = self.uart.upgrade() else { return };
        let mut uart = match uart.try_lock() {
            Ok(uart) => uart,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.held_up.store(true, Ordering::Release);
                return;
            }
        };
        let taken = uart.receive(&source.waiting);
        source.waiting.drain(..taken.min(source.waiting.len()));
    }
}

impl Watch for Feed {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        let mut source = self.source();
        let room = self.room.is_there.swap(false, Ordering::AcqRel);
        if room || self.held_up.load(Ordering::Acquire) {
            self.deliver(&mut source);
        }
        (!source.ended && source.waiting.len() < INPUT_LIMIT).then(|| self.fd.as_fd())
    }

    fn is_held_up(&self) -> bool {
        self.held_up.load(Ordering::Acquire)
    }

    fn ready(&self) {
        let mut source = self.source();
        let Source { input, waiting, ended } = &mut *source;
        match input.receive(waiting) {
            Ok(true) => {}
            Ok(false) => *ended = true,
            Err(error) => {
                tracing::warn!("serial input ends: {error}");
                *ended = true;
            }
        }
        self.deliver(&mut source);
    }
}

/// COM1 to COM4.
pub(crate) fn attach(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    for (index, place) in COM_PORTS.into_iter().enumerate() {
        let Some(config) = &slot.parts.config.serial[index] else { continue };
        let (output, input): (Box<dyn Write + Send>, _) = match config {
            SerialConfig::Null => (Box::new(std::io::sink()), None),
            SerialConfig::File(path) => (Box::new(create(index + 1, path)?), None),
            SerialConfig::Stream => match slot.streams.serial[index].take() {
                Some(stream) => (stream.output, stream.input),
                None => (Box::new(std::io::sink()), None),
            },
        };
        let mut queue = None;
        let sink: Box<dyn ByteSink> = if matches!(config, SerialConfig::Null) {
            Box::new(Nowhere)
        } else {
            let control = Arc::clone(slot.parts.control);
            let (writer, output) = Writer::start(&format!("COM{}", index + 1), output, control)
                .map_err(|source| MachineError::Host { what: "a thread", source })?;
            slot.writers.push(writer);
            slot.outputs.push(output.clone());
            queue = Some(output.clone());
            Box::new(output)
        };
        let room = Arc::new(Room::default());
        let hears_of_room = input.is_some().then(|| -> Arc<dyn InputRoom> { room.clone() });
        let uart = Arc::new(Mutex::new(Uart::new(slot.line(place.irq), sink, hears_of_room)));
        if let Some(queue) = queue {
            let uart = Arc::downgrade(&uart);
            queue.on_room(move || {
                if let Some(uart) = uart.upgrade() {
                    uart.lock().unwrap_or_else(PoisonError::into_inner).output_room();
                }
            });
        }
        let ports: RangeInclusive<u64> = u64::from(place.port)..=u64::from(place.port + PORTS - 1);
        let places: [(_, WindowId); 1] = [(ports, REGISTERS)];
        slot.on_ports(&uart, &places)?;
        slot.keep(&uart);
        if let Some(input) = input {
            feed(slot.parts.events, &uart, room, input)?;
        }
    }
    Ok(())
}

fn create(port: usize, path: &Path) -> Result<File, MachineError> {
    File::create(path).map_err(|source| MachineError::SerialFile { port, file: path.to_owned(), source })
}

fn feed(
    events: &Events,
    uart: &Arc<Mutex<Uart>>,
    room: Arc<Room>,
    input: Box<dyn Input>,
) -> Result<(), MachineError> {
    let fd = input
        .fd()
        .try_clone_to_owned()
        .map_err(|source| MachineError::Host { what: "a file descriptor for serial input", source })?;
    let _ = room.events.set(events.clone());
    let source = Mutex::new(Source { input, waiting: Vec::new(), ended: false });
    events.watch(Arc::new(Feed {
        fd,
        source,
        room,
        uart: Arc::downgrade(uart),
        held_up: AtomicBool::new(false),
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipset::{At, BusDevice, Line, LineSink};

    struct Unconnected;

    impl LineSink for Unconnected {
        fn set_pin(&self, _: u8, _: bool) {}
    }

    struct Pipe(std::io::PipeReader);

    impl Input for Pipe {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn receive(&mut self, guest: &mut Vec<u8>) -> std::io::Result<bool> {
            guest.push(b'x');
            Ok(true)
        }
    }

    #[test]
    fn input_does_not_wait_for_a_port_that_a_vcpu_has_but_comes_later() {
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let line = Line::new(Arc::new(Unconnected), 4);
        let mut open = Uart::new(line, Box::new(Nowhere), None);
        // A guest that wants to hear of what is received: until then it stays where it is.
        open.write(At { window: WindowId::default(), offset: 1 }, &[1]).expect("the register exists");
        let uart = Arc::new(Mutex::new(open));
        let fd = reader.as_fd().try_clone_to_owned().expect("a descriptor");
        let source = Mutex::new(Source { input: Box::new(Pipe(reader)), waiting: Vec::new(), ended: false });
        let feed = Feed {
            fd,
            source,
            room: Arc::default(),
            uart: Arc::downgrade(&uart),
            held_up: AtomicBool::new(false),
        };
        let held = uart.lock().expect("not poisoned");
        feed.ready();
        assert!(feed.is_held_up());
        assert_eq!(feed.source().waiting, b"x");
        drop(held);
        let _ = feed.poll_fd();
        assert!(!feed.is_held_up());
        assert!(feed.source().waiting.is_empty());
    }
}
