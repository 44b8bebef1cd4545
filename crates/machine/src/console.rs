//! A virtio console: where its ports meet the host's streams.
//!
//! As with serial ports, output goes into a queue with a writer thread of its own; input is read by the device's thread.
//!
//! Lock order: the queue's lock is a leaf; its writer calls nobody with it held.

use crate::MachineError;
use crate::board::Slot;
use crate::streams::{Input, Output, Stream, Writer};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use virtio::console::{Console, Port, Sink, Source};

/// The console of the configuration's ports, which each take a stream.
pub(crate) fn console(slot: &mut Slot<'_>) -> Result<Console, MachineError> {
    let refused = |what| move |source| MachineError::Host { what, source };
    let streams = std::mem::take(&mut slot.streams.ports);
    if streams.len() != slot.parts.config.ports.len() {
        return Err(MachineError::Config("each port of the console wants a stream".to_owned()));
    }
    let mut ports = Vec::new();
    for (config, Stream { output, input }) in slot.parts.config.ports.iter().zip(streams) {
        let control = Arc::clone(slot.parts.control);
        let (writer, output) = Writer::start(&config.name, output, control).map_err(refused("a thread"))?;
        slot.writers.push(writer);
        slot.outputs.push(output.clone());
        let sink = Queued::new(output).map_err(refused("a file descriptor"))?;
        ports.push(Port {
            name: config.name.clone(),
            is_console: config.is_console,
            source: input.map(|input| Box::new(Read(input)) as Box<dyn Source>),
            sink: Some(Box::new(sink)),
        });
    }
    Console::new(ports).map_err(refused("a file descriptor"))
}

/// A stream's input.
struct Read(Box<dyn Input>);

impl Source for Read {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn receive(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        self.0.receive(into)
    }
}

/// A stream's output, behind its queue.
struct Queued {
    output: Output,
    room: Arc<OwnedFd>,
}

impl Queued {
    fn new(output: Output) -> io::Result<Self> {
        let room = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let wake = Arc::clone(&room);
        output.on_room(move || {
            // Fails only when the counter is full, and then it is readable.
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        });
        Ok(Self { output, room })
    }
}

impl Sink for Queued {
    fn has_room(&mut self) -> bool {
        let _ = rustix::io::read(&*self.room, &mut [0; 8]);
        self.output.has_room()
    }
    fn send(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }
}
