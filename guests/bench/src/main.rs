//! The guest's part of `cargo xtask bench`: runs workloads of fixed size and says how long each took.
//!
//! One static program, the same natively and in guests; xtask builds it by calling rustc (see `xtask/src/bench/program.rs`),
//! so it has no dependencies but the C library. As process 1 it is the init of an initramfs: it mounts what the
//! workloads need, prints [`READY`], runs itself with its arguments as a child, prints [`DONE`] and the child's status,
//! and powers off. A kernel hands it the words after `--` of the command line.
//!
//! # Output
//! A line for each workload, `NAME ITERATIONS NANOSECONDS CHECKSUM` (decimal, decimal, hexadecimal), the median of its
//! repetitions; or `NAME skipped WHY`, or `NAME failed WHY`. The checksum depends on the workload and its iterations alone.
//!
//! Threads: one, but in the workload `futex` and those of the groups `storms` and `scaling`.

mod atomics;
mod code;
mod integer;
mod kernel;
mod memory;
mod programs;
mod raw;
mod storms;
mod switch;
mod vector;
mod workload;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use workload::{Run, Workload};

/// The first line of the init.
const READY: &str = "bench-init";
/// The beginning of its last.
const DONE: &str = "bench-end";
/// No repetition begins later.
const ENOUGH: Duration = Duration::from_millis(300);

const USAGE: &str = "\
usage: bench [NAME or GROUP[,..]]... [--without NAME]... [--scale FACTOR] [--scale NAME=FACTOR] [--repeat N] [--list]
  --without NAME       all but a workload or group
  --scale FACTOR       so much of each workload (default 1; at least one iteration)
  --scale NAME=FACTOR  so much of a workload or group; the last that fits counts
  --repeat N           up to N repetitions of each (default 3), fewer once they have taken 0.3 s
  --list               names, groups and iterations, and runs nothing
";

/// What the arguments ask for.
#[derive(Default)]
struct Request {
    /// Names of workloads or groups; none for all.
    only: Vec<String>,
    /// Workloads or groups that don't run.
    without: Vec<String>,
    /// Workload or group, `None` for all; and the factor.
    scales: Vec<(Option<String>, f64)>,
    repeat: Option<u32>,
    list: bool,
}

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(kernel::EXEC_ARGUMENT) {
        return ExitCode::from(kernel::EXEC_STATUS as u8);
    }
    if std::process::id() == 1 {
        init();
    }
    let request = match parse(env::args().skip(1)) {
        Ok(request) => request,
        Err(problem) => {
            eprint!("bench: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for workload in all().filter(|workload| request.wants(workload)) {
        let iterations = request.iterations(workload);
        if request.list {
            println!("{} {} {iterations}", workload.name, workload.group.name());
            continue;
        }
        let line = match measure(workload, iterations, request.repeat.unwrap_or(3)) {
            Ok(line) => line,
            Err(problem) => {
                failed = true;
                format!("failed {problem}")
            }
        };
        println!("{} {line}", workload.name);
        // The next workload shall not be interrupted by the last one's output.
        let _ = io::stdout().flush();
        raw::drain_stdout();
    }
    ExitCode::from(u8::from(failed))
}

fn all() -> impl Iterator<Item = &'static Workload> {
    [
        integer::WORKLOADS,
        memory::WORKLOADS,
        vector::WORKLOADS,
        kernel::WORKLOADS,
        switch::WORKLOADS,
        storms::WORKLOADS,
        atomics::WORKLOADS,
        code::WORKLOADS,
        programs::WORKLOADS,
    ]
    .into_iter()
    .flatten()
}

/// Whether `name` is the workload or its group.
fn is_called(workload: &Workload, name: &str) -> bool {
    workload.name == name || workload.group.name() == name
}

impl Request {
    fn wants(&self, workload: &Workload) -> bool {
        (self.only.is_empty() || self.only.iter().any(|name| is_called(workload, name)))
            && !self.without.iter().any(|name| is_called(workload, name))
    }

    fn iterations(&self, workload: &Workload) -> u64 {
        let scale = self
            .scales
            .iter()
            .rev()
            .find(|(name, _)| name.as_ref().is_none_or(|name| is_called(workload, name)))
            .map_or(1.0, |(_, scale)| *scale);
        ((workload.iterations as f64 * scale).round() as u64).max(1)
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Request, String> {
    let mut request = Request::default();
    let known = |name: &str| {
        if all().any(|workload| is_called(workload, name)) {
            Ok(name.to_owned())
        } else {
            Err(format!("no workload or group is called `{name}`"))
        }
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => request.list = true,
            "--without" => request.without.push(known(&words.next().unwrap_or_default())?),
            "--repeat" => {
                let count = words.next().and_then(|count| count.parse().ok()).filter(|&count| count > 0);
                request.repeat = Some(count.ok_or("--repeat wants a number from 1")?);
            }
            "--scale" => {
                let value = words.next().unwrap_or_default();
                let (name, factor) = match value.split_once('=') {
                    Some((name, factor)) => (Some(known(name)?), factor),
                    None => (None, value.as_str()),
                };
                let factor = factor.parse().ok().filter(|factor| (1e-9..=1e6).contains(factor));
                request.scales.push((name, factor.ok_or("--scale wants a number above 0")?));
            }
            flag if flag.starts_with('-') => return Err(format!("no flag is called `{flag}`")),
            // A kernel takes no more than 32 words for its init.
            names => {
                for name in names.split(',') {
                    request.only.push(known(name)?);
                }
            }
        }
    }
    Ok(request)
}

/// The rest of a workload's line.
fn measure(workload: &Workload, iterations: u64, repeat: u32) -> Result<String, String> {
    if let Some(missing) = workload.needs.missing() {
        return Ok(format!("skipped {missing}"));
    }
    let start = Instant::now();
    let mut times: Vec<Duration> = Vec::new();
    let mut checksum = None;
    while times.len() < repeat as usize && start.elapsed() < ENOUGH {
        let run: Run = (workload.run)(iterations).map_err(|error| error.to_string())?;
        if *checksum.get_or_insert(run.checksum) != run.checksum {
            return Err(format!("{:x?} became {:x}", checksum, run.checksum));
        }
        times.push(run.time);
    }
    times.sort();
    let median = times[(times.len() - 1) / 2];
    Ok(format!("{iterations} {} {:016x}", median.as_nanos(), checksum.unwrap_or_default()))
}

/// Process 1's work.
fn init() -> ! {
    println!("{READY}");
    for (kind, to) in [("proc", "/proc"), ("devtmpfs", "/dev"), ("tmpfs", "/dev/shm"), ("tmpfs", "/tmp")] {
        let _ = fs::create_dir_all(to);
        if let Err(error) = raw::mount(kind, to) {
            println!("bench: can't mount {to}: {error}");
        }
    }
    let ended = Command::new("/proc/self/exe").args(env::args().skip(1)).status();
    match ended.map(|status| status.code().unwrap_or(-1)) {
        Ok(code) => println!("{DONE} {code}"),
        Err(error) => println!("{DONE} can't run: {error}"),
    }
    let _ = io::stdout().flush();
    raw::drain_stdout();
    raw::power_off();
}
