//! Register formats (IA-PC HPET specification 1.0a, 2.3).

bitflags::bitflags! {
    /// General configuration register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct General: u64 {
        const ENABLE = 1 << 0;
        const LEGACY = 1 << 1;
    }

    /// What can be written of a timer's configuration.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct Config: u64 {
        const LEVEL = 1 << 1;
        const INTERRUPT = 1 << 2;
        const PERIODIC = 1 << 3;
        const SET_VALUE = 1 << 6;
        const FORCED_32 = 1 << 8;
        const ROUTE = 0x1f << 9;
    }
}

impl Config {
    /// The I/O APIC input.
    pub(super) fn route(self) -> u8 {
        ((self & Self::ROUTE).bits() >> 9) as u8
    }
}

/// Femtoseconds a tick, Intel's vendor ID, legacy replacement, 64 bits, the last timer's number, revision 1.
pub(super) const CAPABILITIES: u64 = (super::TICK_NANOS * 1_000_000) << 32
    | 0x8086 << 16
    | 1 << 15
    | 1 << 13
    | (super::TIMERS as u64 - 1) << 8
    | 1;

/// Each timer is periodic and 64 bits wide.
pub(super) const TIMER_CAPABILITIES: u64 = 1 << 5 | 1 << 4;
