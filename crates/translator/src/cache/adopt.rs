//! Blocks of the same code at other guest addresses: *twins*.
//!
//! A library lies at another address in each process, and a program at another one each time it is run. Instead of translating
//! it anew each time, what there is of a page is taken along: all its blocks move, in their places in code memory, where the
//! numbers that depend on their guest address are changed. Their links to each other stay.
//!
//! Processes that run in turn have a page at several addresses, so it has a few sets of blocks. The one that hasn't been in use for
//! the longest time moves. While there are fewer, or where a set lacks a block that another has, blocks are copied one by one.
//!
//! Only user code moves: the kernel stays where it is.

use super::{Block, BlockId, Cache, Key, MOST_LINKS, Place};
use crate::asm::{Moved, Relocation, relocate};
use crate::context::cell;
use crate::emit::Mode;
use crate::raw::enter::ContextCell;
use memory::RamOffset;
use x86::address::PAGE_SIZE;

/// Sets of blocks of a page beyond this many move, unless all are in use.
const MOST_SETS: usize = 6;
/// Most blocks that are copied at once.
const MOST_AT_ONCE: usize = 32;
/// Where the number of its cell lies in a block's first instruction.
const CELL_AT: usize = 4;

impl Block {
    /// Whether it can be made to run at another guest address.
    pub(super) fn moves(&self) -> bool {
        self.relocations.is_some() && self.key.mode.user && self.second.is_none() && !self.checks
    }

    /// Whether it would be the same so far away: an address near the end of its half would need other code.
    fn moves_by(&self, guest: u64) -> bool {
        let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
        self.moves() && self.links.iter().all(|link| canonical(link.target.wrapping_add(guest)))
    }
}

impl Cache {
    /// Whether there is a block for the code at `place`, wherever the guest has it.
    pub(crate) fn has_twin(&self, mode: Mode, place: Place) -> bool {
        self.twins.contains_key(&(place.at, mode))
    }

    /// A block for the code at `place`, made from a twin. `fixed` stays as it is.
    pub(crate) fn adopt(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        fixed: Option<BlockId>,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        if !self.cells.is_used(rip, mode.user, place)
            && let Some(cell) = self.set_to_move(place.at.frame(), fixed)
        {
            self.move_set(cell, rip, context);
            if let Some(id) = self.at(rip, mode, place) {
                self.vouch(cell, place, context);
                return Some(id);
            }
        }
        let mut wanted = vec![rip];
        let mut made = Vec::new();
        while let Some(rip) = wanted.pop() {
            let at = RamOffset(place.at.0 - place.at.offset_in_page() + rip % PAGE_SIZE);
            let place = Place { at, ..place };
            if made.len() == MOST_AT_ONCE || self.at(rip, mode, place).is_some() {
                continue;
            }
            let Some(id) = self.copy_twin(rip, mode, place, context) else { continue };
            made.push(id);
            // What it jumps to on its page has been hot as well.
            let links = self.blocks[id as usize].links.iter();
            let near = links.filter(|link| !link.single && (link.target ^ rip) < PAGE_SIZE);
            wanted.extend(near.map(|link| link.target));
        }
        for &id in &made {
            self.link_own(id);
        }
        made.first().copied().filter(|&id| self.blocks[id as usize].key.rip == rip)
    }

    /// The cell of the set of blocks of a page that isn't needed, if there are many.
    fn set_to_move(&self, frame: u64, fixed: Option<BlockId>) -> Option<u32> {
        let sets = self.cells.sets(frame);
        if sets.clone().count() < MOST_SETS {
            return None;
        }
        let fixed = fixed.map(|id| self.blocks[id as usize].cell);
        let unused = |cell: u32| Some((self.cells.unused_since(cell)?, cell));
        sets.filter(|&cell| Some(cell) != fixed).filter_map(unused).min().map(|(_, cell)| cell)
    }

    /// Moves the blocks that check a cell to the page that `rip` lies in, which has none.
    fn move_set(&mut self, cell: u32, rip: u64, context: &mut ContextCell) {
        let guest = (rip & !(PAGE_SIZE - 1)).wrapping_sub(self.cells.page(cell));
        let moves = |&id: &BlockId| self.blocks[id as usize].moves_by(guest);
        // Those that only go on in it don't move either.
        let (moving, staying): (Vec<_>, Vec<_>) = self.cells.blocks(cell).iter().partition(|id| moves(id));
        self.cells.move_to(cell, rip);
        for id in staying {
            self.kill(id);
        }
        for &id in &moving {
            // There it would be found by its old address.
            self.forget_target(id, context);
            self.unlink_others(id, cell);
            let block = &mut self.blocks[id as usize];
            block.key.rip = block.key.rip.wrapping_add(guest);
            for link in &mut block.links {
                link.target = link.target.wrapping_add(guest);
            }
            let code = self.code.change(block.entry, (block.end - block.entry) as usize);
            let on_guest = |relocation: &&Relocation| relocation.depends_on_guest();
            let relocations = block.relocations.iter().flatten().filter(on_guest);
            relocate(code, relocations, Moved { guest, ..Moved::default() });
            self.look_up_next(id);
        }
        self.patched = true;
        self.counts.moved += moving.len() as u64;
    }

