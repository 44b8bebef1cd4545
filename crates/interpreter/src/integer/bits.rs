//! Bit instructions: BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, BMI1, BMI2's PDEP, PEXT and BZHI, CRC32.
//!
//! Undefined flags are left as processors of today leave them where that is known, else clear.

use super::alu::set_zf;
use super::form::{by_wide_width, size};
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Rflags;

const BT: u8 = 0;
const BTS: u8 = 1;
const BTR: u8 = 2;
const BTC: u8 = 3;

fn changed<const KIND: u8, W: Width>(old: W, mask: W) -> W {
    match KIND {
        BTS => old | mask,
        BTR => old & !mask,
        BTC => old ^ mask,
        _ => old,
    }
}

fn bit_test_register<const KIND: u8, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let number = cpu.operand(op, 1, io)? % u64::from(W::BITS);
    let mask = W::from_u64(1 << number);
    let old: W = cpu.reg(op.dst, 0);
    if KIND != BT {
        cpu.set_reg(op.dst, 0, changed::<KIND, W>(old, mask));
    }
    cpu.flags.set_cf(old & mask == mask);
    Ok(())
}

/// With a register as bit offset the operand is a bit string that reaches both ways from the address (SDM 2A BT).
fn bit_test_memory<const KIND: u8, W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let mut offset = cpu.effective_address(op);
    let number = if op.instruction().op1_kind() == OpKind::Register {
        let bit = cpu.reg::<W>(op.src, 0).sign_extended() as i64;
        let unit = bit.div_euclid(i64::from(W::BITS));
        offset = offset.wrapping_add((unit as u64).wrapping_mul(W::BYTES)) & op.address_mask;
        bit.rem_euclid(i64::from(W::BITS)) as u64
    } else {
        op.imm % u64::from(W::BITS)
    };
    let mask = W::from_u64(1 << number);
    let old = if KIND == BT {
        cpu.read::<W>(op.segment, offset, io)?
    } else {
        let place = cpu.place_for_write(op.segment, offset, W::BYTES, io)?;
        cpu.modify(&place, op.locked, io, |old| changed::<KIND, W>(old, mask))
    };
    cpu.flags.set_cf(old & mask == mask);
    Ok(())
}

fn pick_bit_test<const KIND: u8>(instruction: &Instruction) -> Option<Handler> {
    macro_rules! pick {
        ($handler:ident) => {
            match size(instruction) {
                2 => Some($handler::<KIND, u16> as Handler),
                4 => Some($handler::<KIND, u32> as Handler),
                8 => Some($handler::<KIND, u64> as Handler),
                _ => None,
            }
        };
    }
    if instruction.op0_kind() == OpKind::Memory { pick!(bit_test_memory) } else { pick!(bit_test_register) }
}

/// BSF and BSR leave the destination alone when the source is zero (documented by AMD, done by all), not even
/// zero-extending it.
fn bsf<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    set_zf(cpu, source == 0);
    if source != 0 {
        cpu.set_reg(op.dst, 0, W::from_u64(source.trailing_zeros().into()));
    }
    Ok(())
}

fn bsr<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    set_zf(cpu, source == 0);
    if source != 0 {
        cpu.set_reg(op.dst, 0, W::from_u64(u64::from(63 - source.leading_zeros())));
    }
    Ok(())
}

/// Stores a bit count with CF = source was zero, ZF = count is zero.
fn count<W: Width>(cpu: &mut Cpu, op: &Op, count: u32, source: u64) {
    let mut flags = cpu.flags.to_rflags();
    flags.set(Rflags::CF, source == 0);
    flags.set(Rflags::ZF, count == 0);
    cpu.flags = Flags::from_rflags(flags);
    cpu.set_reg(op.dst, 0, W::from_u64(count.into()));
}

fn tzcnt<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    count::<W>(cpu, op, source.trailing_zeros().min(W::BITS), source);
    Ok(())
}

fn lzcnt<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    count::<W>(cpu, op, source.leading_zeros() - (64 - W::BITS), source);
    Ok(())
}

fn popcnt<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    let flags = if source == 0 { Rflags::ZF } else { Rflags::empty() };
    cpu.flags = Flags::from_rflags(flags);
    cpu.set_reg(op.dst, 0, W::from_u64(source.count_ones().into()));
    Ok(())
}

