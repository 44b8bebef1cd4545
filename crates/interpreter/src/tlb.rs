//! The translation look-aside buffer: page of linear addresses -> page of RAM.
//!
//! Behaves as the manual allows a TLB to behave (SDM 3A 4.10): entries may vanish at any time and stay until they are
//! invalidated. Only RAM is cached, only translations whose A bit (for writes: D bit) is already set, and not while alignment
//! checks or breakpoints want to see every access. Owned by one vCPU; no locks.
//!
//! An entry's tag is its page's address with the current generation in the low 12 bits: a whole flush is one increment.

use memory::RamOffset;
use x86::address::PAGE_SIZE;

const ENTRIES: usize = 1024;
const CODE_ENTRIES: usize = 256;
/// Sets of data entries: one for each kind of access that the walk judges differently, and one that stays empty.
const SETS: usize = 4;

/// User accesses.
const USER: usize = 0;
/// Supervisor accesses that SMAP applies to; implicit ones always use this set.
pub(crate) const SUPERVISOR: usize = 1;
/// Supervisor accesses while RFLAGS.AC, or CR4.SMAP clear, lifts SMAP.
const SUPERVISOR_OPEN: usize = 2;
/// Never filled: every access takes the slow path.
const CHECKED: usize = 3;

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
const GENERATIONS: u64 = PAGE_SIZE - 1;

#[derive(Clone, Copy)]
struct Entry {
    read: u64,
    write: u64,
    ram: u64,
}

#[derive(Clone, Copy)]
struct CodeEntry {
    tag: u64,
    ram: u64,
}

/// Tag of an entry that matches nothing: generation 0 is never current.
const EMPTY: u64 = 0;

pub(crate) struct Tlb {
    /// The set that data accesses of the running code use.
    data: usize,
    /// The same without the detour over [`CHECKED`].
    kind: usize,
    user: bool,
    generation: u64,
    /// Counts flushes of any extent; block look-ups by linear address compare it.
    epoch: u64,
    /// Linear range in which pages larger than 4 KiB have been cached since the last flush.
    large: (u64, u64),
    sets: Box<[[Entry; ENTRIES]; SETS]>,
    code: Box<[[CodeEntry; CODE_ENTRIES]; 2]>,
    /// What was dropped since somebody last asked.
    dropped: Dropped,
}

/// Which translations the guest has invalidated: for engines that keep some of their own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Dropped {
    /// All of them.
    pub all: bool,
    /// All but global ones (SDM 3A 4.10.2.4).
    pub local: bool,
    /// Those of these linear addresses, global ones too.
    pub addresses: Vec<u64>,
}

/// Addresses noted one by one before it is all of them.
const MOST_ADDRESSES: usize = 64;

