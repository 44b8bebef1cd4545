//! Bytes of one instruction of a given encoding, with random operands.

use super::{Builder, Encoding, LONGEST, Shape};
use crate::oracle::random::Random;
use iced_x86::{
    Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, OpCodeInfo, OpCodeTableKind,
};

impl Builder {
    /// Bytes that decode to the encoding at `ip`; in a mutated case bytes that decode to anything.
    pub(super) fn encode(&mut self, encoding: &Encoding, ip: u64) -> Option<([u8; LONGEST], Instruction)> {
        for attempt in 0..24 {
            let mut bytes = draw(&mut self.random, encoding, attempt > 8);
            if self.shape == Shape::Mutated {
                mutate(&mut self.random, &mut bytes);
            }
            let mut fixed = [0; LONGEST];
            let len = bytes.len().min(LONGEST);
            fixed[..len].copy_from_slice(&bytes[..len]);
            let mut decoder = Decoder::with_ip(64, &fixed, ip, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let wanted = instruction.code() == encoding.info.code();
            // What the decoder calls invalid is run as it is: the host must say #UD, and so must the engine. But it
            // must be invalid by its opcode, not for want of bytes.
            if wanted || self.shape == Shape::Mutated && !instruction.is_invalid() {
                return Some((fixed, instruction));
            }
            if self.shape == Shape::Mutated && attempt > 8 && !is_risky(&fixed) {
                return Some((fixed, instruction));
            }
        }
        None
    }
}

/// Whether bytes that the decoder calls invalid hold an opcode that enters a kernel or a hypervisor, wherever it is.
fn is_risky(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| {
        matches!(
            pair,
            // SYSCALL, SYSENTER, the VMX and SVM group, GETSEC, INT 80H, RSM, VMREAD and VMWRITE
            [0x0f, 0x05 | 0x34 | 0x01 | 0x37 | 0xaa | 0x78 | 0x79 | 0x04 | 0x0a | 0xc7 | 0xae] | [0xcd, _]
        )
    })
}

/// Changes a byte or two, or puts a prefix in front.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(6) {
        0 => bytes.insert(0, 0xf0),
        1 => bytes.insert(0, random.pick(&[0x66, 0xf2, 0xf3, 0x67, 0x2e, 0x36, 0x48, 0x4f])),
        2 => {
            let count = 8 + random.below(7) as usize;
            let prefix = random.pick(&[0x66, 0x2e, 0xf3]);
            bytes.splice(0..0, std::iter::repeat_n(prefix, count));
        }
        _ => {
            for _ in 0..1 + random.below(2) {
                let at = random.below(5.min(bytes.len() as u64)) as usize;
                bytes[at] = random.bits() as u8;
            }
        }
    }
}

/// Draws the bytes. `tame` leaves out what some encodings don't admit.
pub(crate) fn draw(random: &mut Random, encoding: &Encoding, tame: bool) -> Vec<u8> {
    let info = encoding.info;
    let mut bytes = Vec::with_capacity(32);
    let opcode = info.op_code();
    match info.encoding() {
        EncodingKind::VEX => vex(random, info, tame, &mut bytes),
        EncodingKind::EVEX => evex(random, info, tame, &mut bytes),
        _ => legacy(random, info, tame, &mut bytes),
    }
    if info.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    let register = if encoding.opcode_register { random.below(8) as u8 } else { 0 };
    bytes.push(opcode as u8 | register);
    let reg = if info.is_group() { info.group_index() as u8 } else { random.below(8) as u8 };
    let (mode, rm) = if info.is_rm_group() {
        (3, info.rm_group_index() as u8)
    } else {
        let mode = if random.percent(45) { 3 } else { random.below(3) as u8 };
        (mode, random.below(8) as u8)
    };
    bytes.push(mode << 6 | reg << 3 | rm);
    let fill = random.percent(15).then(|| random.byte());
    while bytes.len() < 24 {
        bytes.push(fill.unwrap_or_else(|| random.byte()));
    }
    bytes
}

