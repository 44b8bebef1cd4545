//! What changes page tables as fast as it can, on one processor and on two: page faults, mprotect, munmap, fork and exec; and a
//! computation, to see what a second processor is worth.
//!
//! The group `storms` has one thread of the first three (`exec` is in `kernel`); `scaling`, for guests with two processors, has each by one thread and by two that share the same
//! work: the times of a pair say how much faster two are.

use crate::kernel::{EXEC_ARGUMENT, EXEC_STATUS};
use crate::raw::{self, Mapping, PAGE, Protection};
use crate::workload::{Group, Needs, Random, Run, Workload, fold, try_timed};
use std::io::{self, Error};
use std::thread;

const fn alone(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Storms, needs: Needs::Nothing, iterations, run }
}

const fn pair(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Scaling, needs: Needs::TwoCpus, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    alone("storm-faults", 40_000, |times| threads(1, times, faults)),
    alone("storm-mprotect", 400, |times| threads(1, times, protects)),
    alone("storm-munmap", 12_000, |times| threads(1, times, unmaps)),
    pair("compute-1", 8_000_000, |times| threads(1, times, computes)),
    pair("compute-2", 8_000_000, |times| threads(2, times, computes)),
    pair("faults-1", 40_000, |times| threads(1, times, faults)),
    pair("faults-2", 40_000, |times| threads(2, times, faults)),
    pair("mprotect-1", 400, |times| threads(1, times, protects)),
    pair("mprotect-2", 400, |times| threads(2, times, protects)),
    pair("munmap-1", 12_000, |times| threads(1, times, unmaps)),
    pair("munmap-2", 12_000, |times| threads(2, times, unmaps)),
    pair("exec-1", 40, |times| processes(1, times)),
    pair("exec-2", 40, |times| processes(2, times)),
];

/// `times` iterations by so many threads together.
fn threads(count: u64, times: u64, work: fn(u64) -> io::Result<u64>) -> io::Result<Run> {
    try_timed(|| {
        thread::scope(|scope| {
            let share = |number| times / count + u64::from(number < times % count);
            let workers: Vec<_> = (0..count).map(|number| scope.spawn(move || work(share(number)))).collect();
            let panicked = |_| Error::other("a thread panicked");
            let sums = workers.into_iter().map(|worker| worker.join().map_err(panicked)?);
            sums.sum::<io::Result<u64>>()
        })
    })
}

/// Pages of fresh memory touched, 512 to a mapping.
fn faults(times: u64) -> io::Result<u64> {
    const PAGES: u64 = 512;
    let mut left = times;
    while left > 0 {
        let pages = left.min(PAGES);
        let mut mapping = Mapping::new(pages as usize * PAGE, Protection::ReadWrite)?;
        for page in mapping.bytes().chunks_exact_mut(PAGE) {
            page[left as usize % PAGE] = 1;
        }
        left -= pages;
    }
    Ok(times)
}

/// 64 pages made read-only, writable again and written.
fn protects(times: u64) -> io::Result<u64> {
    const SIZE: usize = 64 * PAGE;
    let mut mapping = Mapping::new(SIZE, Protection::ReadWrite)?;
    for _ in 0..times {
        mapping.protect(0, SIZE, Protection::Read)?;
        mapping.protect(0, SIZE, Protection::ReadWrite)?;
        for page in mapping.bytes().chunks_exact_mut(PAGE) {
            page[0] = page[0].wrapping_add(1);
        }
    }
    Ok(times)
}

/// A page mapped, written and unmapped.
fn unmaps(times: u64) -> io::Result<u64> {
    for _ in 0..times {
        Mapping::new(PAGE, Protection::ReadWrite)?.bytes()[0] = 1;
    }
    Ok(times)
}

/// Numbers without a pattern, added up.
fn computes(times: u64) -> io::Result<u64> {
    let mut random = Random(1);
    let mut sum = 0;
    for _ in 0..times {
        sum = fold(sum, random.next());
    }
    // The sum depends on how the work is shared.
    Ok(if sum == 0 { 0 } else { times })
}

/// Children that become this program again and end at once, by so many processes together.
fn processes(count: u64, times: u64) -> io::Result<Run> {
    let myself = std::env::current_exe()?;
    let work = |times: u64| -> io::Result<()> {
        for _ in 0..times {
            match raw::fork(|| raw::exec(&myself, EXEC_ARGUMENT))?.wait()? {
                EXEC_STATUS => {}
                ended => return Err(Error::other(format!("a child ended with {ended}"))),
            }
        }
        Ok(())
    };
    try_timed(|| {
        let share = |number| times / count + u64::from(number < times % count);
        let others: io::Result<Vec<_>> =
            (1..count).map(|number| raw::fork(|| i32::from(work(share(number)).is_err()))).collect();
        work(share(0))?;
        for other in others? {
            match other.wait()? {
                0 => {}
                ended => return Err(Error::other(format!("a process ended with {ended}"))),
            }
        }
        Ok(times)
    })
}
