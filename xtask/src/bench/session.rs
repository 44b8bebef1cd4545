//! One run of guests/bench, natively or in a guest: starts it, reads its lines, notes when the init was there.
//!
//! A thread of its own reads, so that a guest that stops saying anything can be given up.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What a workload's line says.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Outcome {
    /// Iterations, nanoseconds for all of them, checksum.
    Ran(u64, f64, String),
    Skipped(String),
    Failed(String),
}

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// From the process's start to the init's first line, in guests.
    pub(crate) boot: Option<Duration>,
    pub(crate) outcomes: Vec<(String, Outcome)>,
    /// Why not all workloads have run.
    pub(crate) problem: Option<String>,
}

/// A workload that takes longer, with its repetitions, has failed.
const PATIENCE: Duration = Duration::from_secs(300);
/// The init's first line, and the beginning of its last (guests/bench/src/main.rs).
const READY: &str = "bench-init";
const DONE: &str = "bench-end";
/// The guest's kernel has given up.
const PANIC: &str = "Kernel panic - not syncing";
/// Lines that are shown when a run fails.
const TAIL: usize = 5;

/// Runs to the end. `seen` hears the name of each workload once it has run.
pub(crate) fn run(
    mut command: Command,
    names: &BTreeSet<&str>,
    mut seen: impl FnMut(&str),
) -> Result<Session> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {:?}", command.get_program()))?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let mut session = Session::default();
    let mut others: Vec<String> = Vec::new();
    let ended = loop {
        let (at, line) = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => break Some(format!("nothing for {} s", PATIENCE.as_secs())),
            Err(RecvTimeoutError::Disconnected) => break None,
        };
        if let Some((name, outcome)) = parse(&line, names) {
            seen(&name);
            session.outcomes.push((name, outcome));
        } else if line.contains(READY) {
            // Firmware may have left its own bytes at the line's start.
            session.boot = Some(at - start);
        } else if line.starts_with(DONE) {
            break None;
        } else if line.contains(PANIC) {
            break Some(line);
        } else if !line.is_empty() {
            others.push(line);
        }
    };
    // Nothing more is wanted of a guest; a native run has ended.
    if session.boot.is_some() || ended.is_some() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    drop(lines);
    let _ = reader.join();
    let missing = names.len().saturating_sub(session.outcomes.len());
    if missing > 0 {
        let tail = others[others.len().saturating_sub(TAIL)..].join(" | ");
        let why = ended.unwrap_or_else(|| format!("it ended with {status}"));
        session.problem = Some(format!("{missing} workloads didn't run: {why}; last lines: {tail}"));
    }
    Ok(session)
}

/// A workload's line; `None` for any other.
fn parse(line: &str, names: &BTreeSet<&str>) -> Option<(String, Outcome)> {
    let (name, rest) = line.split_once(' ')?;
    if !names.contains(name) {
        return None;
    }
    let outcome = match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["skipped", why @ ..] => Outcome::Skipped(why.join(" ")),
        ["failed", why @ ..] => Outcome::Failed(why.join(" ")),
        [iterations, nanoseconds, checksum] => {
            let time = nanoseconds.parse().ok().filter(|time| *time > 0.0)?;
            Outcome::Ran(iterations.parse().ok()?, time, (*checksum).to_owned())
        }
        _ => return None,
    };
    Some((name.to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_workloads_are_told_from_others() {
        let names = BTreeSet::from(["a"]);
        let ran = Outcome::Ran(3, 500.0, "ff".to_owned());
        assert_eq!(parse("a 3 500 ff", &names), Some(("a".to_owned(), ran)));
        let skipped = Outcome::Skipped("no AVX2".to_owned());
        assert_eq!(parse("a skipped no AVX2", &names), Some(("a".to_owned(), skipped)));
        for line in ["b 3 500 ff", "a 3 500", "a", "", "a x 500 ff", "a 3 0 ff", "[ 1.0] a 3 500 ff"] {
            assert_eq!(parse(line, &names), None, "{line}");
        }
    }

    #[test]
    fn a_guests_run_ends_with_its_last_line() {
        let names = BTreeSet::from(["a"]);
        let script = "echo noise bench-init; echo a 1 2 ff; echo bench-end 0; exec sleep 100";
        let session = run(shell(script), &names, |_| ()).unwrap();
        assert!(session.boot.is_some() && session.problem.is_none());
        assert_eq!(session.outcomes.len(), 1);
    }

    #[test]
    fn a_run_that_ends_early_says_what_it_said_last() {
        let names = BTreeSet::from(["a", "b"]);
        let session = run(shell("echo a 1 2 ff; echo oops; exit 3"), &names, |_| ()).unwrap();
        let problem = session.problem.unwrap();
        assert!(
            problem.contains("1 workloads") && problem.contains("oops") && problem.contains("3"),
            "{problem}"
        );
    }
}
