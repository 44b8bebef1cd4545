//! The features that a guest may be offered, one row each (SDM 2A CPUID; AMD APM 3 appendix E).
//!
//! What is not in the table is never offered. Left out on purpose: VMX and SVM, AMX, TSX, SGX, processor trace, CET, supervisor
//! keys, user interrupts, HRESET, WAITPKG, ENQCMD, LAM, FRED, MPX, Key Locker, performance counters, RDT, LBR, and
//! AMD's CLZERO, RDPRU, MONITORX, XOP, FMA4, TBM and misaligned SSE operands.

use x86::cpuid::{Cpuid, Leaf};

/// A register of a CPUID answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// When a feature is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// It runs as itself: where the host has it.
    Host,
    /// Software's: always.
    Always,
    /// Says that the CPU hasn't got a leak, or has its cheapest remedy: always, unless mitigations are the guest's business; then
    /// what the host says.
    Immune,
    /// The same, where the host is Intel's.
    IntelImmune,
    /// The same, where the host is AMD's.
    AmdImmune,
    /// Names a register of immunities whose host value can't be read: where the host is Intel's, unless mitigations are the
    /// guest's business.
    IntelTold,
    /// A remedy that only means something to a guest that mitigates: where it does and the host has it.
    Remedy,
    /// Software's, where the host is AMD's.
    Amd,
    /// Software's, where the machine asks for it.
    La57,
    /// The same.
    Mwait,
    /// With more than one vCPU.
    Smp,
    /// With more than one vCPU, where the host is AMD's.
    AmdSmp,
}

/// One bit of CPUID.
pub(super) struct Feature {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) reg: Reg,
    pub(super) bit: u32,
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    /// Features without which it isn't offered.
    pub(super) needs: &'static [&'static str],
}

impl Feature {
    pub(super) fn is_in(&self, answer: Leaf) -> bool {
        let reg = match self.reg {
            Reg::Eax => answer.eax,
            Reg::Ebx => answer.ebx,
            Reg::Ecx => answer.ecx,
            Reg::Edx => answer.edx,
        };
        reg >> self.bit & 1 == 1
    }

    pub(super) fn is_offered(&self, table: &Cpuid) -> bool {
        self.is_in(table.stored(self.leaf, self.subleaf))
    }

    pub(super) fn set(&self, table: &mut Cpuid, offered: bool) {
        let answer = table.leaf_mut(self.leaf, self.subleaf);
        let reg = match self.reg {
            Reg::Eax => &mut answer.eax,
            Reg::Ebx => &mut answer.ebx,
            Reg::Ecx => &mut answer.ecx,
            Reg::Edx => &mut answer.edx,
        };
        *reg = *reg & !(1 << self.bit) | u32::from(offered) << self.bit;
    }
}

macro_rules! features {
    ($($leaf:literal . $sub:literal $reg:ident { $($bit:literal $name:literal $rule:ident $([$($need:literal),+])? ;)* })*) => {
        &[$($(Feature {
            leaf: $leaf, subleaf: $sub, reg: Reg::$reg, bit: $bit, name: $name, rule: Rule::$rule,
            needs: &[$($($need),+)?],
        },)*)*]
    };
}

