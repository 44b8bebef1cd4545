//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD and BMI2's RORX, SARX, SHLX, SHRX.
//!
//! Counts are taken modulo 32, or 64 for 64-bit operands (SDM 2B SAL). Where the manual leaves OF undefined (counts other than
//! 1), it is computed by the rule for count 1, as processors do.

use super::form::{Cl, Dst, Form, Imm, Mem, Reg, Src, by_wide_width, by_width, form, size};
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic, OpKind};

trait Shift {
    /// `count` is already masked and not zero.
    fn apply<W: Width>(flags: Flags, a: W, count: u32) -> (W, Flags);
}

fn count_mask<W: Width>() -> u32 {
    if W::BITS == 64 { 63 } else { 31 }
}

fn bit<W: Width>(value: W, number: u32) -> bool {
    value.to_u64() >> number & 1 != 0
}

fn top<W: Width>(value: W) -> bool {
    bit(value, W::BITS - 1)
}

macro_rules! shift {
    ($name:ident, |$flags:ident, $a:ident, $count:ident| $body:block) => {
        struct $name;
        impl Shift for $name {
            #[inline]
            fn apply<W: Width>($flags: Flags, $a: W, $count: u32) -> (W, Flags) $body
        }
    };
}

shift!(Shl, |_flags, a, count| {
    let (value, bits) = (a.to_u64(), W::BITS);
    let result = W::from_u64(if count < bits { value << count } else { 0 });
    let cf = count <= bits && value >> (bits - count) & 1 != 0;
    (result, Flags::with(result, cf, top(result) != cf, false))
});

shift!(Shr, |_flags, a, count| {
    let (value, bits) = (a.to_u64(), W::BITS);
    let result = W::from_u64(if count < bits { value >> count } else { 0 });
    let cf = count <= bits && value >> (count - 1) & 1 != 0;
    let of = top(result) != bit(result, W::BITS - 2);
    (result, Flags::with(result, cf, if count == 1 { top(a) } else { of }, false))
});

shift!(Sar, |_flags, a, count| {
    let value = a.sign_extended() as i64;
    let result = W::from_u64((value >> count) as u64);
    let cf = value >> (count - 1) & 1 != 0;
    (result, Flags::with(result, cf, false, false))
});

shift!(Rol, |flags, a, count| {
    let (value, bits) = (a.to_u64(), W::BITS);
    let turn = count % bits;
    let result = if turn == 0 { a } else { W::from_u64(value << turn | value >> (bits - turn)) };
    let cf = bit(result, 0);
    (result, flags.with_cf_of(cf, top(result) != cf))
});

shift!(Ror, |flags, a, count| {
    let (value, bits) = (a.to_u64(), W::BITS);
    let turn = count % bits;
    let result = if turn == 0 { a } else { W::from_u64(value >> turn | value << (bits - turn)) };
    let cf = top(result);
    (result, flags.with_cf_of(cf, cf != bit(result, bits - 2)))
});

shift!(Rcl, |flags, a, count| {
    let bits = W::BITS;
    let turn = count % (bits + 1);
    if turn == 0 {
        return (a, flags);
    }
    let wide = u128::from(flags.cf()) << bits | u128::from(a.to_u64());
    let turned = wide << turn | wide >> (bits + 1 - turn);
    let result = W::from_u64(turned as u64);
    let cf = turned >> bits & 1 != 0;
    (result, flags.with_cf_of(cf, top(result) != cf))
});

shift!(Rcr, |flags, a, count| {
    let bits = W::BITS;
    let turn = count % (bits + 1);
    if turn == 0 {
        return (a, flags);
    }
    let wide = u128::from(flags.cf()) << bits | u128::from(a.to_u64());
    let turned = wide >> turn | wide << (bits + 1 - turn);
    let result = W::from_u64(turned as u64);
    let cf = turned >> bits & 1 != 0;
    (result, flags.with_cf_of(cf, top(result) != bit(result, bits - 2)))
});

/// A count of zero changes nothing, but a memory operand is still accessed, and a 32-bit register still zero-extended.
fn shift<O: Shift, D: Dst, S: Src, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let count = u32::from(S::get::<u8>(cpu, op, io)?) & count_mask::<W>();
    D::update(cpu, op, io, |flags, a: W| if count == 0 { (a, flags) } else { O::apply(flags, a, count) })
}

fn pick<O: Shift>(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    let memory = instruction.op0_kind() == OpKind::Memory;
    let by_cl = instruction.op1_kind() == OpKind::Register;
    match (memory, by_cl) {
        (false, false) => by_width!(size, shift::<O, Reg, Imm>),
        (false, true) => by_width!(size, shift::<O, Reg, Cl>),
        (true, false) => by_width!(size, shift::<O, Mem, Imm>),
        (true, true) => by_width!(size, shift::<O, Mem, Cl>),
    }
}

