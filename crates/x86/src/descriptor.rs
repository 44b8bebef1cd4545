//! Segment descriptors, selectors and gates (SDM 3A 3.4, 5.2, 7.2).

use serde::{Deserialize, Serialize};

/// A segment selector: index, table indicator, requested privilege level (SDM 3A 3.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(transparent)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level, 0..=3.
    #[must_use]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    /// Whether the selector names the LDT rather than the GDT.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// Byte offset of the descriptor in its table.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self.0 & !7) as u64
    }
    /// Whether this is a null selector (index 0 of the GDT, any RPL).
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// The selector as the error code of a fault: RPL cleared (SDM 3A 6.13).
    #[must_use]
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }
    /// The same selector with another RPL.
    #[must_use]
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self((self.0 & !3) | rpl as u16)
    }
}

/// Attributes of a descriptor in the layout of its second doubleword, bits 8..=23 moved down to 0..=15:
/// type 0..=3, S 4, DPL 5..=6, P 7, limit\[19:16\] 8..=11 (zero here), AVL 12, L 13, D/B 14, G 15.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(transparent)]
pub struct Attributes(pub u16);

#[allow(missing_docs, reason = "the names are the manual's fields")]
impl Attributes {
    /// Type of a system descriptor, or the type bits of a code or data descriptor.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// S: a code or data segment, not a system one.
    #[must_use]
    pub const fn is_code_or_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.0 & (1 << 4 | 1 << 3) == (1 << 4 | 1 << 3)
    }
    #[must_use]
    pub const fn is_data(self) -> bool {
        self.0 & (1 << 4 | 1 << 3) == 1 << 4
    }
    /// A conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.0 & (1 << 2) != 0
    }
    /// An expand-down data segment.
    #[must_use]
    pub const fn is_expand_down(self) -> bool {
        self.is_data() && self.0 & (1 << 2) != 0
    }
    /// A data segment, or a code segment with the readable bit.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.is_data() || (self.is_code() && self.0 & (1 << 1) != 0)
    }
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.is_data() && self.0 & (1 << 1) != 0
    }
    #[must_use]
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 7) != 0
    }
    /// L: 64-bit code.
    #[must_use]
    pub const fn is_long(self) -> bool {
        self.0 & (1 << 13) != 0
    }
    /// D/B: 32-bit default size.
    #[must_use]
    pub const fn is_big(self) -> bool {
        self.0 & (1 << 14) != 0
    }
    /// G: the limit counts 4 KiB pages.
    #[must_use]
    pub const fn is_granular(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

/// Types of system descriptors, 32-bit and IA-32e forms (SDM 3A table 3-2).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod system {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

/// A raw 8-byte descriptor as it lies in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct RawDescriptor(pub u64);

impl RawDescriptor {
    /// The attribute word.
    #[must_use]
    pub const fn attributes(self) -> Attributes {
        Attributes(((self.0 >> 40) & 0xf0ff) as u16)
    }
    /// Base, low 32 bits (a 16-byte system descriptor has the rest in its second half).
    #[must_use]
    pub const fn base(self) -> u64 {
        ((self.0 >> 16) & 0xff_ffff) | ((self.0 >> 32) & 0xff00_0000)
    }
    /// Limit in bytes, with granularity applied.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | ((self.0 >> 32) & 0xf_0000) as u32;
        if self.attributes().is_granular() { (raw << 12) | 0xfff } else { raw }
    }
    /// For a gate: target selector.
    #[must_use]
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }
    /// For a gate: target offset, low 32 bits.
    #[must_use]
    pub const fn gate_offset(self) -> u64 {
        (self.0 & 0xffff) | ((self.0 >> 32) & 0xffff_0000)
    }
    /// For a call gate: number of parameters, 0..=31.
    #[must_use]
    pub const fn gate_parameters(self) -> u8 {
        ((self.0 >> 32) & 0x1f) as u8
    }
    /// For an interrupt or trap gate: interrupt-stack-table index, 0..=7 (64-bit mode).
    #[must_use]
    pub const fn gate_ist(self) -> u8 {
        ((self.0 >> 32) & 7) as u8
    }
}
