//! A thread's umask.

#![allow(unsafe_code, reason = "a thread is taken out of what all threads share")]

use rustix::thread::UnshareFlags;

/// Gives the calling thread a umask, working folder and root of its own, so that what it does to them is nobody else's. The umask
/// becomes 0: guests mask modes themselves.
///
/// # Errors
/// The host's refusal.
pub(crate) fn own_umask() -> std::io::Result<()> {
    // SAFETY: without shared file-system attributes a thread only loses others' later changes to them; descriptors and memory, which
    // Rust's types count on, stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}
