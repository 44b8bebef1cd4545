//! A program being written: bytes, labels, and which flags are undefined in front of each instruction.
//!
//! The generator appends; [`Assembler::finish`] gives the [`Program`]. Undefined flags are followed as if each instruction
//! that can fault might have been skipped, so that what is called defined is so on every path: an instruction that reads an
//! undefined flag gets a comparison in front of it.

use super::layout::{CODE_LEN, OVERLAY_AT, PAGE};
use crate::oracle::generate::{from_iced, writes_flags_conditionally};
use crate::oracle::undefined;
use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind,
};
use x86::Rflags;

/// One instruction of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Offset from the start of the code.
    pub at: u16,
    /// Bytes.
    pub len: u8,
    /// Flags that hold anything in front of it.
    pub undefined: Rflags,
    /// Instructions of one number make sense only together; 0 stands for itself, [`FIXED`] is never left out.
    pub group: u16,
}

/// See [`Placed::group`].
pub(super) const FIXED: u16 = u16::MAX;

/// A finished program.
#[derive(Clone)]
pub struct Program {
    /// 64 or 32.
    pub bits: u32,
    /// Two pages of code and the page behind them, as the first address space has it.
    pub code: Vec<u8>,
    /// That page in the second address space.
    pub overlay: Vec<u8>,
    /// Two pages of functions for volatile pages.
    pub functions: [Vec<u8>; 2],
    /// Instructions, by offset.
    pub placed: Vec<Placed>,
    /// Where it starts.
    pub entry: u16,
    /// Where it goes on when it got lost.
    pub landings: [u16; 8],
    /// General registers that the program takes for granted, by number.
    pub pinned: Vec<(usize, u64)>,
    /// Words in memory that it takes for granted: physical address, bytes, value.
    pub(super) constants: Vec<(u64, u64, u64)>,
}

impl Program {
    /// For each byte of code the offset where to go on after a fault there.
    pub(super) fn recovery(&self) -> Vec<u16> {
        let mut table = vec![self.landings[0]; CODE_LEN];
        for placed in &self.placed {
            let at = usize::from(placed.at);
            let end = at + usize::from(placed.len);
            table[at..end].fill(end as u16);
        }
        table
    }

    /// The instruction that begins at an offset.
    #[must_use]
    pub fn placed_at(&self, offset: u64) -> Option<&Placed> {
        let index = self.placed.binary_search_by_key(&offset, |placed| u64::from(placed.at)).ok()?;
        self.placed.get(index)
    }
}

/// A place in the program that may not be known yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label(usize);

struct Bound {
    at: Option<usize>,
    /// Flags that may be undefined there.
    allowed: Rflags,
}

/// What an operand in code refers to.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Bytes behind a label, and a distance to where the same bytes are mapped once more.
    Label(Label, u64),
    /// An offset from the start of the program's view.
    Offset(u64),
}

enum Field {
    /// One byte, relative to the instruction's end.
    Short,
    /// Four bytes, relative to the instruction's end.
    Near,
    /// Four bytes: an address in the program's view.
    Absolute,
}

struct Fixup {
    at: usize,
    end: usize,
    field: Field,
    target: Target,
}

pub(super) struct Assembler {
    pub(super) bits: u32,
    home: u64,
    code: Vec<u8>,
    at: usize,
    placed: Vec<Placed>,
    labels: Vec<Bound>,
    fixups: Vec<Fixup>,
    undefined: Rflags,
    group: u16,
    groups: u16,
    encoder: Encoder,
}

impl Assembler {
    /// An empty program for code of `bits`, seen at `home`.
    pub(super) fn new(bits: u32, home: u64, start: usize) -> Self {
        Self {
            bits,
            home,
            code: vec![0xcc; CODE_LEN],
            at: start,
            placed: Vec::new(),
            labels: Vec::new(),
            fixups: Vec::new(),
            undefined: Rflags::empty(),
            group: 0,
            groups: 0,
            encoder: Encoder::new(bits),
        }
    }

    /// What follows makes sense only as a whole, until [`Assembler::ungroup`].
    pub(super) fn group(&mut self) {
        self.groups += 1;
        self.group = self.groups;
    }

    /// What follows must stay.
    pub(super) fn fix(&mut self) -> u16 {
        std::mem::replace(&mut self.group, FIXED)
    }

