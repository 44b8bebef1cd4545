//! Invariants of the CPUID table, on invented hosts and on this one.

use super::features::Feature;
use super::*;

const OPTIONS: Options =
    Options { cpus: 3, tsc_hz: 2_299_998_417, la57: false, mwait: false, mitigations: Mitigations::Off };

/// A host on which every bit of every leaf is set.
fn everything(leaf: u32, subleaf: u32) -> Leaf {
    let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    match leaf {
        0 => Leaf { eax: 0x20, ebx: u32::from_le_bytes(*b"Genu"), ..all },
        4 => Leaf::default(),
        0x8000_0000 => Leaf { eax: 0x8000_0021, ..all },
        0x8000_0008 => Leaf { eax: 0x3934, ..all },
        0xd => intel_component(subleaf).unwrap_or(all),
        _ => all,
    }
}

/// Where Intel's processors have their components.
fn intel_component(number: u32) -> Option<Leaf> {
    let (eax, ebx, ecx) = match number {
        2 => (256, 0x240, 0),
        5 => (64, 0x440, 0),
        6 => (512, 0x480, 0),
        7 => (1024, 0x680, 0),
        9 => (8, 0xa80, 0),
        _ => return None,
    };
    Some(Leaf { eax, ebx, ecx, edx: 0 })
}

/// The same, with one bit of one leaf clear.
fn without(name: &str) -> impl Fn(u32, u32) -> Leaf {
    let feature = FEATURES.iter().find(|feature| feature.name == name).expect("a feature of the table");
    move |leaf, subleaf| {
        let mut table = Cpuid::default();
        table.set(leaf, subleaf, everything(leaf, subleaf));
        if (leaf, subleaf) == (feature.leaf, feature.subleaf) {
            feature.set(&mut table, false);
        }
        table.stored(leaf, subleaf)
    }
}

#[test]
fn no_feature_is_listed_twice_and_every_need_is_a_feature() {
    for (index, feature) in FEATURES.iter().enumerate() {
        assert!(feature.bit < 32);
        for other in &FEATURES[index + 1..] {
            assert_ne!(feature.name, other.name);
            let place = |f: &Feature| (f.leaf, f.subleaf, f.reg as u8, f.bit);
            assert_ne!(place(feature), place(other), "{} and {}", feature.name, other.name);
        }
        for need in feature.needs {
            assert!(FEATURES.iter().any(|other| other.name == *need), "{need}");
        }
    }
}

#[test]
fn nothing_is_offered_without_what_it_needs() {
    for missing in FEATURES.iter().filter(|feature| feature.rule == Rule::Host) {
        let table = build(&without(missing.name), OPTIONS);
        assert!(!offers(&table, missing.name), "{}", missing.name);
        for feature in FEATURES.iter().filter(|feature| feature.is_offered(&table)) {
            assert!(
                feature.needs.iter().all(|need| offers(&table, need)),
                "{} without {}",
                feature.name,
                missing.name
            );
        }
    }
}

#[test]
fn without_xsave_there_is_no_extended_state_at_all() {
    let table = build(&without("xsave"), OPTIONS);
    for name in ["avx", "avx2", "avx512f", "vaes", "pku", "xsaves", "fma"] {
        assert!(!offers(&table, name), "{name}");
    }
    assert_eq!(table.stored(0xd, 0), Leaf::default());
    assert_eq!(table.stored(0xd, 1), Leaf::default());
}

#[test]
fn extended_state_is_offered_exactly_for_the_features_that_have_it() {
    let table = build(&everything, OPTIONS);
    assert_eq!(table.stored(0xd, 0), Leaf { eax: 0x2e7, ebx: 0xa88, ecx: 0xa88, edx: 0 });
    assert_eq!(table.stored(0xd, 9), Leaf { eax: 8, ebx: 0xa80, ..Leaf::default() });
    let table = build(&without("pku"), OPTIONS);
    assert_eq!(table.stored(0xd, 0), Leaf { eax: 0xe7, ebx: 0xa80, ecx: 0xa80, edx: 0 });
    assert_eq!(table.stored(0xd, 9), Leaf::default());
    let table = build(&without("avx512f"), OPTIONS);
    assert_eq!(table.stored(0xd, 0).eax, 0x207);
}

