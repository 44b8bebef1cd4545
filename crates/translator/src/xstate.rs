//! The XSAVE image in which vector registers wait while Rust runs, and its conversion to and from
//! [`VectorState`] (standard format: SDM 1 13.4.1, 13.4.2).

use crate::Without;
use crate::emit::VectorLevel;
use crate::raw::enter::host_xcr0;
use std::arch::x86_64::__cpuid_count;
use x86::state::{FCW_INIT, VectorState};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const OPMASK: u64 = 1 << 5;
const ZMM_HIGH: u64 = 1 << 6;
const HIGH_ZMM: u64 = 1 << 7;
const AVX512: u64 = OPMASK | ZMM_HIGH | HIGH_ZMM;

const MXCSR: usize = 24;
const XMM: usize = 160;
const HEADER: usize = 512;

/// Which components are switched, and where they lie in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) mask: u64,
    avx_at: usize,
    opmask_at: usize,
    zmm_high_at: usize,
    high_zmm_at: usize,
    /// What may be emitted.
    pub(crate) level: VectorLevel,
    pub(crate) avx: bool,
    pub(crate) xsaveopt: bool,
}

impl Layout {
    /// The host's, but for what it shall do without. Without XSAVE nothing on vector registers is emitted.
    pub(crate) fn of_host(without: Without) -> Self {
        let mut xcr0 = if without.xsave { 0 } else { host_xcr0() };
        if without.avx {
            xcr0 &= !AVX;
        }
        if without.avx || without.avx512 {
            xcr0 &= !AVX512;
        }
        let mask = xcr0 & (X87 | SSE | AVX | AVX512);
        let level = if mask & AVX512 == AVX512 {
            VectorLevel::Avx512
        } else if mask & AVX != 0 {
            VectorLevel::Avx
        } else if mask & SSE != 0 {
            VectorLevel::Sse
        } else {
            VectorLevel::None
        };
        let offset = |component| __cpuid_count(0xd, component).ebx as usize;
        Self {
            mask: if mask & AVX512 == AVX512 { mask } else { mask & !AVX512 },
            avx_at: offset(2),
            opmask_at: offset(5),
            zmm_high_at: offset(6),
            high_zmm_at: offset(7),
            level,
            avx: mask & AVX != 0,
            xsaveopt: xcr0 != 0 && __cpuid_count(0xd, 1).eax & 1 != 0,
        }
    }

    /// Writes the registers as an image that XRSTOR takes.
    pub(crate) fn write(&self, from: &VectorState, image: &mut [u8]) {
        image[..160].copy_from_slice(&from.x87);
        image[MXCSR..MXCSR + 4].copy_from_slice(&from.mxcsr.to_le_bytes());
        image[MXCSR + 4..MXCSR + 8].fill(0);
        for (index, zmm) in from.zmm.iter().enumerate() {
            if index < 16 {
                image[XMM + 16 * index..][..16].copy_from_slice(&zmm[..16]);
                if self.mask & AVX != 0 {
                    image[self.avx_at + 16 * index..][..16].copy_from_slice(&zmm[16..32]);
                }
                if self.mask & AVX512 != 0 {
                    image[self.zmm_high_at + 32 * index..][..32].copy_from_slice(&zmm[32..]);
                }
            } else if self.mask & AVX512 != 0 {
                image[self.high_zmm_at + 64 * (index - 16)..][..64].copy_from_slice(zmm);
            }
        }
        if self.mask & AVX512 != 0 {
            for (index, k) in from.k.iter().enumerate() {
                image[self.opmask_at + 8 * index..][..8].copy_from_slice(&k.to_le_bytes());
            }
        }
        image[HEADER..HEADER + 64].fill(0);
        image[HEADER..HEADER + 8].copy_from_slice(&self.mask.to_le_bytes());
    }

    /// Reads the registers from an image that XSAVE or XSAVEOPT wrote. Components that the host doesn't have are left alone.
    pub(crate) fn read(&self, image: &[u8], into: &mut VectorState) {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&image[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        // A component whose bit is clear is in its initial state, and the image has nothing of it.
        let present = word(HEADER);
        if present & X87 != 0 {
            into.x87.copy_from_slice(&image[..160]);
        } else {
            into.x87.fill(0);
            into.x87[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
        }
        into.mxcsr = word(MXCSR) as u32;
        let high = self.mask & AVX512 != 0;
        for (index, zmm) in into.zmm.iter_mut().enumerate() {
            let mut part = |from: usize, to: std::ops::Range<usize>, component: u64| {
                if self.mask & component == 0 {
                    return;
                }
                if present & component != 0 {
                    let len = to.len();
                    zmm[to].copy_from_slice(&image[from..from + len]);
                } else {
                    zmm[to].fill(0);
                }
            };
            if index < 16 {
                part(XMM + 16 * index, 0..16, SSE);
                part(self.avx_at + 16 * index, 16..32, AVX);
                if high {
                    part(self.zmm_high_at + 32 * index, 32..64, ZMM_HIGH);
                }
            } else if high {
                part(self.high_zmm_at + 64 * (index - 16), 0..64, HIGH_ZMM);
            }
        }
        if high {
            for (index, k) in into.k.iter_mut().enumerate() {
                *k = if present & OPMASK != 0 { word(self.opmask_at + 8 * index) } else { 0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let layout = Layout::of_host(Without::NOTHING);
        let mut state = VectorState::default();
        for (index, byte) in state.zmm.as_flattened_mut().iter_mut().enumerate() {
            *byte = (index * 7 + index / 256) as u8;
        }
        state.k = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64);
        state.mxcsr = 0x1fa0;
        state.x87[32] = 5;
        let mut image = vec![0; crate::context::XSAVE_BYTES];
        layout.write(&state, &mut image);
        let mut read = VectorState { pkru: state.pkru, xcr0: state.xcr0, ..VectorState::default() };
        layout.read(&image, &mut read);
        // MXCSR lies among x87's bytes, where it isn't used.
        read.x87[24..32].copy_from_slice(&state.x87[24..32]);
        if layout.level == VectorLevel::Avx512 {
            assert_eq!(read, state);
        } else {
            assert_eq!(read.zmm[3][..16], state.zmm[3][..16]);
            assert_eq!(read.mxcsr, state.mxcsr);
        }
    }
}
