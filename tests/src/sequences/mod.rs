//! Sequences: random programs on two engines, whole state compared.
//!
//! Where the oracle asks the host about single unprivileged instructions, this asks one engine about another, so that programs
//! may have everything: both rings, faults and handlers, page tables that change, address spaces, events, code that
//! changes, loops that become hot. [`run`] is the whole of it; [`ENGINES`] are the engines that it knows. An engine is also
//! judged against itself, run in other pieces. Cases that end by themselves are also run without a budget, as machines run.
//!
//! Everything follows from the seed. Threads: one for each host CPU, each with machines of its own; a block of [`BLOCK`]
//! cases runs on fresh engines, one after the other, so a case can be repeated with what came before it.
//!
//! Left out: time (TSC), random numbers, XSAVE and FXSAVE images, x87's FIP, 16-bit code, several vCPUs.

mod compare;
mod furnish;
mod generate;
mod kernel;
mod layout;
mod platform;
mod program;
mod report;
mod runner;
mod shrink;

pub use compare::Difference;
pub use generate::{Case, Generator};
pub use layout::{KERNEL, Mode, TABLES, World, code_frames};
pub use program::{Placed, Program};
pub use report::Report;
pub use runner::{End, Make, Outcome, Plan};

use crate::oracle::random::Random;
use compare::{Early, Judge};
use engine::EngineError;
use runner::Machine;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The engines, by name. The first is the reference.
pub const ENGINES: &[(&str, Make)] = &[
    ("interpreter", crate::interpreter),
    ("translator", crate::translator),
    ("suspicious-translator", crate::suspicious_translator),
];

/// Cases that one pair of engines runs before fresh ones take over.
pub const BLOCK: u64 = 64;
/// Instructions of a case at most.
const LIMIT: u64 = 4000;

/// The engine of a name.
#[must_use]
pub fn engine(name: &str) -> Option<Make> {
    ENGINES.iter().find(|(known, _)| *known == name).map(|&(_, make)| make)
}

/// How long to run, and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Cases to run.
    pub cases: u64,
    /// Where the cases come from.
    pub seed: u64,
    /// Only the case of this seed.
    pub only: Option<u64>,
    /// Ends earlier when this is over.
    pub time: Option<Duration>,
    /// Mismatches to shrink and describe.
    pub details: usize,
    /// Ends at the first block with this many mismatches.
    pub enough: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cases: 100_000, seed: 1, only: None, time: None, details: 5, enough: 200 }
    }
}

/// The seed of a case.
#[must_use]
pub fn case_seed(seed: u64, number: u64) -> u64 {
    Random::new(Random::new(seed).bits().wrapping_add(number)).bits()
}

/// Two engines of a case, and how they run it.
pub(crate) struct Pair {
    reference: Machine,
    other: Machine,
    /// Both are the same: they run the case in different pieces.
    same: bool,
}

impl Pair {
    pub(crate) fn new(makes: (Make, Make)) -> Result<Self, EngineError> {
        let same = std::ptr::fn_addr_eq(makes.0, makes.1);
        Ok(Self { reference: Machine::new(makes.0)?, other: Machine::new(makes.1)?, same })
    }

    /// In what pieces the two run a case.
    pub(crate) fn plans(&self, case: &Case) -> (Plan, Plan) {
        let mut random = Random::new(case.random);
        let whole = Plan::whole(LIMIT);
        if !self.other.is_exact() || !self.reference.is_exact() {
            return (whole.clone(), whole);
        }
        let slices = |random: &mut Random| {
            let most = random.pick(&[3, 30, 300]);
            let mut pieces: Vec<u64> = (0..8).map(|_| 1 + random.below(most)).collect();
            pieces.push(1 + random.below(1500));
            pieces
        };
        let kind = if self.same { 30 + random.below(70) } else { random.below(100) };
        match kind {
            0..=29 => (whole.clone(), whole),
            // Translated code that isn't counted is other code.
            30..=59 => (whole, Plan::unlimited()),
            60..=74 => (whole, Plan { pieces: vec![1], ..Plan::whole(LIMIT) }),
            75..=89 => (whole, Plan { pieces: slices(&mut random), ..Plan::whole(LIMIT) }),
            _ if self.same => (whole, Plan { pieces: slices(&mut random), look: true, ..Plan::whole(LIMIT) }),
            _ => {
                let plan = Plan { pieces: slices(&mut random), look: true, ..Plan::whole(LIMIT) };
                (plan.clone(), plan)
            }
        }
    }

