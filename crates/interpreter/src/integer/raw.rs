//! The host's random numbers. Unsafe because the host may lack the instructions; callers ask first.

#![expect(unsafe_code, reason = "RDRAND and RDSEED are not in every CPU")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{_rdrand64_step, _rdseed64_step};

/// RDRAND: a random number, or `None` where there is none at the moment (or ever).
pub(super) fn rdrand() -> Option<u64> {
    let mut value = 0;
    // SAFETY: the feature was just found.
    (is_x86_feature_detected!("rdrand") && unsafe { _rdrand64_step(&mut value) } == 1).then_some(value)
}

/// RDSEED: a seed, or `None` where there is none at the moment (or ever).
pub(super) fn rdseed() -> Option<u64> {
    let mut value = 0;
    // SAFETY: the feature was just found.
    (is_x86_feature_detected!("rdseed") && unsafe { _rdseed64_step(&mut value) } == 1).then_some(value)
}
