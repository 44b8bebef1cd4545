//! x87 environment images (FNSTENV, FNSAVE, FLDENV, FRSTOR) and the status word's derived bits.
//!
//! Written out because their formats depend on the guest's mode (SDM 1 figures 8-9 to 8-12), which the host's 64-bit
//! mode can't imitate. Selectors read as zero, as on processors that say so in CPUID 7.EBX[13].

use x86::state::VectorState;

/// Offset of the registers in [`VectorState::x87`].
const ST0: usize = 32;
/// FSW.ES and FSW.B.
const SUMMARY: u16 = 0x8080;

pub(super) fn fcw(state: &VectorState) -> u16 {
    u16::from_le_bytes([state.x87[0], state.x87[1]])
}

pub(super) fn fsw(state: &VectorState) -> u16 {
    u16::from_le_bytes([state.x87[2], state.x87[3]])
}

/// An unmasked exception waits to be reported. Not by FSW.ES: the host derives that bit anew when it loads the registers,
/// and would fault where whoever filled them (a saved machine, a debugger) left the bit clear.
pub(super) fn pending(state: &VectorState) -> bool {
    fsw(state) & !fcw(state) & 0x3f != 0
}

fn put(state: &mut VectorState, at: usize, bytes: &[u8]) {
    state.x87[at..at + bytes.len()].copy_from_slice(bytes);
}

/// After the words were loaded from a guest: reserved bits, and ES and B from flags and masks (SDM 1 8.1.3.3).
pub(super) fn normalize(state: &mut VectorState) {
    let control = (fcw(state) & 0x1f3f) | 0x40;
    let status = fsw(state) & !SUMMARY;
    let status = if status & !control & 0x3f != 0 { status | SUMMARY } else { status };
    put(state, 0, &control.to_le_bytes());
    put(state, 2, &status.to_le_bytes());
    state.x87[5] = 0;
    state.x87[7] &= 7;
}

