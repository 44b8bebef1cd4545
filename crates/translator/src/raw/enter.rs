//! The way into translated code and back, and the host facts that it depends on.

use crate::context::Context;
use std::arch::asm;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The context in the shared block, which translated code changes behind Rust's back: reached only through [`ContextCell::get`]
/// while none runs.
pub(crate) struct ContextCell(NonNull<Context>);

// SAFETY: it is used by the vCPU's thread alone.
unsafe impl Send for ContextCell {}

impl ContextCell {
    /// The context at the start of a shared block.
    pub(crate) fn new(shared: &shadow::Shared) -> Self {
        Self(shared.base().cast())
    }

    pub(crate) fn get(&mut self) -> &mut Context {
        // SAFETY: the block is at least as large and aligned as a context, which may hold any bytes; translated code doesn't
        // run while the reference lives, since both belong to one thread.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn pointer(&self) -> *mut Context {
        self.0.as_ptr()
    }

    /// The 64-byte words of the shared block from `offset` on.
    pub(crate) fn bytes(&mut self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset + len <= shadow::SHARED_BYTES, "inside the shared block");
        // SAFETY: just checked; as in `get`.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast::<u8>().add(offset).as_ptr(), len) }
    }

    /// Word `index` of a table of 8-byte words at `offset`.
    pub(crate) fn set_word(&mut self, offset: usize, index: usize, value: u64) {
        let at = offset + 8 * index;
        self.bytes(at, 8).copy_from_slice(&value.to_le_bytes());
    }

    /// Word `index` of a table of 8-byte words at `offset`.
    pub(crate) fn word(&mut self, offset: usize, index: usize) -> u64 {
        let bytes = self.bytes(offset + 8 * index, 8);
        bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }

    /// Element `index` of a table of 4-byte words at `offset`.
    pub(crate) fn set_half(&mut self, offset: usize, index: usize, value: u32) {
        let at = offset + 4 * index;
        self.bytes(at, 4).copy_from_slice(&value.to_le_bytes());
    }
}

/// Runs translated code: sets GS, by the instruction where `fsgsbase` says that there is one, calls the entry stub, and comes back when translated code leaves.
///
/// # Safety
/// `stub` is the entry stub made by `stubs`, the context behind GS (`origin`) is complete, and its target is a translation whose
/// assumptions hold. `fsgsbase` is only true where [`has_fsgsbase`] is.
pub(crate) unsafe fn enter(stub: u64, origin: u64, fsgsbase: bool) {
    set_gs(origin, fsgsbase);
    // SAFETY: the stub keeps the System V calling convention (it saves what has to be saved, and leaves MXCSR and DF as Rust
    // wants them); all else is the caller's promise.
    unsafe {
        let stub: extern "sysv64" fn() = std::mem::transmute(stub);
        stub();
    }
}

/// Points GS at a view. Rust and the C library don't use GS.
fn set_gs(base: u64, fsgsbase: bool) {
    if fsgsbase {
        // SAFETY: the caller has asked the kernel whether the instruction is enabled.
        unsafe { asm!("wrgsbase {0}", in(reg) base, options(nomem, nostack, preserves_flags)) };
    } else {
        const ARCH_SET_GS: libc::c_int = 0x1001;
        // SAFETY: sets a register that nobody else uses.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Whether user code may use RDGSBASE and WRGSBASE.
pub(crate) fn has_fsgsbase() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        // SAFETY: only reads the auxiliary vector.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
    })
}

/// Code written through another mapping is not seen for certain before a serializing instruction (SDM 3A 8.1.3). IRET is
/// one, and cheaper than CPUID where that is intercepted.
pub(crate) fn serialize() {
    // SAFETY: returns to the next instruction with all registers as they were; the red zone is stepped over.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "sub rsp, 128",
            "mov {scratch:e}, ss",
            "push {scratch}",
            "push {stack}",
            "pushfq",
            "mov {scratch:e}, cs",
            "push {scratch}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            stack = out(reg) _,
            scratch = out(reg) _,
        );
    }
}

/// MXCSR as Rust code has it.
pub(crate) fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores four bytes of our own.
    unsafe { asm!("stmxcsr [{0}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

/// The host's XCR0, 0 where it has none.
pub(crate) fn host_xcr0() -> u64 {
    if std::arch::x86_64::__cpuid(1).ecx & (1 << 27) == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: CPUID says that the system has enabled XGETBV.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(low) | u64::from(high) << 32
}
