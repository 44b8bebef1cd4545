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
//! | module | what |
//! |---|---|
//! | `lookup` | what finds blocks |
//! | `links` | direct jumps between them |
//! | `invalidate` | writes to code, and how a block dies |
//! | `renew` | blocks that look at their source |
//! | `evict` | room for new ones |
//! | `adopt` | blocks of the same code at other guest addresses |
//! | `places` | from host addresses back to guest code |
//!
//! Called by the run loop on the vCPU's thread, never while translated code runs; no locks.

mod adopt;
mod evict;
mod invalidate;
mod links;
mod lookup;
mod places;
mod renew;

use crate::asm::{Moved, Relocation};
use crate::cells::Cells;
use crate::emit::{self, Desk, Features, Mark, Mode, Request, Source, Translation};
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

/// What a block belongs to: a guest address, a place in RAM and a mode.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    rip: u64,
    at: RamOffset,
    mode: Mode,
}

/// The same by the page's cell and the offset in the page.
type Spot = (u32, u16, Mode);

impl Key {
    /// What the code is known by where it is counted how often it is met: code of the user's by its place, since it is met at other
    /// addresses in other processes; code of the kernel by its address, which is known without a look at page tables.
    fn heat(&self) -> u64 {
        if self.mode.user { self.at.0 } else { self.rip }
    }
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
    /// What has to be changed where it moves. `None`: it can't.
    relocations: Option<Box<[Relocation]>>,
    /// The next block of the same code, see `adopt`: itself, if there is no other.
    twin: BlockId,
    /// It was entered into a table of indirect targets.
    remembered: bool,
}

impl Block {
    /// The pieces of guest code, by place in RAM: one, or two for an instruction on two pages.
    fn pieces(&self) -> impl Iterator<Item = (RamOffset, &[u8])> {
        let left = (PAGE_SIZE - self.key.at.offset_in_page()) as usize;
        let (head, tail) = self.bytes.split_at(left.min(self.bytes.len()));
        let second = self.second.map(|(at, _)| (at, tail));
        std::iter::once((self.key.at, head)).chain(second)
    }

    /// Takes over what a translation is made of, and gives back the memory of its code.
    fn describe(&mut self, bytes: &[u8], soft: Vec<u16>, made: Translation) -> Vec<u8> {
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
        self.relocations = made.relocations;
        self.soft = soft;
        made.code
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

impl Link {
    /// The same one of a block that lies elsewhere.
    fn moved(&self, moved: Moved) -> Self {
        Self {
            jump: self.jump.wrapping_add(moved.host),
            stub: self.stub.wrapping_add(moved.host),
            target: self.target.wrapping_add(moved.guest),
            single: self.single,
            to: None,
        }
    }
}

/// Where to look first for the block at an address. It may have moved meanwhile.
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
    /// Moved or copied from another guest address.
    pub(crate) moved: u64,
    pub(crate) copied: u64,
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
    desk: Desk,
    blocks: Vec<Block>,
    /// Numbers of blocks that are evicted.
    free: Vec<BlockId>,
    /// The blocks in each region, dead ones too, with their entries, in order; and the region that is being filled.
    regions: [Vec<(u64, BlockId)>; REGIONS],
    filling: usize,
    by_spot: HashMap<Spot, BlockId, BuildHasherDefault<KeyHasher>>,
    /// Of the blocks of the same code the one that came last.
    twins: HashMap<(RamOffset, Mode), BlockId, BuildHasherDefault<KeyHasher>>,
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
            desk: Desk::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            regions: Default::default(),
            filling: 0,
            by_spot: HashMap::default(),
            twins: HashMap::default(),
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
        let (made, cells) = self.make(rip, mode, place, second, before, source, context)?;
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
        Some(self.insert(rip, mode, place, second, &before[..len], checks, made, cells, context))
    }

    /// A translation for which there is room, and the cells of its pages.
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
    ) -> Option<(Translation, (u32, Option<u32>))> {
        for _ in 0..2 {
            if !self.has_number() {
                self.evict(context);
            }
            let cell = self.cell(rip, mode, place, context);
            // The second must not take the first one's number, which is no block's yet.
            self.cells.keep(Some(cell));
            let second_cell = second.map(|second| self.cell(next_page(rip, mode), mode, second, context));
            self.cells.keep(None);
            let block = self.next_id();
            let request = Request {
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
            };
            let made = emit::translate(&request, &mut self.desk)?;
            if made.links.len() > MOST_LINKS as usize {
                return None;
            }
            if room(&made, source.is_some()) + 64 <= self.code.free() {
                return Some((made, (cell, second_cell)));
            }
            self.evict(context);
        }
        None
    }

    /// Whether there is a number for another block.
    fn has_number(&self) -> bool {
        !self.free.is_empty() || self.blocks.len() < MOST_BLOCKS
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
        (cell, second_cell): (u32, Option<u32>),
        context: &mut ContextCell,
    ) -> BlockId {
        let key = Key { rip, at: place.at, mode };
        if let Some(&old) = self.by_spot.get(&spot(cell, rip, mode)) {
            self.kill(old);
        }
        let second = second.zip(second_cell);
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
            relocations: None,
            twin: id,
            remembered: false,
        };
        self.desk.recycle(block.describe(bytes, Vec::new(), made));
        self.enter(block);
        if let Some((second, cell)) = second {
            self.cells.hold(cell, id);
            self.vouch(cell, second, context);
        }
        self.counts.translated += 1;
        self.vouch(cell, place, context);
        id
    }

    /// A block that begins where code memory was filled last gets its number, [`Cache::next_id`].
    fn enter(&mut self, block: Block) {
        let id = self.next_id();
        let (key, cell, entry) = (block.key, block.cell, block.entry);
        let moves = block.moves();
        if self.free.pop().is_some() {
            self.blocks[id as usize] = block;
        } else {
            self.blocks.push(block);
        }
        self.regions[self.filling].push((entry, id));
        self.by_spot.insert(spot(cell, key.rip, key.mode), id);
        self.look_up_next(id);
        self.cells.hold(cell, id);
        if moves {
            self.join_twins(id);
        }
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
    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// See [`Spot`].
fn spot(cell: u32, rip: u64, mode: Mode) -> Spot {
    (cell, (rip % PAGE_SIZE) as u16, mode)
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
