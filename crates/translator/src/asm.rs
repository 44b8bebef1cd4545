//! A small assembler for the host instructions that the translator itself needs. Guest instructions that are re-emitted go
//! through iced's encoder (`emit`).
//!
//! Nearly all forms leave the flags alone: they are the guest's. Encodings: SDM 2A 2.1, 2.2.1; 2.3 (VEX).

mod changing;
mod moving;

pub(crate) use changing::condition;
pub(crate) use moving::{Depends, Moved, PAGE_NUMBERS, Relocation, relocate};

/// A host general register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct Reg(pub(crate) u8);

pub(crate) const RAX: Reg = Reg(0);
pub(crate) const RCX: Reg = Reg(1);
pub(crate) const RDX: Reg = Reg(2);
pub(crate) const RBX: Reg = Reg(3);
pub(crate) const RSP: Reg = Reg(4);
pub(crate) const RBP: Reg = Reg(5);
pub(crate) const RSI: Reg = Reg(6);
pub(crate) const RDI: Reg = Reg(7);
pub(crate) const R9: Reg = Reg(9);
pub(crate) const R10: Reg = Reg(10);
pub(crate) const R11: Reg = Reg(11);
pub(crate) const R12: Reg = Reg(12);
pub(crate) const R13: Reg = Reg(13);
pub(crate) const R14: Reg = Reg(14);
pub(crate) const R15: Reg = Reg(15);

impl Reg {
    fn low(self) -> u8 {
        self.0 & 7
    }
    fn high(self) -> u8 {
        self.0 >> 3
    }
}

/// A memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mem {
    /// `gs:[displacement]`.
    Gs(i32),
    /// `gs:[index * 8 + displacement]`.
    GsTable(Reg, i32),
    /// `[base + index * scale + displacement]`.
    At { base: Option<Reg>, index: Option<(Reg, u8)>, disp: i32 },
}

impl Mem {
    /// `[base + index]`.
    pub(crate) const fn sum(base: Reg, index: Reg) -> Self {
        Self::At { base: Some(base), index: Some((index, 1)), disp: 0 }
    }
    /// `[base + displacement]`.
    pub(crate) const fn near(base: Reg, disp: i32) -> Self {
        Self::At { base: Some(base), index: None, disp }
    }

    /// Whether `reg` is part of it.
    pub(crate) fn uses(&self, reg: Reg) -> bool {
        match *self {
            Self::Gs(_) => false,
            Self::GsTable(index, _) => index == reg,
            Self::At { base, index, .. } => base == Some(reg) || index.is_some_and(|(index, _)| index == reg),
        }
    }

    fn gs(&self) -> bool {
        !matches!(self, Self::At { .. })
    }
    fn index_high(&self) -> u8 {
        match self {
            Self::Gs(_) | Self::At { index: None, .. } => 0,
            Self::GsTable(index, _) | Self::At { index: Some((index, _)), .. } => index.high(),
        }
    }
    fn base_high(&self) -> u8 {
        match self {
            Self::At { base: Some(base), .. } => base.high(),
            _ => 0,
        }
    }
}

/// Width of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    B1,
    B2,
    B4,
    B8,
}

/// A place in the code whose 8- or 32-bit displacement is still to be filled in.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Hole8(usize);

/// Code being written that will run at a known address.
pub(crate) struct Asm {
    base: u64,
    bytes: Vec<u8>,
    relocations: Vec<Relocation>,
    /// It can't be moved: see [`Asm::pin`].
    pinned: bool,
}

impl Asm {
    /// Code that will run at `base`.
    pub(crate) fn new(base: u64) -> Self {
        Self::with(base, Vec::new())
    }

    /// The same in memory that is there.
    pub(crate) fn with(base: u64, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.reserve(1024);
        Self { base, bytes, relocations: Vec::with_capacity(32), pinned: false }
    }

