//! `cargo xtask`: what the Makefile and CI call. `check`, `layers`, `guests`, `test`, `bench`, `boots`, `fuzz`.
//!
//! Plain std: every subcommand is a few processes run in order. One thread. Everything that is downloaded goes to the
//! checkout's `cache/`, nothing is installed on the host.

mod apt;
mod bench;
mod boots;
mod debian;
mod fuzz;
mod guests;
mod layers;
mod rootfs;
mod soak;

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check                 rustfmt, clippy with warnings denied, the layers of the workspace
  layers                only the layers: which crate may import which
  guests [--for run]    fetches guest kernels and busybox into cache/ (with `--for run`: what `make run` needs)
  rootfs NAME           a root file system of Debian's programs: jit, programs, node, stress or make; debian: a whole one, on a disk
  test                  builds the release binary, fetches the guests, runs all tests
  boots N [--engine E] [--cpus N]
                        Debian's cloud kernel from start to power-off, N times in a row; on one and two vCPUs in turn
  soak [FLAGS]          compiles, compresses and runs scripts in a guest, and compares with native runs
    --minutes N         for so long (default 60)
    --engine NAME       on this engine of Ombra (default auto)
    --cpus N            vCPUs, each with a load of its own (default 1)
  bench [FLAGS]         guests/bench natively, on Ombra's engines and under qemu-system-x86_64 (TCG), in turn; a table
    --only NAME         a workload or group (integer, memory, vector, kernel, switches, storms, scaling, atomics, code,
                        programs); may be repeated; disk, alone: fio on disks, against TCG's virtio-blk
    --rounds N          rounds through all of them (default 3)
    --engine NAME       an engine of Ombra (default all); may be repeated
    --no-native, --no-ombra, --no-tcg
    --scale FACTOR      so much of the work (default 1)
    --write             the table goes into docs/benchmarks.md too
  bench --prepare       builds guests/bench into cache/guests: `bench`, and an initramfs of it, `bench.cpio`
  fuzz oracle [N]       N random cases (default 5000000) on the host CPU against the interpreter
  fuzz sequences [N]    N random programs (default 2000000) on each engine against the interpreter
  fuzz TARGET [--seconds N]
                        libFuzzer on a target of fuzz/ for N seconds (default 600); needs a C++ compiler
  fuzz TARGET FILE      one input again
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check(),
        ["layers"] => layers::check(&root()),
        ["guests"] => guests::fetch(&root(), guests::For::Everything),
        ["guests", "--for", "run"] => guests::fetch(&root(), guests::For::Run),
        ["rootfs", debian::NAME] => debian::disk(&root()).map(|disk| println!("{}", disk.display())),
        ["rootfs", name] => rootfs::by_name(&root(), name),
        ["test"] => test(),
        ["bench", rest @ ..] => bench::command(rest),
        ["boots", count, flags @ ..] => boots::run(&root(), count, flags),
        ["soak", rest @ ..] => soak::command(&root(), rest),
        ["fuzz", rest @ ..] => fuzz_any(rest),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one below the checkout").to_path_buf()
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command, its output going to ours, and fails where it fails.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} {:?} failed: {status}", command.get_program(), command.get_args().collect::<Vec<_>>());
    }
    Ok(())
}

/// The release binary; builds it first.
fn release_binary() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "ombra"]))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(root().join(target).join("release/ombra"))
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    // No packages of the workspace: bin/ombra's build script and the bench hand them to rustc.
    run(Command::new("rustfmt")
        .args(["--edition", "2024", "--check", "guests/init/src/main.rs", bench::PROGRAM])
        .current_dir(root()))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    fuzz::check()?;
    layers::check(&root())
}

fn test() -> Result<()> {
    // A guest that is missing makes its test say "skipped"; everything else still runs.
    let fetched = guests::fetch(&root(), guests::For::Everything);
    if let Err(error) = &fetched {
        eprintln!("xtask: SKIPPED: not all guests could be fetched, their tests will not run: {error:#}");
    }
    let debian = debian::disk(&root());
    if let Err(error) = &debian {
        eprintln!("xtask: SKIPPED: there is no Debian on a disk, its tests will not run: {error:#}");
    }
    let binary = release_binary()?;
    let has_nextest =
        cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    let mut command = cargo();
    if has_nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast"]);
    }
    run(command.env("OMBRA_BIN", binary).env("OMBRA_CACHE", guests::cache(&root())))?;
    fuzz::regression()?;
    if let Err(error) = debian {
        eprintln!("xtask: all that ran passed, but tests of a Debian on a disk were SKIPPED: {error:#}");
    }
    if let Err(error) = fetched {
        eprintln!("xtask: all that ran passed, but tests of these guests were SKIPPED: {error:#}");
    }
    Ok(())
}

fn fuzz_any(words: &[&str]) -> Result<()> {
    match words {
        ["oracle"] => fuzz_test("oracle", "ORACLE_CASES", "5000000"),
        ["oracle", cases] => fuzz_test("oracle", "ORACLE_CASES", cases),
        ["sequences"] => fuzz_test("sequences", "SEQUENCES_CASES", "2000000"),
        ["sequences", cases] => fuzz_test("sequences", "SEQUENCES_CASES", cases),
        _ => fuzz::command(words),
    }
}

/// A test program of `conformance` on more cases than usual.
fn fuzz_test(test: &str, variable: &str, cases: &str) -> Result<()> {
    if cases.parse::<u64>().is_err() {
        bail!("`{cases}` isn't a number of cases");
    }
    run(cargo()
        .args(["test", "--release", "--package", "conformance", "--test", test, "--", "--nocapture"])
        .env(variable, cases))
}
