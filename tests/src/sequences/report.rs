//! What a run found, readable.

use super::compare::Difference;
use super::generate::Case;
use super::layout::{CODE_LEN, KERNEL, USER, system};
use super::runner::{End, Outcome};
use super::shrink::Shrunk;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that ran.
    pub cases: u64,
    /// Instructions on the reference.
    pub instructions: u64,
    /// How cases ended on the reference.
    pub ends: BTreeMap<String, u64>,
    /// Cases by mode and ring.
    pub modes: BTreeMap<String, u64>,
    /// Vectors that were at the end in the guests' logs.
    pub vectors: BTreeMap<u64, u64>,
    /// Calls of the platform by kind.
    pub calls: BTreeMap<String, u64>,
    /// Cases that differed.
    pub mismatches: u64,
    /// What differed first, by kind.
    pub families: BTreeMap<String, u64>,
    /// The first cases that differed, shrunk, as text.
    pub details: Vec<String>,
}

impl Report {
    /// Takes in how a case went.
    pub(super) fn count(&mut self, case: &Case, outcome: &Outcome) {
        self.cases += 1;
        self.instructions += outcome.instructions.unwrap_or(0);
        *self.ends.entry(format!("{:?}", outcome.end)).or_default() += 1;
        let ring = if case.world.user { 3 } else { 0 };
        *self.modes.entry(format!("{:?}, ring {ring}", case.world.mode)).or_default() += 1;
        let word = if case.world.mode.is_long() { 8 } else { 4 };
        let log = &outcome.ram[system::LOG as usize..(system::LOG + 0x1000) as usize];
        for entry in log.chunks(8 * word) {
            // The third word is RIP, which no exception has zero.
            if entry[2 * word..3 * word].iter().any(|&byte| byte != 0) {
                *self.vectors.entry(u64::from(entry[0])).or_default() += 1;
            }
        }
        for call in &outcome.record.calls {
            *self.calls.entry(format!("{:?}", call.kind)).or_default() += 1;
        }
    }

    /// Takes in a mismatch.
    pub(super) fn mismatch(&mut self, case: &Case, differences: &[Difference], shrunk: Option<&Shrunk>) {
        self.mismatches += 1;
        let first = differences.iter().find(|difference| difference.what != "at instruction");
        let kind =
            first.map_or("", |difference| difference.what.trim_start_matches(|c: char| c.is_ascii_digit()));
        let kind: String = kind.split(" of ").next().unwrap_or_default().chars().take(40).collect();
        *self.families.entry(format!("{:?}: {kind}", case.world.mode)).or_default() += 1;
        self.details.extend(shrunk.map(|shrunk| shrunk.describe(case.seed)));
    }

    /// Adds another report to this one.
    pub(super) fn merge(&mut self, other: Self, details: usize) {
        let Self { cases, instructions, ends, modes, vectors, calls, mismatches, families, details: texts } =
            other;
        self.cases += cases;
        self.instructions += instructions;
        self.mismatches += mismatches;
        for (mine, theirs) in [
            (&mut self.ends, ends),
            (&mut self.modes, modes),
            (&mut self.calls, calls),
            (&mut self.families, families),
        ] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
        for (vector, count) in vectors {
            *self.vectors.entry(vector).or_default() += count;
        }
        self.details.extend(texts);
        self.details.truncate(details);
    }

    /// Cases that ended so.
    #[must_use]
    pub fn ended(&self, end: End) -> u64 {
        self.ends.get(&format!("{end:?}")).copied().unwrap_or(0)
    }
}

/// Offset in the program of an address in either view.
fn offset(rip: u64) -> Option<u64> {
    [KERNEL, USER].into_iter().map(|view| rip.wrapping_sub(view)).find(|&at| at < CODE_LEN as u64)
}

fn disassemble(case: &Case, parting: Option<u64>) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    let mut gap = false;
    for placed in &case.program.placed {
        let (at, len) = (usize::from(placed.at), usize::from(placed.len));
        let bytes = &case.program.code[at..at + len];
        let here = parting.and_then(offset).is_some_and(|offset| offset == at as u64);
        if bytes.iter().all(|&byte| byte == 0x90) && !here {
            gap = true;
            continue;
        }
        if std::mem::take(&mut gap) {
            text.push_str("      ..\n");
        }
        let ip = case.world.home() + at as u64;
        let instruction = Decoder::with_ip(case.program.bits, bytes, ip, DecoderOptions::NONE).decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mark = if here { '>' } else { ' ' };
        let entry = if at == usize::from(case.program.entry) { "  ; starts here" } else { "" };
        let landing = if case.program.landings.contains(&placed.at) { "  ; a landing" } else { "" };
        let undefined = if placed.undefined.is_empty() {
            String::new()
        } else {
            format!(
                "  ; undefined: {:?}",
                placed.undefined.iter_names().map(|(name, _)| name).collect::<Vec<_>>()
            )
        };
        let _ = writeln!(text, "    {mark} {ip:#x}: {hex:<24} {line}{entry}{landing}{undefined}");
    }
    text
}

/// A shrunk mismatch as text.
pub(super) fn describe(shrunk: &Shrunk, seed: u64) -> String {
    let Shrunk { case, differences, needs_others, parting } = shrunk;
    let mut text = format!("case {seed:#x}: {:?}\n", case.world);
    if *needs_others {
        text.push_str("  only behind the cases that ran before it in its block\n");
    }
    text.push_str(&disassemble(case, parting.map(|(_, rip)| rip)));
    if let Some((count, rip)) = parting {
        let _ = writeln!(text, "  differs after {count} instructions, the last one at {rip:#x}");
    }
    let _ = writeln!(text, "{}", case.state);
    for difference in differences.iter().take(12) {
        let _ = writeln!(text, "  {}: {}", difference.what, difference.values);
    }
    if differences.len() > 12 {
        let _ = writeln!(text, "  and {} more", differences.len() - 12);
    }
    text
}
