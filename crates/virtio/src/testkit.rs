//! What the tests of this crate share: a board around one transport, and a driver that writes rings by hand.

use crate::Staff;
use crate::device::Device;
use crate::pci::{Transport, Wiring};
use chipset::pci::{Decoder, PciFunction};
use chipset::{At, BusDevice, Line, LineSink, Msi, MsiSink, WindowId};
use memory::{GuestMemory, Layout, Region};
use std::sync::{Arc, Mutex};
use x86::Gpa;

/// RAM of the tests.
pub(crate) const RAM: u64 = 1 << 20;
/// The rings' parts, for ring 0; others follow at [`NEXT_RING`].
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_4000;
const USED: u64 = 0x1_5000;
const NEXT_RING: u64 = 0x8000;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Remembers messages, and the level of one line.
#[derive(Default)]
pub(crate) struct Ears {
    pub(crate) messages: Mutex<Vec<u32>>,
    pub(crate) level: Mutex<bool>,
}

impl MsiSink for Ears {
    fn send(&self, msi: Msi) -> bool {
        self.messages.lock().expect("not poisoned").push(msi.data);
        true
    }
}

impl LineSink for Ears {
    fn set_pin(&self, _: u8, high: bool) {
        *self.level.lock().expect("not poisoned") = high;
    }
}

pub(crate) struct Board {
    pub(crate) memory: GuestMemory,
    pub(crate) transport: Transport,
    pub(crate) ears: Arc<Ears>,
    available: Vec<u16>,
}

impl Board {
    pub(crate) fn new(device: Box<dyn Device>, staff: Staff) -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("the host has 1 MiB");
        let ears = Arc::new(Ears::default());
        let rings = device.queues().len();
        let wiring = Wiring {
            name: "test".to_owned(),
            memory: memory.clone(),
            decode: Decoder::new().add(),
            line: Line::new(ears.clone(), 16),
            messages: ears.clone(),
            address: 0xc000_0000,
            staff,
            on_panic: Arc::new(|_| ()),
        };
        let transport = Transport::new(device, wiring);
        Self { memory, transport, ears, available: vec![0; rings] }
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        let at = At { window: WindowId(0), offset };
        self.transport.read(at, &mut data[..len]).expect("the register exists");
        u64::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, len: usize, value: u64) {
        let at = At { window: WindowId(0), offset };
        self.transport.write(at, &value.to_le_bytes()[..len]).expect("the register exists");
    }

    pub(crate) fn config(&mut self, offset: u16, len: usize) -> u64 {
        let mut data = [0; 8];
        self.transport.read_config(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read(20, 1) as u8
    }

    /// Up to features being agreed on; gives the status.
    pub(crate) fn negotiate(&mut self, features: u64) -> u8 {
        self.write(20, 1, 0);
        self.available.fill(0);
        self.memory.zero(Gpa(DESCRIPTORS), RAM - DESCRIPTORS).expect("RAM");
        self.write(20, 1, 3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(8, 4, select);
            self.write(12, 4, half);
        }
        self.write(20, 1, 11);
        self.status()
    }

    /// Sets ring `index` up with `size` entries and vector `index` + 1.
    pub(crate) fn set_up(&mut self, index: u16, size: u16) {
        let at = NEXT_RING * u64::from(index);
        self.write(22, 2, index.into());
        self.write(24, 2, size.into());
        self.write(26, 2, u64::from(index) + 1);
        for (field, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
            self.write(field, 4, (address + at) & 0xffff_ffff);
            self.write(field + 4, 4, (address + at) >> 32);
        }
        self.write(28, 2, 1);
    }

    /// Features, one ring of 8 entries, and the driver is ready.
    pub(crate) fn bring_up(&mut self, features: u64) {
        assert_eq!(self.negotiate(features), 11);
        self.set_up(0, 8);
        self.write(20, 1, 15);
    }

    /// Messages instead of the line: `data` of vector n is 0x40 + n.
    pub(crate) fn use_messages(&mut self) {
        let mut at = self.config(0x34, 1) as u16;
        while self.config(at, 1) != 0x11 {
            at = self.config(at + 1, 1) as u16;
            assert_ne!(at, 0, "no MSI-X capability");
        }
        let vectors = (self.config(at + 2, 2) & 0x7ff) + 1;
        for vector in 0..vectors {
            self.write(0x4000 + vector * 16, 4, 0xfee0_0000);
            self.write(0x4000 + vector * 16 + 8, 4, 0x40 + vector);
            self.write(0x4000 + vector * 16 + 12, 4, 0);
        }
        self.transport.write_config(at + 2, &0x8000u16.to_le_bytes());
    }

    pub(crate) fn describe(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(at.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(Gpa(table + 16 * u64::from(index)), &bytes).expect("RAM");
    }

    /// A descriptor of ring 0.
    pub(crate) fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_on(0, index, at, len, flags, next);
    }

    /// A descriptor of a ring.
    pub(crate) fn descriptor_on(&self, ring: u16, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        self.describe(DESCRIPTORS + NEXT_RING * u64::from(ring), index, at, len, flags, next);
    }

    /// Makes a chain of ring 0 (of 8 entries) available, and rings.
    pub(crate) fn offer(&mut self, head: u16) {
        self.offer_on(0, head);
    }

    /// Makes a chain of a ring (of 8 entries) available, and rings.
    pub(crate) fn offer_on(&mut self, ring: u16, head: u16) {
        let base = AVAILABLE + NEXT_RING * u64::from(ring);
        let available = &mut self.available[usize::from(ring)];
        let slot = base + 4 + 2 * u64::from(*available % 8);
        *available = available.wrapping_add(1);
        self.memory.write(Gpa(slot), &head.to_le_bytes()).expect("RAM");
        self.memory.write(Gpa(base + 2), &available.to_le_bytes()).expect("RAM");
        self.ring_on(ring);
    }

    pub(crate) fn set_available(&self, index: u16) {
        self.memory.write(Gpa(AVAILABLE + 2), &index.to_le_bytes()).expect("RAM");
    }

    /// The index that the driver wants to be interrupted at, or its flags.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.memory.write(Gpa(AVAILABLE + 4 + 16), &index.to_le_bytes()).expect("RAM");
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.memory.write(Gpa(AVAILABLE), &flags.to_le_bytes()).expect("RAM");
    }

    pub(crate) fn ring(&mut self) {
        self.ring_on(0);
    }

    /// Each ring has a doorbell.
    pub(crate) fn ring_on(&mut self, ring: u16) {
        self.write(0x3000 + 4 * u64::from(ring), 2, ring.into());
    }

    /// What ring 0 has given back: head and bytes written of each.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        self.used_of(0)
    }

    /// What a ring has given back.
    pub(crate) fn used_of(&self, ring: u16) -> Vec<(u32, u32)> {
        let base = USED + NEXT_RING * u64::from(ring);
        let word = |at| {
            let mut bytes = [0; 4];
            self.memory.read(Gpa(at), &mut bytes).expect("RAM");
            u32::from_le_bytes(bytes)
        };
        let count = u64::from(word(base) >> 16);
        (0..count).map(|n| (word(base + 4 + n % 8 * 8), word(base + 8 + n % 8 * 8))).collect()
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Gpa(at), &mut bytes).expect("RAM");
        bytes
    }

    pub(crate) fn messages(&self) -> Vec<u32> {
        self.ears.messages.lock().expect("not poisoned").clone()
    }

    pub(crate) fn line(&self) -> bool {
        *self.ears.level.lock().expect("not poisoned")
    }
}
