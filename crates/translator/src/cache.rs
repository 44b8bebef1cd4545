//! The code cache of a vCPU: blocks, the links between them, and what finds them.
//!
//! A block belongs to a guest address, a place in RAM and a [`Mode`]. Address spaces that map the same page at the same address share
//! it. What ties a block to the present mapping is its page's *cell*, a word that is zero unless the page is known to be mapped where
//! it was translated: everybody who jumps to a block from another page, or from a table, enters where the cell is
//! checked; jumps within a page don't check.
//!
//! Code memory is divided into regions that are filled in turn. When the last one is full, the blocks of the oldest are evicted; what
//! of them is still hot is translated anew when it is met. Blocks whose code has changed are dead at once, but keep their number
//! and their memory until their region's turn comes: stale numbers lead nowhere.
//!
//! Called by the run loop on the vCPU's thread, never while translated code runs; no locks.

mod renew;

use crate::cells::Cells;
use crate::context;
use crate::emit::{self, Features, Mark, Mode, Request, Source, Translation};
use crate::listing::{Listed, listing};
use crate::raw::code::CodeMemory;
use crate::raw::enter::ContextCell;
use crate::stubs::{self, Stubs};
use memory::{GuestMemory, RamOffset};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use x86::address::PAGE_SIZE;

/// Number of a block.
pub(crate) type BlockId = u32;

/// Blocks fit with an offset into 31 bits: see `Context::last_return`.
const MOST_BLOCKS: usize = 1 << 19;
/// Direct-mapped look-up by guest address.
const LOOK_UPS: usize = 1 << 15;
/// Most bytes of an instruction.
pub(crate) const MAX_BYTES: usize = 15;
/// Most bytes of a block's code: as many instructions as a block has, and as long as they get.
const SOURCE: usize = 64 * MAX_BYTES;
/// Into how many parts code memory is divided.
const REGIONS: usize = 8;
/// A link's number is its block's, times this, plus which of the block's links it is.
const MOST_LINKS: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rip: u64,
    at: RamOffset,
    mode: Mode,
}

pub(crate) struct Block {
    key: Key,
    cell: u32,
    /// Where an instruction that began on one page goes on: the first byte of the second, and that one's cell.
    second: Option<(RamOffset, u32)>,
    /// Host addresses: of the entry that checks the cell, of the one that doesn't, and of the end.
    pub(crate) entry: u64,
    body: u64,
    end: u64,
    marks: Box<[Mark]>,
    /// The guest's code.
    bytes: Box<[u8]>,
    /// Links that lead here.
    incoming: Vec<u32>,
    links: Box<[Link]>,
    /// Guest instructions that translated code executes.
    counted: u16,
    dead: bool,
    /// It looks at its code by itself, which therefore isn't marked.
    checks: bool,
    /// Offsets of the instructions whose immediate it reads from there.
    soft: Vec<u16>,
    /// Bytes of code memory from `entry` on that are its own.
    room: usize,
}

impl Block {
    /// The pieces of guest code, by place in RAM: one, or two for an instruction on two pages.
    fn pieces(&self) -> impl Iterator<Item = (RamOffset, &[u8])> {
        let left = (PAGE_SIZE - self.key.at.offset_in_page()) as usize;
        let (head, tail) = self.bytes.split_at(left.min(self.bytes.len()));
        let second = self.second.map(|(at, _)| (at, tail));
        std::iter::once((self.key.at, head)).chain(second)
    }

    /// Takes over what a translation is made of.
    fn describe(&mut self, bytes: &[u8], soft: Vec<u16>, made: Translation) {
        let base = self.entry;
        let links = made.links.iter().map(|site| Link {
            jump: base + u64::from(site.jump),
            stub: base + u64::from(site.stub),
            target: site.target,
            single: site.single,
            to: None,
        });
        self.body = base + u64::from(made.body);
        self.end = base + made.code.len() as u64;
        self.links = links.collect();
        self.marks = made.marks.into_boxed_slice();
        self.bytes = bytes.into();
        self.counted = made.instructions - u16::from(made.ends_interpreted);
        self.soft = soft;
    }

    /// The granules of a page that it depends on without looking.
    fn granules(&self, frame: u64) -> u64 {
        if self.checks {
            return 0;
        }
        self.pieces()
            .filter(|(at, _)| at.frame() == frame)
            .fold(0, |all, (at, bytes)| all | memory::granules(at, bytes.len() as u64))
    }
}

struct Link {
    /// Host address of the displacement, of the stub, and the guest's target.
    jump: u64,
    stub: u64,
    target: u64,
    /// It leads to a translation without windows.
    single: bool,
    to: Option<BlockId>,
}

#[derive(Clone, Copy)]
struct LookUp {
    rip: u64,
    mode: Mode,
    block: BlockId,
}