    /// Back to single instructions, or to a group.
    pub(super) fn ungroup(&mut self, group: u16) {
        self.group = group;
    }

    /// Where the next instruction goes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Goes on writing elsewhere.
    pub(super) fn move_to(&mut self, at: usize) {
        self.need_defined();
        self.at = at;
    }

    /// Whether there is room for `bytes` more on this side of the page that differs.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let end = if self.at < OVERLAY_AT { OVERLAY_AT } else { CODE_LEN };
        self.at + bytes < end
    }

    /// A label at which these flags may be undefined.
    pub(super) fn label(&mut self, allowed: Rflags) -> Label {
        self.labels.push(Bound { at: None, allowed });
        Label(self.labels.len() - 1)
    }

    /// Puts the label here.
    pub(super) fn bind(&mut self, label: Label) {
        let allowed = self.labels[label.0].allowed;
        if !allowed.contains(self.undefined) {
            self.need_defined();
        }
        self.undefined |= allowed;
        self.labels[label.0].at = Some(self.at);
    }

    /// Makes all flags defined.
    pub(super) fn need_defined(&mut self) {
        if !self.undefined.is_empty() {
            // cmp eax, edx
            self.place(&[0x39, 0xd0]);
            self.undefined = Rflags::empty();
        }
    }

    /// Appends bytes that are one instruction. False if they aren't.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> bool {
        let instruction = self.decode(bytes);
        let sound = !instruction.is_invalid() && instruction.len() == bytes.len();
        debug_assert!(sound, "{bytes:x?} is not one instruction of {} bits", self.bits);
        if sound {
            self.flags_before(&instruction);
            self.place(bytes);
            self.flags_after(&instruction);
        }
        sound
    }

    /// An instruction with a 32-bit immediate or displacement.
    pub(super) fn raw32(&mut self, bytes: &[u8], value: u64) {
        let mut all = bytes.to_vec();
        all.extend((value as u32).to_le_bytes());
        self.raw(&all);
    }

    /// `bytes`, a memory operand's 32-bit displacement that names `target`, and `rest`: relative to RIP in 64-bit code.
    pub(super) fn with_memory(&mut self, bytes: &[u8], target: Target, rest: &[u8]) {
        let field = if self.bits == 64 { Field::Near } else { Field::Absolute };
        self.with_field(bytes, target, rest, field);
    }

    /// The same with a 32-bit address as an immediate; for 32-bit code.
    pub(super) fn with_address(&mut self, bytes: &[u8], target: Target) {
        self.with_field(bytes, target, &[], Field::Absolute);
    }

    fn with_field(&mut self, bytes: &[u8], target: Target, rest: &[u8], field: Field) {
        let all = [bytes, &[0; 4], rest].concat();
        self.raw(&all);
        let end = self.at;
        self.fixups.push(Fixup { at: end - rest.len() - 4, end, field, target });
    }

    /// A branch with a 32-bit displacement: `bytes` are its opcode.
    pub(super) fn branch(&mut self, bytes: &[u8], to: Label) {
        if !self.labels[to.0].allowed.contains(self.undefined) {
            self.need_defined();
        }
        self.with_field(bytes, Target::Label(to, 0), &[], Field::Near);
    }

    /// A branch with an 8-bit displacement, to a label that is near by construction.
    pub(super) fn short_branch(&mut self, bytes: &[u8], to: Label, distance: u64) {
        if !self.labels[to.0].allowed.contains(self.undefined) {
            self.need_defined();
        }
        self.raw(&[bytes, &[0]].concat());
        let end = self.at;
        self.fixups.push(Fixup {
            at: end - 1,
            end,
            field: Field::Short,
            target: Target::Label(to, distance),
        });
    }

    /// Whether a short branch from here reaches a label that is bound already.
    pub(super) fn is_near(&self, label: Label) -> bool {
        self.labels[label.0].at.is_some_and(|at| self.at - at < 100)
    }

    /// Appends an instruction that iced has; operands relative to RIP name addresses in the program's view. False if it can't
    /// be encoded.
    pub(super) fn instruction(&mut self, instruction: &Instruction) -> bool {
        self.flags_before(instruction);
        let ip = self.home + self.at as u64;
        if self.encoder.encode(instruction, ip).is_err() {
            drop(self.encoder.take_buffer());
            return false;
        }
        let bytes = self.encoder.take_buffer();
        self.place(&bytes);
        self.flags_after(instruction);
        true
    }

    fn decode(&self, bytes: &[u8]) -> Instruction {
        let ip = self.home + self.at as u64;
        Decoder::with_ip(self.bits, bytes, ip, DecoderOptions::NONE).decode()
    }

    fn place(&mut self, bytes: &[u8]) {
        let (at, len) = (self.at, bytes.len());
        self.code[at..at + len].copy_from_slice(bytes);
        self.placed.push(Placed {
            at: at as u16,
            len: len as u8,
            undefined: self.undefined,
            group: self.group,
        });
        self.at += len;
    }

    fn flags_before(&mut self, instruction: &Instruction) {
        let read = match instruction.mnemonic() {
            // What they push or keep isn't looked at again with the place in hand.
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq | Mnemonic::Syscall => Rflags::all(),
            _ => match instruction.flow_control() {
                FlowControl::Next | FlowControl::UnconditionalBranch => from_iced(instruction.rflags_read()),
                FlowControl::ConditionalBranch => from_iced(instruction.rflags_read()),
                // It isn't known where these lead.
                _ => Rflags::all(),
            },
        };
        if read.intersects(self.undefined) {
            self.need_defined();
        }
    }

    fn flags_after(&mut self, instruction: &Instruction) {
        let written = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
        if !writes_flags_conditionally(instruction) && !can_fault(instruction) {
            self.undefined -= from_iced(written);
        }
        self.undefined |= undefined::flags(instruction);
    }

    /// Resolves labels. `entry` is where the program starts.
    pub(super) fn finish(mut self, entry: Label, landings: [Label; 8]) -> Program {
        let place = |labels: &[Bound], label: Label| labels[label.0].at.unwrap_or(0) as u64;
        for fixup in &self.fixups {
            let target = match fixup.target {
                Target::Label(label, distance) => place(&self.labels, label) + distance,
                Target::Offset(offset) => offset,
            };
            let relative = target.wrapping_sub(fixup.end as u64);
            match fixup.field {
                Field::Short => self.code[fixup.at] = relative as u8,
                Field::Near => {
                    self.code[fixup.at..fixup.at + 4].copy_from_slice(&(relative as u32).to_le_bytes());
                }
                Field::Absolute => {
                    let address = (self.home + target) as u32;
                    self.code[fixup.at..fixup.at + 4].copy_from_slice(&address.to_le_bytes());
                }
            }
        }
        self.placed.sort_by_key(|placed| placed.at);
        Program {
            bits: self.bits,
            overlay: self.code[OVERLAY_AT..].to_vec(),
            functions: [vec![0xc3; PAGE as usize], vec![0xc3; PAGE as usize]],
            entry: place(&self.labels, entry) as u16,
            landings: landings.map(|label| place(&self.labels, label) as u16),
            placed: self.placed,
            code: self.code,
            pinned: Vec::new(),
            constants: Vec::new(),
        }
    }
}

/// Whether the instruction might be skipped because it faults. Errs on the side of yes.
fn can_fault(instruction: &Instruction) -> bool {
    let plain = instruction.cpuid_features().iter().all(|feature| {
        use CpuidFeature::{BMI1, BMI2, CMOV, INTEL186, INTEL386, INTEL486, INTEL8086, LZCNT, POPCNT, X64};
        matches!(
            feature,
            INTEL8086 | INTEL186 | INTEL386 | INTEL486 | X64 | CMOV | BMI1 | BMI2 | LZCNT | POPCNT
        )
    });
    let registers_only =
        instruction.op_kinds().all(|kind| matches!(kind, OpKind::Register) || is_immediate(kind));
    let trapping = matches!(
        instruction.mnemonic(),
        Mnemonic::Div
            | Mnemonic::Idiv
            | Mnemonic::Aam
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            | Mnemonic::Ud2
    );
    !plain
        || !registers_only
        || trapping
        || instruction.is_privileged()
        || instruction.has_lock_prefix()
        || instruction.flow_control() != FlowControl::Next
        || instruction.encoding() != EncodingKind::Legacy && instruction.encoding() != EncodingKind::VEX
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64
    )
}
