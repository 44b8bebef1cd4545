//! Code that has been written to: which blocks of a page aren't true any more, and how one ends.

use super::lookup::slot;
use super::{Block, BlockId, Cache, MOST_LINKS};
use memory::{GuestMemory, RamOffset};
use x86::address::PAGE_SIZE;

impl Cache {
    /// After writes to a page of RAM: drops the blocks whose code isn't what it was, and gives their addresses to `gone`. The
    /// granules that those that stay depend on are marked; gives them.
    pub(crate) fn check_frame(&mut self, frame: u64, memory: &GuestMemory, mut gone: impl FnMut(u64)) -> u64 {
        let held = self.held(frame);
        let Some(blocks) = self.by_frame.get(&frame) else { return 0 };
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
        let old: Vec<_> = blocks.iter().copied().filter(|&id| changed(&self.blocks[id as usize])).collect();
        if old.is_empty() {
            return held;
        }
        for id in old {
            gone(self.blocks[id as usize].key.rip);
            self.kill(id);
        }
        self.held(frame)
    }

    /// The granules of a page that its blocks depend on.
    fn held(&self, frame: u64) -> u64 {
        let blocks = self.by_frame.get(&frame).into_iter().flatten();
        blocks.fold(0, |all, &id| all | self.blocks[id as usize].granules(frame))
    }

    /// The same for all pages.
    pub(crate) fn check_all(&mut self, memory: &GuestMemory, mut gone: impl FnMut(u64)) {
        let frames: Vec<_> = self.by_frame.keys().copied().collect();
        for frame in frames {
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
        let (key, entry, cell, second) = (block.key, block.entry, block.cell, block.second);
        let incoming = std::mem::take(&mut block.incoming);
        for link in incoming {
            let from = &mut self.blocks[(link / MOST_LINKS) as usize];
            let entry = &mut from.links[(link % MOST_LINKS) as usize];
            if entry.to.take().is_some() {
                let (jump, stub) = (entry.jump, entry.stub);
                self.patch_jump(jump, stub);
            }
        }
        self.unlink_outgoing(id);
        // The table of indirect targets may have its entry: there it leaves as if the page were in doubt.
        self.patch_entry(entry);
        self.by_key.remove(&key);
        self.cells.release(cell);
        self.leave_frame(key.at.frame(), id);
        if let Some((at, cell)) = second {
            self.cells.release(cell);
            self.leave_frame(at.frame(), id);
        }
        if let Some(found) = self.look_ups[slot(key.rip, key.mode)]
            && found.block == id
        {
            self.look_ups[slot(key.rip, key.mode)] = None;
        }
    }

    pub(super) fn leave_frame(&mut self, frame: u64, id: BlockId) {
        if let Some(blocks) = self.by_frame.get_mut(&frame) {
            blocks.retain(|&other| other != id);
            if blocks.is_empty() {
                self.by_frame.remove(&frame);
            }
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
        for id in self.by_frame.get(&frame).cloned().unwrap_or_default() {
            gone(self.blocks[id as usize].key.rip);
            self.kill(id);
        }
    }
}
