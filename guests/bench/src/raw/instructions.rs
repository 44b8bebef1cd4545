//! Workloads that are single instructions, in assembly or by the compiler's names for them.

use crate::vector::SHA256_CONSTANTS;
use std::arch::asm;
use std::arch::x86_64::*;

/// A load of two bytes' length, which may fault where somebody skips it.
pub(super) fn load_byte(from: *const u8) {
    // SAFETY: what is loaded is thrown away, and a fault is the handler's business.
    unsafe { asm!("mov al, [rdi]", in("rdi") from, out("al") _, options(nostack)) };
}

/// Copies with `rep movsb`.
pub(crate) fn rep_movsb(to: &mut [u8], from: &[u8]) {
    assert!(to.len() == from.len());
    // SAFETY: two ranges of the size.
    unsafe {
        asm!("rep movsb", inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            inout("rsi") from.as_ptr() => _, options(nostack, preserves_flags));
    }
}

/// Fills with `rep stosq`.
pub(crate) fn rep_stosq(to: &mut [u64], value: u64) {
    // SAFETY: a range of the size.
    unsafe {
        asm!("rep stosq", inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _, in("rax") value,
            options(nostack, preserves_flags));
    }
}

/// The sum of 1 / sqrt(1 + x * x) for x from 1, on the x87 stack.
pub(crate) fn x87(turns: u64) -> f64 {
    let mut sum = 0.0f64;
    // SAFETY: eight registers are free, as the calling convention has it, and are again afterwards.
    unsafe {
        asm!(
            "fldz",
            "fld1",                 // x, sum
            "2:",
            "fld st(0)",
            "fmul st(0), st(0)",
            "fld1",
            "faddp st(1), st(0)",   // 1 + x * x, x, sum
            "fsqrt",
            "fld1",
            "fdiv st(0), st(1)",
            "faddp st(3), st(0)",   // root, x, sum
            "fstp st(0)",
            "fld1",
            "faddp st(1), st(0)",   // x + 1, sum
            "dec {turns}",
            "jnz 2b",
            "fstp st(0)",
            "fstp qword ptr [{sum}]",
            turns = inout(reg) turns.max(1) => _,
            sum = in(reg) &raw mut sum,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack)
        );
    }
    sum
}

/// Counts to `times` in 128 bits, by compare-and-exchange from 2^64 - 1000.
pub(crate) fn cmpxchg16b_counter(times: u64) -> u64 {
    #[repr(align(16))]
    struct Counter([u64; 2]);
    let mut counter = Counter([u64::MAX - 999, 0]);
    for _ in 0..times {
        let (low, high) = (counter.0[0], counter.0[1]);
        let (next, carry) = low.overflowing_add(1);
        // SAFETY: 16 aligned bytes. RBX is the compiler's, so that it is exchanged for the time being.
        unsafe {
            asm!("xchg rbx, {next}", "lock cmpxchg16b [{counter}]", "mov rbx, {next}",
                next = inout(reg) next => _, counter = in(reg) &raw mut counter,
                inout("rax") low => _, inout("rdx") high => _, in("rcx") high + u64::from(carry),
                options(nostack));
        }
    }
    counter.0[0] ^ counter.0[1].rotate_left(32)
}

/// AES-128 in CBC mode (NIST SP 800-38A) on zeros, four chains at a time that start from 1 to 4: the exclusive OR of the
/// chains' ends. The CPU must have AES-NI.
pub(crate) fn aes_chains(times: u64) -> u64 {
    // SAFETY: the CPU has AES-NI, which the workload needs.
    unsafe { chains(times) }
}

#[target_feature(enable = "aes,sse2")]
fn chains(times: u64) -> u64 {
    let keys = round_keys(_mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, 0x0706_0504_0302_0100));
    let mut chains = [1, 2, 3, 4].map(|start| _mm_set_epi64x(0, start));
    for _ in 0..times {
        chains = chains.map(|chain| _mm_xor_si128(chain, keys[0]));
        for key in &keys[1..10] {
            chains = chains.map(|chain| _mm_aesenc_si128(chain, *key));
        }
        chains = chains.map(|chain| _mm_aesenclast_si128(chain, keys[10]));
    }
    let [a, b, c, d] = chains;
    _mm_cvtsi128_si64(_mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d))) as u64
}

/// FIPS 197, 5.2.
#[target_feature(enable = "aes,sse2")]
fn round_keys(key: __m128i) -> [__m128i; 11] {
    #[target_feature(enable = "sse2")]
    fn next(key: __m128i, assist: __m128i) -> __m128i {
        let mut sum = key;
        let mut shifted = key;
        for _ in 0..3 {
            shifted = _mm_slli_si128::<4>(shifted);
            sum = _mm_xor_si128(sum, shifted);
        }
        _mm_xor_si128(sum, _mm_shuffle_epi32::<0xff>(assist))
    }
    let mut keys = [key; 11];
    macro_rules! rounds {
        ($($index:literal $constant:literal)*) => {
            $(keys[$index] = next(keys[$index - 1], _mm_aeskeygenassist_si128::<$constant>(keys[$index - 1]));)*
        };
    }
    rounds!(1 0x01  2 0x02  3 0x04  4 0x08  5 0x10  6 0x20  7 0x40  8 0x80  9 0x1b  10 0x36);
    keys
}

/// SHA-256's compression of whole blocks with SHA-NI, which the CPU must have.
pub(crate) fn sha256_blocks(state: &mut [u32; 8], message: &[u8]) {
    // SAFETY: the CPU has SHA-NI, SSSE3 and SSE4.1, which the workload needs.
    unsafe { blocks(state, message) }
}

/// SDM 2, SHA256RNDS2: one register holds the state's words A, B, E, F, another C, D, G, H.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn blocks(state: &mut [u32; 8], message: &[u8]) {
    let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
    let mut abef = _mm_set_epi32(a, b, e, f);
    let mut cdgh = _mm_set_epi32(c, d, g, h);
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    for block in message.chunks_exact(64) {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut words = [_mm_setzero_si128(); 4];
        for (four, bytes) in words.iter_mut().zip(block.chunks_exact(16)) {
            // SAFETY: 16 bytes; no alignment is wanted.
            *four = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }, swap);
        }
        for constants in SHA256_CONSTANTS.chunks_exact(4) {
            let [k0, k1, k2, k3] = [0, 1, 2, 3].map(|index| constants[index] as i32);
            let sum = _mm_add_epi32(words[0], _mm_set_epi32(k3, k2, k1, k0));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0b00_00_11_10>(sum));
            // The four words of 16 rounds on; after round 48 nobody takes them.
            let older = _mm_add_epi32(
                _mm_sha256msg1_epu32(words[0], words[1]),
                _mm_alignr_epi8::<4>(words[3], words[2]),
            );
            words = [words[1], words[2], words[3], _mm_sha256msg2_epu32(older, words[3])];
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    *state = [
        _mm_extract_epi32::<3>(abef),
        _mm_extract_epi32::<2>(abef),
        _mm_extract_epi32::<3>(cdgh),
        _mm_extract_epi32::<2>(cdgh),
        _mm_extract_epi32::<1>(abef),
        _mm_extract_epi32::<0>(abef),
        _mm_extract_epi32::<1>(cdgh),
        _mm_extract_epi32::<0>(cdgh),
    ]
    .map(|word| word as u32);
}
