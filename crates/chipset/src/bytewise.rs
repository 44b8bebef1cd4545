//! Byte-wide chips behind wider accesses: the ISA bus splits them, lowest address first.

use crate::bus::At;

/// Reads byte by byte.
pub(crate) fn read(at: At, data: &mut [u8], mut byte: impl FnMut(u64) -> u8) {
    for (value, offset) in data.iter_mut().zip(at.offset..) {
        *value = byte(offset);
    }
}

/// Writes byte by byte.
pub(crate) fn write(at: At, data: &[u8], mut byte: impl FnMut(u64, u8)) {
    for (value, offset) in data.iter().zip(at.offset..) {
        byte(offset, *value);
    }
}

/// A little-endian value of up to eight bytes.
pub(crate) fn value(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Fills `data` from `value`, little-endian; beyond eight bytes it is zero.
pub(crate) fn fill(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (place, byte) in data.iter_mut().zip(bytes.into_iter().chain(std::iter::repeat(0))) {
        *place = byte;
    }
}
