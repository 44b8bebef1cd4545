//! An NVM Express controller under random registers, queues and memory: what a hostile driver can do.
//!
//! Most runs first enable the controller as a driver does, with queues that may be small; then everything may be written over. The
//! disk is in memory, and whoever rings does the work, so that the same bytes always do the same.
//!
//! Asserted: nothing panics; the controller's state survives being saved and restored; a damaged one is refused without change, or
//! taken, and then the controller goes on from there.
//!
//! Threads: one.

use crate::Input;
use crate::board::{Nothing, Sectors};
use ::nvme::{Nvme, Wiring};
use chipset::pci::{Decoder, PciFunction};
use chipset::{At, BusDevice, Device, Line, WindowId};
use memory::{GuestMemory, Layout, Region};
use std::sync::Arc;
use workers::Staff;
use x86::Gpa;

/// Accesses in one run.
const STEPS: usize = 300;
/// RAM: the queues at the start, data and lists after them.
const RAM: u64 = 128 << 10;
/// Each queue has a page: those for commands are even, those for completions odd.
const PAGE: u64 = 0x1000;
/// Pairs of I/O queues.
const QUEUES: u16 = 2;
/// Registers that mean something.
const REGISTERS: [u64; 12] = [0, 4, 8, 0xc, 0x10, 0x14, 0x1c, 0x24, 0x28, 0x2c, 0x30, 0x34];

struct Bench {
    memory: GuestMemory,
    controller: Nvme,
    tails: [u32; 3],
}

impl Bench {
    fn new() -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("the host has 128 KiB");
        let wiring = Wiring {
            name: "nvme".to_owned(),
            number: 1,
            memory: memory.clone(),
            decode: Decoder::new().add(),
            line: Line::new(Arc::new(Nothing), 0),
            messages: Arc::new(Nothing),
            address: 0xc000_0000,
            staff: Staff::Caller,
            on_panic: Arc::new(|_| ()),
        };
        let controller = Nvme::new(Arc::new(Sectors::new()), "disk".to_owned(), "serial", QUEUES, wiring);
        Self { memory, controller, tails: [0; 3] }
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        let at = At { window: WindowId(0), offset };
        let _ = self.controller.write(at, &value.to_le_bytes()[..len]);
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // What isn't RAM is no place that a driver can write to.
        let _ = self.memory.write(Gpa(at), bytes);
    }

    /// As a driver does it, with what the input says of sizes.
    fn bring_up(&mut self, input: &mut Input<'_>) {
        self.write(0x14, 4, 0);
        self.tails = [0; 3];
        let size = u64::from(input.u8() & 15).max(1);
        self.write(0x24, 4, size << 16 | size);
        self.write(0x28, 8, 0);
        self.write(0x30, 8, PAGE);
        self.write(0x14, 4, 0x46_0001);
        for queue in 1..=u32::from(QUEUES) {
            let at = PAGE * 2 * u64::from(queue);
            let completions = u32::from(input.u8() & 1) + 1;
            self.put(0, 5, (at + PAGE, 0), [u32::from(input.u8() & 15) << 16 | queue, 3, 0]);
            self.put(0, 1, (at, 0), [u32::from(input.u8() & 15) << 16 | queue, completions << 16 | 1, 0]);
        }
    }

    /// A command at the tail of a queue, and its doorbell. All queues are said to have 16 entries, whatever they have.
    fn put(&mut self, queue: u64, opcode: u8, prps: (u64, u64), words: [u32; 3]) {
        let mut bytes = [0; 64];
        bytes[0] = opcode;
        bytes[2] = self.tails[queue as usize] as u8;
        bytes[4] = u8::from(queue > 0);
        bytes[24..32].copy_from_slice(&prps.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&prps.1.to_le_bytes());
        for (place, word) in bytes[40..].chunks_exact_mut(4).zip([words[0], words[1], words[2]]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let tail = &mut self.tails[queue as usize];
        self.memory.write(Gpa(PAGE * 2 * queue + 64 * u64::from(*tail)), &bytes).expect("RAM");
        *tail = (*tail + 1) & 15;
        let tail = u64::from(*tail);
        self.write(0x1000 + 8 * queue, 4, tail);
    }

    fn command(&mut self, input: &mut Input<'_>) {
        let queue = input.u8() % 3;
        let opcode = match (input.u8(), queue) {
            (byte, 0) if byte < 240 => input.pick(&[0, 1, 2, 4, 5, 6, 8, 9, 10, 12]),
            (byte, _) if byte < 240 => input.pick(&[0, 1, 2, 8, 9]),
            (byte, _) => byte,
        };
        let at = |input: &mut Input<'_>| {
            if input.u8() < 224 { u64::from(input.u8() & 31) << 12 } else { input.number() }
        };
        let prps = (at(input), at(input));
        // SLBA and its upper half, or what admin commands have there; the number of blocks.
        let words =
            [small(input), if queue == 0 { small(input) } else { u32::from(input.u8() & 4) }, small(input)];
        self.put(queue.into(), opcode, prps, words);
    }

    fn round_trip(&mut self) {
        self.controller.quiesce();
        let saved = self.controller.save();
        self.controller.restore(&saved).expect("it takes its own state back");
        assert!(self.controller.save() == saved, "it changed while it was saved and restored");
        self.controller.resume();
    }

    fn restore_damaged(&mut self, input: &mut Input<'_>) {
        self.controller.quiesce();
        let before = self.controller.save();
        let mut saved = before.clone();
        for _ in 0..=input.u8() & 3 {
            let at = usize::from(input.u16()) % saved.0.len();
            saved.0[at] = input.u8();
        }
        if self.controller.restore(&saved).is_err() {
            assert!(self.controller.save() == before, "it refused a state but changed");
        }
        self.controller.resume();
    }
}

