//! `cargo xtask boots N [--engine NAME]`: Debian's cloud kernel from start to power-off, N times in a row, each with a command's status.
//!
//! Stops at the first boot that fails and keeps its kernel log. What tests do once, this does until rare races show. A status
//! that changes from run to run proves that it came from this guest.

use crate::guests;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Boots `count` times, on one and on two vCPUs in turn.
pub(crate) fn run(root: &Path, count: &str, engine: &str) -> Result<()> {
    let Some(count) = count.parse::<u32>().ok().filter(|&count| count > 0) else {
        bail!("boots wants a number from 1, not `{count}`");
    };
    guests::fetch(root, guests::For::Run)?;
    let binary = crate::release_binary()?;
    let mut times: Vec<Duration> = Vec::new();
    for number in 1..=count {
        let (cpus, status) = (1 + (number - 1) % 2, (number % 100) as i32 + 1);
        let start = Instant::now();
        let output = Command::new(&binary)
            .args(["run", "--verbose", "--engine", engine, "--cpus", &cpus.to_string(), "--", "sh", "-c"])
            .arg(format!("echo up; exit {status}"))
            .env("OMBRA_CACHE", guests::cache(root))
            .stdin(Stdio::null())
            .output()
            .context("can't start ombra")?;
        let time = start.elapsed();
        if output.status.code() != Some(status) || output.stdout != b"up\n" {
            let log = root.join("cache/failed-boot.log");
            std::fs::write(&log, &output.stderr).with_context(|| format!("can't write {}", log.display()))?;
            bail!("boot {number} of {count} ended with {}; its log is {}", output.status, log.display());
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
