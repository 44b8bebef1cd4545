//! Addition, subtraction, logic, comparison, and what is one operand of it: ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC,
//! DEC, NEG, NOT, XADD, CMPXCHG and its 8- and 16-byte forms, ADCX, ADOX.

use super::form::{Dst, Form, Imm, Mem, Reg, Src, by_width, form, size};
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic};
use x86::Exception;
use x86::state::gpr;

/// A two-operand operation that sets all six flags.
trait Alu {
    /// The result is stored, not just its flags.
    const STORES: bool = true;
    fn apply<W: Width>(flags: Flags, a: W, b: W) -> (W, Flags);
}

#[inline(always)]
fn sum<W: Width>(a: W, b: W, carry: bool) -> (W, Flags) {
    let result = a.add(b).add(W::from_u64(carry.into()));
    (result, Flags::arithmetic(result, (a & b) | ((a | b) & !result)))
}

#[inline(always)]
fn difference<W: Width>(a: W, b: W, borrow: bool) -> (W, Flags) {
    let result = a.sub(b).sub(W::from_u64(borrow.into()));
    (result, Flags::arithmetic(result, (!a & b) | ((!a | b) & result)))
}

macro_rules! alu {
    ($name:ident, $stores:literal, |$flags:ident, $a:ident, $b:ident| $body:expr) => {
        struct $name;
        impl Alu for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn apply<W: Width>($flags: Flags, $a: W, $b: W) -> (W, Flags) {
                $body
            }
        }
    };
}

#[inline(always)]
fn logic<W: Width>(result: W) -> (W, Flags) {
    (result, Flags::logic(result))
}

alu!(Add, true, |_flags, a, b| sum(a, b, false));
alu!(Adc, true, |flags, a, b| sum(a, b, flags.cf()));
alu!(Sub, true, |_flags, a, b| difference(a, b, false));
alu!(Sbb, true, |flags, a, b| difference(a, b, flags.cf()));
alu!(Cmp, false, |_flags, a, b| difference(a, b, false));
alu!(And, true, |_flags, a, b| logic(a & b));
alu!(Or, true, |_flags, a, b| logic(a | b));
alu!(Xor, true, |_flags, a, b| logic(a ^ b));
alu!(Test, false, |_flags, a, b| logic(a & b));

fn binary<O: Alu, D: Dst, S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = S::get::<W>(cpu, op, io)?;
    if O::STORES {
        D::update(cpu, op, io, |flags, a| O::apply(flags, a, b))
    } else {
        let a = D::get::<W>(cpu, op, io)?;
        cpu.flags = O::apply(cpu.flags, a, b).1;
        Ok(())
    }
}

fn pick<O: Alu>(form: Form, size: usize) -> Option<Handler> {
    match form {
        Form::RegReg => by_width!(size, binary::<O, Reg, Reg>),
        Form::RegMem => by_width!(size, binary::<O, Reg, Mem>),
        Form::MemReg => by_width!(size, binary::<O, Mem, Reg>),
        Form::RegImm => by_width!(size, binary::<O, Reg, Imm>),
        Form::MemImm => by_width!(size, binary::<O, Mem, Imm>),
        Form::Reg | Form::Mem => None,
    }
}

/// A one-operand operation.
trait Unary {
    fn apply<W: Width>(flags: Flags, a: W) -> (W, Flags);
}

macro_rules! unary {
    ($name:ident, |$flags:ident, $a:ident| $body:expr) => {
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Width>($flags: Flags, $a: W) -> (W, Flags) {
                $body
            }
        }
    };
}

#[inline(always)]
fn keeping_cf<W: Width>(before: Flags, (result, mut flags): (W, Flags)) -> (W, Flags) {
    flags.set_cf(before.cf());
    (result, flags)
}

unary!(Inc, |flags, a| keeping_cf(flags, sum(a, W::from_u64(1), false)));
unary!(Dec, |flags, a| keeping_cf(flags, difference(a, W::from_u64(1), false)));
unary!(Neg, |_flags, a| difference(W::from_u64(0), a, false));
unary!(Not, |flags, a| (!a, flags));

fn one<O: Unary, D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    D::update(cpu, op, io, |flags, a: W| O::apply(flags, a))
}

fn pick_one<O: Unary>(form: Form, size: usize) -> Option<Handler> {
    match form {
        Form::Reg => by_width!(size, one::<O, Reg>),
        Form::Mem => by_width!(size, one::<O, Mem>),
        _ => None,
    }
}

/// XADD: the source register gets the old destination. With both the same register, the destination wins (SDM 2D XADD).
fn xadd<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b: W = cpu.reg(op.src, op.src_shift);
    let old = std::cell::Cell::new(b);
    let flags = std::cell::Cell::new(cpu.flags);
    D::update(cpu, op, io, |before, a: W| {
        old.set(a);
        let (result, after) = sum(a, b, false);
        flags.set(after);
        (result, before)
    })?;
    cpu.flags = flags.get();
    let result = old.get().add(b);
    cpu.set_reg(op.src, op.src_shift, old.get());
    if op.dst == op.src
        && op.dst_shift == op.src_shift
        && !op.instruction().op0_kind().eq(&iced_x86::OpKind::Memory)
    {
        cpu.set_reg(op.dst, op.dst_shift, result);
    }
    Ok(())
}

