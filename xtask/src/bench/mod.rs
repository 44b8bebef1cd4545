//! `cargo xtask bench`: guests/bench natively, on each engine of Ombra and under QEMU's TCG, in turn; medians and ratios.
//!
//! Every monitor boots the same kernel with the same initramfs once a round and runs all workloads in that boot; programs of
//! Debian run in a boot of their own, from an initramfs that has them, and what wants two vCPUs in another. Rounds go through all monitors, so that a load on the
//! host falls on all. The same work has the same checksum everywhere, or the bench fails.
//!
//! `program` builds what runs, `monitor` knows the command lines, `session` runs one and reads its lines, `results` keeps
//! them, `report` writes the table. One thread, and one that reads in each session.

mod disk;
mod monitor;
mod program;
mod report;
mod results;
mod session;

use crate::guests;
use anyhow::{Context, Result, bail};
use monitor::{Files, Monitor, Part};
use results::{Catalog, Results};
use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;

/// The program that measures, below the checkout.
pub(crate) const PROGRAM: &str = program::SOURCE;
/// Where `--write` puts the report.
const PAGE: &str = "docs/benchmarks.md";

/// What the flags ask for.
#[derive(Debug, PartialEq)]
struct Options {
    /// Workloads or groups; none for all.
    only: Vec<String>,
    rounds: u32,
    /// Engines of Ombra; none for all that it has.
    engines: Vec<String>,
    native: bool,
    ombra: bool,
    tcg: bool,
    /// So much of all work.
    scale: f64,
    /// The report goes into [`PAGE`] too.
    write: bool,
}

/// `cargo xtask bench FLAGS`.
pub(crate) fn command(words: &[&str]) -> Result<()> {
    match words {
        ["--prepare"] => prepare(&crate::root()),
        _ => run(&crate::root(), &parse(words)?),
    }
}

fn parse(words: &[&str]) -> Result<Options> {
    let mut options = Options {
        only: Vec::new(),
        rounds: 3,
        engines: Vec::new(),
        native: true,
        ombra: true,
        tcg: true,
        scale: 1.0,
        write: false,
    };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word {
            "--only" => options.only.push((*value()?).to_owned()),
            "--engine" => options.engines.push((*value()?).to_owned()),
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|&rounds| rounds > 0);
                options.rounds = rounds.context("--rounds wants a number from 1")?;
            }
            "--scale" => {
                let scale = value()?.parse().ok().filter(|scale| (1e-6..=1e3).contains(scale));
                options.scale = scale.context("--scale wants a number above 0")?;
            }
            "--no-native" => options.native = false,
            "--no-ombra" => options.ombra = false,
            "--no-tcg" => options.tcg = false,
            "--write" => options.write = true,
            _ => bail!("bench knows no `{word}`; `cargo xtask` alone says what there is"),
        }
    }
    Ok(options)
}

