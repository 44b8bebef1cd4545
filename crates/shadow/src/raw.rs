//! The unsafe part of the virtual TLB: reservations of address space, and the entries in them.
//!
//! Entries are plain words that translated code reads on the vCPU's own thread, so Rust's accesses go through raw pointers.

#![expect(unsafe_code, reason = "the tables are mappings that translated code reads")]

use crate::Notes;
use crate::budget::Touched;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::io;
use std::ptr::{NonNull, null_mut};

/// Bytes between the two tables: first the block that all views of a vCPU share, then what is the view's own.
pub const SHARED_BYTES: usize = 1280 << 10;
/// The last of them, the view's own: its watched pages.
pub const OWN_BYTES: usize = 64 << 10;
/// Slots for watched pages; a page's is its number's low bits.
pub const WATCHED_SLOTS: usize = 256;
/// Offsets in the view's own bytes of three arrays with 8 bytes a slot: negated linear address of the page, host address minus
/// guest address, host address of the word with the page's marked granules.
pub const WATCHED_TAGS: usize = 0;
/// See [`WATCHED_TAGS`].
pub const WATCHED_DELTAS: usize = 8 * WATCHED_SLOTS;
/// See [`WATCHED_TAGS`].
pub const WATCHED_GRANULES: usize = 16 * WATCHED_SLOTS;
/// Pages of a 48-bit linear address space.
const PAGES: usize = 1 << 36;
const TABLE_BYTES: usize = PAGES * 8;
const VIEW_BYTES: usize = 2 * TABLE_BYTES + SHARED_BYTES;

/// The block that all views of a vCPU share, and a mapping of it for Rust code.
pub struct Shared {
    file: File,
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value; what happens in it is the owner's business.
unsafe impl Send for Shared {}

impl Shared {
    /// A block of zeros.
    ///
    /// # Errors
    /// The host's, where it refuses memory.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("ombra-vcpu", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, SHARED_BYTES as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap(null_mut(), SHARED_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, base })
    }

    /// The block's first byte. It ends where the views' [origin](View::origin) is.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), SHARED_BYTES) };
    }
}

/// One guest address space as one kind of access sees it. See the crate's head.
pub struct View {
    base: NonNull<u8>,
    pub(crate) notes: Notes,
    pub(crate) touched: Touched,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for View {}

impl View {
    /// An empty view.
    ///
    /// # Errors
    /// The host's, where it refuses the address space (1 TiB; a limit on it, or strict overcommit).
    pub fn new(shared: &Shared) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { mmap_anonymous(null_mut(), VIEW_BYTES, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let mut view = Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            notes: Notes::default(),
            touched: Touched::default(),
        };
        // SAFETY: the range has just been mapped. Touched sparsely, it must not be backed by huge pages. Where there
        // are none, the advice is refused, and not needed. It isn't kept over a fork or in a core file either.
        unsafe {
            let _ = madvise(base, VIEW_BYTES, Advice::LinuxNoHugepage);
            let _ = madvise(base, VIEW_BYTES, Advice::LinuxDontDump);
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        let bytes = SHARED_BYTES - OWN_BYTES;
        // SAFETY: replaces a part of the mapping made above, which nobody uses yet.
        unsafe {
            mmap(base.cast::<u8>().add(TABLE_BYTES).cast(), bytes, protection, flags, &shared.file, 0)
        }?;
        for slot in 0..WATCHED_SLOTS {
            view.empty_slot(slot);
        }
        Ok(view)
    }

    /// The host address that GS has to have. The shared block ends here.
    #[must_use]
    pub fn origin(&self) -> u64 {
        self.base.as_ptr() as u64 + (TABLE_BYTES + SHARED_BYTES) as u64
    }

    /// The host addresses of the tables, which are backed with memory as they are touched.
    #[must_use]
    pub fn tables(&self) -> std::ops::Range<u64> {
        let base = self.base.as_ptr() as u64;
        base..base + VIEW_BYTES as u64
    }

    fn entry(&self, address: u64, write: bool) -> *mut u64 {
        let page = (address >> 12) as usize & (PAGES - 1);
        let offset = if write { TABLE_BYTES - 8 * (page + 1) } else { TABLE_BYTES + SHARED_BYTES + 8 * page };
        // SAFETY: both expressions are inside the mapping for every page number below PAGES.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// The entry for reads at a linear address.
    #[must_use]
    pub fn read_entry(&self, address: u64) -> u64 {
        // SAFETY: `entry` points into the mapping; only this thread uses it.
        unsafe { self.entry(address, false).read() }
    }

    /// The entry for writes at a linear address.
    #[must_use]
    pub fn write_entry(&self, address: u64) -> u64 {
        // SAFETY: as above.
        unsafe { self.entry(address, true).read() }
    }

    pub(crate) fn set_read(&mut self, address: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.entry(address, false).write(value) }
    }

    pub(crate) fn set_write(&mut self, address: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.entry(address, true).write(value) }
    }

    /// Empties all entries of a page; says whether there were any. A table page that was never touched isn't touched by this
    /// either, beyond a look.
    pub(crate) fn clear(&mut self, address: u64) -> bool {
        // What can't be read can't be written.
        if self.read_entry(address) == 0 {
            return false;
        }
        self.set_read(address, 0);
        if self.write_entry(address) != 0 {
            self.set_write(address, 0);
        }
        self.clear_watched(address);
        true
    }

