//! The machine around a sequence: every call is written down in order, reads give what follows from their number.
//!
//! Events come from the ports of the engine cases' machine ([`crate::cases::platform`]), so that they come at the same
//! instruction whatever the engine.

use crate::cases::platform::{DMA_ADDRESS_PORT, DMA_PORT, INTERRUPT_PORT, NMI_PORT, answer, value};
use engine::{Access, Event, GpFault, Hypercall, HypercallOutcome, Kicker, Platform, Window};
use memory::GuestMemory;
use std::collections::VecDeque;
use std::fmt;
use x86::Gpa;

/// What was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the contract's")]
pub enum Kind {
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
    MsrRead,
    MsrWrite,
    Cr8Read,
    Cr8Write,
    Event,
}

/// One call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What was called.
    pub kind: Kind,
    /// Address, port, MSR or vector.
    pub at: u64,
    /// Bytes.
    pub size: u8,
    /// What was written or given.
    pub value: u64,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:#x}/{} = {:#x}", self.kind, self.at, self.size, self.value)
    }
}

/// Calls that are kept word for word; of the others there is a sum.
const KEPT: usize = 2000;

/// The machine.
pub(super) struct Recorder {
    memory: GuestMemory,
    kicker: Kicker,
    pending: VecDeque<Event>,
    dma_address: u64,
    cr8: u8,
    count: u64,
    sum: u64,
    calls: Vec<Call>,
}

/// What was recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The first calls.
    pub calls: Vec<Call>,
    /// How many there were.
    pub count: u64,
    /// A sum over all.
    pub sum: u64,
}

fn scramble(value: u64) -> u64 {
    let value = (value ^ value >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value ^ value >> 29
}

impl Recorder {
    pub(super) fn new(memory: GuestMemory, kicker: Kicker) -> Self {
        Self {
            memory,
            kicker,
            pending: VecDeque::new(),
            dma_address: 0,
            cr8: 0,
            count: 0,
            sum: 0,
            calls: Vec::new(),
        }
    }

    pub(super) fn into_record(self) -> Record {
        Record { calls: self.calls, count: self.count, sum: self.sum }
    }

    fn note(&mut self, kind: Kind, at: u64, size: usize, value: u64) {
        self.count += 1;
        let parts = [kind as u64, at, size as u64, value];
        self.sum = parts.into_iter().fold(self.sum, |sum, part| scramble(sum ^ part));
        if self.calls.len() < KEPT {
            self.calls.push(Call { kind, at, size: size as u8, value });
        }
    }

    fn read(&mut self, kind: Kind, at: u64, buffer: &mut [u8]) {
        answer(buffer, scramble(at ^ self.count << 40 ^ self.sum));
        self.note(kind, at, buffer.len(), value(buffer));
    }

    fn raise(&mut self, event: Event) {
        // A guest in a loop mustn't pile them up.
        if self.pending.len() < 8 {
            self.pending.push_back(event);
        }
        self.kicker.kick();
    }
}

impl Platform for Recorder {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        match access {
            Access::Read(buffer) => self.read(Kind::MmioRead, at.0, buffer),
            Access::Write(bytes) => self.note(Kind::MmioWrite, at.0, bytes.len(), value(bytes)),
        }
    }

    fn pio(&mut self, port: u16, access: Access<'_>) {
        match access {
            Access::Read(buffer) => self.read(Kind::PortRead, u64::from(port), buffer),
            Access::Write(bytes) => {
                let written = value(bytes);
                self.note(Kind::PortWrite, u64::from(port), bytes.len(), written);
                match port {
                    NMI_PORT => self.raise(Event::Nmi),
                    INTERRUPT_PORT => self.raise(Event::Interrupt(written as u8)),
                    DMA_ADDRESS_PORT => self.dma_address = written,
                    // An address outside RAM goes nowhere, as on a bus.
                    DMA_PORT => drop(self.memory.write(Gpa(self.dma_address), bytes)),
                    _ => {}
                }
            }
        }
    }

    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault> {
        let there = msr & 1 == 0;
        let value = scramble(u64::from(msr) ^ self.sum);
        self.note(Kind::MsrRead, u64::from(msr), 8, value);
        if there { Ok(value) } else { Err(GpFault) }
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault> {
        self.note(Kind::MsrWrite, u64::from(msr), 8, value);
        if msr & 1 == 0 { Ok(()) } else { Err(GpFault) }
    }

    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }

    fn cr8(&mut self) -> u8 {
        self.note(Kind::Cr8Read, 0, 1, u64::from(self.cr8));
        self.cr8
    }

    fn set_cr8(&mut self, priority: u8) {
        self.note(Kind::Cr8Write, 0, 1, u64::from(priority));
        self.cr8 = priority;
    }

    fn take_event(&mut self, window: Window) -> Option<Event> {
        let admitted = |event: &Event| match event {
            Event::Nmi => window.nmi,
            Event::Interrupt(_) => window.interrupt,
            Event::Init | Event::Startup(_) | Event::Flush(_) => true,
            Event::Wake => window.halted,
        };
        let at = self.pending.iter().position(admitted)?;
        let event = self.pending.remove(at)?;
        let vector = if let Event::Interrupt(vector) = event { vector } else { 2 };
        self.note(Kind::Event, u64::from(vector), 1, 0);
        Some(event)
    }

    fn has_event(&mut self) -> bool {
        !self.pending.is_empty()
    }

    fn apic_enabled(&mut self) -> bool {
        true
    }
}
