//! A decoded instruction in the form in which it is executed.
//!
//! Made once by `decode.rs`, run many times. Frequent instructions have handlers specialised by width and operand kind, which
//! use the plain fields; all others find iced's decoded instruction in [`Op::detail`] and reach their operands through
//! [`Cpu::operand`] and [`Cpu::set_operand`].

use crate::cpu::{Cpu, Step, Stop, ZERO, register_slot};
use crate::native::StubCell;
use engine::Platform;
use iced_x86::{Instruction, MemorySize, OpKind, Register};
use std::cell::RefCell;
use x86::state::seg;

/// Executes one instruction. On `Ok` the instruction is complete; see [`Stop`] for the rest.
pub(crate) type Handler = fn(&mut Cpu, &Op, &mut dyn Platform) -> Step;

/// One instruction, ready to run. One host cache line.
#[repr(align(64))]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Immediate, sign-extended to 64 bits; for near branches the target relative to the block's first instruction.
    pub(crate) imm: u64,
    /// Displacement; for RIP-relative operands relative to the block's first instruction.
    pub(crate) disp: u64,
    /// All ones as wide as the address size.
    pub(crate) address_mask: u64,
    /// What slow handlers need.
    pub(crate) detail: Option<Box<Detail>>,
    /// First operand's register (index in `Cpu::regs`) and shift.
    pub(crate) dst: u8,
    pub(crate) dst_shift: u8,
    /// Second operand's register and shift.
    pub(crate) src: u8,
    pub(crate) src_shift: u8,
    /// The memory operand: base + index << scale + disp in a segment.
    pub(crate) base: u8,
    pub(crate) index: u8,
    pub(crate) scale: u8,
    pub(crate) segment: u8,
    /// Where the instruction starts and ends, relative to the block's first byte.
    pub(crate) start: u16,
    pub(crate) next: u16,
    /// Has a LOCK prefix, or is XCHG with memory.
    pub(crate) locked: bool,
    /// Condition code of a Jcc, SETcc or CMOVcc, 0..=15.
    pub(crate) condition: u8,
    /// The handler sets RIP whenever it completes.
    pub(crate) ends_in_branch: bool,
}

/// The part of an op that only slow handlers look at.
pub(crate) struct Detail {
    pub(crate) instruction: Instruction,
    /// Native code for vector instructions, compiled when first run.
    pub(crate) stub: RefCell<StubCell>,
}

impl Op {
    /// Iced's form of the instruction.
    ///
    /// # Panics
    /// Where lowering left the detail out, which it does only for handlers that never ask.
    #[inline]
    pub(crate) fn instruction(&self) -> &Instruction {
        &self.detail.as_ref().expect("a slow handler's op carries its detail").instruction
    }
}

/// Index of a segment register in `CpuState::segments`.
pub(crate) fn segment_slot(register: Register) -> u8 {
    match register {
        Register::ES => seg::ES as u8,
        Register::CS => seg::CS as u8,
        Register::SS => seg::SS as u8,
        Register::FS => seg::FS as u8,
        Register::GS => seg::GS as u8,
        _ => seg::DS as u8,
    }
}

