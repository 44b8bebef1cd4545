//! What a workload is, and what all of them need: the clock, a source of numbers, a way to fold results.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Workloads that are judged together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Group {
    Integer,
    Memory,
    Vector,
    Kernel,
    Switches,
    Storms,
    Scaling,
    Atomics,
    Code,
    Programs,
}

impl Group {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Integer => "integer",
            Group::Memory => "memory",
            Group::Vector => "vector",
            Group::Kernel => "kernel",
            Group::Switches => "switches",
            Group::Storms => "storms",
            Group::Scaling => "scaling",
            Group::Atomics => "atomics",
            Group::Code => "code",
            Group::Programs => "programs",
        }
    }
}

/// What the CPU or the root file system must have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needs {
    Nothing,
    Cmpxchg16b,
    Aes,
    Sha,
    Avx2,
    /// A second processor.
    TwoCpus,
    /// A program, by its path.
    File(&'static str),
}

impl Needs {
    /// What is missing.
    pub(crate) fn missing(self) -> Option<String> {
        let (there, name) = match self {
            Needs::Nothing => return None,
            Needs::Cmpxchg16b => (is_x86_feature_detected!("cmpxchg16b"), "CMPXCHG16B"),
            Needs::Aes => (is_x86_feature_detected!("aes"), "AES-NI"),
            Needs::Sha => {
                let ssse3 = is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1");
                (is_x86_feature_detected!("sha") && ssse3, "SHA-NI")
            }
            Needs::Avx2 => (is_x86_feature_detected!("avx2"), "AVX2"),
            Needs::TwoCpus => {
                (thread::available_parallelism().is_ok_and(|count| count.get() > 1), "second processor")
            }
            Needs::File(path) => (Path::new(path).exists(), path),
        };
        (!there).then(|| format!("no {name}"))
    }
}

/// A fixed amount of work, and how it is done.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) needs: Needs,
    /// Iterations at scale 1: 20 to 100 ms on a machine of today.
    pub(crate) iterations: u64,
    pub(crate) run: fn(u64) -> io::Result<Run>,
}

/// One run of a workload.
pub(crate) struct Run {
    pub(crate) time: Duration,
    /// The same wherever the same number of iterations runs.
    pub(crate) checksum: u64,
}

/// Times `work`; what was prepared before isn't counted.
pub(crate) fn timed(work: impl FnOnce() -> u64) -> io::Result<Run> {
    try_timed(|| Ok(work()))
}

/// As [`timed`], for work that the kernel can refuse.
pub(crate) fn try_timed(work: impl FnOnce() -> io::Result<u64>) -> io::Result<Run> {
    let start = Instant::now();
    let checksum = black_box(work()?);
    Ok(Run { time: start.elapsed(), checksum })
}

/// Numbers without a pattern, always the same: a 64-bit counter, mixed (Steele and others, "Fast splittable pseudorandom
/// number generators", 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Adds a number to a checksum; the order counts.
pub(crate) fn fold(checksum: u64, value: u64) -> u64 {
    (checksum.rotate_left(5) ^ value).wrapping_mul(0x2545_f491_4f6c_dd1d)
}
