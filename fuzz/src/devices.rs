//! The whole board under random accesses: every chip, wired as on a PC, with time, lines, saving and restoring.
//!
//! Asserted: nothing panics; a chip's state survives being saved and restored; a damaged saved state is refused or
//! harmless; no alarm rings without end at one moment.
//!
//! Threads: one, so a chip that takes its own lock twice shows as a run that doesn't end.

mod board;

use crate::Input;
use board::{Board, CPUS};
use chipset::Saved;
use chipset::apic::Lapics;

/// Accesses and events in one run. More would only make it slow.
const STEPS: usize = 400;

/// MSRs of the local APIC that aren't in its x2APIC range.
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

/// One run.
///
/// # Panics
/// Where a chip breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut board = Board::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut board, &mut input);
    }
    for device in 0..board.quick_devices {
        round_trip(&mut board, device);
    }
}

fn step(board: &mut Board, input: &mut Input<'_>) {
    let mut data = [0; 8];
    match input.u8() % 32 {
        0..=6 => {
            let (memory, address, len) = place(board, input);
            let bus = if memory { &board.memory } else { &board.ports };
            bus.read(address, &mut data[..len]);
        }
        7..=15 => {
            let (memory, address, len) = place(board, input);
            data = input.number().to_le_bytes();
            let bus = if memory { &board.memory } else { &board.ports };
            bus.write(address, &data[..len]);
        }
        16 => board.advance(input.number()),
        // Times that matter to chips: up to about a second.
        17 => board.advance(u64::from(input.u32() >> 2)),
        18 => {
            let line = input.below(board.lines.len());
            board.lines[line].set(input.flag());
        }
        19 => {
            let bytes = input.u8();
            let bytes = input.bytes(usize::from(bytes & 31));
            let taken = board.uart.lock().expect("no panic before").receive(bytes);
            assert!(taken <= bytes.len());
        }
        20 => {
            // What the bus of a processor does with INTR.
            if board.pic.pending() || input.flag() {
                let _ = board.pic.acknowledge();
            }
        }
        21 => {
            let cpu = cpu(input);
            let windows = input.u8();
            let pending = board.lapics.is_pending(cpu);
            let event = board.lapics.take_event(cpu, windows & 1 != 0, windows & 2 != 0);
            assert!(pending || event.is_none(), "an event that wasn't pending: {event:?}");
        }
        22 => {
            let (cpu, offset) = (cpu(input), u64::from(input.u16() & 0xfff));
            let len = length(input, 0x1000 - offset);
            board.lapics.read_mmio(cpu, offset, &mut data[..len]);
        }
        23 | 24 => {
            let (cpu, offset) = (cpu(input), u64::from(input.u8()) << 4);
            data = input.number().to_le_bytes();
            let len = if input.u8() > 8 { 4 } else { length(input, 0x1000 - offset) };
            board.lapics.write_mmio(cpu, offset, &data[..len]);
        }
        25 => {
            let (cpu, msr) = (cpu(input), msr(input));
            if input.flag() {
                let _ = board.lapics.wrmsr(cpu, msr, input.number());
            } else {
                let _ = board.lapics.rdmsr(cpu, msr);
            }
            board.lapics.set_cr8(cpu, input.u8() & 15);
            assert!(board.lapics.cr8(cpu) <= 15);
        }
        26 => board.send_msi(input),
        27 => {
            let device = device(board, input);
            round_trip(board, device);
        }
        28 | 29 => {
            let device = device(board, input);
            restore_damaged(board, device, input);
        }
        _ => life(board, input),
    }
    board.ring();
}

/// Somewhere in a window of a chip, or rarely anywhere.
fn place(board: &Board, input: &mut Input<'_>) -> (bool, u64, usize) {
    let which = input.u8();
    if which == 255 {
        let memory = input.flag();
        // A bus never sees an access that wraps around the end of addresses.
        let address = input.number().min(u64::MAX - 8);
        return (memory, address, length(input, 8));
    }
    let (memory, range) = &board.windows[usize::from(which) % board.windows.len()];
    let room = range.end() - range.start() + 1;
    let offset = if room <= 256 { u64::from(input.u8()) } else { u64::from(input.u32()) } % room;
    // May run over the end of the window: the bus splits it.
    (*memory, range.start() + offset, length(input, 8))
}

fn length(input: &mut Input<'_>, room: u64) -> usize {
    let mut len = 1 << (input.u8() & 3);
    while len > room {
        len /= 2;
    }
    len as usize
}

fn cpu(input: &mut Input<'_>) -> u32 {
    u32::from(input.u8()) % CPUS
}

/// Any device, but seldom those whose state takes long to save.
fn device(board: &Board, input: &mut Input<'_>) -> usize {
    match input.u8() {
        255 => board.devices.len() - 1,
        which => usize::from(which) % board.quick_devices,
    }
}

fn msr(input: &mut Input<'_>) -> u32 {
    let msr = match input.u8() {
        0..=63 => APIC_BASE,
        64..=95 => TSC_DEADLINE,
        low => 0x800 | u32::from(low),
    };
    assert!(Lapics::owns_msr(msr));
    msr
}

/// Saving, and taking the same state back, changes nothing.
fn round_trip(board: &mut Board, device: usize) {
    let mut device = board.devices[device].lock().expect("no panic before");
    device.quiesce();
    let saved = device.save();
    device.restore(&saved).expect("a chip takes its own state back");
    assert!(device.save() == saved, "{} changed while it was saved and restored", device.name());
    device.resume();
}

/// Changes a few bytes of a saved state.
fn damage(saved: &mut Saved, input: &mut Input<'_>) {
    for _ in 0..=input.u8() & 3 {
        let len = saved.0.len();
        match input.u8() & 15 {
            0 => saved.0.truncate(usize::from(input.u16()) % (len + 1)),
            1 => saved.0.extend_from_slice(input.bytes(8)),
            _ if len == 0 => {}
            kind => {
                let at = usize::from(input.u16()) % len;
                saved.0[at] = if kind < 8 { input.u8() } else { saved.0[at] ^ 1 << (kind & 7) };
            }
        }
    }
}

/// A state from a damaged file: refused without any change, or taken, and then the chip goes on from there.
fn restore_damaged(board: &mut Board, device: usize, input: &mut Input<'_>) {
    let mut device = board.devices[device].lock().expect("no panic before");
    device.quiesce();
    let before = device.save();
    let mut saved = before.clone();
    damage(&mut saved, input);
    if device.restore(&saved).is_err() {
        assert!(device.save() == before, "{} refused a state but changed", device.name());
    }
    device.resume();
}

/// What only the machine does.
fn life(board: &mut Board, input: &mut Input<'_>) {
    let cpu = cpu(input);
    let device = &board.devices[device(board, input)];
    let lock = || device.lock().expect("no panic before");
    match input.u8() & 7 {
        0 => lock().reset(),
        1 | 2 => lock().quiesce(),
        3 => lock().resume(),
        4 => board.pm.lock().expect("no panic before").press_power_button(),
        5 => board.lapics.set_tsc_offset(cpu, input.number()),
        6 => board.lapics.virtual_wire(cpu),
        _ => lock().resume(),
    }
}