/// Mostly a small number, sometimes with flags above.
fn small(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        0..=191 => u32::from(input.u8() & 31),
        192..=223 => u32::from(input.u8()) << 16 | u32::from(input.u8() & 15),
        _ => input.u32(),
    }
}

/// One run.
///
/// # Panics
/// Where the controller breaks a promise.
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
            let _ = bench.controller.read(At { window: WindowId(0), offset }, &mut data[..len]);
        }
        4..=6 => {
            let offset = bar_offset(input);
            let len = 1 << (input.u8() & 3);
            let value = input.number();
            bench.write(offset, len, value);
        }
        7 => bench.controller.read_config(config_offset(input), &mut data[..4]),
        8 => bench.controller.write_config(config_offset(input), &input.u32().to_le_bytes()),
        9 | 10 => bench.store(
            u64::from(input.u8() & 31) << 12 | u64::from(input.u16() & 0xfff),
            &input.number().to_le_bytes(),
        ),
        // A list of pages.
        11 | 12 => {
            let at = u64::from(input.u8() & 31) << 12;
            for entry in 0..u64::from(input.u8() & 7) {
                bench.store(at + 8 * entry, &(u64::from(input.u8() & 31) << 12).to_le_bytes());
            }
        }
        13..=23 => bench.command(input),
        // The head of a completion queue.
        24..=26 => {
            let queue = u64::from(input.u8() % 3);
            bench.write(0x1004 + 8 * queue, 4, u64::from(input.u8() & 15));
        }
        27 => bench.bring_up(input),
        28 => bench.write(0x14, 4, 0x46_0001 | u64::from(input.u8() & 3) << 14),
        29 => bench.round_trip(),
        30 => bench.restore_damaged(input),
        _ => bench.controller.reset(),
    }
}

fn bar_offset(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=127 => input.pick(&REGISTERS),
        128..=191 => 0x1000 + u64::from(input.u8() & 31),
        192..=223 => 0x2000 + u64::from(input.u8()),
        _ => u64::from(input.u16()) & 0x3ff8,
    }
}

fn config_offset(input: &mut Input<'_>) -> u16 {
    u16::from(input.u8()) & !3
}
