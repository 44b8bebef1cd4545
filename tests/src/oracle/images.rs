//! Instructions that write or read images of the x87 and vector state, and what makes them comparable.
//!
//! Asked by the generator. FIP, FDP and FOP are zero when a case starts and aren't compared, since they hold where the last x87
//! instruction ran; so what writes them to memory only runs while no x87 instruction has. What XSAVE writes depends on XCR0, of
//! which the host may have more: EDX:EAX then name components that both have, and none of those is in its initial configuration
//! (a processor may say of such a one what it likes, SDM 1 13.6).

use super::case::Initial;
use super::guest::offered_xcr0;
use super::random::Random;
use iced_x86::{CpuidFeature, Instruction, Mnemonic as M};

/// Bytes of the largest image with the components that guests are offered: 512, header, and the rest as hosts lay it out.
const MOST: u64 = 0xb00;
const HEADER: usize = 512;

/// What an instruction has to do with images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Image {
    /// Writes x87's pointers: environments, FXSAVE.
    Pointers,
    /// Writes the components that EDX:EAX name.
    Save,
    /// Reads them.
    Restore,
}

/// What `instruction` has to do with images, if anything.
pub(crate) fn kind(instruction: &Instruction) -> Option<Image> {
    Some(match instruction.mnemonic() {
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave | M::Fxsave | M::Fxsave64 => Image::Pointers,
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 => Image::Save,
        M::Xrstor | M::Xrstor64 => Image::Restore,
        _ => return None,
    })
}

/// Whether it changes x87's pointers.
pub(super) fn sets_pointers(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let x87 = |feature: &F| matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::MMX);
    instruction.cpuid_features().iter().any(x87)
        || matches!(kind(instruction), Some(Image::Restore))
        || matches!(instruction.mnemonic(), M::Fxrstor | M::Fxrstor64)
}

/// Where an image may begin: mostly aligned and in the data window at `data`, of `len` bytes.
pub(super) fn place(random: &mut Random, data: u64, len: u64) -> u64 {
    let at = data + 64 * random.below((len - MOST) / 64);
    match random.below(20) {
        0 => at + random.below(64),
        1 => data + len - 64 * random.below(MOST / 64),
        _ => at,
    }
}

/// The components to name in EDX:EAX.
pub(super) fn components(random: &mut Random) -> u64 {
    let all = offered_xcr0();
    if random.percent(50) { all } else { random.bits() & all }
}

/// Leaves nothing in its initial configuration.
pub(super) fn put_in_use(initial: &mut Initial) {
    // Another rounding mode than FNINIT's.
    initial.vector.x87[1] |= 4;
    initial.vector.zmm.iter_mut().for_each(|zmm| (0..4).for_each(|part| zmm[16 * part] |= 1));
    initial.vector.k[0] |= 1;
}

/// Puts an image that XRSTOR may take at `at` of the data.
pub(super) fn write_header(random: &mut Random, data: &mut [u8], at: usize) {
    let Some(image) = data.get_mut(at..at + HEADER + 64) else { return };
    let all = offered_xcr0();
    let present = if random.percent(95) { random.bits() & all } else { random.bits() };
    let compacted = match random.below(10) {
        0..=4 => 0,
        5 => random.bits(),
        _ => 1 << 63 | present | random.bits() & all,
    };
    image[HEADER..].fill(0);
    image[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    image[HEADER + 8..HEADER + 16].copy_from_slice(&compacted.to_le_bytes());
    if random.percent(5) {
        image[HEADER + 8 + random.below(56) as usize] = 1;
    }
    if random.percent(95) {
        let mxcsr = 0x1f80 | random.bits() as u32 & 0xe07f;
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    }
}
