//! A function's interrupts: MSI-X, and INTA# where the guest doesn't use it.
//!
//! Source: PCI Local Bus 3.0, 6.8.2 (MSI-X) and 6.2.2 (INTx and the command register). Shared by the function, whose
//! configuration space and table the guest writes, and whatever thread does the function's work.
//!
//! Threads: any. Lock order: a function's own, then this one, then lines and local APICs. The lock is held while a message is
//! sent, so that one that the guest masks doesn't come any more when the write that masked it is done.

use crate::line::{Line, Msi, MsiSink};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an entry of the table.
pub(super) const ENTRY_BYTES: u64 = 16;
/// The most vectors that a function can have.
pub const MOST_VECTORS: u16 = 2048;

/// Message control (6.8.2.3).
pub(super) mod control {
    pub(crate) const ENABLE: u16 = 1 << 15;
    pub(crate) const MASK: u16 = 1 << 14;
}

/// Vector control (6.8.2.9): masked.
const MASKED: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

impl Entry {
    const POWER_UP: Self = Self { address: 0, data: 0, control: MASKED };
}

/// Guest-visible state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterruptState {
    enabled: bool,
    masked: bool,
    /// The command register's interrupt disable.
    disabled: bool,
    /// The function wants INTA#.
    asserted: bool,
    table: Vec<Entry>,
    pending: Vec<bool>,
}

impl InterruptState {
    fn power_up(vectors: u16) -> Self {
        let count = usize::from(vectors);
        Self {
            enabled: false,
            masked: false,
            disabled: false,
            asserted: false,
            table: vec![Entry::POWER_UP; count],
            pending: vec![false; count],
        }
    }
}

struct Chip {
    line: Line,
    out: Arc<dyn MsiSink>,
    state: InterruptState,
}

/// One function's interrupts.
pub struct Interrupts {
    vectors: u16,
    chip: Mutex<Chip>,
}

impl Interrupts {
    /// Interrupts of a function with `vectors` (0 to 2048) MSI-X vectors, and INTA# on `line`.
    #[must_use]
    pub fn new(vectors: u16, line: Line, out: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = vectors.min(MOST_VECTORS);
        let state = InterruptState::power_up(vectors);
        Arc::new(Self { vectors, chip: Mutex::new(Chip { line, out, state }) })
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many MSI-X vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn uses_messages(&self) -> bool {
        self.lock().state.enabled
    }

    /// Sends vector `vector`'s message, or keeps it pending while it is masked. Where the guest doesn't use MSI-X, nothing happens.
    pub fn send(&self, vector: u16) {
        let mut chip = self.lock();
        if chip.state.enabled && vector < self.vectors {
            chip.send(usize::from(vector));
        }
    }

    /// Whether the function wants INTA#, which it gets unless the guest uses MSI-X or has switched it off.
    pub fn assert(&self, high: bool) {
        let mut chip = self.lock();
        chip.state.asserted = high;
        chip.drive();
    }

    /// The interrupt status bit of the status register (6.2.3).
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        self.lock().state.asserted
    }

    pub(super) fn set_disabled(&self, disabled: bool) {
        let mut chip = self.lock();
        chip.state.disabled = disabled;
        chip.drive();
    }

    pub(super) fn set_control(&self, value: u16) {
        let mut chip = self.lock();
        chip.state.enabled = value & control::ENABLE != 0;
        chip.state.masked = value & control::MASK != 0;
        chip.drive();
        chip.send_pending();
    }

    /// Reads the table; what lies beyond it reads zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let chip = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let entry = usize::try_from(at / ENTRY_BYTES).ok().and_then(|index| chip.state.table.get(index));
            let word = entry.map_or(0, |entry| match at % ENTRY_BYTES / 8 {
                0 => entry.address,
                _ => u64::from(entry.control) << 32 | u64::from(entry.data),
            });
            *byte = word.to_le_bytes()[at as usize % 8];
        }
    }

    /// Writes the table: aligned words of 4 or 8 bytes; anything else has no effect (6.8.2).
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let len = data.len() as u64;
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len) {
            return;
        }
        let mut chip = self.lock();
        for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let Ok(index) = usize::try_from(at / ENTRY_BYTES) else { return };
            let Some(entry) = chip.state.table.get_mut(index) else { return };
            match at % ENTRY_BYTES {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                8 => entry.data = value,
                _ => entry.control = value & MASKED,
            }
        }
        chip.send_pending();
    }

    /// Reads the pending bits; what lies beyond them reads zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let chip = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = at.saturating_mul(8);
            *byte = (0..8).fold(0, |bits, bit| {
                let vector = usize::try_from(first + bit).unwrap_or(usize::MAX);
                bits | u8::from(chip.state.pending.get(vector) == Some(&true)) << bit
            });
        }
    }

    /// Back to power-up.
    pub fn reset(&self) {
        let mut chip = self.lock();
        chip.state = InterruptState::power_up(self.vectors);
        chip.drive();
    }

    /// The guest-visible state.
    #[must_use]
    pub fn save(&self) -> InterruptState {
        self.lock().state.clone()
    }

    /// Takes over a saved state. `false`, and nothing changes, where it is of a function with other vectors.
    #[must_use]
    pub fn restore(&self, state: &InterruptState) -> bool {
        let count = usize::from(self.vectors);
        if state.table.len() != count || state.pending.len() != count {
            return false;
        }
        let mut chip = self.lock();
        chip.state = state.clone();
        chip.drive();
        true
    }
}

impl Chip {
    /// A line says nothing while messages are in use.
    fn drive(&self) {
        let state = &self.state;
        self.line.set(state.asserted && !state.enabled && !state.disabled);
    }

    fn send(&mut self, vector: usize) {
        let entry = self.state.table[vector];
        let held = self.state.masked || entry.control & MASKED != 0;
        self.state.pending[vector] = held;
        if !held {
            // Nobody there takes it: it is lost, as on a bus.
            let _taken = self.out.send(Msi { address: entry.address, data: entry.data });
        }
    }

    fn send_pending(&mut self) {
        if !self.state.enabled || self.state.masked {
            return;
        }
        for vector in 0..self.state.pending.len() {
            if self.state.pending[vector] {
                self.send(vector);
            }
        }
    }
}