#[test]
fn images_of_extended_state_are_laid_out_as_the_host_does_it() {
    // As AMD's processors have it; the last one aligned, and with a flag that the engine doesn't know.
    let amd = |leaf, subleaf| match (leaf, subleaf) {
        (0xd, 5) => Leaf { eax: 64, ebx: 0x340, ..Leaf::default() },
        (0xd, 6) => Leaf { eax: 512, ebx: 0x380, ..Leaf::default() },
        (0xd, 7) => Leaf { eax: 1024, ebx: 0x580, ..Leaf::default() },
        (0xd, 9) => Leaf { eax: 8, ebx: 0x980, ecx: 0b110, edx: 0 },
        _ => everything(leaf, subleaf),
    };
    let table = build(&amd, OPTIONS);
    assert_eq!(table.stored(0xd, 5), Leaf { eax: 64, ebx: 0x340, ..Leaf::default() });
    assert_eq!(table.stored(0xd, 9), Leaf { eax: 8, ebx: 0x980, ecx: 0b10, edx: 0 });
    assert_eq!(table.stored(0xd, 0), Leaf { eax: 0x2e7, ebx: 0x988, ecx: 0x988, edx: 0 });
    assert_eq!(table.stored(0xd, 1).ebx, 576 + 256 + 64 + 512 + 1024 + 8);
    // This host's own are the host's.
    let table = build(&host, OPTIONS);
    for component in COMPONENTS.into_iter().filter(|number| table.stored(0xd, 0).eax >> number & 1 == 1) {
        let own = host(0xd, component);
        let told = table.stored(0xd, component);
        assert_eq!((told.eax, told.ebx, told.ecx), (own.eax, own.ebx, own.ecx & 2));
    }
}

#[test]
fn what_the_engine_does_not_honour_is_masked_even_if_the_host_has_it() {
    let table = build(&everything, OPTIONS);
    let clear = |leaf, subleaf, pick: fn(Leaf) -> u32, bits: &[u32]| {
        for bit in bits {
            assert_eq!(pick(table.stored(leaf, subleaf)) >> bit & 1, 0, "leaf {leaf:#x} bit {bit}");
        }
    };
    clear(1, 0, |l| l.ecx, &[2, 3, 5, 6, 15, 27]); // DTES64, MONITOR, VMX, SMX, PDCM, OSXSAVE
    clear(1, 0, |l| l.edx, &[21]); // DS
    clear(7, 0, |l| l.ebx, &[2, 4, 11, 12, 14, 15, 25]); // SGX, HLE, RTM, RDT, MPX, PT
    clear(7, 0, |l| l.ecx, &[4, 5, 7, 16, 23, 29, 31]); // OSPKE, WAITPKG, CET, LA57, KL, ENQCMD, PKS
    clear(7, 0, |l| l.edx, &[5, 11, 13, 16, 18, 19, 20, 22, 24, 25]); // UINTR, TSX, PCONFIG, LBR, IBT, AMX
    clear(7, 1, |l| l.eax, &[17, 21, 22, 26]); // FRED, AMX-FP16, HRESET, LAM
    // SVM, misaligned SSE, IBS, XOP, FMA4, TBM, TOPOEXT, MONITORX
    clear(0x8000_0001, 0, |l| l.ecx, &[2, 7, 10, 11, 16, 21, 22, 29]);
    for leaf in [5, 0xa, 0xf, 0x10, 0x12, 0x14, 0x19, 0x1c, 0x1d, 0x1e] {
        assert_eq!(table.query(leaf, 0), Leaf::default(), "leaf {leaf:#x}");
    }
}

#[test]
fn five_level_paging_is_offered_only_if_asked_for() {
    let table = build(&everything, Options { la57: true, ..OPTIONS });
    assert!(offers(&table, "la57"));
    assert_eq!(table.stored(0x8000_0008, 0).eax, 46 | 57 << 8);
    assert_eq!(build(&everything, OPTIONS).stored(0x8000_0008, 0).eax, 46 | 48 << 8);
}

#[test]
fn monitor_and_its_leaf_are_there_only_if_asked_for() {
    let nothing = |_: u32, _: u32| Leaf::default();
    let table = build(&nothing, Options { mwait: true, ..OPTIONS });
    assert!(offers(&table, "monitor"));
    assert_eq!(table.query(5, 0), Leaf { eax: 64, ebx: 64, ecx: 3, edx: 0x10 });
    assert!(!offers(&build(&everything, OPTIONS), "monitor"));
}

#[test]
fn topology_is_one_socket_of_single_threaded_cores() {
    let table = build(&everything, OPTIONS);
    for leaf in [0xb, 0x1f] {
        assert_eq!(table.query(leaf, 0), Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: 0 });
        assert_eq!(table.query(leaf, 1), Leaf { eax: 2, ebx: 3, ecx: 0x201, edx: 0 });
    }
    assert_eq!(table.stored(1, 0).ebx >> 16 & 0xff, 3);
    assert!(offers(&table, "ht"));
    assert!(!offers(&build(&everything, Options { cpus: 1, ..OPTIONS }), "ht"));
}

