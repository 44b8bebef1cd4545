//! The oracle: random unprivileged code on the host CPU and on an engine, all state compared.
//!
//! [`run`] is the whole of it. Called by the test program `oracle`, by the binary of that name, and from other tests
//! with cases of their own. One thread drives the engine while a worker process ([`native`]) runs the same batch on the
//! host. Everything follows from the seed.
//!
//! Left out, each with its reason in [`exclude`]: what enters the host's kernel, what two runs answer differently, what
//! depends on descriptor tables; in [`vendor`] what AMD's hosts do otherwise. x87's FIP, FDP and FOP aren't compared, and in images
//! only where they are zero ([`images`]). 32-bit code isn't run.

pub mod case;
pub mod exclude;
pub mod generate;
pub mod guest;
pub(crate) mod images;
pub mod native;
pub mod random;
pub mod report;
pub mod undefined;
pub mod vendor;

pub use guest::{Guest, MakeEngine};
pub use report::Report;

use case::Outcome;
use engine::EngineError;
use generate::{Case, Generator};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use native::{BATCH, Worker};
use random::Random;
use report::Difference;
use std::time::{Duration, Instant};

/// How long to run, and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Cases to run.
    pub cases: u64,
    /// Where the cases come from.
    pub seed: u64,
    /// Only instructions of this mnemonic.
    pub only: Option<Mnemonic>,
    /// Ends earlier when this is over.
    pub time: Option<Duration>,
    /// Mismatches to shrink and describe.
    pub details: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cases: 200_000, seed: 1, only: None, time: None, details: 20 }
    }
}

/// What keeps the oracle from running.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The engine can't be made.
    #[error("the engine can't be made")]
    Engine(#[from] EngineError),
    /// The host refuses the worker.
    #[error("the host refuses a worker process")]
    Worker(#[from] std::io::Error),
    /// There is nothing to run.
    #[error("no instruction of that name can be run")]
    Nothing,
}

/// Runs random cases on the host and on the engine that `make` makes.
///
/// # Errors
/// [`OracleError`] where one of the two sides can't be set up. Mismatches are no error: see [`Report`].
pub fn run(make: &MakeEngine<'_>, options: Options) -> Result<Report, OracleError> {
    let generator = Generator::new(options.only);
    if generator.is_empty() {
        return Err(OracleError::Nothing);
    }
    let mut oracle = Oracle { worker: Worker::new()?, guest: Guest::new(make)? };
    let mut seeds = Random::new(options.seed);
    let mut report = Report { features: generator.features(), ..Report::default() };
    let begin = Instant::now();
    let mut outcome = Box::new(Outcome::default());
    while report.cases < options.cases && options.time.is_none_or(|time| begin.elapsed() < time) {
        let count = (options.cases - report.cases).min(BATCH as u64) as usize;
        let batch: Vec<Case> = (0..count).map(|_| generator.case(seeds.bits())).collect();
        for (i, case) in batch.iter().enumerate() {
            oracle.worker.initial(i).clone_from(&case.initial);
        }
        oracle.worker.run(count)?;
        let mut engine = Vec::with_capacity(count);
        for case in &batch {
            oracle.guest.run(&case.initial, &mut outcome);
            engine.push((*outcome).clone());
        }
        oracle.worker.wait()?;
        for (i, case) in batch.iter().enumerate() {
            let host = oracle.worker.outcome(i);
            *report.vectors.entry(host.vector).or_default() += 1;
            let differences = report::compare(case, host, &engine[i]);
            for feature in &case.features {
                *report.features.entry(format!("{feature:?}")).or_default() += 1;
            }
            if !differences.is_empty() {
                report.mismatches += 1;
                // Shrinking uses the worker's slots, so it comes after the batch; here only what's needed for it.
                engine[i].vector = case::DIED;
                engine[i].cr2 = u64::MAX;
            }
        }
        for (case, outcome) in batch.iter().zip(&engine) {
            if outcome.vector == case::DIED && outcome.cr2 == u64::MAX {
                oracle.record(case, &options, &mut report)?;
            }
        }
        report.cases += count as u64;
    }
    Ok(report)
}

struct Oracle {
    worker: Worker,
    guest: Guest,
}

impl Oracle {
    /// Runs one case on both sides.
    fn differences(&mut self, case: &Case) -> Result<Vec<Difference>, OracleError> {
        self.worker.initial(0).clone_from(&case.initial);
        self.worker.run(1)?;
        let mut outcome = Box::new(Outcome::default());
        self.guest.run(&case.initial, &mut outcome);
        self.worker.wait()?;
        Ok(report::compare(case, self.worker.outcome(0), &outcome))
    }

    /// Shrinks a mismatch and files it.
    fn record(&mut self, case: &Case, options: &Options, report: &mut Report) -> Result<(), OracleError> {
        if report.mismatches > 4000 {
            return Ok(());
        }
        let (case, differences) = self.shrink(case)?;
        *report.families.entry(family(&case, &differences)).or_default() += 1;
        if report.details.len() < options.details {
            report.details.push(report::describe(&case, &differences));
        }
        Ok(())
    }

    /// Replaces instructions by NOPs as long as the two sides still differ.
    fn shrink(&mut self, case: &Case) -> Result<(Case, Vec<Difference>), OracleError> {
        let mut best = case.clone();
        let mut differences = self.differences(&best)?;
        for i in (0..case.instructions.len()).rev() {
            if case.instructions.len() == 1 {
                break;
            }
            let mut smaller = best.clone();
            let (ip, len, _) = smaller.instructions[i];
            let at = (ip - smaller.initial.rip) as usize;
            smaller.initial.code[at..at + len].fill(0x90);
            // What it defined is undefined now.
            let all = smaller.instructions.iter().fold(smaller.undefined, |all, &(.., flags)| all | flags);
            smaller.undefined = all;
            smaller.instructions.iter_mut().for_each(|(.., flags)| *flags = all);
            let still = self.differences(&smaller)?;
            if !still.is_empty() {
                (best, differences) = (smaller, still);
            }
        }
        Ok((best, differences))
    }
}

/// The mnemonics that are left in a shrunk case, and what differs.
fn family(case: &Case, differences: &[Difference]) -> String {
    let mut names = Vec::new();
    for &(ip, len, _) in &case.instructions {
        let at = (ip - case.initial.rip) as usize;
        let bytes = &case.initial.code[at..at + len];
        if !bytes.iter().all(|&byte| byte == 0x90) {
            let instruction = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
            names.push(format!("{:?}", instruction.mnemonic()));
        }
    }
    // Which register it was doesn't make a family.
    let kind = |what: &str| match what {
        "rip" | "error code" | "rflags" | "vector" | "cr2" | "memory" | "mxcsr" | "fcw" | "fsw" | "ftw" => {
            what.to_owned()
        }
        _ if what.starts_with('r') => "register".to_owned(),
        _ => what.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(),
    };
    let mut what: Vec<String> = differences.iter().map(|difference| kind(&difference.what)).collect();
    what.dedup();
    what.truncate(3);
    format!("{}: {}", names.join("+"), what.join(","))
}
