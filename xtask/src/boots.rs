//! `cargo xtask boots N [--engine NAME] [--cpus N]`: Debian's cloud kernel from start to power-off, N times in a row, each with a command's status.
//!
//! Stops at the first boot that fails and keeps its kernel log. What tests do once, this does until rare races show. A status
//! that changes from run to run proves that it came from this guest.

use crate::guests;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What in a kernel's log says that a vCPU has not got on.
const SYMPTOMS: &[&str] =
    &["BUG:", "WARNING:", "Call Trace", "lockup", "detected stalls", "blocked for more than", "unstable"];

/// Boots `count` times. `flags`: the engine and the number of vCPUs; without the latter one and two in turn.
pub(crate) fn run(root: &Path, count: &str, flags: &[&str]) -> Result<()> {
    let number = |text: &str, what| {
        let number = text.parse::<u32>().ok().filter(|&number| number > 0);
        number.with_context(|| format!("{what} wants a number from 1, not `{text}`"))
    };
    let count = number(count, "boots")?;
    let (mut engine, mut fixed) = ("auto", None);
    for flag in flags.chunks(2) {
        match *flag {
            ["--engine", name] => engine = name,
            ["--cpus", cpus] => fixed = Some(number(cpus, "--cpus")?),
            _ => bail!("boots doesn't know `{}`", flag.join(" ")),
        }
    }
    guests::fetch(root, guests::For::Run)?;
    let binary = crate::release_binary()?;
    let mut times: Vec<Duration> = Vec::new();
    for number in 1..=count {
        let cpus = fixed.unwrap_or(1 + (number - 1) % 2);
        let status = (number % 100) as i32 + 1;
        let start = Instant::now();
        let output = Command::new(&binary)
            .args(["run", "--verbose", "--engine", engine, "--cpus", &cpus.to_string(), "--", "sh", "-c"])
            .arg(format!("echo up; exit {status}"))
            .env("OMBRA_CACHE", guests::cache(root))
            .stdin(Stdio::null())
            .output()
            .context("can't start ombra")?;
        let time = start.elapsed();
        let text = String::from_utf8_lossy(&output.stderr);
        let symptom = SYMPTOMS.iter().find(|symptom| text.contains(**symptom));
        if output.status.code() != Some(status) || output.stdout != b"up\n" || symptom.is_some() {
            let log = root.join("cache/failed-boot.log");
            std::fs::write(&log, &output.stderr).with_context(|| format!("can't write {}", log.display()))?;
            let symptom = symptom.map(|symptom| format!(" and `{symptom}`")).unwrap_or_default();
            bail!(
                "boot {number} of {count} ended with {}{symptom}; its log is {}",
                output.status,
                log.display()
            );
        }
        println!("boot {number} of {count}: {:.1} s on {cpus} vCPU", time.as_secs_f64());
        times.push(time);
    }
    times.sort();
    if let (Some(least), Some(most)) = (times.first(), times.last()) {
        let median = times[times.len() / 2];
        println!(
            "{count} boots, none failed: {:.1} s at least, {:.1} s median, {:.1} s at most",
            least.as_secs_f64(),
            median.as_secs_f64(),
            most.as_secs_f64()
        );
    }
    Ok(())
}
