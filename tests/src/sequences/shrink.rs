//! Makes a case that differs smaller, and finds where the two part.

use super::compare::Difference;
use super::generate::{Case, Generator};
use super::layout::{CODE, OVERLAY, OVERLAY_AT};
use super::program::FIXED;
use super::runner::{Make, Plan};
use super::{Pair, report};
use engine::EngineError;

/// What is left of a case.
pub(crate) struct Shrunk {
    pub(crate) case: Case,
    pub(crate) differences: Vec<Difference>,
    /// On fresh engines there is no difference: it takes cases that came before.
    pub(crate) needs_others: bool,
    /// The number of instructions after which the two differ first, and where the last of them lies.
    pub(crate) parting: Option<(u64, u64)>,
}

/// What fills the place of instructions that are left out.
const NOP: u8 = 0x90;
/// cmp eax, edx: defines all flags.
const DEFINES: [u8; 2] = [0x39, 0xd0];

pub(super) fn attempt(makes: (Make, Make), case: &Case) -> Result<Vec<Difference>, EngineError> {
    let mut pair = Pair::new(makes)?;
    let outcomes = pair.run(case);
    Ok(pair.differences(case, &outcomes))
}

/// Leaves out instructions of `case` as long as the engines still differ. `before` are the cases that ran before it.
pub(super) fn shrink(
    makes: (Make, Make),
    generator: &Generator,
    before: &[u64],
    case: &Case,
) -> Result<Shrunk, EngineError> {
    let mut differences = attempt(makes, case)?;
    if differences.is_empty() {
        // Once more behind the others.
        let mut pair = Pair::new(makes)?;
        for &seed in before {
            pair.run(&generator.case(seed));
        }
        let outcomes = pair.run(case);
        differences = pair.differences(case, &outcomes);
        return Ok(Shrunk { case: case.clone(), differences, needs_others: true, parting: None });
    }
    let mut best = case.clone();
    let mut size = best.program.placed.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.program.placed.len() {
            let to = (from + size).min(best.program.placed.len());
            if let Some(smaller) = without(&best, from, to) {
                let still = attempt(makes, &smaller)?;
                if !still.is_empty() {
                    (best, differences) = (smaller, still);
                }
            }
            from = to;
        }
        size /= 2;
    }
    let parting = parting(makes, &best)?;
    Ok(Shrunk { case: best, differences, needs_others: false, parting })
}

/// The case without instructions `from..to` and what belongs to them; `None` if there is nothing to leave out.
fn without(case: &Case, from: usize, to: usize) -> Option<Case> {
    let placed = &case.program.placed;
    let groups: Vec<u16> =
        placed[from..to].iter().map(|placed| placed.group).filter(|&group| group != 0).collect();
    let mut smaller = case.clone();
    let mut changed = false;
    for (index, instruction) in placed.iter().enumerate() {
        let chosen = (from..to).contains(&index) || groups.contains(&instruction.group);
        if !chosen || instruction.group == FIXED {
            continue;
        }
        let at = usize::from(instruction.at);
        let mut bytes = vec![NOP; usize::from(instruction.len)];
        let next = placed.get(index + 1).map_or(instruction.undefined, |next| next.undefined);
        if !next.contains(instruction.undefined) {
            // It defined flags that were undefined.
            if bytes.len() < DEFINES.len() {
                continue;
            }
            bytes[..DEFINES.len()].copy_from_slice(&DEFINES);
        }
        changed |= smaller.program.code[at..at + bytes.len()] != bytes;
        smaller.program.code[at..at + bytes.len()].copy_from_slice(&bytes);
        for (offset, &byte) in (at..).zip(&bytes) {
            if offset < OVERLAY_AT {
                smaller.ram[CODE as usize + offset] = byte;
            } else {
                smaller.ram[OVERLAY[0] as usize + offset - OVERLAY_AT] = byte;
                smaller.ram[OVERLAY[1] as usize + offset - OVERLAY_AT] = byte;
            }
        }
    }
    changed.then_some(smaller)
}

/// Runs both to the same instruction, nearer and nearer to where they part.
fn parting(makes: (Make, Make), case: &Case) -> Result<Option<(u64, u64)>, EngineError> {
    let mut pair = Pair::new(makes)?;
    if !(pair.reference.is_exact() && pair.other.is_exact()) {
        return Ok(None);
    }
    let (plan, other_plan) = pair.plans(case);
    if other_plan.unlimited {
        return Ok(None);
    }
    let end = pair.run_as(case, &plan, &plan).0.instructions.unwrap_or(0);
    let up_to = |plan: &Plan, limit| Plan { limit, look: false, ..plan.clone() };
    // Alike after `same` instructions, not after `differ`.
    let (mut same, mut differ) = (0, end + 1);
    while differ - same > 1 {
        let middle = same + (differ - same) / 2;
        let outcomes = Pair::new(makes)?.run_as(case, &up_to(&plan, middle), &up_to(&other_plan, middle));
        if pair.differences(case, &outcomes).is_empty() {
            same = middle;
        } else {
            differ = middle;
        }
    }
    if differ > end {
        return Ok(None);
    }
    let mut fresh = Pair::new(makes)?;
    let at = fresh.run_as(case, &Plan::whole(same.max(1)), &Plan::whole(1)).0;
    let rip = if same == 0 { case.state.rip } else { at.state.rip };
    Ok(Some((differ, rip)))
}

impl Shrunk {
    /// As text.
    pub(crate) fn describe(&self, seed: u64) -> String {
        report::describe(self, seed)
    }
}