/// Where the code at a guest address lies now.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Its first byte.
    pub(crate) at: RamOffset,
    pub(crate) global: bool,
    pub(crate) large: bool,
}

/// What happened to a cache since it was made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) translated: u64,
    /// Translated anew in their place.
    pub(crate) renewed: u64,
    pub(crate) killed: u64,
    /// Regions whose blocks were evicted.
    pub(crate) evictions: u64,
    /// Blocks evicted alive.
    pub(crate) evicted: u64,
    pub(crate) links: u64,
}

pub(crate) struct Cache {
    code: CodeMemory,
    pub(crate) stubs: Stubs,
    features: Features,
    blocks: Vec<Block>,
    /// Numbers of blocks that are evicted.
    free: Vec<BlockId>,
    /// The blocks in each region, dead ones too, with their entries, in order; and the region that is being filled.
    regions: [Vec<(u64, BlockId)>; REGIONS],
    filling: usize,
    by_key: HashMap<Key, BlockId, BuildHasherDefault<KeyHasher>>,
    by_frame: HashMap<u64, Vec<BlockId>, BuildHasherDefault<KeyHasher>>,
    look_ups: Box<[Option<LookUp>]>,
    pub(crate) cells: Cells,
    /// Changes of code that may have run: the thread has to serialize before it runs on.
    pub(crate) patched: bool,
    pub(crate) counts: Counts,
}

impl Cache {
    pub(crate) fn new(features: Features, bytes: usize, avx: bool, xsaveopt: bool) -> io::Result<Self> {
        let mut code = CodeMemory::new(bytes)?;
        let stubs = stubs::write(&mut code, avx, xsaveopt);
        code.divide(REGIONS);
        Ok(Self {
            code,
            stubs,
            features,
            blocks: Vec::new(),
            free: Vec::new(),
            regions: Default::default(),
            filling: 0,
            by_key: HashMap::default(),
            by_frame: HashMap::default(),
            look_ups: vec![None; LOOK_UPS].into_boxed_slice(),
            cells: Cells::new(),
            patched: false,
            counts: Counts::default(),
        })
    }

    pub(crate) fn code_range(&self) -> (u64, u64) {
        (self.code.base(), self.code.end())
    }

    pub(crate) fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    /// The block at a guest address whose page is known to be mapped where it was.
    pub(crate) fn find(&self, rip: u64, mode: Mode) -> Option<BlockId> {
        let found = self.look_ups[slot(rip, mode)]?;
        if found.rip != rip || found.mode != mode {
            return None;
        }
        let block = &self.blocks[found.block as usize];
        let valid = |cell: u32| self.cells.is_valid(cell);
        let mapped = valid(block.cell) && block.second.is_none_or(|(_, cell)| valid(cell));
        (!block.dead && mapped).then_some(found.block)
    }

    /// Whether the block for code that lies at `place` now, if there is one, goes on on the next page.
    pub(crate) fn is_straddling(&self, rip: u64, mode: Mode, place: Place) -> bool {
        self.by_key
            .get(&Key { rip, at: place.at, mode })
            .is_some_and(|&id| self.blocks[id as usize].second.is_some())
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
        let id = *self.by_key.get(&Key { rip, at: place.at, mode })?;
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
        self.look_ups[slot(rip, mode)] = Some(LookUp { rip, mode, block: id });
        Some(id)
    }

    /// Translates the code at `place`, which goes on at `second` where that is given: then only one instruction, which lies on both
    /// pages. `checks`: the block is to look at its code by itself. `None`: it can't be, or changes at the moment.
    #[expect(clippy::too_many_arguments, reason = "all that a block depends on")]
    pub(crate) fn translate(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        second: Option<Place>,
        checks: bool,
        memory: &GuestMemory,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        let left = (PAGE_SIZE - place.at.offset_in_page()) as usize;
        let mut before = [0; SOURCE];
        let len = if second.is_some() { left.min(MAX_BYTES) + MAX_BYTES } else { left.min(SOURCE) };
        let before = &mut before[..len];
        load(memory, place.at, second.map(|second| second.at), before);
        let source = checks.then(|| Self::source(memory, place.at, second.map(|second| second.at), &[]));
        let made = self.make(rip, mode, place, second, before, source, context)?;
        let len = usize::from(made.len);
        if second.is_some() && len <= left {
            return None;
        }
        if !checks {
            // From here on writes are noticed; those before have to be found.
            memory.mark_granules(place.at, memory::granules(place.at, len.min(left) as u64));
            if let Some(second) = second {
                memory.mark_granules(second.at, memory::granules(second.at, (len - left) as u64));
            }
            let mut now = [0; SOURCE];
            load(memory, place.at, second.map(|second| second.at), &mut now[..len]);
            if now[..len] != before[..len] {
                return None;
            }
        }
        Some(self.insert(rip, mode, place, second, &before[..len], checks, made, context))
    }

