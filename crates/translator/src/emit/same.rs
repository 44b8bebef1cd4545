//! Instructions that need no change at all: on registers that live in the host's of the same name.
//!
//! Their bytes are copied. That is right for many more than these, but the test has to be quicker than renaming.

use super::kinds::is_immediate;
use super::{Emitter, host, number};
use crate::asm::Reg;
use iced_x86::{Instruction, Mnemonic, OpKind};

impl Emitter<'_> {
    /// Whether an instruction that could be renamed has nothing to rename: no memory, no register without a host register of its own
    /// name, none of those implicitly.
    pub(super) fn is_same(&self, instruction: &Instruction) -> bool {
        // 32-bit code has shorter forms, and clears less of what it writes.
        self.request.mode.long
            && !instruction.has_lock_prefix()
            && !has_hidden_registers(instruction.mnemonic())
            && (0..instruction.op_count()).all(|n| match instruction.op_kind(n) {
                OpKind::Register => {
                    let register = instruction.op_register(n);
                    if register.is_gpr() {
                        host(number(register)) == Some(Reg(number(register) as u8))
                    } else {
                        register.is_vector_register() || register.is_k()
                    }
                }
                kind => is_immediate(kind),
            })
    }
}

/// Uses RCX or memory that its operands don't show.
fn has_hidden_registers(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Pcmpestri
            | Pcmpistri
            | Pcmpestri64
            | Vpcmpestri
            | Vpcmpistri
            | Vpcmpestri64
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Xlatb
    )
}
