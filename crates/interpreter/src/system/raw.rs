//! The host's time-stamp counter: the one instruction here that Rust calls unsafe.

#![allow(unsafe_code, reason = "reading the TSC is an intrinsic that Rust marks unsafe")]

/// The host's TSC.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: RDTSC reads a counter and touches no memory; every x86-64 CPU has it, and Linux leaves CR4.TSD clear unless a
    // process asks for it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
