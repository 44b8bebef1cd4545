//! `cargo xtask bench`: Ombra against `qemu-system-x86_64` (TCG), where that is installed.
//!
//! Two figures. Boot: from process start to the first line that init prints, with Debian's cloud kernel. Loop: a program of
//! ours that runs a tight integer loop of four instructions, in million instructions a second. Both come from the same
//! guest, kernel and initramfs. Runs alternate, so that a load on the host falls on both; medians are shown.

mod program;

use crate::guests;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the guest's /init does: says that it is there, runs the loop, says so, powers off.
const INIT: &str = "#!/bin/busybox sh
echo bench-init
/bin/count
echo bench-done
/bin/busybox poweroff -f
";
/// Turns of the loop, and instructions of a turn.
const TURNS: u32 = 50_000_000;
const TURN: f64 = 4.0;
const CMDLINE: &str = "console=ttyS0 no_timer_check quiet";
/// A guest that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// One run: process start to init, and the loop.
struct Times {
    boot: Duration,
    counting: Duration,
}

/// The program that measures, below the checkout.
pub(crate) const PROGRAM: &str = program::SOURCE;

/// Builds the program that measures and says how it is run.
pub(crate) fn prepare(root: &Path) -> Result<()> {
    let (program, archive) = program::prepare(root, &guests::cache(root).join("guests"))?;
    println!(
        "natively:   {} integer --scale 0.1\nin a guest: ombra run --kernel {} --initramfs {} \\\n            \
         --cmdline 'console=ttyS0 no_timer_check quiet -- integer --scale 0.1'",
        program.display(),
        guests::cache(root).join("guests/cloud/vmlinuz").display(),
        archive.display()
    );
    Ok(())
}

/// Prints the table.
pub(crate) fn run(root: &Path, runs: u32) -> Result<()> {
    guests::fetch(root, guests::For::Run)?;
    let guests = guests::cache(root).join("guests");
    let kernel = guests.join("cloud/vmlinuz");
    let initramfs = initramfs(&guests)?;
    let mut monitors = vec![("ombra", ombra(&crate::release_binary()?, &kernel, &initramfs))];
    match Command::new("qemu-system-x86_64").arg("--version").output() {
        Ok(_) => monitors.push(("qemu tcg", qemu(&kernel, &initramfs))),
        Err(_) => println!("bench: no qemu-system-x86_64 here, so there is nothing to compare with"),
    }
    let mut times: Vec<Vec<Times>> = monitors.iter().map(|_| Vec::new()).collect();
    for round in 1..=runs {
        for ((name, words), times) in monitors.iter().zip(&mut times) {
            eprintln!("bench: run {round} of {runs}, {name}");
            times.push(measure(words).with_context(|| format!("{name} failed"))?);
        }
    }
    println!("{:<10} {:>16} {:>16}   median of {runs}", "", "boot to init", "integer loop");
    for ((name, _), times) in monitors.iter().zip(&times) {
        let boot = median(times.iter().map(|run| run.boot));
        let counting = median(times.iter().map(|run| run.counting));
        let mips = f64::from(TURNS) * TURN / counting.as_secs_f64() / 1e6;
        println!("{name:<10} {:>14.2} s {:>11.0} MIPS", boot.as_secs_f64(), mips);
    }
    Ok(())
}

fn ombra(binary: &Path, kernel: &Path, initramfs: &Path) -> Vec<String> {
    let paths = [binary, kernel, initramfs].map(|path| path.display().to_string());
    let [binary, kernel, initramfs] = paths;
    let words = [
        &binary,
        "run",
        "--kernel",
        &kernel,
        "--initramfs",
        &initramfs,
        "--memory",
        "512M",
        "--cmdline",
        CMDLINE,
    ];
    words.map(str::to_owned).to_vec()
}

