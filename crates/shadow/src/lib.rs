//! The virtual TLB of translated code: linear tables that turn a guest page into a host address with one load.
//!
//! A [`View`] is one guest address space as one kind of access sees it. It has a table for reads and one for writes, with eight
//! bytes for each of the 2^36 pages of a 48-bit linear address space: host address minus guest address where the
//! access may go straight to RAM, zero where it has to be looked at. Nothing is compared and nothing conflicts. The tables
//! only reserve address space; the host backs what is touched.
//!
//! ```text
//!            base of view                                            GS
//!            | write entry 2^36-1 ... write entry 1, 0 | shared block | read entry 0, 1 ... 2^36-1 |
//! ```
//!
//! Translated code runs with the host's GS base at a view's [`View::origin`], so that read entry `n` is at `gs:[n * 8]`, write
//! entry `n` at `gs:[!n * 8 - SHARED_BYTES]`, and what all views of a vCPU share, its [`Shared`] block, at small negative
//! offsets: the block is one piece of memory that is mapped into each view.
//!
//! A view behaves as the manual allows a TLB to behave (SDM 3A 4.10): its owner fills it from walks and drops entries when the
//! guest invalidates them. It never holds an address for writing of a page from which anything is derived.
//!
//! Such a page may be *watched* instead: a small table next to the shared block, the view's own, has its difference and where the
//! marks of its granules are, so that translated code can store between them.
//!
//! Called by the translator. A view belongs to one vCPU and is used by one thread at a time; no locks.

mod budget;
mod raw;

pub use budget::REGION_BYTES;
pub use raw::{
    OWN_BYTES, SHARED_BYTES, Shared, View, WATCHED_DELTAS, WATCHED_GRANULES, WATCHED_SLOTS, WATCHED_TAGS,
};

/// What a view may keep of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// Linear address of the page.
    pub page: u64,
    /// Host address of the page in RAM.
    pub host: u64,
    /// Reads may go straight there.
    pub read: bool,
    /// Writes too.
    pub write: bool,
    /// The mapping is global: it outlives address spaces (SDM 3A 4.10.2.4).
    pub global: bool,
    /// It is part of a page larger than 4 KiB.
    pub large: bool,
}

/// Entries noted in one list before all in it are dropped, which bounds the work of all the functions that go through them.
const MOST_NOTED: usize = 1 << 16;
/// No page larger than 4 KiB reaches beyond the 1 GiB that it lies in.
const REGION: u32 = 30;
/// Regions with such pages told apart; more, and every region counts as one.
const MOST_REGIONS: usize = 32;

/// Set in the note of a page that is part of a larger one.
const LARGE: u64 = 1;

/// The pages that have entries, so that they can be found again. A page may be noted more than once, and stay noted when its
/// entry is gone.
#[derive(Default)]
pub(crate) struct Notes {
    /// Pages of the address space at hand.
    local: Vec<u64>,
    /// Global ones.
    global: Vec<u64>,
    /// Regions in which some page is large.
    large: Vec<u64>,
}

impl Notes {
    fn has_large(&self, address: u64) -> bool {
        self.large.len() >= MOST_REGIONS || self.large.contains(&(address >> REGION))
    }
}

impl View {
    /// Enters what a walk has found.
    pub fn fill(&mut self, fill: &Fill) {
        let delta = fill.host.wrapping_sub(fill.page);
        // An entry of zero would say nothing; such a page stays on the slow path.
        if delta == 0 || !fill.read {
            return;
        }
        let notes = if fill.global { &self.notes.global } else { &self.notes.local };
        if notes.len() >= MOST_NOTED {
            let mut pages = Vec::new();
            if fill.global { self.take_global(&mut pages) } else { self.take_local(&mut pages) }
        }
        // Where there is an entry, there is a note; but it may be that of a page which was local, or smaller.
        if !fill.global || fill.large || self.read_entry(fill.page) == 0 {
            let notes = if fill.global { &mut self.notes.global } else { &mut self.notes.local };
            notes.push(fill.page | if fill.large { LARGE } else { 0 });
        }
        self.touch(fill.page);
        if fill.large && !self.notes.has_large(fill.page) {
            self.notes.large.push(fill.page >> REGION);
        }
        self.set_read(fill.page, delta);
        self.set_write(fill.page, if fill.write { delta } else { 0 });
        self.clear_watched(fill.page);
    }

