//! RFLAGS (SDM 1 3.4.3).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// The flags register. Bit 1 always reads as one.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
    #[repr(transparent)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always one.
        const ONE = 1 << 1;
        /// Parity of the low byte.
        const PF = 1 << 2;
        /// Carry out of bit 3.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single-step trap.
        const TF = 1 << 8;
        /// Maskable interrupts allowed.
        const IF = 1 << 9;
        /// String direction: down.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, low bit.
        const IOPL0 = 1 << 12;
        /// I/O privilege level, high bit.
        const IOPL1 = 1 << 13;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: no instruction breakpoint on the next instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check; with SMAP, access to user pages allowed.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is there.
        const ID = 1 << 21;
    }
}

impl Rflags {
    /// The six flags that arithmetic sets: CF, PF, AF, ZF, SF, OF.
    pub const ARITHMETIC: Self =
        Self::CF.union(Self::PF).union(Self::AF).union(Self::ZF).union(Self::SF).union(Self::OF);
    /// Both bits of IOPL.
    pub const IOPL: Self = Self::IOPL0.union(Self::IOPL1);

    /// The I/O privilege level, 0..=3.
    #[must_use]
    pub const fn iopl(self) -> u8 {
        ((self.bits() >> 12) & 3) as u8
    }
}

impl Default for Rflags {
    fn default() -> Self {
        Self::ONE
    }
}
