//! What AMD's processors do otherwise than Intel's where the interpreter does as Intel's, as data.
//!
//! Asked only on AMD's hosts. Whole instructions are left out by [`differs`] when cases are made; what differs only in where a
//! fault leaves things is left out of the comparison by [`forgives`].

use super::case::{CODE, CODE_LEN, FS_BASE, GS_BASE, Outcome};
use super::generate::Case;
use super::images::Image;
use super::native::cpuid;
use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic as M, OpKind, Register};
use std::sync::OnceLock;

/// Whether the host's processor is AMD's, or made after it.
#[must_use]
pub fn is_amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    // "Auth", "Hygo"
    *AMD.get_or_init(|| matches!(cpuid(0, 0).ebx, 0x6874_7541 | 0x6f67_7948))
}

/// Whether AMD's processors do something else with the instruction that `bytes` are.
#[must_use]
pub fn differs(instruction: &Instruction, bytes: &[u8]) -> bool {
    // Near branches with an operand size of 16 bits, UD0 without operand: iced knows both decoders.
    let theirs = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::AMD).decode();
    if theirs != *instruction || theirs.len() != instruction.len() {
        return true;
    }
    match instruction.mnemonic() {
        // A virtual host's hypervisor gives it back as a fault.
        M::Int1 => true,
        // With REX.B it is XCHG of R8 and the accumulator.
        M::Pause => prefixes(bytes).iter().any(|byte| byte & 0xf1 == 0x41),
        // A 16-bit operand is loaded as 32 bits.
        M::Movsxd => instruction.op0_register().size() == 2,
        // Their length shows only there.
        M::Ud0 | M::Ud1 => crosses_page(instruction.ip(), bytes.len()),
        // PREFETCHW of a register is #UD.
        M::Reservednop => matches!(
            instruction.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        ),
        // Seen on family 19H: right after a PUSH it may read RSP as it was before.
        _ if instruction.encoding() == EncodingKind::EVEX
            && (0..instruction.op_count())
                .any(|i| instruction.op_register(i).full_register() == Register::RSP) =>
        {
            true
        }
        // With 32-bit addresses and a count of zero: whether the registers' upper halves are cleared.
        _ if instruction.has_rep_prefix() || instruction.has_repne_prefix() => {
            instruction.is_string_instruction() && prefixes(bytes).contains(&0x67)
        }
        _ => false,
    }
}

