//! Runs code on the host CPU with a full given state, and catches how it ends.
//!
//! The worker is a forked process. It never leaves one signal handler: the handler puts a case's registers into the
//! signal frame and returns, so that the kernel loads all of them (`rt_sigreturn`: general registers, flags and the XSAVE
//! image); the case ends in `INT3` or a fault, whose signal brings every register back in the next frame. One signal a
//! case, and no assembly beyond the handler's first two instructions.
//!
//! Parent and worker share one mapping (batch of cases and outcomes) and two pipes (a byte for "go" and for "done").
//! After `fork` the worker calls nothing that allocates, locks or touches thread-local storage: FS points into the data
//! window while it runs.
//!
//! Left out: PKRU, AMX (the host's values stay in force).

#![expect(unsafe_code, reason = "runs foreign code and handles its signals")]

use crate::oracle::case::{
    self, CODE, CODE_LEN, DATA, DATA_LEN, FS_BASE, GS_BASE, Initial, Outcome, READ_ONLY, READ_ONLY_FILL,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use x86::cpuid::Leaf;

/// Cases in a batch at most.
pub const BATCH: usize = 64;
const ALTERNATE_STACK: usize = 256 << 10;
/// How long a batch may take before the worker counts as stuck.
const PATIENCE_MS: i32 = 5000;

#[repr(C)]
struct Slot {
    initial: Initial,
    outcome: Outcome,
}

#[repr(C)]
struct Shared {
    first: AtomicU32,
    count: AtomicU32,
    /// The case being run, for the parent to see who killed the worker.
    current: AtomicU32,
    go: RawFd,
    done: RawFd,
    /// A writable view of the code page, in the worker.
    code_view: *mut u8,
    components: Components,
    slots: [Slot; BATCH],
}

/// Offsets of the XSAVE components in the standard format (SDM 1 13.4.3), 0 where the host lacks one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Components {
    ymm_high: usize,
    opmask: usize,
    zmm_high: usize,
    zmm_16_31: usize,
}

/// What the handler works on. Set in the worker only.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// The host's CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    #[allow(unused_unsafe, reason = "safe in newer toolchains")]
    // SAFETY: every x86-64 CPU has CPUID.
    let answer = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

impl Components {
    fn of_host() -> Self {
        let enabled = if cpuid(1, 0).ecx & (1 << 27) == 0 { 0 } else { cpuid(0xd, 0).eax };
        let at = |index: u32| if enabled & (1 << index) == 0 { 0 } else { cpuid(0xd, index).ebx as usize };
        Self { ymm_high: at(2), opmask: at(5), zmm_high: at(6), zmm_16_31: at(7) }
    }
}

/// The worker process and the memory shared with it.
pub struct Worker {
    shared: *mut Shared,
    process: Option<Process>,
}

struct Process {
    pid: libc::pid_t,
    go: OwnedFd,
    done: OwnedFd,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors, which nobody else owns.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

impl Worker {
    /// Starts a worker process.
    ///
    /// # Errors
    /// The host refuses memory or a process.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping; all zeros is a valid `Shared` (integers, a null pointer, byte arrays).
        let shared = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if shared == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut worker = Self { shared: shared.cast(), process: None };
        worker.start()?;
        Ok(worker)
    }

    fn start(&mut self) -> io::Result<()> {
        self.process = None;
        let (go_read, go_write) = pipe()?;
        let (done_read, done_write) = pipe()?;
        // SAFETY: the mapping lives as long as `self`, and no worker runs now.
        unsafe {
            (*self.shared).go = go_read.as_raw_fd();
            (*self.shared).done = done_write.as_raw_fd();
            (*self.shared).components = Components::of_host();
        }
        // SAFETY: the child runs `work`, which keeps to what is allowed after fork in a process with threads.
        let pid = check(unsafe { libc::fork() })?;
        if pid == 0 {
            // SAFETY: in the child; the parent's ends are closed so that the child sees the parent's death.
            unsafe {
                libc::close(go_write.as_raw_fd());
                libc::close(done_read.as_raw_fd());
                work(self.shared);
                libc::_exit(1);
            }
        }
        self.process = Some(Process { pid, go: go_write, done: done_read });
        Ok(())
    }

