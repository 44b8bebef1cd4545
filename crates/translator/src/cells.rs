//! Cells: what ties blocks to the mapping of their page.
//!
//! A cell is four bytes in the shared block, one for each page of guest code at a linear address, in one place in RAM, for user or
//! supervisor code. They are not zero while the page is known to be mapped there. Invalidations clear cells and leave
//! blocks; who finds one cleared asks the page tables and vouches for the page anew.
//!
//! Called by the cache, and by the run loop where the guest invalidates translations; on the vCPU's thread, no locks.

use crate::cache::{BlockId, KeyHasher, Place};
use crate::context::{CELL_COUNT, CELLS};
use crate::raw::enter::ContextCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use x86::address::PAGE_SIZE;

struct Cell {
    page: u64,
    frame: u64,
    user: bool,
    global: bool,
    large: bool,
    valid: bool,
    /// Blocks that check it.
    blocks: Vec<BlockId>,
    /// When it last became valid: later ones have larger numbers.
    since: u64,
}

/// A page of code that was known to be mapped, and whether for user code.
pub(crate) type CodePage = (u64, bool);

/// Slots of the filter: see [`Cells::at`].
const FILTER: usize = 1 << 13;
/// No page larger than 4 KiB reaches beyond the 1 GiB that it lies in.
const REGION: u32 = 30;
/// Slots for regions: see [`Cells::large`].
const REGIONS: usize = 64;

pub(crate) struct Cells {
    cells: Vec<Cell>,
    free: Vec<u32>,
    by_page: HashMap<(u64, u64, bool), u32, BuildHasherDefault<KeyHasher>>,
    /// Those that blocks check, by the place of their page in RAM.
    by_frame: HashMap<u64, Vec<u32>, BuildHasherDefault<KeyHasher>>,
    /// One that is kept though no block checks it yet.
    kept: Option<u32>,
    /// Those that are valid: of the address space at hand, and global ones. One whose page has changed sides may be in both.
    valid: [Vec<u32>; 2],
    /// How many of them have a page that falls into a slot: most addresses that are invalidated are nobody's.
    at: Box<[u16; FILTER]>,
    /// How many of them lie in large pages, by region.
    large: [u32; REGIONS],
    /// How often one became valid.
    vouched: u64,
    /// Supervisor code's that were invalidated while translated code waited, if it does.
    lost: Option<Vec<u32>>,
}

impl Cells {
    pub(crate) fn new() -> Self {
        Self {
            cells: Vec::new(),
            free: Vec::new(),
            by_page: HashMap::default(),
            by_frame: HashMap::default(),
            kept: None,
            valid: [Vec::new(), Vec::new()],
            at: Box::new([0; FILTER]),
            large: [0; REGIONS],
            vouched: 0,
            lost: None,
        }
    }

    /// Translated code waits for an invalidation: what is done from here on is told by [`Cells::has_lost`].
    pub(crate) fn begin_inside(&mut self) {
        self.lost = Some(Vec::new());
    }

    /// Whether supervisor code lies in a page, known to be mapped when [`Cells::begin_inside`] was called, that isn't now. Returns come
    /// back to code without looking at its cell.
    pub(crate) fn has_lost(&mut self) -> bool {
        let lost = self.lost.take().unwrap_or_default();
        lost.into_iter().any(|cell| !self.is_valid(cell))
    }

    /// The cell of the page that `rip` lies in, if there is one.
    pub(crate) fn find(&self, rip: u64, user: bool, place: Place) -> Option<u32> {
        self.by_page.get(&(rip & !(PAGE_SIZE - 1), place.at.frame(), user)).copied()
    }

    /// The page of a cell.
    pub(crate) fn page(&self, cell: u32) -> u64 {
        self.cells[cell as usize].page
    }

    /// Whether blocks check the cell of the page that `rip` lies in, or it is known to be mapped.
    pub(crate) fn is_used(&self, rip: u64, user: bool, place: Place) -> bool {
        let used = |cell: &Cell| !cell.blocks.is_empty() || cell.valid;
        self.find(rip, user, place).is_some_and(|cell| used(&self.cells[cell as usize]))
    }