/// SF and ZF by the result, CF given, OF clear; AF (clear) and PF (by the result) are undefined.
fn store<W: Width>(cpu: &mut Cpu, register: u8, result: W, cf: bool) {
    cpu.flags = Flags::with(result, cf, false, false);
    cpu.set_reg(register, 0, result);
}

fn andn<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let b = W::from_u64(cpu.operand(op, 2, io)?);
    let a: W = cpu.reg(op.src, 0);
    store(cpu, op.dst, !a & b, false);
    Ok(())
}

fn bextr<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    let control = cpu.operand(op, 2, io)?;
    let (start, len) = ((control & 0xff) as u32, (control >> 8 & 0xff) as u32);
    let shifted = if start < W::BITS { source >> start } else { 0 };
    let result = if len < 64 { shifted & ((1 << len) - 1) } else { shifted };
    store(cpu, op.dst, W::from_u64(result), false);
    Ok(())
}

fn blsi<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = W::from_u64(cpu.operand(op, 1, io)?);
    store(cpu, op.dst, source & W::from_u64(0).sub(source), source.to_u64() != 0);
    Ok(())
}

fn blsmsk<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = W::from_u64(cpu.operand(op, 1, io)?);
    store(cpu, op.dst, source ^ source.sub(W::from_u64(1)), source.to_u64() == 0);
    Ok(())
}

fn blsr<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = W::from_u64(cpu.operand(op, 1, io)?);
    store(cpu, op.dst, source & source.sub(W::from_u64(1)), source.to_u64() == 0);
    Ok(())
}

fn bzhi<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let source = cpu.operand(op, 1, io)?;
    let index = cpu.operand(op, 2, io)? as u8;
    let all = u32::from(index) >= W::BITS;
    let result = if all { source } else { source & ((1 << index) - 1) };
    store(cpu, op.dst, W::from_u64(result), all);
    Ok(())
}

fn pdep<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let mut mask = cpu.operand(op, 2, io)?;
    let mut source = cpu.reg::<W>(op.src, 0).to_u64();
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= lowest;
        }
        source >>= 1;
        mask ^= lowest;
    }
    cpu.set_reg(op.dst, 0, W::from_u64(result));
    Ok(())
}

fn pext<W: Width>(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let mut mask = cpu.operand(op, 2, io)?;
    let source = cpu.reg::<W>(op.src, 0).to_u64();
    let (mut result, mut place) = (0, 1u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= place;
        }
        place = place.wrapping_shl(1);
        mask ^= lowest;
    }
    cpu.set_reg(op.dst, 0, W::from_u64(result));
    Ok(())
}

/// CRC32 with the Castagnoli polynomial, reflected (SDM 2A CRC32).
fn crc32(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = crate::op::operand_size(op.instruction(), 1);
    let source = cpu.operand(op, 1, io)?;
    let mut crc = cpu.reg::<u32>(op.dst, 0);
    for byte in &source.to_le_bytes()[..bytes] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cpu.set_reg(op.dst, 0, crc);
    Ok(())
}

/// The handler of a bit instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    let size = size(instruction);
    match instruction.mnemonic() {
        Mnemonic::Bt => pick_bit_test::<BT>(instruction),
        Mnemonic::Bts => pick_bit_test::<BTS>(instruction),
        Mnemonic::Btr => pick_bit_test::<BTR>(instruction),
        Mnemonic::Btc => pick_bit_test::<BTC>(instruction),
        Mnemonic::Bsf => by_wide_width!(size, bsf),
        Mnemonic::Bsr => by_wide_width!(size, bsr),
        Mnemonic::Tzcnt => by_wide_width!(size, tzcnt),
        Mnemonic::Lzcnt => by_wide_width!(size, lzcnt),
        Mnemonic::Popcnt => by_wide_width!(size, popcnt),
        Mnemonic::Andn => by_wide_width!(size, andn),
        Mnemonic::Bextr => by_wide_width!(size, bextr),
        Mnemonic::Blsi => by_wide_width!(size, blsi),
        Mnemonic::Blsmsk => by_wide_width!(size, blsmsk),
        Mnemonic::Blsr => by_wide_width!(size, blsr),
        Mnemonic::Bzhi => by_wide_width!(size, bzhi),
        Mnemonic::Pdep => by_wide_width!(size, pdep),
        Mnemonic::Pext => by_wide_width!(size, pext),
        Mnemonic::Crc32 => Some(crc32),
        _ => None,
    }
}
