//! Guest registers that live in the context as memory operands: `add rax,gs:[guest.r13]` instead of a load and an addition.
//!
//! For instructions without a memory operand of their own. Where the register is in the wrong place for that, the encoding with both
//! operands exchanged may have it in the right one. What a 32-bit write would leave of the upper half rules some out.

use super::{host, number};
use crate::context::gpr;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

/// The instruction with one register that has no host register as a memory operand, and that register. `written`: those that it writes.
pub(super) fn in_place(instruction: &Instruction, written: &[bool; 16]) -> Option<(Instruction, usize)> {
    use Mnemonic::*;
    if matches!(instruction.mnemonic(), Xchg | Xadd | Cmpxchg | Bt | Bts | Btr | Btc) {
        return None;
    }
    operand(instruction, written).or_else(|| operand(&exchanged(instruction)?, written))
}

/// The same with the operand where memory may be.
fn operand(instruction: &Instruction, written: &[bool; 16]) -> Option<(Instruction, usize)> {
    let info = instruction.op_code();
    let at = (0..instruction.op_count()).find(|&n| {
        use OpCodeOperandKind::*;
        instruction.op_kind(n) == OpKind::Register
            && matches!(info.op_kind(n), r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem)
    })?;
    let register = instruction.op_register(at);
    let guest = number(register);
    if host(guest).is_some() || written[guest] && register.size() == 4 {
        return None;
    }
    // Elsewhere in the instruction it would have to be a register.
    let elsewhere = (0..instruction.op_count()).any(|n| {
        let other = instruction.op_kind(n) == OpKind::Register && n != at;
        other && instruction.op_register(n).is_gpr() && number(instruction.op_register(n)) == guest
    });
    if elsewhere {
        return None;
    }
    let mut own = *instruction;
    own.set_op_kind(at, OpKind::Memory);
    own.set_segment_prefix(Register::GS);
    own.set_memory_base(Register::None);
    own.set_memory_index(Register::None);
    own.set_memory_displacement64(i64::from(gpr(guest)) as u64);
    own.set_memory_displ_size(8);
    Some((own, guest))
}

/// The instruction in the encoding that has its operands the other way round.
fn exchanged(instruction: &Instruction) -> Option<Instruction> {
    let registers = instruction.op_count() == 2
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register;
    if !registers {
        return None;
    }
    let mut own = *instruction;
    if instruction.mnemonic() == Mnemonic::Test {
        own.set_op0_register(instruction.op1_register());
        own.set_op1_register(instruction.op0_register());
        return Some(own);
    }
    let (a, b) = PAIRS.iter().find(|(a, b)| [*a, *b].contains(&instruction.code()))?;
    own.set_code(if instruction.code() == *a { *b } else { *a });
    Some(own)
}

macro_rules! pairs {
    ($($to:ident $from:ident)*) => { &[$((Code::$to, Code::$from)),*] };
}

/// Encodings of the same operation to and from where memory may be.
static PAIRS: &[(Code, Code)] = pairs! {
    Mov_rm8_r8 Mov_r8_rm8 Mov_rm16_r16 Mov_r16_rm16 Mov_rm32_r32 Mov_r32_rm32 Mov_rm64_r64 Mov_r64_rm64
    Add_rm8_r8 Add_r8_rm8 Add_rm16_r16 Add_r16_rm16 Add_rm32_r32 Add_r32_rm32 Add_rm64_r64 Add_r64_rm64
    Or_rm8_r8 Or_r8_rm8 Or_rm16_r16 Or_r16_rm16 Or_rm32_r32 Or_r32_rm32 Or_rm64_r64 Or_r64_rm64
    Adc_rm8_r8 Adc_r8_rm8 Adc_rm16_r16 Adc_r16_rm16 Adc_rm32_r32 Adc_r32_rm32 Adc_rm64_r64 Adc_r64_rm64
    Sbb_rm8_r8 Sbb_r8_rm8 Sbb_rm16_r16 Sbb_r16_rm16 Sbb_rm32_r32 Sbb_r32_rm32 Sbb_rm64_r64 Sbb_r64_rm64
    And_rm8_r8 And_r8_rm8 And_rm16_r16 And_r16_rm16 And_rm32_r32 And_r32_rm32 And_rm64_r64 And_r64_rm64
    Sub_rm8_r8 Sub_r8_rm8 Sub_rm16_r16 Sub_r16_rm16 Sub_rm32_r32 Sub_r32_rm32 Sub_rm64_r64 Sub_r64_rm64
    Xor_rm8_r8 Xor_r8_rm8 Xor_rm16_r16 Xor_r16_rm16 Xor_rm32_r32 Xor_r32_rm32 Xor_rm64_r64 Xor_r64_rm64
    Cmp_rm8_r8 Cmp_r8_rm8 Cmp_rm16_r16 Cmp_r16_rm16 Cmp_rm32_r32 Cmp_r32_rm32 Cmp_rm64_r64 Cmp_r64_rm64
};