    /// A cell becomes that of the page that `rip` lies in, which is in the same place in RAM. It isn't valid, and that page
    /// has no cell that is used.
    pub(crate) fn move_to(&mut self, cell: u32, rip: u64) {
        let Cell { page: old, frame, user, valid, .. } = self.cells[cell as usize];
        debug_assert!(!valid, "blocks would run where their page isn't");
        let page = rip & !(PAGE_SIZE - 1);
        if let Some(&other) = self.by_page.get(&(page, frame, user)) {
            self.free.push(other);
        }
        self.by_page.remove(&(old, frame, user));
        self.by_page.insert((page, frame, user), cell);
        self.cells[cell as usize].page = page;
    }

    /// The cell of the page that `rip` lies in, made if need be. `None`: all are in use.
    pub(crate) fn of(&mut self, rip: u64, user: bool, place: Place) -> Option<u32> {
        if let Some(cell) = self.find(rip, user, place) {
            return Some(cell);
        }
        let page = rip & !(PAGE_SIZE - 1);
        let frame = place.at.frame();
        let Place { global, large, .. } = place;
        let fresh = Cell { page, frame, user, global, large, valid: false, blocks: Vec::new(), since: 0 };
        let cell = if let Some(cell) = self.free.pop() {
            self.cells[cell as usize] = fresh;
            cell
        } else if self.cells.len() < CELL_COUNT {
            self.cells.push(fresh);
            self.cells.len() as u32 - 1
        } else {
            return None;
        };
        self.by_page.insert((page, frame, user), cell);
        Some(cell)
    }

    /// Takes back those that no block checks; says whether there are any to be had now.
    pub(crate) fn free_unused(&mut self, context: &mut ContextCell) -> bool {
        for index in 0..self.cells.len() {
            let Cell { page, frame, user, ref blocks, .. } = self.cells[index];
            // Those that are free already aren't found by their page.
            if blocks.is_empty()
                && self.kept != Some(index as u32)
                && self.by_page.get(&(page, frame, user)) == Some(&(index as u32))
            {
                self.clear(index as u32, context);
                self.by_page.remove(&(page, frame, user));
                self.free.push(index as u32);
            }
        }
        let cells = &self.cells;
        for side in &mut self.valid {
            side.retain(|&cell| cells[cell as usize].valid);
        }
        !self.free.is_empty()
    }

    /// One block more checks a cell.
    pub(crate) fn hold(&mut self, cell: u32, block: BlockId) {
        let entry = &mut self.cells[cell as usize];
        if entry.blocks.is_empty() {
            self.by_frame.entry(entry.frame).or_default().push(cell);
        }
        entry.blocks.push(block);
    }

    /// One block less.
    pub(crate) fn release(&mut self, cell: u32, block: BlockId) {
        let entry = &mut self.cells[cell as usize];
        if let Some(index) = entry.blocks.iter().position(|&other| other == block) {
            entry.blocks.swap_remove(index);
        }
        if entry.blocks.is_empty()
            && let Some(cells) = self.by_frame.get_mut(&entry.frame)
        {
            cells.retain(|&other| other != cell);
            if cells.is_empty() {
                self.by_frame.remove(&entry.frame);
            }
        }
    }

    /// Keeps a cell that no block checks yet, or none.
    pub(crate) fn keep(&mut self, cell: Option<u32>) {
        self.kept = cell;
    }

    /// The blocks that check a cell.
    pub(crate) fn blocks(&self, cell: u32) -> &[BlockId] {
        &self.cells[cell as usize].blocks
    }

    /// The pages of RAM from which there are blocks.
    pub(crate) fn frames(&self) -> Vec<u64> {
        self.by_frame.keys().copied().collect()
    }

