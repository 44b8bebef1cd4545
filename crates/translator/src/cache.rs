//! The code cache of a vCPU: blocks, the links between them, and what finds them.
//!
//! A block belongs to a guest address, a place in RAM and a [`Mode`]. Address spaces that map the same page at the same address share
//! it. What ties a block to the present mapping is its page's *cell*, a word that is zero unless the page is known to be mapped where
//! it was translated: everybody who jumps to a block from another page, or from a table, enters where the cell is
//! checked; jumps within a page don't check.
//!
//! Code memory is filled from the start; when it is full, or another table is, everything is dropped and built anew.
//!
//! Called by the run loop on the vCPU's thread, never while translated code runs; no locks.

use crate::context::{self, CELL_COUNT, CELLS};
use crate::emit::{self, Features, Mark, Mode, Request, Translation};
use crate::listing::{Listed, listing};
use crate::raw::code::CodeMemory;
use crate::raw::enter::ContextCell;
use crate::stubs::{self, Stubs};
use memory::{GuestMemory, RamOffset};
use std::collections::HashMap;
use std::io;
use x86::address::PAGE_SIZE;

/// Number of a block.
pub(crate) type BlockId = u32;

/// Blocks fit with an offset into 31 bits: see `Context::last_return`.
const MOST_BLOCKS: usize = 1 << 19;
/// Direct-mapped look-up by guest address.
const LOOK_UPS: usize = 1 << 15;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rip: u64,
    at: RamOffset,
    mode: Mode,
}

pub(crate) struct Block {
    key: Key,
    cell: u32,
    /// Host addresses: of the entry that checks the cell, of the one that doesn't, and of the end.
    pub(crate) entry: u64,
    body: u64,
    end: u64,
    marks: Box<[Mark]>,
    /// The guest's code.
    bytes: Box<[u8]>,
    /// Links that lead here.
    incoming: Vec<u32>,
    first_link: u32,
    link_count: u32,
    /// Guest instructions that translated code executes.
    counted: u16,
    dead: bool,
}

struct Link {
    /// Host address of the displacement, of the stub, and the guest's target.
    jump: u64,
    stub: u64,
    target: u64,
    from: BlockId,
    to: Option<BlockId>,
}

struct Cell {
    page: u64,
    global: bool,
    large: bool,
    valid: bool,
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
    pub(crate) killed: u64,
    pub(crate) flushes: u64,
    pub(crate) links: u64,
}

pub(crate) struct Cache {
    code: CodeMemory,
    /// Bytes of code memory that the stubs take.
    fixed: usize,
    pub(crate) stubs: Stubs,
    features: Features,
    blocks: Vec<Block>,
    links: Vec<Link>,
    by_key: HashMap<Key, BlockId>,
    by_frame: HashMap<u64, Vec<BlockId>>,
    look_ups: Box<[Option<LookUp>]>,
    cells: Vec<Cell>,
    by_page: HashMap<(u64, u64, bool), u32>,
    /// Cells that are valid.
    valid: Vec<u32>,
    /// Changes of code that may have run: the thread has to serialize before it runs on.
    pub(crate) patched: bool,
    pub(crate) counts: Counts,
}