/// What a walk found, as a TLB keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) page: u64,
    pub(crate) ram: RamOffset,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) large: bool,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let none = Entry { read: EMPTY, write: EMPTY, ram: 0 };
        let no_code = CodeEntry { tag: EMPTY, ram: 0 };
        Self {
            data: SUPERVISOR_OPEN,
            kind: SUPERVISOR_OPEN,
            user: false,
            generation: 1,
            epoch: 0,
            large: (u64::MAX, 0),
            sets: Box::new([[none; ENTRIES]; SETS]),
            code: Box::new([[no_code; CODE_ENTRIES]; 2]),
            dropped: Dropped::default(),
        }
    }

    /// Chooses the set for the mode: privilege, whether SMAP is lifted, whether every access must be looked at.
    pub(crate) fn select(&mut self, user: bool, smap_off: bool, checked: bool) {
        self.user = user;
        self.kind = match (user, smap_off) {
            (true, _) => USER,
            (false, false) => SUPERVISOR,
            (false, true) => SUPERVISOR_OPEN,
        };
        self.data = if checked { CHECKED } else { self.kind };
    }

    pub(crate) fn current_set(&self) -> usize {
        self.data
    }

    /// Changes whenever a translation may have been dropped.
    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    #[inline(always)]
    fn tag(&self, address: u64) -> u64 {
        address & PAGE_MASK | self.generation
    }

    /// The RAM byte behind `address`, if `size` bytes may be read there without crossing the page.
    #[inline(always)]
    pub(crate) fn read(&self, address: u64, size: u64) -> Option<RamOffset> {
        let entry = &self.sets[self.data & (SETS - 1)][index(address)];
        let offset = address & !PAGE_MASK;
        (entry.read == self.tag(address) && offset + size <= PAGE_SIZE).then(|| RamOffset(entry.ram + offset))
    }

    /// The RAM byte behind `address`, if `size` bytes may be written there without crossing the page.
    #[inline(always)]
    pub(crate) fn write(&self, address: u64, size: u64) -> Option<RamOffset> {
        let entry = &self.sets[self.data & (SETS - 1)][index(address)];
        let offset = address & !PAGE_MASK;
        (entry.write == self.tag(address) && offset + size <= PAGE_SIZE)
            .then(|| RamOffset(entry.ram + offset))
    }

    /// As [`Tlb::read`], for implicit supervisor accesses.
    pub(crate) fn read_implicit(&self, address: u64, size: u64) -> Option<RamOffset> {
        let entry = &self.sets[SUPERVISOR][index(address)];
        let offset = address & !PAGE_MASK;
        (entry.read == self.tag(address) && offset + size <= PAGE_SIZE).then(|| RamOffset(entry.ram + offset))
    }

    /// The RAM byte behind `address` if code may be fetched there.
    #[inline(always)]
    pub(crate) fn fetch(&self, address: u64) -> Option<RamOffset> {
        let entry = &self.code[usize::from(self.user)][code_index(address)];
        (entry.tag == self.tag(address)).then(|| RamOffset(entry.ram + (address & !PAGE_MASK)))
    }

    pub(crate) fn fill_data(&mut self, set: usize, fill: Fill) {
        if set == CHECKED {
            return;
        }
        self.note_large(&fill);
        let tag = self.tag(fill.page);
        let entry = &mut self.sets[set][index(fill.page)];
        // The entry may already hold the page with the other right.
        let same = entry.ram == fill.ram.0;
        let keep = |old: u64| if same && old == tag { tag } else { EMPTY };
        *entry = Entry {
            read: if fill.read { tag } else { keep(entry.read) },
            write: if fill.write { tag } else { keep(entry.write) },
            ram: fill.ram.0,
        };
    }

    pub(crate) fn fill_code(&mut self, fill: Fill) {
        self.note_large(&fill);
        let tag = self.tag(fill.page);
        self.code[usize::from(self.user)][code_index(fill.page)] = CodeEntry { tag, ram: fill.ram.0 };
    }

    fn note_large(&mut self, fill: &Fill) {
        if fill.large {
            // A 1 GiB page reaches no further than this on either side.
            const REACH: u64 = 1 << 30;
            let start = fill.page & !(REACH - 1);
            self.large = (self.large.0.min(start), self.large.1.max(start | (REACH - 1)));
        }
    }

    /// Drops everything.
    pub(crate) fn flush(&mut self) {
        self.dropped.all = true;
        self.forget();
    }

    /// Drops what a change of address space drops. Global pages might stay, but this TLB doesn't know which they are.
    pub(crate) fn flush_local(&mut self) {
        self.dropped.local = true;
        self.forget();
    }

    /// Whether anything was dropped since [`Tlb::take_dropped`].
    pub(crate) fn has_dropped(&self) -> bool {
        self.dropped.all || self.dropped.local || !self.dropped.addresses.is_empty()
    }

    /// What was dropped since this was last asked.
    pub(crate) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    fn forget(&mut self) {
        self.epoch += 1;
        self.large = (u64::MAX, 0);
        self.generation += 1;
        if self.generation > GENERATIONS {
            self.generation = 1;
            for entry in self.sets.as_flattened_mut() {
                (entry.read, entry.write) = (EMPTY, EMPTY);
            }
            for entry in self.code.as_flattened_mut() {
                entry.tag = EMPTY;
            }
        }
    }

    /// Drops the translations of one address, of whatever page size (INVLPG; SDM 3A 4.10.4.1).
    pub(crate) fn flush_address(&mut self, address: u64) {
        if self.dropped.addresses.len() < MOST_ADDRESSES {
            self.dropped.addresses.push(address);
        } else {
            self.dropped.all = true;
        }
        if (self.large.0..=self.large.1).contains(&address) {
            // Pieces of the large page may be anywhere.
            return self.forget();
        }
        self.epoch += 1;
        let page = address & PAGE_MASK;
        for set in self.sets.iter_mut() {
            let entry = &mut set[index(page)];
            if entry.read & PAGE_MASK == page || entry.write & PAGE_MASK == page {
                (entry.read, entry.write) = (EMPTY, EMPTY);
            }
        }
        for set in self.code.iter_mut() {
            let entry = &mut set[code_index(page)];
            if entry.tag & PAGE_MASK == page {
                entry.tag = EMPTY;
            }
        }
    }
}

#[inline(always)]
fn index(address: u64) -> usize {
    (address / PAGE_SIZE) as usize % ENTRIES
}

#[inline(always)]
fn code_index(address: u64) -> usize {
    (address / PAGE_SIZE) as usize % CODE_ENTRIES
}