    /// Runs a case on both as planned.
    pub(crate) fn run(&mut self, case: &Case) -> (Outcome, Outcome) {
        let (one, other) = self.plans(case);
        self.run_as(case, &one, &other)
    }

    pub(crate) fn run_as(&mut self, case: &Case, one: &Plan, other: &Plan) -> (Outcome, Outcome) {
        let reference = self.reference.run(&case.ram, &case.state, one);
        let ends = matches!(reference.end, End::Halted | End::Shutdown);
        let whole = Plan::whole(LIMIT);
        let plan = if other.unlimited && !ends { &whole } else { other };
        let other = self.other.run(&case.ram, &case.state, plan);
        (reference, other)
    }

    /// In what the two outcomes differ. Where a budget isn't exact, the end of an endless program isn't comparable.
    pub(crate) fn differences(&self, case: &Case, outcomes: &(Outcome, Outcome)) -> Vec<Difference> {
        let (one, other) = outcomes;
        let exact = self.reference.is_exact() && self.other.is_exact();
        if !exact && one.end == End::Limit && other.end == End::Limit {
            return Vec::new();
        }
        self.judge(case).compare(one, other)
    }

    fn judge<'a>(&self, case: &'a Case) -> Judge<'a> {
        let is_reference = |machine: &Machine| machine.name() == ENGINES[0].0;
        let early = match (is_reference(&self.reference), is_reference(&self.other)) {
            (true, true) => Early::Neither,
            (true, false) => Early::Other,
            _ => Early::Either,
        };
        Judge { world: case.world, program: &case.program, early }
    }
}

/// Runs random cases on two engines.
///
/// # Errors
/// One of the engines can't be made. Mismatches are no error: see [`Report`].
///
/// # Panics
/// A thread of the judge itself panicked.
pub fn run(makes: (Make, Make), options: Options) -> Result<Report, EngineError> {
    let generator = Generator::new();
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let report = Mutex::new(Report::default());
    let blocks = options.only.map_or(options.cases.div_ceil(BLOCK), |_| 1);
    let work = || -> Result<(), EngineError> {
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            let over = options.time.is_some_and(|time| begin.elapsed() >= time);
            let enough = report.lock().expect("no thread panicked").mismatches >= options.enough;
            if block >= blocks || over || enough {
                return Ok(());
            }
            let seeds: Vec<u64> = match options.only {
                Some(seed) => vec![seed],
                None => (block * BLOCK..((block + 1) * BLOCK).min(options.cases))
                    .map(|number| case_seed(options.seed, number))
                    .collect(),
            };
            let found = judge_block(&generator, makes, &seeds, options.details)?;
            report.lock().expect("no thread panicked").merge(found, options.details);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("the judge doesn't panic"))
    })?;
    Ok(report.into_inner().expect("no thread panicked"))
}

/// Runs some cases one after the other on one pair of engines.
fn judge_block(
    generator: &Generator,
    makes: (Make, Make),
    seeds: &[u64],
    details: usize,
) -> Result<Report, EngineError> {
    let mut pair = Pair::new(makes)?;
    let mut report = Report::default();
    for (number, &seed) in seeds.iter().enumerate() {
        let case = generator.case(seed);
        let outcomes = pair.run(&case);
        let differences = pair.differences(&case, &outcomes);
        report.count(&case, &outcomes.0);
        if !differences.is_empty() {
            let shrunk = if report.details.len() < details {
                Some(shrink::shrink(makes, generator, &seeds[..number], &case)?)
            } else {
                None
            };
            report.mismatch(&case, &differences, shrunk.as_ref());
        }
    }
    Ok(report)
}
