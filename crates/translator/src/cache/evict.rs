//! Room for new blocks: code memory and cells, at the cost of the blocks that were made longest ago.

use super::{BlockId, Cache, Place, REGIONS};
use crate::emit::Mode;
use crate::raw::enter::ContextCell;

impl Cache {
    /// Makes room: goes on to the region that was filled longest ago, whose blocks go.
    pub(super) fn evict(&mut self, context: &mut ContextCell) {
        self.filling = (self.filling + 1) % REGIONS;
        for (_, id) in std::mem::take(&mut self.regions[self.filling]) {
            if !self.blocks[id as usize].dead {
                self.counts.evicted += 1;
                self.kill(id);
            }
            self.forget_target(id, context);
            self.free.push(id);
        }
        self.code.refill(self.filling);
        self.patched = true;
        self.counts.evictions += 1;
    }

    /// The cell of a page.
    pub(super) fn cell(&mut self, rip: u64, mode: Mode, place: Place, context: &mut ContextCell) -> u32 {
        loop {
            if let Some(cell) = self.cells.of(rip, mode.user, place) {
                return cell;
            }
            while !self.cells.free_unused(context) {
                self.evict(context);
            }
        }
    }

    /// Code bytes of the stubs and of blocks that aren't evicted.
    pub(crate) fn used(&self) -> usize {
        let bytes = |&(entry, id): &(u64, BlockId)| self.blocks[id as usize].end - entry;
        self.code.kept() + self.regions.iter().flatten().map(bytes).sum::<u64>() as usize
    }
}