    #[expect(clippy::too_many_arguments, reason = "all that a block depends on")]
    fn make(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        second: Option<Place>,
        bytes: &[u8],
        source: Option<Source<'_>>,
        context: &mut ContextCell,
    ) -> Option<Translation> {
        for _ in 0..2 {
            if self.free.is_empty() && self.blocks.len() >= MOST_BLOCKS {
                self.evict(context);
            }
            let cell = self.cell(rip, mode, place, context);
            // The second must not take the first one's number, which is no block's yet.
            self.cells.hold(cell);
            let second_cell = second.map(|second| self.cell(next_page(rip, mode), mode, second, context));
            self.cells.release(cell);
            let block = self.next_id();
            let made = emit::translate(&Request {
                bytes,
                rip,
                mode,
                stubs: &self.stubs,
                base: self.code.next(),
                cell,
                second_cell,
                block,
                first_link: block * MOST_LINKS,
                features: self.features,
                source,
            })?;
            if made.links.len() > MOST_LINKS as usize {
                return None;
            }
            if room(&made, source.is_some()) + 64 <= self.code.free() {
                return Some(made);
            }
            self.evict(context);
        }
        None
    }

    fn next_id(&self) -> BlockId {
        self.free.last().copied().unwrap_or(self.blocks.len() as BlockId)
    }

    #[expect(clippy::too_many_arguments, reason = "all that a block is made of")]
    fn insert(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        second: Option<Place>,
        bytes: &[u8],
        checks: bool,
        made: Translation,
        context: &mut ContextCell,
    ) -> BlockId {
        let key = Key { rip, at: place.at, mode };
        if let Some(&old) = self.by_key.get(&key) {
            self.kill(old);
        }
        let cell = self.cell(rip, mode, place, context);
        let second = second.map(|second| (second, self.cell(next_page(rip, mode), mode, second, context)));
        let id = self.next_id();
        let base = self.code.next();
        let room = room(&made, checks);
        let appended = self.code.append(&made.code, room);
        assert!(appended, "`make` left room");
        // The memory may have been run with other code in it.
        self.patched = true;
        let mut block = Block {
            key,
            cell,
            second: second.map(|(second, cell)| (second.at, cell)),
            entry: base,
            body: base,
            end: base,
            links: Box::default(),
            marks: Box::default(),
            bytes: Box::default(),
            incoming: Vec::new(),
            counted: 0,
            dead: false,
            checks,
            soft: Vec::new(),
            room,
        };
        block.describe(bytes, Vec::new(), made);
        if self.free.pop().is_some() {
            self.blocks[id as usize] = block;
        } else {
            self.blocks.push(block);
        }
        self.regions[self.filling].push((base, id));
        self.by_key.insert(key, id);
        self.by_frame.entry(place.at.frame()).or_default().push(id);
        self.cells.hold(cell);
        if let Some((second, cell)) = second {
            if second.at.frame() != place.at.frame() {
                self.by_frame.entry(second.at.frame()).or_default().push(id);
            }
            self.cells.hold(cell);
            self.vouch(cell, second, context);
        }
        self.look_ups[slot(rip, mode)] = Some(LookUp { rip, mode, block: id });
        self.counts.translated += 1;
        self.vouch(cell, place, context);
        id
    }

