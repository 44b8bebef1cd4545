//! Decoded code, cached by physical address.
//!
//! A block is a run of instructions on one page, up to the first that may change control flow or mode. The cache is private to
//! a vCPU. A block stays valid while its page's generation is the one it was made under (see `memory`); when it isn't, the
//! bytes decide: unchanged, the block lives on under the new generation; changed, it is decoded again. So code that shares
//! a page, even a granule, with data costs a comparison, not a decoding.
//!
//! A block of one instruction that runs over the end of its page depends on a second page, which the main loop looks up again
//! each time, since another address space may continue elsewhere.

use crate::cpu::CodeSize;
use crate::op::{Detail, Op};
use memory::{GuestMemory, RamOffset};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Most instructions in a block.
pub(crate) const MAX_OPS: usize = 32;
/// Bytes of blocks kept before everything is dropped and built anew. A Debian kernel's boot fills about half.
const BUDGET: usize = 64 << 20;
/// The same behind a translator, which takes over what is met again and again.
pub(crate) const SMALL_BUDGET: usize = 12 << 20;
/// Direct-mapped look-up by linear address.
const LOOKUPS: usize = 1 << 13;

/// What identifies a block: where its first byte lies and how it was decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) at: RamOffset,
    pub(crate) size: CodeSize,
}

/// A run of decoded instructions.
#[repr(C)]
pub(crate) struct Block {
    // Hot: looked at each time the block runs.
    pub(crate) ops: Vec<Op>,
    /// Epoch of memory in which the block was last found good.
    pub(crate) epoch: u64,
    /// The blocks that last followed this one: after a branch taken or falling through, and otherwise.
    successors: [Lookup; 2],
    /// Length in bytes.
    pub(crate) len: u64,

    pub(crate) key: Key,
    /// The code bytes.
    pub(crate) bytes: Vec<u8>,
    /// Generation of the page that the block is good for.
    pub(crate) generation: u32,
    /// For a block that runs over the end of its page: the second page's first byte and its generation.
    pub(crate) second: Option<(RamOffset, u32)>,
    /// Some instruction of it looks at the vector registers.
    pub(crate) touches_vector: bool,
}

impl Block {
    /// A block whose bytes were read under the given generations.
    pub(crate) fn new(
        key: Key,
        ops: Vec<Op>,
        bytes: Vec<u8>,
        generation: u32,
        second: Option<(RamOffset, u32)>,
    ) -> Self {
        let len = bytes.len() as u64;
        let touches_vector = ops.iter().any(Op::touches_vector);
        Self {
            touches_vector,
            ops,
            epoch: u64::MAX,
            successors: [NO_LOOKUP; 2],
            len,
            key,
            bytes,
            generation,
            second,
        }
    }

    /// What the block takes of the host's memory, the table's share included.
    fn size(&self) -> usize {
        let details = self.ops.iter().filter(|op| op.detail.is_some()).count();
        2 * size_of::<Self>()
            + self.ops.capacity() * size_of::<Op>()
            + details * size_of::<Detail>()
            + self.bytes.capacity()
    }

    /// How many of the bytes are on the first page.
    pub(crate) fn on_first(&self) -> usize {
        let left = (x86::address::PAGE_SIZE - self.key.at.offset_in_page()) as usize;
        self.bytes.len().min(left)
    }
}

#[derive(Clone, Copy)]
struct Lookup {
    rip: u64,
    /// Epoch of the TLB, code size and privilege that the entry holds for.
    context: u64,
    block: u32,
}

const NO_LOOKUP: Lookup = Lookup { rip: 0, context: u64::MAX, block: 0 };

/// Number of a block in the cache. Invalid after [`Blocks::clear`].
pub(crate) type BlockIndex = u32;

