//! Real guests, started with the release binary: Debian's kernels, a command's status, memtest86+.
//!
//! `cargo xtask test` builds the binary, fetches the guests and says where both are (`OMBRA_BIN`, `OMBRA_CACHE`). What isn't
//! there makes its test say that it is skipped. Each guest gets one core's time, so the tests may run side by side.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A guest that takes longer has failed. Machines that run other tests at the same time are slow.
const PATIENCE: Duration = Duration::from_secs(240);

struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The release binary, unless it isn't there.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("OMBRA_BIN").map(PathBuf::from)?;
    path.is_file().then_some(path)
}

fn cache() -> PathBuf {
    std::env::var_os("OMBRA_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache"), PathBuf::from)
        .join("guests")
}

/// `ombra run` and these guests' files, or `None` with a message.
fn prerequisites(files: &[&str]) -> Option<(Command, Vec<PathBuf>)> {
    let Some(binary) = binary() else {
        eprintln!("skipped: OMBRA_BIN names no binary; `cargo xtask test` builds and names it");
        return None;
    };
    let paths: Vec<PathBuf> = files.iter().map(|file| cache().join(file)).collect();
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        eprintln!("skipped: no {}; `cargo xtask guests` fetches it", missing.display());
        return None;
    }
    let mut command = Command::new(binary);
    command.arg("run").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some((command, paths))
}

/// Runs until the process ends, `until` appears on stdout, or patience does.
fn run(command: &mut Command, until: Option<&str>) -> Ended {
    let start = Instant::now();
    let mut child = command.spawn().expect("the binary starts");
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = errors.read_to_end(&mut bytes);
        bytes
    });
    let (sender, pieces) = std::sync::mpsc::channel();
    let mut output = child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut piece) {
            if sender.send(piece[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut stdout = Vec::new();
    while let Ok(piece) = pieces.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
        stdout.extend(piece);
        if until.is_some_and(|mark| String::from_utf8_lossy(&stdout).contains(mark)) {
            break;
        }
    }
    if until.is_some() || start.elapsed() >= PATIENCE {
        let _ = child.kill();
    }
    let status = child.wait().expect("it ends").code();
    Ended {
        status,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&errors.join().expect("no panic")).into_owned(),
    }
}

/// An initramfs whose init says what it runs on and powers off.
fn initramfs(busybox: &Path) -> tempfile::NamedTempFile {
    const INIT: &[u8] =
        b"#!/bin/busybox sh\necho init-runs on $(/bin/busybox uname -m)\n/bin/busybox poweroff -f\n";
    let mut bytes = Vec::new();
    for (name, mode, device, contents) in [
        ("bin", 0o40755, (0, 0), Vec::new()),
        ("dev", 0o40755, (0, 0), Vec::new()),
        ("dev/console", 0o20600, (5, 1), Vec::new()),
        ("bin/busybox", 0o100_755, (0, 0), fs::read(busybox).expect("busybox")),
        ("init", 0o100_755, (0, 0), INIT.to_vec()),
    ] {
        let entry = cpio::newc::Builder::new(name).mode(mode).ino(bytes.len() as u32);
        let entry = entry.rdev_major(device.0).rdev_minor(device.1);
        let mut writer = entry.write(&mut bytes, contents.len() as u32);
        std::io::Write::write_all(&mut writer, &contents).expect("memory");
        writer.finish().expect("memory");
    }
    let bytes = cpio::newc::trailer(bytes).expect("memory");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("a file");
    file
}

fn boots(kernel: &str, busybox: &str, machine: &str) {
    let Some((mut command, paths)) = prerequisites(&[kernel, busybox]) else { return };
    let initramfs = initramfs(&paths[1]);
    command.arg("--kernel").arg(&paths[0]).arg("--initramfs").arg(initramfs.path());
    let ended = run(command.args(["--cmdline", "console=ttyS0 panic=-1", "--no-reboot"]), None);
    assert!(ended.stdout.contains(&format!("init-runs on {machine}")), "{}\n{}", ended.stdout, ended.stderr);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

#[test]
fn the_cloud_kernel_boots_to_init_and_powers_off() {
    boots("cloud/vmlinuz", "busybox", "x86_64");
}

#[test]
fn the_rt_kernel_boots_to_init_and_powers_off() {
    boots("rt/vmlinuz", "busybox", "x86_64");
}

#[test]
fn the_i386_kernel_boots_to_init_and_powers_off() {
    boots("686-pae/vmlinuz", "busybox-i386", "i686");
}

#[test]
fn a_command_gives_its_own_status() {
    let Some((mut command, _)) = prerequisites(&["cloud/vmlinuz", "busybox"]) else { return };
    let ended = run(command.args(["--", "sh", "-c", "echo out; echo err >&2; exit 7"]), None);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.status), ("out\n", "err\n", Some(7)));
}

#[test]
fn a_command_that_says_nothing_is_silent() {
    let Some((mut command, _)) = prerequisites(&["cloud/vmlinuz", "busybox"]) else { return };
    let ended = run(command.args(["--", "true"]), None);
    assert_eq!((ended.stdout.as_str(), ended.status), ("", Some(0)), "{}", ended.stderr);
}

#[test]
fn a_command_that_is_not_there_gives_127() {
    let Some((mut command, _)) = prerequisites(&["cloud/vmlinuz", "busybox"]) else { return };
    let ended = run(command.args(["--", "no-such-command"]), None);
    assert_eq!((ended.stdout.as_str(), ended.status), ("", Some(127)), "{}", ended.stderr);
    assert!(ended.stderr.contains("no-such-command"), "{}", ended.stderr);
}

#[test]
fn a_command_reads_stdin_to_its_end() {
    let Some((mut command, paths)) = prerequisites(&["cloud/vmlinuz", "busybox"]) else { return };
    let file = fs::File::open(&paths[1]).expect("busybox");
    let size = file.metadata().expect("a file").len().min(200_000);
    let part = tempfile::NamedTempFile::new().expect("a file");
    std::io::copy(&mut file.take(size), &mut part.as_file()).expect("a copy");
    let sum = Command::new("md5sum").arg(part.path()).output().expect("md5sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
    command.stdin(fs::File::open(part.path()).expect("a file"));
    let ended = run(command.args(["--", "md5sum"]), None);
    assert!(ended.stdout.starts_with(&sum), "{sum} is not {}; {}", ended.stdout, ended.stderr);
    assert_eq!(ended.status, Some(0));
}

#[test]
fn memtest86_runs_its_first_pass() {
    for image in ["memtest86+ia32.bin", "memtest86+x64.bin"] {
        let Some((mut command, paths)) = prerequisites(&[image]) else { return };
        command.arg("--kernel").arg(&paths[0]);
        let ended =
            run(command.args(["--memory", "64M", "--cmdline", "console=ttyS0,115200"]), Some("Pass:  1"));
        assert!(ended.stdout.contains("Memtest86+"), "{image}: {}", ended.stderr);
        assert!(ended.stdout.contains("Pass:  1"), "{image}: no first pass: {}", ended.stdout);
    }
}
