//! FXSAVE and XSAVE images of the vector state (SDM 1 10.5, 13).
//!
//! Pure functions over byte buffers. Called for the guest's own instructions and by whoever needs an image. Components
//! known: x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM, PKRU; others are never enabled. The modified optimisation (which
//! a processor may leave out) is left out.

use super::host::Host;
use super::raw::cpuid;
use std::ops::Range;
use std::sync::OnceLock;
use x86::state::{FCW_INIT, MXCSR_INIT, VectorState};

/// Components that can be enabled in XCR0.
pub const COMPONENTS: u64 = 0x2e7;
const LEGACY: usize = 512;
const HEADER: usize = 64;

/// The image is malformed: #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadImage;

/// Which XSAVE instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// XSAVE.
    Plain,
    /// XSAVEOPT.
    Optimized,
    /// XSAVEC and XSAVES.
    Compacted,
}

/// Offset (standard format), size and alignment rule of each component from 2.
#[derive(Clone, Copy, Default)]
struct Component {
    offset: usize,
    size: usize,
    aligned: bool,
}

fn component(number: usize) -> Component {
    static ALL: OnceLock<[Component; 10]> = OnceLock::new();
    ALL.get_or_init(|| {
        std::array::from_fn(|i| {
            if i < 2 || COMPONENTS & (1 << i) == 0 {
                return Component::default();
            }
            let [size, offset, ecx, _] = cpuid(0xd, i as u32);
            Component { offset: offset as usize, size: size as usize, aligned: ecx & 2 != 0 }
        })
    })[number]
}

/// Whether the host has XSAVEC and the format that comes with it. Asked once: CPUID is slow where the host is a guest itself.
fn has_compacted_form() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| cpuid(0xd, 1)[0] & 2 != 0)
}

/// Offset of every component in an image; `None` for the standard format, else the components of the compacted one.
fn layout(compacted: Option<u64>) -> [usize; 10] {
    let mut offsets = [0; 10];
    let mut next = LEGACY + HEADER;
    for (number, offset) in offsets.iter_mut().enumerate().skip(2) {
        let part = component(number);
        *offset = part.offset;
        if let Some(present) = compacted
            && present & (1 << number) != 0
        {
            *offset = if part.aligned { next.next_multiple_of(64) } else { next };
            next = *offset + part.size;
        }
    }
    offsets
}

/// Bytes of an image with these components.
#[must_use]
pub fn image_size(components: u64, compacted: bool) -> usize {
    let offsets = layout(compacted.then_some(components));
    (2..10)
        .filter(|number| components & COMPONENTS & (1 << number) != 0)
        .map(|number| offsets[number] + component(number).size)
        .fold(LEGACY + HEADER, usize::max)
}

/// The components not in their initial configuration (XINUSE; SDM 1 13.6).
#[must_use]
pub fn in_use(state: &VectorState) -> u64 {
    let initial = VectorState::default();
    let zero = |range: Range<usize>, registers: Range<usize>| {
        state.zmm[registers].iter().all(|register| register[range.clone()].iter().all(|byte| *byte == 0))
    };
    let mut mask = 0;
    let mut set = |number: u32, used: bool| mask |= u64::from(used) << number;
    set(0, state.x87[..24] != initial.x87[..24] || state.x87[32..160] != initial.x87[32..160]);
    set(1, !zero(0..16, 0..16));
    set(2, !zero(16..32, 0..16));
    set(5, state.k != [0; 8]);
    set(6, !zero(32..64, 0..16));
    set(7, !zero(0..64, 16..32));
    set(9, state.pkru != 0);
    mask
}

/// The first 24 bytes: 64-bit pointers if `wide` (REX.W), else 32-bit ones with null selectors (CPUID says that the
/// selectors are not kept).
fn x87_header(state: &VectorState, wide: bool) -> [u8; 24] {
    let mut header = [0; 24];
    header.copy_from_slice(&state.x87[..24]);
    if !wide {
        header[12..16].fill(0);
        header[20..24].fill(0);
    }
    header
}

fn load_x87(state: &mut VectorState, image: &[u8], wide: bool) {
    state.x87[..24].copy_from_slice(&image[..24]);
    if !wide {
        state.x87[12..16].fill(0);
        state.x87[20..24].fill(0);
    }
    for register in (32..160).step_by(16) {
        state.x87[register..register + 10].copy_from_slice(&image[register..register + 10]);
        state.x87[register + 10..register + 16].fill(0);
    }
    super::x87::normalize(state);
}