    /// The case in slot `index` (below [`BATCH`]), to be filled before [`Worker::run`].
    ///
    /// # Panics
    /// There is no such slot.
    pub fn initial(&mut self, index: usize) -> &mut Initial {
        assert!(index < BATCH);
        // SAFETY: the index is in range; the worker process only touches slots between `run` and the end of `wait`.
        unsafe { &mut (*self.shared).slots[index].initial }
    }

    /// How the case in slot `index` ended.
    ///
    /// # Panics
    /// There is no such slot.
    #[must_use]
    pub fn outcome(&self, index: usize) -> &Outcome {
        assert!(index < BATCH);
        // SAFETY: as above.
        unsafe { &(*self.shared).slots[index].outcome }
    }

    /// Lets the worker run the first `count` slots. [`Worker::wait`] must follow.
    ///
    /// # Errors
    /// The worker can't be started.
    pub fn run(&mut self, count: usize) -> io::Result<()> {
        // SAFETY: the worker waits for the byte on its pipe before it looks.
        unsafe {
            (*self.shared).first.store(0, Ordering::SeqCst);
            (*self.shared).count.store(count.min(BATCH) as u32, Ordering::SeqCst);
        }
        self.go()
    }

    fn go(&mut self) -> io::Result<()> {
        if self.process.is_none() {
            self.start()?;
        }
        let Some(process) = &self.process else { return Ok(()) };
        // SAFETY: one byte from a live buffer.
        let written = unsafe { libc::write(process.go.as_raw_fd(), c"g".as_ptr().cast(), 1) };
        if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until all cases of the batch have an outcome, restarting the worker past cases that kill it.
    ///
    /// # Errors
    /// The worker can't be restarted.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            let Some(process) = &self.process else { return Ok(()) };
            let mut poll = libc::pollfd { fd: process.done.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE_MS) };
            if ready < 0 {
                continue;
            }
            if ready > 0 {
                let mut byte = 0u8;
                // SAFETY: room for one byte.
                if unsafe { libc::read(process.done.as_raw_fd(), (&raw mut byte).cast(), 1) } == 1 {
                    return Ok(());
                }
            }
            self.process = None; // Kills and reaps it.
            // SAFETY: no worker runs now.
            let (current, count) = unsafe {
                let current = (*self.shared).current.load(Ordering::SeqCst);
                let count = (*self.shared).count.load(Ordering::SeqCst);
                let slot = &mut (*self.shared).slots[(current as usize).min(BATCH - 1)];
                slot.outcome.vector = if ready == 0 { case::ENDLESS } else { case::DIED };
                (*self.shared).first.store(current + 1, Ordering::SeqCst);
                (current, count)
            };
            if current + 1 >= count {
                return Ok(());
            }
            self.go()?;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: the process is our child and not reaped yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, 0);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.process = None;
        // SAFETY: mapped in `new`, and no reference outlives `self`.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// The worker's life. Returns only where something is refused.