    /// The blocks that were made of a page of RAM. One that lies in it with both its ends is there twice.
    pub(crate) fn blocks_of(&self, frame: u64) -> impl Iterator<Item = BlockId> {
        let cells = self.by_frame.get(&frame).into_iter().flatten();
        cells.flat_map(|&cell| self.cells[cell as usize].blocks.iter().copied())
    }

    /// The cells of user code in a page of RAM that blocks check.
    pub(crate) fn sets(&self, frame: u64) -> impl Iterator<Item = u32> + Clone {
        let cells = self.by_frame.get(&frame).into_iter().flatten().copied();
        cells.filter(|&cell| self.cells[cell as usize].user)
    }

    pub(crate) fn is_valid(&self, cell: u32) -> bool {
        self.cells[cell as usize].valid
    }

    /// When a cell last became valid, if it isn't now: later ones have larger numbers.
    pub(crate) fn unused_since(&self, cell: u32) -> Option<u64> {
        let cell = &self.cells[cell as usize];
        (!cell.valid).then_some(cell.since)
    }

    /// A walk has just found the cell's page where it is expected.
    pub(crate) fn vouch(&mut self, cell: u32, global: bool, large: bool, context: &mut ContextCell) {
        let entry = &mut self.cells[cell as usize];
        let moves = entry.global != global;
        if entry.valid && !moves && entry.large == large {
            return;
        }
        let was = std::mem::replace(&mut entry.valid, true);
        if was && entry.large {
            self.large[region(entry.page)] -= 1;
        }
        (entry.global, entry.large) = (global, large);
        if large {
            self.large[region(entry.page)] += 1;
        }
        if !was {
            self.vouched += 1;
            entry.since = self.vouched;
            self.at[filter(entry.page)] += 1;
            context.set_half(CELLS, cell as usize, 1);
        }
        if !was || moves {
            self.valid[usize::from(global)].push(cell);
        }
    }

    /// The same for the cell of a page, if there is one.
    pub(crate) fn vouch_for(&mut self, page: CodePage, place: Place, context: &mut ContextCell) -> bool {
        let Some(&cell) = self.by_page.get(&(page.0, place.at.frame(), page.1)) else { return false };
        self.vouch(cell, place.global, place.large, context);
        true
    }

    /// Invalidates a cell that is valid.
    fn clear(&mut self, cell: u32, context: &mut ContextCell) {
        let entry = &mut self.cells[cell as usize];
        if std::mem::take(&mut entry.valid) {
            if !entry.user
                && let Some(lost) = &mut self.lost
            {
                lost.push(cell);
            }
            self.at[filter(entry.page)] -= 1;
            self.large[region(entry.page)] -= u32::from(entry.large);
            context.set_half(CELLS, cell as usize, 0);
        }
    }

    /// Takes back that pages are known to be mapped: those that aren't global, or those that are. Gives the pages.
    pub(crate) fn doubt_side(&mut self, global: bool, pages: &mut Vec<CodePage>, context: &mut ContextCell) {
        let mut side = std::mem::take(&mut self.valid[usize::from(global)]);
        for &cell in &side {
            let entry = &self.cells[cell as usize];
            if entry.valid && entry.global == global {
                pages.push((entry.page, entry.user));
                self.clear(cell, context);
            }
        }
        side.clear();
        self.valid[usize::from(global)] = side;
    }

    /// Takes back what is known of one linear address, of whatever page size.
    pub(crate) fn doubt_address(&mut self, address: u64, context: &mut ContextCell) {
        let page = address & !(PAGE_SIZE - 1);
        if self.at[filter(page)] == 0 && self.large[region(page)] == 0 {
            return;
        }
        for global in [false, true] {
            let mut side = std::mem::take(&mut self.valid[usize::from(global)]);
            side.retain(|&cell| {
                let entry = &self.cells[cell as usize];
                if entry.page == page || entry.large && entry.page >> REGION == address >> REGION {
                    self.clear(cell, context);
                }
                self.cells[cell as usize].valid
            });
            self.valid[usize::from(global)] = side;
        }
    }
}

