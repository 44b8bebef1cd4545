//! SIMD exceptions that a stub's instruction raises on the host: SIGFPE.
//!
//! The guest's own masks are in force while its instruction runs, so the host decides what is raised and which flags go with
//! it (SDM 1 11.5.3). The kernel makes a signal of the exception. The handler sees that it comes from the stub that its thread
//! runs, notes MXCSR as it was at the fault, and lets the stub go on at its second exit. Every other SIGFPE goes to whoever
//! handled it before.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

/// The stub that a thread runs.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// Where its code starts.
    pub(super) start: u64,
    /// Its second exit: what raises exceptions lies before it.
    pub(super) resume: u64,
    /// Takes MXCSR.
    pub(super) mxcsr: *mut u32,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// The handler before ours, once ours is installed, or the host's error number.
static BEFORE: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// Says what this thread runs from now on.
pub(super) fn watch(running: Option<Running>) {
    RUNNING.set(running);
    // The handler, on this thread, reads what was set.
    compiler_fence(Ordering::SeqCst);
}

/// Installs the handler, once in a process.
pub(super) fn install() -> io::Result<()> {
    let before = BEFORE.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`; the handler keeps to what handlers may do.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGFPE, &raw const action, &raw mut before) != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
            }
            Ok(before)
        }
    });
    before.as_ref().map(|_| ()).map_err(|number| io::Error::from_raw_os_error(*number))
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t` that the handler may change, with the FPU's state behind `fpregs`; `mxcsr`
    // belongs to the frame of the stub that was interrupted.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let rip = machine.gregs[libc::REG_RIP as usize] as u64;
        if let Some(running) = RUNNING.get()
            && (running.start..running.resume).contains(&rip)
            && !machine.fpregs.is_null()
        {
            running.mxcsr.write((*machine.fpregs).mxcsr);
            machine.gregs[libc::REG_RIP as usize] = running.resume as i64;
            return;
        }
    }
    forward(signal, info, context);
}

/// Does what would have happened without us.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().and_then(|before| before.as_ref().ok());
    // SAFETY: calls the handler before us as the kernel would; or restores the default action, under which the instruction
    // faults again and ends the process.
    unsafe {
        match before {
            Some(before) if !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
                // One that takes a single argument doesn't look at the others.
                let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(before.sa_sigaction);
                call(signal, info, context);
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
