//! Local APICs and the I/O APIC.
//!
//! [`Lapics`] is all local APICs of a machine. vCPUs reach their own through MMIO (xAPIC), MSRs (x2APIC) and CR8 and ask it
//! for events; messages come from other local APICs, from the [`IoApic`] and as MSIs; the PIC's INTR comes in on a wire.
//!
//! Threads and lock order: device, then I/O APIC or PIC, then local APIC. With a local APIC locked nobody else
//! is called but clocks, alarms and [`Attention`], which are leaves: an IPI locks the sender, lets go, and locks the receivers one after
//! the other; an EOI that an I/O APIC wants to hear of and the acknowledge cycle to the PIC happen with no lock held.
//!
//! Left out: SMIs (ignored), the CMCI entry, remote reads, performance and thermal interrupts (their registers are there).

mod bits;
mod ioapic;
mod lapic;
mod lapics;
mod spec;
mod timer;

#[cfg(test)]
mod tests;

pub use ioapic::{IOAPIC_BASE, IOAPIC_PINS, IOAPIC_SIZE, IoApic};
pub use lapic::ApicCounts;
pub use lapics::{Lapics, Processor};
pub use timer::TIMER_HZ;

/// Where xAPICs are found after power-up.
pub const LAPIC_BASE: u64 = spec::base::DEFAULT;

/// How an interrupt controller gets a vCPU to ask it for events. Called from any thread, possibly without need; a leaf.
pub trait Attention: Send + Sync {
    /// Something may be pending.
    fn kick(&self);
}

/// The controller behind INTR: the PIC pair.
pub trait ExtIntSource: Send + Sync {
    /// Whether it asks for an interrupt.
    fn is_pending(&self) -> bool;
    /// The acknowledge cycle: the vector to deliver.
    fn acknowledge(&self) -> u8;
}

/// Who hears of the end of level-triggered interrupts: the I/O APIC.
pub trait EoiSink: Send + Sync {
    /// A processor is done with `vector`.
    fn eoi(&self, vector: u8);
}

/// What can happen to a vCPU between two instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicEvent {
    /// INIT (SDM 3A 10.4.7).
    Init,
    /// A start-up IPI: execution starts at `vector << 12`.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An external interrupt, acknowledged.
    Interrupt(u8),
}

/// The MSR access gets `#GP(0)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such register, or a value it refuses")]
pub struct MsrFault;
