//! How fast the interpreter runs tight loops, in millions of guest instructions a second. A benchmark: it asserts nothing
//! about time. `cargo bench -p interpreter`, or `make bench` beside whole guests.

use engine::{
    Access, Budget, Engine, Event, GpFault, Groups, Hypercall, HypercallOutcome, Platform, Setup, VcpuId,
    Window,
};
use interpreter::Interpreter;
use memory::{GuestMemory, Layout, Region};
use std::time::Instant;
use x86::Gpa;
use x86::control::{cr0, cr4, efer};
use x86::cpuid::Cpuid;
use x86::descriptor::{Attributes, Selector};
use x86::state::{Segment, seg};

/// A machine without devices.
struct Nothing;

impl Platform for Nothing {
    fn mmio(&mut self, _: Gpa, _: Access<'_>) {}
    fn pio(&mut self, _: u16, _: Access<'_>) {}
    fn rdmsr(&mut self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn wrmsr(&mut self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }
    fn cr8(&mut self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _: u8) {}
    fn take_event(&mut self, _: Window) -> Option<Event> {
        None
    }
    fn apic_enabled(&mut self) -> bool {
        false
    }
}

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

/// Name, machine code of a loop body that ends by jumping to its start.
const LOOPS: &[(&str, &[u8])] = &[
    // dec rcx; jnz
    ("count down", &[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xeb, 0xf9]),
    // add rax, rbx; xor rdx, rax; lea rsi, [rax+rdx*2]; shr rsi, 3; sub rdi, rsi; inc rcx; cmp rcx, rdi; jmp
    (
        "arithmetic",
        &[
            0x48, 0x01, 0xd8, 0x48, 0x31, 0xc2, 0x48, 0x8d, 0x34, 0x50, 0x48, 0xc1, 0xee, 0x03, 0x48, 0x29,
            0xf7, 0x48, 0xff, 0xc1, 0x48, 0x39, 0xf9, 0xeb, 0xe7,
        ],
    ),
    // mov rax, [r15]; add [r15+8], rax; mov [r15+16], rax; movzx edx, byte [r15+3]; push rdx; pop rdx; jmp
    (
        "memory",
        &[
            0x49, 0x8b, 0x07, 0x49, 0x01, 0x47, 0x08, 0x49, 0x89, 0x47, 0x10, 0x41, 0x0f, 0xb6, 0x57, 0x03,
            0x52, 0x5a, 0xeb, 0xec,
        ],
    ),
    // call +2; jmp back; (target) ret
    ("call and return", &[0xe8, 0x02, 0x00, 0x00, 0x00, 0xeb, 0xf9, 0xc3]),
];

fn main() {
    let count = 30_000_000;
    for (name, code) in LOOPS {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: 4 << 20 }]).expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("4 MiB of memory");
        // One 2 MiB page each for the first GiB: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000.
        let entry = |at: u64, value: u64| memory.write(Gpa(at), &value.to_le_bytes()).expect("RAM");
        entry(0x1000, 0x2003);
        entry(0x2000, 0x3003);
        for page in 0..512 {
            entry(0x3000 + page * 8, page << 21 | 0x83);
        }
        memory.write(Gpa(CODE), code).expect("RAM");
        let engine =
            Interpreter::new(Setup { memory, cpuid: Cpuid::default(), tsc_offset: 0 }).expect("an engine");
        let mut vcpu = engine.create_vcpu(VcpuId(0)).expect("a vCPU");
        let state = vcpu.state(Groups::all()).expect("state");
        state.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::WP;
        state.cr4 = cr4::PAE;
        state.cr3 = 0x1000;
        state.efer = efer::LME | efer::LMA;
        let flat = |selector, attributes| Segment {
            base: 0,
            limit: u32::MAX,
            attributes: Attributes(attributes),
            selector: Selector(selector),
        };
        state.segments = [flat(0x18, 0xc093); 6];
        state.segments[seg::CS] = flat(0x10, 0xa09b);
        state.rip = CODE;
        state.gpr[x86::state::gpr::RSP] = DATA + 0x1000;
        state.gpr[x86::state::gpr::R15] = DATA;
        // Warm up, then measure.
        vcpu.run(Budget::Instructions(100_000), &mut Nothing).expect("runs");
        let start = Instant::now();
        vcpu.run(Budget::Instructions(count), &mut Nothing).expect("runs");
        let seconds = start.elapsed().as_secs_f64();
        println!("{name:16} {:7.1} million instructions/s", count as f64 / seconds / 1e6);
    }
}