fn filter(page: u64) -> usize {
    ((page >> 12) ^ (page >> 25)) as usize % FILTER
}

fn region(page: u64) -> usize {
    (page >> REGION) as usize % REGIONS
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::RamOffset;

    fn place(frame: u64, global: bool) -> Place {
        Place { at: RamOffset(frame << 12), global, large: false }
    }

    fn context() -> (shadow::Shared, ContextCell) {
        let shared = shadow::Shared::new().expect("memory");
        let context = ContextCell::new(&shared);
        (shared, context)
    }

    #[test]
    fn a_new_address_space_leaves_global_cells_valid_and_tells_the_others() {
        let (_shared, mut context) = context();
        let mut cells = Cells::new();
        let local = cells.of(0x5123, true, place(7, false)).expect("a cell");
        let global = cells.of(0x6000, false, place(8, true)).expect("a cell");
        for (cell, is_global) in [(local, false), (global, true)] {
            cells.vouch(cell, is_global, false, &mut context);
        }
        let mut pages = Vec::new();
        cells.doubt_side(false, &mut pages, &mut context);
        assert_eq!(pages, [(0x5000, true)]);
        assert!(!cells.is_valid(local) && cells.is_valid(global));
        // The same page elsewhere in RAM is another cell.
        assert!(!cells.vouch_for((0x5000, true), place(9, false), &mut context));
        assert!(cells.vouch_for((0x5000, true), place(7, false), &mut context));
        assert!(cells.is_valid(local));
    }

    #[test]
    fn a_cell_that_becomes_global_is_told_with_the_global_ones_only() {
        let (_shared, mut context) = context();
        let mut cells = Cells::new();
        let cell = cells.of(0x5000, true, place(7, false)).expect("a cell");
        cells.vouch(cell, false, false, &mut context);
        cells.vouch(cell, true, false, &mut context);
        let mut pages = Vec::new();
        cells.doubt_side(false, &mut pages, &mut context);
        assert!(pages.is_empty() && cells.is_valid(cell));
        cells.vouch(cell, false, false, &mut context);
        cells.doubt_side(true, &mut pages, &mut context);
        assert!(pages.is_empty() && cells.is_valid(cell));
        cells.doubt_side(false, &mut pages, &mut context);
        assert_eq!((pages.len(), cells.is_valid(cell)), (1, false));
    }

    #[test]
    fn one_address_takes_its_page_and_what_shares_its_large_page() {
        let (_shared, mut context) = context();
        let mut cells = Cells::new();
        let all = [0x5000, 0x6000, 0x4000_0000, 0x4020_0000].map(|page| {
            let cell = cells.of(page, true, place(page >> 12, false)).expect("a cell");
            cells.vouch(cell, false, page >= 0x4000_0000, &mut context);
            cell
        });
        cells.doubt_address(0x5fff, &mut context);
        assert_eq!(all.map(|cell| cells.is_valid(cell)), [false, true, true, true]);
        cells.doubt_address(0x4100_0000, &mut context);
        assert_eq!(all.map(|cell| cells.is_valid(cell)), [false, true, false, false]);
    }

    #[test]
    fn cells_that_no_block_checks_can_be_had_again() {
        let (_shared, mut context) = context();
        let mut cells = Cells::new();
        for page in 0..CELL_COUNT as u64 {
            let cell = cells.of(page << 12, true, place(page, false)).expect("a cell");
            cells.vouch(cell, false, false, &mut context);
            if page == 3 {
                cells.hold(cell, 1);
            }
        }
        let more = |cells: &mut Cells| cells.of(0x1000, false, place(1, false));
        assert_eq!(more(&mut cells), None);
        assert!(cells.free_unused(&mut context));
        assert!(more(&mut cells).is_some());
        let mut pages = Vec::new();
        cells.doubt_side(false, &mut pages, &mut context);
        assert_eq!(pages, [(0x3000, true)]);
    }
}
