//! The unsafe part of guest memory: host mappings and the instructions that touch them.
//!
//! Everything that leaves this module is safe: a [`RamOffset`] is checked against the end of the mapping on each
//! access. Accesses are made by inline assembly, not by Rust references or `ptr::read`, since a guest's other vCPUs and
//! devices may touch the same bytes at the same time; for the machine that is defined behaviour (SDM 3A 8.2), for the
//! Rust memory model only assembly is.

#![expect(unsafe_code, reason = "this is the one place where guest bytes are touched")]

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::arch::asm;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, OnceLock};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use x86::address::PAGE_SIZE;

/// The offset of a byte in RAM, counted through all regions. Not a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RamOffset(pub u64);

impl RamOffset {
    /// The number of the page it lies in.
    #[inline]
    #[must_use]
    pub const fn frame(self) -> u64 {
        self.0 / PAGE_SIZE
    }

    /// Its offset in that page.
    #[inline]
    #[must_use]
    pub const fn offset_in_page(self) -> u64 {
        self.0 % PAGE_SIZE
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An unsigned integer that one host instruction loads or stores: `u8`, `u16`, `u32`, `u64`.
pub trait Word: sealed::Sealed + Copy + PartialEq + 'static {
    /// # Safety
    /// `size_of::<Self>()` bytes at `at` are mapped.
    #[doc(hidden)]
    unsafe fn load_from(at: *const u8) -> Self;
    /// # Safety
    /// `size_of::<Self>()` bytes at `at` are mapped.
    #[doc(hidden)]
    unsafe fn store_to(at: *mut u8, value: Self);
    /// # Safety
    /// `size_of::<Self>()` bytes at `at` are mapped.
    #[doc(hidden)]
    unsafe fn compare_exchange_at(at: *mut u8, expected: Self, new: Self) -> Self;
    /// # Safety
    /// `count * size_of::<Self>()` bytes at `at` are mapped.
    #[doc(hidden)]
    unsafe fn fill_at(at: *mut u8, value: Self, count: u64);
}

macro_rules! word {
    ($type:ty, $class:ident, $modifier:literal, $size:literal, $accumulator:tt, $stos:literal) => {
        impl sealed::Sealed for $type {}
        impl Word for $type {
            #[inline(always)]
            unsafe fn load_from(at: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller says that the bytes are mapped; any alignment is fine for MOV.
                unsafe {
                    asm!(concat!("mov {value", $modifier, "}, ", $size, " ptr [{at}]"), at = in(reg) at,
                         value = out($class) value, options(nostack, readonly, preserves_flags));
                }
                value
            }
            #[inline(always)]
            unsafe fn store_to(at: *mut u8, value: Self) {
                // SAFETY: the caller says that the bytes are mapped; any alignment is fine for MOV.
                unsafe {
                    asm!(concat!("mov ", $size, " ptr [{at}], {value", $modifier, "}"), at = in(reg) at,
                         value = in($class) value, options(nostack, preserves_flags));
                }
            }
            #[inline]
            unsafe fn compare_exchange_at(at: *mut u8, expected: Self, new: Self) -> Self {
                let old: $type;
                // SAFETY: the caller says that the bytes are mapped; LOCK CMPXCHG takes any alignment.
                unsafe {
                    asm!(concat!("lock cmpxchg ", $size, " ptr [{at}], {new", $modifier, "}"), at = in(reg) at,
                         new = in($class) new, inout($accumulator) expected => old, options(nostack));
                }
                old
            }
            #[inline]
            unsafe fn fill_at(at: *mut u8, value: Self, count: u64) {
                // SAFETY: the caller says that the bytes are mapped; Rust code runs with DF clear.
                unsafe {
                    asm!(concat!("rep ", $stos), inout("rdi") at => _, inout("rcx") count => _,
                         in($accumulator) value, options(nostack, preserves_flags));
                }
            }
        }
    };
}

word!(u8, reg_byte, "", "byte", "al", "stosb");
word!(u16, reg, ":x", "word", "ax", "stosw");
word!(u32, reg, ":e", "dword", "eax", "stosd");
word!(u64, reg, ":r", "qword", "rax", "stosq");

/// Bytes of a huge page of the host.
const HUGE: usize = 2 << 20;

/// An anonymous mapping, unmapped on drop. Large ones begin at a huge page and may be backed by such: that saves faults of
/// the host, and entries of its TLB at each access of the guest.
struct Mapping {
    base: NonNull<u8>,
    /// What is mapped: `base` lies in it.
    start: NonNull<u8>,
    mapped: usize,
}

// SAFETY: the mapping is owned memory without thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: all access goes through assembly or atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len.max(1)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let spare = if len >= HUGE { HUGE } else { 0 };
        let mapped = len.checked_add(spare).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let before = if spare > 0 { start.as_ptr().align_offset(HUGE) } else { 0 };
        // SAFETY: `spare` bytes more than `len` are mapped.
        let base = unsafe { start.add(before) };
        if spare > 0 {
            // SAFETY: advice about memory that was just mapped. A host without huge pages refuses it, and nothing is lost.
            let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        }
        Ok(Self { base, start, mapped })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and nobody can hold a pointer into it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// Guest RAM as one host mapping. Clones are the same mapping; each has the base at hand, since every guest access needs it.
#[derive(Clone)]
pub struct Ram {
    base: NonNull<u8>,
    len: u64,
    /// Keeps `base` mapped.
    _map: Arc<Mapping>,
}

// SAFETY: the mapping is shared and without thread affinity; all access goes through assembly.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub(crate) fn map(len: u64) -> io::Result<Self> {
        let map = Arc::new(Mapping::new(len)?);
        Ok(Self { base: map.base, len, _map: map })
    }

    /// The host address of `at`, checked: `len` bytes from there are inside the mapping.
    #[inline(always)]
    fn pointer(&self, at: RamOffset, len: u64) -> *mut u8 {
        if len > self.len || at.0 > self.len - len {
            out_of_ram(at, len);
        }
        // SAFETY: the offset was just checked to be inside the mapping.
        unsafe { self.base.as_ptr().add(at.0 as usize) }
    }

    #[inline]
    pub(crate) fn load<T: Word>(&self, at: RamOffset) -> T {
        let pointer = self.pointer(at, size_of::<T>() as u64);
        // SAFETY: `pointer` checked the range.
        unsafe { T::load_from(pointer) }
    }

    #[inline]
    pub(crate) fn store<T: Word>(&self, at: RamOffset, value: T) {
        let pointer = self.pointer(at, size_of::<T>() as u64);
        // SAFETY: `pointer` checked the range.
        unsafe { T::store_to(pointer, value) }
    }

    #[inline]
    pub(crate) fn compare_exchange<T: Word>(&self, at: RamOffset, expected: T, new: T) -> T {
        let pointer = self.pointer(at, size_of::<T>() as u64);
        // SAFETY: `pointer` checked the range.
        unsafe { T::compare_exchange_at(pointer, expected, new) }
    }

    pub(crate) fn compare_exchange_16(&self, at: RamOffset, expected: u128, new: u128) -> u128 {
        assert!(at.0.is_multiple_of(16), "CMPXCHG16B needs a 16-byte aligned operand");
        let pointer = self.pointer(at, 16);
        let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
        // SAFETY: `pointer` checked the range; the operand is aligned. RBX is LLVM's own, so it is swapped by hand; the
        // operands have registers of their own because LLVM may choose RBX for one that it is free to place.
        unsafe {
            asm!("xchg rbx, rsi", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
                 in("rdi") pointer, inout("rsi") new as u64 => _, in("rcx") (new >> 64) as u64,
                 inout("rax") low, inout("rdx") high, options(nostack));
        }
        u128::from(low) | u128::from(high) << 64
    }

    pub(crate) fn load_bytes(&self, at: RamOffset, into: &mut [u8]) {
        let pointer = self.pointer(at, into.len() as u64);
        // SAFETY: `pointer` checked the source; `into` is ours alone and as long as the count. DF is clear.
        unsafe {
            asm!("rep movsb", inout("rcx") into.len() => _, inout("rsi") pointer => _,
                 inout("rdi") into.as_mut_ptr() => _, options(nostack, preserves_flags));
        }
    }

    pub(crate) fn store_bytes(&self, at: RamOffset, from: &[u8]) {
        let pointer = self.pointer(at, from.len() as u64);
        // SAFETY: `pointer` checked the destination; `from` is as long as the count. DF is clear.
        unsafe {
            asm!("rep movsb", inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _,
                 inout("rdi") pointer => _, options(nostack, preserves_flags));
        }
    }

    pub(crate) fn copy_ascending(&self, from: RamOffset, to: RamOffset, len: u64) {
        let (source, target) = (self.pointer(from, len), self.pointer(to, len));
        // SAFETY: `pointer` checked both ranges; REP MOVSB defines overlapping copies. DF is clear.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rsi") source => _, inout("rdi") target => _,
                 options(nostack, preserves_flags));
        }
    }

    pub(crate) fn fill<T: Word>(&self, at: RamOffset, value: T, count: u64) {
        let bytes = count.saturating_mul(size_of::<T>() as u64);
        let pointer = self.pointer(at, bytes);
        // SAFETY: `pointer` checked the range.
        unsafe { T::fill_at(pointer, value, count) }
    }

    /// Bytes as `vm-memory` reads and writes them. `bitmap` hears of every store.
    pub(crate) fn volatile_slice<B: BitmapSlice>(
        &self,
        at: RamOffset,
        len: usize,
        bitmap: B,
    ) -> VolatileSlice<'_, B> {
        let pointer = self.pointer(at, len as u64);
        // SAFETY: `pointer` checked the range, which stays mapped as long as `self`. The slice's accesses are volatile or
        // atomic; others race with them only as on the machine.
        unsafe { VolatileSlice::with_bitmap(pointer, len, bitmap, None) }
    }

    /// The host address of a byte.
    pub(crate) fn host_address(&self, at: RamOffset) -> u64 {
        self.pointer(at, 1) as u64
    }

    /// Bytes backed by the host, or `None` where it doesn't say.
    pub(crate) fn resident(&self) -> Option<u64> {
        let start = self.base.as_ptr() as u64;
        crate::resident::resident_bytes(std::slice::from_ref(&(start..start + self.len)))
    }
}

