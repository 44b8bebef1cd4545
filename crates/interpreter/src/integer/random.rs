//! RDRAND and RDSEED: the host's own (SDM 2B RDRAND). CF says whether there was a number; the other flags are cleared.

use super::form::{by_wide_width, size};
use super::raw;
use crate::cpu::{Cpu, Step};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::width::Width;
use engine::Platform;
use iced_x86::{Instruction, Mnemonic};
use x86::Rflags;

fn rdrand<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    store::<W>(cpu, op, raw::rdrand());
    Ok(())
}

fn rdseed<W: Width>(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    store::<W>(cpu, op, raw::rdseed());
    Ok(())
}

fn store<W: Width>(cpu: &mut Cpu, op: &Op, number: Option<u64>) {
    cpu.flags = Flags::from_rflags(if number.is_some() { Rflags::CF } else { Rflags::empty() });
    cpu.set_reg(op.dst, 0, W::from_u64(number.unwrap_or(0)));
}

/// The handler of a random-number instruction.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Rdrand => by_wide_width!(size(instruction), rdrand),
        Mnemonic::Rdseed => by_wide_width!(size(instruction), rdseed),
        _ => None,
    }
}
