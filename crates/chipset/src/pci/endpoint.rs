//! An endpoint's configuration space: header type 0 with base addresses, capabilities, INTA# and MSI-X.
//!
//! A device owns one, adds what it has while it is made, and passes configuration accesses on. Sizing a base address works as in
//! hardware, by bits that can't be written (PCI Local Bus 3.0, 6.2.5.1); the guest may move one at any time.
//!
//! Threads: behind its device's lock.
//!
//! Left out: base addresses in ports or above 4 GiB, expansion ROMs, MSI without X, extended capabilities.

use super::interrupts::{ENTRY_BYTES, InterruptState, Interrupts, control};
use super::{ConfigSpace, Decode, PciFunction};
use crate::bus::WindowId;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Registers of the header (6.1).
mod register {
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const STATUS: u8 = 0x06;
    pub(super) const BAR: u8 = 0x10;
    pub(super) const SUBSYSTEM: u8 = 0x2c;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const PIN: u8 = 0x3d;
}

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Base address registers in a header of type 0.
const BARS: u8 = 6;
/// Capability ID of MSI-X (6.8.2.1).
const MSIX: u8 = 0x11;

/// Who a function says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

struct Bar {
    register: u8,
    size: u32,
    window: WindowId,
}

/// An endpoint's guest-visible state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointState {
    space: ConfigSpace,
    interrupts: InterruptState,
}

/// The configuration space of an endpoint.
pub struct Endpoint {
    // Fixed configuration.
    bars: Vec<Bar>,
    power_up: ConfigSpace,
    /// Where the MSI-X capability is.
    msix: Option<u8>,
    // Wiring.
    decode: Decode,
    interrupts: Arc<Interrupts>,
    // Guest-visible state, but for the interrupts'.
    space: ConfigSpace,
    // While capabilities are added: where the last one's pointer is, and free space.
    last_pointer: u8,
    free: u8,
}

impl Endpoint {
    /// A function without base addresses and capabilities, that may interrupt by INTA#.
    #[must_use]
    pub fn new(identity: Identity, decode: Decode, interrupts: Arc<Interrupts>) -> Self {
        let mut space =
            ConfigSpace::new(identity.vendor, identity.device, identity.class, identity.revision, 0);
        let (vendor, subsystem) = identity.subsystem;
        space.put(register::SUBSYSTEM, &vendor.to_le_bytes(), &[]);
        space.put(register::SUBSYSTEM + 2, &subsystem.to_le_bytes(), &[]);
        space.put(register::PIN, &[1], &[]);
        Self {
            bars: Vec::new(),
            power_up: space.clone(),
            msix: None,
            decode,
            interrupts,
            space,
            last_pointer: register::CAPABILITIES,
            free: 0x40,
        }
    }

    fn put(&mut self, at: u8, values: &[u8], writable: &[u8]) {
        self.space.put(at, values, writable);
        self.power_up.put(at, values, writable);
    }

    /// Adds base address `number` (0 to 5): `size` bytes of memory, a power of two of at least 16, reached as `window`. At power-up it is
    /// at `address`, as firmware would have set it.
    ///
    /// # Panics
    /// A mistake of the device's: another number or size.
    pub fn bar(&mut self, number: u8, size: u32, window: WindowId, address: u32) {
        assert!(number < BARS && size.is_power_of_two() && size >= 16, "base address {number}, {size} bytes");
        let register = register::BAR + 4 * number;
        let writable = !(size - 1);
        self.put(register, &(address & writable).to_le_bytes(), &writable.to_le_bytes());
        self.bars.push(Bar { register, size, window });
    }

    /// Adds a capability of `body` after its ID and pointer, of which the guest can write the bits of `writable`. Gives the offset of
    /// its first byte.
    ///
    /// # Panics
    /// A mistake of the device's: there is no room.
    pub fn capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.free;
        let len = u8::try_from(body.len() + 2).expect("a capability is short").next_multiple_of(4);
        self.free = at.checked_add(len).expect("capabilities have 192 bytes");
        self.put(self.last_pointer, &[at], &[0]);
        self.put(at, &[id, 0], &[0, 0]);
        self.put(at + 2, body, writable);
        self.put(register::STATUS, &[STATUS_CAPABILITIES], &[0]);
        self.last_pointer = at + 1;
        at
    }

    /// Adds MSI-X with as many vectors as the interrupts have, its table and pending bits in base address `bar`.
    pub fn messages(&mut self, bar: u8, table: u32, pending: u32) {
        let vectors = self.interrupts.vectors();
        if vectors == 0 {
            return;
        }
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pending | u32::from(bar)).to_le_bytes());
        let writable = (control::ENABLE | control::MASK).to_le_bytes();
        self.msix = Some(self.capability(MSIX, &body, &writable));
    }

    /// Bytes that the MSI-X table of `vectors` takes.
    #[must_use]
    pub fn table_bytes(vectors: u16) -> u64 {
        u64::from(vectors) * ENTRY_BYTES
    }

    fn word(&mut self, at: u8) -> u16 {
        let mut data = [0; 2];
        self.space.read_config(at.into(), &mut data);
        u16::from_le_bytes(data)
    }

    /// Reads a configuration register.
    pub fn read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read_config(offset, data);
        let status = u16::from(register::STATUS);
        if let Some(byte) = status.checked_sub(offset).and_then(|at| data.get_mut(usize::from(at)))
            && self.interrupts.is_asserted()
        {
            *byte |= STATUS_INTERRUPT;
        }
    }

    /// Writes a configuration register, and does what that means.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        self.space.write_config(offset, data);
        let end = offset.saturating_add(data.len() as u16);
        let touches = |at: u8, len: u16| offset < u16::from(at) + len && end > u16::from(at);
        if touches(register::COMMAND, 2) {
            let disabled = self.word(register::COMMAND) & COMMAND_NO_INTX != 0;
            self.interrupts.set_disabled(disabled);
        }
        if touches(register::COMMAND, 2) || touches(register::BAR, 4 * u16::from(BARS)) {
            self.answer();
        }
        if let Some(at) = self.msix.filter(|&at| touches(at + 2, 2)) {
            let value = self.word(at + 2);
            self.interrupts.set_control(value);
        }
    }

    /// Tells the memory bus where the function answers.
    fn answer(&mut self) {
        let mut windows: Vec<(RangeInclusive<u64>, WindowId)> = Vec::new();
        if self.word(register::COMMAND) & COMMAND_MEMORY != 0 {
            for bar in &self.bars {
                let mut data = [0; 4];
                self.space.read_config(bar.register.into(), &mut data);
                let first = u64::from(u32::from_le_bytes(data) & !0xf);
                windows.push((first..=first + u64::from(bar.size - 1), bar.window));
            }
        }
        self.decode.set(windows);
    }

    /// Back to power-up.
    pub fn reset(&mut self) {
        self.space = self.power_up.clone();
        self.interrupts.reset();
        self.answer();
    }

    /// The guest-visible state.
    #[must_use]
    pub fn save(&self) -> EndpointState {
        EndpointState { space: self.space.clone(), interrupts: self.interrupts.save() }
    }

    /// Takes over a saved state. `false`, and nothing changes, where it is another function's.
    #[must_use]
    pub fn restore(&mut self, state: &EndpointState) -> bool {
        if !state.space.is_like(&self.power_up) || !self.interrupts.restore(&state.interrupts) {
            return false;
        }
        self.space = state.space.clone();
        self.answer();
        true
    }
}
