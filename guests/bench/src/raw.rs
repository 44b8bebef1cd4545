//! System calls and mappings that std doesn't have, through the C library; [`instructions`] has what needs assembly.

mod instructions;

pub(crate) use instructions::*;
use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io::{self, Error};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

const MAP_PRIVATE: c_int = 2;
const MAP_ANONYMOUS: c_int = 0x20;
const SIGKILL: c_int = 9;
const SIGUSR1: c_int = 10;
const SIGSEGV: c_int = 11;
const SA_SIGINFO: c_int = 4;
const SYS_FUTEX: c_long = 202;
const FUTEX_WAIT_PRIVATE: c_int = 128;
const FUTEX_WAKE_PRIVATE: c_int = 129;
const RB_POWER_OFF: c_int = 0x4321_fedc;

/// glibc's `struct sigaction` on x86-64.
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// The start of glibc's `ucontext_t` on x86-64: flags, link and alternate stack, then the general registers.
#[repr(C)]
struct Context {
    before: [u64; 5],
    registers: [i64; 23],
}

/// RIP in [`Context::registers`].
const REG_RIP: usize = 16;

/// glibc's `cpu_set_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Cpus([u64; 16]);

unsafe extern "C" {
    fn getpid() -> c_int;
    fn getppid() -> c_int;
    #[link_name = "fork"]
    fn libc_fork() -> c_int;
    fn _exit(status: c_int) -> !;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    fn mmap(at: *mut c_void, size: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn munmap(at: *mut c_void, size: usize) -> c_int;
    fn mprotect(at: *mut c_void, size: usize, prot: c_int) -> c_int;
    fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn sched_getcpu() -> c_int;
    fn sched_getaffinity(pid: c_int, size: usize, cpus: *mut Cpus) -> c_int;
    fn sched_setaffinity(pid: c_int, size: usize, cpus: *const Cpus) -> c_int;
    #[link_name = "mount"]
    fn libc_mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn sync();
    fn tcdrain(fd: c_int) -> c_int;
    fn strlen(string: *const c_char) -> usize;
    fn strcmp(first: *const c_char, second: *const c_char) -> c_int;
    fn memchr(bytes: *const c_void, byte: c_int, size: usize) -> *const c_void;
    fn memcmp(first: *const c_void, second: *const c_void, size: usize) -> c_int;
}

fn result(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// The parent's process number.
pub(crate) fn parent() -> i32 {
    // SAFETY: no arguments.
    unsafe { getppid() }
}

/// A child process.
pub(crate) struct Child(c_int);

impl Child {
    /// Ends it, for whoever will not answer it any more.
    pub(crate) fn kill(&self) {
        // SAFETY: a child that nobody has waited for, so the number is still its own.
        unsafe { kill(self.0, SIGKILL) };
    }

    /// Its status once it has ended; 128 and the signal's number where a signal ended it.
    pub(crate) fn wait(self) -> io::Result<i32> {
        let mut status = 0;
        loop {
            // SAFETY: writes one number.
            if unsafe { waitpid(self.0, &mut status, 0) } == self.0 {
                return Ok(if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) });
            }
            let error = Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// A child that does `work` and ends with its result.
pub(crate) fn fork(work: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: this process has no other threads while it forks, so the child finds every lock free; it ends without
    // running anybody's destructors.
    unsafe {
        match libc_fork() {
            -1 => Err(Error::last_os_error()),
            0 => _exit(work()),
            pid => Ok(Child(pid)),
        }
    }
}

/// Becomes `program` with one argument. Returns a status only where that fails.
pub(crate) fn exec(program: &Path, argument: &str) -> i32 {
    let strings = (CString::new(program.as_os_str().as_bytes()), CString::new(argument));
    let (Ok(program), Ok(argument)) = strings else { return 126 };
    let arguments = [program.as_ptr(), argument.as_ptr(), null()];
    // SAFETY: strings that end in NUL, and a list of them that ends in a null pointer.
    unsafe { execv(program.as_ptr(), arguments.as_ptr()) };
    127
}

/// What a mapping allows.
#[derive(Clone, Copy)]
pub(crate) enum Protection {
    None = 0,
    Read = 1,
    ReadWrite = 3,
    ReadExecute = 5,
    All = 7,
}

/// Anonymous memory of this process.
pub(crate) struct Mapping {
    start: *mut u8,
    size: usize,
}

impl Mapping {
    pub(crate) fn new(size: usize, protection: Protection) -> io::Result<Mapping> {
        // SAFETY: new memory, at an address that the kernel chooses.
        let start = unsafe {
            mmap(null::<c_void>().cast_mut(), size, protection as c_int, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        };
        if start as isize == -1 {
            Err(Error::last_os_error())
        } else {
            Ok(Mapping { start: start.cast(), size })
        }
    }

    /// Changes what `size` bytes from `offset` allow.
    pub(crate) fn protect(&mut self, offset: usize, size: usize, protection: Protection) -> io::Result<()> {
        assert!(offset + size <= self.size);
        // SAFETY: memory of this mapping, to which nobody else has a reference.
        result(unsafe { mprotect(self.start.add(offset).cast(), size, protection as c_int) })
    }

    /// The memory. Touching bytes that are protected ends the process with SIGSEGV, and does nothing worse.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` lives, and borrowed from it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.size) }
    }

    /// Calls the function at `offset`, which a workload has written there.
    pub(crate) fn call(&mut self, offset: usize, argument: u64) -> u64 {
        assert!(offset < self.size);
        // SAFETY: the workloads' functions take one number, return one, keep the C calling convention, and touch no memory
        // but this mapping's.
        unsafe {
            let function: extern "C" fn(u64) -> u64 = std::mem::transmute(self.start.add(offset));
            function(argument)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping's memory, which nobody has a reference to any more.
        unsafe { munmap(self.start.cast(), self.size) };
    }
}

/// As long as it lives, this thread and those it makes run on one processor.
pub(crate) struct Pinned(Cpus);

impl Pinned {
    pub(crate) fn to_one_cpu() -> io::Result<Pinned> {
        let (mut before, mut one) = (Cpus([0; 16]), Cpus([0; 16]));
        // SAFETY: reads and writes sets of the size that is given.
        unsafe {
            if sched_getaffinity(0, size_of::<Cpus>(), &mut before) < 0 {
                return Err(Error::last_os_error());
            }
            let cpu = usize::try_from(sched_getcpu()).map_err(|_| Error::last_os_error())?;
            one.0[(cpu / 64) % 16] = 1 << (cpu % 64);
            result(sched_setaffinity(0, size_of::<Cpus>(), &one))?;
        }
        Ok(Pinned(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: as above. Where it fails the process stays where it is.
        unsafe { sched_setaffinity(0, size_of::<Cpus>(), &self.0) };
    }
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

fn handle(signal: c_int, handler: usize) -> io::Result<()> {
    let action = Action { handler, mask: [0; 16], flags: SA_SIGINFO, restorer: 0 };
    // SAFETY: the structure is glibc's; the handlers below do nothing that a handler may not.
    result(unsafe { sigaction(signal, &action, null::<Action>().cast_mut()) })
}

/// Counts what [`signal_ourselves`] sends.
pub(crate) fn count_signals() -> io::Result<&'static AtomicU64> {
    extern "C" fn count(_: c_int, _: *const c_void, _: *mut Context) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    handle(SIGUSR1, count as *const () as usize)?;
    Ok(&SIGNALS)
}

pub(crate) fn signal_ourselves() -> io::Result<()> {
    // SAFETY: to this process, which has a handler.
    result(unsafe { kill(getpid(), SIGUSR1) })
}

/// Faults count, and the instruction of [`faulting_load`] is skipped.
pub(crate) fn skip_faults() -> io::Result<&'static AtomicU64> {
    extern "C" fn skip(_: c_int, _: *const c_void, context: *mut Context) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the kernel's context of the interrupted thread. The only load that faults is 2 bytes long.
        unsafe { (*context).registers[REG_RIP] += 2 };
    }
    handle(SIGSEGV, skip as *const () as usize)?;
    Ok(&SIGNALS)
}

/// SIGSEGV ends the process again.
pub(crate) fn fault_as_usual() -> io::Result<()> {
    handle(SIGSEGV, 0)
}

/// A load of 2 bytes' length from the mapping's start, under [`skip_faults`].
pub(crate) fn faulting_load(mapping: &Mapping) {
    instructions::load_byte(mapping.start);
}

/// Sleeps while the word has the value.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32) {
    // SAFETY: reads one word that lives through the call. Whatever it returns, the caller looks again.
    unsafe { syscall(SYS_FUTEX, word.as_ptr(), FUTEX_WAIT_PRIVATE, value, null::<c_void>()) };
}

/// Wakes one sleeper.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: only the word's address matters.
    unsafe { syscall(SYS_FUTEX, word.as_ptr(), FUTEX_WAKE_PRIVATE, 1) };
}

/// strlen, memchr, strcmp and memcmp of two strings of a size; their results added up.
pub(crate) fn string_functions(first: &[u8], second: &[u8]) -> u64 {
    assert!(first.len() == second.len() && first.last() == Some(&0) && second.last() == Some(&0));
    let (one, other) = (first.as_ptr(), second.as_ptr());
    // SAFETY: both end in NUL and have the size.
    unsafe {
        let length = strlen(one.cast()) as u64;
        let found = memchr(other.cast(), c_int::from(b'y'), first.len()) as u64 - other as u64;
        let order = strcmp(one.cast(), other.cast()) + memcmp(one.cast(), other.cast(), first.len());
        length + found + order as u64
    }
}

/// Mounts a file system that has no device.
pub(crate) fn mount(kind: &str, to: &str) -> io::Result<()> {
    let (kind, to) = (CString::new(kind)?, CString::new(to)?);
    // SAFETY: three strings that end in NUL and outlive the call; no data.
    result(unsafe { libc_mount(kind.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, null()) })
}

/// Waits until all that was written to stdout has left it, where it is a terminal.
pub(crate) fn drain_stdout() {
    // SAFETY: a number; anything but a terminal answers with an error.
    unsafe { tcdrain(1) };
}

pub(crate) fn power_off() -> ! {
    // SAFETY: no arguments that could be wrong; process 1 may.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
    // A kernel that can't power off stops here; process 1 must not end.
    loop {
        std::thread::park();
    }
}
