//! Operand forms: what an operand is (register, memory, immediate), as types, so that handlers are written once and
//! compiled for each combination.

use crate::cpu::{Cpu, Step, Stop};
use crate::flags::Flags;
use crate::op::{Op, operand_size};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, OpKind};

/// An operand that is read and perhaps written: the first one.
pub(crate) trait Dst {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Result<W, Stop>;
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, io: &mut dyn Platform) -> Step;
    /// Read, change, write: atomic where the op is locked. `change` may be called more than once. The flags it returns are
    /// put in force.
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        io: &mut dyn Platform,
        change: impl Fn(Flags, W) -> (W, Flags),
    ) -> Step;
}

/// An operand that is only read: the second one.
pub(crate) trait Src {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Result<W, Stop>;
}

/// A register.
pub(crate) struct Reg;
/// Memory.
pub(crate) struct Mem;
/// An immediate.
pub(crate) struct Imm;
/// CL, as a shift count.
pub(crate) struct Cl;

impl Dst for Reg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Result<W, Stop> {
        Ok(cpu.reg(op.dst, op.dst_shift))
    }
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, _: &mut dyn Platform) -> Step {
        cpu.set_reg(op.dst, op.dst_shift, value);
        Ok(())
    }
    #[inline(always)]
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        _: &mut dyn Platform,
        change: impl Fn(Flags, W) -> (W, Flags),
    ) -> Step {
        let (value, flags) = change(cpu.flags, cpu.reg(op.dst, op.dst_shift));
        cpu.set_reg(op.dst, op.dst_shift, value);
        cpu.flags = flags;
        Ok(())
    }
}

impl Dst for Mem {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Result<W, Stop> {
        cpu.read_memory(op, io)
    }
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W, io: &mut dyn Platform) -> Step {
        cpu.write_memory(op, value, io)
    }
    #[inline(always)]
    fn update<W: Width>(
        cpu: &mut Cpu,
        op: &Op,
        io: &mut dyn Platform,
        change: impl Fn(Flags, W) -> (W, Flags),
    ) -> Step {
        let place = cpu.memory_place::<W>(op, io)?;
        let before = cpu.flags;
        let mut after = before;
        cpu.modify(&place, op.locked, io, |old| {
            let (new, flags) = change(before, old);
            after = flags;
            new
        });
        cpu.flags = after;
        Ok(())
    }
}

impl Src for Reg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Result<W, Stop> {
        Ok(cpu.reg(op.src, op.src_shift))
    }
}

impl Src for Mem {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Result<W, Stop> {
        cpu.read_memory(op, io)
    }
}

impl Src for Imm {
    #[inline(always)]
    fn get<W: Width>(_: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Result<W, Stop> {
        Ok(W::from_u64(op.imm))
    }
}

impl Src for Cl {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Result<W, Stop> {
        Ok(W::from_u64(cpu.regs[1] & 0xff))
    }
}

/// What the first two operands are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    RegReg,
    RegMem,
    MemReg,
    RegImm,
    MemImm,
    Reg,
    Mem,
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// The form of a general-register instruction, or `None` where an operand is of another kind.
pub(crate) fn form(instruction: &Instruction) -> Option<Form> {
    let general = |number| instruction.op_register(number).is_gpr();
    let first = instruction.op0_kind();
    if first == OpKind::Register && !general(0) {
        return None;
    }
    if instruction.op_count() == 1 {
        return match first {
            OpKind::Register => Some(Form::Reg),
            OpKind::Memory => Some(Form::Mem),
            _ => None,
        };
    }
    let second = instruction.op1_kind();
    match (first, second) {
        (OpKind::Register, OpKind::Register) if general(1) => Some(Form::RegReg),
        (OpKind::Register, OpKind::Memory) => Some(Form::RegMem),
        (OpKind::Memory, OpKind::Register) if general(1) => Some(Form::MemReg),
        (OpKind::Register, kind) if is_immediate(kind) => Some(Form::RegImm),
        (OpKind::Memory, kind) if is_immediate(kind) => Some(Form::MemImm),
        _ => None,
    }
}

/// Size of the first operand in bytes.
pub(crate) fn size(instruction: &Instruction) -> usize {
    operand_size(instruction, 0)
}

/// `$handler::<$args.., W>` for the width in bytes `$size`.
macro_rules! by_width {
    ($size:expr, $handler:ident $(::<$($arg:ty),*>)?) => {
        match $size {
            1 => Some($handler::<$($($arg,)*)? u8> as $crate::op::Handler),
            2 => Some($handler::<$($($arg,)*)? u16> as $crate::op::Handler),
            4 => Some($handler::<$($($arg,)*)? u32> as $crate::op::Handler),
            8 => Some($handler::<$($($arg,)*)? u64> as $crate::op::Handler),
            _ => None,
        }
    };
}

/// The same without bytes.
macro_rules! by_wide_width {
    ($size:expr, $handler:ident $(::<$($arg:ty),*>)?) => {
        match $size {
            2 => Some($handler::<$($($arg,)*)? u16> as $crate::op::Handler),
            4 => Some($handler::<$($($arg,)*)? u32> as $crate::op::Handler),
            8 => Some($handler::<$($($arg,)*)? u64> as $crate::op::Handler),
            _ => None,
        }
    };
}

pub(crate) use {by_wide_width, by_width};