    /// Makes room: goes on to the region that was filled longest ago, whose blocks go.
    fn evict(&mut self, context: &mut ContextCell) {
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
    fn cell(&mut self, rip: u64, mode: Mode, place: Place, context: &mut ContextCell) -> u32 {
        loop {
            if let Some(cell) = self.cells.of(rip, mode.user, place) {
                return cell;
            }
            while !self.cells.free_unused(context) {
                self.evict(context);
            }
        }
    }

    fn vouch(&mut self, cell: u32, place: Place, context: &mut ContextCell) {
        self.cells.vouch(cell, place.global, place.large, context);
    }

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

    fn patch_jump(&mut self, jump: u64, target: u64) {
        let distance = target.wrapping_sub(jump + 4) as i32;
        self.code.patch(jump, &distance.to_le_bytes());
        self.patched = true;
    }

    /// After writes to a page of RAM: drops the blocks whose code isn't what it was, and gives their addresses to `gone`. The
    /// granules that those that stay depend on are marked; gives them.
    pub(crate) fn check_frame(&mut self, frame: u64, memory: &GuestMemory, mut gone: impl FnMut(u64)) -> u64 {
        let Some(blocks) = self.by_frame.get(&frame) else { return 0 };
        let at = RamOffset(frame * PAGE_SIZE);
        // The marks may have been taken back.
        let held = blocks.iter().fold(0, |all, &id| all | self.blocks[id as usize].granules(frame));
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
        let (old, stay): (Vec<_>, Vec<_>) =
            blocks.iter().copied().partition(|&id| changed(&self.blocks[id as usize]));
        if old.is_empty() {
            return held;
        }
        for id in old {
            gone(self.blocks[id as usize].key.rip);
            self.kill(id);
        }
        stay.iter().fold(0, |all, &id| all | self.blocks[id as usize].granules(frame))
    }

    /// The same for all pages.
    pub(crate) fn check_all(&mut self, memory: &GuestMemory, mut gone: impl FnMut(u64)) {
        let frames: Vec<_> = self.by_frame.keys().copied().collect();
        for frame in frames {
            self.check_frame(frame, memory, &mut gone);
        }
    }

    /// Makes sure that a block is never entered again.
    fn kill(&mut self, id: BlockId) {
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

    /// Takes a block's links out of their targets' lists.
    fn unlink_outgoing(&mut self, id: BlockId) {
        for index in 0..self.blocks[id as usize].links.len() {
            let link = id * MOST_LINKS + index as u32;
            if let Some(to) = self.blocks[id as usize].links[index].to.take() {
                self.blocks[to as usize].incoming.retain(|&other| other != link);
            }
        }
    }

    fn leave_frame(&mut self, frame: u64, id: BlockId) {
        if let Some(blocks) = self.by_frame.get_mut(&frame) {
            blocks.retain(|&other| other != id);
            if blocks.is_empty() {
                self.by_frame.remove(&frame);
            }
        }
    }

    /// Makes the checking entry leave always: its load becomes one of zero.
    fn patch_entry(&mut self, entry: u64) {
        // `mov ecx, gs:[cell]` has 8 bytes; `mov ecx, 0` and a three-byte no-operation take their place.
        self.code.patch(entry, &[0xb9, 0, 0, 0, 0, 0x0f, 0x1f, 0x00]);
        self.patched = true;
    }

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

    /// Empties a table of indirect targets.
    pub(crate) fn forget_targets(&self, user: bool, context: &mut ContextCell) {
        for index in 0..context::TARGET_SLOTS {
            context.set_word(context::target_tags(user), index, elsewhere(index));
        }
    }

    /// Takes a block's memory out of the table of indirect targets.
    fn forget_target(&self, id: BlockId, context: &mut ContextCell) {
        let (key, entry) = (self.blocks[id as usize].key, self.blocks[id as usize].entry);
        let (user, index) = (key.mode.user, key.rip as usize & (context::TARGET_SLOTS - 1));
        if context.word(context::target_hosts(user), index) == entry {
            context.set_word(context::target_tags(user), index, elsewhere(index));
        }
    }

    /// Enters a block into the table of indirect targets.
    pub(crate) fn remember_target(&self, id: BlockId, context: &mut ContextCell) {
        let block = &self.blocks[id as usize];
        let user = block.key.mode.user;
        let index = block.key.rip as usize & (context::TARGET_SLOTS - 1);
        context.set_word(context::target_tags(user), index, block.key.rip.wrapping_neg());
        context.set_word(context::target_hosts(user), index, block.entry);
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

    /// Code bytes of the stubs and of blocks that aren't evicted.
    pub(crate) fn used(&self) -> usize {
        let bytes = |&(entry, id): &(u64, BlockId)| self.blocks[id as usize].end - entry;
        self.code.kept() + self.regions.iter().flatten().map(bytes).sum::<u64>() as usize
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

/// A hasher for addresses: multiplications. A guest that makes them collide slows itself down.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// A tag for a slot of the tables of indirect targets that is never found: an address that belongs into another slot.
fn elsewhere(index: usize) -> u64 {
    (index as u64 ^ 1).wrapping_neg()
}

/// The page after that of `rip`.
pub(crate) fn next_page(rip: u64, mode: Mode) -> u64 {
    let next = (rip | (PAGE_SIZE - 1)).wrapping_add(1);
    if mode.long { next } else { next & 0xffff_ffff }
}

/// Reads code at `at`, from the end of its page on at `second`.
fn load(memory: &GuestMemory, at: RamOffset, second: Option<RamOffset>, into: &mut [u8]) {
    let left = (PAGE_SIZE - at.offset_in_page()) as usize;
    let (head, tail) = into.split_at_mut(left.min(into.len()));
    memory.load_bytes(at, head);
    if let Some(second) = second {
        memory.load_bytes(second, tail);
    }
}

/// Code memory for a translation: a little more for one that will be replaced by others of about its length.
fn room(made: &Translation, checks: bool) -> usize {
    made.code.len() + if checks { made.code.len() / 8 + 64 } else { 0 }
}

fn slot(rip: u64, mode: Mode) -> usize {
    (rip ^ rip >> 15 ^ u64::from(mode.single)) as usize % LOOK_UPS
}
