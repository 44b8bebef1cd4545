//! Blocks that look at their own source, after they have found that it has changed.
//!
//! Such a block is translated anew in its own place: what leads to it may stay, and code memory isn't used up by code that is
//! rewritten all the time.

use super::{Block, BlockId, Cache, MOST_LINKS, SOURCE};
use crate::emit::{self, Request, Source, soften};
use memory::{GuestMemory, RamOffset};
use x86::address::PAGE_SIZE;

impl Cache {
    /// Host addresses of the code at a place in RAM, for a block that looks at it.
    pub(super) fn source<'a>(
        memory: &GuestMemory,
        at: RamOffset,
        second: Option<RamOffset>,
        soft: &'a [u16],
    ) -> Source<'a> {
        let host = |at: RamOffset| memory.host_address(RamOffset(at.0 & !(PAGE_SIZE - 1)));
        Source { host: host(at) + at.offset_in_page(), second: second.map(host), soft }
    }

    /// A block has found that its source has changed: translates what is there now, in the same place where that is possible. Else
    /// the block is dead.
    pub(crate) fn renew(&mut self, id: BlockId, memory: &GuestMemory) {
        let block = &self.blocks[id as usize];
        if block.dead || !block.checks || block.second.is_some() {
            self.kill(id);
            return;
        }
        let (key, cell, entry, room) = (block.key, block.cell, block.entry, block.room);
        let left = (PAGE_SIZE - key.at.offset_in_page()) as usize;
        let mut bytes = [0; SOURCE];
        let bytes = &mut bytes[..left.min(SOURCE)];
        memory.load_bytes(key.at, bytes);
        let soft = soften(&block.bytes, bytes, key.mode.long, key.rip, &block.soft);
        let request = Request {
            bytes,
            rip: key.rip,
            mode: key.mode,
            stubs: &self.stubs,
            base: entry,
            cell,
            second_cell: None,
            block: id,
            first_link: id * MOST_LINKS,
            features: self.features,
            source: Some(Self::source(memory, key.at, None, &soft)),
        };
        let made = emit::translate(&request, &mut self.desk);
        let Some(made) =
            made.filter(|made| made.code.len() <= room && made.links.len() <= MOST_LINKS as usize)
        else {
            self.kill(id);
            return;
        };
        self.counts.renewed += 1;
        self.unlink_outgoing(id);
        self.code.patch(entry, &made.code);
        self.patched = true;
        let block = &mut self.blocks[id as usize];
        // Those who jump to it may jump to its body.
        assert_eq!(block.body, entry + u64::from(made.body), "all blocks begin alike");
        let code = block.describe(&bytes[..usize::from(made.len)], soft, made);
        self.desk.recycle(code);
        self.link_own(id);
    }

    /// Whether the code of a block that looks at it itself isn't what it was.
    pub(crate) fn is_outdated(&self, id: BlockId, memory: &GuestMemory) -> bool {
        let block = &self.blocks[id as usize];
        block.checks && !block.dead && block.differs(memory)
    }

    /// Guest code whose translation is in use: of all the blocks of a page, as it is now. Whether it isn't what it was when this was last
    /// asked.
    pub(crate) fn has_moved_on(&mut self, frame: u64, memory: &GuestMemory) -> bool {
        let mut moved = false;
        for id in self.cells.blocks_of(frame) {
            let block = &mut self.blocks[id as usize];
            if block.checks && block.differs(memory) {
                moved = true;
                let mut now = vec![0; block.bytes.len()].into_boxed_slice();
                let second = block.second.map(|(at, _)| at);
                super::load(memory, block.key.at, second, &mut now);
                // Only the immediates of soft instructions: else it would leave when it is entered next.
                let soft = soften(&block.bytes, &now, block.key.mode.long, block.key.rip, &block.soft);
                if soft == block.soft {
                    block.bytes = now;
                }
            }
        }
        moved
    }
}

impl Block {
    fn differs(&self, memory: &GuestMemory) -> bool {
        let mut now = [0; SOURCE];
        let now = &mut now[..self.bytes.len()];
        super::load(memory, self.key.at, self.second.map(|(at, _)| at), now);
        *now != *self.bytes
    }
}