fn qemu(kernel: &Path, initramfs: &Path) -> Vec<String> {
    let (kernel, initramfs) = (kernel.display().to_string(), initramfs.display().to_string());
    let words = [
        "qemu-system-x86_64",
        "-machine",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-m",
        "512M",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
        "-kernel",
        &kernel,
        "-initrd",
        &initramfs,
        "-append",
        CMDLINE,
    ];
    words.map(str::to_owned).to_vec()
}

fn measure(words: &[String]) -> Result<Times> {
    let start = Instant::now();
    let mut child =
        Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send((Instant::now(), String::from_utf8_lossy(&line).into_owned())).is_err() {
                return;
            }
        }
    });
    let seen = |mark: &str| loop {
        let Ok((at, line)) = lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) else {
            bail!("no `{mark}` within {} s", PATIENCE.as_secs());
        };
        if line.contains(mark) {
            return Ok(at);
        }
    };
    let times = seen("bench-init").and_then(|init| {
        let done = seen("bench-done")?;
        Ok(Times { boot: init - start, counting: done - init })
    });
    if times.is_err() {
        let _ = child.kill();
    }
    child.wait()?;
    times
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times[times.len() / 2]
}

/// busybox and the script above, as a cpio archive (newc): written here because it is six entries.
fn initramfs(guests: &Path) -> Result<PathBuf> {
    let busybox = guests.join("busybox");
    let busybox = fs::read(&busybox).with_context(|| format!("can't read {}", busybox.display()))?;
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o40755, b"")?;
    entry(&mut archive, "dev", 0o40755, b"")?;
    device(&mut archive, "dev/console", 5, 1)?;
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox)?;
    entry(&mut archive, "bin/count", 0o100_755, &count())?;
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes())?;
    entry(&mut archive, "TRAILER!!!", 0, b"")?;
    let path = guests.join("bench.cpio");
    fs::write(&path, archive).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// A program of one segment: the loop, and exit(0).
fn count() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut code = vec![0x48, 0xc7, 0xc1]; // mov rcx, TURNS
    code.extend(TURNS.to_le_bytes());
    code.extend([0x48, 0xff, 0xc0]); // turn: inc rax
    code.extend([0x48, 0x31, 0xc2]); // xor rdx, rax
    code.extend([0x48, 0xff, 0xc9]); // dec rcx
    code.extend([0x75, 0xf5]); // jnz turn
    code.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]); // mov eax, 60; xor edi, edi; syscall
    let size = HEADERS + code.len() as u64;
    // ELF-64 Object File Format 1.5: the file's header, then one program header.
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    program.extend([2u16, 62].map(u16::to_le_bytes).concat());
    program.extend(1u32.to_le_bytes());
    program.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    program.extend(0u32.to_le_bytes());
    program.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    program.extend([1u32, 5].map(u32::to_le_bytes).concat());
    program.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).concat());
    program.extend(code);
    program
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
    header(archive, name, mode, contents.len(), (0, 0))?;
    archive.extend(contents);
    pad(archive);
    Ok(())
}

fn device(archive: &mut Vec<u8>, name: &str, major: u32, minor: u32) -> Result<()> {
    header(archive, name, 0o20600, 0, (major, minor))
}

fn header(archive: &mut Vec<u8>, name: &str, mode: u32, size: usize, device: (u32, u32)) -> Result<()> {
    let inode = archive.len();
    write!(archive, "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}", 0, 0, 1, 0)?;
    write!(
        archive,
        "{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
        0,
        0,
        device.0,
        device.1,
        name.len() + 1,
        0
    )?;
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_is_the_middle() {
        assert_eq!(median([3, 1, 2].map(Duration::from_secs).into_iter()), Duration::from_secs(2));
    }

    #[test]
    fn the_loop_is_a_program_that_ends_well() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("ombra-bench-count-{}", std::process::id()));
        fs::write(&path, count()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new(&path).status();
        fs::remove_file(&path).unwrap();
        assert!(status.unwrap().success());
    }

    #[test]
    fn archive_entries_are_aligned() {
        let mut archive = Vec::new();
        entry(&mut archive, "a", 0o100_644, b"x").unwrap();
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len(), 116);
    }
}
