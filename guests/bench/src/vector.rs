//! Floating point, SIMD and cryptography: what software that emulates arithmetic is slowest at.
//!
//! Nothing here rounds differently from machine to machine: no fused operations, no transcendental functions, and the
//! compiler keeps the order of IEEE operations.

use crate::raw;
use crate::workload::{Group, Needs, Random, Run, Workload, fold, timed};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::io;

const fn workload(
    name: &'static str,
    needs: Needs,
    iterations: u64,
    run: fn(u64) -> io::Result<Run>,
) -> Workload {
    Workload { name, group: Group::Vector, needs, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("sha256-plain", Needs::Nothing, 600, |times| sha256(times, plain)),
    workload("sha256-ni", Needs::Sha, 4000, |times| sha256(times, raw::sha256_blocks)),
    workload("aes-ni", Needs::Aes, 3_000_000, |times| timed(|| raw::aes_chains(times))),
    workload("nbody", Needs::Nothing, 500_000, nbody),
    workload("mandelbrot-scalar", Needs::Nothing, 1500, |rows| timed(|| mandelbrot(rows, row_scalar))),
    workload("mandelbrot-sse2", Needs::Nothing, 3000, |rows| {
        // SAFETY: every 64-bit CPU has SSE2.
        timed(|| mandelbrot(rows, |y| unsafe { row_sse2(y) }))
    }),
    workload("mandelbrot-avx2", Needs::Avx2, 6000, |rows| {
        // SAFETY: the CPU has AVX2, which this workload needs.
        timed(|| mandelbrot(rows, |y| unsafe { row_avx2(y) }))
    }),
    workload("sse2-integer", Needs::Nothing, 25_000, sse2_integer),
    workload("avx2-integer", Needs::Avx2, 40_000, avx2_integer),
    workload("x87", Needs::Nothing, 8_000_000, |turns| timed(|| raw::x87(turns).to_bits())),
];

/// FIPS 180-4, 4.2.2.
pub(crate) const SHA256_CONSTANTS: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// The SHA-256 digest's first 8 bytes of a message of 16 KiB times the iterations, whose byte i is 7i + 3.
fn sha256(times: u64, blocks: impl Fn(&mut [u32; 8], &[u8])) -> io::Result<Run> {
    const PIECE: usize = 16 << 10;
    let piece: Vec<u8> = (0..PIECE).map(|index| (7 * index + 3) as u8).collect();
    timed(|| {
        // FIPS 180-4, 5.3.3.
        let mut state =
            [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
        for _ in 0..times {
            blocks(&mut state, black_box(&piece));
        }
        let mut last = [0u8; 64];
        last[0] = 0x80;
        last[56..].copy_from_slice(&(times * PIECE as u64 * 8).to_be_bytes());
        blocks(&mut state, &last);
        u64::from(state[0]) << 32 | u64::from(state[1])
    })
}

/// FIPS 180-4, 6.2.2.
fn plain(state: &mut [u32; 8], message: &[u8]) {
    for block in message.chunks_exact(64) {
        let mut schedule = [0u32; 64];
        for (word, bytes) in schedule.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for t in 16..64 {
            let (early, late) = (schedule[t - 15], schedule[t - 2]);
            let small0 = early.rotate_right(7) ^ early.rotate_right(18) ^ (early >> 3);
            let small1 = late.rotate_right(17) ^ late.rotate_right(19) ^ (late >> 10);
            schedule[t] =
                schedule[t - 16].wrapping_add(small0).wrapping_add(schedule[t - 7]).wrapping_add(small1);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (constant, word) in SHA256_CONSTANTS.iter().zip(schedule) {
            let large1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let choice = (e & f) ^ (!e & g);
            let first =
                h.wrapping_add(large1).wrapping_add(choice).wrapping_add(*constant).wrapping_add(word);
            let large0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let second = large0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e) = (g, f, e, d.wrapping_add(first));
            (d, c, b, a) = (c, b, a, first.wrapping_add(second));
        }
        for (to, value) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *to = to.wrapping_add(value);
        }
    }
}

/// Five bodies that attract each other, in scalar double precision with square roots and divisions.
fn nbody(steps: u64) -> io::Result<Run> {
    #[derive(Clone, Copy)]
    struct Body {
        place: [f64; 3],
        speed: [f64; 3],
        mass: f64,
    }
    let mut random = Random(11);
    let mut number = || (random.next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
    let mut bodies = [Body { place: [0.0; 3], speed: [0.0; 3], mass: 40.0 }; 5];
    for (index, body) in bodies.iter_mut().enumerate().skip(1) {
        let distance = 4.0 * index as f64;
        body.place = [distance * (1.0 + number()), distance * number(), number()];
        body.speed = [number(), number(), 0.1 * number()];
        body.mass = 0.01 * (1.0 + number());
    }
    timed(|| {
        const STEP: f64 = 0.001;
        for _ in 0..steps {
            for first in 0..bodies.len() {
                for second in first + 1..bodies.len() {
                    let (a, b) = (bodies[first], bodies[second]);
                    let apart: [f64; 3] = std::array::from_fn(|axis| a.place[axis] - b.place[axis]);
                    let square = apart[0] * apart[0] + apart[1] * apart[1] + apart[2] * apart[2] + 0.01;
                    let pull = STEP / (square * square.sqrt());
                    for (axis, distance) in apart.into_iter().enumerate() {
                        bodies[first].speed[axis] -= distance * b.mass * pull;
                        bodies[second].speed[axis] += distance * a.mass * pull;
                    }
                }
            }
            for body in &mut bodies {
                for axis in 0..3 {
                    body.place[axis] += STEP * body.speed[axis];
                }
            }
        }
        bodies.iter().flat_map(|body| body.place).fold(0, |sum, place| fold(sum, place.to_bits()))
    })
}

/// Points of a row of the picture, and steps until a point counts as inside.
const POINTS: usize = 256;
const STEPS: u32 = 100;

/// The real part of a point.
fn x_of(point: usize) -> f64 {
    -2.0 + 2.5 * point as f64 / POINTS as f64
}

/// Rows of the Mandelbrot set, 64 of which make a picture. The same whatever computes the rows.
fn mandelbrot(rows: u64, row: impl Fn(f64) -> u64) -> u64 {
    (0..rows).map(|number| row(-1.25 + 2.5 * (number % 64) as f64 / 64.0)).fold(0, fold)
}

fn row_scalar(y: f64) -> u64 {
    let mut total = 0;
    for point in 0..POINTS {
        let x = x_of(point);
        let (mut re, mut im) = (0.0, 0.0);
        for _ in 0..STEPS {
            let (re_square, im_square) = (re * re, im * im);
            if re_square + im_square > 4.0 {
                break;
            }
            let product: f64 = re * im;
            im = product + product + y;
            re = re_square - im_square + x;
            total += 1;
        }
    }
    total
}

#[target_feature(enable = "sse2")]
fn row_sse2(y: f64) -> u64 {
    let (four, y) = (_mm_set1_pd(4.0), _mm_set1_pd(y));
    let mut total = _mm_setzero_si128();
    for point in (0..POINTS).step_by(2) {
        let x = _mm_set_pd(x_of(point + 1), x_of(point));
        let (mut re, mut im) = (_mm_setzero_pd(), _mm_setzero_pd());
        for _ in 0..STEPS {
            let (re_square, im_square) = (_mm_mul_pd(re, re), _mm_mul_pd(im, im));
            let inside = _mm_cmple_pd(_mm_add_pd(re_square, im_square), four);
            if _mm_movemask_pd(inside) == 0 {
                break;
            }
            // A point that has left stays outside: its values only grow, or become no numbers.
            total = _mm_sub_epi64(total, _mm_castpd_si128(inside));
            let product = _mm_mul_pd(re, im);
            im = _mm_add_pd(_mm_add_pd(product, product), y);
            re = _mm_add_pd(_mm_sub_pd(re_square, im_square), x);
        }
    }
    (_mm_cvtsi128_si64(total) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(total, total))) as u64
}

#[target_feature(enable = "avx2")]
fn row_avx2(y: f64) -> u64 {
    let (four, y) = (_mm256_set1_pd(4.0), _mm256_set1_pd(y));
    let mut total = _mm256_setzero_si256();
    for point in (0..POINTS).step_by(4) {
        let x = _mm256_set_pd(x_of(point + 3), x_of(point + 2), x_of(point + 1), x_of(point));
        let (mut re, mut im) = (_mm256_setzero_pd(), _mm256_setzero_pd());
        for _ in 0..STEPS {
            let (re_square, im_square) = (_mm256_mul_pd(re, re), _mm256_mul_pd(im, im));
            let inside = _mm256_cmp_pd::<_CMP_LE_OS>(_mm256_add_pd(re_square, im_square), four);
            if _mm256_movemask_pd(inside) == 0 {
                break;
            }
            total = _mm256_sub_epi64(total, _mm256_castpd_si256(inside));
            let product = _mm256_mul_pd(re, im);
            im = _mm256_add_pd(_mm256_add_pd(product, product), y);
            re = _mm256_add_pd(_mm256_sub_pd(re_square, im_square), x);
        }
    }
    (_mm256_extract_epi64::<0>(total)
        + _mm256_extract_epi64::<1>(total)
        + _mm256_extract_epi64::<2>(total)
        + _mm256_extract_epi64::<3>(total)) as u64
}

/// The numbers that the integer workloads go over: 8 KiB.
fn lanes() -> Vec<i32> {
    let mut random = Random(12);
    (0..2048).map(|_| random.next() as i32).collect()
}

/// Shifts, additions, comparisons, minima, shuffles and a widening multiplication of 4 lanes.
fn sse2_integer(passes: u64) -> io::Result<Run> {
    #[target_feature(enable = "sse2")]
    fn work(numbers: &[i32], passes: u64) -> u64 {
        let mut state = _mm_set_epi32(4, 3, 2, 1);
        for _ in 0..passes {
            for four in black_box(numbers).chunks_exact(4) {
                let value = _mm_set_epi32(four[3], four[2], four[1], four[0]);
                state = _mm_add_epi32(_mm_xor_si128(state, _mm_srli_epi32::<13>(state)), value);
                let greater = _mm_cmpgt_epi32(state, value);
                state = _mm_sub_epi32(state, _mm_and_si128(greater, _mm_min_epi16(state, value)));
                state = _mm_add_epi64(_mm_shuffle_epi32::<0b10_01_11_00>(state), _mm_mul_epu32(state, value));
            }
        }
        let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(state, state));
        fold(_mm_cvtsi128_si64(state) as u64, high as u64)
    }
    let numbers = lanes();
    // SAFETY: every 64-bit CPU has SSE2.
    timed(|| unsafe { work(&numbers, passes) })
}

