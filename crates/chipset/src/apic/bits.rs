//! A set of interrupt vectors: what ISR, TMR and IRR are. Used by the local APIC.

use serde::{Deserialize, Serialize};

/// 256 bits, one a vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    /// The one with the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let (word, bits) = self.0.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        Some((word * 64 + 63 - bits.leading_zeros() as usize) as u8)
    }

    /// Register `index` (0..=7) of the eight that show the set.
    pub(super) fn register(&self, index: u8) -> u32 {
        (self.0[usize::from(index >> 1 & 3)] >> (u32::from(index & 1) * 32)) as u32
    }
}