    /// Empties all entries from `address` on, and gives their memory back to the host. Both are multiples of 2 MiB.
    pub(crate) fn discard(&mut self, address: u64, len: u64) {
        assert!((address | len).is_multiple_of(1 << 21), "whole pages of entries");
        let pages = (len >> 12) as usize;
        let last = address.wrapping_add(len - 1);
        for from in [self.entry(address, false), self.entry(last, true)] {
            // SAFETY: `pages` entries from there are inside the mapping, private and anonymous: they read as zero afterwards.
            let done = unsafe { madvise(from.cast(), 8 * pages, Advice::LinuxDontNeed) };
            if done.is_err() {
                // SAFETY: as above; nobody else uses them.
                unsafe { from.write_bytes(0, pages) };
            }
        }
        for slot in 0..WATCHED_SLOTS {
            // SAFETY: `own_word` points into the mapping; only this thread uses it.
            let page = unsafe { self.own_word(WATCHED_TAGS, slot).read() }.wrapping_neg();
            if page.wrapping_sub(address) & (PAGES as u64 * 4096 - 1) < len {
                self.empty_slot(slot);
            }
        }
    }

    /// Empties both tables, and gives their memory back to the host with all that it has spent to map them.
    pub(crate) fn discard_all(&mut self) {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        for offset in [0, TABLE_BYTES + SHARED_BYTES] {
            // SAFETY: inside the mapping, and replaces memory that nobody else uses by the same, empty.
            unsafe {
                let table = self.base.as_ptr().add(offset).cast();
                let fresh = mmap_anonymous(table, TABLE_BYTES, ProtFlags::READ | ProtFlags::WRITE, flags);
                assert!(fresh.is_ok(), "address space that was had can be had again");
                let _ = madvise(table, TABLE_BYTES, Advice::LinuxNoHugepage);
                let _ = madvise(table, TABLE_BYTES, Advice::LinuxDontDump);
            }
        }
        for slot in 0..WATCHED_SLOTS {
            self.empty_slot(slot);
        }
    }

    fn own_word(&self, array: usize, slot: usize) -> *mut u64 {
        assert!(slot < WATCHED_SLOTS, "a slot");
        // SAFETY: the three arrays are inside the view's own bytes.
        unsafe { self.base.as_ptr().add(TABLE_BYTES + SHARED_BYTES - OWN_BYTES + array + 8 * slot).cast() }
    }

    fn empty_slot(&mut self, slot: usize) {
        // An address that belongs into another slot is never found here.
        let elsewhere = ((slot as u64 ^ 1) << 12).wrapping_neg();
        // SAFETY: `own_word` points into the mapping; only this thread uses it.
        unsafe { self.own_word(WATCHED_TAGS, slot).write(elsewhere) }
    }

    /// Forgets that a page is watched.
    pub(crate) fn clear_watched(&mut self, address: u64) {
        let slot = (address >> 12) as usize % WATCHED_SLOTS;
        // SAFETY: as above.
        if unsafe { self.own_word(WATCHED_TAGS, slot).read() } == (address & !0xfff).wrapping_neg() {
            self.empty_slot(slot);
        }
    }

    pub(crate) fn set_watched(&mut self, page: u64, delta: u64, granules: u64) {
        let slot = (page >> 12) as usize % WATCHED_SLOTS;
        // SAFETY: as above.
        unsafe {
            self.own_word(WATCHED_TAGS, slot).write(page.wrapping_neg());
            self.own_word(WATCHED_DELTAS, slot).write(delta);
            self.own_word(WATCHED_GRANULES, slot).write(granules);
        }
    }

    /// The difference and the granules' address of a page that is watched.
    #[must_use]
    pub fn watched(&self, address: u64) -> Option<(u64, u64)> {
        let slot = (address >> 12) as usize % WATCHED_SLOTS;
        // SAFETY: as above.
        unsafe {
            let tag = self.own_word(WATCHED_TAGS, slot).read();
            (tag == (address & !0xfff).wrapping_neg()).then(|| {
                (self.own_word(WATCHED_DELTAS, slot).read(), self.own_word(WATCHED_GRANULES, slot).read())
            })
        }
    }

    /// A word of the shared block, as this view shows it.
    ///
    /// # Panics
    /// Where `offset` isn't that of an aligned word in the block.
    #[must_use]
    pub fn read_shared(&self, offset: usize) -> u64 {
        // SAFETY: `shared_word` checked the offset.
        unsafe { self.shared_word(offset).read() }
    }

    /// Changes a word of the shared block.
    ///
    /// # Panics
    /// As [`View::read_shared`].
    pub fn write_shared(&self, offset: usize, value: u64) {
        // SAFETY: `shared_word` checked the offset.
        unsafe { self.shared_word(offset).write(value) }
    }

    fn shared_word(&self, offset: usize) -> *mut u64 {
        assert!(
            offset.is_multiple_of(8) && offset < SHARED_BYTES - OWN_BYTES,
            "not a word of the shared block"
        );
        // SAFETY: just checked.
        unsafe { self.base.as_ptr().add(TABLE_BYTES + offset).cast() }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no code runs with this view any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), VIEW_BYTES) };
    }
}
