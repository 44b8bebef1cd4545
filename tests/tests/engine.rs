//! Every case in `tests/engine` on every engine, one test each; the translator also without what some hosts lack.
//!
//! `cargo test -p conformance --test engine -- PART_OF_A_NAME` runs some of them. Where GNU `as` and `ld` are missing all are
//! reported as ignored.

use conformance::cases::{self, Case};
use conformance::{ENGINES, Make};
use engine::{Engine, EngineError, Setup};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use translator::{Options, Translator, Without};

/// The translator as it is on hosts that lack something.
const POORER: &[(&str, Make)] = &[
    ("translator-without-fsgsbase", |setup| without(setup, Without { fsgsbase: true, ..Without::NOTHING })),
    ("translator-without-avx", |setup| without(setup, Without { avx: true, ..Without::NOTHING })),
    ("translator-without-xsave", |setup| without(setup, Without { xsave: true, ..Without::NOTHING })),
    ("suspicious-translator", conformance::suspicious_translator),
    ("chaotic-translator", conformance::chaotic_translator),
];

fn without(setup: Setup, without: Without) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(Translator::new(setup, Options { hot: 1, without, ..Options::default() })?))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match trials() {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Result<Vec<Trial>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine");
    let broke = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(broke)? {
        let path = entry.map_err(broke)?.path();
        if path.extension().is_some_and(|extension| extension == "s") {
            files.push(path);
        }
    }
    files.sort();
    let able = cases::is_available();
    if !able {
        eprintln!("skipped: GNU as and ld are needed to assemble the cases");
    }
    let mut trials = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).map_err(broke)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for case in cases::parse(&format!("{name}.s"), &text)? {
            let case = Arc::new(case);
            for &(engine, make) in ENGINES.iter().chain(POORER) {
                let (title, case) = (format!("{engine}::{name}::{}", case.name), Arc::clone(&case));
                trials.push(Trial::test(title, move || judge(&case, make)).with_ignored_flag(!able));
            }
        }
    }
    Ok(trials)
}

fn judge(case: &Case, make: Make) -> Result<(), Failed> {
    cases::run(case, &make).map_err(Failed::from)
}