/// The two-bit tags from the abridged ones and the registers' contents (SDM 1 8.1.7).
fn full_tags(state: &VectorState) -> u16 {
    let top = usize::from(fsw(state) >> 11 & 7);
    (0..8).fold(0, |tags, physical| {
        let tag: u16 = if state.x87[4] & (1 << physical) == 0 {
            3
        } else {
            let at = ST0 + 16 * ((physical + 8 - top) & 7);
            let register = &state.x87[at..at + 10];
            let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
            let zero = register[..8].iter().all(|byte| *byte == 0);
            match exponent {
                0 if zero => 1,
                0 | 0x7fff => 2,
                _ if register[7] & 0x80 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * physical)
    })
}

/// Length of the environment.
pub(super) fn environment_len(wide: bool) -> usize {
    if wide { 28 } else { 14 }
}

/// What FNSTENV stores. `wide`: 32-bit operand size; `protected`: neither real nor virtual-8086 mode.
pub(super) fn environment(state: &VectorState, wide: bool, protected: bool) -> [u8; 28] {
    let mut image = [0; 28];
    let long = |at: usize| {
        u32::from_le_bytes([state.x87[at], state.x87[at + 1], state.x87[at + 2], state.x87[at + 3]])
    };
    let (fip, fdp) = (long(8), long(16));
    let opcode = u32::from(u16::from_le_bytes([state.x87[6], state.x87[7]]) & 0x7ff);
    let (control, status, tags) = (fcw(state), fsw(state), full_tags(state));
    if wide {
        let high = |value: u16| 0xffff_0000 | u32::from(value);
        let words = if protected {
            [high(control), high(status), high(tags), fip, opcode << 16, fdp, high(0)]
        } else {
            let (fip_low, fdp_low) = (high(fip as u16), high(fdp as u16));
            [
                high(control),
                high(status),
                high(tags),
                fip_low,
                (fip >> 16) << 12 | opcode,
                fdp_low,
                (fdp >> 16) << 12,
            ]
        };
        for (chunk, word) in image.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    } else {
        let words = if protected {
            [control, status, tags, fip as u16, 0, fdp as u16, 0]
        } else {
            let top = |pointer: u32| ((pointer >> 16) << 12) as u16;
            [control, status, tags, fip as u16, top(fip) | opcode as u16, fdp as u16, top(fdp)]
        };
        for (chunk, word) in image.chunks_exact_mut(2).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
    image
}

/// FLDENV.
pub(super) fn load_environment(state: &mut VectorState, image: &[u8], wide: bool, protected: bool) {
    let step = if wide { 4 } else { 2 };
    let field = |number: usize| {
        let at = number * step;
        let low = u32::from(u16::from_le_bytes([image[at], image[at + 1]]));
        if wide { low | u32::from(u16::from_le_bytes([image[at + 2], image[at + 3]])) << 16 } else { low }
    };
    let before = fsw(state);
    let (control, status, tags) = (field(0) as u16, field(1) as u16, field(2) as u16);
    let (fip, opcode, fdp) = match (wide, protected) {
        (true, true) => (field(3), (field(4) >> 16) as u16, field(5)),
        (false, true) => (field(3), 0, field(5)),
        (_, false) => {
            let top = |number| (field(number) >> 12 & 0xffff) << 16;
            (field(3) & 0xffff | top(4), field(4) as u16, field(5) & 0xffff | top(6))
        }
    };
    put(state, 0, &control.to_le_bytes());
    put(state, 2, &status.to_le_bytes());
    let abridged = (0..8).fold(0u8, |mask, i| mask | u8::from(tags >> (2 * i) & 3 != 3) << i);
    put(state, 4, &[abridged, 0]);
    put(state, 6, &(opcode & 0x7ff).to_le_bytes());
    put(state, 8, &u64::from(fip).to_le_bytes());
    put(state, 16, &u64::from(fdp).to_le_bytes());
    rotate(state, before);
    normalize(state);
}

/// Renames the registers after a change of TOP: they stay where they are, and ST(i) counts from the new top.
fn rotate(state: &mut VectorState, before: u16) {
    let moved = usize::from((fsw(state) >> 11).wrapping_sub(before >> 11) & 7);
    state.x87[ST0..ST0 + 128].rotate_left(16 * moved);
}

/// What FNSTENV does besides: masks every exception.
pub(super) fn mask_all(state: &mut VectorState) {
    let control = fcw(state) | 0x3f;
    put(state, 0, &control.to_le_bytes());
    normalize(state);
}

/// FNINIT.
pub(super) fn initialize(state: &mut VectorState) {
    let before = fsw(state);
    put(state, 0, &[0; 24]);
    put(state, 0, &x86::state::FCW_INIT.to_le_bytes());
    rotate(state, before);
}

/// The eight registers as FNSAVE stores them.
pub(super) fn registers(state: &VectorState) -> [u8; 80] {
    let mut image = [0; 80];
    for (number, chunk) in image.chunks_exact_mut(10).enumerate() {
        let at = ST0 + 16 * number;
        chunk.copy_from_slice(&state.x87[at..at + 10]);
    }
    image
}

/// The registers as FRSTOR loads them.
pub(super) fn load_registers(state: &mut VectorState, image: &[u8]) {
    for (number, chunk) in image.chunks_exact(10).take(8).enumerate() {
        put(state, ST0 + 16 * number, chunk);
    }
}

/// What every MMX instruction but EMMS does to the x87 state: top of stack 0, all registers valid (SDM 1 9.5).
pub(super) fn enter_mmx(state: &mut VectorState) {
    let top = usize::from(fsw(state) >> 11 & 7);
    let mut registers = [0; 128];
    for (physical, chunk) in registers.chunks_exact_mut(16).enumerate() {
        let at = ST0 + 16 * ((physical + 8 - top) & 7);
        chunk.copy_from_slice(&state.x87[at..at + 16]);
    }
    put(state, ST0, &registers);
    let status = fsw(state) & !0x3800;
    put(state, 2, &status.to_le_bytes());
    state.x87[4] = 0xff;
}