impl Cache {
    pub(crate) fn new(features: Features, bytes: usize, avx: bool, xsaveopt: bool) -> io::Result<Self> {
        let mut code = CodeMemory::new(bytes)?;
        let stubs = stubs::write(&mut code, avx, xsaveopt);
        Ok(Self {
            fixed: code.used(),
            code,
            stubs,
            features,
            blocks: Vec::new(),
            links: Vec::new(),
            by_key: HashMap::new(),
            by_frame: HashMap::new(),
            look_ups: vec![None; LOOK_UPS].into_boxed_slice(),
            cells: Vec::new(),
            by_page: HashMap::new(),
            valid: Vec::new(),
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
        let found = self.look_ups[slot(rip)]?;
        if found.rip != rip || found.mode != mode {
            return None;
        }
        let block = &self.blocks[found.block as usize];
        (!block.dead && self.cells[block.cell as usize].valid).then_some(found.block)
    }

    /// The block for code that lies at `place` now; its page's cell is valid afterwards.
    pub(crate) fn find_at(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        let id = *self.by_key.get(&Key { rip, at: place.at, mode })?;
        self.vouch(self.blocks[id as usize].cell, place, context);
        self.look_ups[slot(rip)] = Some(LookUp { rip, mode, block: id });
        Some(id)
    }

    /// Translates the code at `place`. `None`: it can't be, or changes at the moment.
    pub(crate) fn translate(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        memory: &GuestMemory,
        context: &mut ContextCell,
    ) -> Option<BlockId> {
        let left = (PAGE_SIZE - place.at.offset_in_page()) as usize;
        let mut page = [0; PAGE_SIZE as usize];
        let bytes = &mut page[..left];
        memory.load_bytes(place.at, bytes);
        let made = self.make(rip, mode, place, bytes, context)?;
        // From here on writes are noticed; those before have to be found.
        memory.mark_derived(place.at, u64::from(made.len));
        let mut now = [0; PAGE_SIZE as usize];
        let now = &mut now[..usize::from(made.len)];
        memory.load_bytes(place.at, now);
        if *now != bytes[..usize::from(made.len)] {
            return None;
        }
        Some(self.insert(rip, mode, place, now, made, context))
    }

    fn make(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        bytes: &[u8],
        context: &mut ContextCell,
    ) -> Option<Translation> {
        if self.blocks.len() >= MOST_BLOCKS {
            self.flush(context);
        }
        for _ in 0..2 {
            let cell = self.cell(rip, mode, place, context);
            let made = emit::translate(&Request {
                bytes,
                rip,
                mode,
                stubs: &self.stubs,
                base: self.code.next(),
                cell,
                block: self.blocks.len() as u32,
                first_link: self.links.len() as u32,
                features: self.features,
            })?;
            if made.code.len() + 64 <= self.code.free() {
                return Some(made);
            }
            self.flush(context);
        }
        None
    }

    fn insert(
        &mut self,
        rip: u64,
        mode: Mode,
        place: Place,
        bytes: &[u8],
        made: Translation,
        context: &mut ContextCell,
    ) -> BlockId {
        let id = self.blocks.len() as BlockId;
        let base = self.code.next();
        let cell = self.cell(rip, mode, place, context);
        let appended = self.code.append(&made.code);
        assert!(appended, "`make` left room");
        // The memory may have been run with other code in it.
        self.patched = true;
        let first_link = self.links.len() as u32;
        for site in &made.links {
            self.links.push(Link {
                jump: base + u64::from(site.jump),
                stub: base + u64::from(site.stub),
                target: site.target,
                from: id,
                to: None,
            });
        }
        let key = Key { rip, at: place.at, mode };
        self.blocks.push(Block {
            key,
            cell,
            entry: base,
            body: base + u64::from(made.body),
            end: base + made.code.len() as u64,
            marks: made.marks.into_boxed_slice(),
            bytes: bytes.into(),
            incoming: Vec::new(),
            first_link,
            link_count: made.links.len() as u32,
            counted: made.instructions - u16::from(made.ends_interpreted),
            dead: false,
        });
        self.by_key.insert(key, id);
        self.by_frame.entry(place.at.frame()).or_default().push(id);
        self.look_ups[slot(rip)] = Some(LookUp { rip, mode, block: id });
        self.counts.translated += 1;
        self.vouch(cell, place, context);
        id
    }

    /// The cell of a page.
    fn cell(&mut self, rip: u64, mode: Mode, place: Place, context: &mut ContextCell) -> u32 {
        let page = rip & !(PAGE_SIZE - 1);
        let key = (page, place.at.frame(), mode.user);
        if let Some(&cell) = self.by_page.get(&key) {
            return cell;
        }
        if self.cells.len() == CELL_COUNT {
            self.flush(context);
        }
        let cell = self.cells.len() as u32;
        self.cells.push(Cell { page, global: place.global, large: place.large, valid: false });
        self.by_page.insert(key, cell);
        cell
    }

    fn vouch(&mut self, cell: u32, place: Place, context: &mut ContextCell) {
        let entry = &mut self.cells[cell as usize];
        (entry.global, entry.large) = (place.global, place.large);
        if !entry.valid {
            entry.valid = true;
            self.valid.push(cell);
            context.set_half(CELLS, cell as usize, 1);
        }
    }

    /// Takes back that pages are known to be mapped.
    pub(crate) fn doubt(&mut self, context: &mut ContextCell, mut which: impl FnMut(&Doubtful) -> bool) {
        let cells = &mut self.cells;
        self.valid.retain(|&index| {
            let cell = &mut cells[index as usize];
            let doubted = which(&Doubtful { page: cell.page, global: cell.global, large: cell.large });
            if doubted {
                cell.valid = false;
                context.set_half(CELLS, index as usize, 0);
            }
            !doubted
        });
    }

    /// Patches a link to lead to a block.
    pub(crate) fn link(&mut self, link: u32, to: BlockId) {
        let Some(entry) = self.links.get(link as usize) else { return };
        let (from, block) = (&self.blocks[entry.from as usize], &self.blocks[to as usize]);
        if from.dead
            || block.dead
            || entry.to.is_some()
            || entry.target != block.key.rip
            || from.key.mode != block.key.mode
        {
            return;
        }
        // In one page both are mapped or neither is.
        let same_page = from.cell == block.cell;
        let target = if same_page { block.body } else { block.entry };
        let jump = entry.jump;
        self.patch_jump(jump, target);
        self.links[link as usize].to = Some(to);
        self.blocks[to as usize].incoming.push(link);
        self.counts.links += 1;
    }

    /// The guest address that a link leads to.
    pub(crate) fn link_target(&self, link: u32) -> u64 {
        self.links[link as usize].target
    }

    fn patch_jump(&mut self, jump: u64, target: u64) {
        let distance = target.wrapping_sub(jump + 4) as i32;
        self.code.patch(jump, &distance.to_le_bytes());
        self.patched = true;
    }

    /// After writes to pages of RAM: drops the blocks whose code isn't what it was.
    pub(crate) fn check_frame(&mut self, frame: u64, memory: &GuestMemory) {
        let Some(blocks) = self.by_frame.get(&frame) else { return };
        let mut now = [0; PAGE_SIZE as usize];
        memory.load_bytes(RamOffset(frame * PAGE_SIZE), &mut now);
        let changed = |block: &Block| {
            let from = block.key.at.offset_in_page() as usize;
            now[from..from + block.bytes.len()] != *block.bytes
        };
        let gone: Vec<_> = blocks.iter().copied().filter(|&id| changed(&self.blocks[id as usize])).collect();
        for id in gone {
            self.kill(id);
        }
    }

    /// The same for all pages.
    pub(crate) fn check_all(&mut self, memory: &GuestMemory) {
        let frames: Vec<_> = self.by_frame.keys().copied().collect();
        for frame in frames {
            self.check_frame(frame, memory);
        }
    }

    /// Makes sure that a block is never entered again.
    fn kill(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if std::mem::replace(&mut block.dead, true) {
            return;
        }
        self.counts.killed += 1;
        let (key, entry) = (block.key, block.entry);
        let incoming = std::mem::take(&mut block.incoming);
        for link in incoming {
            let entry = &mut self.links[link as usize];
            if entry.to.take().is_some() {
                let (jump, stub) = (entry.jump, entry.stub);
                self.patch_jump(jump, stub);
            }
        }
        // The table of indirect targets may have its entry: there it leaves as if the page were in doubt.
        self.patch_entry(entry);
        self.by_key.remove(&key);
        if let Some(blocks) = self.by_frame.get_mut(&key.at.frame()) {
            blocks.retain(|&other| other != id);
        }
        if let Some(found) = self.look_ups[slot(key.rip)]
            && found.block == id
        {
            self.look_ups[slot(key.rip)] = None;
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
        let index = self.blocks.partition_point(|block| block.entry <= host).checked_sub(1)?;
        let block = &self.blocks[index];
        if host >= block.end {
            return None;
        }
        let offset = (host - block.entry) as u32;
        let mark = block.marks.partition_point(|mark| mark.host <= offset).checked_sub(1)?;
        Some((index as BlockId, block.key.rip.wrapping_add(u64::from(block.marks[mark].guest))))
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

    /// Drops everything.
    pub(crate) fn flush(&mut self, context: &mut ContextCell) {
        self.code.truncate(self.fixed);
        self.blocks.clear();
        self.links.clear();
        self.by_key.clear();
        self.by_frame.clear();
        self.look_ups.fill(None);
        self.doubt(context, |_| true);
        self.cells.clear();
        self.by_page.clear();
        self.patched = true;
        self.counts.flushes += 1;
        for user in [false, true] {
            self.forget_targets(user, context);
        }
    }

    /// Empties a table of indirect targets.
    pub(crate) fn forget_targets(&self, user: bool, context: &mut ContextCell) {
        for index in 0..context::TARGET_SLOTS {
            // An address that belongs into another slot is never found here.
            let elsewhere = index as u64 ^ 1;
            context.set_word(context::target_tags(user), index, elsewhere.wrapping_neg());
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

    /// The guest code of a block from `rip` on, and whether it is 64-bit code.
    pub(crate) fn guest_code(&self, id: BlockId, rip: u64) -> (&[u8], bool) {
        let block = &self.blocks[id as usize];
        let from = (rip.wrapping_sub(block.key.rip) as usize).min(block.bytes.len());
        (&block.bytes[from..], block.key.mode.long)
    }

    /// Code bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.code.used()
    }

    /// Guest and host code of a block, for people.
    pub(crate) fn listing(&self, id: BlockId) -> String {
        let block = &self.blocks[id as usize];
        let links = block.first_link as usize..(block.first_link + block.link_count) as usize;
        listing(&Listed {
            bytes: &block.bytes,
            rip: block.key.rip,
            long: block.key.mode.long,
            code: &self.code.read(block.entry, (block.end - block.entry) as usize),
            base: block.entry,
            marks: &block.marks,
            links: self.links[links].iter().map(|link| (link.stub - block.entry) as u32).min(),
            stubs: &self.stubs,
        })
    }
}

/// A page whose mapping may be doubted.
pub(crate) struct Doubtful {
    pub(crate) page: u64,
    pub(crate) global: bool,
    pub(crate) large: bool,
}

fn slot(rip: u64) -> usize {
    (rip ^ rip >> 15) as usize % LOOK_UPS
}
