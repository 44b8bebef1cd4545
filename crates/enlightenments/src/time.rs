//! The host's clocks that interfaces account by.

use rustix::time::{ClockId, clock_gettime};

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Wall time in nanoseconds, from some moment on.
pub(crate) fn wall_nanos() -> u64 {
    nanos(ClockId::Monotonic)
}

/// CPU time of the calling thread in nanoseconds.
pub(crate) fn thread_nanos() -> u64 {
    nanos(ClockId::ThreadCPUTime)
}
