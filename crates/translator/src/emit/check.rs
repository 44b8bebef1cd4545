//! Translations that look at their own source.
//!
//! Where code is rewritten again and again, watching its page costs more than looking at it: such a block compares the guest's bytes
//! with those it was made from, each time it is entered, and leaves where they differ. Nothing tells it of writes, so it ends
//! after each instruction that writes memory: the next one might be what was written.
//!
//! Where nothing but immediate operands changes between two translations, the third reads those operands from the guest's code when it
//! executes them (*soft* instructions), and needs no fourth.
//!
//! Other vCPUs may write while a block runs. The opcode of a soft instruction and its immediate are read by one load, so both are from
//! before a write that changes them at once, or both from after it. An immediate of 64 bits is read by itself: no single store reaches
//! it and its opcode.

use super::{Emitter, Flow, host, number};
use crate::asm::*;
use crate::context::gpr;
use crate::stubs::ExitReason;
use iced_x86::{ConstantOffsets, Decoder, DecoderOptions, Instruction, Mnemonic, OpAccess, OpKind};

/// Where the guest code lies of a block that looks at it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Host address of its first byte.
    pub(crate) host: u64,
    /// Host address of the second page, for an instruction on two.
    pub(crate) second: Option<u64>,
    /// Offsets of the soft instructions.
    pub(crate) soft: &'a [u16],
}

/// A soft instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Soft {
    /// Offset in the block, and length.
    at: u16,
    len: u8,
    /// Offset of the immediate in the instruction, and its bytes.
    immediate: u8,
    bytes: u8,
}

/// One load takes in the whole of an instruction as long as this.
const WHOLE: u8 = 8;
/// Longer stretches are compared by a stub.
const LONG: usize = 48;

impl Soft {
    /// The instruction as a soft one. `None` where it can't be: it has no immediate, or one that isn't read into a register.
    fn of(instruction: &Instruction, offsets: ConstantOffsets, at: u16, rip: u64) -> Option<Self> {
        use Mnemonic::*;
        let operation =
            matches!(instruction.mnemonic(), Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Mov);
        let register = instruction.op_count() == 2
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_gpr()
            && matches!(instruction.op0_register().size(), 4 | 8)
            && host(number(instruction.op0_register())).is_some();
        let immediate = matches!(
            instruction.op1_kind(),
            OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32
                | OpKind::Immediate32to64
                | OpKind::Immediate64
        );
        if !operation || !register || !immediate || instruction.has_lock_prefix() {
            return None;
        }
        let len = instruction.len() as u8;
        let (immediate, bytes) = (offsets.immediate_offset() as u8, offsets.immediate_size() as u8);
        let last = !offsets.has_immediate2() && immediate + bytes == len;
        let reach = if len <= WHOLE { WHOLE } else { len };
        let inside = (rip & 0xfff) + u64::from(reach) <= 0x1000;
        let readable = matches!(bytes, 1 | 4) && len <= WHOLE && immediate <= 4 || bytes == 8;
        (last && inside && readable).then_some(Self { at, len, immediate, bytes })
    }

    /// The bytes that the block's start doesn't compare.
    fn own(&self) -> std::ops::Range<usize> {
        let (at, end) = (usize::from(self.at), usize::from(self.at) + usize::from(self.len));
        if self.len <= WHOLE { at..end } else { end - usize::from(self.bytes)..end }
    }
}

/// Offsets of the instructions that had better be soft after the code `before` became `now`. Where something else has changed too it
/// is other code, and none is.
pub(crate) fn soften(before: &[u8], now: &[u8], long: bool, rip: u64, soft: &[u16]) -> Vec<u16> {
    let mut found = Vec::new();
    let bitness = if long { 64 } else { 32 };
    let mut decoder =
        Decoder::with_ip(bitness, &now[..before.len().min(now.len())], rip, DecoderOptions::NONE);
    while decoder.can_decode() {
        let from = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let range = from..decoder.position();
        let made =
            Soft::of(&instruction, decoder.get_constant_offsets(&instruction), from as u16, instruction.ip());
        if before[range.clone()] == now[range.clone()] {
            if made.is_some() && soft.contains(&(from as u16)) {
                found.push(from as u16);
            }
            continue;
        }
        let Some(made) = made else { return Vec::new() };
        let head = range.start..range.start + usize::from(made.immediate);
        if before[head.clone()] != now[head] {
            return Vec::new();
        }
        found.push(from as u16);
    }
    found
}

