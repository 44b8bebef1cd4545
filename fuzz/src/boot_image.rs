//! Kernel files that lie: arbitrary bytes, and sound images of every kind with some of their numbers changed.
//!
//! Asserted: loading never panics and never writes outside RAM (guest memory checks that), errors are one line, and
//! where loading succeeds the kernel's entry, what it is told and the tables it starts on lie in RAM.
//!
//! Threads: one.

mod skeleton;

use crate::Input;
use machine::boot::{BoardFacts, Image, Module, Protocol, load_bytes};
use memory::{GuestMemory, Layout, Region};
use x86::state::{CpuState, seg};
use x86::{Gpa, Rflags};

const MIB: u64 = 1 << 20;

/// One run.
///
/// # Panics
/// Where loading breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = memory(&mut input);
    let mut facts = BoardFacts::pc(input.pick(&[1, 1, 1, 2, 16, 255, 1000, 0xfff, u32::MAX]));
    if input.u8() == 1 {
        facts.ecam = Some(0xe000_0000);
    }
    let cmdline = "x".repeat(match input.u8() {
        long @ 0..=15 => 254 + usize::from(long),
        huge @ 16..=19 => 0xfff0 + 8 * usize::from(huge - 16),
        short => usize::from(short) & 31,
    });
    let modules = modules(&mut input);
    let kernel = skeleton::kernel(&mut input);
    let image = Image { name: "kernel", kernel: &kernel, modules: &modules, cmdline: &cmdline };
    match load_bytes(&memory, &image, &facts) {
        Ok(entry) => {
            let in_ram = |at: u64| memory.locate(Gpa(at)).is_some();
            assert!(in_ram(entry.start.0), "the entry at {} isn't in RAM", entry.start);
            assert!(in_ram(entry.info.0), "the boot information at {} isn't in RAM", entry.info);
            let mut state = CpuState::default();
            entry.prepare(&mut state);
            assert_eq!(state.rip, entry.start.0);
            assert_eq!(state.rflags, Rflags::ONE);
            assert!(state.segments[seg::CS].attributes.is_code());
            assert!(in_ram(state.gdtr.base) && in_ram(state.gdtr.base + u64::from(state.gdtr.limit)));
            assert!(entry.protocol != Protocol::Linux64 || in_ram(state.cr3));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.contains('\n'), "not one line: {message:?}");
        }
    }
}

/// Little RAM, so that little is enough to go beyond it; sometimes hardly any, sometimes a second region.
fn memory(input: &mut Input<'_>) -> GuestMemory {
    let low = input.pick(&[
        4 * MIB,
        4 * MIB,
        4 * MIB,
        2 * MIB,
        2 * MIB - 0x1000,
        MIB,
        0x1000,
        18 * MIB,
        3 * MIB + 0x5000,
    ]);
    let mut regions = vec![Region { start: Gpa(0), len: low }];
    match input.u8() {
        1 => regions.push(Region { start: Gpa(1 << 32), len: 2 * MIB }),
        2 => regions[0].start = Gpa(0x1000),
        _ => {}
    }
    let layout = Layout::new(regions).expect("a sound layout");
    GuestMemory::new(layout).expect("address space for a few MiB")
}

fn modules(input: &mut Input<'_>) -> Vec<Module> {
    let count = match input.u8() {
        many @ 0..=7 => usize::from(many),
        8 => 400,
        byte => usize::from(byte & 1),
    };
    let module = |_| {
        let len = match input.u8() {
            0 => 0,
            1 => 3 << 20,
            2 => 0x1000,
            len => usize::from(len),
        };
        Module { cmdline: "m".repeat(usize::from(input.u8())), bytes: vec![0x5a; len] }
    };
    (0..count).map(module).collect()
}
