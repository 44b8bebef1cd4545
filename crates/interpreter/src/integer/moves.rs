//! Moves: MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, MOVBE, BSWAP, the sign extensions of the accumulator, XLAT, LAHF, SAHF,
//! flag instructions, MOVNTI and MOVDIRI.

use super::form::{Dst, Form, Imm, Mem, Reg, Src, by_wide_width, by_width, form, size};
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op, operand_size};
use crate::system::Output;
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::state::gpr;
use x86::{Exception, Rflags};

fn mov<D: Dst, S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = S::get::<W>(cpu, op, io)?;
    D::set(cpu, op, value, io)
}

fn movdiri<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.offers(7, 0, Output::Ecx, 27) {
        return Err(Exception::UD.into());
    }
    mov::<Mem, Reg, W>(cpu, op, io)
}

/// MOVZX: `F` to the wider `W`.
fn movzx<S: Src, F: Width, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = S::get::<F>(cpu, op, io)?;
    cpu.set_reg(op.dst, op.dst_shift, W::from_u64(value.to_u64()));
    Ok(())
}

/// MOVSX, MOVSXD: `F` to the wider `W`.
fn movsx<S: Src, F: Width, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = S::get::<F>(cpu, op, io)?;
    cpu.set_reg(op.dst, op.dst_shift, W::from_u64(value.sign_extended()));
    Ok(())
}

fn lea<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let address = cpu.effective_address(op);
    cpu.set_reg(op.dst, op.dst_shift, W::from_u64(address));
    Ok(())
}

fn xchg_registers<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let (a, b): (W, W) = (cpu.reg(op.dst, op.dst_shift), cpu.reg(op.src, op.src_shift));
    cpu.set_reg(op.dst, op.dst_shift, b);
    cpu.set_reg(op.src, op.src_shift, a);
    Ok(())
}

/// XCHG with memory is always locked (SDM 2D XCHG).
fn xchg_memory<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let place = cpu.memory_place::<W>(op, io)?;
    // Either operand may be the memory one.
    let (index, shift) =
        if op.src == crate::cpu::ZERO { (op.dst, op.dst_shift) } else { (op.src, op.src_shift) };
    let value: W = cpu.reg(index, shift);
    let old = cpu.modify(&place, true, io, |_| value);
    cpu.set_reg(index, shift, old);
    Ok(())
}

/// CMOVcc reads its source, and zero-extends a 32-bit destination, whether or not the condition holds (SDM 2A CMOVcc).
fn cmov<S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = S::get::<W>(cpu, op, io)?;
    let old: W = cpu.reg(op.dst, op.dst_shift);
    let taken = cpu.flags.condition(op.condition);
    cpu.set_reg(op.dst, op.dst_shift, if taken { value } else { old });
    Ok(())
}

fn setcc<D: Dst>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = u8::from(cpu.flags.condition(op.condition));
    D::set(cpu, op, value, io)
}

/// The condition code of a Jcc, SETcc or CMOVcc, as its opcode has it.
pub(crate) fn condition(instruction: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    Some(match instruction.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        _ => return None,
    })
}

fn movbe<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value = cpu.operand(op, 1, io)?;
    cpu.set_operand(op, 0, value.swap_bytes() >> (64 - W::BITS), io)
}

/// BSWAP. Of a 16-bit register it is undefined (SDM 2A BSWAP); processors clear it.
fn bswap<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let value: W = cpu.reg(op.dst, 0);
    let swapped = if W::BITS == 16 { 0 } else { value.to_u64().swap_bytes() >> (64 - W::BITS) };
    cpu.set_reg(op.dst, 0, W::from_u64(swapped));
    Ok(())
}

