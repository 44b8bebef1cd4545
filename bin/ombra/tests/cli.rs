//! The built binary against bad input: one clear line on stderr and the right status, never a panic.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const USAGE: i32 = 2;
const FAILED: i32 = 125;

fn ombra(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ombra"));
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs it and checks the status and that stderr is one line without a panic, with `hint` in it.
#[track_caller]
fn refused(command: &mut Command, status: i32, hint: &str) {
    let output: Output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{command:?}: {errors}");
    assert!(errors.starts_with("ombra: "), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(errors.contains(hint), "no `{hint}` in: {errors}");
    assert!(output.stdout.is_empty(), "something on stdout");
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn with_kernel<'a>(path: &'a Path, more: &[&'a str]) -> Command {
    let mut command = ombra(&["run", "--kernel"]);
    command.arg(path).args(more);
    command
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    refused(&mut ombra(&["run", "-k", "/nowhere/kernel"]), FAILED, "/nowhere/kernel");
}

#[test]
fn a_directory_is_no_kernel() {
    let folder = tempfile::tempdir().unwrap();
    refused(&mut with_kernel(folder.path(), &[]), FAILED, folder.path().to_str().unwrap());
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = 1u32;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    })
    .take(100_000)
    .collect();
    let mut truncated = vec![0; 0x210];
    truncated[0x1f1] = 4;
    truncated[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    truncated[0x202..0x206].copy_from_slice(b"HdrS");
    truncated[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    for (name, bytes) in [
        ("empty", &[][..]),
        ("truncated", &truncated),
        ("random", &random),
        ("text", b"hello\n"),
        ("elf", b"\x7fELF"),
    ] {
        let path = file(folder.path(), name, bytes);
        refused(&mut with_kernel(&path, &[]), FAILED, name);
    }
}

#[test]
fn an_initramfs_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", b"x");
    refused(&mut with_kernel(&kernel, &["--initrd", "/nowhere/initrd"]), FAILED, "/");
}

#[test]
fn memory_that_cannot_be_is_wrong_usage() {
    for memory in ["0", "1K", "64T", "99999999999999999999G", "much", "-5"] {
        refused(&mut ombra(&["run", &format!("--memory={memory}")]), USAGE, "--memory");
    }
}

#[test]
fn vcpus_that_cannot_be_are_wrong_usage() {
    for cpus in ["0", "-1", "1000", "two"] {
        refused(&mut ombra(&["run", &format!("--cpus={cpus}")]), USAGE, "--cpus");
    }
}

#[test]
fn flags_that_do_not_exist_are_wrong_usage_and_similar_ones_are_offered() {
    refused(&mut ombra(&["run", "--kernle", "x"]), USAGE, "--kernel");
    refused(&mut ombra(&["ruin"]), USAGE, "run");
    refused(&mut ombra(&["run", "--engine", "warp"]), USAGE, "--engine");
    refused(&mut ombra(&["run", "--serial", "pty"]), USAGE, "--serial");
    refused(&mut ombra(&["run", "-k"]), USAGE, "--kernel");
}

#[test]
fn a_command_and_an_initramfs_exclude_each_other() {
    refused(&mut ombra(&["run", "--initramfs", "x", "--", "true"]), USAGE, "--initramfs");
}

#[test]
fn without_a_kernel_it_says_what_to_install() {
    let empty = tempfile::tempdir().unwrap();
    for words in [&["run"][..], &["run", "--", "true"]] {
        let mut command = ombra(words);
        command.env("OMBRA_CACHE", empty.path()).env("OMBRA_BOOT", empty.path());
        refused(&mut command, FAILED, "apt install linux-image-cloud-amd64");
    }
}

#[test]
fn a_serial_file_that_cannot_be_written_is_named() {
    let Some(kernel) = guest_kernel() else { return };
    refused(&mut with_kernel(&kernel, &["--serial", "file:/nowhere/serial"]), FAILED, "/nowhere/serial");
}

#[test]
fn an_initramfs_larger_than_memory_is_refused() {
    let Some(kernel) = guest_kernel() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    File::create(&path).unwrap().set_len(100 << 20).unwrap();
    refused(&mut with_kernel(&kernel, &["-m", "64M", "--initrd", path.to_str().unwrap()]), FAILED, "");
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let Some(kernel) = guest_kernel() else { return };
    refused(&mut with_kernel(&kernel, &["--cmdline", &"x".repeat(100_000)]), FAILED, "command line");
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let Some(kernel) = guest_kernel() else { return };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    refused(with_kernel(&kernel, &["-a", "console=ttyS0 earlyprintk=serial"]).stdout(writer), FAILED, "COM1");
}

#[test]
fn help_goes_to_stdout_and_reads_well() {
    for (words, expected) in [
        (&["--help"][..], &["Usage: ombra", "run", "doctor", "Exit status"][..]),
        (&["run", "--help"], &["--kernel <FILE>", "--memory <SIZE>", "Boot:", "Machine:", "Examples:"]),
    ] {
        let output = ombra(words).output().unwrap();
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
        let text = String::from_utf8_lossy(&output.stdout);
        for part in expected {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        for alias in ["--initrd", "--smp", "--accel", "kvm-probe"] {
            assert!(!text.contains(alias), "{alias} should be hidden");
        }
    }
}

#[test]
fn help_survives_a_reader_that_goes_away() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ombra(&["--help"]).stdout(writer).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn the_doctor_always_answers() {
    let output = ombra(&["doctor"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    for row in ["cpu", "kvm", "memory", "features", "overcommit"] {
        assert!(text.lines().any(|line| line.starts_with(row)), "no {row} in {text}");
    }
}

/// The kernel that `cargo xtask guests` fetches; without it the test says that it is skipped.
fn guest_kernel() -> Option<PathBuf> {
    let cache = std::env::var_os("OMBRA_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cache"), PathBuf::from);
    let kernel = cache.join("guests/cloud/vmlinuz");
    if !kernel.exists() {
        let _ = writeln!(std::io::stderr(), "skipped: no guest kernel; `cargo xtask guests` fetches it");
        return None;
    }
    Some(kernel)
}
