//! What the sessions found: times by monitor, workload and iterations, and whether equal work had equal checksums.

use super::monitor::Part;
use super::session::Outcome;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The workloads that were asked for, in their order.
pub(crate) struct Catalog {
    /// Name and group.
    pub(crate) workloads: Vec<(String, String)>,
}

/// The group that needs a root file system.
const PROGRAMS: &str = "programs";
/// The group that needs two vCPUs.
const SCALING: &str = "scaling";

/// Asks the program what it has of the names.
pub(crate) fn catalog(program: &Path, only: &[String], scale: f64) -> Result<Catalog> {
    let output =
        Command::new(program).arg("--list").args(only).args(["--scale", &scale.to_string()]).output();
    let output = output.with_context(|| format!("can't start {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.lines().next().unwrap_or_default().trim_start_matches("bench: "));
    }
    Ok(Catalog::parse(&String::from_utf8_lossy(&output.stdout)))
}

impl Catalog {
    pub(crate) fn parse(list: &str) -> Catalog {
        let workloads = list.lines().filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        });
        Catalog { workloads: workloads.collect() }
    }

    /// The sessions that are needed.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let parts = [Part::Plain, Part::TwoCpus, Part::Programs];
        parts.into_iter().filter(|&part| self.names(part).next().is_some()).collect()
    }

    pub(crate) fn names(&self, part: Part) -> impl Iterator<Item = &str> {
        let of = |group: &str| match group {
            PROGRAMS => Part::Programs,
            SCALING => Part::TwoCpus,
            _ => Part::Plain,
        };
        self.workloads.iter().filter(move |(_, group)| of(group) == part).map(|(name, _)| name.as_str())
    }

    /// Groups in order, each with its workloads.
    pub(crate) fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, group) in &self.workloads {
            match groups.last_mut() {
                Some((last, names)) if last == group => names.push(name),
                _ => groups.push((group, vec![name])),
            }
        }
        groups
    }
}

/// Everything that was found. Monitors are numbers, as in the list that `measure` goes through.
#[derive(Default)]
pub(crate) struct Results {
    /// Nanoseconds of all runs, by monitor and workload, then by iterations.
    times: BTreeMap<(usize, String), BTreeMap<u64, Vec<f64>>>,
    /// Why a monitor didn't run a workload.
    skipped: BTreeMap<(usize, String), String>,
    /// Why a monitor left a part out.
    left_out: BTreeMap<(usize, Part), String>,
    /// By workload and iterations: the first checksum, and whose it was.
    checksums: BTreeMap<(String, u64), (String, String)>,
    /// From start to init, by monitor.
    pub(crate) boots: BTreeMap<usize, Vec<Duration>>,
    /// What went wrong.
    pub(crate) problems: Vec<String>,
}

impl Results {
    /// Takes a workload's line.
    pub(crate) fn add(&mut self, monitor: usize, monitors_name: &str, name: &str, outcome: Outcome) {
        let key = (monitor, name.to_owned());
        match outcome {
            Outcome::Ran(iterations, time, checksum) => {
                self.times.entry(key).or_default().entry(iterations).or_default().push(time);
                let first = (checksum.clone(), monitors_name.to_owned());
                let (known, whose) = self.checksums.entry((name.to_owned(), iterations)).or_insert(first);
                if *known != checksum {
                    self.problems.push(format!(
                        "{name}: {monitors_name} has checksum {checksum}, {whose} has {known} ({iterations} iterations)"
                    ));
                }
            }
            Outcome::Skipped(why) => drop(self.skipped.insert(key, why)),
            Outcome::Failed(why) => self.problems.push(format!("{name} failed on {monitors_name}: {why}")),
        }
    }

    /// Notes that a monitor can't run a part.
    pub(crate) fn leave_out(&mut self, monitor: usize, part: Part, why: String) {
        self.left_out.insert((monitor, part), why);
    }

    /// What wasn't run, by monitor: a workload or `programs`, and why.
    pub(crate) fn gaps(&self) -> Vec<(usize, String, String)> {
        let skipped = self.skipped.iter().map(|((monitor, name), why)| (*monitor, name.clone(), why.clone()));
        let parts = self
            .left_out
            .iter()
            .map(|((monitor, part), why)| (*monitor, format!("{part:?}").to_lowercase(), why.clone()));
        skipped.chain(parts).collect()
    }

    /// A monitor's median for one iteration, in nanoseconds, at its largest number of iterations or at `iterations`.
    pub(crate) fn time(&self, monitor: usize, name: &str, iterations: Option<u64>) -> Option<(u64, f64)> {
        let times = self.times.get(&(monitor, name.to_owned()))?;
        let (iterations, times) = match iterations {
            Some(iterations) => times.get_key_value(&iterations)?,
            None => times.last_key_value()?,
        };
        Some((*iterations, median(times)? / *iterations as f64))
    }

    /// A monitor's median from start to init, in seconds.
    pub(crate) fn boot(&self, monitor: usize) -> Option<f64> {
        let times: Vec<f64> = self.boots.get(&monitor)?.iter().map(Duration::as_secs_f64).collect();
        median(&times)
    }

    /// How often one monitor needs another's time for the same work; for other work, by iteration.
    pub(crate) fn ratio(&self, slow: usize, fast: usize, name: &str) -> Option<f64> {
        let (iterations, slow) = self.time(slow, name, None)?;
        let same = self.time(fast, name, Some(iterations));
        let (_, fast) = same.or_else(|| self.time(fast, name, None))?;
        Some(slow / fast)
    }
}

/// The middle one, of an even number the lower.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The geometric mean; `None` of nothing.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some((values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(iterations: u64, time: f64, checksum: &str) -> Outcome {
        Outcome::Ran(iterations, time, checksum.to_owned())
    }

    #[test]
    fn means_and_medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(median(&[]), None);
        assert!((geometric_mean(&[1.0, 100.0]).unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(geometric_mean(&[]), None);
    }

    #[test]
    fn different_checksums_of_the_same_work_are_a_problem() {
        let mut results = Results::default();
        results.add(0, "native", "w", ran(10, 100.0, "aa"));
        results.add(1, "TCG", "w", ran(5, 100.0, "bb"));
        assert!(results.problems.is_empty());
        results.add(1, "TCG", "w", ran(10, 100.0, "bb"));
        assert_eq!(results.problems.len(), 1);
        assert!(results.problems[0].contains("TCG has checksum bb, native has aa"));
    }

    #[test]
    fn ratios_are_of_the_same_work_where_there_is_some() {
        let mut results = Results::default();
        results.add(0, "native", "w", ran(100, 100.0, "aa"));
        results.add(0, "native", "w", ran(1, 10.0, "ab"));
        results.add(1, "interpreter", "w", ran(1, 50.0, "ab"));
        results.add(2, "TCG", "w", ran(100, 500.0, "aa"));
        assert_eq!(results.ratio(1, 0, "w"), Some(5.0));
        assert_eq!(results.ratio(2, 0, "w"), Some(5.0));
        assert_eq!(results.ratio(2, 1, "w"), Some(0.1));
        assert_eq!(results.ratio(2, 1, "v"), None);
    }

    #[test]
    fn a_catalog_has_parts_and_groups() {
        let catalog = Catalog::parse("a integer 5\nb integer 6\nperl programs 1\n");
        assert_eq!(catalog.parts(), [Part::Plain, Part::Programs]);
        assert_eq!(catalog.names(Part::Plain).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(catalog.groups(), [("integer", vec!["a", "b"]), ("programs", vec!["perl"])]);
    }
}
