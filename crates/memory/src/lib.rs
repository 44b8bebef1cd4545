//! Guest RAM: the only crate that touches a guest byte.
//!
//! RAM is one anonymous mapping of the host, backed only where touched, so a guest may be given more than the host
//! has. A guest-physical address is turned into a [`RamOffset`] once ([`GuestMemory::locate`]) and that offset may be
//! kept, for instance in a TLB: it stays valid as long as the memory exists, and every access checks it against the
//! end of RAM.
//!
//! Loads and stores up to 8 bytes are done by one host instruction, whatever their alignment, and so have exactly
//! the atomicity and ordering that the host CPU gives (SDM 3A 8.1.1, 8.2).
//!
//! # Structures derived from guest memory
//!
//! Whoever derives something from guest bytes (decoded instructions, translations) marks the granules it
//! read ([`GuestMemory::mark_derived`]) and remembers the page's [generation](GuestMemory::generation). Every store,
//! by whatever writer - a vCPU, a device, the debugger -, that touches a marked granule advances the generation of
//! its page and says so to the writer ([`Written::Derived`]). A structure whose remembered generation differs from
//! the page's is stale: its owner compares the bytes it was made from, and keeps or drops it. Stores to other
//! granules of the page cost one look at a flag byte. Each page has the set of *parties* ([`GuestMemory::new_party`]) that have marked it:
//! only they are told, each by its own log of pages ([`GuestMemory::written_since`]), whose position is that party's *epoch*.
//!
//! Who has to know before a store is made sets a [`Guard`].
//!
//! A vCPU that waits for a store to a line uses the same marks ([`LineMonitor`]).
//!
//! Marks may be taken back ([`GuestMemory::unmark_derived`]), by anybody and for everybody: that counts as a write, so
//! who finds its generation out of date marks again before it compares.
//!
//! Threads: everything here may be used by any number of threads at once. Locks: one for changes of marks, held while direct
//! writers are waited for, taken by nobody who is one at that moment; one for the list of monitors, a leaf; and a process-wide one
//! for `LOCK`ed accesses that cross a page.

mod direct;
mod dma;
mod log;
#[cfg(test)]
mod log_tests;
mod map;
mod monitor;
mod page;
mod raw;
mod resident;
mod sync;
mod traces;

pub use direct::DirectWriter;
pub use dma::{Dma, DmaRegion, Notice};
pub use map::{Layout, Region};
pub use monitor::LineMonitor;
pub use raw::{Ram, RamOffset, Word};
pub use resident::{resident_bytes, resident_in_all};
pub use traces::{Guard, Guarded, TraceCounts, Writer};

use page::{GUARDED, PageInfo};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use x86::Gpa;
use x86::address::PAGE_SIZE;

/// Bytes in a granule, the unit in which derived structures say what they depend on.
pub const GRANULE: u64 = 64;

/// What went wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("the host has no {bytes} bytes of address space for guest memory (is a ulimit -v set?)")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The regions overlap, are not page-aligned, or are not in ascending order.
    #[error("guest memory regions must be ascending, disjoint and page-aligned")]
    Layout,
    /// The range isn't entirely RAM.
    #[error("{len} bytes at guest-physical {at} are not all RAM")]
    NotRam {
        /// First byte.
        at: Gpa,
        /// Length in bytes.
        len: u64,
    },
}

/// What a store hit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Written {
    /// Ordinary memory.
    Plain,
    /// Bytes from which something was derived; the page's generation has been advanced.
    Derived,
}

/// The memory of one machine. Cheap to clone; all clones are the same memory and the same party.
#[derive(Clone)]
pub struct GuestMemory {
    ram: Ram,
    party: traces::Party,
    /// One byte a page: non-zero where a store must look at `pages`.
    flags: raw::Zeroed<AtomicU8>,
    pages: raw::Zeroed<PageInfo>,
    shared: Arc<Shared>,
}

struct Shared {
    layout: Layout,
    /// Who is told of stores.
    traces: traces::Traces,
    /// Who reads and writes RAM by host address.
    directs: direct::Directs,
    /// Held while marks are made and taken back.
    marking: Mutex<()>,
    /// Who waits for a store to a line.
    monitors: monitor::Monitors,
}

