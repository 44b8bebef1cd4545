//! What the oracle can't or mustn't run, as data, and which CPUID features the host has.

use super::native::cpuid;
use iced_x86::{Code, CpuidFeature as F, Instruction, Mnemonic as M, OpKind};

/// Mnemonics that are never run, with the reason.
const EXCLUDED: &[(&[M], &str)] = &[
    (&[M::Syscall, M::Sysenter, M::Sysret, M::Sysretq, M::Sysexit, M::Sysexitq], "enters the host's kernel"),
    (&[M::Rdtsc, M::Rdtscp, M::Rdpmc, M::Rdrand, M::Rdseed, M::Rdpid, M::Rdpru], "two runs give two answers"),
    (&[M::Cpuid, M::Xgetbv], "the guest's answer is not the host's by design"),
    (&[M::Wrfsbase, M::Wrgsbase], "would move the worker's bases for the cases that follow"),
    (&[M::Lds, M::Les, M::Lfs, M::Lgs, M::Lss], "loads a segment: depends on the host's descriptor tables"),
    (&[M::Lar, M::Lsl, M::Verr, M::Verw], "depends on the host's descriptor tables"),
    (&[M::Retf, M::Iret, M::Iretd, M::Iretq], "far transfer: depends on the host's descriptor tables"),
    (&[M::Sgdt, M::Sidt, M::Sldt, M::Str, M::Smsw], "under UMIP Linux emulates it for its processes"),
    (
        &[
            M::Vmcall,
            M::Vmmcall,
            M::Vmfunc,
            M::Vmlaunch,
            M::Vmresume,
            M::Vmxoff,
            M::Vmxon,
            M::Vmclear,
            M::Vmptrld,
            M::Vmptrst,
            M::Vmread,
            M::Vmwrite,
            M::Invept,
            M::Invvpid,
            M::Getsec,
            M::Encls,
            M::Enclu,
            M::Enclv,
            M::Skinit,
            M::Vmrun,
            M::Vmload,
            M::Vmsave,
            M::Clgi,
            M::Stgi,
            M::Invlpga,
            M::Invlpgb,
            M::Tlbsync,
            M::Vmgexit,
            M::Tdcall,
            M::Seamcall,
            M::Seamops,
            M::Seamret,
            M::Pconfig,
        ],
        "on a virtual host a hypervisor answers, and not as the manual says",
    ),
    (
        &[M::Xbegin, M::Xend, M::Xabort, M::Xtest, M::Xsusldtrk, M::Xresldtrk],
        "transactions abort when they like",
    ),
    (&[M::Umonitor, M::Umwait, M::Tpause, M::Monitorx, M::Mwaitx, M::Monitor, M::Mwait], "waits"),
    (&[M::Xsaves, M::Xsaves64, M::Xrstors, M::Xrstors64, M::Xsetbv], "privileged: engine cases check these"),
    (&[M::Wrpkru, M::Rdpkru], "would lock the worker out of its own memory"),
    (
        &[M::Enqcmd, M::Enqcmds, M::Senduipi, M::Uiret, M::Clui, M::Stui, M::Testui],
        "needs a device, or the host's set-up",
    ),
    (
        &[M::Hlt, M::In, M::Out, M::Insb, M::Insw, M::Insd, M::Outsb, M::Outsw, M::Outsd],
        "port rights are the host process's",
    ),
    (&[M::Wbinvd, M::Wbnoinvd, M::Invd, M::Rdmsr, M::Wrmsr, M::Rsm], "privileged: engine cases check these"),
    (
        &[M::Loadiwkey, M::Aesenc128kl, M::Aesenc256kl, M::Aesdec128kl, M::Aesdec256kl],
        "key locker: not offered",
    ),
    (
        &[
            M::Rdsspd,
            M::Rdsspq,
            M::Incsspd,
            M::Incsspq,
            M::Saveprevssp,
            M::Rstorssp,
            M::Setssbsy,
            M::Clrssbsy,
            M::Wrssd,
            M::Wrssq,
            M::Wrussd,
            M::Wrussq,
        ],
        "shadow stacks: not offered",
    ),
    (&[M::Clzero, M::Mcommit, M::Ptwrite], "hints and barriers that a virtual host need not have"),
];

/// Single encodings that are never run, with the reason.
const EXCLUDED_CODES: &[(&[Code], &str)] = &[
    (&[Code::Bswap_r16], "the result is undefined"),
    (&[Code::Shld_rm16_r16_CL, Code::Shrd_rm16_r16_CL], "the result is undefined for counts above 16"),
];

/// Whether `instruction` must not be run.
#[must_use]
pub fn is_excluded(instruction: &Instruction) -> bool {
    let mnemonic = instruction.mnemonic();
    EXCLUDED.iter().any(|(mnemonics, _)| mnemonics.contains(&mnemonic))
        || EXCLUDED_CODES.iter().any(|(codes, _)| codes.contains(&instruction.code()))
        || is_padlock(instruction.code())
        || has_undefined_result(instruction)
        || is_dangerous_form(instruction)
}