/// The prefixes that `bytes` start with.
fn prefixes(bytes: &[u8]) -> &[u8] {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let end = bytes.iter().position(|byte| !is_prefix(byte)).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Whether AMD's processors may see something else in `bytes` than an undefined instruction of that length: they let pass
/// bits of VEX and EVEX that are reserved, and the length shows where the page ends. What 64-bit code has lost is as long as it was.
#[must_use]
pub fn may_define(ip: u64, bytes: &[u8]) -> bool {
    const LONGEST: usize = 15;
    match bytes.get(prefixes(bytes).len()) {
        Some(0x62 | 0xc4 | 0xc5) => true,
        // Immediate operands: arithmetic of bytes, far CALL and JMP, AAM and AAD.
        Some(0x82 | 0x9a | 0xd4 | 0xd5 | 0xea) => crosses_page(ip, LONGEST),
        _ => crosses_page(ip, bytes.len()),
    }
}

/// Whether `what` need not be the same after a fault of AMD's host.
#[must_use]
pub fn forgives(case: &Case, host: &Outcome, engine: &Outcome, what: &str) -> bool {
    let Some(instruction) = stopped_at(case, host.rip) else { return false };
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    if host.vector == 1 {
        // RF after a trap within a repeated instruction.
        return repeats && what == "rflags";
    }
    if !matches!(host.vector, 12 | 13 | 14 | 17) {
        return false;
    }
    let pair = (host.vector.min(engine.vector), host.vector.max(engine.vector));
    if matches!(pair, (12 | 13, 17)) && host.rip == engine.rip && ends_outside(&instruction, host) {
        // Which is first, of a misaligned operand that isn't canonical at its end.
        return matches!(what, "vector" | "error code" | "cr2");
    }
    match instruction.mnemonic() {
        // Which of two operands faults first, and the flags that the iteration before has left.
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if instruction.op0_kind() != OpKind::Register => {
            let (theirs, ours) = (culprits(&instruction, host), culprits(&instruction, engine));
            let same = theirs == ours && theirs.count_ones() == 1;
            matches!(what, "vector" | "error code" | "cr2") && !same || repeats && what == "rflags"
        }
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => repeats && what == "rflags",
        // Whether what lies above the vector is cleared yet.
        _ if instruction.is_vsib() && instruction.op0_register().is_vector_register() => {
            let (target, index) = (instruction.op0_register(), instruction.memory_index());
            let len = target.size().max(index.size());
            let lower = |outcome: &Outcome| outcome.vectors.zmm[target.number()][..len].to_vec();
            what == format!("zmm{}", target.number()) && lower(host) == lower(engine)
        }
        _ => false,
    }
}

/// Address and size of each memory operand, with the registers as an outcome has them.
fn memory_operands(instruction: &Instruction, outcome: &Outcome) -> Vec<(u64, u64)> {
    let register = |register: Register, _: usize, _: usize| match register {
        Register::FS => Some(FS_BASE),
        Register::GS => Some(GS_BASE),
        _ if register.is_segment_register() => Some(0),
        _ if register.is_gpr() => {
            let value = outcome.gpr[register.full_register().number()];
            Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
        }
        _ => None,
    };
    let size = instruction.memory_size().size() as u64;
    (0..instruction.op_count())
        .filter_map(|operand| instruction.virtual_address(operand, 0, register))
        .map(|address| (address, size.max(1)))
        .collect()
}

fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Whether a memory operand begins in one half of the canonical addresses and ends outside. Operands that aren't written out, as a push's,
/// may.
fn ends_outside(instruction: &Instruction, outcome: &Outcome) -> bool {
    let operands = memory_operands(instruction, outcome);
    let crosses = |&(at, size): &(u64, u64)| is_canonical(at) && !is_canonical(at.wrapping_add(size - 1));
    operands.is_empty() || operands.iter().any(crosses)
}

/// Which memory operands an outcome's fault may be about, one bit each.
fn culprits(instruction: &Instruction, outcome: &Outcome) -> u32 {
    let may = |(at, size): (u64, u64)| match outcome.vector {
        14 => outcome.cr2.wrapping_sub(at) < size,
        17 => !at.is_multiple_of(size),
        _ => !is_canonical(at) || !is_canonical(at.wrapping_add(size - 1)),
    };
    let operands = memory_operands(instruction, outcome);
    operands.into_iter().enumerate().fold(0, |mask, (index, place)| mask | u32::from(may(place)) << index)
}

/// Whether `what` need not be the same after a page fault of an image's operand: which of its pages is looked at first, on processors
/// that this hasn't been seen of, and for XRSTOR on all.
#[must_use]
pub fn is_open(case: &Case, host: &Outcome, what: &str) -> bool {
    let Some(instruction) = stopped_at(case, host.rip).filter(|_| host.vector == 14) else { return false };
    let seen = is_amd();
    match super::images::kind(&instruction) {
        Some(Image::Restore) => matches!(what, "cr2" | "error code"),
        Some(Image::Save | Image::Pointers) => !seen && matches!(what, "cr2" | "error code"),
        None => false,
    }
}

/// Whether an instruction goes on beyond the code page.
#[must_use]
pub fn crosses_page(ip: u64, len: usize) -> bool {
    ip + len as u64 > CODE + CODE_LEN as u64
}

/// The instruction at `rip`.
fn stopped_at(case: &Case, rip: u64) -> Option<Instruction> {
    let &(ip, len, _) = case.instructions.iter().find(|&&(ip, ..)| ip == rip)?;
    let at = (ip - case.initial.rip) as usize;
    Some(Decoder::with_ip(64, &case.initial.code[at..at + len], ip, DecoderOptions::NONE).decode())
}
