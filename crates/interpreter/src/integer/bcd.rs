//! Decimal arithmetic: AAA, AAD, AAM, AAS, DAA, DAS, and SALC, which came with them. None exists in 64-bit mode.
//!
//! Flags that the manual calls undefined are set by the result, AF and OF clear.

use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use engine::Platform;
use iced_x86::{Instruction, Mnemonic};
use x86::Exception;

fn al(cpu: &Cpu) -> u8 {
    cpu.reg(0, 0)
}

/// AAA and AAS: add or subtract 6 from AX's digit, and 1 from AH (SDM 2A AAA).
fn adjust_ascii<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let adjust = al(cpu) & 15 > 9 || cpu.flags.af();
    let mut ax: u16 = cpu.reg(0, 0);
    if adjust {
        ax = if SUBTRACT { ax.wrapping_sub(0x106) } else { ax.wrapping_add(0x106) };
    }
    ax &= 0xff0f;
    cpu.set_reg(0, 0, ax);
    cpu.flags = Flags::with(ax as u8, adjust, false, adjust);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let base = op.instruction().immediate8();
    let ah: u8 = cpu.reg(0, 8);
    let result = al(cpu).wrapping_add(ah.wrapping_mul(base));
    cpu.set_reg(0, 0, u16::from(result));
    cpu.flags = Flags::logic(result);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let base = op.instruction().immediate8();
    let al = al(cpu);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Exception::DE.into());
    };
    cpu.set_reg(0, 0, u16::from(high) << 8 | u16::from(low));
    cpu.flags = Flags::logic(low);
    Ok(())
}

/// DAA and DAS (SDM 2A DAA).
fn adjust_decimal<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let (old, old_cf) = (al(cpu), cpu.flags.cf());
    let low = old & 15 > 9 || cpu.flags.af();
    let high = old > 0x99 || old_cf;
    let amount = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let result = if SUBTRACT { old.wrapping_sub(amount) } else { old.wrapping_add(amount) };
    // DAS: a borrow out of the low digit's correction counts too.
    let cf = high || SUBTRACT && low && old < 6;
    cpu.set_reg(0, 0, result);
    cpu.flags = Flags::with(result, cf, false, low);
    Ok(())
}

/// SALC (undocumented before 2017): AL = CF ? FFh : 0.
fn salc(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    let value: u8 = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set_reg(0, 0, value);
    Ok(())
}

/// The handler of a decimal instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => adjust_ascii::<false>,
        Mnemonic::Aas => adjust_ascii::<true>,
        Mnemonic::Aad => aad,
        Mnemonic::Aam => aam,
        Mnemonic::Daa => adjust_decimal::<false>,
        Mnemonic::Das => adjust_decimal::<true>,
        Mnemonic::Salc => salc,
        _ => return None,
    })
}
