//! Direct jumps between blocks. One that leads nowhere yet goes to its own stub; one whose target dies goes there again.

use super::{BlockId, Cache, MOST_LINKS};
use crate::emit::Mode;

impl Cache {
    /// Patches a link to lead to a block.
    pub(crate) fn link(&mut self, link: u32, to: BlockId) {
        let (source, index) = (link / MOST_LINKS, (link % MOST_LINKS) as usize);
        let (from, block) = (&self.blocks[source as usize], &self.blocks[to as usize]);
        let Some(entry) = from.links.get(index) else { return };
        if from.dead
            || block.dead
            || entry.to.is_some()
            || entry.target != block.key.rip
            || block.key.mode != (Mode { single: entry.single, ..from.key.mode })
        {
            return;
        }
        // In one page both are mapped or neither is.
        let same_page = from.cell == block.cell;
        let target = if same_page { block.body } else { block.entry };
        let jump = entry.jump;
        self.patch_jump(jump, target);
        self.blocks[source as usize].links[index].to = Some(to);
        self.blocks[to as usize].incoming.push(link);
        self.counts.links += 1;
    }

    /// The guest address that a link leads to.
    pub(crate) fn link_target(&self, link: u32) -> u64 {
        self.blocks[(link / MOST_LINKS) as usize].links[(link % MOST_LINKS) as usize].target
    }

    /// Whether a link leads to a translation without windows.
    pub(crate) fn link_is_single(&self, link: u32) -> bool {
        self.blocks[(link / MOST_LINKS) as usize].links[(link % MOST_LINKS) as usize].single
    }

    pub(super) fn patch_jump(&mut self, jump: u64, target: u64) {
        let distance = target.wrapping_sub(jump + 4) as i32;
        self.code.patch(jump, &distance.to_le_bytes());
        self.patched = true;
    }

    /// Takes a link back: it goes to its stub again.
    pub(super) fn unlink(&mut self, link: u32) {
        let entry = &mut self.blocks[(link / MOST_LINKS) as usize].links[(link % MOST_LINKS) as usize];
        let (jump, stub) = (entry.jump, entry.stub);
        let Some(to) = entry.to.take() else { return };
        let incoming = &mut self.blocks[to as usize].incoming;
        if let Some(index) = incoming.iter().position(|&other| other == link) {
            incoming.swap_remove(index);
        }
        self.patch_jump(jump, stub);
    }

    /// Takes back the links that lead to a block.
    pub(super) fn unlink_incoming(&mut self, id: BlockId) {
        for link in std::mem::take(&mut self.blocks[id as usize].incoming) {
            let from = &mut self.blocks[(link / MOST_LINKS) as usize];
            let entry = &mut from.links[(link % MOST_LINKS) as usize];
            if entry.to.take().is_some() {
                let (jump, stub) = (entry.jump, entry.stub);
                self.patch_jump(jump, stub);
            }
        }
    }

    /// Takes back a block's links.
    pub(super) fn unlink_outgoing(&mut self, id: BlockId) {
        for index in 0..self.blocks[id as usize].links.len() as u32 {
            self.unlink(id * MOST_LINKS + index);
        }
    }

    /// Links a block to those of its targets that are there.
    pub(super) fn link_own(&mut self, id: BlockId) {
        for index in 0..self.blocks[id as usize].links.len() {
            let number = id * MOST_LINKS + index as u32;
            let (target, mode) = {
                let block = &self.blocks[id as usize];
                let link = &block.links[index];
                (link.target, Mode { single: link.single, ..block.key.mode })
            };
            if let Some(to) = self.find(target, mode) {
                self.link(number, to);
            }
        }
    }
}