/// CMPXCHG: the destination is written in any case; the accumulator only on inequality (SDM 2A CMPXCHG).
fn cmpxchg<D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let expected: W = cpu.reg(gpr::RAX as u8, 0);
    let new: W = cpu.reg(op.src, op.src_shift);
    let found = std::cell::Cell::new(expected);
    let whole = cpu.regs[usize::from(op.dst)];
    D::update(cpu, op, io, |_, old: W| {
        found.set(old);
        let stored = if old == expected { new } else { old };
        (stored, difference(expected, old, false).1)
    })?;
    if found.get() != expected {
        // A register that isn't exchanged isn't written: a dword's upper half stays. (Of memory operands `dst` says
        // nothing, and writing back what was there changes nothing.)
        cpu.regs[usize::from(op.dst)] = whole;
        cpu.set_reg(gpr::RAX as u8, 0, found.get());
    }
    Ok(())
}

/// CMPXCHG8B.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let pair = |high: usize, low: usize, cpu: &Cpu| (cpu.regs[high] << 32) | (cpu.regs[low] & 0xffff_ffff);
    let expected = pair(gpr::RDX, gpr::RAX, cpu);
    let new = pair(gpr::RCX, gpr::RBX, cpu);
    let place = cpu.memory_place::<u64>(op, io)?;
    let old = cpu.modify(&place, op.locked, io, |old: u64| if old == expected { new } else { old });
    set_zf(cpu, old == expected);
    if old != expected {
        cpu.regs[gpr::RAX] = old & 0xffff_ffff;
        cpu.regs[gpr::RDX] = old >> 32;
    }
    Ok(())
}

/// CMPXCHG16B: the operand must be aligned, with or without LOCK.
fn cmpxchg16b(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let offset = cpu.effective_address(op);
    let address = cpu.linear(op.segment, offset, 16, true)?;
    if address % 16 != 0 {
        return Err(Exception::GP0.into());
    }
    let place = cpu.place_for_write(op.segment, offset, 16, io)?;
    let pair =
        |high: usize, low: usize, cpu: &Cpu| u128::from(cpu.regs[high]) << 64 | u128::from(cpu.regs[low]);
    let expected = pair(gpr::RDX, gpr::RAX, cpu);
    let new = pair(gpr::RCX, gpr::RBX, cpu);
    let old = cpu.compare_exchange_16(&place, expected, new, io);
    set_zf(cpu, old == expected);
    if old != expected {
        cpu.regs[gpr::RAX] = old as u64;
        cpu.regs[gpr::RDX] = (old >> 64) as u64;
    }
    Ok(())
}

/// Changes ZF alone.
pub(crate) fn set_zf(cpu: &mut Cpu, zf: bool) {
    let mut flags = cpu.flags.to_rflags();
    flags.set(x86::Rflags::ZF, zf);
    cpu.flags = Flags::from_rflags(flags);
}

/// ADCX and ADOX: add with one of two carries, touching no other flag.
fn add_with<D: AddCarry, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let a = W::from_u64(cpu.operand(op, 0, io)?);
    let b = W::from_u64(cpu.operand(op, 1, io)?);
    let mut flags = cpu.flags.to_rflags();
    let (result, after) = sum(a, b, flags.contains(D::FLAG));
    flags.set(D::FLAG, after.cf());
    cpu.flags = Flags::from_rflags(flags);
    cpu.set_reg(op.dst, op.dst_shift, result);
    Ok(())
}

trait AddCarry {
    const FLAG: x86::Rflags;
}
struct Adcx;
impl AddCarry for Adcx {
    const FLAG: x86::Rflags = x86::Rflags::CF;
}
struct Adox;
impl AddCarry for Adox {
    const FLAG: x86::Rflags = x86::Rflags::OF;
}

/// The frequent ones.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    let (form, size) = (form(instruction)?, size(instruction));
    match instruction.mnemonic() {
        Mnemonic::Add => pick::<Add>(form, size),
        Mnemonic::Adc => pick::<Adc>(form, size),
        Mnemonic::Sub => pick::<Sub>(form, size),
        Mnemonic::Sbb => pick::<Sbb>(form, size),
        Mnemonic::Cmp => pick::<Cmp>(form, size),
        Mnemonic::And => pick::<And>(form, size),
        Mnemonic::Or => pick::<Or>(form, size),
        Mnemonic::Xor => pick::<Xor>(form, size),
        Mnemonic::Test => pick::<Test>(form, size),
        Mnemonic::Inc => pick_one::<Inc>(form, size),
        Mnemonic::Dec => pick_one::<Dec>(form, size),
        Mnemonic::Neg => pick_one::<Neg>(form, size),
        Mnemonic::Not => pick_one::<Not>(form, size),
        _ => None,
    }
}

/// The rest.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    let memory = instruction.op0_kind() == iced_x86::OpKind::Memory;
    match instruction.mnemonic() {
        Mnemonic::Xadd if memory => by_width!(size, xadd::<Mem>),
        Mnemonic::Xadd => by_width!(size, xadd::<Reg>),
        Mnemonic::Cmpxchg if memory => by_width!(size, cmpxchg::<Mem>),
        Mnemonic::Cmpxchg => by_width!(size, cmpxchg::<Reg>),
        Mnemonic::Cmpxchg8b => Some(cmpxchg8b),
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        Mnemonic::Adcx => by_width!(size, add_with::<Adcx>),
        Mnemonic::Adox => by_width!(size, add_with::<Adox>),
        _ => None,
    }
}

/// The flags of comparing `a` with `b`.
pub(crate) fn compare<W: Width>(a: W, b: W) -> Flags {
    difference(a, b, false).1
}
