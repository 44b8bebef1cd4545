//! The unsafe part of native execution: executable memory, the call into a stub, what becomes of the SIMD exceptions that it
//! raises (`trap.rs`), and CPUID of the host.
//!
//! Used only by the other files of `native`, on the vCPU's thread; no locks. Code memory is W^X: one memory file mapped
//! twice, once to write and once to run.

#![expect(unsafe_code, reason = "generated code has to be mapped and called somewhere")]

mod trap;

use super::compile::StubCode;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::{NonNull, null_mut};
use x86::state::VectorState;

/// What a stub works on besides guest registers. Stubs address it through one host register.
#[repr(C, align(64))]
pub(super) struct Frame {
    /// Stands in for the memory operand.
    pub(super) bounce: [u8; 64],
    /// FXSAVE64 image, for x87 and MMX instructions.
    pub(super) fx: [u8; 512],
    vector: *mut VectorState,
    gpr: *mut [u64; 16],
    /// RFLAGS before and after: the arithmetic flags count.
    pub(super) flags: u64,
    /// MXCSR during the instruction.
    pub(super) mxcsr_in: u32,
    /// MXCSR after it.
    pub(super) mxcsr_out: u32,
    /// MXCSR of the host's code.
    pub(super) mxcsr_host: u32,
}

// SAFETY: the two pointers are only used during `Arena::run`, which sets them.
unsafe impl Send for Frame {}

impl Frame {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            bounce: [0; 64],
            fx: [0; 512],
            vector: null_mut(),
            gpr: null_mut(),
            flags: 2,
            mxcsr_in: 0x1f80,
            mxcsr_out: 0,
            mxcsr_host: 0x1f80,
        })
    }

    pub(super) const VECTOR: i64 = std::mem::offset_of!(Frame, vector) as i64;
    pub(super) const GPR: i64 = std::mem::offset_of!(Frame, gpr) as i64;
}

/// Where a stub lies, and in which filling of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    generation: u32,
    offset: u32,
    /// Where the stub goes on after an unmasked SIMD exception; 0: it raises none.
    trap: u32,
}

/// The stub was compiled before the arena was last emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stale;