#[cold]
#[inline(never)]
fn out_of_ram(at: RamOffset, len: u64) -> ! {
    panic!("access to RAM offset {:#x}, {len} bytes: not inside guest memory", at.0)
}

/// An array of plain atomics that starts as zeros and costs memory only where touched. Clones are the same array.
pub(crate) struct Zeroed<T> {
    base: NonNull<T>,
    count: u64,
    /// Keeps `base` mapped.
    _map: Arc<Mapping>,
}

impl<T> Clone for Zeroed<T> {
    fn clone(&self) -> Self {
        Self { base: self.base, count: self.count, _map: Arc::clone(&self._map) }
    }
}

// SAFETY: the elements are atomics (`ZeroIsValid`), shared by reference only.
unsafe impl<T: Sync> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

/// # Safety
/// All-zero bytes are a valid `Self`, and it may be shared between threads.
pub(crate) unsafe trait ZeroIsValid: Sync {}
// SAFETY: an atomic zero.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU8 {}
// SAFETY: atomics only.
unsafe impl ZeroIsValid for super::PageInfo {}

impl<T: ZeroIsValid> Zeroed<T> {
    pub(crate) fn map(count: u64) -> io::Result<Self> {
        let bytes = count.checked_mul(size_of::<T>() as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = Arc::new(Mapping::new(bytes)?);
        Ok(Self { base: map.base.cast(), count, _map: map })
    }

    #[inline(always)]
    pub(crate) fn at(&self, index: u64) -> &T {
        assert!(index < self.count, "page number beyond guest memory");
        // SAFETY: the index was checked; zeroed memory is a valid `T`, which is only changed through atomics.
        unsafe { self.base.add(index as usize).as_ref() }
    }
}

const MEMBARRIER_CMD_PRIVATE_EXPEDITED: i32 = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;

fn membarrier(command: i32) -> bool {
    // SAFETY: membarrier has no memory operands; an unknown command only returns an error.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// A full memory barrier on every running thread of this process (membarrier(2)).
///
/// Where the host's kernel lacks it (before 4.14, or a seccomp filter), a local fence has to do: then a vCPU that runs code
/// while another writes it without the synchronization that SDM 3A 8.1.3 asks for may see the old bytes longer.
pub(crate) fn process_barrier() {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    if !*REGISTERED.get_or_init(|| membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
        || !membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}