/// Builds the program that measures and says how it is run.
fn prepare(root: &Path) -> Result<()> {
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

fn run(root: &Path, options: &Options) -> Result<()> {
    if options.only == [disk::NAME] {
        return disk::run(root, options);
    }
    guests::fetch(root, guests::For::Run)?;
    let binary = crate::release_binary()?;
    let folder = guests::cache(root).join("guests");
    let (program, archive) = program::prepare(root, &folder)?;
    let mut files = Files::new(binary, folder.join("cloud/vmlinuz"), program, archive);
    let catalog = results::catalog(&files.program, &options.only, options.scale)?;
    if catalog.parts().contains(&Part::Programs) {
        match program::prepare_programs(root, &folder, &files.program) {
            Ok((archive, tree)) => files.programs = Some((archive, tree)),
            Err(error) => eprintln!("bench: programs are left out: {error:#}"),
        }
    }
    let monitors = monitors(&files, options)?;
    warn_about_load();
    let mut results = Results::default();
    for round in 1..=options.rounds {
        for (number, monitor) in monitors.iter().enumerate() {
            measure(&files, options, &monitors, number, &catalog, &mut results, round)
                .with_context(|| format!("{} failed", monitor.name))?;
        }
    }
    let report = report::markdown(&monitors, &catalog, &results, &monitor::versions(&files, options));
    println!("{report}");
    if options.write {
        let page = root.join(PAGE);
        let text = fs::read_to_string(&page).with_context(|| format!("can't read {}", page.display()))?;
        fs::write(&page, report::replaced(&text, &report)?)?;
        eprintln!("bench: written to {PAGE}");
    }
    if !results.problems.is_empty() {
        bail!("not all went well:\n  {}", results.problems.join("\n  "));
    }
    Ok(())
}

/// Native first, which gives the checksums; then Ombra's engines, then TCG.
fn monitors(files: &Files, options: &Options) -> Result<Vec<Monitor>> {
    let mut monitors = Vec::new();
    if options.native {
        monitors.push(Monitor::native());
    }
    let there = monitor::engines(&files.binary)?;
    for engine in &options.engines {
        if !there.contains(engine) {
            bail!("ombra has no engine `{engine}`; it has {}", there.join(", "));
        }
    }
    for engine in there {
        if options.ombra && (options.engines.is_empty() || options.engines.contains(&engine)) {
            monitors.push(Monitor::ombra(&engine));
        }
    }
    if options.tcg {
        match monitor::qemu_version() {
            Some(_) => monitors.push(Monitor::tcg()),
            None => eprintln!("bench: no qemu-system-x86_64 here, so there is no TCG to compare with"),
        }
    }
    Ok(monitors)
}

/// All sessions of a monitor in a round.
fn measure(
    files: &Files,
    options: &Options,
    monitors: &[Monitor],
    number: usize,
    catalog: &Catalog,
    results: &mut Results,
    round: u32,
) -> Result<()> {
    let monitor = &monitors[number];
    // Natively, everything that any monitor does.
    let scales: Vec<(f64, f64)> = if monitor.is_native() {
        let mut scales: Vec<(f64, f64)> = monitors.iter().map(Monitor::scales).collect();
        scales.sort_by(|a, b| b.0.total_cmp(&a.0));
        scales.dedup();
        scales
    } else {
        vec![monitor.scales()]
    };
    for part in catalog.parts() {
        for &(plain, programs) in &scales {
            let scale = options.scale * if part == Part::Programs { programs } else { plain };
            // One word for all names: the kernel hands no more than 32 to its init.
            let names: Vec<&str> = catalog.names(part).collect();
            let words = [names.join(","), "--scale".to_owned(), scale.to_string()];
            let command = match monitor.command(files, part, &words) {
                Ok(command) => command,
                Err(why) => {
                    results.leave_out(number, part, why.to_string());
                    continue;
                }
            };
            let names: BTreeSet<&str> = catalog.names(part).collect();
            if !std::io::stderr().is_terminal() {
                eprintln!(
                    "bench: round {round} of {}, {}, {} workloads",
                    options.rounds,
                    monitor.name,
                    names.len()
                );
            }
            let session = session::run(command, &names, |name| {
                progress(&format!("round {round} of {}, {}: {name}", options.rounds, monitor.name));
            })?;
            progress("");
            if part == Part::Plain {
                results.boots.entry(number).or_default().extend(session.boot);
            }
            for (name, outcome) in session.outcomes {
                results.add(number, &monitor.name, &name, outcome);
            }
            if let Some(problem) = session.problem {
                let what = match part {
                    Part::Plain => "with workloads",
                    Part::TwoCpus => "with two vCPUs",
                    Part::Programs => "with programs",
                };
                results.problems.push(format!("{}, round {round}, {what}: {problem}", monitor.name));
            }
        }
    }
    Ok(())
}

/// One line of a terminal that is written again and again.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{}{text}", if text.is_empty() { "" } else { "bench: " });
        let _ = stderr.flush();
    }
}

/// Figures from a busy host mean little.
fn warn_about_load() {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().and_then(|load| load.parse::<f64>().ok()).unwrap_or_default();
    if load > 0.5 {
        eprintln!("bench: the host is busy already (load {load}); quiet hosts give better figures");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_may_be_given_in_any_order() {
        let words = ["--no-tcg", "--only", "integer", "--rounds", "5", "--only", "x87", "--engine", "e"];
        let options = parse(&words).unwrap();
        assert_eq!(options.only, ["integer", "x87"]);
        assert_eq!((options.rounds, options.tcg, options.native), (5, false, true));
        assert_eq!(options.engines, ["e"]);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for words in [&["--rounds", "0"][..], &["--rounds"], &["--scale", "0"], &["integer"], &["--only"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