trait Double {
    fn apply(bits: u32, a: u64, b: u64, count: u32) -> (u64, bool);
}
struct Shld;
struct Shrd;

// For 16-bit operands a count above 16 is undefined (SDM 2B SHLD); shifting a:b:a is what processors do.
impl Double for Shld {
    fn apply(bits: u32, a: u64, b: u64, count: u32) -> (u64, bool) {
        if bits == 64 {
            return (a << count | b >> (64 - count), a >> (64 - count) & 1 != 0);
        }
        let wide = u128::from(a) << (2 * bits) | u128::from(b) << bits | u128::from(a);
        let shifted = wide << count;
        ((shifted >> (2 * bits)) as u64, shifted >> (3 * bits) & 1 != 0)
    }
}

impl Double for Shrd {
    fn apply(bits: u32, a: u64, b: u64, count: u32) -> (u64, bool) {
        if bits == 64 {
            return (a >> count | b << (64 - count), a >> (count - 1) & 1 != 0);
        }
        let wide = u128::from(a) << (2 * bits) | u128::from(b) << bits | u128::from(a);
        ((wide >> count) as u64, wide >> (count - 1) & 1 != 0)
    }
}

fn double<O: Double, D: Dst, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let count =
        if instruction.op2_kind() == OpKind::Register { cpu.regs[1] as u8 } else { instruction.immediate8() };
    let count = u32::from(count) & count_mask::<W>();
    let b: W = cpu.reg(op.src, op.src_shift);
    D::update(cpu, op, io, |flags, a: W| {
        if count == 0 {
            return (a, flags);
        }
        let (result, cf) = O::apply(W::BITS, a.to_u64(), b.to_u64(), count);
        let result = W::from_u64(result);
        (result, Flags::with(result, cf, top(result) != top(a), false))
    })
}

trait Flagless {
    fn apply<W: Width>(a: W, count: u32) -> u64;
}
struct Rorx;
struct Sarx;
struct Shlx;
struct Shrx;
impl Flagless for Rorx {
    fn apply<W: Width>(a: W, count: u32) -> u64 {
        if count == 0 { a.to_u64() } else { a.to_u64() >> count | a.to_u64() << (W::BITS - count) }
    }
}
impl Flagless for Sarx {
    fn apply<W: Width>(a: W, count: u32) -> u64 {
        (a.sign_extended() as i64 >> count) as u64
    }
}
impl Flagless for Shlx {
    fn apply<W: Width>(a: W, count: u32) -> u64 {
        a.to_u64() << count
    }
}
impl Flagless for Shrx {
    fn apply<W: Width>(a: W, count: u32) -> u64 {
        a.to_u64() >> count
    }
}

fn flagless<O: Flagless, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let a = W::from_u64(cpu.operand(op, 1, io)?);
    let count = cpu.operand(op, 2, io)? as u32 & count_mask::<W>();
    cpu.set_reg(op.dst, 0, W::from_u64(O::apply(a, count)));
    Ok(())
}

fn pick_double<O: Double>(instruction: &Instruction) -> Option<Handler> {
    match form(instruction)? {
        Form::RegReg => by_wide_width!(size(instruction), double::<O, Reg>),
        Form::MemReg => by_wide_width!(size(instruction), double::<O, Mem>),
        _ => None,
    }
}

/// The frequent ones.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => pick::<Shl>(instruction),
        Mnemonic::Shr => pick::<Shr>(instruction),
        Mnemonic::Sar => pick::<Sar>(instruction),
        Mnemonic::Rol => pick::<Rol>(instruction),
        Mnemonic::Ror => pick::<Ror>(instruction),
        Mnemonic::Rcl => pick::<Rcl>(instruction),
        Mnemonic::Rcr => pick::<Rcr>(instruction),
        _ => None,
    }
}

/// The rest.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    match instruction.mnemonic() {
        Mnemonic::Shld => pick_double::<Shld>(instruction),
        Mnemonic::Shrd => pick_double::<Shrd>(instruction),
        Mnemonic::Rorx => by_wide_width!(size, flagless::<Rorx>),
        Mnemonic::Sarx => by_wide_width!(size, flagless::<Sarx>),
        Mnemonic::Shlx => by_wide_width!(size, flagless::<Shlx>),
        Mnemonic::Shrx => by_wide_width!(size, flagless::<Shrx>),
        _ => None,
    }
}