    /// The code.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Offset of the next byte.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Address of the next byte.
    pub(crate) fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn modrm(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::Gs(disp) => {
                self.raw(&[reg | 4, 0x25]);
                self.raw(&disp.to_le_bytes());
            }
            Mem::GsTable(index, disp) => {
                self.raw(&[reg | 4, 0xc5 | index.low() << 3]);
                self.raw(&disp.to_le_bytes());
            }
            Mem::At { base: None, index, disp } => {
                let sib = match index {
                    None => 0x25,
                    Some((index, scale)) => (scale.trailing_zeros() as u8) << 6 | index.low() << 3 | 5,
                };
                self.raw(&[reg | 4, sib]);
                self.raw(&disp.to_le_bytes());
            }
            Mem::At { base: Some(base), index, disp } => {
                let (mode, short) = match disp {
                    0 if base.low() != 5 => (0, true),
                    -128..=127 => (0x40, true),
                    _ => (0x80, false),
                };
                match index {
                    None if base.low() != 4 => self.raw(&[mode | reg | base.low()]),
                    _ => {
                        let (index, scale) = index.map_or((4, 1), |(index, scale)| (index.low(), scale));
                        self.raw(&[
                            mode | reg | 4,
                            (scale.trailing_zeros() as u8) << 6 | index << 3 | base.low(),
                        ]);
                    }
                }
                match mode {
                    0 => {}
                    _ if short => self.raw(&[disp as u8]),
                    _ => self.raw(&disp.to_le_bytes()),
                }
            }
        }
    }

    /// An instruction with a register and a memory operand. `byte_reg`: the register is a byte register.
    fn op(&mut self, size: Size, opcode: &[u8], reg: u8, mem: Mem, byte_reg: bool) {
        if mem.gs() {
            self.raw(&[0x65]);
        }
        if size == Size::B2 {
            self.raw(&[0x66]);
        }
        let rex = u8::from(size == Size::B8) << 3 | (reg >> 3) << 2 | mem.index_high() << 1 | mem.base_high();
        if rex != 0 || byte_reg && reg >= 4 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(opcode);
        self.modrm(reg, mem);
    }

    /// Loads; 4 bytes are zero-extended, 1 and 2 only replace the low part.
    pub(crate) fn load(&mut self, size: Size, reg: Reg, mem: Mem) {
        let opcode: &[u8] = if size == Size::B1 { &[0x8a] } else { &[0x8b] };
        self.op(size, opcode, reg.0, mem, size == Size::B1);
    }

    pub(crate) fn store(&mut self, size: Size, mem: Mem, reg: Reg) {
        let opcode: &[u8] = if size == Size::B1 { &[0x88] } else { &[0x89] };
        self.op(size, opcode, reg.0, mem, size == Size::B1);
    }

    /// Loads one or two bytes, zero-extended.
    pub(crate) fn load_zero_extended(&mut self, size: Size, reg: Reg, mem: Mem) {
        let opcode: &[u8] = match size {
            Size::B1 => &[0x0f, 0xb6],
            Size::B2 => &[0x0f, 0xb7],
            _ => return self.load(size, reg, mem),
        };
        self.op(Size::B4, opcode, reg.0, mem, false);
    }

    /// Stores an immediate; 8 bytes are sign-extended from 4.
    pub(crate) fn store_immediate(&mut self, size: Size, mem: Mem, value: i32) {
        match size {
            Size::B1 => {
                self.op(size, &[0xc6], 0, mem, false);
                self.raw(&[value as u8]);
            }
            Size::B2 => {
                self.op(size, &[0xc7], 0, mem, false);
                self.raw(&(value as u16).to_le_bytes());
            }
            Size::B4 | Size::B8 => {
                self.op(size, &[0xc7], 0, mem, false);
                self.raw(&value.to_le_bytes());
            }
        }
    }

    pub(crate) fn load_gs(&mut self, reg: Reg, disp: i32) {
        self.load(Size::B8, reg, Mem::Gs(disp));
    }

    pub(crate) fn load_gs32(&mut self, reg: Reg, disp: i32) {
        self.load(Size::B4, reg, Mem::Gs(disp));
    }

    pub(crate) fn store_gs(&mut self, disp: i32, reg: Reg) {
        self.store(Size::B8, Mem::Gs(disp), reg);
    }

    pub(crate) fn lea(&mut self, reg: Reg, mem: Mem) {
        self.op(Size::B8, &[0x8d], reg.0, mem, false);
    }

    /// The same cut to 32 bits.
    pub(crate) fn lea32(&mut self, reg: Reg, mem: Mem) {
        self.op(Size::B4, &[0x8d], reg.0, mem, false);
    }

    pub(crate) fn mov(&mut self, to: Reg, from: Reg) {
        self.raw(&[0x48 | from.high() << 2 | to.high(), 0x89, 0xc0 | from.low() << 3 | to.low()]);
    }

    /// The same cut to 32 bits.
    pub(crate) fn mov32(&mut self, to: Reg, from: Reg) {
        let rex = from.high() << 2 | to.high();
        if rex != 0 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(&[0x89, 0xc0 | from.low() << 3 | to.low()]);
    }

    /// The low 16 bits alone.
    pub(crate) fn mov16(&mut self, to: Reg, from: Reg) {
        self.raw(&[0x66]);
        let rex = from.high() << 2 | to.high();
        if rex != 0 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(&[0x89, 0xc0 | from.low() << 3 | to.low()]);
    }

    pub(crate) fn mov_immediate(&mut self, reg: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if reg.high() != 0 {
                self.raw(&[0x41]);
            }
            self.raw(&[0xb8 | reg.low()]);
            self.raw(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.raw(&[0x48 | reg.high(), 0xc7, 0xc0 | reg.low()]);
            self.raw(&value.to_le_bytes());
        } else {
            self.raw(&[0x48 | reg.high(), 0xb8 | reg.low()]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// NOT of 64 bits; leaves the flags alone, unlike NEG.
    pub(crate) fn not(&mut self, reg: Reg) {
        self.raw(&[0x48 | reg.high(), 0xf7, 0xd0 | reg.low()]);
    }

    /// PEXT of 64 bits with the mask in memory.
    pub(crate) fn pext(&mut self, to: Reg, from: Reg, mask: i32) {
        // VEX.LZ.F3.0F38.W1 F5 /r
        self.raw(&[0x65, 0xc4, (1 - to.high()) << 7 | 0x60 | 2, 0x80 | (!from.0 & 15) << 3 | 2, 0xf5]);
        self.modrm(to.0, Mem::Gs(mask));
    }

    /// PEXT of 64 bits with the mask in a register.
    pub(crate) fn pext_register(&mut self, to: Reg, from: Reg, mask: Reg) {
        let first = (1 - to.high()) << 7 | 0x40 | (1 - mask.high()) << 5 | 2;
        self.raw(&[0xc4, first, 0x80 | (!from.0 & 15) << 3 | 2, 0xf5, 0xc0 | to.low() << 3 | mask.low()]);
    }

    /// An integer instruction with the one-byte opcode of its form "r/m, r" and two registers, of 64 bits (`wide`) or 32.
    pub(crate) fn register_operation(&mut self, opcode: u8, to: Reg, from: Reg, wide: bool) {
        let rex = u8::from(wide) << 3 | from.high() << 2 | to.high();
        if rex != 0 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(&[opcode, 0xc0 | from.low() << 3 | to.low()]);
    }

    /// MOVSX: 8 bits sign-extended to 64.
    pub(crate) fn sign_extend_byte(&mut self, to: Reg, from: Reg) {
        self.raw(&[0x48 | to.high() << 2 | from.high(), 0x0f, 0xbe, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// SHLX of 64 bits.
    pub(crate) fn shlx(&mut self, to: Reg, from: Reg, by: Reg) {
        // VEX.LZ.66.0F38.W1 F7 /r
        let first = (1 - to.high()) << 7 | 0x40 | (1 - from.high()) << 5 | 2;
        self.raw(&[0xc4, first, 0x80 | (!by.0 & 15) << 3 | 1, 0xf7, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// SARX of 64 bits.
    pub(crate) fn sarx(&mut self, to: Reg, from: Reg, by: Reg) {
        // VEX.LZ.F3.0F38.W1 F7 /r
        let first = (1 - to.high()) << 7 | 0x40 | (1 - from.high()) << 5 | 2;
        self.raw(&[0xc4, first, 0x80 | (!by.0 & 15) << 3 | 2, 0xf7, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// MOVSXD: 32 bits sign-extended to 64.
    pub(crate) fn sign_extend(&mut self, to: Reg, from: Reg) {
        self.raw(&[0x48 | to.high() << 2 | from.high(), 0x63, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// `wrgsbase`.
    pub(crate) fn wrgsbase(&mut self, reg: Reg) {
        self.raw(&[0xf3, 0x48 | reg.high(), 0x0f, 0xae, 0xd8 | reg.low()]);
    }

    /// SHRX of 64 bits.
    pub(crate) fn shrx(&mut self, to: Reg, from: Reg, by: Reg) {
        // VEX.LZ.F2.0F38.W1 F7 /r
        let first = (1 - to.high()) << 7 | 0x40 | (1 - from.high()) << 5 | 2;
        self.raw(&[0xc4, first, 0x80 | (!by.0 & 15) << 3 | 3, 0xf7, 0xc0 | to.low() << 3 | from.low()]);
    }

    /// RORX of 64 bits.
    pub(crate) fn rorx(&mut self, to: Reg, from: Reg, by: u8) {
        let first = (1 - to.high()) << 7 | 0x40 | (1 - from.high()) << 5 | 3;
        self.raw(&[0xc4, first, 0xfb, 0xf0, 0xc0 | to.low() << 3 | from.low(), by]);
    }

    /// `lea` of the next instruction's address.
    pub(crate) fn lea_here(&mut self, reg: Reg) {
        self.raw(&[0x48 | reg.high() << 2, 0x8d, 0x05 | reg.low() << 3, 0, 0, 0, 0]);
    }

    /// `jrcxz` to a place that [`Asm::fill`] names later.
    pub(crate) fn jrcxz(&mut self) -> Hole8 {
        self.raw(&[0xe3, 0]);
        Hole8(self.bytes.len() - 1)
    }

    /// A short jump to a place that [`Asm::fill`] names later.
    pub(crate) fn jump_short(&mut self) -> Hole8 {
        self.raw(&[0xeb, 0]);
        Hole8(self.bytes.len() - 1)
    }

    /// A jump; gives the offset of its 32-bit displacement.
    pub(crate) fn jump_near(&mut self) -> usize {
        self.jump(self.here());
        self.len() - 4
    }

    /// A short conditional jump to a place that [`Asm::fill`] names later. `condition`: as Jcc encodes it.
    pub(crate) fn jump_if_short(&mut self, condition: u8) -> Hole8 {
        self.raw(&[0x70 | condition, 0]);
        Hole8(self.bytes.len() - 1)
    }

    /// JRCXZ to an earlier offset. False: that is too far.
    #[must_use]
    pub(crate) fn jrcxz_back(&mut self, to: usize) -> bool {
        let distance = self.bytes.len() + 2 - to;
        self.raw(&[0xe3, (distance as u8).wrapping_neg()]);
        distance <= 128
    }

    /// Makes the jump at `hole` go to here. False: that is too far.
    #[must_use]
    pub(crate) fn fill(&mut self, hole: Hole8) -> bool {
        let distance = self.bytes.len() - hole.0 - 1;
        self.bytes[hole.0] = distance as u8;
        distance <= 127
    }

    /// How far `hole` is behind.
    pub(crate) fn distance(&self, hole: Hole8) -> usize {
        self.bytes.len() - hole.0 - 1
    }

    fn relative(&mut self, target: u64) {
        let from = self.here() + 4;
        let distance = target.wrapping_sub(from) as i64 as i32;
        debug_assert_eq!(
            from.wrapping_add(i64::from(distance) as u64),
            target,
            "code memory is smaller than 2 GiB"
        );
        // What lies ahead in this code has no address yet.
        if target < self.base || target > from {
            self.depends(Depends::Host);
        }
        self.raw(&distance.to_le_bytes());
    }

    pub(crate) fn jump(&mut self, target: u64) {
        self.raw(&[0xe9]);
        self.relative(target);
    }

    pub(crate) fn jump_if(&mut self, condition: u8, target: u64) {
        self.raw(&[0x0f, 0x80 | condition]);
        self.relative(target);
    }

    /// Replaces the 32-bit displacement of the LEA that starts at `at` (REX, opcode, ModRM, displacement).
    pub(crate) fn set_displacement(&mut self, at: usize, value: i32) {
        debug_assert_eq!(self.bytes[at + 1], 0x8d);
        self.bytes[at + 3..at + 7].copy_from_slice(&value.to_le_bytes());
    }

    /// Makes the 32-bit displacement at `place` lead to the offset `to`.
    pub(crate) fn set_relative(&mut self, place: usize, to: usize) {
        let distance = (to as i64 - (place as i64 + 4)) as i32;
        self.bytes[place..place + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// Replaces the eight bytes at an offset.
    pub(crate) fn set_word(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// A backward jump to an offset in this code.
    pub(crate) fn jump_back(&mut self, to: usize) {
        let target = self.base + to as u64;
        let short = to as i64 - (self.bytes.len() as i64 + 2);
        if short >= -128 {
            self.raw(&[0xeb, short as u8]);
        } else {
            self.jump(target);
        }
    }

    pub(crate) fn call(&mut self, target: u64) {
        self.raw(&[0xe8]);
        self.relative(target);
    }

    pub(crate) fn call_gs(&mut self, disp: i32) {
        self.op(Size::B4, &[0xff], 2, Mem::Gs(disp), false);
    }

    pub(crate) fn jump_mem(&mut self, mem: Mem) {
        self.op(Size::B4, &[0xff], 4, mem, false);
    }

    pub(crate) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }

    pub(crate) fn push(&mut self, reg: Reg) {
        if reg.high() != 0 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x50 | reg.low()]);
    }

    pub(crate) fn pop(&mut self, reg: Reg) {
        if reg.high() != 0 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x58 | reg.low()]);
    }

    pub(crate) fn push_mem(&mut self, mem: Mem) {
        self.op(Size::B4, &[0xff], 6, mem, false);
    }

    pub(crate) fn pop_mem(&mut self, mem: Mem) {
        self.op(Size::B4, &[0x8f], 0, mem, false);
    }

    /// `xsaveopt64 gs:[...]` of EDX:EAX.
    pub(crate) fn xsaveopt(&mut self, disp: i32) {
        self.op(Size::B8, &[0x0f, 0xae], 6, Mem::Gs(disp), false);
    }

    /// `xsave64 gs:[...]` of EDX:EAX.
    pub(crate) fn xsave(&mut self, disp: i32) {
        self.op(Size::B8, &[0x0f, 0xae], 4, Mem::Gs(disp), false);
    }

    /// `xrstor64 gs:[...]` of EDX:EAX.
    pub(crate) fn xrstor(&mut self, disp: i32) {
        self.op(Size::B8, &[0x0f, 0xae], 5, Mem::Gs(disp), false);
    }

    pub(crate) fn ldmxcsr(&mut self, disp: i32) {
        self.op(Size::B4, &[0x0f, 0xae], 2, Mem::Gs(disp), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Instruction};

    fn decoded(write: impl FnOnce(&mut Asm)) -> Vec<Instruction> {
        let mut asm = Asm::new(0x1000);
        write(&mut asm);
        Decoder::with_ip(64, asm.bytes(), 0x1000, DecoderOptions::NONE).into_iter().collect()
    }

    /// Every form with every register decodes to what was asked for.
    #[test]
    fn what_is_written_is_what_was_meant() {
        use iced_x86::{Mnemonic, Register};
        let names: Vec<Register> = (0..16).map(|n| Register::RAX + n).collect();
        for a in 0..16u8 {
            for b in 0..16u8 {
                let (ra, rb) = (Reg(a), Reg(b));
                for disp in [0, 8, -8, 0x1000, -0x1000] {
                    let code = decoded(|asm| {
                        asm.lea(ra, Mem::near(rb, disp));
                        if b != 4 {
                            asm.lea(ra, Mem::At { base: Some(ra), index: Some((rb, 4)), disp });
                            asm.load(Size::B8, ra, Mem::GsTable(rb, disp));
                        }
                        asm.mov(ra, rb);
                        asm.pext(ra, rb, disp);
                        asm.shrx(ra, rb, ra);
                        asm.rorx(ra, rb, 32);
                        asm.sarx(ra, rb, ra);
                        asm.sign_extend(ra, rb);
                        asm.sign_extend_byte(ra, rb);
                        asm.pext_register(ra, rb, ra);
                        asm.register_operation(0x29, ra, rb, true);
                        asm.register_operation(0x85, ra, rb, false);
                        asm.wrgsbase(ra);
                        asm.store(Size::B1, Mem::near(rb, disp), ra);
                    });
                    let (wa, wb) = (names[usize::from(a)], names[usize::from(b)]);
                    let mut code = code.into_iter();
                    let lea = code.next().expect("lea");
                    assert_eq!(
                        (lea.mnemonic(), lea.op0_register(), lea.memory_base()),
                        (Mnemonic::Lea, wa, wb)
                    );
                    assert_eq!(lea.memory_displacement64() as i64, i64::from(disp));
                    if b != 4 {
                        let lea = code.next().expect("lea");
                        assert_eq!(
                            (lea.memory_base(), lea.memory_index(), lea.memory_index_scale()),
                            (wa, wb, 4)
                        );
                        let load = code.next().expect("load");
                        assert_eq!(
                            (load.op0_register(), load.memory_index(), load.memory_index_scale()),
                            (wa, wb, 8)
                        );
                        assert_eq!(
                            (load.memory_base(), load.memory_segment()),
                            (Register::None, Register::GS)
                        );
                    }
                    let mov = code.next().expect("mov");
                    assert_eq!((mov.op0_register(), mov.op1_register()), (wa, wb));
                    let pext = code.next().expect("pext");
                    assert_eq!(pext.mnemonic(), Mnemonic::Pext);
                    assert_eq!((pext.op0_register(), pext.op1_register()), (wa, wb));
                    assert_eq!(
                        (pext.memory_segment(), pext.memory_displacement64() as i64),
                        (Register::GS, i64::from(disp))
                    );
                    let shrx = code.next().expect("shrx");
                    assert_eq!(
                        (shrx.mnemonic(), shrx.op0_register(), shrx.op1_register(), shrx.op2_register()),
                        (Mnemonic::Shrx, wa, wb, wa)
                    );
                    let rorx = code.next().expect("rorx");
                    assert_eq!(
                        (rorx.mnemonic(), rorx.op0_register(), rorx.op1_register()),
                        (Mnemonic::Rorx, wa, wb)
                    );
                    let sarx = code.next().expect("sarx");
                    assert_eq!(
                        (sarx.mnemonic(), sarx.op0_register(), sarx.op1_register()),
                        (Mnemonic::Sarx, wa, wb)
                    );
                    assert_eq!(sarx.op2_register(), wa);
                    let extend = code.next().expect("movsxd");
                    assert_eq!((extend.mnemonic(), extend.op0_register()), (Mnemonic::Movsxd, wa));
                    assert_eq!(extend.op1_register().full_register(), wb);
                    let extend = code.next().expect("movsx");
                    assert_eq!((extend.mnemonic(), extend.op0_register()), (Mnemonic::Movsx, wa));
                    assert_eq!(extend.op1_register().full_register(), wb);
                    let pext = code.next().expect("pext");
                    assert_eq!(
                        (pext.mnemonic(), pext.op0_register(), pext.op1_register(), pext.op2_register()),
                        (Mnemonic::Pext, wa, wb, wa)
                    );
                    let sub = code.next().expect("sub");
                    assert_eq!(
                        (sub.mnemonic(), sub.op0_register(), sub.op1_register()),
                        (Mnemonic::Sub, wa, wb)
                    );
                    let test = code.next().expect("test");
                    assert_eq!((test.mnemonic(), test.op0_register().size()), (Mnemonic::Test, 4));
                    assert_eq!(test.op0_register().full_register(), wa);
                    assert_eq!(test.op1_register().full_register(), wb);
                    let base = code.next().expect("wrgsbase");
                    assert_eq!((base.mnemonic(), base.op0_register()), (Mnemonic::Wrgsbase, wa));
                    let store = code.next().expect("store");
                    assert_eq!(store.op1_register().full_register(), wa);
                    assert_eq!(store.op1_register().size(), 1);
                    assert!(code.next().is_none());
                }
            }
        }
    }
}
