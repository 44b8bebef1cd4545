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

mod raw;

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
    /// Number of the page in RAM.
    pub frame: u64,
    /// Reads may go straight there.
    pub read: bool,
    /// Writes too.
    pub write: bool,
    /// The mapping is global: it outlives address spaces (SDM 3A 4.10.2.4).
    pub global: bool,
    /// It is part of a page larger than 4 KiB.
    pub large: bool,
}

/// One filled entry, so that it can be found again.
#[derive(Clone, Copy)]
struct Filled {
    page: u64,
    frame: u64,
    write: bool,
    global: bool,
    large: bool,
}

/// Entries noted before everything is dropped, which bounds the work of all the functions that go through them.
const MOST_FILLED: usize = 1 << 16;

impl View {
    /// Enters what a walk has found.
    pub fn fill(&mut self, fill: &Fill) {
        let delta = fill.host.wrapping_sub(fill.page);
        // An entry of zero would say nothing; such a page stays on the slow path.
        if delta == 0 || !fill.read {
            return;
        }
        if self.filled.len() >= MOST_FILLED {
            self.drop_all();
        }
        self.set_read(fill.page, delta);
        self.set_write(fill.page, if fill.write { delta } else { 0 });
        self.clear_watched(fill.page);
        let Fill { page, frame, write, global, large, .. } = *fill;
        self.filled.push(Filled { page, frame, write, global, large });
        self.has_large |= large;
    }

    /// Enters a page that is writable but for what is derived from it. `granules`: host address of its marks.
    pub fn watch(&mut self, fill: &Fill, granules: u64) {
        self.fill(&Fill { write: false, ..*fill });
        let delta = fill.host.wrapping_sub(fill.page);
        if delta != 0 && fill.read {
            self.set_watched(fill.page, delta, granules);
        }
    }

    /// Gives up what is kept for writing of one page of RAM that needn't be watched any more.
    pub fn drop_watched(&mut self, frame: u64) {
        for index in 0..self.filled.len() {
            if self.filled[index].frame == frame {
                self.clear_watched(self.filled[index].page);
            }
        }
    }

    /// Drops everything.
    pub fn drop_all(&mut self) {
        for index in 0..self.filled.len() {
            self.clear(self.filled[index].page);
        }
        self.filled.clear();
        self.has_large = false;
    }

    /// Drops all but global translations, as a new address space does.
    pub fn drop_local(&mut self) {
        self.drop_where(|filled| !filled.global);
    }

    /// Drops the translations of one linear address, of whatever page size. True: more than its own 4 KiB had to go.
    pub fn drop_address(&mut self, address: u64) {
        if self.has_large {
            // A 1 GiB page reaches no further than this.
            let region = address >> 30;
            self.drop_where(|filled| filled.large && filled.page >> 30 == region);
        }
        // Its note stays behind, which costs a second clearing later.
        self.clear(address & !(x86::address::PAGE_SIZE - 1));
    }

    /// Gives up every address for writing of the given pages of RAM.
    pub fn drop_writable(&mut self, is_one: impl Fn(u64) -> bool) {
        for index in 0..self.filled.len() {
            let filled = self.filled[index];
            if filled.write && is_one(filled.frame) {
                self.set_write(filled.page, 0);
                self.filled[index].write = false;
            }
        }
    }

    fn drop_where(&mut self, goes: impl Fn(&Filled) -> bool) {
        let mut filled = std::mem::take(&mut self.filled);
        filled.retain(|filled| {
            let goes = goes(filled);
            if goes {
                self.clear(filled.page);
            }
            !goes
        });
        self.filled = filled;
    }

    /// How many fills are noted.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(page: u64, host: u64, global: bool) -> Fill {
        Fill { page, host, frame: host >> 12, read: true, write: true, global, large: false }
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
        view.drop_local();
        assert_eq!((view.read_entry(0x5000), view.write_entry(0x5000)), (0, 0));
        assert_ne!(view.read_entry(0x6000), 0);
        view.drop_address(0x6fff);
        assert_eq!(view.read_entry(0x6000), 0);
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
        view.drop_writable(|frame| frame == 0x10);
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
        view.drop_watched(0x10);
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
