//! Near control flow and the stack: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ, PUSH, POP, PUSHA, POPA, ENTER, LEAVE.
//!
//! A near branch outside 64-bit mode truncates RIP to its operand size and checks CS's limit; in 64-bit mode it checks
//! canonicality.

use super::form::{Dst, Form, Mem, Reg, by_wide_width, form, size};
use super::moves::condition;
use crate::cpu::{Cpu, Step};
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::state::{gpr, seg};

/// The target of a relative branch whose operand size is `W`.
#[inline(always)]
fn target<W: Width>(cpu: &Cpu, op: &Op) -> u64 {
    W::from_u64(cpu.regs[crate::cpu::BLOCK_RIP as usize].wrapping_add(op.imm)).to_u64()
}

fn jmp<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    cpu.branch_to(target::<W>(cpu, op))
}

fn jcc<const CONDITION: u8, W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    if cpu.flags.condition(CONDITION) {
        cpu.branch_to(target::<W>(cpu, op))
    } else {
        cpu.rip = cpu.next_rip(op);
        Ok(())
    }
}

fn call<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let to = target::<W>(cpu, op);
    call_to::<W>(cpu, op, to, io)
}

/// Pushes the return address and branches. The branch is checked first, so that a fault leaves the stack alone; but in
/// 64-bit code hosts look at the stack first, and Intel's push: a page fault of the push comes before the #GP of a target that isn't
/// canonical.
#[inline(always)]
fn call_to<W: Width>(cpu: &mut Cpu, op: &Op, to: u64, io: &mut dyn Platform) -> Step {
    let back = cpu.next_rip(op);
    let before = cpu.rip;
    if W::BYTES == 8 {
        if !cpu.is_canonical(to) && !cpu.is_intel() {
            let top = cpu.regs[gpr::RSP].wrapping_sub(8);
            cpu.place_for_write(seg::SS as u8, top, 8, io)?;
            return cpu.branch_to(to);
        }
        let stack = cpu.regs[gpr::RSP];
        cpu.push(W::from_u64(back), io)?;
        let branched = cpu.branch_to(to);
        if branched.is_err() {
            cpu.regs[gpr::RSP] = stack;
        }
        return branched;
    }
    cpu.branch_to(to)?;
    let pushed = cpu.push(W::from_u64(back), io);
    if pushed.is_err() {
        cpu.rip = before;
    }
    pushed
}

fn jmp_indirect<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let to = D::get::<W>(cpu, op, io)?;
    cpu.branch_to(to.to_u64())
}

fn call_indirect<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let to = D::get::<W>(cpu, op, io)?;
    call_to::<W>(cpu, op, to.to_u64(), io)
}

fn ret<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let to: W = cpu.peek(0, io)?;
    cpu.branch_to(to.to_u64())?;
    cpu.release_stack(W::BYTES + (op.imm & 0xffff));
    Ok(())
}

/// LOOP, LOOPE, LOOPNE and JrCXZ: the count register is as wide as the address size.
fn loop_<const KIND: u8>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let mask = match instruction.mnemonic() {
        Mnemonic::Jcxz => 0xffff,
        Mnemonic::Jecxz => 0xffff_ffff,
        Mnemonic::Jrcxz => u64::MAX,
        _ => count_mask(instruction),
    };
    let old = cpu.regs[gpr::RCX];
    let count = if KIND == JCXZ { old & mask } else { old.wrapping_sub(1) & mask };
    let taken = match KIND {
        JCXZ => count == 0,
        LOOPE => count != 0 && cpu.flags.zf(),
        LOOPNE => count != 0 && !cpu.flags.zf(),
        _ => count != 0,
    };
    if taken {
        let to = cpu.regs[crate::cpu::BLOCK_RIP as usize].wrapping_add(op.imm);
        let to = match instruction.op0_kind() {
            OpKind::NearBranch16 => to & 0xffff,
            OpKind::NearBranch32 => to & 0xffff_ffff,
            _ => to,
        };
        cpu.branch_to(to)?;
    } else {
        cpu.rip = cpu.next_rip(op);
    }
    if KIND != JCXZ {
        cpu.regs[gpr::RCX] = match mask {
            0xffff => old & !0xffff | count,
            _ => count,
        };
    }
    Ok(())
}

const LOOP: u8 = 0;
const LOOPE: u8 = 1;
const LOOPNE: u8 = 2;
const JCXZ: u8 = 3;