pub(crate) struct Blocks {
    blocks: Vec<Block>,
    by_key: HashMap<Key, BlockIndex, BuildHasherDefault<KeyHasher>>,
    lookups: Box<[Lookup]>,
    /// Bytes that the blocks take, and may take.
    pub(crate) size: usize,
    pub(crate) budget: usize,
    /// Blocks decoded since creation.
    pub(crate) decoded: u64,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            by_key: HashMap::default(),
            lookups: vec![NO_LOOKUP; LOOKUPS].into_boxed_slice(),
            size: 0,
            budget: BUDGET,
            decoded: 0,
        }
    }

    /// The block that last followed `before` if it did so at this linear address in this context.
    #[inline(always)]
    pub(crate) fn successor(&self, before: BlockIndex, rip: u64, context: u64) -> Option<BlockIndex> {
        let successors = &self.blocks.get(before as usize)?.successors;
        let hit = |entry: &Lookup| entry.rip == rip && entry.context == context;
        successors.iter().find(|entry| hit(entry)).map(|entry| entry.block)
    }

    /// Notes that `block` followed `before`.
    #[inline]
    pub(crate) fn link(&mut self, before: BlockIndex, rip: u64, context: u64, block: BlockIndex) {
        if let Some(before) = self.blocks.get_mut(before as usize) {
            before.successors.swap(0, 1);
            before.successors[0] = Lookup { rip, context, block };
        }
    }

    /// The block last found at this linear address in this context, if its translation still stands.
    #[inline(always)]
    pub(crate) fn lookup(&self, rip: u64, context: u64) -> Option<BlockIndex> {
        let entry = &self.lookups[slot(rip)];
        (entry.rip == rip && entry.context == context).then_some(entry.block)
    }

    pub(crate) fn remember(&mut self, rip: u64, context: u64, block: BlockIndex) {
        self.lookups[slot(rip)] = Lookup { rip, context, block };
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: BlockIndex) -> &Block {
        &self.blocks[index as usize]
    }

    pub(crate) fn find(&self, key: Key) -> Option<BlockIndex> {
        self.by_key.get(&key).copied()
    }

    /// Adds a block, in the place of one with the same key where there is one.
    pub(crate) fn insert(&mut self, block: Block) -> BlockIndex {
        self.decoded += 1;
        let size = block.size();
        if self.size + size > self.budget {
            tracing::debug!(blocks = self.blocks.len(), "the block cache is full and starts anew");
            self.clear();
        }
        self.size += size;
        if let Some(&index) = self.by_key.get(&block.key) {
            let old = std::mem::replace(&mut self.blocks[index as usize], block);
            self.size -= old.size();
            return index;
        }
        let index = self.blocks.len() as BlockIndex;
        self.by_key.insert(block.key, index);
        self.blocks.push(block);
        index
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.by_key.clear();
        self.size = 0;
        for entry in &mut self.lookups {
            entry.context = u64::MAX;
        }
    }

    /// As [`Blocks::is_current`], for blocks found by a linear address alone, which doesn't vouch for a second page.
    #[inline(always)]
    pub(crate) fn is_current_at(&mut self, index: BlockIndex, memory: &GuestMemory) -> bool {
        self.blocks[index as usize].epoch == memory.epoch()
            || (self.blocks[index as usize].second.is_none() && self.revive(index, memory))
    }

    /// Whether the block still says what memory says; revives one whose bytes are unchanged.
    #[inline(always)]
    pub(crate) fn is_current(&mut self, index: BlockIndex, memory: &GuestMemory) -> bool {
        self.blocks[index as usize].epoch == memory.epoch() || self.revive(index, memory)
    }

    #[cold]
    fn revive(&mut self, index: BlockIndex, memory: &GuestMemory) -> bool {
        let block = &mut self.blocks[index as usize];
        // The epoch first: what is written after this is for the next look.
        let epoch = memory.epoch();
        let generation = memory.generation(block.key.at);
        let second = block.second.map(|(page, _)| (page, memory.generation(page)));
        // A block with a second page never takes the short way.
        let epoch = if second.is_some() { u64::MAX } else { epoch };
        if generation == block.generation && second == block.second {
            block.epoch = epoch;
            return true;
        }
        let on_first = block.on_first();
        let mut now = [0; 512];
        let Some(now) = now.get_mut(..block.bytes.len()) else { return false };
        let (head, tail) = now.split_at_mut(on_first);
        // The marks may have been taken back.
        let generation = memory.mark_derived(block.key.at, head.len() as u64);
        let second = block.second.map(|(page, _)| (page, memory.mark_derived(page, tail.len() as u64)));
        memory.load_bytes(block.key.at, head);
        if let Some((page, _)) = second {
            memory.load_bytes(page, tail);
        }
        if *now != *block.bytes {
            return false;
        }
        block.epoch = epoch;
        block.generation = generation;
        block.second = second;
        true
    }
}

#[inline(always)]
fn slot(rip: u64) -> usize {
    (rip ^ rip >> 13) as usize % LOOKUPS
}

/// A hasher for [`Key`]: one multiplication. Keys come from a guest that can only slow itself down.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}
