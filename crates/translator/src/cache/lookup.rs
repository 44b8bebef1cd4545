//! What finds blocks: by guest address, by place in RAM, and the tables in which translated code looks up the targets of its
//! indirect jumps.

use super::{BlockId, Cache, LOOK_UPS, LookUp, Place, spot};
use crate::context;
use crate::emit::Mode;
use crate::raw::enter::ContextCell;

impl Cache {
    /// The block at a guest address whose page is known to be mapped where it was.
    pub(crate) fn find(&self, rip: u64, mode: Mode) -> Option<BlockId> {
        let found = self.look_ups[slot(rip, mode)]?;
        if found.rip != rip || found.mode != mode {
            return None;
        }
        let block = &self.blocks[found.block as usize];
        let valid = |cell: u32| self.cells.is_valid(cell);
        let mapped = valid(block.cell) && block.second.is_none_or(|(_, cell)| valid(cell));
        (!block.dead && block.key.rip == rip && mapped).then_some(found.block)
    }

    /// A block is the first that is looked at for its address.
    pub(super) fn look_up_next(&mut self, id: BlockId) {
        let super::Key { rip, mode, .. } = self.blocks[id as usize].key;
        self.look_ups[slot(rip, mode)] = Some(LookUp { rip, mode, block: id });
    }

    /// The block for code that lies at `place` now, whether that is known to be so or not.
    pub(super) fn at(&self, rip: u64, mode: Mode, place: Place) -> Option<BlockId> {
        let cell = self.cells.find(rip, mode.user, place)?;
        self.by_spot.get(&spot(cell, rip, mode)).copied()
    }

    /// Whether the block for code that lies at `place` now, if there is one, goes on on the next page.
    pub(crate) fn is_straddling(&self, rip: u64, mode: Mode, place: Place) -> bool {
        self.at(rip, mode, place).is_some_and(|id| self.blocks[id as usize].second.is_some())
    }

    /// The block for code that lies at `place` now, and goes on at `second` if it does; the cells are valid afterwards.
    pub(crate) fn find_at(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        second: Option<Place>,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        let id = self.at(rip, mode, place)?;
        let block = &self.blocks[id as usize];
        let (cell, other) = (block.cell, block.second);
        match (other, second) {
            (None, _) => {}
            (Some((at, cell)), Some(now)) if at == now.at => self.vouch(cell, now, context),
            _ => {
                self.kill(id);
                return None;
            }
        }
        self.vouch(cell, place, context);
        self.look_up_next(id);
        Some(id)
    }

    pub(super) fn vouch(&mut self, cell: u32, place: Place, context: &mut ContextCell) {
        self.cells.vouch(cell, place.global, place.large, context);
    }

    /// Empties a table of indirect targets.
    pub(crate) fn forget_targets(&self, user: bool, context: &mut ContextCell) {
        for index in 0..context::TARGET_SLOTS {
            context.set_word(context::target_tags(user), index, elsewhere(index));
        }
    }

    /// Takes a block's memory out of the table of indirect targets.
    pub(super) fn forget_target(&mut self, id: BlockId, context: &mut ContextCell) {
        if !std::mem::take(&mut self.blocks[id as usize].remembered) {
            return;
        }
        let (key, entry) = (self.blocks[id as usize].key, self.blocks[id as usize].entry);
        let (user, index) = (key.mode.user, context::target_slot(key.rip));
        if context.word(context::target_hosts(user), index) == entry {
            context.set_word(context::target_tags(user), index, elsewhere(index));
        }
    }

    /// Enters a block into the table of indirect targets.
    pub(crate) fn remember_target(&mut self, id: BlockId, context: &mut ContextCell) {
        let block = &mut self.blocks[id as usize];
        block.remembered = true;
        let user = block.key.mode.user;
        let index = context::target_slot(block.key.rip);
        context.set_word(context::target_tags(user), index, block.key.rip.wrapping_neg());
        context.set_word(context::target_hosts(user), index, block.entry);
    }
}

/// A tag for a slot of the tables of indirect targets that is never found: an address that belongs into another slot.
fn elsewhere(index: usize) -> u64 {
    context::target_in_slot(index ^ 1).wrapping_neg()
}

pub(super) fn slot(rip: u64, mode: Mode) -> usize {
    (rip ^ rip >> 15 ^ u64::from(mode.single)) as usize % LOOK_UPS
}
