//! Control, extended-control and debug register bits (SDM 3A 2.5, 2.6; 3B 17.2).

/// CR0 bits (SDM 3A 2.5).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Every bit that is defined; MOV to CR0 ignores undefined ones below 32 and faults on those above.
    pub const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 bits (SDM 3A 2.5).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    pub const PKS: u64 = 1 << 24;
}

/// IA32_EFER bits (SDM 3A 2.2.1).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
    /// AMD's automatic IBRS (APM 2 3.1.7).
    pub const AIBRSE: u64 = 1 << 21;
}

/// XCR0 state-component bits (SDM 1 13.1).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const OPMASK: u64 = 1 << 5;
    pub const ZMM_HI256: u64 = 1 << 6;
    pub const HI16_ZMM: u64 = 1 << 7;
    pub const PKRU: u64 = 1 << 9;
    /// The three components of AVX-512, which XCR0 holds together or not at all.
    pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;
}

/// DR6 bits (SDM 3B 17.2.3).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod dr6 {
    pub const B0: u64 = 1 << 0;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// Value after reset: the bits that always read as one.
    pub const RESET: u64 = 0xffff_0ff0;
}

/// DR7 bits (SDM 3B 17.2.4).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod dr7 {
    /// Local and global enables of the four breakpoints.
    pub const ENABLES: u64 = 0xff;
    pub const GD: u64 = 1 << 13;
    /// Value after reset: bit 10 always reads as one.
    pub const RESET: u64 = 0x400;
}
