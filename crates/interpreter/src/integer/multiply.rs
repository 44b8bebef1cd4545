//! Multiplication and division: MUL, IMUL, MULX, DIV, IDIV.
//!
//! MUL and IMUL leave SF, ZF, AF and PF undefined, DIV and IDIV all six flags (SDM 2); undefined ones stay as they are, but for
//! SF and PF after a multiplication, which follow the low half.

use super::form::{Dst, Form, Mem, Reg, Src, by_wide_width, by_width, form, size};
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic};
use x86::Exception;
use x86::state::gpr;

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

/// Stores a double-width result in AX or rDX:rAX.
fn set_wide<W: Width>(cpu: &mut Cpu, low: W, high: W) {
    if W::BITS == 8 {
        cpu.set_reg(RAX, 0, (low.to_u64() | high.to_u64() << 8) as u16);
    } else {
        cpu.set_reg(RAX, 0, low);
        cpu.set_reg(RDX, 0, high);
    }
}

fn multiplied<W: Width>(low: W, overflow: bool) -> Flags {
    Flags::with(low, overflow, overflow, false)
}

fn mul<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = D::get::<W>(cpu, op, io)?.to_u64();
    let a = cpu.reg::<W>(RAX, 0).to_u64();
    let product = u128::from(a) * u128::from(b);
    let (low, high) = (W::from_u64(product as u64), W::from_u64((product >> W::BITS) as u64));
    set_wide(cpu, low, high);
    cpu.flags = multiplied(low, high.to_u64() != 0);
    Ok(())
}

/// Signed product of two operands: low half, high half, whether the low half alone doesn't say it.
fn signed_product<W: Width>(a: W, b: W) -> (W, W, bool) {
    let product = i128::from(a.sign_extended() as i64) * i128::from(b.sign_extended() as i64);
    let low = W::from_u64(product as u64);
    (low, W::from_u64((product >> W::BITS) as u64), i128::from(low.sign_extended() as i64) != product)
}

fn imul_one<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = D::get::<W>(cpu, op, io)?;
    let (low, high, overflow) = signed_product(cpu.reg::<W>(RAX, 0), b);
    set_wide(cpu, low, high);
    cpu.flags = multiplied(low, overflow);
    Ok(())
}

fn imul_two<S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = S::get::<W>(cpu, op, io)?;
    let (low, _, overflow) = signed_product(cpu.reg::<W>(op.dst, 0), b);
    cpu.set_reg(op.dst, 0, low);
    cpu.flags = multiplied(low, overflow);
    Ok(())
}

fn imul_three<S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let a = S::get::<W>(cpu, op, io)?;
    let (low, _, overflow) = signed_product(a, W::from_u64(op.imm));
    cpu.set_reg(op.dst, 0, low);
    cpu.flags = multiplied(low, overflow);
    Ok(())
}

fn mulx<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = W::from_u64(cpu.operand(op, 2, io)?);
    let product = u128::from(cpu.reg::<W>(RDX, 0).to_u64()) * u128::from(b.to_u64());
    // With both destinations the same register, it gets the high half (SDM 2B MULX).
    cpu.set_reg(op.src, 0, W::from_u64(product as u64));
    cpu.set_reg(op.dst, 0, W::from_u64((product >> W::BITS) as u64));
    Ok(())
}

/// The dividend: AX or rDX:rAX.
fn dividend<W: Width>(cpu: &Cpu) -> u128 {
    if W::BITS == 8 {
        return cpu.reg::<u16>(RAX, 0).into();
    }
    u128::from(cpu.reg::<W>(RDX, 0).to_u64()) << W::BITS | u128::from(cpu.reg::<W>(RAX, 0).to_u64())
}

fn div<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let divisor = u128::from(D::get::<W>(cpu, op, io)?.to_u64());
    let dividend = dividend::<W>(cpu);
    let Some(quotient) = dividend.checked_div(divisor).filter(|quotient| quotient >> W::BITS == 0) else {
        return Err(Exception::DE.into());
    };
    set_wide(cpu, W::from_u64(quotient as u64), W::from_u64((dividend % divisor) as u64));
    Ok(())
}

fn idiv<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let divisor = i128::from(D::get::<W>(cpu, op, io)?.sign_extended() as i64);
    let unused = 128 - 2 * W::BITS;
    let dividend = (dividend::<W>(cpu) << unused) as i128 >> unused;
    // Overflows at -2^127 / -1 too, which checked_div refuses.
    let fits = |quotient: &i128| {
        let half = 1i128 << (W::BITS - 1);
        (-half..half).contains(quotient)
    };
    let Some(quotient) = dividend.checked_div(divisor).filter(fits) else {
        return Err(Exception::DE.into());
    };
    set_wide(cpu, W::from_u64(quotient as u64), W::from_u64((dividend % divisor) as u64));
    Ok(())
}

/// The frequent ones.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    let (form, size) = (form(instruction)?, size(instruction));
    match (instruction.mnemonic(), instruction.op_count(), form) {
        (Mnemonic::Imul, 2, Form::RegReg) => return by_wide_width!(size, imul_two::<Reg>),
        (Mnemonic::Imul, 2, Form::RegMem) => return by_wide_width!(size, imul_two::<Mem>),
        (Mnemonic::Imul, 3, Form::RegReg) => return by_wide_width!(size, imul_three::<Reg>),
        (Mnemonic::Imul, 3, Form::RegMem) => return by_wide_width!(size, imul_three::<Mem>),
        (_, 1, _) => {}
        _ => return None,
    }
    match (instruction.mnemonic(), form) {
        (Mnemonic::Mul, Form::Reg) => by_width!(size, mul::<Reg>),
        (Mnemonic::Mul, Form::Mem) => by_width!(size, mul::<Mem>),
        (Mnemonic::Imul, Form::Reg) => by_width!(size, imul_one::<Reg>),
        (Mnemonic::Imul, Form::Mem) => by_width!(size, imul_one::<Mem>),
        (Mnemonic::Div, Form::Reg) => by_width!(size, div::<Reg>),
        (Mnemonic::Div, Form::Mem) => by_width!(size, div::<Mem>),
        (Mnemonic::Idiv, Form::Reg) => by_width!(size, idiv::<Reg>),
        (Mnemonic::Idiv, Form::Mem) => by_width!(size, idiv::<Mem>),
        _ => None,
    }
}

/// The rest.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    match instruction.mnemonic() {
        Mnemonic::Mulx => by_wide_width!(size, mulx),
        _ => None,
    }
}
