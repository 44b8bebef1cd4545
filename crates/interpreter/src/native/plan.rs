//! What an instruction does with its memory operand: size, direction, alignment, and which elements are touched.
//!
//! Pure functions of the instruction (and, for masks, of the vector state); called when a stub is compiled.

use super::host::Host;
use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, InstructionInfo, Mnemonic as M, OpAccess, OpKind, Register,
};
use x86::state::VectorState;

/// What decides which elements of a memory operand are touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elements {
    /// The whole operand is.
    All,
    /// All of them, but one after the other.
    Each,
    /// Element i where bit i of this opmask register is set.
    Opmask(u8),
    /// As many elements, from the first, as this opmask register has bits set among this many (VPCOMPRESS, VPEXPAND).
    Packed(u8, u8),
    /// A broadcast. Element i where a bit of the opmask register is set that stands for a copy of it: bit i and every
    /// further one at a distance of the operand's elements, among so many low bits.
    Folded(u8, u8),
    /// Element i where element i of this vector register has its top bit set (VMASKMOV).
    Sign(u8),
}

/// A memory operand as the instruction uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemPlan {
    /// Bytes, at most 64.
    pub size: u8,
    /// Bytes of one element; equals `size` where elements don't matter.
    pub element: u8,
    /// It is read.
    pub read: bool,
    /// It is written.
    pub write: bool,
    /// The linear address must be a multiple of this, else #GP(0).
    pub alignment: u8,
    /// The linear address must be a multiple of this where #AC is enabled.
    pub check: u8,
    /// Which elements.
    pub elements: Elements,
    /// The mask doesn't suppress the faults of elements that aren't touched.
    pub whole: bool,
}

impl MemPlan {
    /// The plan of the instruction's explicit memory operand, `None` if it has none (or doesn't access it).
    #[must_use]
    pub fn of(instruction: &Instruction, info: &InstructionInfo) -> Option<Self> {
        if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
            return None;
        }
        let (mut read, mut write) = (false, false);
        for used in info.used_memory() {
            match used.access() {
                OpAccess::Read | OpAccess::CondRead => read = true,
                OpAccess::Write | OpAccess::CondWrite => write = true,
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (read, write) = (true, true),
                _ => {}
            }
        }
        let memory = instruction.memory_size();
        let size = u8::try_from(memory.size()).ok().filter(|size| *size <= 64)?;
        if size == 0 || !(read || write) {
            return None;
        }
        // A masked store leaves the other bytes alone: iced calls that a read and a write.
        if write && instruction.has_op_mask() {
            read = false;
        }
        let (element, elements) = elements(instruction, size, write);
        let alignment = alignment(instruction, size);
        Some(Self {
            size,
            element,
            read,
            write,
            alignment,
            check: check(instruction, size, element, elements),
            elements,
            whole: is_whole(instruction),
        })
    }

    /// Bit i: element i is touched.
    #[must_use]
    pub fn active_elements(&self, state: &VectorState) -> u64 {
        let count = u32::from(self.size / self.element);
        let low = |bits: u32| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        match self.elements {
            Elements::All | Elements::Each => low(count),
            Elements::Opmask(k) => state.k[usize::from(k)] & low(count),
            Elements::Packed(k, lanes) => low((state.k[usize::from(k)] & low(u32::from(lanes))).count_ones()),
            Elements::Folded(k, lanes) => {
                let mask = state.k[usize::from(k)] & low(u32::from(lanes));
                (0..u32::from(lanes)).step_by(count.max(1) as usize).fold(0, |all, at| all | mask >> at)
                    & low(count)
            }
            Elements::Sign(register) => {
                let width = usize::from(self.element);
                let bytes = &state.zmm[usize::from(register)];
                (0..count as usize).fold(0, |mask, i| mask | u64::from(bytes[(i + 1) * width - 1] >> 7) << i)
            }
        }
    }

    /// Bit i: byte i is touched.
    #[must_use]
    pub fn active_bytes(&self, state: &VectorState) -> u64 {
        let (elements, width) = (self.active_elements(state), u32::from(self.element));
        let one = if width >= 64 { u64::MAX } else { (1 << width) - 1 };
        (0..u32::from(self.size) / width)
            .filter(|i| elements >> i & 1 != 0)
            .fold(0, |bytes, i| bytes | one << (i * width))
    }
}

/// Runs of set bits, from the lowest: first bit and length.
pub(super) fn runs(mut mask: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let start = mask.trailing_zeros();
        let len = (mask >> start).trailing_ones();
        mask = if start + len >= 64 { 0 } else { mask >> (start + len) << (start + len) };
        Some((start as usize, len as usize))
    })
}

/// SSE operands of 16 bytes have to be aligned, except those of a few instructions; VEX and EVEX ones need not, except those
/// of a few (SDM 1 15.7, 2A 2.7).
fn alignment(instruction: &Instruction, size: u8) -> u8 {
    match instruction.mnemonic() {
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Pcmpestri
        | M::Pcmpestri64
        | M::Pcmpestrm
        | M::Pcmpestrm64
        | M::Pcmpistri
        | M::Pcmpistrm => 1,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovdqa32 | M::Vmovdqa64 => size,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => size,
        _ if takes_misaligned_sha(instruction) => 1,
        _ if instruction.encoding() == EncodingKind::Legacy && size == 16 => 16,
        _ => 1,
    }
}

/// See [`Host::aligned_sha`].
fn takes_misaligned_sha(instruction: &Instruction) -> bool {
    !Host::get().aligned_sha && instruction.cpuid_features().contains(&CpuidFeature::SHA)
}

