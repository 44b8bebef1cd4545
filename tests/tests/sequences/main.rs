//! Sequences on every engine: against the reference, and each against itself run in other pieces; and wrong engines, which the
//! judge has to find.
//!
//! `SEQUENCES_CASES` and `SEQUENCES_SEED` in the environment change how much is run and from where; `cargo xtask fuzz
//! sequences` uses the former.

mod faulty;

use conformance::sequences::{self, ENGINES, End, Make, Options, Report};
use faulty::{Fault, wrong};

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn judge(names: (&str, &str), makes: (Make, Make), cases: u64) -> Report {
    let options = Options { cases, seed: environment("SEQUENCES_SEED", 1), ..Options::default() };
    let report = sequences::run(makes, options).expect("both engines can be made");
    println!(
        "{} against {}: {} cases, {} instructions, ends {:?}, vectors {:?}",
        names.1, names.0, report.cases, report.instructions, report.ends, report.vectors
    );
    assert!(
        report.mismatches == 0,
        "{} against {}: {} mismatches\n{}\n{:#?}",
        names.1,
        names.0,
        report.mismatches,
        report.details.join("\n"),
        report.families
    );
    assert_eq!(report.cases, cases);
    report
}

#[test]
fn every_engine_runs_sequences_as_the_reference_does() {
    let cases = environment("SEQUENCES_CASES", 100_000);
    let (reference, rest) = ENGINES.split_first().expect("there is a reference");
    for (index, engine) in rest.iter().enumerate() {
        // What comes after the first is another form of it.
        let cases = if index == 0 { cases } else { cases.div_ceil(10) };
        judge((reference.0, engine.0), (reference.1, engine.1), cases);
    }
}

#[test]
fn sequences_come_to_the_same_whatever_the_pieces_they_run_in() {
    let cases = environment("SEQUENCES_CASES", 100_000).div_ceil(10);
    for &(name, make) in ENGINES {
        let report = judge((name, name), (make, make), cases);
        // What the cases are about has to happen in them.
        if cases < 1000 {
            continue;
        }
        for vector in [0, 1, 2, 3, 6, 7, 12, 13, 14, 16, 17, 0x30, 0x41, 0x42, 0x45, 0x46, 0x4f] {
            assert!(report.vectors.contains_key(&vector), "no case saw vector {vector:#x}");
        }
        for call in ["MmioRead", "MmioWrite", "PortRead", "PortWrite", "Event"] {
            assert!(report.calls.contains_key(call), "no case led to {call}");
        }
        for mode in ["Long, ring 0", "Long, ring 3", "Compat, ring 3", "Pae, ring 3", "Paged32, ring 3"] {
            assert!(report.modes.contains_key(mode), "no case ran in {mode}");
        }
        assert!(report.ended(End::Halted) > cases / 3, "most programs don't end");
        assert_eq!(report.ended(End::Broken), 0);
    }
}

/// Few enough that a fault would be found while one waits.
const FEW: u64 = 1024;

fn found(fault: Fault) {
    let options = Options { cases: FEW, details: 1, enough: 1, ..Options::default() };
    let report =
        sequences::run((conformance::interpreter, wrong(fault)), options).expect("both engines can be made");
    println!("{fault:?}: found among {} cases", report.cases);
    assert!(report.mismatches > 0, "{fault:?} isn't found in {FEW} cases");
    let text = report.details.first().expect("the first mismatch is described");
    assert!(text.starts_with("case 0x") && text.contains("rip"), "{text}");
}

#[test]
fn an_engine_that_forgets_to_invalidate_is_found() {
    found(Fault::IgnoresInvlpg);
}

#[test]
fn an_engine_that_runs_stale_code_is_found() {
    found(Fault::StaleCode);
}

#[test]
fn an_engine_that_flips_a_flag_once_is_found() {
    found(Fault::FlipsCarry);
}

#[test]
fn an_engine_that_loses_a_device_write_is_found() {
    found(Fault::DropsWrite);
}

#[test]
fn an_engine_that_takes_an_interrupt_late_is_found() {
    found(Fault::LateEvent);
}

#[test]
fn an_engine_that_leaves_a_page_clean_is_found() {
    found(Fault::LeavesClean);
}
