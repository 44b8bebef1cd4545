//! Faults of translated code.
//!
//! A guest instruction that is run as itself may fault as itself: #DE, SIMD and x87 exceptions, a misaligned MOVAPS, an address that
//! isn't canonical. The host's kernel makes a signal of it. The handler finds that the program counter is in the running vCPU's code
//! memory and makes the thread go on in a stub that leaves translated code with all registers as they are; the reference engine
//! then executes the instruction, and raises what it raises. A fault on the guard of the return stack starts that stack over.
//! Everything else goes to whoever handled the signal before.
//!
//! The handlers run on an alternate stack, since translated code's stack holds return addresses only.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// What the handler needs to know of the vCPU that runs on a thread.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    /// Code memory.
    pub(crate) code: (u64, u64),
    /// Guards of the return stacks, and where the stacks start.
    pub(crate) guards: [(u64, u64); 2],
    pub(crate) stack_starts: [u64; 2],
    /// The stub for faults.
    pub(crate) fault_stub: u64,
    /// Where to put the address of the faulting instruction.
    pub(crate) argument: *mut u64,
}

/// Bytes at the top of the return stack that it keeps when it starts over.
const KEPT: u64 = 32;

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
    static ALTERNATE: Cell<bool> = const { Cell::new(false) };
}

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// Says which vCPU runs on this thread from now on; `None`: none.
pub(crate) fn set_running(running: Option<Running>) {
    RUNNING.set(running);
}

/// Makes the calling thread ready to run translated code.
///
/// # Errors
/// The host's, where it refuses handlers or memory for their stack.
pub(crate) fn prepare_thread() -> io::Result<()> {
    if ALTERNATE.get() {
        return Ok(());
    }
    install()?;
    // SAFETY: plain system calls; the stack is leaked, so it outlives the thread.
    unsafe {
        let mut old: libc::stack_t = std::mem::zeroed();
        if libc::sigaltstack(std::ptr::null(), &raw mut old) != 0 {
            return Err(io::Error::last_os_error());
        }
        if old.ss_flags & libc::SS_DISABLE != 0 {
            // Room for the handler and the largest vector state.
            let size = 64 << 10;
            let memory = libc::mmap(
                null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let new = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: size };
            if libc::sigaltstack(&raw const new, null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    ALTERNATE.set(true);
    Ok(())
}

static OLD: OnceLock<Vec<libc::sigaction>> = OnceLock::new();

fn install() -> io::Result<()> {
    let mut failed = None;
    OLD.get_or_init(|| {
        let mut old = Vec::new();
        for signal in SIGNALS {
            // SAFETY: installs a handler that keeps to what handlers may do.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, &raw const action, &raw mut before) != 0 {
                    failed = Some(io::Error::last_os_error());
                }
                old.push(before);
            }
        }
        old
    });
    failed.map_or(Ok(()), Err)
}

fn contains((start, end): (u64, u64), address: u64) -> bool {
    Range { start, end }.contains(&address)
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t` that the handler may change, and the thread goes on with what is in it.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let pc = registers[libc::REG_RIP as usize] as u64;
        if let Some(running) = RUNNING.get()
            && contains(running.code, pc)
        {
            let address = (*info).si_addr() as u64;
            let stack = registers[libc::REG_RSP as usize] as u64;
            let guard = running.guards.iter().position(|&guard| contains(guard, address));
            if signal == libc::SIGSEGV
                && let Some(index) = guard
                && stack <= running.guards[index].1 + 64
            {
                // A call or push found the stack full: again, on an empty one. What is on top goes along: it may have been a stub's
                // push, and the stub returns to its caller.
                let top = running.stack_starts[index] - KEPT;
                std::ptr::copy_nonoverlapping(stack as *const u8, top as *mut u8, KEPT as usize);
                registers[libc::REG_RSP as usize] = top as i64;
                return;
            }
            running.argument.write(pc);
            registers[libc::REG_RIP as usize] = running.fault_stub as i64;
            return;
        }
    }
    forward(signal, info, context);
}

/// Hands a signal that isn't ours to the handler before us.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&own| own == signal);
    let old = index.and_then(|index| OLD.get().and_then(|old| old.get(index)));
    // SAFETY: calls the old handler as the kernel would, or restores the default action, under which the instruction faults again.
    unsafe {
        match old {
            Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(old.sa_sigaction);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(libc::c_int) = std::mem::transmute(old.sa_sigaction);
                    call(signal);
                }
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
