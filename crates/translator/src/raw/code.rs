//! Memory for translated code: one memory file mapped twice, once to write and once to run (W^X).

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::{NonNull, null_mut};

/// Code memory: what stays, at its start, and after it regions of equal length, which are filled in turn, each from its start.
pub(crate) struct CodeMemory {
    write: NonNull<u8>,
    run: NonNull<u8>,
    len: usize,
    /// Offset of the next byte.
    used: usize,
    /// Offset at which the region that is being filled ends.
    limit: usize,
    /// Offset of the first region.
    first: usize,
    region_len: usize,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// `len` bytes, a multiple of 4096.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let file = memfd_create("ombra-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        let map = |protection| {
            // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
            let at = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(at.cast::<u8>()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(run) => Ok(Self { write, run, len, used: 0, limit: len, first: len, region_len: len }),
            Err(error) => {
                // SAFETY: mapped above, not used yet.
                let _ = unsafe { munmap(write.as_ptr().cast(), len) };
                Err(error)
            }
        }
    }

    /// Address at which the next code will run.
    pub(crate) fn next(&self) -> u64 {
        self.base() + self.used as u64
    }

    /// Address of the first byte.
    pub(crate) fn base(&self) -> u64 {
        self.run.as_ptr() as u64
    }

    /// Address after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.base() + self.len as u64
    }

    /// Bytes of the region that is being filled that are still free.
    pub(crate) fn free(&self) -> usize {
        self.limit - self.used
    }

    /// What was written so far stays; the rest becomes `count` regions, and the first of them is filled next.
    pub(crate) fn divide(&mut self, count: usize) {
        self.first = self.used;
        self.region_len = ((self.len - self.used) / count) & !15;
        self.limit = self.first + self.region_len;
    }

    /// Bytes before the first region.
    pub(crate) fn kept(&self) -> usize {
        self.first
    }

    /// The region that an address lies in.
    pub(crate) fn region_of(&self, at: u64) -> Option<usize> {
        let offset = usize::try_from(at.checked_sub(self.base())?).ok()?.checked_sub(self.first)?;
        Some(offset / self.region_len)
    }

    /// Fills `region` from its start from now on. Nothing in it may be run any more.
    pub(crate) fn refill(&mut self, region: usize) {
        self.used = self.first + region * self.region_len;
        self.limit = self.used + self.region_len;
        assert!(self.limit <= self.len, "a region of this memory");
    }

    /// Appends code that was made for [`CodeMemory::next`], with `room` for as many bytes, or for more. False: there is none.
    #[must_use]
    pub(crate) fn append(&mut self, code: &[u8], room: usize) -> bool {
        let room = room.max(code.len());
        if room > self.free() {
            return false;
        }
        let at = self.next();
        self.used = (self.used + room).next_multiple_of(16).min(self.limit);
        self.patch(at, code);
        true
    }

    /// Overwrites code at a run address. The thread that runs it has to serialize before it does.
    pub(crate) fn patch(&mut self, at: u64, code: &[u8]) {
        let offset = at.checked_sub(self.base()).expect("an address in code memory") as usize;
        assert!(offset + code.len() <= self.len, "a patch beyond code memory");
        // SAFETY: the range was just checked; the vCPU's thread, which alone runs this code, is here.
        unsafe { self.write.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    }

    /// Code at a run address, to be changed. The thread that runs it has to serialize before it does.
    pub(crate) fn change(&mut self, at: u64, len: usize) -> &mut [u8] {
        let offset = at.checked_sub(self.base()).expect("an address in code memory") as usize;
        assert!(offset + len <= self.len, "a change beyond code memory");
        // SAFETY: the range was just checked; the vCPU's thread, which alone runs this code, is here, and `self` is borrowed for as
        // long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.write.as_ptr().add(offset), len) }
    }

    /// Code at a run address.
    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let offset = at.checked_sub(self.base()).expect("an address in code memory") as usize;
        assert!(offset + len <= self.len, "a look beyond code memory");
        // SAFETY: the range was just checked.
        unsafe { std::slice::from_raw_parts(self.write.as_ptr().add(offset), len) }.to_vec()
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing runs or writes there any more.
        unsafe {
            let _ = munmap(self.write.as_ptr().cast(), self.len);
            let _ = munmap(self.run.as_ptr().cast(), self.len);
        }
    }
}
