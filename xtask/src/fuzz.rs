//! `cargo xtask fuzz`: coverage-guided fuzzing of `fuzz/`'s targets with libFuzzer, on the pinned stable toolchain.
//!
//! cargo-fuzz isn't needed: its part here is a few flags. LLVM's coverage pass is in every rustc, and the crate
//! `libfuzzer-sys` brings libFuzzer's source, which wants a C++ compiler. Also run by `cargo xtask test`, without
//! libFuzzer, as plain tests over seeds and some random inputs.
//!
//! `fuzz/corpus/TARGET` keeps what libFuzzer found interesting, `fuzz/artifacts/TARGET` what failed; neither is committed.

use crate::{cargo, root, run};
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Instruments everything for libFuzzer: a counter for each edge, and what comparisons compare.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Build scripts and procedural macros must stay without instrumentation, which naming a target does.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

const DEFAULT_SECONDS: u64 = 600;

/// `fuzz TARGET [--seconds N]`, also `fuzz TARGET N`; `fuzz TARGET FILE` runs one input again.
///
/// # Errors
/// An unknown target, a build that fails, or a finding.
pub(crate) fn command(words: &[&str]) -> Result<()> {
    match words {
        [target] => search(target, DEFAULT_SECONDS),
        [target, "--seconds", seconds] => search(target, number(seconds)?),
        [target, file] if Path::new(file).is_file() => repeat(target, Path::new(file)),
        [target, seconds] => search(target, number(seconds)?),
        _ => bail!(
            "fuzz wants `oracle [CASES]`, `sequences [CASES]`, or one of {} and optionally --seconds N",
            targets()?.join(", ")
        ),
    }
}

/// The targets over their seeds and a few thousand random inputs, as plain tests.
///
/// # Errors
/// A finding, or a build that fails.
pub(crate) fn regression() -> Result<()> {
    run(cargo()
        .args(["test", "--manifest-path", "fuzz/Cargo.toml"])
        .env("CARGO_TARGET_DIR", folder().join("target")))
}

/// Formatting and lints of the package, which isn't a member of the workspace. Targets themselves need libFuzzer's
/// build and are looked at where there is a C++ compiler.
///
/// # Errors
/// Something isn't clean.
pub(crate) fn check() -> Result<()> {
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    run(cargo().arg("fmt").args(manifest).arg("--check"))?;
    let mut clippy = cargo();
    clippy.arg("clippy").args(manifest).arg("--all-targets");
    if has_cpp_compiler() {
        clippy.args(["--features", "libfuzzer"]);
    } else {
        eprintln!("xtask: no C++ compiler (c++), so clippy skips fuzz/targets");
    }
    run(clippy.args(["--", "--deny", "warnings"]).env("CARGO_TARGET_DIR", folder().join("target")))
}

fn folder() -> PathBuf {
    root().join("fuzz")
}

fn has_cpp_compiler() -> bool {
    Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn number(seconds: &str) -> Result<u64> {
    seconds.parse().with_context(|| format!("`{seconds}` is neither a number of seconds nor a file"))
}

/// The names of the targets: one file each.
fn targets() -> Result<Vec<String>> {
    let files = fs::read_dir(folder().join("targets")).context("can't read fuzz/targets")?;
    let mut names = Vec::new();
    for file in files {
        let path = file.context("can't read fuzz/targets")?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds a target and gives its program.
fn build(target: &str) -> Result<PathBuf> {
    if !targets()?.iter().any(|name| name == target) {
        bail!("there is no fuzz target `{target}`; there are: oracle, sequences, {}", targets()?.join(", "));
    }
    if !has_cpp_compiler() {
        bail!("libFuzzer is built from C++; as root: apt install g++");
    }
    let target_folder = folder().join("target");
    run(cargo()
        .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--features", "libfuzzer"])
        .args(["--target", TRIPLE, "--bin", target])
        .env("CARGO_TARGET_DIR", &target_folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    Ok(target_folder.join(TRIPLE).join("release").join(target))
}

fn search(target: &str, seconds: u64) -> Result<()> {
    let program = build(target)?;
    let (corpus, artifacts) = (folder().join("corpus").join(target), folder().join("artifacts").join(target));
    for path in [&corpus, &artifacts] {
        fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
    }
    let mut command = Command::new(program);
    // New inputs go to the first folder, the others are only read.
    command.arg(&corpus).arg(folder().join("seeds").join(target));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-rss_limit_mb=2048", "-timeout=10", "-max_len=2048", "-print_final_stats=1"]);
    let dictionary = folder().join("seeds").join(format!("{target}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    run(&mut command).with_context(|| {
        format!(
            "{target} has a finding: run it again by `cargo xtask fuzz {target} {}/FILE`",
            artifacts.display()
        )
    })
}

/// Runs one input, to look at a finding.
fn repeat(target: &str, file: &Path) -> Result<()> {
    let file = env::current_dir().context("there is no current folder")?.join(file);
    run(Command::new(build(target)?).arg(file))
}
