//! Arithmetic flags, kept as what they are computed from.
//!
//! Most flags are overwritten before anything looks at them. So an operation only leaves its result and its carries, and the
//! six flags are worked out when one is wanted. Two words serve every operation and width:
//!
//! - `result`: the result, sign-extended to 64 bits. ZF, SF and PF come from it.
//! - `carries`: bit 63 the carry out of the result's top bit (CF), bit 62 the carry into it (OF = bit 63 xor bit 62), bit 3
//!   the carry out of bit 3 (AF). Bits 8..=15 are xored into the byte that PF looks at and bit 16 into SF, so that any
//!   combination of flags, as POPF can load, has a representation.

use crate::width::Width;
use x86::Rflags;

/// The six arithmetic flags of RFLAGS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    result: u64,
    carries: u64,
}

const CARRY_OUT: u64 = 1 << 63;
const CARRY_IN: u64 = 1 << 62;
const HALF_CARRY: u64 = 1 << 3;
const SIGN_DELTA: u64 = 1 << 16;
const PARITY_DELTA: u64 = 1 << 8;

impl Flags {
    /// After an addition or subtraction of width `W`: `carries` has bit i set where bit i carried (borrowed) out.
    #[inline(always)]
    pub(crate) fn arithmetic<W: Width>(result: W, carries: W) -> Self {
        let c = carries.to_u64();
        let top = c << (64 - W::BITS);
        Self { result: result.sign_extended(), carries: (top & (CARRY_OUT | CARRY_IN)) | (c & HALF_CARRY) }
    }

    /// After a logical operation: CF, OF and AF are clear.
    #[inline(always)]
    pub(crate) fn logic<W: Width>(result: W) -> Self {
        Self { result: result.sign_extended(), carries: 0 }
    }

    /// ZF, SF and PF of `result`, with the other three given.
    #[inline(always)]
    pub(crate) fn with<W: Width>(result: W, cf: bool, of: bool, af: bool) -> Self {
        let carries = (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62) | (u64::from(af) << 3);
        Self { result: result.sign_extended(), carries }
    }

    /// Takes the six flags from RFLAGS.
    pub(crate) fn from_rflags(flags: Rflags) -> Self {
        let has = |flag| u64::from(flags.contains(flag));
        let result = has(Rflags::ZF) ^ 1;
        // The parity of 0 is even, of 1 odd.
        let even = u64::from(result == 0);
        let carries = (has(Rflags::CF) << 63)
            | ((has(Rflags::CF) ^ has(Rflags::OF)) << 62)
            | (has(Rflags::AF) * HALF_CARRY)
            | (has(Rflags::SF) * SIGN_DELTA)
            | ((has(Rflags::PF) ^ even) * PARITY_DELTA);
        Self { result, carries }
    }

    /// The six flags as bits of RFLAGS.
    pub(crate) fn to_rflags(self) -> Rflags {
        let mut flags = Rflags::empty();
        flags.set(Rflags::CF, self.cf());
        flags.set(Rflags::PF, self.pf());
        flags.set(Rflags::AF, self.af());
        flags.set(Rflags::ZF, self.zf());
        flags.set(Rflags::SF, self.sf());
        flags.set(Rflags::OF, self.of());
        flags
    }

    #[inline(always)]
    pub(crate) fn cf(self) -> bool {
        self.carries & CARRY_OUT != 0
    }
    #[inline(always)]
    pub(crate) fn zf(self) -> bool {
        self.result == 0
    }
    #[inline(always)]
    pub(crate) fn sf(self) -> bool {
        ((self.result >> 63) ^ (self.carries >> 16)) & 1 != 0
    }
    #[inline(always)]
    pub(crate) fn of(self) -> bool {
        (self.carries ^ (self.carries << 1)) & CARRY_OUT != 0
    }
    #[inline(always)]
    pub(crate) fn af(self) -> bool {
        self.carries & HALF_CARRY != 0
    }
    #[inline(always)]
    pub(crate) fn pf(self) -> bool {
        ((self.result ^ (self.carries >> 8)) as u8).count_ones().is_multiple_of(2)
    }

    /// The same with another CF.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        // OF is the xor of the top two bits: flip both or none.
        if self.cf() != cf {
            self.carries ^= CARRY_OUT | CARRY_IN;
        }
    }

    /// The same with another CF and OF, as rotates leave them.
    #[inline(always)]
    pub(crate) fn with_cf_of(self, cf: bool, of: bool) -> Self {
        let top = (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62);
        Self { carries: self.carries & !(CARRY_OUT | CARRY_IN) | top, ..self }
    }

    /// Evaluates condition `code` (0..=15) as Jcc, SETcc and CMOVcc encode it.
    #[inline(always)]
    pub(crate) fn condition(self, code: u8) -> bool {
        let value = match code >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        value ^ (code & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives_the_way_through_the_lazy_form() {
        let bits: Vec<Rflags> = Rflags::ARITHMETIC.iter().collect();
        for mask in 0..1 << bits.len() {
            let flags: Rflags = bits
                .iter()
                .enumerate()
                .filter(|(i, _)| mask & (1 << i) != 0)
                .map(|(_, flag)| *flag)
                .collect();
            let mut lazy = Flags::from_rflags(flags);
            assert_eq!(lazy.to_rflags(), flags);
            lazy.set_cf(true);
            assert_eq!(lazy.to_rflags(), flags | Rflags::CF);
            lazy.set_cf(false);
            assert_eq!(lazy.to_rflags(), flags - Rflags::CF);
        }
    }
}