fn initialize_x87(state: &mut VectorState) {
    state.x87.fill(0);
    state.x87[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// The MXCSR bits that may be set.
#[must_use]
pub fn mxcsr_mask() -> u32 {
    Host::get().mxcsr_mask
}

/// FXSAVE: the image and how many of its bytes are to be written. `wide` is REX.W, `long` 64-bit mode.
#[must_use]
pub fn fxsave(state: &VectorState, wide: bool, long: bool) -> ([u8; 512], usize) {
    let mut image = [0; 512];
    image[..160].copy_from_slice(&state.x87);
    image[..24].copy_from_slice(&x87_header(state, wide));
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&mxcsr_mask().to_le_bytes());
    let registers = if long { 16 } else { 8 };
    for (number, register) in state.zmm[..registers].iter().enumerate() {
        image[160 + number * 16..176 + number * 16].copy_from_slice(&register[..16]);
    }
    (image, 160 + registers * 16)
}

/// FXRSTOR.
///
/// # Errors
/// MXCSR has a reserved bit set; the state is unchanged.
pub fn fxrstor(state: &mut VectorState, image: &[u8; 512], wide: bool, long: bool) -> Result<(), BadImage> {
    let mxcsr = word(image, 24);
    if mxcsr & !mxcsr_mask() != 0 {
        return Err(BadImage);
    }
    load_x87(state, image, wide);
    state.mxcsr = mxcsr;
    for number in 0..if long { 16 } else { 8 } {
        state.zmm[number][..16].copy_from_slice(&image[160 + number * 16..176 + number * 16]);
    }
    Ok(())
}

/// XSAVE, XSAVEOPT, XSAVEC or XSAVES of the components `rfbm` (which the caller has limited to XCR0, or for XSAVES to
/// XCR0 | IA32_XSS). `old_bv` is XSTATE_BV as it stands in memory. Gives the image and the ranges to be written.
#[must_use]
pub fn xsave(
    state: &VectorState,
    kind: Kind,
    rfbm: u64,
    old_bv: u64,
    wide: bool,
    long: bool,
) -> (Vec<u8>, Vec<Range<usize>>) {
    let rfbm = rfbm & COMPONENTS;
    let compacted = kind == Kind::Compacted;
    let mut used = in_use(state);
    if kind == Kind::Compacted && state.mxcsr != MXCSR_INIT {
        used |= 2;
    }
    let saved = if kind == Kind::Plain { rfbm } else { rfbm & used };
    let mut image = vec![0; image_size(rfbm, compacted)];
    let mut ranges = Vec::new();
    if saved & 1 != 0 {
        image[..24].copy_from_slice(&x87_header(state, wide));
        image[32..160].copy_from_slice(&state.x87[32..160]);
        ranges.extend([0..24, 32..160]);
    }
    let with_mxcsr = if compacted { saved & 2 != 0 } else { rfbm & 6 != 0 };
    if with_mxcsr {
        image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&mxcsr_mask().to_le_bytes());
        ranges.push(24..32);
    }
    if saved & 2 != 0 {
        let registers = if long { 16 } else { 8 };
        for (number, register) in state.zmm[..registers].iter().enumerate() {
            image[160 + number * 16..176 + number * 16].copy_from_slice(&register[..16]);
        }
        ranges.push(160..160 + registers * 16);
    }
    let offsets = layout(compacted.then_some(rfbm));
    for number in (2..10).filter(|number| saved & (1 << number) != 0) {
        let start = offsets[number];
        let len = each_part(number, long, |at, source| {
            source.copy_to(state, &mut image[start + at..start + at + source.len]);
        });
        if len > 0 {
            ranges.push(start..start + len);
        }
    }
    let bv = if compacted { rfbm & used } else { (old_bv & !rfbm) | (rfbm & used) };
    image[512..520].copy_from_slice(&bv.to_le_bytes());
    if compacted {
        image[520..528].copy_from_slice(&(rfbm | 1 << 63).to_le_bytes());
        ranges.push(512..528);
    } else {
        ranges.push(512..520);
    }
    (image, ranges)
}

/// A piece of the state as it lies in a component.
struct Part {
    what: What,
    len: usize,
}

enum What {
    Vector(usize, usize),
    Mask(usize),
    Pkru,
}

impl Part {
    fn copy_to(&self, state: &VectorState, into: &mut [u8]) {
        match self.what {
            What::Vector(register, from) => into.copy_from_slice(&state.zmm[register][from..from + self.len]),
            What::Mask(number) => into.copy_from_slice(&state.k[number].to_le_bytes()),
            What::Pkru => into.copy_from_slice(&state.pkru.to_le_bytes()),
        }
    }

    fn set(&self, state: &mut VectorState, bytes: &[u8]) {
        match self.what {
            What::Vector(register, from) => state.zmm[register][from..from + self.len].copy_from_slice(bytes),
            What::Mask(number) => state.k[number] = long(bytes, 0),
            What::Pkru => state.pkru = word(bytes, 0),
        }
    }
}

