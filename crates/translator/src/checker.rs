//! The checker of what views hold: every entry comes from a walk made since the guest last took it away, and says what that walk
//! found.
//!
//! For tests and `--feature check=on`. Each walk that leads to an entry is recorded with the *period* it was made in: a new one
//! begins when the guest flushes, for global pages when it flushes really everything. After each flush, when the pages of the new
//! address space have been entered, all entries are compared with their records; one from an earlier period has outlived its
//! flush. They are compared with fresh walks too. Where the machine has one vCPU, that must be no difference; where it has more,
//! another one may have changed the tables since, for which the guest has to flush again: such differences are counted.
//!
//! Called on the vCPU's thread; no locks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Pages whose records are kept: not more than can be compared in reasonable time.
const MOST: usize = 4096;

/// What a walk has found for a page that gets an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Walk {
    /// Host address of the page.
    pub(crate) host: u64,
    /// Writes may go there.
    pub(crate) write: bool,
    /// It outlives address spaces.
    pub(crate) global: bool,
}

/// What a view holds of a page: its two entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) read: u64,
    pub(crate) write: u64,
}

#[derive(Debug)]
pub(crate) struct Checker {
    /// By view and page.
    walks: HashMap<(usize, u64), (Walk, u64)>,
    /// Since the last flush of what isn't global, and since the last of everything.
    local_from: u64,
    global_from: u64,
    now: u64,
    /// How many the machine has. Where it is one, nobody else changes the tables.
    vcpus: Arc<AtomicU32>,
    /// Entries compared, and those that tables had changed under.
    pub(crate) compared: u64,
    pub(crate) moved: u64,
}

impl Checker {
    /// `vcpus`: how many the machine has, which may be known only when it runs.
    pub(crate) fn new(vcpus: Arc<AtomicU32>) -> Self {
        Self { walks: HashMap::new(), local_from: 0, global_from: 0, now: 0, vcpus, compared: 0, moved: 0 }
    }

    /// The guest flushes: what isn't global, or everything. Walks that are recorded from here on are new ones.
    pub(crate) fn begin(&mut self, all: bool) {
        self.now += 1;
        self.local_from = self.now;
        if all {
            self.global_from = self.now;
        }
    }

    /// A walk has been made whose result may be entered.
    pub(crate) fn record(&mut self, view: usize, page: u64, walk: Walk) {
        if self.walks.len() < MOST || self.walks.contains_key(&(view, page)) {
            self.walks.insert((view, page), (walk, self.now));
        }
    }

    /// Compares all pages that have a record. `held` says what the view has of one, `fresh` what a walk gives now.
    ///
    /// # Panics
    /// Where an entry isn't its walk's, or older than the last flush.
    pub(crate) fn compare(
        &mut self,
        held: impl Fn(usize, u64) -> Held,
        mut fresh: impl FnMut(usize, u64) -> Option<Walk>,
    ) {
        let alone = self.vcpus.load(Ordering::Relaxed) == 1;
        for (&(view, page), &(walk, when)) in &self.walks {
            let Held { read, write } = held(view, page);
            if read == 0 {
                assert_eq!(write, 0, "view {view}, page {page:#x} can be written and not read");
                continue;
            }
            self.compared += 1;
            let from = if walk.global { self.global_from } else { self.local_from };
            assert!(when >= from, "view {view}, page {page:#x}: its entry has outlived a flush");
            assert_eq!(read.wrapping_add(page), walk.host, "view {view}, page {page:#x} leads elsewhere");
            assert!(write == 0 || write == read, "view {view}, page {page:#x}: two places");
            assert!(write == 0 || walk.write, "view {view}, page {page:#x} isn't writable");
            // What is global may be older than the tables are now.
            if walk.global && self.global_from < self.now {
                continue;
            }
            let same =
                fresh(view, page).is_some_and(|fresh| fresh.host == walk.host && (fresh.write || write == 0));
            if !same {
                assert!(!alone, "view {view}, page {page:#x}: a fresh walk gives something else");
                self.moved += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALK: Walk = Walk { host: 0x10000, write: true, global: false };
    const HELD: Held = Held { read: 0x10000 - 0x5000, write: 0x10000 - 0x5000 };

    fn checker(vcpus: u32) -> Checker {
        Checker::new(Arc::new(AtomicU32::new(vcpus)))
    }

    fn panics(checker: &mut Checker, held: Held, fresh: Option<Walk>) -> bool {
        let compare = || checker.compare(|_, _| held, |_, _| fresh);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(compare)).is_err()
    }

    #[test]
    fn an_entry_that_outlives_a_flush_is_found() {
        let mut checker = checker(2);
        checker.record(0, 0x5000, WALK);
        assert!(!panics(&mut checker, HELD, Some(WALK)));
        checker.begin(false);
        assert!(panics(&mut checker, HELD, Some(WALK)), "nobody has looked it up since");
        checker.record(0, 0x5000, WALK);
        assert!(!panics(&mut checker, HELD, Some(WALK)));
    }

    #[test]
    fn a_global_entry_outlives_a_flush_of_what_is_not() {
        let mut checker = checker(2);
        checker.record(0, 0x5000, Walk { global: true, ..WALK });
        checker.begin(false);
        assert!(!panics(&mut checker, HELD, None));
        checker.begin(true);
        assert!(panics(&mut checker, HELD, None));
    }

    #[test]
    fn an_entry_says_what_its_walk_found() {
        let mut checker = checker(2);
        checker.record(0, 0x5000, Walk { write: false, ..WALK });
        assert!(panics(&mut checker, HELD, Some(WALK)), "it can't be written");
        let elsewhere = Held { read: 0x1000, write: 0 };
        assert!(panics(&mut checker, elsewhere, Some(WALK)));
        assert!(panics(&mut checker, Held { read: 0, ..HELD }, Some(WALK)));
    }

    #[test]
    fn tables_that_changed_are_a_difference_only_where_nobody_else_changes_them() {
        for alone in [false, true] {
            let mut checker = checker(if alone { 1 } else { 2 });
            checker.record(0, 0x5000, WALK);
            assert_eq!(panics(&mut checker, HELD, None), alone);
            assert_eq!(checker.moved, u64::from(!alone));
        }
    }
}
