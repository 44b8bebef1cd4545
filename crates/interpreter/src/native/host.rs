//! Which instruction-set extensions the host has, in iced's terms.
//!
//! Read once per process. What is on the list runs natively; what a guest is offered is the machine's decision.

use super::raw::{cpuid, host_mxcsr_mask, host_xcr0};
use iced_x86::CpuidFeature as F;
use std::sync::OnceLock;

/// Facts about the host CPU.
pub(super) struct Host {
    features: Vec<F>,
    /// Valid bits of MXCSR.
    pub(super) mxcsr_mask: u32,
    /// It isn't Intel's: what follows AMD's manual, or does as AMD's processors do.
    pub(super) amd: bool,
    /// AVX usable.
    pub(super) avx: bool,
    /// AVX-512F usable.
    pub(super) avx512: bool,
    /// AVX-512BW usable: opmasks have 64 bits.
    pub(super) wide_masks: bool,
    /// The SHA instructions' operands in memory have to be aligned, as Intel's manual says. AMD's CPUs ask for it only
    /// where #AC is enabled.
    pub(super) aligned_sha: bool,
}

/// Leaf, subleaf, register (EAX = 0), bit.
type Bit = (u32, u32, usize, u32);

const SSE_LIKE: &[(F, Bit)] = &[
    (F::CMOV, (1, 0, 3, 15)),
    (F::MMX, (1, 0, 3, 23)),
    (F::FXSR, (1, 0, 3, 24)),
    (F::SSE, (1, 0, 3, 25)),
    (F::SSE2, (1, 0, 3, 26)),
    (F::SSE3, (1, 0, 2, 0)),
    (F::PCLMULQDQ, (1, 0, 2, 1)),
    (F::SSSE3, (1, 0, 2, 9)),
    (F::SSE4_1, (1, 0, 2, 19)),
    (F::SSE4_2, (1, 0, 2, 20)),
    (F::POPCNT, (1, 0, 2, 23)),
    (F::AES, (1, 0, 2, 25)),
    (F::XSAVE, (1, 0, 2, 26)),
    (F::ADX, (7, 0, 1, 19)),
    (F::BMI1, (7, 0, 1, 3)),
    (F::BMI2, (7, 0, 1, 8)),
    (F::SHA, (7, 0, 1, 29)),
    (F::GFNI, (7, 0, 2, 8)),
    (F::MOVDIRI, (7, 0, 2, 27)),
    (F::MOVDIR64B, (7, 0, 2, 28)),
    (F::XSAVEOPT, (0xd, 1, 0, 0)),
    (F::XSAVEC, (0xd, 1, 0, 1)),
    (F::XSAVES, (0xd, 1, 0, 3)),
    (F::LZCNT, (0x8000_0001, 0, 2, 5)),
    (F::SSE4A, (0x8000_0001, 0, 2, 6)),
];

const AVX_LIKE: &[(F, Bit)] = &[
    (F::AVX, (1, 0, 2, 28)),
    (F::FMA, (1, 0, 2, 12)),
    (F::F16C, (1, 0, 2, 29)),
    (F::AVX2, (7, 0, 1, 5)),
    (F::VAES, (7, 0, 2, 9)),
    (F::VPCLMULQDQ, (7, 0, 2, 10)),
    (F::SHA512, (7, 1, 0, 0)),
    (F::SM3, (7, 1, 0, 1)),
    (F::SM4, (7, 1, 0, 2)),
    (F::AVX_VNNI, (7, 1, 0, 4)),
    (F::AVX_IFMA, (7, 1, 0, 23)),
    (F::AVX_VNNI_INT8, (7, 1, 3, 4)),
    (F::AVX_NE_CONVERT, (7, 1, 3, 5)),
    (F::AVX_VNNI_INT16, (7, 1, 3, 10)),
];

const AVX512_LIKE: &[(F, Bit)] = &[
    (F::AVX512F, (7, 0, 1, 16)),
    (F::AVX512DQ, (7, 0, 1, 17)),
    (F::AVX512_IFMA, (7, 0, 1, 21)),
    (F::AVX512CD, (7, 0, 1, 28)),
    (F::AVX512BW, (7, 0, 1, 30)),
    (F::AVX512VL, (7, 0, 1, 31)),
    (F::AVX512_VBMI, (7, 0, 2, 1)),
    (F::AVX512_VBMI2, (7, 0, 2, 6)),
    (F::AVX512_VNNI, (7, 0, 2, 11)),
    (F::AVX512_BITALG, (7, 0, 2, 12)),
    (F::AVX512_VPOPCNTDQ, (7, 0, 2, 14)),
    (F::AVX512_VP2INTERSECT, (7, 0, 3, 8)),
    (F::AVX512_FP16, (7, 0, 3, 23)),
    (F::AVX512_BF16, (7, 1, 0, 5)),
];

fn has((leaf, subleaf, register, bit): Bit) -> bool {
    let maximum = cpuid(leaf & 0x8000_0000, 0)[0];
    if leaf > maximum || (leaf == 7 && subleaf > cpuid(7, 0)[0]) {
        return false;
    }
    cpuid(leaf, subleaf)[register] & (1 << bit) != 0
}

impl Host {
    /// The host this process runs on.
    pub(super) fn get() -> &'static Self {
        static HOST: OnceLock<Host> = OnceLock::new();
        HOST.get_or_init(Self::probe)
    }

    fn probe() -> Self {
        let xcr0 = host_xcr0();
        let mut features = vec![F::FPU, F::FPU287, F::FPU387];
        let mut add = |table: &[(F, Bit)]| {
            features.extend(table.iter().filter(|(_, bit)| has(*bit)).map(|(feature, _)| *feature));
        };
        add(SSE_LIKE);
        if xcr0 & 6 == 6 {
            add(AVX_LIKE);
        }
        if xcr0 & 0xe6 == 0xe6 {
            add(AVX512_LIKE);
        }
        let offers = |feature| features.contains(&feature);
        let (avx, avx512, wide_masks) = (offers(F::AVX), offers(F::AVX512F), offers(F::AVX512BW));
        let [_, vendor, ..] = cpuid(0, 0);
        let amd = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")].contains(&vendor);
        Self { features, mxcsr_mask: host_mxcsr_mask(), amd, avx, avx512, wide_masks, aligned_sha: !amd }
    }

    /// Whether the host has all of `needed`, and all of it belongs to what `native` runs.
    pub(super) fn offers(&self, needed: &[F]) -> bool {
        !needed.is_empty() && needed.iter().all(|feature| self.features.contains(feature))
    }
}