    /// Enters a page that is writable but for what is derived from it. `granules`: host address of its marks.
    pub fn watch(&mut self, fill: &Fill, granules: u64) {
        self.fill(&Fill { write: false, ..*fill });
        let delta = fill.host.wrapping_sub(fill.page);
        if delta != 0 && fill.read {
            self.set_watched(fill.page, delta, granules);
        }
    }

    /// Gives up what is kept for writing of one page of RAM, by its host address, that needn't be watched any more.
    pub fn drop_watched(&mut self, host: u64) {
        self.for_all(|view, page| {
            if view.read_entry(page).wrapping_add(page) == host {
                view.clear_watched(page);
            }
        });
    }

    /// Drops everything.
    pub fn drop_all(&mut self) {
        self.for_all(Self::clear);
        self.notes.local.clear();
        self.notes.global.clear();
        self.notes.large.clear();
    }

    /// Drops all but global translations, as a new address space does, and says of which pages there were some.
    pub fn take_local(&mut self, pages: &mut Vec<u64>) {
        let mut notes = std::mem::take(&mut self.notes.local);
        for page in notes.iter().map(|note| note & !LARGE) {
            // What was noted twice is told once.
            if self.clear(page) {
                pages.push(page);
            }
        }
        notes.clear();
        self.notes.local = notes;
    }

    /// Drops all global translations.
    pub fn take_global(&mut self, pages: &mut Vec<u64>) {
        let mut notes = std::mem::take(&mut self.notes.global);
        for page in notes.iter().map(|note| note & !LARGE) {
            if self.clear(page) {
                pages.push(page);
            }
        }
        notes.clear();
        self.notes.global = notes;
    }

    /// Drops the translations of one linear address, of whatever page size.
    pub fn drop_address(&mut self, address: u64) {
        // Where nothing was ever entered a look would cost the host a page.
        if self.knows(address) {
            // Its note stays behind, which costs a second clearing later.
            self.clear(address & !(x86::address::PAGE_SIZE - 1));
        }
        if self.notes.has_large(address) {
            let notes = std::mem::take(&mut self.notes);
            for &note in notes.local.iter().chain(&notes.global) {
                if note >> REGION == address >> REGION && note & LARGE != 0 {
                    self.clear(note & !LARGE);
                }
            }
            self.notes = notes;
        }
    }

    /// Gives up every address for writing of the given pages of RAM, told by their host addresses.
    pub fn drop_writable(&mut self, is_one: impl Fn(u64) -> bool) {
        self.for_all(|view, page| {
            let entry = view.write_entry(page);
            if entry != 0 && is_one(entry.wrapping_add(page)) {
                view.set_write(page, 0);
            }
        });
    }

    fn for_all<T>(&mut self, mut each: impl FnMut(&mut Self, u64) -> T) {
        let notes = std::mem::take(&mut self.notes);
        for note in notes.local.iter().chain(&notes.global) {
            each(self, note & !LARGE);
        }
        self.notes = notes;
    }