///
/// # Safety
/// In a freshly forked process, with `shared` mapped and set up.
unsafe fn work(shared: *mut Shared) {
    // SAFETY: raw mappings at addresses of our own choosing (refused where taken), in a process that is all ours.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let fixed = libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
        let readable = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let window = libc::mmap(DATA as *mut _, DATA_LEN + 0x1000, readable, fixed | private, -1, 0);
        let fd = libc::memfd_create(c"oracle-code".as_ptr(), libc::MFD_CLOEXEC);
        if window as u64 != DATA || fd < 0 || libc::ftruncate(fd, CODE_LEN as i64) < 0 {
            return;
        }
        let view = libc::mmap(ptr::null_mut(), CODE_LEN, readable, libc::MAP_SHARED, fd, 0);
        if view == libc::MAP_FAILED {
            return;
        }
        ptr::write_bytes(view.cast::<u8>(), 0xcc, CODE_LEN);
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        let code = libc::mmap(CODE as *mut _, CODE_LEN, executable, libc::MAP_SHARED | fixed, fd, 0);
        if code as u64 != CODE {
            return;
        }
        ptr::write_bytes(READ_ONLY as *mut u8, READ_ONLY_FILL, 0x1000);
        if libc::mprotect(READ_ONLY as *mut _, 0x1000, libc::PROT_READ) != 0 {
            return;
        }
        let stack = libc::mmap(ptr::null_mut(), ALTERNATE_STACK, readable, private, -1, 0);
        if stack == libc::MAP_FAILED {
            return;
        }
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: ALTERNATE_STACK };
        libc::sigaltstack(&raw const alternate, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = enter as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS, libc::SIGTRAP] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        // Nothing else shall interrupt a case.
        let mut others: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut others);
        libc::sigaddset(&raw mut others, libc::SIGALRM);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const others, ptr::null_mut());
        (*shared).code_view = view.cast();
        (*shared).current.store(u32::MAX, Ordering::SeqCst);
        SHARED.store(shared, Ordering::SeqCst);
        const ARCH_SET_GS: u64 = 0x1001;
        const ARCH_SET_FS: u64 = 0x1002;
        // Calls with the C library's wrappers end here: they would look for errno behind FS.
        system_call(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE, 0);
        system_call(libc::SYS_arch_prctl, ARCH_SET_FS, FS_BASE, 0);
        core::arch::asm!("int3");
    }
}

