//! Which control-register bits an instruction depends on, and the exception it raises when they are wrong.
//!
//! Pure functions; asked before a vector, x87 or MMX instruction executes. SDM 3A 2.5, 13.1; 2A 2.4 to 2.8.

use super::compile::is_x87;
use iced_x86::{CpuidFeature as F, EncodingKind, Instruction, Mnemonic as M, Register};
use x86::state::VectorState;

/// What an instruction needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeatureNeeds {
    /// Nothing: general registers or hints only.
    Nothing,
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM if CR0.MP and CR0.TS.
    Wait,
    /// MMX: #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// SSE: #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// FXSAVE, FXRSTOR: #NM if CR0.EM or CR0.TS.
    Fxsr,
    /// XSAVE and relatives: #UD without CR4.OSXSAVE, #NM if CR0.TS.
    Xsave,
    /// VEX-coded general-register instructions: #UD in real and virtual-8086 mode.
    VexGpr,
    /// AVX: as that, and CR4.OSXSAVE with XCR0 bits 1 and 2, else #UD; #NM if CR0.TS.
    Avx,
    /// AVX-512: as AVX with XCR0 bits 5, 6 and 7 too.
    Avx512,
}

/// The exception that a missing enable bit raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeedFault {
    /// #UD.
    InvalidOpcode,
    /// #NM.
    DeviceNotAvailable,
}

/// What `instruction` needs.
#[must_use]
pub fn requirements(instruction: &Instruction) -> FeatureNeeds {
    use FeatureNeeds as N;
    match instruction.mnemonic() {
        M::Wait => return N::Wait,
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => return N::Fxsr,
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstor
        | M::Xrstor64
        | M::Xrstors
        | M::Xrstors64 => return N::Xsave,
        M::Ldmxcsr | M::Stmxcsr => return N::Sse,
        M::Emms | M::Maskmovq => return N::Mmx,
        M::Vzeroall | M::Vzeroupper | M::Vldmxcsr | M::Vstmxcsr => return N::Avx,
        _ => {}
    }
    if is_x87(instruction) {
        return N::X87;
    }
    let operands = || (0..instruction.op_count()).map(|i| instruction.op_register(i));
    let vector = |register: Register| register.is_vector_register() || register.is_k();
    let features = instruction.cpuid_features();
    match instruction.encoding() {
        EncodingKind::EVEX => N::Avx512,
        EncodingKind::VEX if operands().any(|register| register.is_k()) => N::Avx512,
        EncodingKind::VEX if operands().any(vector) => N::Avx,
        EncodingKind::VEX => N::VexGpr,
        _ if operands().any(vector) => N::Sse,
        _ if operands().any(|register| register.is_mm()) => N::Mmx,
        _ if features.contains(&F::MMX) => N::Mmx,
        _ => N::Nothing,
    }
}

impl FeatureNeeds {
    /// Whether it may execute now. `protected`: neither real nor virtual-8086 mode.
    ///
    /// # Errors
    /// The exception to raise.
    pub fn check(self, cr0: u64, cr4: u64, vector: &VectorState, protected: bool) -> Result<(), NeedFault> {
        const MP: u64 = 1 << 1;
        const EM: u64 = 1 << 2;
        const TS: u64 = 1 << 3;
        const OSFXSR: u64 = 1 << 9;
        const OSXSAVE: u64 = 1 << 18;
        let unless = |ok: bool, fault| if ok { Ok(()) } else { Err(fault) };
        let (ud, nm) = (NeedFault::InvalidOpcode, NeedFault::DeviceNotAvailable);
        let xcr0 = |bits: u64| protected && cr4 & OSXSAVE != 0 && vector.xcr0 & bits == bits;
        match self {
            Self::Nothing => return Ok(()),
            Self::X87 | Self::Fxsr => return unless(cr0 & (EM | TS) == 0, nm),
            Self::Wait => return unless(cr0 & (MP | TS) != MP | TS, nm),
            Self::VexGpr => return unless(protected, ud),
            Self::Mmx => unless(cr0 & EM == 0, ud)?,
            Self::Sse => unless(cr0 & EM == 0 && cr4 & OSFXSR != 0, ud)?,
            Self::Xsave => unless(cr4 & OSXSAVE != 0, ud)?,
            Self::Avx => unless(xcr0(0x6), ud)?,
            Self::Avx512 => unless(xcr0(0xe6), ud)?,
        }
        unless(cr0 & TS == 0, nm)
    }
}