    /// Takes back the links of a block from and to blocks of other cells.
    fn unlink_others(&mut self, id: BlockId, cell: u32) {
        let is_other = |blocks: &[Block], other: BlockId| blocks[other as usize].cell != cell;
        for index in 0..self.blocks[id as usize].links.len() {
            if let Some(to) = self.blocks[id as usize].links[index].to
                && is_other(&self.blocks, to)
            {
                self.unlink(id * MOST_LINKS + index as u32);
            }
        }
        let mut index = 0;
        while let Some(&link) = self.blocks[id as usize].incoming.get(index) {
            if is_other(&self.blocks, link / MOST_LINKS) {
                self.unlink(link);
            } else {
                index += 1;
            }
        }
    }

    /// Another block of the code at `place`, which has twins.
    fn copy_twin(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        if !self.has_twin(mode, place) {
            return None;
        }
        let own_cell = self.cell(rip, mode, place, context);
        for _ in 0..2 {
            // Making room may have taken them.
            let from = *self.twins.get(&(place.at, mode))?;
            let block = &self.blocks[from as usize];
            if !block.moves_by(rip.wrapping_sub(block.key.rip)) {
                return None;
            }
            if self.has_number() && block.room + 64 <= self.code.free() {
                let id = self.append_twin(from, rip, own_cell);
                self.vouch(own_cell, place, context);
                return Some(id);
            }
            self.evict(context);
        }
        None
    }

    fn append_twin(&mut self, from: BlockId, rip: u64, own_cell: u32) -> BlockId {
        let (id, base) = (self.next_id(), self.code.next());
        let block = &self.blocks[from as usize];
        let mut code = self.code.read(block.entry, (block.end - block.entry) as usize);
        for link in &block.links {
            let at = (link.jump - block.entry) as usize;
            let distance = link.stub.wrapping_sub(link.jump + 4) as u32;
            code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        code[CELL_AT..CELL_AT + 4].copy_from_slice(&cell(own_cell).to_le_bytes());
        let moved = Moved {
            host: base.wrapping_sub(block.entry),
            guest: rip.wrapping_sub(block.key.rip),
            block: id.wrapping_sub(from),
            links: MOST_LINKS,
        };
        relocate(&mut code, block.relocations.iter().flatten(), moved);
        let copy = Block {
            key: Key { rip, ..block.key },
            cell: own_cell,
            second: None,
            entry: base,
            body: block.body.wrapping_add(moved.host),
            end: block.end.wrapping_add(moved.host),
            links: block.links.iter().map(|link| link.moved(moved)).collect(),
            marks: block.marks.clone(),
            bytes: block.bytes.clone(),
            incoming: Vec::new(),
            counted: block.counted,
            dead: false,
            checks: false,
            soft: Vec::new(),
            room: code.len(),
            relocations: block.relocations.clone(),
            twin: id,
            remembered: false,
        };
        let appended = self.code.append(&code, code.len());
        assert!(appended, "there was room");
        self.patched = true;
        self.enter(copy);
        self.counts.copied += 1;
        id
    }
}

impl Cache {
    /// A block and its twins.
    fn all_twins(&self, first: BlockId) -> impl Iterator<Item = BlockId> + Clone {
        let next = move |&id: &BlockId| Some(self.blocks[id as usize].twin).filter(|&next| next != first);
        std::iter::successors(Some(first), next)
    }

    /// A block becomes a twin of those with the same code.
    pub(super) fn join_twins(&mut self, id: BlockId) {
        let Key { at, mode, .. } = self.blocks[id as usize].key;
        let next = match self.twins.insert((at, mode), id) {
            Some(before) => std::mem::replace(&mut self.blocks[before as usize].twin, id),
            None => id,
        };
        self.blocks[id as usize].twin = next;
    }

    /// A block stops being a twin, if it is one.
    pub(super) fn leave_twins(&mut self, id: BlockId) {
        let Block { key: Key { at, mode, .. }, twin: next, .. } = self.blocks[id as usize];
        if !self.blocks[id as usize].moves() {
            return;
        }
        if next == id {
            self.twins.remove(&(at, mode));
            return;
        }
        let before = self.all_twins(id).last().expect("at least itself");
        self.blocks[before as usize].twin = next;
        self.blocks[id as usize].twin = id;
        if self.twins.get(&(at, mode)) == Some(&id) {
            self.twins.insert((at, mode), before);
        }
    }
}
