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

/// A multiboot kernel of nothing but code, loaded at 1 MiB.
fn multiboot(code: &[u8]) -> Vec<u8> {
    let (magic, flags, base) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, base, base, 0, 0, base + 32];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(code.iter().copied()).collect()
}

/// An ELF kernel with segments of (address, bytes in the file, bytes in memory), all of which begin at the file's offset 1000h,
/// and a page of contents. `count` is how many program headers it claims.
fn elf(count: u16, segments: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 0x2000];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"\x7fELF\x02\x01\x01");
    // An executable for x86-64; the entry is the first segment's begin.
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &segments[0].0.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0]);
    put(56, &count.to_le_bytes());
    for (index, &(address, in_file, in_memory)) in segments.iter().enumerate() {
        let at = 64 + 56 * index;
        // Loadable, for reading and executing.
        put(at, &[1, 0, 0, 0, 5, 0, 0, 0]);
        for (field, value) in [0x1000, address, address, in_file, in_memory, 0x1000].into_iter().enumerate() {
            put(at + 8 + 8 * field, &value.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn elf_kernels_with_impossible_segments_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let one = 0x10_0000;
    for (name, image, hint) in [
        ("overlap", elf(2, &[(one, 0x1000, 0x1000), (one + 0x800, 0x1000, 0x1000)]), "overlap"),
        ("swallowed", elf(2, &[(one, 0, 1 << 20), (one + 0x800, 16, 16)]), "overlap"),
        ("beyond", elf(1, &[(one, 0x2000, 0x2000)]), "outside the file"),
        ("huge", elf(1, &[(one, u64::MAX, u64::MAX - one)]), "more bytes in the file than in memory"),
        ("wraps", elf(1, &[(u64::MAX - 100, 0, 0x1000)]), "wraps around"),
        ("outside", elf(1, &[(1 << 45, 0x1000, 0x1000)]), "outside any RAM"),
        ("large", elf(1, &[(one, 0x1000, 1 << 45)]), "outside any RAM"),
        ("bios", elf(1, &[(0xa_0000, 0x1000, 0x1000)]), "the BIOS use"),
        ("headers", elf(0xff00, &[(one, 0x1000, 0x1000)]), "damaged or truncated"),
        ("none", elf(0, &[(one, 0x1000, 0x1000)]), "no loadable segments"),
    ] {
        let path = file(folder.path(), name, &image);
        refused(&mut with_kernel(&path, &[]), FAILED, hint);
        refused(&mut with_kernel(&path, &[]), FAILED, name);
    }
}

#[test]
fn bzimages_with_lying_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Setup of one sector after the first, 4 KiB of code, protocol 2.15, loaded high.
    let mut honest = vec![0; 0x400 + 0x1000];
    let sound: [(usize, &[u8]); 10] = [
        (0x1f1, &[1]),
        (0x1f4, &0x100u32.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x200, &[0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x238, &0x7ffu32.to_le_bytes()),
        (0x258, &0x10_0000u64.to_le_bytes()),
        (0x260, &0x10_0000u32.to_le_bytes()),
    ];
    for (at, field) in sound {
        honest[at..at + field.len()].copy_from_slice(field);
    }
    let with = |at: usize, field: &[u8]| {
        let mut image = honest.clone();
        image[at..at + field.len()].copy_from_slice(field);
        image
    };
    for (name, image, hint) in [
        ("code", with(0x1f4, &u32::MAX.to_le_bytes()), "its header lies"),
        ("no-code", with(0x1f4, &[0; 4]), "syssize is 0"),
        ("setup", with(0x1f1, &[255]), "its header lies"),
        ("needs", with(0x260, &0x4000_0000u32.to_le_bytes()), "--memory"),
        ("absurd", with(0x260, &u32::MAX.to_le_bytes()), "where no RAM can be"),
        ("low", with(0x258, &[0; 8]), "below 1 MiB"),
        ("cut", honest[..0x210].to_vec(), "truncated"),
    ] {
        let path = file(folder.path(), name, &image);
        refused(&mut with_kernel(&path, &[]), FAILED, hint);
        refused(&mut with_kernel(&path, &[]), FAILED, name);
    }
}

#[test]
fn an_initramfs_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &multiboot(b"\xf4"));
    refused(&mut with_kernel(&kernel, &["--initrd", "/nowhere/initrd"]), FAILED, "/nowhere/initrd");
}