    /// How many entries there are at most.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.notes.local.len() + self.notes.global.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(page: u64, host: u64, global: bool) -> Fill {
        Fill { page, host, read: true, write: true, global, large: false }
    }

    #[test]
    fn entries_are_where_translated_code_looks() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        let high = 0xffff_ffff_8100_0000;
        view.fill(&fill(0x5000, 0x7000_0000_0000, false));
        view.fill(&fill(high, 0x7000_0000_1000, true));
        assert_eq!(view.read_entry(0x5123), 0x7000_0000_0000 - 0x5000);
        assert_eq!(view.write_entry(0x5fff), 0x7000_0000_0000 - 0x5000);
        assert_eq!(view.read_entry(high).wrapping_add(high), 0x7000_0000_1000);
        assert_eq!(view.read_entry(0x6000), 0);
        // The ends of the address space.
        view.fill(&fill(0xffff_ffff_ffff_f000, 0x1000, true));
        assert_eq!(view.write_entry(u64::MAX).wrapping_add(0xffff_ffff_ffff_f000), 0x1000);
        view.fill(&fill(0, 0x2000, true));
        assert_eq!(view.read_entry(0), 0x2000);
    }

    #[test]
    fn a_new_address_space_leaves_global_pages() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        view.fill(&fill(0x5000, 0x10000, false));
        view.fill(&fill(0x6000, 0x20000, true));
        let mut taken = Vec::new();
        view.take_local(&mut taken);
        assert_eq!(taken, [0x5000]);
        assert_eq!((view.read_entry(0x5000), view.write_entry(0x5000)), (0, 0));
        assert_ne!(view.read_entry(0x6000), 0);
        view.drop_address(0x6fff);
        assert_eq!(view.read_entry(0x6000), 0);
    }

    #[test]
    fn a_page_is_told_once_however_often_it_was_filled() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        let local = fill(0x5000, 0x10000, false);
        view.fill(&Fill { write: false, ..local });
        view.fill(&local);
        view.fill(&fill(0x6000, 0x20000, true));
        let mut taken = Vec::new();
        view.take_local(&mut taken);
        view.take_local(&mut taken);
        assert_eq!(taken, [0x5000]);
        view.take_global(&mut taken);
        assert_eq!((taken, view.filled()), (vec![0x5000, 0x6000], 0));
    }

    #[test]
    fn a_page_that_was_global_and_is_no_more_goes_with_its_address_space() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        view.fill(&fill(0x5000, 0x10000, true));
        view.fill(&fill(0x5000, 0x20000, false));
        view.take_local(&mut Vec::new());
        assert_eq!(view.read_entry(0x5000), 0);
    }

    #[test]
    fn more_pages_than_are_noted_drop_older_ones() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        for number in 1..=MOST_NOTED as u64 + 1 {
            view.fill(&fill(number << 12, 0x7000_0000_0000, false));
        }
        assert_eq!((view.filled(), view.read_entry(0x1000)), (1, 0));
        assert_ne!(view.read_entry((MOST_NOTED as u64 + 1) << 12), 0);
    }

    #[test]
    fn one_address_drops_the_whole_large_page() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        for page in [0x20_0000, 0x20_1000, 0x8000_0000] {
            view.fill(&Fill { large: true, ..fill(page, 0x7000_0000_0000 + page, false) });
        }
        view.drop_address(0x20_5000);
        assert_eq!(view.read_entry(0x20_0000), 0);
        assert_eq!(view.read_entry(0x20_1000), 0);
        assert_ne!(view.read_entry(0x8000_0000), 0);
    }

    #[test]
    fn derived_pages_lose_their_write_entries_only() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        view.fill(&fill(0x5000, 0x10000, false));
        view.fill(&fill(0x6000, 0x20000, false));
        view.drop_writable(|host| host == 0x10000);
        assert_eq!(view.write_entry(0x5000), 0);
        assert_ne!(view.read_entry(0x5000), 0);
        assert_ne!(view.write_entry(0x6000), 0);
    }

    #[test]
    fn a_watched_page_is_found_until_it_is_dropped() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        for page in [0, 0x1000, 0x10_0000, 0xffff_ffff_ffff_f000] {
            assert_eq!(view.watched(page), None);
        }
        let at = fill(0x5000, 0x10000, false);
        view.watch(&at, 0x1234);
        assert_eq!(view.watched(0x5fff), Some((0x10000 - 0x5000, 0x1234)));
        assert_eq!((view.write_entry(0x5000), view.watched(0x10_5000)), (0, None));
        view.drop_address(0x5000);
        assert_eq!((view.read_entry(0x5000), view.watched(0x5000)), (0, None));
        view.watch(&at, 0x1234);
        view.drop_watched(0x10000);
        assert_eq!(view.watched(0x5000), None);
        view.watch(&at, 0x1234);
        view.fill(&at);
        assert_eq!(view.watched(0x5000), None);
        view.watch(&fill(0x10_5000, 0x20000, false), 0x5678);
        view.watch(&at, 0x1234);
        assert_eq!(view.watched(0x10_5000), None, "they share a slot");
        view.drop_all();
        assert_eq!(view.watched(0x5000), None);
    }

    #[test]
    fn the_shared_block_is_one_memory_in_all_views() {
        let shared = Shared::new().expect("memory");
        let views = [View::new(&shared).expect("a view"), View::new(&shared).expect("a view")];
        views[0].write_shared(64, 0x1234_5678_9abc_def0);
        assert_eq!(views[1].read_shared(64), 0x1234_5678_9abc_def0);
    }
}