impl Emitter<'_> {
    /// Whether the instruction, which has just been decoded, is to be soft.
    pub(super) fn note_soft(&mut self, decoder: &Decoder<'_>, instruction: &Instruction, at: usize) {
        if let Some(source) = self.request.source
            && source.second.is_none()
            && source.soft.contains(&(at as u16))
        {
            let offsets = decoder.get_constant_offsets(instruction);
            self.soft.extend(Soft::of(instruction, offsets, at as u16, instruction.ip()));
        }
    }

    /// Whether the instruction may write memory.
    pub(super) fn writes_memory(&mut self, instruction: &Instruction) -> bool {
        let mentions = (0..instruction.op_count()).any(|n| instruction.op_kind(n) >= OpKind::MemorySegSI);
        if !mentions && !instruction.is_stack_instruction() {
            return false;
        }
        let reads = |access| matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        self.desk.info.info(instruction).used_memory().iter().any(|memory| !reads(memory.access()))
    }

    /// ```text
    /// add rax,0x11223344                         soft
    ///   mov r11,7f0000001003h
    ///   mov r11,[r11]                            the whole instruction
    ///   mov ecx,0ffffh
    ///   pext rcx,r11,rcx                         is it still an addition to RAX?
    ///   lea ecx,[rcx-0548h]
    ///   jrcxz +0005
    ///   call interpret
    ///   rorx rcx,r11,10h
    ///   movsxd rcx,ecx
    ///   add rax,rcx
    /// ```
    ///
    /// Emits the running instruction as a soft one, if it is one.
    pub(super) fn soft(&mut self, instruction: &Instruction) -> Option<Flow> {
        let soft = *self.soft.iter().find(|soft| soft.at == self.guest)?;
        let source = self.request.source?;
        let own = host(number(instruction.op0_register()))?;
        let wide = instruction.op0_register().size() == 8;
        let at = usize::from(soft.at);
        let code = source.host + at as u64;
        if soft.len > WHOLE {
            self.window = None;
            self.asm.mov_immediate(R11, code + u64::from(soft.immediate));
            self.asm.load(Size::B8, own, Mem::near(R11, 0));
            return Some(Flow::Next);
        }
        self.window = None;
        self.asm.mov_immediate(R11, code);
        self.asm.load(Size::B8, R11, Mem::near(R11, 0));
        let opcode = &self.request.bytes[at..at + usize::from(soft.immediate)];
        let opcode = opcode.iter().rev().fold(0u32, |all, &byte| all << 8 | u32::from(byte));
        self.asm.mov_immediate(RCX, u64::from(u32::MAX >> (32 - 8 * soft.immediate)));
        self.asm.pext_register(RCX, R11, RCX);
        self.asm.lea32(RCX, Mem::near(RCX, opcode.wrapping_neg() as i32));
        let same = self.asm.jrcxz();
        self.asm.call(self.request.stubs.interpret);
        self.must_reach(same);
        self.asm.rorx(RCX, R11, 8 * soft.immediate);
        if soft.bytes == 1 {
            self.asm.sign_extend_byte(RCX, RCX);
        } else {
            self.asm.sign_extend(RCX, RCX);
        }
        let opcode = match instruction.mnemonic() {
            Mnemonic::Add => 0x01,
            Mnemonic::Or => 0x09,
            Mnemonic::Adc => 0x11,
            Mnemonic::Sbb => 0x19,
            Mnemonic::And => 0x21,
            Mnemonic::Sub => 0x29,
            Mnemonic::Xor => 0x31,
            Mnemonic::Cmp => 0x39,
            Mnemonic::Test => 0x85,
            _ => 0x89,
        };
        self.asm.register_operation(opcode, own, RCX, wide);
        Some(Flow::Next)
    }

    /// A jump to the comparison, which is written when it is known how long the block is.
    pub(super) fn begin_check(&mut self) -> usize {
        self.asm.jump(self.asm.here());
        self.asm.len()
    }

    /// ```text
    ///   mov r10,gs:[guest.r10]                   differs
    ///   mov qword ptr gs:[argument],7
    ///   mov qword ptr gs:[reason],0ah
    ///   jmp exit
    ///   mov gs:[guest.r10],r10                   from the block's start
    ///   mov r11,7f0000001000h                    the guest's code
    ///   mov rcx,[r11]
    ///   mov r10,0b7f8fffefdfcfbfah               less what it was
    ///   lea rcx,[rcx+r10]
    ///   jrcxz +0002
    ///   jmp (differs)
    ///   mov r10,gs:[guest.r10]
    ///   jmp (the block)
    /// ```
    ///
    /// Long stretches are compared with a copy at the end, by a stub.
    ///
    /// Writes the comparison of the block's `len` bytes; see [`Self::begin_check`].
    pub(super) fn finish_check(&mut self, back: usize, len: usize) {
        let Some(source) = self.request.source else { return };
        let differs = self.asm.len();
        self.asm.load_gs(R10, gpr(10));
        self.exit_block(ExitReason::Changed);
        self.asm.set_relative(back - 4, self.asm.len());
        self.asm.store_gs(gpr(10), R10);
        let left = (0x1000 - (self.request.rip & 0xfff)) as usize;
        let mut copies = Vec::new();
        for stretch in self.stretches(len, left) {
            let at = match source.second {
                Some(second) if stretch.start >= left => second + (stretch.start - left) as u64,
                _ => source.host + stretch.start as u64,
            };
            self.asm.mov_immediate(R11, at);
            self.compare(stretch, at, differs, &mut copies);
        }
        self.asm.load_gs(R10, gpr(10));
        self.asm.jump_back(back);
        for (hole, from, at) in copies {
            self.asm.set_word(hole, self.asm.here().wrapping_sub(at));
            self.asm.raw(&self.request.bytes[from]);
        }
    }

    /// Compares the bytes at R11, host address `at`, with those of the request.
    fn compare(
        &mut self,
        stretch: std::ops::Range<usize>,
        at: u64,
        differs: usize,
        copies: &mut Vec<(usize, std::ops::Range<usize>, u64)>,
    ) {
        let len = stretch.len();
        let mut done = 0;
        if len >= LONG {
            let words = len / 8;
            self.asm.mov_immediate(RCX, words as u64);
            // Where the copy will be is known later.
            self.asm.mov_immediate(R10, u64::MAX >> 1);
            copies.push((self.asm.len() - 8, stretch.start..stretch.start + 8 * words, at));
            self.asm.call(self.request.stubs.compare);
            self.unless_zero(differs);
            done = 8 * words;
            if done < len {
                // The stub has moved on.
                self.asm.lea(R11, Mem::near(R11, -(done as i32)));
            }
        }
        while done < len {
            let (size, bytes) = match len {
                8.. => (Size::B8, 8),
                4.. => (Size::B4, 4),
                2.. => (Size::B2, 2),
                _ => (Size::B1, 1),
            };
            // The last one may overlap the one before.
            let from = done.min(len - bytes);
            self.asm.load_zero_extended(size, RCX, Mem::near(R11, from as i32));
            let expected = self.request.bytes[stretch.start + from..][..bytes].iter().rev();
            let less = expected.fold(0u64, |all, &byte| all << 8 | u64::from(byte)).wrapping_neg();
            if size == Size::B8 {
                self.asm.mov_immediate(R10, less);
                self.asm.lea(RCX, Mem::sum(RCX, R10));
            } else {
                self.asm.lea32(RCX, Mem::near(RCX, less as i32));
            }
            self.unless_zero(differs);
            done = from + bytes;
        }
    }

    /// Goes to `offset` unless RCX is zero.
    fn unless_zero(&mut self, offset: usize) {
        let zero = self.asm.jrcxz();
        self.asm.jump_back(offset);
        self.must_reach(zero);
    }

    /// What of the block's bytes its start compares, none beyond the end of its page and further.
    fn stretches(&self, len: usize, left: usize) -> Vec<std::ops::Range<usize>> {
        let mut stretches = Vec::new();
        let mut from = 0;
        let cuts = self.soft.iter().map(Soft::own).chain(std::iter::once(len..len));
        for cut in cuts {
            let to = cut.start.min(len);
            stretches
                .extend([from..to.min(left), from.max(left)..to].into_iter().filter(|part| !part.is_empty()));
            from = cut.end;
        }
        stretches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_in_which_only_immediates_change_is_softened() {
        // add rax, 1; mov ecx, 2; rol rax, 1; ret
        let before = [0x48, 0x05, 1, 0, 0, 0, 0xb8, 2, 0, 0, 0, 0x48, 0xd1, 0xc0, 0xc3];
        let mut now = before;
        now[2] = 7;
        assert_eq!(soften(&before, &now, true, 0x1000, &[]), [0]);
        now[8] = 1;
        assert_eq!(soften(&before, &now, true, 0x1000, &[]), [0, 6]);
        // What was soft stays so.
        now[2] = 1;
        assert_eq!(soften(&before, &now, true, 0x1000, &[0]), [0, 6]);
        // sub instead of add: other code.
        now[1] = 0x2d;
        assert!(soften(&before, &now, true, 0x1000, &[0]).is_empty());
        // The page ends too near for a load of eight bytes.
        now = before;
        now[2] = 7;
        assert!(soften(&before, &now, true, 0x1ff9, &[]).is_empty());
        // A shift's count is no operand that could be in a register.
        let (before, now) = ([0x48, 0xc1, 0xc0, 3], [0x48, 0xc1, 0xc0, 4]);
        assert!(soften(&before, &now, true, 0x1000, &[]).is_empty());
    }
}
