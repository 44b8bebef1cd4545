//! What the protocols among threads are made of (`log`, `direct`, `page`): the standard library's, which the models in `tests/models.rs`
//! replace by loom's.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Pages that a log keeps.
pub(crate) const LOG_SLOTS: usize = 1024;

/// Something another thread does soon is waited for, for the so-manieth time.
pub(crate) fn wait(turns: u32) {
    if turns < 100 { std::hint::spin_loop() } else { std::thread::yield_now() }
}