/// A system call without the C library.
///
/// # Safety
/// As the call itself.
unsafe fn system_call(number: i64, a: u64, b: u64, c: u64) -> i64 {
    let result;
    // SAFETY: the system call convention; the caller answers for the call.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// The signal handler's entry: clears what the case may have left in the flags (AC above all: the handler's own
/// accesses aren't aligned, and NT and ID would outlive the signal), then goes on in [`handle`].
#[unsafe(naked)]
extern "C" fn enter(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    core::arch::naked_asm!("push 2", "popfq", "jmp {handle}", handle = sym handle)
}

extern "C" fn handle(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let shared = SHARED.load(Ordering::SeqCst);
    // SAFETY: the kernel's signal frame, and the mapping that parent and worker share; the parent is waiting.
    unsafe {
        let mut current = (*shared).current.load(Ordering::SeqCst);
        if current != u32::MAX {
            save(&*context, (*shared).components, &mut (*shared).slots[current as usize].outcome);
            let (offset, code) = (*shared).slots[current as usize].initial.code_in_page();
            ptr::write_bytes((*shared).code_view.add(offset), 0xcc, code.len());
            current += 1;
        }
        if current >= (*shared).count.load(Ordering::SeqCst) || current == u32::MAX {
            let byte = 0u8;
            if current != u32::MAX {
                system_call(libc::SYS_write, (*shared).done as u64, (&raw const byte) as u64, 1);
            }
            let mut byte = 0u8;
            if system_call(libc::SYS_read, (*shared).go as u64, (&raw mut byte) as u64, 1) != 1 {
                system_call(libc::SYS_exit_group, 0, 0, 0);
            }
            current = (*shared).first.load(Ordering::SeqCst);
        }
        (*shared).current.store(current, Ordering::SeqCst);
        let initial = &(*shared).slots[current as usize].initial;
        ptr::copy_nonoverlapping(initial.data.as_ptr(), DATA as *mut u8, DATA_LEN);
        let (offset, code) = initial.code_in_page();
        ptr::copy_nonoverlapping(code.as_ptr(), (*shared).code_view.add(offset), code.len());
        load(initial, (*shared).components, &mut *context);
    }
}

/// Where each general register, in encoding order, is in the frame.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// # Safety
/// `context` is a signal frame of this process.
unsafe fn load(initial: &Initial, components: Components, context: &mut libc::ucontext_t) {
    let registers = &mut context.uc_mcontext.gregs;
    for (value, at) in initial.gpr.iter().zip(GREGS) {
        registers[at as usize] = *value as i64;
    }
    registers[libc::REG_RIP as usize] = initial.rip as i64;
    registers[libc::REG_EFL as usize] = initial.rflags as i64;
    let area: *mut u8 = context.uc_mcontext.fpregs.cast();
    let vector = &initial.vector;
    // SAFETY: the frame's XSAVE image in the standard format, of the size that CPUID.0DH tells.
    unsafe {
        ptr::copy_nonoverlapping(vector.x87.as_ptr(), area, 24);
        ptr::copy_nonoverlapping(vector.x87.as_ptr().add(32), area.add(32), 128);
        area.add(24).cast::<u32>().write_unaligned(vector.mxcsr);
        let mut present = 3u64;
        for (i, zmm) in vector.zmm.iter().enumerate() {
            if i < 16 {
                ptr::copy_nonoverlapping(zmm.as_ptr(), area.add(160 + 16 * i), 16);
                if components.ymm_high != 0 {
                    ptr::copy_nonoverlapping(
                        zmm.as_ptr().add(16),
                        area.add(components.ymm_high + 16 * i),
                        16,
                    );
                    present |= 1 << 2;
                }
                if components.zmm_high != 0 {
                    ptr::copy_nonoverlapping(
                        zmm.as_ptr().add(32),
                        area.add(components.zmm_high + 32 * i),
                        32,
                    );
                    present |= 1 << 6;
                }
            } else if components.zmm_16_31 != 0 {
                ptr::copy_nonoverlapping(zmm.as_ptr(), area.add(components.zmm_16_31 + 64 * (i - 16)), 64);
                present |= 1 << 7;
            }
        }
        if components.opmask != 0 {
            ptr::copy_nonoverlapping(vector.k.as_ptr().cast(), area.add(components.opmask), 64);
            present |= 1 << 5;
        }
        let header = area.add(512).cast::<u64>();
        header.write_unaligned(header.read_unaligned() | present);
    }
}

/// # Safety
/// `context` is a signal frame of this process.
unsafe fn save(context: &libc::ucontext_t, components: Components, outcome: &mut Outcome) {
    let registers = &context.uc_mcontext.gregs;
    for (value, at) in outcome.gpr.iter_mut().zip(GREGS) {
        *value = registers[at as usize] as u64;
    }
    outcome.rip = registers[libc::REG_RIP as usize] as u64;
    outcome.rflags = registers[libc::REG_EFL as usize] as u64;
    outcome.vector = registers[libc::REG_TRAPNO as usize] as u32;
    outcome.code = registers[libc::REG_ERR as usize] as u32;
    outcome.cr2 = if outcome.vector == 14 { registers[libc::REG_CR2 as usize] as u64 } else { 0 };
    let area: *const u8 = context.uc_mcontext.fpregs.cast();
    let vector = &mut outcome.vectors;
    // SAFETY: as in `load`. XSAVE writes components in their initial state, too (SDM 1 13.7): no look at XSTATE_BV.
    unsafe {
        ptr::copy_nonoverlapping(area, vector.x87.as_mut_ptr(), 160);
        vector.mxcsr = area.add(24).cast::<u32>().read_unaligned();
        for (i, zmm) in vector.zmm.iter_mut().enumerate() {
            if i < 16 {
                ptr::copy_nonoverlapping(area.add(160 + 16 * i), zmm.as_mut_ptr(), 16);
                if components.ymm_high != 0 {
                    ptr::copy_nonoverlapping(
                        area.add(components.ymm_high + 16 * i),
                        zmm.as_mut_ptr().add(16),
                        16,
                    );
                }
                if components.zmm_high != 0 {
                    ptr::copy_nonoverlapping(
                        area.add(components.zmm_high + 32 * i),
                        zmm.as_mut_ptr().add(32),
                        32,
                    );
                }
            } else if components.zmm_16_31 != 0 {
                ptr::copy_nonoverlapping(
                    area.add(components.zmm_16_31 + 64 * (i - 16)),
                    zmm.as_mut_ptr(),
                    64,
                );
            }
        }
        if components.opmask != 0 {
            ptr::copy_nonoverlapping(area.add(components.opmask), vector.k.as_mut_ptr().cast(), 64);
        }
        ptr::copy_nonoverlapping(DATA as *const u8, outcome.data.as_mut_ptr(), DATA_LEN);
    }
}
