//! Which instructions are run as themselves, and what they need.

use super::VectorLevel;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind};
use interpreter::native::Native;

/// Whether the instruction works on vector, mask or x87 registers.
pub(super) fn is_vector(instruction: &Instruction) -> bool {
    if instruction.mnemonic() == Mnemonic::Wait {
        return true;
    }
    let general =
        matches!(instruction.encoding(), EncodingKind::Legacy | EncodingKind::VEX) && is_integer(instruction);
    !general && Native::supports(instruction)
}

/// Integer instructions that need nothing but registers, flags and one explicit memory operand.
pub(super) fn is_integer(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    is_optional(instruction.mnemonic())
        || matches!(
            instruction.mnemonic(),
            Add | Adc
                | Sub
                | Sbb
                | And
                | Or
                | Xor
                | Cmp
                | Test
                | Mov
                | Movzx
                | Movsx
                | Movsxd
                | Inc
                | Dec
                | Neg
                | Not
                | Mul
                | Imul
                | Div
                | Idiv
                | Shl
                | Sal
                | Shr
                | Sar
                | Rol
                | Ror
                | Rcl
                | Rcr
                | Shld
                | Shrd
                | Xchg
                | Xadd
                | Cmpxchg
                | Cmpxchg8b
                | Cmpxchg16b
                | Bsf
                | Bsr
                | Bt
                | Bts
                | Btr
                | Btc
                | Bswap
                | Cbw
                | Cwde
                | Cdqe
                | Cwd
                | Cdq
                | Cqo
                | Clc
                | Stc
                | Cmc
                | Cld
                | Std
                | Lahf
                | Sahf
                | Seto
                | Setno
                | Setb
                | Setae
                | Sete
                | Setne
                | Setbe
                | Seta
                | Sets
                | Setns
                | Setp
                | Setnp
                | Setl
                | Setge
                | Setle
                | Setg
                | Cmovo
                | Cmovno
                | Cmovb
                | Cmovae
                | Cmove
                | Cmovne
                | Cmovbe
                | Cmova
                | Cmovs
                | Cmovns
                | Cmovp
                | Cmovnp
                | Cmovl
                | Cmovge
                | Cmovle
                | Cmovg
                | Movbe
                | Movnti
        )
}

/// Those of them that the reference runs natively: only what it supports on this host is emitted.
pub(super) fn is_optional(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Andn | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
            | Mulx
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Adcx
            | Adox
            | Crc32
    )
}

/// Instructions that do nothing that a guest could notice.
pub(super) fn is_hint(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Nop | Endbr64
            | Endbr32
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchw
            | Prefetch
            | Fnop
    ) && instruction.mnemonic() != Fnop
        || matches!(instruction.code(), Code::Reservednop_rm16_r16_0F1E | Code::Reservednop_rm32_r32_0F1E)
}

/// What of the guest's state an instruction needs to be enabled.
pub(super) fn level(instruction: &Instruction) -> VectorLevel {
    match instruction.encoding() {
        EncodingKind::EVEX => VectorLevel::Avx512,
        EncodingKind::VEX if uses_masks(instruction) => VectorLevel::Avx512,
        EncodingKind::VEX => VectorLevel::Avx,
        _ => VectorLevel::Sse,
    }
}

pub(super) fn uses_masks(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .any(|n| instruction.op_kind(n) == OpKind::Register && instruction.op_register(n).is_k())
}

/// Instructions that are vector instructions to the reference but have effects that registers don't show: environments and
/// images, or operands that aren't where iced says.
pub(super) fn keeps_more_than_registers(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Fldenv
            | Fnstenv
            | Fstenv
            | Frstor
            | Fnsave
            | Fsave
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Xsave
            | Xsave64
            | Xsaveopt
            | Xsaveopt64
            | Xsavec
            | Xsavec64
            | Xsaves
            | Xsaves64
            | Xrstor
            | Xrstor64
            | Xrstors
            | Xrstors64
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Xlatb
            | Movdir64b
            | Movdiri
    ) || instruction.is_vsib()
}

pub(super) fn implicit_rcx(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Cmpxchg8b | Cmpxchg16b | Pcmpestri | Pcmpistri | Vpcmpestri | Vpcmpistri | Pcmpestri64 | Vpcmpestri64
    )
}

pub(super) fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

/// An operand that is part of the instruction and needs nothing.
pub(super) fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}