/// Every feature.
pub(super) static FEATURES: &[Feature] = features! {
    1 . 0 Edx {
        0 "fpu" Always; 1 "vme" Always; 2 "de" Always; 3 "pse" Always; 4 "tsc" Always; 5 "msr" Always; 6 "pae" Always;
        7 "mce" Always; 8 "cx8" Always; 9 "apic" Always; 11 "sep" Always; 12 "mtrr" Always; 13 "pge" Always; 14 "mca" Always;
        15 "cmov" Always; 16 "pat" Always; 17 "pse36" Always; 19 "clflush" Always; 23 "mmx" Host; 24 "fxsr" Always;
        25 "sse" Host; 26 "sse2" Host ["sse"]; 27 "ss" Host; 28 "ht" Smp;
    }
    1 . 0 Ecx {
        0 "pni" Host ["sse2"]; 1 "pclmulqdq" Host ["sse2"]; 3 "monitor" Mwait; 9 "ssse3" Host ["pni"]; 12 "fma" Host ["avx"]; 13 "cx16" Host;
        17 "pcid" Always; 19 "sse4_1" Host ["ssse3"]; 20 "sse4_2" Host ["sse4_1"]; 21 "x2apic" Always; 22 "movbe" Host;
        23 "popcnt" Host; 24 "tsc_deadline_timer" Always; 25 "aes" Host ["sse2"]; 26 "xsave" Host ["fxsr"];
        28 "avx" Host ["xsave", "sse4_2"]; 29 "f16c" Host ["avx"]; 30 "rdrand" Host; 31 "hypervisor" Always;
    }
    7 . 0 Ebx {
        0 "fsgsbase" Always; 1 "tsc_adjust" Always; 3 "bmi1" Host; 5 "avx2" Host ["avx"]; 7 "smep" Always; 8 "bmi2" Host;
        9 "erms" Host; 10 "invpcid" Always ["pcid"]; 16 "avx512f" Host ["avx2", "fma", "f16c"]; 17 "avx512dq" Host ["avx512f"];
        18 "rdseed" Host; 19 "adx" Host; 20 "smap" Always; 21 "avx512ifma" Host ["avx512f"]; 23 "clflushopt" Host;
        24 "clwb" Host; 28 "avx512cd" Host ["avx512f"]; 29 "sha_ni" Host ["sse2"]; 30 "avx512bw" Host ["avx512f"];
        31 "avx512vl" Host ["avx512f"];
    }
    7 . 0 Ecx {
        1 "avx512vbmi" Host ["avx512bw"]; 2 "umip" Always; 3 "pku" Host ["xsave"]; 6 "avx512_vbmi2" Host ["avx512bw"];
        8 "gfni" Host ["sse2"]; 9 "vaes" Host ["avx", "aes"]; 10 "vpclmulqdq" Host ["avx", "pclmulqdq"];
        11 "avx512_vnni" Host ["avx512f"]; 12 "avx512_bitalg" Host ["avx512bw"]; 14 "avx512_vpopcntdq" Host ["avx512f"];
        16 "la57" La57; 22 "rdpid" Host; 25 "cldemote" Host; 27 "movdiri" Host; 28 "movdir64b" Host;
    }
    7 . 0 Edx {
        4 "fsrm" Host; 8 "avx512_vp2intersect" Host ["avx512f"]; 10 "md_clear" Remedy; 14 "serialize" Host;
        23 "avx512_fp16" Host ["avx512bw", "avx512vl"]; 26 "spec_ctrl" IntelImmune; 27 "intel_stibp" IntelImmune;
        29 "arch_capabilities" IntelTold; 31 "spec_ctrl_ssbd" IntelImmune;
    }
    7 . 1 Eax {
        0 "sha512" Host ["avx2"]; 1 "sm3" Host ["avx"]; 2 "sm4" Host ["avx"]; 4 "avx_vnni" Host ["avx2"];
        5 "avx512_bf16" Host ["avx512bw", "avx512vl"]; 10 "fzrm" Host; 11 "fsrs" Host; 12 "fsrc" Host; 23 "avx_ifma" Host ["avx2"];
    }
    7 . 1 Edx {
        4 "avx_vnni_int8" Host ["avx2"]; 5 "avx_ne_convert" Host ["avx2"]; 10 "avx_vnni_int16" Host ["avx2"];
    }
    7 . 2 Edx { 5 "mcdt_no" IntelImmune; }
    0xd . 1 Eax {
        0 "xsaveopt" Host ["xsave"]; 1 "xsavec" Host ["xsave"]; 2 "xgetbv1" Host ["xsave"]; 3 "xsaves" Host ["xsavec"];
    }
    0x80000001 . 0 Ecx {
        0 "lahf_lm" Always; 1 "cmp_legacy" AmdSmp; 5 "abm" Host; 6 "sse4a" Host ["pni"];
        8 "3dnowprefetch" Host;
    }
    // AMD repeats most of leaf 1 here.
    0x80000001 . 0 Edx {
        0 "amd_fpu" Amd; 1 "amd_vme" Amd; 2 "amd_de" Amd; 3 "amd_pse" Amd; 4 "amd_tsc" Amd; 5 "amd_msr" Amd; 6 "amd_pae" Amd;
        7 "amd_mce" Amd; 8 "amd_cx8" Amd; 9 "amd_apic" Amd; 11 "syscall" Always; 12 "amd_mtrr" Amd; 13 "amd_pge" Amd;
        14 "amd_mca" Amd; 15 "amd_cmov" Amd; 16 "amd_pat" Amd; 17 "amd_pse36" Amd; 20 "nx" Always; 22 "mmxext" Host;
        23 "amd_mmx" Amd ["mmx"]; 24 "amd_fxsr" Amd; 25 "fxsr_opt" Host; 26 "pdpe1gb" Always; 27 "rdtscp" Always;
        29 "lm" Always;
    }
    0x80000007 . 0 Edx { 8 "invariant_tsc" Always; }
    0x80000008 . 0 Ebx {
        2 "xsaveerptr" Host; 12 "amd_ibpb" AmdImmune; 14 "amd_ibrs" AmdImmune; 15 "amd_stibp" AmdImmune; 24 "amd_ssbd" AmdImmune;
        26 "amd_ssb_no" AmdImmune; 29 "btc_no" Immune; 30 "amd_ibpb_ret" Remedy;
    }
    0x80000021 . 0 Eax {
        0 "no_nested_data_bp" Amd; 2 "lfence_rdtsc" Amd; 5 "verw_clear" Remedy; 6 "null_sel_clr_base" Amd;
        8 "autoibrs" AmdImmune; 27 "sbpb" AmdImmune; 28 "ibpb_brtype" Remedy; 29 "srso_no" AmdImmune;
    }
    0x80000021 . 0 Ecx { 1 "tsa_sq_no" AmdImmune; 2 "tsa_l1_no" AmdImmune; }
};
