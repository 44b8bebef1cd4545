//! Pages for keys: locked, left out of core dumps and of children, wiped before they go back; and files that are inherited. Called by
//! [`secret`](crate::secret) only.

#![allow(unsafe_code, reason = "mappings and what lies in them have no safe form")]

use rustix::io::FdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::slice;
use zeroize::Zeroize;

/// The size to which mappings are rounded; Linux refuses nothing that is a multiple of it.
const PAGE: usize = 4096;

/// Zeroed pages of our own.
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
    /// The host keeps them in memory.
    pub(crate) locked: bool,
}

// SAFETY: the pages belong to this value alone, and plain bytes have no thread.
unsafe impl Send for Pages {}
// SAFETY: a shared reference only gives shared references to the bytes.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least so many bytes.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes
            .max(1)
            .checked_next_multiple_of(PAGE)
            .filter(|len| *len <= isize::MAX as usize)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut pages = Self { start, len, locked: false };
        let at = pages.start.as_ptr().cast();
        // SAFETY: the range is the mapping just made; locking and these advices change no byte of it in this process.
        unsafe {
            pages.locked = mlock(at, len).is_ok();
            madvise(at, len, Advice::LinuxDontDump)?;
            madvise(at, len, Advice::LinuxWipeOnFork)?;
        }
        Ok(pages)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, as long as `len`, initialised by the kernel, and lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: nobody has a reference to the mapping any more, and it is unmapped once.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A value in pages of its own.
pub(crate) struct Kept<T> {
    pages: Pages,
    value: NonNull<T>,
}

// SAFETY: the value is owned by this one and is `Send` itself.
unsafe impl<T: Send> Send for Kept<T> {}
// SAFETY: only shared references to the value are given out.
unsafe impl<T: Sync> Sync for Kept<T> {}

impl<T> Kept<T> {
    /// Moves a value there. What it leaves on the stack is the caller's to overwrite.
    pub(crate) fn new(value: T) -> io::Result<Self> {
        assert!(align_of::<T>() <= PAGE, "no type here is aligned to more than a page");
        let pages = Pages::new(size_of::<T>())?;
        let place: NonNull<T> = pages.start.cast();
        // SAFETY: the pages are writable, large enough, and aligned to a page.
        unsafe { place.as_ptr().write(value) };
        Ok(Self { pages, value: place })
    }

    pub(crate) fn locked(&self) -> bool {
        self.pages.locked
    }

    pub(crate) fn value(&self) -> &T {
        // SAFETY: written in `new`, dropped only with `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        // SAFETY: the value is alive and is dropped once; the pages are wiped and go after it.
        unsafe { ptr::drop_in_place(self.value.as_ptr()) };
    }
}

/// A file that whoever started this process has left open for it.
///
/// # Errors
/// There is none, or it is one of this process's own, which all close on exec.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::other("standard input, output and errors have other uses"));
    }
    // SAFETY: borrowed for two calls that any number is good for: they fail where nothing is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(io::ErrorKind::NotFound.into());
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody here has it: what this process opens closes on exec, and what is taken here does from now on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// No core dump of this process from now on, and no other process of the same user may look into it.
pub(crate) fn forbid_dumps() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}
