//! What a translated vCPU counts, and what becomes of it for people: [`engine::Counters`].
//!
//! The plain counts cost an addition where the run loop is anyway. Which instructions are left to the reference is only counted
//! where somebody wants to know ([`Fallbacks`]). On the vCPU's thread; no locks.

use crate::cache;
use crate::stubs::ExitReason;
use engine::Counters;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::collections::HashMap;

/// Addresses remembered as untranslatable; a guest may have any number of them.
const MOST_REFUSED: usize = 1 << 16;

/// What the run loop counts.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counts {
    /// Entries into translated code.
    pub(crate) entries: u64,
    /// How it was left, by [`ExitReason`].
    pub(crate) exits: [u64; ExitReason::COUNT],
    /// Calls of the reference engine.
    pub(crate) interpreted: u64,
    /// Pages of code that were written to and compared.
    pub(crate) code_pages: u64,
    /// Absent where nobody wants to know.
    pub(crate) fallbacks: Option<Fallbacks>,
}

/// An instruction for people, and the system register that it moves to or from, if any; `None`: it goes on in the next page,
/// where a block never goes.
type Name = Option<(Mnemonic, Register)>;

/// Instructions that were left to the reference, by mnemonic.
#[derive(Clone, Default, Debug)]
pub(crate) struct Fallbacks {
    counts: HashMap<Name, u64>,
    /// Addresses where a translation was tried and there was nothing to translate, and what is there.
    refused: HashMap<u64, Name>,
}

fn name(bytes: &[u8], long: bool) -> Name {
    let mut decoder = Decoder::new(if long { 64 } else { 32 }, bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let whole = decoder.last_error() != DecoderError::NoMoreBytes;
    whole.then(|| (instruction.mnemonic(), system_register(&instruction)))
}

/// The segment, control or debug register among the operands.
fn system_register(instruction: &Instruction) -> Register {
    (0..instruction.op_count())
        .filter(|&index| instruction.op_kind(index) == OpKind::Register)
        .map(|index| instruction.op_register(index))
        .find(|register| register.is_segment_register() || register.is_cr() || register.is_dr())
        .unwrap_or_default()
}

impl Fallbacks {
    /// Translated code left for the reference to execute the instruction that starts with `bytes`.
    pub(crate) fn note(&mut self, bytes: &[u8], long: bool) {
        *self.counts.entry(name(bytes, long)).or_default() += 1;
    }

    /// There is no translation that starts at `rip`, where the code is `bytes`.
    pub(crate) fn refuse(&mut self, rip: u64, bytes: &[u8], long: bool) {
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(rip, name(bytes, long));
    }

    /// The reference runs from `rip` on, since there is no translation. Counted if there can't be one.
    pub(crate) fn interpreted_at(&mut self, rip: u64) {
        if let Some(&name) = self.refused.get(&rip) {
            *self.counts.entry(name).or_default() += 1;
        }
    }

    fn counters(&self, into: &mut Counters) {
        let mut sorted: Vec<_> = self.counts.iter().collect();
        sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), **name));
        for (name, count) in sorted {
            let name = match name {
                Some((mnemonic, Register::None)) => format!("{mnemonic:?}").to_lowercase(),
                Some((mnemonic, register)) => format!("{mnemonic:?}_{register:?}").to_lowercase(),
                None => "(crosses_pages)".to_owned(),
            };
            into.add("fallbacks", name, *count);
        }
    }
}

impl Counts {
    /// Everything but what only the run loop's owner knows.
    pub(crate) fn counters(&self, cache: &cache::Cache, into: &mut Counters) {
        let cache::Counts { translated, renewed, moved, copied, killed, evictions, evicted, links } =
            cache.counts;
        into.add("blocks", "translated", translated);
        into.add("blocks", "renewed", renewed);
        into.add("blocks", "moved", moved);
        into.add("blocks", "copied", copied);
        into.add("blocks", "killed", killed);
        into.add("blocks", "links", links);
        into.add("blocks", "evicted", evicted);
        into.add("blocks", "evictions", evictions);
        into.add("blocks", "code_bytes", cache.used() as u64);
        into.add("entries", "translated", self.entries);
        into.add("entries", "interpreted", self.interpreted);
        for (reason, name) in ExitReason::NAMES {
            into.add("exits", name, self.exits[reason as usize]);
        }
        into.add("invalidations", "code_pages", self.code_pages);
        if let Some(fallbacks) = &self.fallbacks {
            fallbacks.counters(into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_reference_is_counted_by_mnemonic_most_frequent_first() {
        let mut fallbacks = Fallbacks::default();
        fallbacks.note(&[0x0f, 0xa2], true);
        for _ in 0..3 {
            fallbacks.note(&[0x0f, 0x05], true);
        }
        // Where code only hasn't been met often enough, nothing is missing.
        fallbacks.interpreted_at(0x1000);
        fallbacks.refuse(0x1000, &[0xf4], true);
        fallbacks.interpreted_at(0x1000);
        // 0x48 is a prefix in 64-bit code and DEC in 32-bit code.
        fallbacks.note(&[0x48, 0x0f, 0x07], true);
        fallbacks.note(&[0x48, 0x0f, 0x07], false);
        fallbacks.note(&[0x0f, 0x22, 0xd8], true);
        // Its displacement is on the next page.
        fallbacks.note(&[0xe8, 0x00], true);
        let mut counters = Counters::new();
        fallbacks.counters(&mut counters);
        let rows: Vec<_> = counters.groups()[0].1.iter().map(|row| (&*row.name, row.value)).collect();
        assert_eq!(rows[0], ("syscall", 3));
        assert_eq!(counters.value("fallbacks", "hlt"), Some(1));
        assert_eq!(counters.value("fallbacks", "sysret"), None);
        assert_eq!(counters.value("fallbacks", "sysretq"), Some(1));
        assert_eq!(counters.value("fallbacks", "dec"), Some(1));
        assert_eq!(counters.value("fallbacks", "mov_cr3"), Some(1));
        assert_eq!(counters.value("fallbacks", "(crosses_pages)"), Some(1));
    }

    #[test]
    fn every_exit_has_a_name_and_a_place() {
        let counts = Counts::default();
        for (index, (reason, _)) in ExitReason::NAMES.into_iter().enumerate() {
            assert_eq!(reason as usize, index + 1);
        }
        assert_eq!(counts.exits.len(), ExitReason::NAMES.len() + 1);
    }
}
