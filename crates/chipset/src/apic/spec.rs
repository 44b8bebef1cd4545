//! Registers of the local APIC (SDM 3A 10.4, 10.12) and of the I/O APIC (82093AA data sheet), as numbers and masks.
//!
//! Used by the chips of this module only.

/// Register numbers: the xAPIC offset over 16, which is also the x2APIC MSR less 0x800 (SDM 3A table 10-6).
pub(super) mod reg {
    pub(crate) const ID: u8 = 0x02;
    pub(crate) const VERSION: u8 = 0x03;
    pub(crate) const TPR: u8 = 0x08;
    pub(crate) const APR: u8 = 0x09;
    pub(crate) const PPR: u8 = 0x0a;
    pub(crate) const EOI: u8 = 0x0b;
    pub(crate) const REMOTE_READ: u8 = 0x0c;
    pub(crate) const LDR: u8 = 0x0d;
    pub(crate) const DFR: u8 = 0x0e;
    pub(crate) const SVR: u8 = 0x0f;
    pub(crate) const ISR: u8 = 0x10;
    pub(crate) const ISR_LAST: u8 = 0x17;
    pub(crate) const TMR: u8 = 0x18;
    pub(crate) const TMR_LAST: u8 = 0x1f;
    pub(crate) const IRR: u8 = 0x20;
    pub(crate) const IRR_LAST: u8 = 0x27;
    pub(crate) const ESR: u8 = 0x28;
    pub(crate) const ICR: u8 = 0x30;
    pub(crate) const ICR_HIGH: u8 = 0x31;
    pub(crate) const LVT_TIMER: u8 = 0x32;
    pub(crate) const LVT_ERROR: u8 = 0x37;
    pub(crate) const TIMER_INITIAL: u8 = 0x38;
    pub(crate) const TIMER_CURRENT: u8 = 0x39;
    pub(crate) const TIMER_DIVIDE: u8 = 0x3e;
    /// x2APIC only.
    pub(crate) const SELF_IPI: u8 = 0x3f;
}

/// Integrated APIC, LVT entries 0..=5, EOI broadcasts can be suppressed.
pub(super) const VERSION: u32 = 0x0105_0014;

/// IA32_APIC_BASE (SDM 3A 10.4.4).
pub(super) mod base {
    pub(crate) const BSP: u64 = 1 << 8;
    pub(crate) const EXTD: u64 = 1 << 10;
    pub(crate) const EN: u64 = 1 << 11;
    pub(crate) const ADDRESS: u64 = !0xfff;
    pub(crate) const DEFAULT: u64 = 0xfee0_0000;
}

/// Spurious-interrupt vector register (SDM 3A 10.9).
pub(super) mod svr {
    pub(crate) const ENABLED: u32 = 1 << 8;
    pub(crate) const NO_EOI_BROADCAST: u32 = 1 << 12;
    /// Vector, enable, focus checking (without effect), EOI suppression.
    pub(crate) const WRITABLE: u32 = 0x13ff;
}

/// Error status register (SDM 3A 10.5.3).
pub(super) mod esr {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Local vector table (SDM 3A 10.5.1), in the order of the registers from 0x320.
pub(super) mod lvt {
    pub(crate) const TIMER: usize = 0;
    pub(crate) const LINT0: usize = 3;
    pub(crate) const LINT1: usize = 4;
    pub(crate) const ERROR: usize = 5;
    pub(crate) const COUNT: usize = 6;

    pub(crate) const REMOTE_IRR: u32 = 1 << 14;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const MASKED: u32 = 1 << 16;

    /// What software may write in each entry.
    pub(crate) const WRITABLE: [u32; COUNT] = [0x0007_00ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
    /// What is read-only in each entry: ignored when written, not reserved.
    pub(crate) const READ_ONLY: [u32; COUNT] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
}

/// Delivery modes (SDM 3A 10.6.1), as IPIs, MSIs, LVT entries and redirection entries share them.
pub(super) mod mode {
    pub(crate) const FIXED: u32 = 0;
    pub(crate) const LOWEST: u32 = 1;
    pub(crate) const SMI: u32 = 2;
    pub(crate) const NMI: u32 = 4;
    pub(crate) const INIT: u32 = 5;
    pub(crate) const STARTUP: u32 = 6;
    pub(crate) const EXTINT: u32 = 7;

    /// The field in any of those registers.
    pub(crate) const fn of(register: u32) -> u32 {
        register >> 8 & 7
    }
}

/// Interrupt command register (SDM 3A 10.6.1).
pub(super) mod icr {
    pub(crate) const LOGICAL: u64 = 1 << 11;
    pub(crate) const ASSERT: u64 = 1 << 14;
    pub(crate) const LEVEL: u64 = 1 << 15;
    /// Bits of the low half that hold what was written.
    pub(crate) const LOW: u64 = 0x000c_cfff;
    /// Reserved in x2APIC mode. Bit 12, delivery status, is gone there, but the chips take it.
    pub(crate) const RESERVED: u64 = 0xfff3_2000;
}

/// I/O APIC registers.
pub(super) mod io {
    pub(crate) const ID: u8 = 0;
    pub(crate) const VERSION: u8 = 1;
    pub(crate) const ARBITRATION: u8 = 2;
    pub(crate) const TABLE: u8 = 0x10;

    /// Version 0x20 (has the EOI register), 24 entries.
    pub(crate) const VERSION_VALUE: u32 = 0x0017_0020;

    pub(crate) const REMOTE_IRR: u64 = 1 << 14;
    pub(crate) const LEVEL: u64 = 1 << 15;
    pub(crate) const MASKED: u64 = 1 << 16;
    pub(crate) const LOGICAL: u64 = 1 << 11;
    /// What software may write: not delivery status (12) and remote IRR (14).
    pub(crate) const WRITABLE: u64 = 0xff00_0000_0001_afff;
}
