//! Flags that an instruction leaves undefined (SDM 2, "Flags Affected"), as data.
//!
//! What isn't here must match the host. Registers are never masked: an instruction whose result is undefined is not
//! generated (see [`super::exclude`]).

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Rflags;

const AF: Rflags = Rflags::AF;
const CF: Rflags = Rflags::CF;
const OF: Rflags = Rflags::OF;
const PF: Rflags = Rflags::PF;
const SF: Rflags = Rflags::SF;
const ZF: Rflags = Rflags::ZF;

struct Rule {
    mnemonics: &'static [Mnemonic],
    flags: Rflags,
    #[allow(dead_code, reason = "read by people")]
    reason: &'static str,
}

/// Undefined whatever the operands.
const ALWAYS: &[Rule] = &[
    Rule {
        mnemonics: &[Mnemonic::And, Mnemonic::Or, Mnemonic::Xor, Mnemonic::Test, Mnemonic::Andn],
        flags: AF,
        reason: "logic has no carry out of bit 3; ANDN also leaves PF undefined, below",
    },
    Rule { mnemonics: &[Mnemonic::Andn], flags: PF, reason: "ANDN: AF and PF undefined" },
    Rule {
        mnemonics: &[Mnemonic::Mul, Mnemonic::Imul],
        flags: SF.union(ZF).union(AF).union(PF),
        reason: "only CF and OF tell whether the high half is significant",
    },
    Rule {
        mnemonics: &[Mnemonic::Div, Mnemonic::Idiv],
        flags: Rflags::ARITHMETIC,
        reason: "division defines no flag",
    },
    Rule {
        mnemonics: &[Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc],
        flags: OF.union(SF).union(AF).union(PF),
        reason: "CF is the bit, ZF stays, the others are undefined",
    },
    Rule {
        mnemonics: &[Mnemonic::Bsf, Mnemonic::Bsr],
        flags: CF.union(OF).union(SF).union(AF).union(PF),
        reason: "only ZF is defined",
    },
    Rule {
        mnemonics: &[Mnemonic::Lzcnt, Mnemonic::Tzcnt],
        flags: OF.union(SF).union(AF).union(PF),
        reason: "only CF and ZF are defined",
    },
    Rule {
        mnemonics: &[Mnemonic::Blsi, Mnemonic::Blsr, Mnemonic::Blsmsk, Mnemonic::Bzhi],
        flags: AF.union(PF),
        reason: "BMI: AF and PF undefined",
    },
    Rule { mnemonics: &[Mnemonic::Bextr], flags: AF.union(SF).union(PF), reason: "BEXTR: as its page says" },
];

/// The flags that `instruction` may leave undefined.
#[must_use]
pub fn flags(instruction: &Instruction) -> Rflags {
    let mnemonic = instruction.mnemonic();
    let always = ALWAYS
        .iter()
        .filter(|rule| rule.mnemonics.contains(&mnemonic))
        .fold(Rflags::empty(), |all, rule| all | rule.flags);
    always | shifts(instruction)
}

/// Shifts and rotates: what is undefined depends on the count (SDM 2B RCL/RCR/ROL/ROR, SAL/SAR/SHL/SHR, SHLD, SHRD).
fn shifts(instruction: &Instruction) -> Rflags {
    let mnemonic = instruction.mnemonic();
    let double = matches!(mnemonic, Mnemonic::Shld | Mnemonic::Shrd);
    let shift = matches!(mnemonic, Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sal | Mnemonic::Sar);
    let rotate = matches!(mnemonic, Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
    if !(double || shift || rotate) {
        return Rflags::empty();
    }
    let bits = operand_bits(instruction);
    let last = instruction.op_count() - 1;
    let count = match instruction.op_kind(last) {
        OpKind::Immediate8 => Some(u32::from(instruction.immediate8()) & if bits == 64 { 63 } else { 31 }),
        _ => None, // CL
    };
    if count == Some(0) {
        return Rflags::empty();
    }
    let mut undefined = Rflags::empty();
    if count != Some(1) {
        undefined |= OF;
    }
    if shift || double {
        undefined |= AF;
    }
    // Counts of the operand's size and more occur with operands of 8 and 16 bits only.
    let beyond = bits < 32 && count.is_none_or(|count| count >= bits);
    if beyond && matches!(mnemonic, Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sal) {
        undefined |= CF;
    }
    if beyond && double {
        undefined |= Rflags::ARITHMETIC;
    }
    undefined
}

/// Width of the first operand in bits.
#[must_use]
pub fn operand_bits(instruction: &Instruction) -> u32 {
    let bytes = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    };
    bytes as u32 * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Register};

    #[test]
    fn a_shift_by_an_immediate_of_one_defines_overflow() {
        let one = Instruction::with2(Code::Shl_rm32_imm8, Register::EAX, 1).expect("encodable");
        assert_eq!(flags(&one), AF);
        let two = Instruction::with2(Code::Shl_rm32_imm8, Register::EAX, 2).expect("encodable");
        assert_eq!(flags(&two), AF | OF);
        let none = Instruction::with2(Code::Shl_rm32_imm8, Register::EAX, 32).expect("encodable");
        assert_eq!(flags(&none), Rflags::empty());
    }

    #[test]
    fn addition_leaves_nothing_undefined() {
        let add = Instruction::with2(Code::Add_rm32_r32, Register::EAX, Register::ECX).expect("encodable");
        assert_eq!(flags(&add), Rflags::empty());
    }
}
