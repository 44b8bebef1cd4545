//! Memory: latency of dependent loads, copies, fills and string functions of several sizes.

use crate::raw;
use crate::workload::{Group, Needs, Random, Run, Workload, fold, timed};
use std::hint::black_box;
use std::io;

const fn workload(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Memory, needs: Needs::Nothing, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("chase-64k", 8_000_000, |steps| chase(64 << 10, steps)),
    workload("chase-4m", 2_000_000, |steps| chase(4 << 20, steps)),
    workload("chase-64m", 300_000, |steps| chase(64 << 20, steps)),
    workload("update", 10_000, update),
    workload("unaligned", 10_000, unaligned),
    workload("memcpy-64", 12_000_000, |times| copy(64, times)),
    workload("memcpy-4k", 300_000, |times| copy(4 << 10, times)),
    workload("memcpy-1m", 1500, |times| copy(1 << 20, times)),
    workload("memset-64", 12_000_000, |times| fill(64, times)),
    workload("memset-4k", 800_000, |times| fill(4 << 10, times)),
    workload("memset-1m", 3000, |times| fill(1 << 20, times)),
    workload("strings-16", 5_000_000, |times| strings(16, times)),
    workload("strings-256", 2_000_000, |times| strings(256, times)),
    workload("strings-4k", 250_000, |times| strings(4 << 10, times)),
    workload("rep-movsb-64", 8_000_000, |times| rep_movsb(64, times)),
    workload("rep-movsb-4k", 400_000, |times| rep_movsb(4 << 10, times)),
    workload("rep-stosq-4k", 1_000_000, rep_stosq),
];

/// Follows a chain that visits every cache line of `bytes` once, in no order.
fn chase(bytes: usize, steps: u64) -> io::Result<Run> {
    #[repr(align(64))]
    #[derive(Clone)]
    struct Line {
        next: u32,
    }
    let count = bytes / size_of::<Line>();
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut random = Random(bytes as u64);
    // Sattolo's shuffle leaves a single cycle.
    for index in (1..count).rev() {
        order.swap(index, (random.next() % index as u64) as usize);
    }
    let lines: Vec<Line> = order.into_iter().map(|next| Line { next }).collect();
    timed(|| {
        let lines = black_box(&lines);
        let mut place = 0;
        for _ in 0..steps {
            place = lines[place as usize].next;
        }
        u64::from(place)
    })
}

/// Reads, changes and writes each of 4096 words in place.
fn update(passes: u64) -> io::Result<Run> {
    let mut words = vec![1u64; 4096];
    timed(|| {
        for pass in 0..passes {
            let mut carry = pass;
            for word in black_box(&mut words).iter_mut() {
                // One after the other: the compiler may not make vectors of it.
                *word = word.wrapping_add(carry).rotate_left(7);
                carry ^= *word;
            }
        }
        words.iter().fold(0, |checksum, &word| fold(checksum, word))
    })
}

/// Loads and stores of 8 bytes at odd addresses over 32 KiB, now and then across lines and pages.
fn unaligned(passes: u64) -> io::Result<Run> {
    let mut bytes = Random(8).bytes(32 << 10);
    timed(|| {
        let mut sum = 0u64;
        for _ in 0..passes {
            for start in (1..bytes.len() - 8).step_by(13) {
                let word: &mut [u8] = &mut bytes[start..start + 8];
                let value = u64::from_le_bytes(word.try_into().expect("eight bytes")).wrapping_add(sum);
                word.copy_from_slice(&value.to_le_bytes());
                sum = fold(sum, value);
            }
        }
        sum
    })
}

/// The C library's memcpy.
fn copy(size: usize, times: u64) -> io::Result<Run> {
    let from = Random(9).bytes(size);
    let mut to = vec![0u8; size];
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            let size = black_box(size);
            black_box(&mut to)[..size].copy_from_slice(&black_box(&from)[..size]);
            sum = sum.wrapping_add(u64::from(to[time as usize % size]));
        }
        sum
    })
}

/// The C library's memset.
fn fill(size: usize, times: u64) -> io::Result<Run> {
    let mut to = vec![0u8; size];
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            let size = black_box(size);
            black_box(&mut to)[..size].fill(time as u8);
            sum = sum.wrapping_add(u64::from(to[time as usize % size]));
        }
        sum
    })
}

/// The C library's strlen, memchr, strcmp and memcmp on equal strings.
fn strings(size: usize, times: u64) -> io::Result<Run> {
    let mut first = vec![b'x'; size];
    first[size - 2] = b'y';
    first[size - 1] = 0;
    let second = first.clone();
    timed(|| {
        let mut sum = 0u64;
        for _ in 0..times {
            let (first, second) = (black_box(&first[..]), black_box(&second[..]));
            sum = sum.wrapping_add(raw::string_functions(first, second));
        }
        sum
    })
}

fn rep_movsb(size: usize, times: u64) -> io::Result<Run> {
    let from = Random(10).bytes(size);
    let mut to = vec![0u8; size];
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            raw::rep_movsb(black_box(&mut to), black_box(&from));
            sum = sum.wrapping_add(u64::from(to[time as usize % size]));
        }
        sum
    })
}

fn rep_stosq(times: u64) -> io::Result<Run> {
    let mut to = vec![0u64; 512];
    timed(|| {
        let mut sum = 0u64;
        for time in 0..times {
            raw::rep_stosq(black_box(&mut to), time);
            sum = sum.wrapping_add(to[time as usize % 512]);
        }
        sum
    })
}
