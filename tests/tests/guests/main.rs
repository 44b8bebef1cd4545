//! Real guests, started with the release binary: Debian's kernels, a command's status, a terminal, memtest86+.
//!
//! `cargo xtask test` builds the binary, fetches the guests and says where both are (`OMBRA_BIN`, `OMBRA_CACHE`). A test
//! whose guest isn't there is reported as ignored, after a line that says what is missing; with `OMBRA_NO_SKIP=1` it
//! fails. `OMBRA_LONG=1` adds what takes minutes. Each guest gets one core's time, so the tests may run side by side.
//!
//! `cargo test -p conformance --test guests -- PART_OF_A_NAME` runs some of them.

mod archive;
mod commands;
mod kernels;
mod lifecycle;
mod process;
mod terminals;

use libtest_mimic::{Arguments, Trial};
use process::Guests;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One test: its name, the files below `cache/guests` that it needs, what it does.
type Test = (&'static str, &'static [&'static str], fn(&Guests));

/// Tests that take minutes and show little that another doesn't: run with `OMBRA_LONG=1`.
const LONG: &[&str] = &["memtest86_of_32_bits_runs_its_first_pass"];

/// What most tests need.
const CLOUD: &[&str] = &["cloud/vmlinuz", "busybox"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let strict = std::env::var_os("OMBRA_NO_SKIP").is_some_and(|value| value == "1");
    let cache = std::env::var_os("OMBRA_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache"), PathBuf::from);
    let long = std::env::var_os("OMBRA_LONG").is_some_and(|value| value == "1");
    let binary = std::env::var_os("OMBRA_BIN").map(PathBuf::from).filter(|path| path.is_file());
    let folder = cache.join("guests");
    let tests = [kernels::TESTS, commands::TESTS, lifecycle::TESTS, terminals::TESTS];
    let trials = tests.into_iter().flatten().map(|&(name, files, test)| {
        let missing = match &binary {
            None => Some("OMBRA_BIN names no binary; `cargo xtask test` builds and names it".to_owned()),
            Some(_) => files
                .iter()
                .map(|file| folder.join(file))
                .find(|path| !path.exists())
                .map(|path| format!("there is no {}; `cargo xtask guests` fetches it", path.display())),
        };
        if let (Some(missing), false) = (&missing, arguments.list) {
            eprintln!("SKIPPED {name}: {missing}");
        }
        let too_long = LONG.contains(&name) && !long;
        if too_long && !arguments.list {
            eprintln!("SKIPPED {name}: it takes minutes; OMBRA_LONG=1 runs it");
        }
        let ignored = too_long || missing.is_some() && !strict;
        let guests = Guests { binary: binary.clone().unwrap_or_default(), folder: folder.clone() };
        Trial::test(name, move || match missing {
            Some(missing) => Err(missing.into()),
            None => {
                test(&guests);
                Ok(())
            }
        })
        .with_ignored_flag(ignored)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
