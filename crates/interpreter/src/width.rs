//! Operand widths. Integer semantics are written once, generic over [`Width`].

use memory::Word;

/// An operand of 8, 16, 32 or 64 bits and how it lies in the register file.
pub(crate) trait Width:
    Word
    + Eq
    + Ord
    + std::ops::BitAnd<Output = Self>
    + std::ops::BitOr<Output = Self>
    + std::ops::BitXor<Output = Self>
    + std::ops::Not<Output = Self>
{
    const BITS: u32;
    const BYTES: u64;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
    fn sign_extended(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// This register's value after writing `self` to its low part (or, for bytes, at `shift`).
    fn merge(self, register: u64, shift: u8) -> u64;
    /// The operand out of a register.
    fn extract(register: u64, shift: u8) -> Self;
}

macro_rules! width {
    ($type:ident, $signed:ident, $merge:expr, $extract:expr) => {
        impl Width for $type {
            const BITS: u32 = $type::BITS;
            const BYTES: u64 = $type::BITS as u64 / 8;
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless, reason = "the same line serves u64")]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            #[allow(clippy::cast_lossless, reason = "the same line serves u64")]
            fn sign_extended(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn merge(self, register: u64, shift: u8) -> u64 {
                let merge: fn(u64, $type, u8) -> u64 = $merge;
                merge(register, self, shift)
            }
            #[inline(always)]
            fn extract(register: u64, shift: u8) -> Self {
                let extract: fn(u64, u8) -> $type = $extract;
                extract(register, shift)
            }
        }
    };
}

width!(
    u8,
    i8,
    |register, value, shift| register & !(0xff << shift) | u64::from(value) << shift,
    |register, shift| { (register >> shift) as u8 }
);
width!(u16, i16, |register, value, _| register & !0xffff | u64::from(value), |register, _| register as u16);
// Writing the low half of a register clears the high one (SDM 1 3.4.1.1).
width!(u32, i32, |_, value, _| u64::from(value), |register, _| register as u32);
width!(u64, i64, |_, value, _| value, |register, _| register);