fn legacy(random: &mut Random, info: &OpCodeInfo, tame: bool, bytes: &mut Vec<u8>) {
    if !tame && random.percent(5) {
        bytes.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x65]));
    }
    match info.address_size() {
        32 => bytes.push(0x67),
        0 if !tame && random.percent(5) => bytes.push(0x67),
        _ => {}
    }
    if info.can_use_lock_prefix() && random.percent(30) {
        bytes.push(0xf0);
    }
    if info.can_use_rep_prefix() && random.percent(40) {
        bytes.push(0xf3);
    } else if info.can_use_repne_prefix() && random.percent(40) {
        bytes.push(0xf2);
    }
    let mandatory = info.mandatory_prefix();
    match info.operand_size() {
        16 => bytes.push(0x66),
        0 if mandatory == MandatoryPrefix::None && !tame && random.percent(4) => bytes.push(0x66),
        _ => {}
    }
    match mandatory {
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 => bytes.push(0xf3),
        MandatoryPrefix::PF2 => bytes.push(0xf2),
        _ => {}
    }
    let mut rex = 0;
    if info.operand_size() == 64 && !(info.default_op_size64() && random.percent(50)) || info.w() == 1 {
        rex = 0x48;
    }
    if random.percent(50) {
        rex |= 0x40 | random.below(8) as u8;
    }
    if rex == 0 && random.percent(10) {
        rex = 0x40;
    }
    if rex != 0 {
        bytes.push(rex);
    }
    match info.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
}

fn mandatory_bits(info: &OpCodeInfo) -> u8 {
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    }
}

fn map(info: &OpCodeInfo) -> u8 {
    match info.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        OpCodeTableKind::MAP5 => 5,
        OpCodeTableKind::MAP6 => 6,
        _ => 0,
    }
}

fn wide(random: &mut Random, info: &OpCodeInfo) -> u8 {
    if info.is_wig() || info.is_wig32() { random.below(2) as u8 } else { info.w() as u8 }
}

fn vex(random: &mut Random, info: &OpCodeInfo, tame: bool, bytes: &mut Vec<u8>) {
    if !tame && random.percent(5) {
        bytes.push(random.pick(&[0x67, 0x65, 0x2e]));
    }
    let w = wide(random, info);
    let l = if info.is_lig() { random.below(2) as u8 } else { info.l() as u8 & 1 };
    // Inverted: all ones means "no register", which some encodings demand.
    let vvvv = if tame && random.percent(50) { 0xf } else { random.below(16) as u8 };
    let low = vvvv << 3 | l << 2 | mandatory_bits(info);
    // Inverted, too. Opmask registers want R and B set.
    let extension = if tame && random.percent(70) { 7 } else { random.below(8) as u8 };
    if w == 0 && map(info) == 1 && extension & 3 == 3 && random.percent(50) {
        bytes.extend([0xc5, (extension & 4) << 5 | low]);
    } else {
        bytes.extend([0xc4, extension << 5 | map(info), w << 7 | low]);
    }
}

fn evex(random: &mut Random, info: &OpCodeInfo, tame: bool, bytes: &mut Vec<u8>) {
    if !tame && random.percent(4) {
        bytes.push(random.pick(&[0x67, 0x65, 0x2e]));
    }
    let w = wide(random, info);
    let vvvv = if tame && random.percent(50) { 0xf } else { random.below(16) as u8 };
    let high = if tame && random.percent(70) { 0xf } else { random.below(16) as u8 };
    let broadcast = u8::from(random.percent(if tame { 10 } else { 25 }));
    let length = if info.is_lig() || broadcast == 1 && random.percent(50) {
        random.below(3 + u64::from(broadcast)) as u8
    } else {
        info.l() as u8
    };
    let mask = if random.percent(40) && !info.require_op_mask_register() { 0 } else { random.below(8) as u8 };
    let zeroing = u8::from(info.can_use_zeroing_masking() && mask != 0 && random.percent(40));
    let v_high = if tame && random.percent(70) { 1 } else { random.below(2) as u8 };
    bytes.extend([
        0x62,
        high << 4 | map(info),
        w << 7 | vvvv << 3 | 4 | mandatory_bits(info),
        zeroing << 7 | length << 5 | broadcast << 4 | v_high << 3 | mask,
    ]);
}
