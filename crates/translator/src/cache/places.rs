//! From host addresses and numbers of blocks back to guest code.

use super::{BlockId, Cache};
use crate::listing::{Listed, listing};
use iced_x86::{Decoder, DecoderOptions, FlowControl};

impl Cache {
    /// Which guest instruction a host address in code memory belongs to.
    pub(crate) fn locate(&self, host: u64) -> Option<(BlockId, u64)> {
        let region = self.regions.get(self.code.region_of(host)?)?;
        let index = region.partition_point(|&(entry, _)| entry <= host).checked_sub(1)?;
        let (_, id) = region[index];
        let block = &self.blocks[id as usize];
        if host >= block.end {
            return None;
        }
        let offset = (host - block.entry) as u32;
        let mark = block.marks.partition_point(|mark| mark.host <= offset).checked_sub(1)?;
        Some((id, block.key.rip.wrapping_add(u64::from(block.marks[mark].guest))))
    }

    /// How many of a block's instructions that are counted come at or after `rip`.
    pub(crate) fn not_done(&self, id: BlockId, rip: u64) -> u16 {
        let block = &self.blocks[id as usize];
        let offset = rip.wrapping_sub(block.key.rip) as u16;
        let mut starts: Vec<u16> =
            block.marks.iter().map(|mark| mark.guest).filter(|&at| at < offset).collect();
        starts.sort_unstable();
        starts.dedup();
        block.counted - starts.len() as u16
    }

    /// The guest's x87 instruction that a host address in code memory belongs to, and its opcode as FOP has it (SDM 1 8.1.9).
    pub(crate) fn x87_instruction(&self, host: u64) -> Option<(u64, u16)> {
        let (id, rip) = self.locate(host)?;
        let block = &self.blocks[id as usize];
        let bytes = block.bytes.get(rip.wrapping_sub(block.key.rip) as usize..)?;
        let at = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte))?;
        Some((rip, u16::from(bytes[at] & 7) << 8 | u16::from(*bytes.get(at + 1)?)))
    }

    /// Guest address of the instruction at an offset of a block.
    pub(crate) fn address_in(&self, id: BlockId, offset: u64) -> Option<u64> {
        self.blocks.get(id as usize).map(|block| block.key.rip.wrapping_add(offset))
    }

    /// Guest address of a block.
    pub(crate) fn rip_of(&self, id: BlockId) -> Option<u64> {
        self.blocks.get(id as usize).map(|block| block.key.rip)
    }

    /// The page of RAM in which a block begins.
    pub(crate) fn frame_of(&self, id: BlockId) -> u64 {
        self.blocks[id as usize].key.at.frame()
    }

    /// The guest code of a block from `rip` on, and whether it is 64-bit code.
    pub(crate) fn guest_code(&self, id: BlockId, rip: u64) -> (&[u8], bool) {
        let block = &self.blocks[id as usize];
        let from = (rip.wrapping_sub(block.key.rip) as usize).min(block.bytes.len());
        (&block.bytes[from..], block.key.mode.long)
    }

    /// Whether the instruction at `rip` is an indirect jump or call, or a return.
    pub(crate) fn is_indirect_branch(&self, id: BlockId, rip: u64) -> bool {
        let (bytes, long) = self.guest_code(id, rip);
        let instruction = Decoder::new(if long { 64 } else { 32 }, bytes, DecoderOptions::NONE).decode();
        matches!(
            instruction.flow_control(),
            FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
        )
    }

    /// Guest and host code of a block, for people.
    pub(crate) fn listing(&self, id: BlockId) -> String {
        let block = &self.blocks[id as usize];
        listing(&Listed {
            bytes: &block.bytes,
            rip: block.key.rip,
            long: block.key.mode.long,
            code: &self.code.read(block.entry, (block.end - block.entry) as usize),
            base: block.entry,
            marks: &block.marks,
            links: block.links.iter().map(|link| (link.stub - block.entry) as u32).min(),
            stubs: &self.stubs,
        })
    }
}
