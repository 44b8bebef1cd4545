//! The machine around a case: records what the guest says to devices and injects events.
//!
//! Events come from ports of our own, so that they come at the same instruction however the engine is stepped:
//!
//! | port | a write of any size |
//! |---|---|
//! | `NMI_PORT` (0xe0) | raises an NMI |
//! | `INTERRUPT_PORT` (0xe1) | raises the external interrupt whose vector is written |
//! | `DMA_ADDRESS_PORT` (0xe8) | sets the address for the next |
//! | `DMA_PORT` (0xec) | writes the value to RAM at that address, as a device would |

use engine::{Access, Event, GpFault, Hypercall, HypercallOutcome, Kicker, Platform, Window};
use memory::GuestMemory;
use std::collections::{BTreeMap, VecDeque};
use x86::Gpa;

/// See the module.
pub(crate) const NMI_PORT: u16 = 0xe0;
/// See the module.
pub(crate) const INTERRUPT_PORT: u16 = 0xe1;
/// See the module.
pub(crate) const DMA_ADDRESS_PORT: u16 = 0xe8;
/// See the module.
pub(crate) const DMA_PORT: u16 = 0xec;

/// Accesses to one port or MMIO address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    /// Last value written.
    pub(super) value: u64,
    /// Number of writes.
    pub(super) writes: u64,
    /// Number of reads.
    pub(super) reads: u64,
}

/// The test machine.
pub(super) struct TestPlatform {
    // Wiring.
    memory: GuestMemory,
    kicker: Kicker,
    /// What reads of a port give.
    pub(super) answers: BTreeMap<u16, u64>,
    // State.
    pending: VecDeque<Event>,
    dma_address: u64,
    cr8: u8,
    /// What was done to ports.
    pub(super) ports: BTreeMap<u16, Seen>,
    /// What was done to memory that isn't RAM.
    pub(super) bus: BTreeMap<u64, Seen>,
}

impl TestPlatform {
    pub(super) fn new(memory: GuestMemory, kicker: Kicker, answers: BTreeMap<u16, u64>) -> Self {
        Self {
            memory,
            kicker,
            answers,
            pending: VecDeque::new(),
            dma_address: 0,
            cr8: 0,
            ports: BTreeMap::new(),
            bus: BTreeMap::new(),
        }
    }

    /// Makes an event pending and kicks the vCPU.
    pub(super) fn raise(&mut self, event: Event) {
        self.pending.push_back(event);
        self.kicker.kick();
    }
}

pub(crate) fn value(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

pub(crate) fn answer(buffer: &mut [u8], value: u64) {
    for (byte, from) in buffer.iter_mut().zip(value.to_le_bytes()) {
        *byte = from;
    }
}

impl Platform for TestPlatform {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        let seen = self.bus.entry(at.0).or_default();
        match access {
            Access::Read(buffer) => {
                seen.reads += 1;
                buffer.fill(0xff);
            }
            Access::Write(bytes) => {
                seen.writes += 1;
                seen.value = value(bytes);
            }
        }
    }

    fn pio(&mut self, port: u16, access: Access<'_>) {
        let seen = self.ports.entry(port).or_default();
        match access {
            Access::Read(buffer) => {
                seen.reads += 1;
                answer(buffer, self.answers.get(&port).copied().unwrap_or(u64::MAX));
            }
            Access::Write(bytes) => {
                seen.writes += 1;
                seen.value = value(bytes);
                let value = seen.value;
                match port {
                    NMI_PORT => self.raise(Event::Nmi),
                    INTERRUPT_PORT => self.raise(Event::Interrupt(value as u8)),
                    DMA_ADDRESS_PORT => self.dma_address = value,
                    // An address outside RAM is a mistake in the case, which its expectations will show.
                    DMA_PORT => drop(self.memory.write(Gpa(self.dma_address), bytes)),
                    _ => {}
                }
            }
        }
    }

    fn rdmsr(&mut self, _msr: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }

    fn wrmsr(&mut self, _msr: u32, _value: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }

    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }

    fn cr8(&mut self) -> u8 {
        self.cr8
    }

    fn set_cr8(&mut self, priority: u8) {
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
        self.pending.remove(at)
    }

    fn has_event(&mut self) -> bool {
        !self.pending.is_empty()
    }

    fn apic_enabled(&mut self) -> bool {
        true
    }
}
