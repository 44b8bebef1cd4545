//! What an instruction does with its memory operand: size, direction, alignment, and which elements are touched.
//!
//! Pure functions of the instruction (and, for masks, of the vector state); called when a stub is compiled.

use iced_x86::{EncodingKind, Instruction, InstructionInfo, Mnemonic as M, OpAccess, OpKind, Register};
use x86::state::VectorState;

/// What decides which elements of a memory operand are touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elements {
    /// The whole operand is.
    All,
    /// Element i where bit i of this opmask register is set.
    Opmask(u8),
    /// As many elements, from the first, as this opmask register has bits set among this many (VPCOMPRESS, VPEXPAND).
    Packed(u8, u8),
    /// The only element (a broadcast) if any of that many low bits of the opmask register is set.
    Any(u8, u8),
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
    /// Which elements.
    pub elements: Elements,
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
        Some(Self { size, element, read, write, alignment: alignment(instruction, size), elements })
    }

    /// Bit i: element i is touched.
    #[must_use]
    pub fn active_elements(&self, state: &VectorState) -> u64 {
        let count = u32::from(self.size / self.element);
        let low = |bits: u32| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        match self.elements {
            Elements::All => low(count),
            Elements::Opmask(k) => state.k[usize::from(k)] & low(count),
            Elements::Packed(k, lanes) => low((state.k[usize::from(k)] & low(u32::from(lanes))).count_ones()),
            Elements::Any(k, lanes) => u64::from(state.k[usize::from(k)] & low(u32::from(lanes)) != 0),
            Elements::Sign(register) => {
                let width = usize::from(self.element);
                let bytes = &state.zmm[usize::from(register)];
                (0..count as usize).fold(0, |mask, i| mask | u64::from(bytes[(i + 1) * width - 1] >> 7) << i)
            }
        }
    }

    /// The touched byte ranges, adjacent elements joined: offset and length.
    pub fn runs(&self, state: &VectorState) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (mut mask, width) = (self.active_elements(state), usize::from(self.element));
        std::iter::from_fn(move || {
            if mask == 0 {
                return None;
            }
            let start = mask.trailing_zeros();
            let len = (mask >> start).trailing_ones();
            mask = if start + len >= 64 { 0 } else { mask >> (start + len) << (start + len) };
            Some((start as usize * width, len as usize * width))
        })
    }
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
        _ if instruction.encoding() == EncodingKind::Legacy && size == 16 => 16,
        _ => 1,
    }
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
        return (size, Elements::All);
    }
    let k = mask.number() as u8;
    let memory = instruction.memory_size();
    let op_code = instruction.op_code();
    let element = if write || !op_code.can_broadcast() {
        memory.element_size()
    } else {
        op_code.broadcast_memory_size().element_size()
    };
    let element = u8::try_from(element).ok().filter(|e| *e > 0 && size.is_multiple_of(*e)).unwrap_or(size);
    let lanes_of = |register: Register| (register.size() / usize::from(element)).clamp(1, 64) as u8;
    match mnemonic {
        M::Vpcompressb
        | M::Vpcompressw
        | M::Vpcompressd
        | M::Vpcompressq
        | M::Vcompressps
        | M::Vcompresspd => {
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
    if reads_across_elements(mnemonic) {
        return (size, Elements::All);
    }
    if instruction.is_broadcast() {
        let full = op_code.memory_size().size() / usize::from(element);
        return (size, Elements::Any(k, full.clamp(1, 64) as u8));
    }
    (element, Elements::Opmask(k))
}

/// Result element i doesn't depend on memory element i alone.
fn reads_across_elements(mnemonic: M) -> bool {
    let name = format!("{mnemonic:?}");
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
        "Vpshuf",
        "Vpalignr",
        "Vpsll",
        "Vpsrl",
        "Vpsra",
        "Vdbpsadbw",
        "Vpmultishift",
        "Vgf2p8",
        "Vpmadd",
        "Vinsert",
        "Vbroadcast",
        "Vpbroadcast",
        "Vmovddup",
        "Vmovshdup",
        "Vmovsldup",
        "Vpmulhrsw",
        "Vpconflict",
        "Vplzcnt",
        "Vp2intersect",
        "Vmpsadbw",
        "V4f",
        "Vp4d",
        "Vfcmadd",
        "Vfcmul",
        "Vfmaddc",
        "Vfmulc",
    ];
    // Variable shifts and VPMADD52 are element-wise.
    if ["Vpsllv", "Vpsrlv", "Vpsrav", "Vpmadd52"].iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
