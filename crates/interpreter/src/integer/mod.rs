//! Integer instructions, by family. Semantics are written out, generic over operand width and kind.

mod alu;
mod bcd;
mod bits;
mod branch;
mod form;
mod moves;
mod multiply;
mod random;
mod raw;
mod shifts;

use crate::op::Handler;
pub(crate) use alu::compare;
use iced_x86::Instruction;
pub(crate) use moves::condition;

/// Specialised handlers for what programs do most. They don't look at `Op::detail`.
pub(crate) fn hot_handler(instruction: &Instruction) -> Option<Handler> {
    moves::hot_handler(instruction)
        .or_else(|| alu::hot_handler(instruction))
        .or_else(|| branch::hot_handler(instruction))
        .or_else(|| shifts::hot_handler(instruction))
        .or_else(|| multiply::hot_handler(instruction))
}

/// All other integer instructions.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    moves::handler(instruction)
        .or_else(|| alu::handler(instruction))
        .or_else(|| branch::handler(instruction))
        .or_else(|| shifts::handler(instruction))
        .or_else(|| multiply::handler(instruction))
        .or_else(|| bits::handler(instruction))
        .or_else(|| bcd::handler(instruction))
        .or_else(|| random::handler(instruction))
}