impl GuestMemory {
    /// Maps memory for the given layout.
    ///
    /// # Errors
    /// [`MemoryError::Map`] where the host refuses that much address space.
    pub fn new(layout: Layout) -> Result<Self, MemoryError> {
        let bytes = layout.bytes();
        let pages = bytes / PAGE_SIZE;
        let map = |source| MemoryError::Map { bytes, source };
        let traces = traces::Traces::new();
        Ok(Self {
            party: traces.last_party(),
            ram: Ram::map(bytes).map_err(map)?,
            flags: raw::Zeroed::map(pages).map_err(map)?,
            pages: raw::Zeroed::map(pages).map_err(map)?,
            shared: Arc::new(Shared {
                layout,
                traces,
                directs: direct::Directs::new(),
                marking: Mutex::new(()),
                monitors: monitor::Monitors::new(),
            }),
        })
    }

    /// Where RAM lies in the guest-physical address space.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// The offset of the RAM byte at `gpa`, or `None` where there is no RAM.
    #[inline]
    #[must_use]
    pub fn locate(&self, gpa: Gpa) -> Option<RamOffset> {
        self.shared.layout.locate(gpa)
    }

    /// Reads up to 8 bytes. The access must not cross a page (of RAM offsets neighbouring in guest-physical space).
    #[inline]
    #[must_use]
    pub fn load<T: Word>(&self, at: RamOffset) -> T {
        self.ram.load(at)
    }

    /// Writes up to 8 bytes within a page.
    #[inline]
    pub fn store<T: Word>(&self, at: RamOffset, value: T) -> Written {
        self.ask(at, size_of::<T>() as u64, Writer::Cpu);
        self.ram.store(at, value);
        self.note(at, size_of::<T>() as u64)
    }

    /// `LOCK CMPXCHG` on 1, 2, 4 or 8 bytes in one page or two that follow each other in RAM; any alignment. Gives the old value and what was hit.
    #[inline]
    pub fn compare_exchange<T: Word>(&self, at: RamOffset, expected: T, new: T) -> (T, Written) {
        self.ask(at, size_of::<T>() as u64, Writer::Cpu);
        let old = self.ram.compare_exchange(at, expected, new);
        // A failed exchange writes the old value back (SDM 2A CMPXCHG); derived bytes are unchanged by that.
        let written = if old == expected { self.note(at, size_of::<T>() as u64) } else { Written::Plain };
        (old, written)
    }

    /// `LOCK CMPXCHG16B`; `at` must be 16-byte aligned. Gives the old value and what was hit.
    #[inline]
    pub fn compare_exchange_16(&self, at: RamOffset, expected: u128, new: u128) -> (u128, Written) {
        self.ask(at, 16, Writer::Cpu);
        let old = self.ram.compare_exchange_16(at, expected, new);
        let written = if old == expected { self.note(at, 16) } else { Written::Plain };
        (old, written)
    }

    /// Copies out of RAM, from one page or several that neighbour in RAM.
    #[inline]
    pub fn load_bytes(&self, at: RamOffset, into: &mut [u8]) {
        self.ram.load_bytes(at, into);
    }

    /// Copies into RAM, to one page or several that neighbour in RAM.
    #[inline]
    pub fn store_bytes(&self, at: RamOffset, from: &[u8]) -> Written {
        self.ask(at, from.len() as u64, Writer::Cpu);
        self.ram.store_bytes(at, from);
        self.note(at, from.len() as u64)
    }

    /// `len` bytes from one place in RAM to another as `REP MOVSB` with DF clear does it: ascending, byte by byte in
    /// effect, also where the ranges overlap.
    pub fn copy_ascending(&self, from: RamOffset, to: RamOffset, len: u64) -> Written {
        self.ask(to, len, Writer::Cpu);
        self.ram.copy_ascending(from, to, len);
        self.note(to, len)
    }

    /// Fills `count` elements, as `REP STOS` with DF clear does it.
    pub fn fill<T: Word>(&self, at: RamOffset, value: T, count: u64) -> Written {
        self.ask(at, count * size_of::<T>() as u64, Writer::Cpu);
        self.ram.fill(at, value, count);
        self.note(at, count * size_of::<T>() as u64)
    }

