//! Code that has been written to: which blocks of a page aren't true any more, and how one ends.

use super::lookup::slot;
use super::{Block, BlockId, Cache, spot};
use memory::{GuestMemory, RamOffset};
use x86::address::PAGE_SIZE;

impl Cache {
    /// After writes to a page of RAM: drops the blocks whose code isn't what it was, and gives their addresses to `gone`. The
    /// granules that those that stay depend on are marked; gives them.
    pub(crate) fn check_frame(&mut self, frame: u64, memory: &GuestMemory, mut gone: impl FnMut(u64)) -> u64 {
        let mut blocks = self.cells.blocks_of(frame).peekable();
        if blocks.peek().is_none() {
            return 0;
        }
        let held = self.held(frame);
        let at = RamOffset(frame * PAGE_SIZE);
        // The marks may have been taken back.
        memory.mark_granules(at, held);
        let mut now = [0; PAGE_SIZE as usize];
        memory.load_bytes(at, &mut now);
        let changed = |block: &Block| {
            !block.checks
                && block.pieces().filter(|(at, _)| at.frame() == frame).any(|(at, bytes)| {
                    let from = at.offset_in_page() as usize;
                    now[from..from + bytes.len()] != *bytes
                })
        };
        let old: Vec<_> = blocks.filter(|&id| changed(&self.blocks[id as usize])).collect();
        if old.is_empty() {
            return held;
        }
        for id in old {
            gone(self.blocks[id as usize].key.heat());
            self.kill(id);
        }
        self.held(frame)
    }

    /// The granules of a page that its blocks depend on.
    fn held(&self, frame: u64) -> u64 {
        self.cells.blocks_of(frame).fold(0, |all, id| all | self.blocks[id as usize].granules(frame))
    }

    /// The same for all pages.
    pub(crate) fn check_all(&mut self, memory: &GuestMemory, mut gone: impl FnMut(u64)) {
        for frame in self.cells.frames() {
            self.check_frame(frame, memory, &mut gone);
        }
    }

    /// Makes sure that a block is never entered again.
    pub(super) fn kill(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if std::mem::replace(&mut block.dead, true) {
            return;
        }
        self.counts.killed += 1;
        let (entry, cell, second) = (block.entry, block.cell, block.second);
        self.unlink_incoming(id);
        self.unlink_outgoing(id);
        self.leave_twins(id);
        // The table of indirect targets may have its entry: there it leaves as if the page were in doubt.
        self.patch_entry(entry);
        self.lose(id);
        self.cells.release(cell, id);
        if let Some((_, cell)) = second {
            self.cells.release(cell, id);
        }
    }

    /// A block isn't found any more.
    fn lose(&mut self, id: BlockId) {
        let Block { key, cell, .. } = self.blocks[id as usize];
        self.by_spot.remove(&spot(cell, key.rip, key.mode));
        if let Some(found) = self.look_ups[slot(key.rip, key.mode)]
            && found.block == id
        {
            self.look_ups[slot(key.rip, key.mode)] = None;
        }
    }

    /// Makes the checking entry leave always: its load becomes one of zero.
    pub(super) fn patch_entry(&mut self, entry: u64) {
        // `mov ecx, gs:[cell]` has 8 bytes; `mov ecx, 0` and a three-byte no-operation take their place.
        self.code.patch(entry, &[0xb9, 0, 0, 0, 0, 0x0f, 0x1f, 0x00]);
        self.patched = true;
    }

    /// Kills all blocks of a page, whose addresses `gone` gets.
    pub(crate) fn forget_frame(&mut self, frame: u64, mut gone: impl FnMut(u64)) {
        let blocks: Vec<_> = self.cells.blocks_of(frame).collect();
        for id in blocks {
            gone(self.blocks[id as usize].key.heat());
            self.kill(id);
        }
    }
}