/// CBW, CWDE, CDQE: `H` to `W` in the accumulator.
fn extend_accumulator<H: Width, W: Width>(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let half: H = cpu.reg(gpr::RAX as u8, 0);
    cpu.set_reg(gpr::RAX as u8, 0, W::from_u64(half.sign_extended()));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into rDX.
fn spread_sign<W: Width>(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let value: W = cpu.reg(gpr::RAX as u8, 0);
    let sign = ((value.sign_extended() as i64) >> 63) as u64;
    cpu.set_reg(gpr::RDX as u8, 0, W::from_u64(sign));
    Ok(())
}

fn xlat(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    // Iced gives rBX as base and AL as index.
    let base = cpu.regs[gpr::RBX];
    let offset = base.wrapping_add(cpu.regs[gpr::RAX] & 0xff) & op.address_mask;
    let value: u8 = cpu.read(op.segment, offset, io)?;
    cpu.set_reg(gpr::RAX as u8, 0, value);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let flags = (cpu.flags.to_rflags() | Rflags::ONE).bits() as u8;
    cpu.set_reg(gpr::RAX as u8, 8, flags);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let low = Rflags::from_bits_truncate(cpu.reg::<u8>(gpr::RAX as u8, 8).into());
    let kept = cpu.flags.to_rflags() & Rflags::OF;
    cpu.flags = Flags::from_rflags(low & Rflags::ARITHMETIC | kept);
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.flags.set_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.flags.set_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.state.rflags.remove(Rflags::DF);
    Ok(())
}

fn std_(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.state.rflags.insert(Rflags::DF);
    Ok(())
}

fn nop(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    Ok(())
}

fn pick_extension<const SIGNED: bool>(from: usize, to: usize, memory: bool) -> Option<Handler> {
    macro_rules! pick {
        ($($from:literal $f:ty, $to:literal $t:ty;)*) => {
            match (from, to, memory, SIGNED) {
                $(
                    ($from, $to, false, false) => Some(movzx::<Reg, $f, $t> as Handler),
                    ($from, $to, true, false) => Some(movzx::<Mem, $f, $t> as Handler),
                    ($from, $to, false, true) => Some(movsx::<Reg, $f, $t> as Handler),
                    ($from, $to, true, true) => Some(movsx::<Mem, $f, $t> as Handler),
                )*
                _ => None,
            }
        };
    }
    pick! {
        1 u8, 2 u16; 1 u8, 4 u32; 1 u8, 8 u64;
        2 u16, 2 u16; 2 u16, 4 u32; 2 u16, 8 u64;
        4 u32, 4 u32; 4 u32, 8 u64;
    }
}

/// The frequent ones.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    let mnemonic = instruction.mnemonic();
    match mnemonic {
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 => return Some(nop),
        Mnemonic::Cdqe => return Some(extend_accumulator::<u32, u64>),
        Mnemonic::Cwde => return Some(extend_accumulator::<u16, u32>),
        Mnemonic::Cbw => return Some(extend_accumulator::<u8, u16>),
        Mnemonic::Cqo => return Some(spread_sign::<u64>),
        Mnemonic::Cdq => return Some(spread_sign::<u32>),
        Mnemonic::Cwd => return Some(spread_sign::<u16>),
        _ => {}
    }
    let (form, size) = (form(instruction)?, size(instruction));
    match mnemonic {
        Mnemonic::Mov => match form {
            Form::RegReg => by_width!(size, mov::<Reg, Reg>),
            Form::RegMem => by_width!(size, mov::<Reg, Mem>),
            Form::MemReg => by_width!(size, mov::<Mem, Reg>),
            Form::RegImm => by_width!(size, mov::<Reg, Imm>),
            Form::MemImm => by_width!(size, mov::<Mem, Imm>),
            Form::Reg | Form::Mem => None,
        },
        Mnemonic::Movzx => pick_extension::<false>(operand_size(instruction, 1), size, form == Form::RegMem),
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            pick_extension::<true>(operand_size(instruction, 1), size, form == Form::RegMem)
        }
        Mnemonic::Lea => by_wide_width!(size, lea),
        Mnemonic::Movnti if form == Form::MemReg => by_width!(size, mov::<Mem, Reg>),
        Mnemonic::Movdiri if form == Form::MemReg => by_width!(size, movdiri),
        _ if condition(instruction).is_some() => match (form, size) {
            (Form::RegReg, _) => by_wide_width!(size, cmov::<Reg>),
            (Form::RegMem, _) => by_wide_width!(size, cmov::<Mem>),
            (Form::Reg, 1) => Some(setcc::<Reg>),
            (Form::Mem, 1) => Some(setcc::<Mem>),
            _ => None,
        },
        _ => None,
    }
}

/// The rest.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    match instruction.mnemonic() {
        Mnemonic::Xchg if (0..2).any(|number| instruction.op_kind(number) == OpKind::Memory) => {
            by_width!(size, xchg_memory)
        }
        Mnemonic::Xchg => by_width!(size, xchg_registers),
        Mnemonic::Movbe => by_wide_width!(size, movbe),
        Mnemonic::Bswap => by_wide_width!(size, bswap),
        Mnemonic::Xlatb => Some(xlat),
        Mnemonic::Lahf => Some(lahf),
        Mnemonic::Sahf => Some(sahf),
        Mnemonic::Clc => Some(clc),
        Mnemonic::Stc => Some(stc),
        Mnemonic::Cmc => Some(cmc),
        Mnemonic::Cld => Some(cld),
        Mnemonic::Std => Some(std_),
        _ => None,
    }
}