/// Whether no instruction of this encoding can be run.
#[must_use]
pub fn is_excluded_code(code: Code) -> bool {
    let mnemonic = code.mnemonic();
    EXCLUDED.iter().any(|(mnemonics, _)| mnemonics.contains(&mnemonic))
        || EXCLUDED_CODES.iter().any(|(codes, _)| codes.contains(&code))
        || is_padlock(code)
}

fn is_padlock(code: Code) -> bool {
    code.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            F::PADLOCK_ACE
                | F::PADLOCK_PHE
                | F::PADLOCK_PMM
                | F::PADLOCK_RNG
                | F::PADLOCK_GMI
                | F::PADLOCK_UNDOC
        )
    })
}

fn has_undefined_result(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8)
        && instruction.immediate8() & 31 > 16
}

fn is_dangerous_form(instruction: &Instruction) -> bool {
    let far = (0..instruction.op_count())
        .any(|i| matches!(instruction.op_kind(i), OpKind::FarBranch16 | OpKind::FarBranch32));
    let loads_segment = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register()
        && !matches!(instruction.mnemonic(), M::Push);
    let far_indirect = matches!(
        instruction.code(),
        Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
    );
    // The host's kernel answers INT 80H; all other vectors fault alike.
    let system_call =
        instruction.code() == Code::Int_imm8 && matches!(instruction.immediate8(), 0x80 | 3 | 4);
    // On a virtual host control registers are the hypervisor's.
    let control = (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == OpKind::Register && {
            let register = instruction.op_register(i);
            register.is_cr() || register.is_dr() || register.is_tr()
        }
    });
    far || loads_segment || far_indirect || system_call || control
}

/// Whether the host's CPU has `feature` and a guest may be shown it.
#[must_use]
pub fn host_has(feature: F) -> bool {
    let one = cpuid(1, 0);
    let seven = cpuid(7, 0);
    let seven_one = cpuid(7, 1);
    let extended = cpuid(0x8000_0001, 0);
    let bit = |register: u32, bit: u32| register & (1 << bit) != 0;
    match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 => true,
        F::FPU | F::FPU287 | F::FPU387 => true,
        F::CMOV | F::CX8 | F::MMX | F::FXSR | F::SSE | F::SSE2 | F::MULTIBYTENOP | F::PAUSE | F::CLFSH => {
            true
        }
        F::SSE3 => bit(one.ecx, 0),
        F::PCLMULQDQ => bit(one.ecx, 1),
        F::SSSE3 => bit(one.ecx, 9),
        F::FMA => bit(one.ecx, 12),
        F::CMPXCHG16B => bit(one.ecx, 13),
        F::SSE4_1 => bit(one.ecx, 19),
        F::SSE4_2 => bit(one.ecx, 20),
        F::MOVBE => bit(one.ecx, 22),
        F::POPCNT => bit(one.ecx, 23),
        F::AES => bit(one.ecx, 25),
        F::AVX => bit(one.ecx, 28),
        F::F16C => bit(one.ecx, 29),
        F::FSGSBASE => bit(seven.ebx, 0),
        F::BMI1 => bit(seven.ebx, 3),
        F::AVX2 => bit(seven.ebx, 5),
        F::BMI2 => bit(seven.ebx, 8),
        F::AVX512F => bit(seven.ebx, 16),
        F::AVX512DQ => bit(seven.ebx, 17),
        F::ADX => bit(seven.ebx, 19),
        F::AVX512_IFMA => bit(seven.ebx, 21),
        F::CLFLUSHOPT => bit(seven.ebx, 23),
        F::CLWB => bit(seven.ebx, 24),
        F::AVX512CD => bit(seven.ebx, 28),
        F::SHA => bit(seven.ebx, 29),
        F::AVX512BW => bit(seven.ebx, 30),
        F::AVX512VL => bit(seven.ebx, 31),
        F::AVX512_VBMI => bit(seven.ecx, 1),
        F::AVX512_VBMI2 => bit(seven.ecx, 6),
        F::GFNI => bit(seven.ecx, 8),
        F::VAES => bit(seven.ecx, 9),
        F::VPCLMULQDQ => bit(seven.ecx, 10),
        F::AVX512_VNNI => bit(seven.ecx, 11),
        F::AVX512_BITALG => bit(seven.ecx, 12),
        F::AVX512_VPOPCNTDQ => bit(seven.ecx, 14),
        F::CLDEMOTE => bit(seven.ecx, 25),
        F::MOVDIRI => bit(seven.ecx, 27),
        F::MOVDIR64B => bit(seven.ecx, 28),
        F::AVX512_VP2INTERSECT => bit(seven.edx, 8),
        F::SERIALIZE => bit(seven.edx, 14),
        F::AVX512_FP16 => bit(seven.edx, 23),
        F::AVX_VNNI => bit(seven_one.eax, 4),
        F::AVX512_BF16 => bit(seven_one.eax, 5),
        F::AVX_IFMA => bit(seven_one.eax, 23),
        F::LZCNT => bit(extended.ecx, 5),
        F::SSE4A => bit(extended.ecx, 6),
        F::PREFETCHW => bit(extended.ecx, 8),
        _ => false,
    }
}