/// What an operand has to be aligned to where #AC is enabled (SDM 3A table 6-7). Vector operands are exempt except where they
/// are as small as general ones; on AMD's processors they aren't (APM 2 8.2.18).
fn check(instruction: &Instruction, size: u8, element: u8, elements: Elements) -> u8 {
    match size {
        2.. if Host::get().amd && size != 10 => amd_check(instruction, size, element, elements),
        _ if matches!(instruction.mnemonic(), M::Vcvtph2ps | M::Vcvtps2ph) => 1,
        2 | 4 | 8 => size,
        10 => 8,
        16 if takes_misaligned_sha(instruction) => size,
        _ => 1,
    }
}

/// 16 bytes are as much as AMD's processors ask for, an element's size of masked operands, nothing of VMASKMOV's.
fn amd_check(instruction: &Instruction, size: u8, element: u8, elements: Elements) -> u8 {
    match instruction.mnemonic() {
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => 1,
        _ if is_compress(instruction.mnemonic()) => instruction.memory_size().element_size().max(1) as u8,
        _ if elements != Elements::All && !is_whole(instruction) => element.min(16),
        _ => size.min(16),
    }
}

/// Writes the elements that its mask selects side by side.
fn is_compress(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Vpcompressb | M::Vpcompressw | M::Vpcompressd | M::Vpcompressq | M::Vcompressps | M::Vcompresspd
    )
}

/// Stores of a part of a register check the whole operand whatever the mask (SDM 2A 2.8.9, type E6NF).
fn is_whole(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Vextractf32x4
            | M::Vextractf32x8
            | M::Vextractf64x2
            | M::Vextractf64x4
            | M::Vextracti32x4
            | M::Vextracti32x8
            | M::Vextracti64x2
            | M::Vextracti64x4
    )
}

/// Element size and which are touched. Suppression of faults is promised only by element-wise instructions; the others
/// (SDM 2A 2.8, exception types with NF) read their whole operand whatever the mask.
fn elements(instruction: &Instruction, size: u8, write: bool) -> (u8, Elements) {
    let mnemonic = instruction.mnemonic();
    if matches!(mnemonic, M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq) {
        let element = if matches!(mnemonic, M::Vmaskmovps | M::Vpmaskmovd) { 4 } else { 8 };
        return (element, Elements::Sign(instruction.op1_register().number() as u8));
    }
    let mask = instruction.op_mask();
    if mask == Register::None {
        // AMD's processors pack element by element also without a mask.
        if write && is_compress(mnemonic) && Host::get().amd {
            return (instruction.memory_size().element_size().max(1) as u8, Elements::Each);
        }
        return (size, Elements::All);
    }
    let k = mask.number() as u8;
    let memory = instruction.memory_size();
    let op_code = instruction.op_code();
    let element = if write || !op_code.can_broadcast() {
        memory.element_size()
    } else {
        op_code.broadcast_memory_size().size()
    };
    let element = match mnemonic {
        M::Vpshufbitqmb => 1,
        M::Vfmulcsh | M::Vfcmulcsh | M::Vfmaddcsh | M::Vfcmaddcsh => 4,
        _ => element,
    };
    let element = u8::try_from(element).ok().filter(|e| *e > 0 && size.is_multiple_of(*e)).unwrap_or(size);
    let lanes_of = |register: Register| (register.size() / usize::from(element)).clamp(1, 64) as u8;
    match mnemonic {
        _ if is_compress(mnemonic) => {
            return (element, Elements::Packed(k, lanes_of(instruction.op1_register())));
        }
        M::Vpexpandb | M::Vpexpandw | M::Vpexpandd | M::Vpexpandq | M::Vexpandps | M::Vexpandpd => {
            return (element, Elements::Packed(k, lanes_of(instruction.op0_register())));
        }
        _ => {}
    }
    if write {
        return (element, Elements::Opmask(k));
    }
    if reads_across_elements(instruction) {
        return (size, Elements::All);
    }
    if copies_elements(mnemonic) {
        return (element, Elements::Folded(k, lanes_of(instruction.op0_register())));
    }
    if instruction.is_broadcast() {
        let full = op_code.memory_size().size() / usize::from(element);
        return (size, Elements::Folded(k, full.clamp(1, 64) as u8));
    }
    (element, Elements::Opmask(k))
}

/// Repeats the memory operand over the register.
fn copies_elements(mnemonic: M) -> bool {
    let name = format!("{mnemonic:?}");
    name.starts_with("Vbroadcast") || name.starts_with("Vpbroadcast")
}

/// Result element i doesn't depend on memory element i alone, and the mask suppresses no faults.
fn reads_across_elements(instruction: &Instruction) -> bool {
    let name = format!("{:?}", instruction.mnemonic());
    const PREFIXES: &[&str] = &[
        "Vperm",
        "Vpermi",
        "Vpermt",
        "Vvalign",
        "Valign",
        "Vpack",
        "Vpunpck",
        "Vunpck",
        "Vshuf",
        "Vpshufb",
        "Vpshufd",
        "Vpshufh",
        "Vpshufl",
        "Vcvtne2ps2bf16",
        "Vpalignr",
        "Vpsll",
        "Vpsrl",
        "Vpsra",
        "Vdbpsadbw",
        "Vpmultishift",
        "Vgf2p8affine",
        "Vpmadd",
        "Vinsert",
        "Vmovddup",
        "Vmovshdup",
        "Vmovsldup",
        "Vpconflict",
        "Vp2intersect",
        "Vmpsadbw",
    ];
    // Variable shifts, VPMADD52 and shifts by an immediate are element-wise.
    if ["Vpsllv", "Vpsrlv", "Vpsrav", "Vpmadd52", "Vpshufbitqmb"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || instruction.op1_kind() == OpKind::Memory && name.starts_with("Vps") && !name.starts_with("Vpshuf")
    {
        return false;
    }
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