#[test]
fn memory_that_cannot_be_is_wrong_usage() {
    for memory in ["0", "1K", "64T", "99999999999999999999G", "much", "-5"] {
        refused(&mut ombra(&["run", &format!("--memory={memory}")]), USAGE, "--memory");
    }
}

#[test]
fn vcpus_that_cannot_be_are_wrong_usage() {
    for cpus in ["0", "-1", "65", "255", "1000", "two"] {
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
fn what_the_translator_is_told_is_checked_before_anything_runs() {
    refused(&mut ombra(&["run", "--code-cache", "255K"]), USAGE, "--code-cache");
    refused(&mut ombra(&["run", "--code-cache", "2G"]), USAGE, "--code-cache");
    refused(&mut ombra(&["run", "--mitigations", "some"]), USAGE, "--mitigations");
    refused(&mut ombra(&["run", "--dump-translation", "main"]), USAGE, "--dump-translation");
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &multiboot(b"\xf4"));
    refused(&mut with_kernel(&kernel, &["--code-cache", "1M", "-c", "8"]), FAILED, "2048K");
    refused(&mut with_kernel(&kernel, &["--stats=/nowhere/stats.json"]), FAILED, "/nowhere/stats.json");
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
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let small = file(folder.path(), "kernel", &multiboot(b"\xf4"));
    for (size, hint) in [(200 << 20, "the most that fits"), (127 << 20, "give more --memory")] {
        File::create(&path).unwrap().set_len(size).unwrap();
        for kernel in [Some(small.clone()), guest_kernel()].into_iter().flatten() {
            let words = ["-m", "128M", "--initrd", path.to_str().unwrap()];
            refused(&mut with_kernel(&kernel, &words), FAILED, hint);
        }
    }
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
fn a_failure_that_nobody_hears_of_has_its_status() {
    let folder = tempfile::tempdir().unwrap();
    // `lidt [100030h]`, where zeros are; `ud2`.
    let code = b"\x0f\x01\x1d\x30\0\x10\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let kernel = file(folder.path(), "kernel", &multiboot(code));
    let output = with_kernel(&kernel, &["--no-reboot"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{errors}");
    assert!(errors.starts_with("ombra: triple fault on vCPU 0"), "{errors}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = with_kernel(&kernel, &["--no-reboot"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(FAILED));
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

#[test]
fn disks_that_can_not_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &[0; 4096]);
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let empty = name(&file(folder.path(), "empty", &[1; 100]));
    let qcow2 = name(&file(folder.path(), "image", &[b"QFI\xfb".as_slice(), &[0; 1020]].concat()));
    let raw = name(&file(folder.path(), "raw", &[0; 4096]));
    let this = name(folder.path());
    let nothing = format!("{this}/nothing");
    for (disk, hint) in [
        (nothing.as_str(), nothing.as_str()),
        (&this, "neither a file nor a block device"),
        ("/dev/null", "neither a file nor a block device"),
        (&empty, "empty"),
        (&qcow2, "say format=qcow2"),
        (&format!("{qcow2},format=qcow2"), "qcow2 image"),
        (&format!("{raw},format=qcow2"), "no qcow2 image"),
    ] {
        // A folder can't be opened for writing, and read it is none.
        let readonly = if disk == this { format!("{disk},readonly=on") } else { disk.to_owned() };
        refused(&mut with_kernel(&kernel, &["--disk", &readonly]), FAILED, hint);
    }
    for (disk, hint) in [
        ("", "wants a file"),
        ("readonly=on", "wants a file"),
        ("a,format=vmdk", "vmdk"),
        ("a,nonsense", "nonsense"),
        ("a,readonly=on,snapshot=on", "either"),
    ] {
        refused(&mut with_kernel(&kernel, &["--disk", disk]), USAGE, hint);
    }
    refused(&mut with_kernel(&kernel, &["--disk", &raw, "--disk", &raw]), FAILED, "in use");
    let mut many = with_kernel(&kernel, &[]);
    for number in 0..17 {
        many.arg("--disk").arg(file(folder.path(), &format!("disk{number}"), &[0; 512]));
    }
    refused(&mut many, FAILED, "16");
}

#[test]
fn a_module_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = file(folder.path(), "kernel", &[0; 4096]);
    let mut command = with_kernel(&kernel, &["--module", "no_such_module", "--", "true"]);
    refused(&mut command, FAILED, "no_such_module");
}
