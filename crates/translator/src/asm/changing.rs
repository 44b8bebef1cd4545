//! Instructions that change the flags: for stubs that have put the guest's away, or are about to load new ones.

use super::{Asm, Mem, Reg, Size};

/// Conditions as Jcc encodes them.
pub(crate) mod condition {
    pub(crate) const EQUAL: u8 = 4;
    pub(crate) const NOT_EQUAL: u8 = 5;
    pub(crate) const ABOVE: u8 = 7;
}

impl Asm {
    /// A 32-bit conditional jump whose displacement is at the place that this gives: see [`Asm::set_relative`].
    pub(crate) fn jump_if_far(&mut self, condition: u8) -> usize {
        self.jump_if(condition, self.here());
        self.len() - 4
    }

    /// CMP of 64 bits with memory.
    pub(crate) fn compare(&mut self, reg: Reg, mem: Mem) {
        self.op(Size::B8, &[0x3b], reg.0, mem, false);
    }

    /// CMP of memory with a small number.
    pub(crate) fn compare_immediate(&mut self, size: Size, mem: Mem, value: i8) {
        self.op(size, &[0x83], 7, mem, false);
        self.raw(&[value as u8]);
    }

    /// AND of 64 bits with memory.
    pub(crate) fn and(&mut self, reg: Reg, mem: Mem) {
        self.op(Size::B8, &[0x23], reg.0, mem, false);
    }

    /// TEST of 64 bits with memory.
    pub(crate) fn test(&mut self, reg: Reg, mem: Mem) {
        self.op(Size::B8, &[0x85], reg.0, mem, false);
    }

    /// AND of the low 32 bits; the others become zero.
    pub(crate) fn and_immediate(&mut self, reg: Reg, value: u32) {
        if reg.high() != 0 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x81, 0xe0 | reg.low()]);
        self.raw(&value.to_le_bytes());
    }

    /// CMP of the low 32 bits.
    pub(crate) fn compare_low(&mut self, reg: Reg, value: u32) {
        if reg.high() != 0 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x81, 0xf8 | reg.low()]);
        self.raw(&value.to_le_bytes());
    }

    /// CMP of two registers.
    pub(crate) fn compare_registers(&mut self, a: Reg, b: Reg) {
        self.raw(&[0x48 | b.high() << 2 | a.high(), 0x39, 0xc0 | b.low() << 3 | a.low()]);
    }

    /// TEST of a register with itself.
    pub(crate) fn test_zero(&mut self, reg: Reg) {
        self.raw(&[0x48 | reg.high() << 2 | reg.high(), 0x85, 0xc0 | reg.low() << 3 | reg.low()]);
    }

    /// ADD of two registers.
    pub(crate) fn add(&mut self, to: Reg, from: Reg) {
        self.raw(&[0x48 | from.high() << 2 | to.high(), 0x01, 0xc0 | from.low() << 3 | to.low()]);
    }

    /// SHL of 64 bits.
    pub(crate) fn shift_left(&mut self, reg: Reg, by: u8) {
        self.raw(&[0x48 | reg.high(), 0xc1, 0xe0 | reg.low(), by]);
    }

    /// SAR of 64 bits.
    pub(crate) fn shift_right_signed(&mut self, reg: Reg, by: u8) {
        self.raw(&[0x48 | reg.high(), 0xc1, 0xf8 | reg.low(), by]);
    }
}
