//! Which interface for guests a machine has, and which parts of it.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// The interface for guests that know they are guests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Enlightenments {
    /// What is best for most guests.
    #[default]
    Auto,
    /// KVM's.
    Kvm,
    /// Hyper-V's.
    HyperV,
    /// None: the guest sees hardware alone.
    None,
}

bitflags! {
    /// Parts of the interface; what it hasn't got is left out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
    pub struct Parts: u32 {
        /// Clocks that are read without asking.
        const CLOCK = 1 << 0;
        /// The time that the host ran something else.
        const STEAL = 1 << 1;
        /// Ends of interrupts that the guest needn't tell.
        const EOI = 1 << 2;
        /// Waiting in spin locks without spinning.
        const SPIN = 1 << 3;
        /// TLB flushes for other vCPUs.
        const FLUSH = 1 << 4;
        /// Interrupts for many vCPUs at once.
        const IPI = 1 << 5;
        /// Giving the host's CPU to another vCPU.
        const YIELD = 1 << 6;
        /// Whether the host polls for a halted vCPU.
        const POLL = 1 << 7;
        /// Messages and event flags with interrupt sources of their own.
        const SYNIC = 1 << 8;
        /// Timers in units of 100 ns.
        const TIMERS = 1 << 9;
    }
}

impl Parts {
    /// Each part and its name, as `--feature` takes it.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("pv-clock", Self::CLOCK),
        ("pv-steal", Self::STEAL),
        ("pv-eoi", Self::EOI),
        ("pv-spin", Self::SPIN),
        ("pv-flush", Self::FLUSH),
        ("pv-ipi", Self::IPI),
        ("pv-yield", Self::YIELD),
        ("pv-poll", Self::POLL),
        ("pv-synic", Self::SYNIC),
        ("pv-timers", Self::TIMERS),
    ];
}

impl Default for Parts {
    fn default() -> Self {
        Self::all()
    }
}