    /// Reads guest-physical memory that may span pages, as a device or the machine does it.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] where part of the range isn't RAM; nothing is read then.
    pub fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.range(at, into.len() as u64)?;
        self.load_bytes(from, into);
        Ok(())
    }

    /// Writes guest-physical memory that may span pages, as a device or the machine does it.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] where part of the range isn't RAM; nothing is written then.
    pub fn write(&self, at: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.range(at, from.len() as u64)?;
        let len = from.len() as u64;
        self.ask(to, len, Writer::Device);
        self.ram.store_bytes(to, from);
        let _ = self.note_by(to, len, Writer::Device);
        Ok(())
    }

    /// Fills guest-physical memory with zeros, as the machine does it when it loads a kernel.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] where part of the range isn't RAM.
    pub fn zero(&self, at: Gpa, len: u64) -> Result<(), MemoryError> {
        let to = self.range(at, len)?;
        self.ask(to, len, Writer::Device);
        self.ram.fill(to, 0u8, len);
        let _ = self.note_by(to, len, Writer::Device);
        Ok(())
    }

    fn range(&self, at: Gpa, len: u64) -> Result<RamOffset, MemoryError> {
        self.shared.layout.locate_range(at, len).ok_or(MemoryError::NotRam { at, len })
    }

    /// Says that something is about to be derived from `len` bytes at `at`, which lie in one page, and gives the page's
    /// [generation](Self::generation). Read the bytes after this.
    pub fn mark_derived(&self, at: RamOffset, len: u64) -> u32 {
        let mask = granules(at, len);
        let info = self.pages.at(at.frame());
        loop {
            self.mark_granules(at, mask);
            let generation = info.generation.load(Ordering::Acquire);
            // Marks that were taken back before the generation was read would not be missed by it.
            if info.is_settled(mask) {
                return generation;
            }
        }
    }

    /// The same for several granules of the page at `at`, one bit each. Who finds out by [`written_since`](Self::written_since)
    /// need not ask for the generation: marks that are taken back after this are in there.
    pub fn mark_granules(&self, at: RamOffset, mask: u64) {
        let frame = at.frame();
        let info = self.pages.at(frame);
        // Another thread's mark alone is not enough: its barrier must be over too. The same goes for a bit that others have.
        let settled = info.is_settled(mask);
        if settled && !self.party.shared && info.tells(self.party.bit) {
            return;
        }
        let _order = self.order_marks();
        info.announce(self.flags.at(frame), mask, self.party.bit);
        if info.settled.load(Ordering::Acquire) == 0 {
            self.shared.directs.mark(frame);
        } else if !settled && info.watched.load(Ordering::SeqCst) != 0 {
            // Direct writers look first and store then. Either one looks after this thread has looked at `watched`, and sees the
            // mark, or it is running here, and has stored when it is seen not to.
            self.shared.directs.await_all();
        }
        // A writer stores and then looks at the flag, without a fence between. This barrier, run on all threads of the
        // process, makes sure that a store that did not see flag, mark or party is visible to the reads that follow here.
        raw::process_barrier();
        info.settle(mask);
    }

    /// Takes back marks of the page at `at`, one bit for each granule, whoever made them; guarded ones stay. This counts as a write to
    /// the page: all that have marked it are told, and who still depends on it has to mark again before comparing bytes. Says whether
    /// this party was told, too.
    pub fn unmark_derived(&self, at: RamOffset, mask: u64) -> bool {
        let frame = at.frame();
        let info = self.pages.at(frame);
        let told = {
            let _order = self.order_marks();
            let told = info.parties.load(Ordering::SeqCst);
            self.clear_marks(frame, mask);
            told
        };
        info.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.traces.tell(frame, told);
        self.shared.monitors.hit(frame, mask);
        told & self.party.bit != 0
    }

    /// This party depends on nothing in the page at `at` any more and isn't told of it; marks that are nobody's then are taken back.
    /// For this party it counts as a write, as [`unmark_derived`](Self::unmark_derived) does for all: what it still has of the
    /// page after all has to be marked again. False: others depend on the page, its marks stay.
    pub fn leave_page(&self, at: RamOffset) -> bool {
        let frame = at.frame();
        let info = self.pages.at(frame);
        let alone = {
            let _order = self.order_marks();
            // A bit that others have, too, stays until nobody can have it.
            let alone = info.parties.load(Ordering::SeqCst) & !self.party.bit == 0;
            if alone {
                self.clear_marks(frame, u64::MAX);
            } else if !self.party.shared {
                info.parties.fetch_and(!self.party.bit, Ordering::SeqCst);
            }
            alone
        };
        info.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.traces.tell(frame, self.party.bit);
        if alone {
            self.shared.monitors.hit(frame, u64::MAX);
        }
        alone
    }

    /// Takes back marks of a page but for guarded granules. Changes of marks are locked out.
    fn clear_marks(&self, frame: u64, mask: u64) {
        let info = self.pages.at(frame);
        let flags = self.flags.at(frame);
        let guarded =
            if flags.load(Ordering::SeqCst) & GUARDED != 0 { self.shared.traces.guarded(frame) } else { 0 };
        info.clear(flags, mask, guarded);
    }

    fn set_guarded(&self, frame: u64, guarded: bool) {
        let _order = self.order_marks();
        let flags = self.flags.at(frame);
        if guarded {
            flags.fetch_or(GUARDED, Ordering::SeqCst);
        } else {
            flags.fetch_and(!GUARDED, Ordering::SeqCst);
        }
    }

    /// The granules of the page at `at` that something is derived from, one bit each.
    #[inline]
    #[must_use]
    pub fn marked_granules(&self, at: RamOffset) -> u64 {
        self.pages.at(at.frame()).granules.load(Ordering::SeqCst)
    }

    /// Host address of the word that [`marked_granules`](Self::marked_granules) shows, for translated code. A
    /// [`DirectWriter`] that is running and has got the address may store by host address where it has found the
    /// granules' bits clear just before: whoever marks one waits until it has stopped. Valid while any clone of this memory
    /// exists.
    #[must_use]
    pub fn watch_granules(&self, at: RamOffset) -> u64 {
        let info = self.pages.at(at.frame());
        info.watched.store(1, Ordering::SeqCst);
        std::ptr::from_ref(&info.granules) as u64
    }

    fn order_marks(&self) -> MutexGuard<'_, ()> {
        self.shared.marking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often marked bytes of the page at `at` have been written.
    #[inline]
    #[must_use]
    pub fn generation(&self, at: RamOffset) -> u32 {
        self.pages.at(at.frame()).generation.load(Ordering::Acquire)
    }

    /// Changes whenever the generation of a page does that this party has marked: as long as it stands, no generation need be looked
    /// at.
    #[inline]
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.party.inbox.position()
    }

    /// Host address of the eight bytes that [`epoch`](Self::epoch) reads, for translated code. Valid while any clone of this memory
    /// exists.
    #[must_use]
    pub fn epoch_address(&self) -> u64 {
        self.party.inbox.address()
    }

    /// Gives the pages (numbers as of [`RamOffset::frame`]) this party has marked whose generation has advanced since the epoch
    /// `seen` to `each`, and sets `seen` to the present epoch. False: there were too many, any page's may have.
    pub fn written_since(&self, seen: &mut u64, each: impl FnMut(u64)) -> bool {
        self.party.inbox.read(seen, each)
    }

    /// Host address of the RAM byte at `at`, for translated code. The rest of its page follows it. Reads and writes by this
    /// address see and make exactly what [`load`](Self::load) and [`store`](Self::store) do, but for the notice of
    /// derived bytes: for writing it may be used only as [`enter_direct`](Self::enter_direct) says. Valid while any clone
    /// of this memory exists.
    ///
    /// # Panics
    /// Beyond the end of RAM.
    #[must_use]
    pub fn host_address(&self, at: RamOffset) -> u64 {
        self.ram.host_address(at)
    }

    /// Whether anything is derived from the page at `at`.
    #[inline]
    #[must_use]
    pub fn is_derived(&self, at: RamOffset) -> bool {
        self.flags.at(at.frame()).load(Ordering::SeqCst) != 0
    }

    /// Makes known somebody who will write RAM by host address. `interrupt`, called by any thread, asks it to stop soon.
    #[must_use]
    pub fn add_direct_writer(&self, interrupt: Box<dyn Fn() + Send + Sync>) -> Arc<DirectWriter> {
        self.shared.directs.add(interrupt)
    }

    /// Before `writer` writes by host addresses: those of pages that were [marked](Self::is_derived) up to the position
    /// `seen` it has given up. False: more have been marked; look at [`marked_since`](Self::marked_since) and try again.
    /// After true, [`DirectWriter::leave`] has to follow.
    #[inline]
    #[must_use]
    pub fn enter_direct(&self, writer: &DirectWriter, seen: u64) -> bool {
        self.shared.directs.enter(writer, seen)
    }

    /// Gives the pages marked for the first time since position `seen` to `each` and sets `seen` to the present one.
    /// False: there were too many, any page may have been.
    pub fn marked_since(&self, seen: &mut u64, each: impl FnMut(u64)) -> bool {
        self.shared.directs.read(seen, each)
    }

    /// The present position for [`marked_since`](Self::marked_since).
    #[must_use]
    pub fn marks(&self) -> u64 {
        self.shared.directs.position()
    }

    /// Before a store: asks who guards the bytes.
    #[inline]
    fn ask(&self, at: RamOffset, len: u64, by: Writer) {
        let is_plain = self.flags.at(at.frame()).load(Ordering::Relaxed) & GUARDED == 0;
        if !(is_plain && at.offset_in_page() + len <= PAGE_SIZE) {
            self.ask_slow(at, len, by);
        }
    }

    #[cold]
    fn ask_slow(&self, at: RamOffset, len: u64, by: Writer) {
        for (part, len) in by_page(at, len) {
            if self.flags.at(part.frame()).load(Ordering::Relaxed) & GUARDED != 0 {
                self.shared.traces.ask(part, len, by);
            }
        }
    }

    /// After a store: tells who depends on the bytes.
    #[inline]
    fn note(&self, at: RamOffset, len: u64) -> Written {
        self.note_by(at, len, Writer::Cpu)
    }

    #[inline]
    fn note_by(&self, at: RamOffset, len: u64, by: Writer) -> Written {
        let first = at.frame();
        if self.flags.at(first).load(Ordering::Relaxed) == 0 && at.offset_in_page() + len <= PAGE_SIZE {
            return Written::Plain;
        }
        self.note_slow(at, len, by)
    }

    #[cold]
    fn note_slow(&self, at: RamOffset, len: u64, by: Writer) -> Written {
        let mut written = Written::Plain;
        for (part, len) in by_page(at, len) {
            let frame = part.frame();
            let mask = granules(part, len);
            if let Some(parties) = self.pages.at(frame).hit(self.flags.at(frame), mask) {
                self.shared.traces.count_event(by);
                self.shared.traces.tell(frame, parties);
                self.shared.monitors.hit(frame, mask);
                written = Written::Derived;
            }
        }
        written
    }

    /// Bytes of guest RAM that the host has backed with memory so far, where the host tells.
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        self.ram.resident()
    }
}

/// The parts of `len` bytes at `at` that lie in one page each.
fn by_page(at: RamOffset, len: u64) -> impl Iterator<Item = (RamOffset, u64)> {
    let end = at.0 + len;
    let mut from = at.0;
    std::iter::from_fn(move || {
        let to = end.min((from & !(PAGE_SIZE - 1)) + PAGE_SIZE);
        let part = (from < end).then_some((RamOffset(from), to - from));
        from = to;
        part
    })
}

/// The granules of one page that `len` bytes at `at` touch, one bit each; what lies beyond the page is left out.
#[must_use]
pub fn granules(at: RamOffset, len: u64) -> u64 {
    let first = at.offset_in_page() / GRANULE;
    let last = (at.offset_in_page() + len.max(1) - 1).min(PAGE_SIZE - 1) / GRANULE;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}
