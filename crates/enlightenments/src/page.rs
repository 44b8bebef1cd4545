//! Words in guest memory that a guest and its machine share.
//!
//! A guest names a place once, by an MSR; what isn't RAM is refused then, so that later accesses can't fail. Other vCPUs may
//! change the words at any time.

use memory::{GuestMemory, RamOffset, Word};
use x86::Gpa;

/// A structure in guest memory that lies within a page.
#[derive(Clone)]
pub(crate) struct Place {
    memory: GuestMemory,
    at: RamOffset,
}

impl Place {
    /// `bytes` bytes at `gpa`; `None` where they aren't RAM or cross a page.
    pub(crate) fn new(memory: &GuestMemory, gpa: Gpa, bytes: u64) -> Option<Self> {
        if gpa.offset() + bytes > x86::address::PAGE_SIZE {
            return None;
        }
        let at = memory.layout().locate_range(gpa, bytes)?;
        Some(Self { memory: memory.clone(), at })
    }

    fn at(&self, offset: u64) -> RamOffset {
        RamOffset(self.at.0 + offset)
    }

    pub(crate) fn load<T: Word>(&self, offset: u64) -> T {
        self.memory.load(self.at(offset))
    }

    pub(crate) fn store<T: Word>(&self, offset: u64, value: T) {
        let _ = self.memory.store(self.at(offset), value);
    }

    pub(crate) fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let _ = self.memory.store_bytes(self.at(offset), bytes);
    }

    /// Sets bits of a byte: what it was.
    pub(crate) fn set_bits(&self, offset: u64, bits: u8) -> u8 {
        self.update(offset, |byte| byte | bits)
    }

    /// Exchanges a byte: what it was.
    pub(crate) fn swap(&self, offset: u64, new: u8) -> u8 {
        self.update(offset, |_| new)
    }

    fn update(&self, offset: u64, change: impl Fn(u8) -> u8) -> u8 {
        let mut seen = self.load::<u8>(offset);
        loop {
            let (old, _) = self.memory.compare_exchange(self.at(offset), seen, change(seen));
            if old == seen {
                return old;
            }
            seen = old;
        }
    }

    /// Writes a structure that readers take for whole only where its version, the 32 bits at `version`, is even and hasn't changed
    /// meanwhile.
    pub(crate) fn write_versioned(&self, version: u64, write: impl FnOnce(&Self)) {
        let odd = self.load::<u32>(version) | 1;
        self.store(version, odd);
        write(self);
        self.store(version, odd.wrapping_add(1));
    }
}

/// A byte whose bit 0 the guest clears to say that it has ended an interrupt.
#[derive(Clone)]
pub struct Flag(pub(crate) Place);

impl Flag {
    /// The guest may end the interrupt by clearing it.
    pub fn set(&self) {
        self.0.store(0, 1u8);
    }

    /// Takes that back. True: the guest had ended it.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(0, 0) & 1 == 0
    }
}
