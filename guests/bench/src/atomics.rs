//! Locked instructions and the standard library's mutex, without contention.

use crate::raw;
use crate::workload::{Group, Needs, Run, Workload, timed};
use std::hint::black_box;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};

const fn workload(
    name: &'static str,
    needs: Needs,
    iterations: u64,
    run: fn(u64) -> io::Result<Run>,
) -> Workload {
    Workload { name, group: Group::Atomics, needs, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("lock-xadd", Needs::Nothing, 15_000_000, lock_xadd),
    workload("lock-cmpxchg", Needs::Nothing, 12_000_000, lock_cmpxchg),
    workload("lock-cmpxchg16b", Needs::Cmpxchg16b, 6_000_000, |times| {
        timed(|| raw::cmpxchg16b_counter(times))
    }),
    workload("xchg", Needs::Nothing, 15_000_000, xchg),
    workload("fence", Needs::Nothing, 15_000_000, fences),
    workload("mutex", Needs::Nothing, 8_000_000, mutex),
];

fn lock_xadd(times: u64) -> io::Result<Run> {
    let counter = AtomicU64::new(1);
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            sum = sum.wrapping_add(black_box(&counter).fetch_add(time, Ordering::SeqCst));
        }
        sum
    })
}

fn lock_cmpxchg(times: u64) -> io::Result<Run> {
    let counter = AtomicU64::new(1);
    timed(|| {
        for _ in 0..times {
            let mut seen = black_box(&counter).load(Ordering::Relaxed);
            while let Err(now) = counter.compare_exchange(
                seen,
                seen.wrapping_mul(5).wrapping_add(1),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                seen = now;
            }
        }
        counter.load(Ordering::Relaxed)
    })
}

fn xchg(times: u64) -> io::Result<Run> {
    let cell = AtomicU64::new(1);
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            sum = sum.wrapping_mul(3).wrapping_add(black_box(&cell).swap(time, Ordering::SeqCst));
        }
        sum
    })
}

fn fences(times: u64) -> io::Result<Run> {
    let cell = AtomicU64::new(0);
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            black_box(&cell).store(time, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
        sum
    })
}

fn mutex(times: u64) -> io::Result<Run> {
    let counter = Mutex::new(1u64);
    timed(|| {
        for time in 0..times {
            let mut counter = black_box(&counter).lock().expect("nobody panics");
            *counter = counter.wrapping_mul(3).wrapping_add(time);
        }
        *counter.lock().expect("nobody panics")
    })
}