#[test]
fn the_tsc_frequency_survives_linux_arithmetic() {
    for hz in [999_999_999, 1_000_000_000, 2_299_998_417, 2_300_000_000, 3_792_874_921, 4_200_000_001] {
        let table = build(&everything, Options { tsc_hz: hz, ..OPTIONS });
        let leaf = table.stored(0x15, 0);
        // As native_calibrate_tsc does it, in 32 bits.
        let khz = (leaf.ecx / 1000).checked_mul(leaf.ebx).expect("no overflow") / leaf.eax;
        assert!(u64::from(khz).abs_diff(hz / 1000) <= 2, "{khz} for {hz}");
        assert!(u64::from(table.stored(0x4000_0010, 0).eax).abs_diff(hz / 1000) <= 1);
    }
}

#[test]
fn this_host_gets_a_table_linux_can_boot_on() {
    let table = build(&host, Options { cpus: 1, tsc_hz: 2_000_000_000, ..OPTIONS });
    for name in [
        "lm",
        "nx",
        "syscall",
        "pae",
        "apic",
        "x2apic",
        "tsc_deadline_timer",
        "fsgsbase",
        "invariant_tsc",
        "sse2",
    ] {
        assert!(offers(&table, name), "{name}");
    }
    assert!(offered_features(&table).len() > 60);
    assert_eq!(table.query(0x4000_0000, 0).ebx.to_le_bytes(), *b"Ombr");
}

/// An AMD host with nothing but what is needed to be one, and these bits of 8000_0008 EBX, 8000_0021 EAX and ECX.
fn amd(ebx: u32, eax: u32, ecx: u32) -> impl Fn(u32, u32) -> Leaf {
    move |leaf, _| match leaf {
        0 => Leaf { eax: 0x10, ebx: u32::from_le_bytes(*b"Auth"), ..Leaf::default() },
        0x8000_0000 => Leaf { eax: 0x8000_0021, ..Leaf::default() },
        0x8000_0008 => Leaf { eax: 0x3030, ebx, ..Leaf::default() },
        0x8000_0021 => Leaf { eax, ecx, ..Leaf::default() },
        _ => Leaf::default(),
    }
}

/// What Linux looks at before it decides that an AMD CPU isn't affected (`cpu_set_bug_bits`), or that it only has to set a bit.
#[test]
fn an_amd_cpu_is_said_to_have_no_leaks_unless_mitigations_are_the_guests() {
    const ALL: [&str; 6] = ["amd_ssb_no", "btc_no", "srso_no", "autoibrs", "tsa_sq_no", "tsa_l1_no"];
    let table = build(&amd(0, 0, 0), OPTIONS);
    for name in ALL {
        assert!(offers(&table, name), "{name}");
    }
    let guests = Options { mitigations: Mitigations::Guest, ..OPTIONS };
    let table = build(&amd(0, 0, 0), guests);
    for name in ALL.iter().chain(&["amd_ibpb", "amd_ibrs", "amd_stibp", "amd_ssbd", "sbpb"]) {
        assert!(!offers(&table, name), "{name}: this host doesn't have it");
    }
    let table = build(&amd(1 << 12 | 1 << 29, 1 << 28 | 1 << 8, 1 << 2), guests);
    for name in ["amd_ibpb", "btc_no", "ibpb_brtype", "autoibrs", "tsa_l1_no"] {
        assert!(offers(&table, name), "{name}: this host has it");
    }
    for name in ["amd_ssb_no", "srso_no", "tsa_sq_no"] {
        assert!(!offers(&table, name), "{name}");
    }
    // A remedy by itself would only tempt the guest.
    assert!(!offers(&build(&amd(0, 1 << 28, 0), OPTIONS), "ibpb_brtype"));
}

#[test]
fn an_intel_cpu_is_said_to_have_no_leaks_unless_mitigations_are_the_guests() {
    let table = build(&everything, OPTIONS);
    // ARCH_CAPABILITIES has the rest, see `msr`. Retbleed is asked for by AMD's bit whoever made the CPU.
    for name in ["arch_capabilities", "btc_no", "spec_ctrl"] {
        assert!(offers(&table, name), "{name}");
    }
    assert!(!offers(&table, "md_clear"), "a CPU without the leak needs no clearing");
    let table = build(&everything, Options { mitigations: Mitigations::Guest, ..OPTIONS });
    assert!(offers(&table, "md_clear") && offers(&table, "spec_ctrl"));
    assert!(!offers(&table, "arch_capabilities"), "the host's can't be read");
    assert!(!offers(
        &build(&without("spec_ctrl"), Options { mitigations: Mitigations::Guest, ..OPTIONS }),
        "spec_ctrl"
    ));
}
