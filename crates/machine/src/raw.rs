//! The one unsafe call of this crate: reading the host's time-stamp counter, for which the standard library has no safe
//! function. Called by [`clock`](crate::clock) only.

#![expect(unsafe_code, reason = "RDTSC has no safe form in core::arch")]

/// The host's time-stamp counter.
#[inline]
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves CR4.TSD clear unless the process asked for PR_TSC_SIGSEGV;
    // even then the instruction only faults and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}
