//! Address spaces that are kept when the guest leaves them.
//!
//! What a view holds of one address space has to go when the guest loads CR3: the architecture lets nothing else than global
//! pages stay (SDM 3A 4.10.4.1). But a processor may also cache any translation of the new one that its tables have now and whose
//! accessed bit is set, without being asked (4.10.2.3). So what is kept of an address space that is left is only *which pages*
//! it had in use. When it comes back each of them is looked up in its tables as they are then, and entered. That is
//! right whatever has become of the tables meanwhile, and whosever they are now: nothing has to be traced, and a CR3 that is
//! used again for another process costs a few look-ups in vain. The same is done where the guest flushes and stays.
//!
//! A page costs about as much as two misses of a cache, a miss in the view twenty times that. Pages that are not in use any more
//! would cost that forever, so some are left out each time, at random; whether they were missed says how many to leave out the next time.
//!
//! Called by the run loop, and by translated code for CR3 and INVLPG; on the vCPU's thread, no locks.

use crate::cells::{Cells, CodePage};
use crate::chaos::Chaos;
use crate::raw::enter::ContextCell;
use crate::raw::fill::{Filler, VIEWS};
use engine::Counters;
use std::collections::HashMap;

/// Address spaces kept of each vCPU, beside the one in force.
const MOST_SPACES: usize = 256;
/// Pages kept of one, in each view: the last ones that were entered.
const MOST_PAGES: usize = 2048;
/// One page in so many is left out, at first, at least and at most.
const PERIOD: u32 = 16;
const PERIODS: std::ops::RangeInclusive<u32> = 4..=128;
/// Pages left out that are remembered, to see whether they were missed.
const MOST_LEFT_OUT: usize = 16;

/// What an address space had in use.
struct Space {
    /// Pages of data, by view.
    data: [Vec<u64>; VIEWS],
    code: Vec<CodePage>,
    /// Pages of data that it may have to do without, by view.
    left_out: Vec<(usize, u64)>,
    period: u32,
    /// When it was left.
    left: u64,
}

impl Default for Space {
    fn default() -> Self {
        Self { data: Default::default(), code: Vec::new(), left_out: Vec::new(), period: PERIOD, left: 0 }
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    /// What the guest has dropped: everything, what isn't global, single addresses; and how often translated code did it.
    dropped: [u64; 3],
    called: u64,
    /// Another address space than before, one that was kept or not; the same again.
    known: u64,
    unknown: u64,
    same: u64,
    /// Pages entered in advance, and looked up in vain.
    entered: u64,
    vain: u64,
    left_out: u64,
    evicted: u64,
}

pub(crate) struct Spaces {
    /// By root.
    kept: HashMap<u64, Space>,
    root: u64,
    /// The one in force. Its lists are empty but for a moment.
    here: Space,
    /// Global pages, for a moment.
    global: Space,
    clock: u64,
    chance: Chance,
    counts: Counts,
    /// Otherwise translations are only dropped.
    keeps: bool,
    /// Flushes that nobody has asked for.
    chaos: Option<Chaos>,
}

impl Spaces {
    pub(crate) fn new(keeps: bool, chaos: bool) -> Self {
        Self {
            keeps,
            chaos: chaos.then(Chaos::default),
            kept: HashMap::new(),
            root: 0,
            here: Space::default(),
            global: Space::default(),
            clock: 0,
            chance: Chance { state: 0x9e37_79b9_7f4a_7c15, period: PERIOD.into(), left: PERIOD.into() },
            counts: Counts::default(),
        }
    }

    /// Takes notice of what the guest has invalidated since the last time.
    pub(crate) fn catch_up(&mut self, filler: &mut Filler, cells: &mut Cells, context: &mut ContextCell) {
        if self.chaos.as_mut().is_some_and(Chaos::strikes) {
            self.renew(true, filler, cells, context);
        }
        if !filler.core.has_dropped() {
            return;
        }
        let dropped = filler.core.take_dropped();
        let [all, local, addresses] = &mut self.counts.dropped;
        *all += u64::from(dropped.all);
        *local += u64::from(!dropped.all && dropped.local);
        *addresses += dropped.addresses.len() as u64;
        for &address in &dropped.addresses {
            filler.drop_address(address);
            cells.doubt_address(address, context);
        }
        if dropped.all || dropped.local {
            self.renew(dropped.all, filler, cells, context);
        }
    }

    /// The same, called by translated code.
    pub(crate) fn catch_up_inside(
        &mut self,
        filler: &mut Filler,
        cells: &mut Cells,
        context: &mut ContextCell,
    ) {
        self.counts.called += 1;
        self.catch_up(filler, cells, context);
    }

    /// Drops all translations that aren't global, or really all, and enters those of what is in force now.
    fn renew(&mut self, all: bool, filler: &mut Filler, cells: &mut Cells, context: &mut ContextCell) {
        self.here.judge(filler);
        filler.begin_flush(all);
        filler.take(false, &mut self.here.data);
        cells.doubt_side(false, &mut self.here.code, context);
        if all {
            filler.take(true, &mut self.global.data);
            cells.doubt_side(true, &mut self.global.code, context);
        }
        if !self.keeps {
            self.here = Space::default();
            self.global = Space::default();
            filler.check();
            return;
        }
        let root = filler.core.root();
        if root == self.root {
            self.counts.same += 1;
        } else {
            self.change(root);
        }
        let Self { here, global, chance, counts, .. } = self;
        chance.begin(here.period);
        here.enter(filler, cells, context, chance, counts);
        if all {
            global.enter(filler, cells, context, chance, counts);
            global.left_out.clear();
        }
        filler.check();
    }

