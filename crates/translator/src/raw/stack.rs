//! The stacks on which translated code keeps host return addresses: the supervisor's and the user's, since a return must not come
//! back to code that was translated for the other.
//!
//! They grow down to pages that aren't accessible. A guest that calls deeper than they reach makes the host fault there, and the
//! signal handler starts the stack over: returns that then find nothing look up their target.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::io;
use std::ptr::{NonNull, null_mut};

/// Bytes for return addresses of each.
const STACK: usize = 128 << 10;
/// The inaccessible part below.
const GUARD: usize = 64 << 10;

/// One stack with the part below it.
const BYTES: usize = STACK + GUARD;

pub(crate) struct ReturnStacks {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for ReturnStacks {}

impl ReturnStacks {
    /// Empty stacks, whose returns that find nothing go to `bottoms`.
    pub(crate) fn new(bottoms: [u64; 2]) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(null_mut(), 2 * BYTES, protection, MapFlags::PRIVATE) }?;
        let stacks = Self { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)? };
        for (index, bottom) in bottoms.into_iter().enumerate() {
            // SAFETY: the range has just been mapped and is used by nobody yet, and the slot lies in it.
            unsafe {
                mprotect(base.cast::<u8>().add(index * BYTES).cast(), GUARD, MprotectFlags::empty())?;
                (stacks.starts()[index] as *mut u64).write(bottom);
            }
        }
        Ok(stacks)
    }

    /// The stack pointers to start with: they point to the slots of the bottoms.
    pub(crate) fn starts(&self) -> [u64; 2] {
        let base = self.base.as_ptr() as u64;
        [1, 2].map(|end| base + (end * BYTES - 64) as u64)
    }

    /// The inaccessible ranges.
    pub(crate) fn guards(&self) -> [(u64, u64); 2] {
        let base = self.base.as_ptr() as u64;
        [0, 1].map(|index| base + (index * BYTES) as u64).map(|start| (start, start + GUARD as u64))
    }
}

impl Drop for ReturnStacks {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing runs on it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), 2 * BYTES) };
    }
}