/// The same with 8 lanes, and with the multiplications, shuffles and variable shifts that came with AVX2.
fn avx2_integer(passes: u64) -> io::Result<Run> {
    #[target_feature(enable = "avx2")]
    fn work(numbers: &[i32], passes: u64) -> u64 {
        let mut state = _mm256_set_epi32(8, 7, 6, 5, 4, 3, 2, 1);
        let turned = _mm256_set_epi32(0, 7, 6, 5, 4, 3, 2, 1);
        let counts = _mm256_set_epi32(3, 5, 7, 9, 11, 13, 15, 17);
        for _ in 0..passes {
            for eight in black_box(numbers).chunks_exact(8) {
                let value = _mm256_set_epi32(
                    eight[7], eight[6], eight[5], eight[4], eight[3], eight[2], eight[1], eight[0],
                );
                state = _mm256_add_epi32(_mm256_xor_si256(state, _mm256_srlv_epi32(state, counts)), value);
                let greater = _mm256_cmpgt_epi32(state, value);
                state = _mm256_blendv_epi8(_mm256_shuffle_epi8(state, counts), state, greater);
                state = _mm256_mullo_epi32(_mm256_permutevar8x32_epi32(state, turned), value);
            }
        }
        [
            _mm256_extract_epi64::<0>(state),
            _mm256_extract_epi64::<1>(state),
            _mm256_extract_epi64::<2>(state),
            _mm256_extract_epi64::<3>(state),
        ]
        .into_iter()
        .fold(0, |checksum, lane| fold(checksum, lane as u64))
    }
    let numbers = lanes();
    // SAFETY: the CPU has AVX2, which this workload needs.
    timed(|| unsafe { work(&numbers, passes) })
}
