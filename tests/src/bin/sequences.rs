//! Runs sequences from the command line: `sequences [--cases N] [--seed S] [--engine A] [--engine B] [--details N]
//! [--only SEED] [--seconds T]`.
//!
//! Compares two engines; with one name, or none, an engine with itself run in other pieces. Prints the first mismatches
//! shrunk, then how many there were of each kind. Ends with 1 if there were any, with 2 after a usage error.

use conformance::sequences::{self, ENGINES, Make, Options};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn number(flag: &str, text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("{flag}: `{text}` isn't a number"))
}

fn arguments() -> Result<(Options, Vec<Make>), String> {
    let mut options = Options::default();
    let mut engines = Vec::new();
    let mut bounded = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} wants a value"))?;
        match flag.as_str() {
            "--cases" => (options.cases, bounded) = (number(&flag, &value)?, true),
            "--seed" => options.seed = number(&flag, &value)?,
            "--details" => options.details = number(&flag, &value)? as usize,
            "--only" => options.only = Some(number(&flag, &value)?),
            "--seconds" => options.time = Some(Duration::from_secs(number(&flag, &value)?)),
            "--engine" => {
                let names: Vec<&str> = ENGINES.iter().map(|(name, _)| *name).collect();
                let make = sequences::engine(&value)
                    .ok_or_else(|| format!("--engine: there are {}", names.join(", ")))?;
                engines.push(make);
            }
            _ => return Err(format!("`{flag}` isn't a flag of this program")),
        }
    }
    if options.time.is_some() && !bounded {
        options.cases = u64::MAX / 2;
    }
    Ok((options, engines))
}

fn main() -> ExitCode {
    let (options, engines) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("sequences: {message}");
            return ExitCode::from(2);
        }
    };
    let makes = match engines.as_slice() {
        [] => (ENGINES[0].1, ENGINES[0].1),
        [one] => (*one, *one),
        [one, other] => (*one, *other),
        _ => {
            eprintln!("sequences: two engines at most");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let report = match sequences::run(makes, options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("sequences: {error}");
            return ExitCode::from(2);
        }
    };
    for detail in &report.details {
        println!("{detail}");
    }
    for (family, count) in &report.families {
        println!("{count:>6}  {family}");
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("ends {:?}; {:?}", report.ends, report.modes);
    println!("vectors {:?}", report.vectors);
    println!("calls {:?}", report.calls);
    println!(
        "{} cases in {seconds:.1} s ({:.0} a second), {} instructions, seed {:#x}: {} mismatches",
        report.cases,
        report.cases as f64 / seconds,
        report.instructions,
        options.seed,
        report.mismatches
    );
    if report.mismatches == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