/// Which of CX, ECX and RCX a LOOP counts in.
fn count_mask(instruction: &Instruction) -> u64 {
    use iced_x86::Code::*;
    match instruction.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX => 0xffff,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX
        | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn push_register<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value: W = cpu.reg(op.dst, 0);
    cpu.push(value, io)
}

/// PUSH of memory: an address by rSP uses its value before the push.
fn push_memory<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value: W = cpu.read_memory(op, io)?;
    cpu.push(value, io)
}

fn push_immediate<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    cpu.push(W::from_u64(op.imm), io)
}

/// POP to a register: rSP is incremented first, so POP rSP leaves what was popped.
fn pop_register<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value: W = cpu.peek(0, io)?;
    cpu.release_stack(W::BYTES);
    cpu.set_reg(op.dst, 0, value);
    Ok(())
}

/// POP to memory: an address by rSP uses its value after the pop (SDM 2B POP).
fn pop_memory<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let value: W = cpu.peek(0, io)?;
    let before = cpu.regs[gpr::RSP];
    cpu.release_stack(W::BYTES);
    let stored = cpu.write_memory(op, value, io);
    if stored.is_err() {
        cpu.regs[gpr::RSP] = before;
    }
    stored
}

/// PUSHA: all is checked before anything is written.
fn pusha<W: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    let before = cpu.regs[gpr::RSP];
    let mut places = [None; 8];
    let mut top = before;
    for place in &mut places {
        top = top.wrapping_sub(W::BYTES) & cpu.stack_mask;
        *place = Some(cpu.place_for_write(seg::SS as u8, top, W::BYTES, io)?);
    }
    for (index, place) in (0..8u8).zip(places.iter().flatten()) {
        let value: W = cpu.reg(index, 0);
        cpu.store(place, W::BYTES, value.to_u64(), io);
    }
    cpu.regs[gpr::RSP] = before & !cpu.stack_mask | top;
    Ok(())
}

fn popa<W: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    let mut values = [W::from_u64(0); 8];
    for (depth, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(depth as u64 * W::BYTES, io)?;
    }
    cpu.release_stack(8 * W::BYTES);
    for (value, index) in values.iter().zip((0..8u8).rev()) {
        if usize::from(index) != gpr::RSP {
            cpu.set_reg(index, 0, *value);
        }
    }
    Ok(())
}

/// LEAVE: the stack pointer comes from rBP by the stack's address size.
fn leave<W: Width>(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    let frame = cpu.regs[gpr::RBP] & cpu.stack_mask;
    let value: W = cpu.read(seg::SS as u8, frame, io)?;
    let old = cpu.regs[gpr::RSP];
    cpu.regs[gpr::RSP] = old & !cpu.stack_mask | frame.wrapping_add(W::BYTES) & cpu.stack_mask;
    cpu.set_reg(gpr::RBP as u8, 0, value);
    Ok(())
}

/// ENTER, with nesting (SDM 2A ENTER).
fn enter<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let (locals, level) = (u64::from(instruction.immediate16()), instruction.immediate8_2nd() % 32);
    let (rsp, mask) = (cpu.regs[gpr::RSP], cpu.stack_mask);
    let result = enter_frame::<W>(cpu, level, locals, io);
    match result {
        Ok(frame) => {
            let rbp = cpu.regs[gpr::RBP];
            let frame = if mask == 0xffff { rbp & !mask | frame } else { frame };
            cpu.set_reg(gpr::RBP as u8, 0, W::from_u64(frame));
            Ok(())
        }
        Err(stop) => {
            cpu.regs[gpr::RSP] = rsp;
            Err(stop)
        }
    }
}

fn enter_frame<W: Width>(
    cpu: &mut Cpu,
    level: u8,
    locals: u64,
    io: &mut dyn Platform,
) -> Result<u64, crate::cpu::Stop> {
    let mask = cpu.stack_mask;
    let rbp = cpu.regs[gpr::RBP];
    cpu.push(W::from_u64(rbp), io)?;
    let frame = cpu.regs[gpr::RSP] & mask;
    if level > 0 {
        for outer in 1..u64::from(level) {
            let at = rbp.wrapping_sub(outer * W::BYTES) & mask;
            let value: W = cpu.read(seg::SS as u8, at, io)?;
            cpu.push(value, io)?;
        }
        cpu.push(W::from_u64(frame), io)?;
    }
    let rsp = cpu.regs[gpr::RSP];
    let new = rsp.wrapping_sub(locals) & mask;
    // The new top of the stack must be writable by an operand (SDM 2A ENTER: the faults of a write there). Nothing is
    // written, so no breakpoint is hit.
    let dr7 = std::mem::take(&mut cpu.state.dr7);
    let probed = cpu.place_for_write(seg::SS as u8, new, W::BYTES, io);
    cpu.state.dr7 = dr7;
    probed?;
    cpu.regs[gpr::RSP] = rsp & !mask | new;
    Ok(frame)
}