/// The segment of the memory operand. 64-bit code ignores overrides other than FS and GS (SDM 2A 2.1.1): they don't turn
/// the #GP of an address that isn't canonical into #SS, nor the other way round.
fn memory_segment(instruction: &Instruction) -> u8 {
    let ignored = instruction.code_size() == iced_x86::CodeSize::Code64
        && !matches!(instruction.segment_prefix(), Register::None | Register::FS | Register::GS);
    if !ignored {
        return segment_slot(instruction.memory_segment());
    }
    let stack =
        matches!(instruction.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
    segment_slot(if stack { Register::SS } else { Register::DS })
}

/// The address size of the memory operand, as a mask.
pub(crate) fn address_mask(instruction: &Instruction) -> u64 {
    // Implicit operands say it in their kind.
    for number in 0..instruction.op_count() {
        match instruction.op_kind(number) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 0xffff,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 0xffff_ffff,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return u64::MAX,
            _ => {}
        }
    }
    let register = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, index) => index,
        (base, _) => base,
    };
    let bytes = match register {
        Register::None => instruction.memory_displ_size().max(2),
        Register::EIP => 4,
        Register::RIP => 8,
        // VSIB: the index is a vector register.
        register if register.is_vector_register() => {
            if instruction.code_size() == iced_x86::CodeSize::Code64 { 8 } else { 4 }
        }
        register => register.size() as u32,
    };
    match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Cpu {
    /// The value of explicit operand `number`, zero-extended from its size; immediates sign-extended.
    pub(crate) fn operand(&mut self, op: &Op, number: u32, io: &mut dyn Platform) -> Result<u64, Stop> {
        let instruction = op.instruction();
        match instruction.op_kind(number) {
            OpKind::Register => Ok(self.read_register(instruction.op_register(number))),
            OpKind::Memory => {
                let offset = self.effective_address(op);
                match operand_size(instruction, number) {
                    1 => self.read::<u8>(op.segment, offset, io).map(u64::from),
                    2 => self.read::<u16>(op.segment, offset, io).map(u64::from),
                    4 => self.read::<u32>(op.segment, offset, io).map(u64::from),
                    _ => self.read::<u64>(op.segment, offset, io),
                }
            }
            _ => Ok(instruction.immediate(number)),
        }
    }

    /// Writes explicit operand `number`, a register or memory.
    pub(crate) fn set_operand(&mut self, op: &Op, number: u32, value: u64, io: &mut dyn Platform) -> Step {
        let instruction = op.instruction();
        match instruction.op_kind(number) {
            OpKind::Register => {
                self.write_register(instruction.op_register(number), value);
                Ok(())
            }
            _ => {
                let offset = self.effective_address(op);
                match operand_size(instruction, number) {
                    1 => self.write(op.segment, offset, value as u8, io),
                    2 => self.write(op.segment, offset, value as u16, io),
                    4 => self.write(op.segment, offset, value as u32, io),
                    _ => self.write(op.segment, offset, value, io),
                }
            }
        }
    }
}

/// Size in bytes of explicit operand `number`.
pub(crate) fn operand_size(instruction: &Instruction, number: u32) -> usize {
    match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size(),
        OpKind::Memory => match instruction.memory_size() {
            MemorySize::Unknown => 0,
            size => size.size(),
        },
        OpKind::Immediate8 | OpKind::Immediate8_2nd => 1,
        OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
        OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
        _ => 8,
    }
}

/// An op with operand fields filled in from the instruction; `run` is for the caller to choose. `start` is the offset of the
/// instruction in its block.
pub(crate) fn describe(instruction: &Instruction, start: u16, run: Handler) -> Op {
    let next = start + instruction.len() as u16;
    let (mut dst, mut dst_shift, mut src, mut src_shift, mut imm) = (ZERO, 0, ZERO, 0, 0);
    let mut has_memory = false;
    for number in 0..instruction.op_count() {
        match instruction.op_kind(number) {
            OpKind::Register => {
                let register = instruction.op_register(number);
                if register.is_gpr() {
                    let (index, shift) = register_slot(register);
                    if number == 0 {
                        (dst, dst_shift) = (index, shift);
                    } else if number == 1 {
                        (src, src_shift) = (index, shift);
                    }
                }
            }
            OpKind::Memory => has_memory = true,
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                // The block is decoded as if its first byte were at address 0.
                imm = instruction.near_branch_target();
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {}
            kind if is_string_operand(kind) => has_memory = true,
            _ => imm = instruction.immediate(number),
        }
    }
    let (mut base, mut index, mut disp) = (ZERO, ZERO, 0);
    let mut mask = u64::MAX;
    if has_memory {
        disp = instruction.memory_displacement64();
        mask = address_mask(instruction);
        (base, index) = match instruction.memory_base() {
            Register::RIP | Register::EIP => (crate::cpu::BLOCK_RIP, ZERO),
            register => (register_slot(register).0, index_slot(instruction.memory_index())),
        };
    }
    Op {
        run,
        imm,
        disp,
        address_mask: mask,
        detail: None,
        dst,
        dst_shift,
        src,
        src_shift,
        base,
        index,
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        segment: memory_segment(instruction),
        start,
        next,
        locked: instruction.has_lock_prefix(),
        condition: crate::integer::condition(instruction).unwrap_or(0),
        ends_in_branch: instruction.flow_control() != iced_x86::FlowControl::Next,
    }
}

fn index_slot(register: Register) -> u8 {
    if register.is_vector_register() { ZERO } else { register_slot(register).0 }
}

fn is_string_operand(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}