    fn change(&mut self, root: u64) {
        self.clock += 1;
        let known = self.kept.remove(&root);
        if known.is_some() {
            self.counts.known += 1;
        } else {
            self.counts.unknown += 1;
        }
        let mut left = std::mem::replace(&mut self.here, known.unwrap_or_default());
        left.left = self.clock;
        let old = std::mem::replace(&mut self.root, root);
        if self.kept.len() >= MOST_SPACES
            && let Some(oldest) = self.kept.iter().min_by_key(|(_, space)| space.left).map(|(root, _)| *root)
        {
            self.kept.remove(&oldest);
            self.counts.evicted += 1;
        }
        self.kept.insert(old, left);
    }

    pub(crate) fn counters(&self, into: &mut Counters) {
        let Counts { dropped, called, known, unknown, same, entered, vain, left_out, evicted } = self.counts;
        for (name, count) in ["everything", "not_global", "addresses"].into_iter().zip(dropped) {
            into.add("invalidations", name, count);
        }
        into.add("invalidations", "in_translated_code", called);
        into.add("spaces", "kept", self.kept.len() as u64);
        into.add("spaces", "found", known);
        into.add("spaces", "new", unknown);
        into.add("spaces", "same", same);
        into.add("spaces", "evicted", evicted);
        into.add("spaces", "pages_entered", entered);
        into.add("spaces", "pages_in_vain", vain);
        into.add("spaces", "pages_left_out", left_out);
    }
}

impl Space {
    /// Sees which of the pages that were left out have been missed.
    fn judge(&mut self, filler: &Filler) {
        if self.left_out.is_empty() {
            return;
        }
        let missed = self.left_out.iter().filter(|&&(view, page)| filler.has_entry(view, page)).count();
        let period = if 2 * missed >= self.left_out.len() { self.period * 2 } else { self.period / 2 };
        self.period = period.clamp(*PERIODS.start(), *PERIODS.end());
        self.left_out.clear();
    }

    /// Enters what the pages are now. The lists are empty afterwards: the views' notes and the cells have them.
    fn enter(
        &mut self,
        filler: &mut Filler,
        cells: &mut Cells,
        context: &mut ContextCell,
        chance: &mut Chance,
        counts: &mut Counts,
    ) {
        let (mut prober, mut views) = filler.parts();
        for (view, list) in self.data.iter_mut().enumerate() {
            for &page in &list[list.len().saturating_sub(MOST_PAGES)..] {
                if chance.strikes() {
                    counts.left_out += 1;
                    if self.left_out.len() < MOST_LEFT_OUT {
                        self.left_out.push((view, page));
                    }
                } else if views.enter(&mut prober, view, page) {
                    counts.entered += 1;
                } else {
                    counts.vain += 1;
                }
            }
            list.clear();
        }
        for &(page, user) in &self.code[self.code.len().saturating_sub(MOST_PAGES)..] {
            if chance.strikes() {
                counts.left_out += 1;
            } else if let Some(place) = views.code(&mut prober, page, user)
                && cells.vouch_for((page, user), place, context)
            {
                counts.entered += 1;
            } else {
                counts.vain += 1;
            }
        }
        self.code.clear();
    }
}

/// Strikes at random, once in so many times.
struct Chance {
    state: u64,
    period: u64,
    /// Until it strikes.
    left: u64,
}

impl Chance {
    fn begin(&mut self, period: u32) {
        self.period = u64::from(period);
        self.left = self.left.min(2 * self.period);
    }

    fn strikes(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        // Marsaglia's xorshift.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.left = 1 + self.state % (2 * self.period - 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_strikes_as_often_as_it_should() {
        let mut chance = Chance { state: 1, period: 16, left: 1 };
        for period in [4, 16, 128] {
            chance.begin(period);
            let strikes = (0..100_000).filter(|_| chance.strikes()).count();
            let expected = 100_000 / period as usize;
            assert!(strikes.abs_diff(expected) < expected / 5, "{strikes} of about {expected}");
        }
    }

    #[test]
    fn the_address_space_that_was_left_first_is_forgotten_first() {
        let mut spaces = Spaces::new(true, false);
        for root in 1..=MOST_SPACES as u64 + 2 {
            spaces.change(root << 12);
            spaces.here.data[0].push(root);
        }
        // The first root of all was 0.
        assert_eq!((spaces.kept.len(), spaces.counts.evicted), (MOST_SPACES, 2));
        assert!(!spaces.kept.contains_key(&0) && !spaces.kept.contains_key(&0x1000));
        spaces.change(0x2000);
        assert_eq!((spaces.here.data[0].as_slice(), spaces.counts.known), (&[2][..], 1));
    }
}