/// Calls `each` with offset and source of every piece of a component; its length in bytes as far as this mode knows it.
fn each_part(number: usize, long: bool, mut each: impl FnMut(usize, &Part)) -> usize {
    let low = if long { 16 } else { 8 };
    let mut at = 0;
    let mut give = |what, len| {
        each(at, &Part { what, len });
        at += len;
    };
    match number {
        2 => (0..low).for_each(|register| give(What::Vector(register, 16), 16)),
        5 => (0..8).for_each(|mask| give(What::Mask(mask), 8)),
        6 => (0..low).for_each(|register| give(What::Vector(register, 32), 32)),
        7 if long => (16..32).for_each(|register| give(What::Vector(register, 0), 64)),
        9 => give(What::Pkru, 4),
        _ => {}
    }
    at
}

/// What XRSTOR has to fetch after the header (of 64 bytes at offset 512): the image's size, from its header.
///
/// # Errors
/// The header is malformed (SDM 1 13.8.1, 13.12). `enabled` is XCR0, for XRSTORS XCR0 | IA32_XSS.
pub fn check_header(header: &[u8; 64], enabled: u64, supervisor: bool) -> Result<usize, BadImage> {
    let (bv, comp) = (long(header, 0), long(header, 8));
    let compacted = comp >> 63 != 0;
    let fine = if compacted {
        let present = comp & !(1 << 63);
        present & !enabled == 0 && bv & !present == 0 && header[16..].iter().all(|byte| *byte == 0)
    } else {
        !supervisor && comp == 0 && bv & !enabled == 0 && header[8..24].iter().all(|byte| *byte == 0)
    };
    if !fine || (compacted && !has_compacted_form()) {
        return Err(BadImage);
    }
    Ok(if compacted { image_size(comp, true) } else { image_size(enabled, false) })
}

/// XRSTOR or XRSTORS (`supervisor`) of the components `rfbm` from an image whose header [`check_header`] has seen.
///
/// # Errors
/// A malformed image; the state is unchanged.
pub fn xrstor(
    state: &mut VectorState,
    image: &[u8],
    rfbm: u64,
    enabled: u64,
    supervisor: bool,
    wide: bool,
    is_long: bool,
) -> Result<(), BadImage> {
    let header =
        image.get(LEGACY..LEGACY + HEADER).and_then(|header| header.try_into().ok()).ok_or(BadImage)?;
    if image.len() < check_header(header, enabled, supervisor)? {
        return Err(BadImage);
    }
    let (bv, comp) = (long(header, 0), long(header, 8));
    let compacted = comp >> 63 != 0;
    let rfbm = rfbm & enabled & COMPONENTS;
    let (load, clear) = (rfbm & bv, rfbm & !bv);
    let take_mxcsr = if compacted { load & 2 != 0 } else { rfbm & 6 != 0 };
    let mxcsr = word(image, 24);
    if take_mxcsr && mxcsr & !mxcsr_mask() != 0 {
        return Err(BadImage);
    }
    if take_mxcsr {
        state.mxcsr = mxcsr;
    } else if compacted && clear & 2 != 0 {
        state.mxcsr = MXCSR_INIT;
    }
    if load & 1 != 0 {
        load_x87(state, image, wide);
    } else if clear & 1 != 0 {
        initialize_x87(state);
    }
    if rfbm & 2 != 0 {
        for number in 0..if is_long { 16 } else { 8 } {
            let source = &image[160 + number * 16..176 + number * 16];
            if load & 2 != 0 {
                state.zmm[number][..16].copy_from_slice(source);
            } else {
                state.zmm[number][..16].fill(0);
            }
        }
    }
    let offsets = layout(compacted.then_some(comp));
    for number in (2..10).filter(|number| rfbm & (1 << number) != 0) {
        let start = offsets[number];
        each_part(number, is_long, |at, part| {
            if load & (1 << number) != 0 {
                part.set(state, &image[start + at..start + at + part.len]);
            } else {
                part.set(state, &[0; 64][..part.len]);
            }
        });
    }
    Ok(())
}

/// The byte ranges besides the header that XRSTOR of `rfbm` reads from an image with this (checked) header.
#[must_use]
pub fn ranges_read(header: &[u8; 64], rfbm: u64) -> Vec<Range<usize>> {
    let (bv, comp) = (long(header, 0), long(header, 8));
    let compacted = comp >> 63 != 0;
    let offsets = layout(compacted.then_some(comp));
    let load = rfbm & bv & COMPONENTS;
    let mut ranges = Vec::new();
    if load & 3 != 0 {
        ranges.push(0..416);
    } else if !compacted && rfbm & 6 != 0 {
        ranges.push(24..32);
    }
    ranges.extend(
        (2..10)
            .filter(|number| load & (1 << number) != 0)
            .map(|number| offsets[number]..offsets[number] + component(number).size),
    );
    ranges
}
