//! A disk on virtio's PCI transport under random registers, rings and memory: what a hostile driver can do.
//!
//! Most runs first set the device up as a driver does, so that rings are served at all; then everything may be written over. The
//! disk is in memory, and whoever rings does the work, so that the same bytes always do the same.
//!
//! Asserted: nothing panics; the device's state survives being saved and restored; a damaged one is refused without change, or
//! taken, and then the device goes on from there.
//!
//! Threads: one.

use crate::Input;
use crate::board::{Nothing, Sectors};
use chipset::pci::{Decoder, PciFunction};
use chipset::{At, BusDevice, Device, Line, WindowId};
use memory::{GuestMemory, Layout, Region};
use std::sync::Arc;
use virtio::Staff;
use virtio::block::Block;
use virtio::pci::{Transport, Wiring};
use x86::Gpa;

/// Accesses in one run.
const STEPS: usize = 300;
/// RAM: rings at the start, buffers after them.
const RAM: u64 = 64 << 10;
/// Descriptors, available ring and used ring of each ring, one after the other.
const RING: u64 = 0x1000;
const RINGS: u64 = 2;
/// What buffers mostly have: a status, a header, an ID, ranges, sectors, and not quite sectors.
const LENGTHS: [u32; 8] = [1, 16, 20, 32, 512, 1024, 513, 4096];

struct Bench {
    memory: GuestMemory,
    transport: Transport,
}

impl Bench {
    fn new() -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("the host has 64 KiB");
        let layer = Arc::new(Sectors::new());
        let disk = Block::new(layer, "disk".to_owned(), "serial", RINGS as u16);
        let wiring = Wiring {
            name: "virtio".to_owned(),
            memory: memory.clone(),
            decode: Decoder::new().add(),
            line: Line::new(Arc::new(Nothing), 0),
            messages: Arc::new(Nothing),
            address: 0xc000_0000,
            staff: Staff::Caller,
            on_panic: Arc::new(|_| ()),
        };
        Self { memory, transport: Transport::new(Box::new(disk), wiring) }
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        let _ = self.transport.write(At { window: WindowId(0), offset }, &value.to_le_bytes()[..len]);
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // What isn't RAM is no place that a driver can write to.
        let _ = self.memory.write(Gpa(at), bytes);
    }

    /// As a driver does it, with what the input says of sizes and features.
    fn bring_up(&mut self, input: &mut Input<'_>) {
        self.write(20, 1, 0);
        self.write(20, 1, 3);
        let features = u64::from(input.u32()) & 0x3000_7000 | 1 << 32;
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(8, 4, select);
            self.write(12, 4, half);
        }
        self.write(20, 1, 11);
        for ring in 0..RINGS {
            let at = ring * 3 * RING + RING;
            self.write(22, 2, ring);
            self.write(24, 2, 1 << (input.u8() % 7));
            for (field, address) in [(32, at), (40, at + RING), (48, at + 2 * RING)] {
                self.write(field, 8, address);
            }
            self.write(28, 2, 1);
        }
        self.write(20, 1, 15);
    }

    /// A descriptor with values that mostly make sense.
    fn descriptor(&self, input: &mut Input<'_>) {
        let table =
            if input.u8() < 224 { RING + u64::from(input.u8() & 1) * 3 * RING } else { input.number() };
        let index = u64::from(input.u8() & 15);
        let at = if input.u8() < 224 { u64::from(input.u16()) } else { input.number() };
        let len = if input.u8() < 224 { input.pick(&LENGTHS) } else { input.u32() };
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(u16::from(input.u8() & 7).to_le_bytes());
        bytes.extend(u16::from(input.u8() & 15).to_le_bytes());
        self.store(table.wrapping_add(16 * index), &bytes);
    }

    /// A request's header somewhere in memory.
    fn header(&self, input: &mut Input<'_>) {
        let kind: u32 = input.pick(&[0, 1, 4, 8, 11, 13, 13, 99]);
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(input.number().to_le_bytes());
        self.store(input.u16().into(), &bytes);
    }

    /// The available index moves on, and the doorbell rings.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ring = u64::from(input.u8() & 1);
        let available = RING * 2 + ring * 3 * RING;
        for entry in 0..u64::from(input.u8() & 7) {
            self.store(available + 4 + 2 * entry, &u16::from(input.u8() & 15).to_le_bytes());
        }
        self.store(available + 2, &u16::from(input.u8()).to_le_bytes());
        self.write(0x3000 + 4 * ring, 2, ring);
    }

    fn round_trip(&mut self) {
        self.transport.quiesce();
        let saved = self.transport.save();
        self.transport.restore(&saved).expect("it takes its own state back");
        assert!(self.transport.save() == saved, "it changed while it was saved and restored");
        self.transport.resume();
    }

    fn restore_damaged(&mut self, input: &mut Input<'_>) {
        self.transport.quiesce();
        let before = self.transport.save();
        let mut saved = before.clone();
        for _ in 0..=input.u8() & 3 {
            let at = usize::from(input.u16()) % saved.0.len();
            saved.0[at] = input.u8();
        }
        if self.transport.restore(&saved).is_err() {
            assert!(self.transport.save() == before, "it refused a state but changed");
        }
        self.transport.resume();
    }
}

/// One run.
///
/// # Panics
/// Where the device breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut bench = Bench::new();
    if input.u8() < 240 {
        bench.bring_up(&mut input);
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut bench, &mut input);
    }
    bench.round_trip();
}

fn step(bench: &mut Bench, input: &mut Input<'_>) {
    let mut data = [0; 8];
    match input.u8() % 32 {
        0..=3 => {
            let offset = bar_offset(input);
            let len = 1 << (input.u8() & 3);
            let _ = bench.transport.read(At { window: WindowId(0), offset }, &mut data[..len]);
        }
        4..=8 => {
            let offset = bar_offset(input);
            let len = 1 << (input.u8() & 3);
            let value = input.number();
            bench.write(offset, len, value);
        }
        9 => bench.transport.read_config(config_offset(input), &mut data[..4]),
        10 | 11 => bench.transport.write_config(config_offset(input), &input.u32().to_le_bytes()),
        12 => bench.store(input.u16().into(), &input.number().to_le_bytes()),
        13..=17 => bench.descriptor(input),
        18..=20 => bench.header(input),
        21..=27 => bench.offer(input),
        28 => bench.bring_up(input),
        29 => bench.round_trip(),
        30 => bench.restore_damaged(input),
        _ => bench.transport.reset(),
    }
}

/// Mostly registers that mean something.
fn bar_offset(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=159 => u64::from(input.u8() % 56),
        160..=191 => 0x2000 + u64::from(input.u8()),
        192..=223 => 0x4000 + u64::from(input.u8()),
        _ => u64::from(input.u16()) & 0x7ff8,
    }
}

fn config_offset(input: &mut Input<'_>) -> u16 {
    u16::from(input.u8()) & !3
}
