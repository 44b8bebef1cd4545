//! The stack on which translated code keeps host return addresses.
//!
//! It grows down to a page that isn't accessible. A guest that calls deeper than it reaches makes the host fault there, and the
//! signal handler starts the stack over: returns that then find nothing look up their target.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::io;
use std::ptr::{NonNull, null_mut};

/// Bytes for return addresses.
const STACK: usize = 128 << 10;
/// The inaccessible part below.
const GUARD: usize = 64 << 10;

pub(crate) struct ReturnStack {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for ReturnStack {}

impl ReturnStack {
    /// An empty stack without a bottom yet.
    pub(crate) fn new() -> io::Result<Self> {
        let len = STACK + GUARD;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE) }?;
        let stack = Self { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)? };
        // SAFETY: the range has just been mapped and is used by nobody yet.
        unsafe { mprotect(base, GUARD, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Sets where a return that finds nothing goes.
    pub(crate) fn set_bottom(&mut self, address: u64) {
        // SAFETY: the slot lies in the mapping; translated code isn't running.
        unsafe { (self.start() as *mut u64).write(address) }
    }

    /// The stack pointer to start with: it points to the slot of the bottom.
    pub(crate) fn start(&self) -> u64 {
        self.base.as_ptr() as u64 + (STACK + GUARD - 64) as u64
    }

    /// The inaccessible range.
    pub(crate) fn guard(&self) -> std::ops::Range<u64> {
        let base = self.base.as_ptr() as u64;
        base..base + GUARD as u64
    }
}

impl Drop for ReturnStack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing runs on it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), STACK + GUARD) };
    }
}
