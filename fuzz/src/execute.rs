//! A hostile guest: mode, control registers, page and descriptor tables, registers and code as the input says.
//!
//! [`world`] makes a sound machine in the mode that the input asks for, then changes bytes of its tables at will. Code runs
//! in a few turns, each with its own entry, budget and perhaps an event from outside. Devices answer from the input.
//!
//! Asserted: no panic, no `Err`, every run ends; the interpreter keeps to its contract with the platform (sizes of
//! accesses, events only in their window); and the registers stay a state that a CPU can be in (SDM 3A 2.5, 4.1.1).
//!
//! Only RDTSC, RDRAND and RDSEED make two runs of the same input differ.
//!
//! Threads: one.

mod platform;
mod world;

use crate::Input;
use engine::{Budget, Engine, Exit, Groups, Setup, Vcpu, VcpuId};
use interpreter::Interpreter;
use memory::{GuestMemory, Layout, Region};
use platform::Devices;
use std::sync::OnceLock;
use world::World;
use x86::control::{cr0, cr4, efer};
use x86::cpuid::Cpuid;
use x86::state::{Activity, seg};
use x86::{CpuState, Gpa, Rflags};

/// RAM ends here, with a hole from [`HOLE`] to [`HOLE_END`].
const RAM_END: u64 = 0x10_0000;
const HOLE: u64 = 0x8_0000;
const HOLE_END: u64 = 0xa_0000;

/// Most turns of one run.
const TURNS: usize = 6;

/// One run.
///
/// # Panics
/// Where the interpreter breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let cpuid = cpuid();
    let layout = Layout::new(vec![
        Region { start: Gpa(0), len: HOLE },
        Region { start: Gpa(HOLE_END), len: RAM_END - HOLE_END },
    ]);
    let memory = GuestMemory::new(layout.expect("a sound layout")).expect("a megabyte of address space");
    let setup = Setup { memory: memory.clone(), cpuid: cpuid.clone(), tsc_offset: 0 };
    let engine = Interpreter::new(setup).expect("the interpreter runs anywhere");
    let mut vcpu = engine.create_vcpu(VcpuId(0)).expect("a vCPU");
    let turns: [Turn; TURNS] = std::array::from_fn(|_| Turn::new(&mut input));
    let mut devices = Devices::new(&mut input, memory.clone(), vcpu.kicker());
    let world = World::new(&mut input, &memory, cpuid);
    *vcpu.state(Groups::all()).expect("registers") = world.start.clone();
    for turn in turns {
        if !take(turn, vcpu.as_mut(), &world, &mut devices) {
            break;
        }
    }
}

/// What the guest sees: the host's CPU as the machine offers it, with 5-level paging.
fn cpuid() -> &'static Cpuid {
    static CPUID: OnceLock<Cpuid> = OnceLock::new();
    CPUID.get_or_init(|| {
        let options = machine::cpuid::Options {
            cpus: 1,
            tsc_hz: 2_000_000_000,
            la57: true,
            mwait: false,
            mitigations: machine::cpuid::Mitigations::Off,
        };
        machine::cpuid::build(&machine::cpuid::host, options)
    })
}

/// A part of a run.
#[derive(Clone, Copy)]
struct Turn {
    /// Bit 0 and 1: what to do first. The rest picks an event.
    kind: u8,
    /// Where in the code to go on.
    entry: u8,
    budget: u8,
    vector: u8,
}

impl Turn {
    fn new(input: &mut Input<'_>) -> Self {
        Self { kind: input.u8(), entry: input.u8(), budget: input.u8(), vector: input.u8() }
    }
}

/// Runs one turn. Whether another makes sense.
fn take(turn: Turn, vcpu: &mut dyn Vcpu, world: &World, devices: &mut Devices) -> bool {
    let entry = world.entry(turn.entry);
    match turn.kind & 3 {
        // Go on wherever it is.
        0 => {}
        // Go on elsewhere, in whatever mode it is. Outside 64-bit mode RIP has 32 bits, which these have.
        1 => {
            let state = vcpu.state(Groups::all()).expect("registers");
            state.rip = entry;
            if matches!(state.activity, Activity::Halted | Activity::Shutdown) {
                state.activity = Activity::Running;
            }
        }
        _ => {
            let state = vcpu.state(Groups::all()).expect("registers");
            *state = world.start.clone();
            state.rip = entry;
        }
    }
    devices.offer(turn.kind >> 2, turn.vector);
    let budget = 1 + u64::from(turn.budget) * if turn.kind & 0x80 == 0 { 1 } else { 8 };
    let before = vcpu.instructions();
    let exit = vcpu.run(Budget::Instructions(budget), devices).expect("a guest can't break the engine");
    let done = vcpu.instructions() - before;
    assert!(done <= budget, "{done} instructions with a budget of {budget}");
    let state = vcpu.state(Groups::all()).expect("registers");
    check(state, exit);
    match exit {
        Exit::Budget | Exit::Kicked | Exit::Halted | Exit::Shutdown => true,
    }
}

/// What holds for the registers of any CPU between two instructions.
fn check(state: &CpuState, exit: Exit) {
    let on = |register: u64, bit: u64| register & bit != 0;
    let long = on(state.efer, efer::LMA);
    assert_eq!(
        long,
        on(state.efer, efer::LME) && on(state.cr0, cr0::PG),
        "LMA is LME and PG (SDM 3A 4.1.1)\n{state}"
    );
    assert!(!on(state.cr0, cr0::PG) || on(state.cr0, cr0::PE), "paging without protection\n{state}");
    assert!(!long || on(state.cr4, cr4::PAE), "long mode without PAE\n{state}");
    assert!(!on(state.cr4, cr4::PCIDE) || long, "PCIDE outside long mode\n{state}");
    assert_eq!(state.cr0 & !cr0::DEFINED, 0, "undefined bits of CR0\n{state}");
    assert!(state.cpl <= 3, "CPL\n{state}");
    assert!(state.rflags.contains(Rflags::ONE), "bit 1 of RFLAGS\n{state}");
    let virtual_8086 = state.rflags.contains(Rflags::VM);
    assert!(!virtual_8086 || state.cpl == 3, "virtual-8086 mode has CPL 3\n{state}");
    assert!(on(state.cr0, cr0::PE) || state.cpl == 0, "real mode has CPL 0\n{state}");
    let code = &state.segments[seg::CS];
    if !(long && code.attributes.is_long()) {
        assert!(state.rip <= u64::from(u32::MAX), "RIP has 32 bits outside 64-bit mode\n{state}");
    }
    assert!(state.dr7 >> 32 == 0 && state.dr6 >> 32 == 0, "DR6 and DR7 have 32 bits\n{state}");
    match exit {
        Exit::Shutdown => assert_eq!(state.activity, Activity::Shutdown),
        Exit::Halted => assert!(matches!(state.activity, Activity::Halted | Activity::WaitForStartup)),
        Exit::Budget | Exit::Kicked => {}
    }
}
