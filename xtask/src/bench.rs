//! `cargo xtask bench`: Ombra against `qemu-system-x86_64` (TCG), where that is installed.
//!
//! Two figures. Boot: from process start to the first line that init prints, with Debian's cloud kernel. Loop: a tight
//! integer loop of the guest's busybox, in guest seconds, and only compared, not counted in instructions. Both come from the
//! same guest, kernel and initramfs. Runs alternate, so that a load on the host falls on both; medians are shown.

use crate::guests;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the guest's /init does: says that it is there, counts, says so, powers off. A shell's loop costs some thousand
/// instructions a turn, all of them integer ones.
const INIT: &str = "#!/bin/busybox sh
echo bench-init
i=0
while [ $i -lt 20000 ]; do i=$((i+1)); done
echo bench-done
/bin/busybox poweroff -f
";
const CMDLINE: &str = "console=ttyS0 quiet";
/// A guest that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// One run: process start to init, and the loop.
struct Times {
    boot: Duration,
    counting: Duration,
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
    println!("{:<10} {:>16} {:>16}   median of {runs}", "", "boot to init", "20000 turns");
    for ((name, _), times) in monitors.iter().zip(&times) {
        let boot = median(times.iter().map(|run| run.boot));
        let counting = median(times.iter().map(|run| run.counting));
        println!("{name:<10} {:>14.2} s {:>14.2} s", boot.as_secs_f64(), counting.as_secs_f64());
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
    let mut seen = |mark: &str| loop {
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

/// busybox and the script above, as a cpio archive (newc): written here because it is four entries.
fn initramfs(guests: &Path) -> Result<PathBuf> {
    let busybox = guests.join("busybox");
    let busybox = fs::read(&busybox).with_context(|| format!("can't read {}", busybox.display()))?;
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o40755, b"")?;
    entry(&mut archive, "dev", 0o40755, b"")?;
    device(&mut archive, "dev/console", 5, 1)?;
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox)?;
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes())?;
    entry(&mut archive, "TRAILER!!!", 0, b"")?;
    let path = guests.join("bench.cpio");
    fs::write(&path, archive).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
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
    fn archive_entries_are_aligned() {
        let mut archive = Vec::new();
        entry(&mut archive, "a", 0o100_644, b"x").unwrap();
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len(), 116);
    }
}