fn pick_jcc(condition: u8, kind: OpKind) -> Option<Handler> {
    macro_rules! pick {
        ($($code:literal)*) => {
            match (condition, kind) {
                $(
                    ($code, OpKind::NearBranch16) => Some(jcc::<$code, u16> as Handler),
                    ($code, OpKind::NearBranch32) => Some(jcc::<$code, u32> as Handler),
                    ($code, OpKind::NearBranch64) => Some(jcc::<$code, u64> as Handler),
                )*
                _ => None,
            }
        };
    }
    pick!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

/// `$handler::<W>` for a near branch's operand kind.
macro_rules! by_branch {
    ($kind:expr, $handler:ident) => {
        match $kind {
            OpKind::NearBranch16 => Some($handler::<u16> as Handler),
            OpKind::NearBranch32 => Some($handler::<u32> as Handler),
            OpKind::NearBranch64 => Some($handler::<u64> as Handler),
            _ => None,
        }
    };
}

/// The frequent ones.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    let kind = instruction.op0_kind();
    let near = matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    match instruction.mnemonic() {
        Mnemonic::Jmp if near => by_branch!(kind, jmp),
        Mnemonic::Call if near => by_branch!(kind, call),
        _ if instruction.is_jcc_short_or_near() => pick_jcc(condition(instruction)?, kind),
        Mnemonic::Ret => match instruction.code() {
            iced_x86::Code::Retnw | iced_x86::Code::Retnw_imm16 => Some(ret::<u16>),
            iced_x86::Code::Retnd | iced_x86::Code::Retnd_imm16 => Some(ret::<u32>),
            iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16 => Some(ret::<u64>),
            _ => None,
        },
        Mnemonic::Jmp | Mnemonic::Call
            if instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect() =>
        {
            let call = instruction.is_call_near_indirect();
            match (form(instruction)?, call) {
                (Form::Reg, false) => by_wide_width!(size(instruction), jmp_indirect::<Reg>),
                (Form::Mem, false) => by_wide_width!(size(instruction), jmp_indirect::<Mem>),
                (Form::Reg, true) => by_wide_width!(size(instruction), call_indirect::<Reg>),
                (Form::Mem, true) => by_wide_width!(size(instruction), call_indirect::<Mem>),
                _ => None,
            }
        }
        Mnemonic::Push => match form(instruction) {
            Some(Form::Reg) => by_wide_width!(size(instruction), push_register),
            Some(Form::Mem) => by_wide_width!(size(instruction), push_memory),
            // A segment register.
            _ if kind == OpKind::Register => None,
            _ => {
                by_wide_width!(instruction.stack_pointer_increment().unsigned_abs() as usize, push_immediate)
            }
        },
        Mnemonic::Pop => match form(instruction) {
            Some(Form::Reg) => by_wide_width!(size(instruction), pop_register),
            Some(Form::Mem) => by_wide_width!(size(instruction), pop_memory),
            _ => None,
        },
        Mnemonic::Leave => by_wide_width!(instruction_width(instruction), leave),
        _ => None,
    }
}

/// Operand size of LEAVE and ENTER in bytes.
fn instruction_width(instruction: &Instruction) -> usize {
    use iced_x86::Code::*;
    match instruction.code() {
        Leavew | Enterw_imm16_imm8 => 2,
        Leaved | Enterd_imm16_imm8 => 4,
        _ => 8,
    }
}

/// The rest.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Loop => Some(loop_::<LOOP>),
        Mnemonic::Loope => Some(loop_::<LOOPE>),
        Mnemonic::Loopne => Some(loop_::<LOOPNE>),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => Some(loop_::<JCXZ>),
        Mnemonic::Pusha => Some(pusha::<u16>),
        Mnemonic::Pushad => Some(pusha::<u32>),
        Mnemonic::Popa => Some(popa::<u16>),
        Mnemonic::Popad => Some(popa::<u32>),
        Mnemonic::Enter => by_wide_width!(instruction_width(instruction), enter),
        _ => None,
    }
}