/// Bounded executable memory, filled from the start and emptied as a whole.
pub(super) struct Arena {
    write: NonNull<u8>,
    run: NonNull<u8>,
    len: usize,
    used: usize,
    generation: u32,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for Arena {}

impl Arena {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        trap::install()?;
        let file = memfd_create("ombra-stubs", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        let map = |prot| {
            // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
            let at = unsafe { mmap(null_mut(), len, prot, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(at.cast::<u8>()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let run = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(run) => run,
            Err(error) => {
                // SAFETY: mapped above, not used yet.
                let _ = unsafe { munmap(write.as_ptr().cast(), len) };
                return Err(error);
            }
        };
        Ok(Self { write, run, len, used: 0, generation: 1 })
    }

    /// The number of the current filling, from 1.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Makes `code` executable; `None` when the arena is full.
    pub(super) fn publish(&mut self, code: &StubCode) -> Option<Entry> {
        let bytes = code.bytes();
        if self.len - self.used < bytes.len() {
            return None;
        }
        // SAFETY: the range was just checked; nobody runs code that lies beyond `used`.
        unsafe { self.write.as_ptr().add(self.used).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        let entry = Entry { generation: self.generation, offset: self.used as u32, trap: code.trap() as u32 };
        self.used = (self.used + bytes.len()).next_multiple_of(16).min(self.len);
        if self.generation > 1 {
            // These addresses may have run before: code changed through another mapping needs a serializing instruction
            // (SDM 3A 8.1.3).
            let _ = cpuid(0, 0);
        }
        Some(entry)
    }

    /// Empties the arena. Every entry handed out so far is stale from now on.
    pub(super) fn reset(&mut self) {
        self.used = 0;
        self.generation = self.generation.wrapping_add(1).max(2);
    }

    /// Runs a stub. True: it completed; false: an unmasked SIMD exception, no register has been stored, and `mxcsr_out` is
    /// what the host left.
    pub(super) fn run(
        &self,
        entry: Entry,
        frame: &mut Frame,
        gpr: &mut [u64; 16],
        vector: &mut VectorState,
    ) -> Result<bool, Stale> {
        if entry.generation != self.generation {
            return Err(Stale);
        }
        frame.gpr = gpr;
        frame.vector = vector;
        // With all masked nothing is raised, and the handler need not know.
        let watched = entry.trap != 0 && !(frame.mxcsr_in >> 7) & 0x3f != 0;
        let start = self.run.as_ptr() as u64 + u64::from(entry.offset);
        if watched {
            let mxcsr = &raw mut frame.mxcsr_out;
            trap::watch(Some(trap::Running { start, resume: start + u64::from(entry.trap), mxcsr }));
        }
        // SAFETY: an entry of this generation points to a complete stub made by `compile`, which keeps to the System V
        // ABI, touches only the frame and the registers behind its two pointers, and contains no guest address. If the
        // instruction raises a SIMD exception, the handler lets the stub go on at its second exit, which needs only the
        // frame's register and the stack, both as they were.
        let faulted = unsafe {
            let stub: extern "sysv64" fn(*mut Frame) -> u32 = std::mem::transmute(start as *const u8);
            stub(frame)
        };
        if watched {
            trap::watch(None);
        }
        Ok(faulted == 0)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing runs or writes there any more.
        unsafe {
            let _ = munmap(self.write.as_ptr().cast(), self.len);
            let _ = munmap(self.run.as_ptr().cast(), self.len);
        }
    }
}

/// EAX, EBX, ECX, EDX of a host CPUID leaf.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The host's XCR0, 0 where it has none.
pub(super) fn host_xcr0() -> u64 {
    if cpuid(1, 0)[2] & (1 << 27) == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: CPUID says that the OS has enabled XGETBV.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(low) | u64::from(high) << 32
}

/// The bits of MXCSR that the host accepts (SDM 1 11.6.6).
pub(super) fn host_mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Image([u8; 512]);
    let mut image = Image([0; 512]);
    // SAFETY: 512 aligned bytes of our own.
    unsafe { std::arch::asm!("fxsave64 [{0}]", in(reg) image.0.as_mut_ptr(), options(nostack)) };
    let mask = u32::from_le_bytes([image.0[28], image.0[29], image.0[30], image.0[31]]);
    if mask == 0 { 0xffbf } else { mask }
}

/// Test support: the host's own XSAVE and XRSTOR of a standard-format image.
#[cfg(test)]
pub(super) mod oracle {
    /// XRSTOR `image`, then XSAVE (or XSAVEC) into `out`, both under `mask`; the host's own state is put back.
    pub(crate) fn round_trip(image: &[u8], out: &mut [u8], mask: u32, compact: bool) {
        assert!((image.as_ptr() as usize).is_multiple_of(64) && (out.as_ptr() as usize).is_multiple_of(64));
        // SAFETY: both areas are aligned and as large as CPUID leaf 0DH asks for (the caller's business); all vector
        // registers are declared clobbered.
        unsafe {
            if compact {
                std::arch::asm!("xrstor64 [{i}]", "xsavec64 [{o}]", "fninit", "vzeroupper", i = in(reg) image.as_ptr(), o = in(reg) out.as_mut_ptr(),
                    in("eax") mask, in("edx") 0, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    clobber_abi("sysv64"));
            } else {
                std::arch::asm!("xrstor64 [{i}]", "xsave64 [{o}]", "fninit", "vzeroupper", i = in(reg) image.as_ptr(), o = in(reg) out.as_mut_ptr(),
                    in("eax") mask, in("edx") 0, clobber_abi("sysv64"));
            }
            std::arch::asm!("ldmxcsr [{0}]", in(reg) &0x1f80_u32);
        }
    }
}
