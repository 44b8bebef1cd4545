//! The interpreter against the host CPU. `ORACLE_CASES` and `ORACLE_SEED` in the environment change how much is run and
//! from where; `cargo xtask fuzz oracle` uses the former.

use conformance::oracle::{self, Options};
use iced_x86::Mnemonic;

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_code_does_on_the_interpreter_what_it_does_on_the_host() {
    let options = Options {
        cases: environment("ORACLE_CASES", 200_000),
        seed: environment("ORACLE_SEED", 1),
        ..Options::default()
    };
    let report = oracle::run(&conformance::interpreter, options).expect("both sides can be set up");
    for (feature, cases) in &report.features {
        println!("{cases:>8}  {feature}");
    }
    println!("{} cases, by the host's vector: {:?}", report.cases, report.vectors);
    let mut families: Vec<_> = report.families.iter().collect();
    families.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    assert!(
        report.mismatches == 0,
        "{} mismatches\n{}\n{families:#?}",
        report.mismatches,
        report.details.join("\n")
    );
    assert_eq!(report.cases, options.cases);
    for (feature, &cases) in &report.features {
        assert!(cases > 0, "no case used {feature}");
    }
}

/// Instructions that were wrong once, each alone and in sequences with itself: CMPXCHG's destination when it isn't
/// exchanged, flags and order of faults in REP CMPS and SCAS, CALL to an address that isn't canonical, MXCSR after
/// conversions from memory, registers after a change of TOP, overrides that 64-bit code ignores. Then masked operands: which
/// elements are looked at, and where a fault is reported; parts of x87 and MMX operands; masks of gathers that fault;
/// unmasked SIMD exceptions of half precision, of scaling, of approximations, of overflow with a result that a wider exponent
/// would make exact, of dot products; #AC; the order of faults in MOVDIR64B, FXRSTOR
/// and ENTER; upper halves of registers that REP uses with 32-bit addresses; SHA operands that AMD's CPUs take misaligned; images of the
/// x87 and vector state, which the many instructions that are no images crowd out of random cases.
#[test]
fn what_the_oracle_found_stays_found() {
    for only in [
        Mnemonic::Cmpxchg,
        Mnemonic::Scasb,
        Mnemonic::Scasq,
        Mnemonic::Cmpsd,
        Mnemonic::Cmpsq,
        Mnemonic::Call,
        Mnemonic::Cvttsd2si,
        Mnemonic::Fninit,
        Mnemonic::Add,
        Mnemonic::Maskmovq,
        Mnemonic::Maskmovdqu,
        Mnemonic::Vmaskmovps,
        Mnemonic::Vpsrld,
        Mnemonic::Vpshufbitqmb,
        Mnemonic::Vbroadcasti32x4,
        Mnemonic::Vextractf32x4,
        Mnemonic::Vmovaps,
        Mnemonic::Vmovdqu8,
        Mnemonic::Vpmovqb,
        Mnemonic::Vpcompressw,
        Mnemonic::Vcompresspd,
        Mnemonic::Vfmulcsh,
        Mnemonic::Vgatherqps,
        Mnemonic::Vpgatherqd,
        Mnemonic::Vpscatterdd,
        Mnemonic::Fldenv,
        Mnemonic::Frstor,
        Mnemonic::Fstp,
        Mnemonic::Fbstp,
        Mnemonic::Movntq,
        Mnemonic::Cvtps2pi,
        Mnemonic::Vcvtps2ph,
        Mnemonic::Vscalefpd,
        Mnemonic::Vaddph,
        Mnemonic::Vrcp14ps,
        Mnemonic::Vreduceps,
        Mnemonic::Vmulpd,
        Mnemonic::Vdpps,
        Mnemonic::Vdppd,
        Mnemonic::Extrq,
        Mnemonic::Insertq,
        Mnemonic::Movdir64b,
        Mnemonic::Fxrstor,
        Mnemonic::Enter,
        Mnemonic::Movsb,
        Mnemonic::Stosw,
        Mnemonic::Sha1msg1,
        Mnemonic::Sha256rnds2,
        Mnemonic::Fnstenv,
        Mnemonic::Fnsave,
        Mnemonic::Fxsave,
        Mnemonic::Fxsave64,
        Mnemonic::Xsave,
        Mnemonic::Xsavec64,
        Mnemonic::Xsaveopt,
        Mnemonic::Xrstor,
        Mnemonic::Xrstor64,
    ] {
        let options = Options { cases: 3000, only: Some(only), ..Options::default() };
        let report = oracle::run(&conformance::interpreter, options).expect("both sides can be set up");
        assert!(report.mismatches == 0, "{only:?}: {}", report.details.join("\n"));
    }
}
