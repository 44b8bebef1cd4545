//! Runs the oracle from the command line: `oracle [--cases N] [--seed S] [--only MNEMONIC] [--seconds T] [--case SEED]`.
//!
//! Prints the first mismatches in full, then how many there were of each family. Ends with 1 if there were any, with 2
//! after a usage error.

use conformance::oracle::{self, Options};
use iced_x86::Mnemonic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options { cases: u64::MAX, ..Options::default() };
    let mut bounded = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} wants a value"))?;
        let wrong = || format!("{flag}: `{value}` isn't a number");
        match flag.as_str() {
            "--cases" => (options.cases, bounded) = (number(&value).ok_or_else(wrong)?, true),
            "--seed" => options.seed = number(&value).ok_or_else(wrong)?,
            "--details" => options.details = number(&value).ok_or_else(wrong)? as usize,
            "--seconds" => {
                (options.time, bounded) =
                    (Some(Duration::from_secs(number(&value).ok_or_else(wrong)?)), true);
            }
            "--only" => {
                let mnemonic = Mnemonic::values()
                    .find(|mnemonic| format!("{mnemonic:?}").eq_ignore_ascii_case(&value))
                    .ok_or_else(|| format!("--only: there is no instruction `{value}`"))?;
                options.only = Some(mnemonic);
            }
            _ => return Err(format!("`{flag}` isn't a flag of this program")),
        }
    }
    if !bounded {
        options.cases = 200_000;
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("oracle: {message}");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let report = match oracle::run(&conformance::interpreter, options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("oracle: {error}");
            return ExitCode::from(2);
        }
    };
    for detail in &report.details {
        println!("{detail}");
    }
    let mut families: Vec<_> = report.families.iter().collect();
    families.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for (family, count) in families {
        println!("{count:>6}  {family}");
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{} cases in {seconds:.1} s ({:.0} a second), seed {:#x}: {} mismatches; vectors {:?}",
        report.cases,
        report.cases as f64 / seconds,
        options.seed,
        report.mismatches,
        report.vectors
    );
    if report.mismatches == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
