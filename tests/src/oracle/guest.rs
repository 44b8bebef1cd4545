//! The engine side of the oracle: a guest in 64-bit user mode, with the same bytes at the same virtual addresses.
//!
//! Every vector has an interrupt gate to its own `HLT` in ring 0, so that any exception ends the case with [`Exit::Halted`]
//! and its vector, error code and saved registers can be read from the ring-0 stack (SDM 3A 6.14). System structures lie
//! where no generated address goes.

use super::case::{
    BROKEN, CODE, CODE_LEN, CS, DATA, DATA_LEN, ENDLESS, FS_BASE, GS_BASE, Initial, LOST, Outcome,
    READ_ONLY_FILL, SHUTDOWN, SS,
};
use super::native::cpuid;
use engine::{
    Access, Budget, Engine, EngineError, Event, Exit, GpFault, Groups, Hypercall, HypercallOutcome, Platform,
    Setup, Vcpu, VcpuId, Window,
};
use memory::{GuestMemory, Layout, Region};
use std::panic::{AssertUnwindSafe, catch_unwind};
use x86::control::{cr0, cr4, efer, xcr0};
use x86::cpuid::{Cpuid, Leaf};
use x86::descriptor::{Attributes, Selector};
use x86::paging::pte;
use x86::state::{Activity, Segment, TableRegister, seg};
use x86::{CpuState, Gpa, Rflags};

/// Makes the engine under test.
pub type MakeEngine<'a> = dyn Fn(Setup) -> Result<Box<dyn Engine>, EngineError> + 'a;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT_DATA: u64 = 0x4000;
const PT_CODE: u64 = 0x5000;
const PT_SYSTEM: u64 = 0x6000;
const DATA_FRAME: u64 = 0x10000;
const CODE_FRAME: u64 = 0x13000;
const SYSTEM_FRAME: u64 = 0x14000;
const RAM: u64 = 0x10_0000;

/// Supervisor pages: GDT, IDT, TSS, handlers, stack.
const SYSTEM: u64 = 0x2580_0000;
const IDT: u64 = SYSTEM + 0x1000;
const TSS: u64 = SYSTEM + 0x2000;
const HANDLERS: u64 = SYSTEM + 0x3000;
const STACK_TOP: u64 = SYSTEM + 0x5000;
const KERNEL_CS: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;

/// Whether an address is the guest's alone: supervisor pages that the host hasn't.
pub(super) fn is_system(address: u64) -> bool {
    (SYSTEM..STACK_TOP).contains(&address)
}

/// Instructions after which a case counts as endless.
const BUDGET: u64 = 100_000;

/// A vCPU with its memory, ready to run cases.
pub struct Guest {
    memory: GuestMemory,
    vcpu: Box<dyn Vcpu>,
    engine: Box<dyn Engine>,
    start: CpuState,
}

/// A machine without devices.
struct Bare;

impl Platform for Bare {
    fn mmio(&mut self, _at: Gpa, access: Access<'_>) {
        if let Access::Read(buffer) = access {
            buffer.fill(0xff);
        }
    }
    fn pio(&mut self, _port: u16, access: Access<'_>) {
        if let Access::Read(buffer) = access {
            buffer.fill(0xff);
        }
    }
    fn rdmsr(&mut self, _msr: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn wrmsr(&mut self, _msr: u32, _value: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }
    fn cr8(&mut self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _priority: u8) {}
    fn take_event(&mut self, _window: Window) -> Option<Event> {
        None
    }
    fn apic_enabled(&mut self) -> bool {
        true
    }
}

/// The host's CPUID without what no guest is offered: transactions, waiting, AMX, key locker.
#[must_use]
pub fn host_cpuid() -> Cpuid {
    let mut table = Cpuid::default();
    for first in [0, 0x8000_0000u32] {
        let highest = cpuid(first, 0).eax.min(first + 0x40);
        for leaf in first..=highest {
            if x86::cpuid::has_subleaves(leaf) {
                for subleaf in 0..if leaf == 0xd { 20 } else { 4 } {
                    table.set(leaf, subleaf, cpuid(leaf, subleaf));
                }
            } else {
                table.set(leaf, 0, cpuid(leaf, 0));
            }
        }
    }
    let Leaf { ebx, ecx, edx, .. } = table.leaf_mut(7, 0);
    *ebx &= !(1 << 4 | 1 << 11); // HLE, RTM
    *ecx &= !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 23); // PKU, WAITPKG, KL
    *edx &= !(1 << 16 | 1 << 22 | 1 << 24 | 1 << 25); // TSXLDTRK, AMX
    table
}

/// The state components that guests are offered.
pub(crate) fn offered_xcr0() -> u64 {
    let host = cpuid(0xd, 0).eax;
    u64::from(host) & (xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512)
}

impl Guest {
    /// Builds the guest around an engine.
    ///
    /// # Errors
    /// The engine can't be made.
    ///
    /// # Panics
    /// The host refuses a megabyte of memory.
    pub fn new(make: &MakeEngine<'_>) -> Result<Self, EngineError> {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("a valid layout");
        let memory = GuestMemory::new(layout).expect("a megabyte of memory");
        let engine = make(Setup { memory: memory.clone(), cpuid: host_cpuid(), tsc_offset: 0 })?;
        let vcpu = engine.create_vcpu(VcpuId(0))?;
        fill(&memory);
        Ok(Self { memory, vcpu, engine, start: start() })
    }

    /// Runs one case.
    pub fn run(&mut self, initial: &Initial, outcome: &mut Outcome) {
        write(&self.memory, DATA_FRAME, &initial.data);
        let (offset, code) = initial.code_in_page();
        write(&self.memory, CODE_FRAME + offset as u64, code);
        let mut state = self.start.clone();
        state.gpr = initial.gpr;
        state.rip = initial.rip;
        state.rflags = Rflags::from_bits_retain(initial.rflags);
        let xcr0 = state.vector.xcr0;
        state.vector = initial.vector.clone();
        state.vector.xcr0 = xcr0;
        let vcpu = &mut self.vcpu;
        // An engine that panics is wrong, but the oracle goes on to tell which case it was.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            *vcpu.state(Groups::all())? = state;
            let exit = vcpu.run(Budget::Instructions(BUDGET), &mut Bare)?;
            Ok::<_, EngineError>((exit, vcpu.state(Groups::all())?.clone()))
        }));
        let padding = [0xcc; super::case::MAX_CODE];
        write(&self.memory, CODE_FRAME + offset as u64, &padding[..code.len()]);
        let Ok(Ok((exit, state))) = ran else {
            outcome.vector = BROKEN;
            if let Ok(vcpu) = self.engine.create_vcpu(VcpuId(0)) {
                self.vcpu = vcpu;
            }
            return;
        };
        self.collect(exit, &state, outcome);
    }

    fn collect(&self, exit: Exit, state: &CpuState, outcome: &mut Outcome) {
        outcome.gpr = state.gpr;
        outcome.rip = state.rip;
        outcome.rflags = state.rflags.bits();
        outcome.vectors = state.vector.clone();
        (outcome.code, outcome.cr2) = (0, 0);
        let _ = self.memory.read(Gpa(DATA_FRAME), &mut outcome.data);
        outcome.vector = match exit {
            Exit::Halted => LOST,
            Exit::Shutdown => SHUTDOWN,
            Exit::Budget | Exit::Kicked => ENDLESS,
        };
        let handler = state.rip.wrapping_sub(HANDLERS + 1);
        if exit != Exit::Halted || handler >= 0x1000 || !handler.is_multiple_of(16) {
            return;
        }
        outcome.vector = (handler / 16) as u32;
        let depth = STACK_TOP.wrapping_sub(state.gpr[4]);
        if depth != 40 && depth != 48 {
            outcome.vector = LOST;
            return;
        }
        let mut frame = [0; 48];
        let bytes = &mut frame[..depth as usize];
        let _ = self.memory.read(Gpa(state.gpr[4] - SYSTEM + SYSTEM_FRAME), bytes);
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| frame[8 * i + b]));
        let first = usize::from(depth == 48);
        if depth == 48 {
            outcome.code = word(0) as u32;
        }
        outcome.rip = word(first);
        outcome.rflags = word(first + 2);
        outcome.gpr[4] = word(first + 3);
        if outcome.vector == 14 {
            outcome.cr2 = state.cr2;
        }
        let selectors = (word(first + 1), word(first + 4));
        if selectors != (u64::from(CS), u64::from(SS)) {
            outcome.vector = LOST;
        }
    }
}

fn write(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    memory.write(Gpa(at), bytes).expect("in RAM");
}

/// Page tables, descriptor tables, handlers, and the pages that no case changes.
fn fill(memory: &GuestMemory) {
    let entry = |table: u64, index: u64, value: u64| write(memory, table + 8 * index, &value.to_le_bytes());
    let used = pte::P | pte::A;
    let open = used | pte::RW | pte::US;
    entry(PML4, 0, PDPT | open);
    entry(PDPT, 0, PD | open);
    for (at, table) in [(DATA, PT_DATA), (CODE, PT_CODE), (SYSTEM, PT_SYSTEM)] {
        entry(PD, at >> 21, table | open);
    }
    for page in 0..(DATA_LEN as u64 >> 12) {
        entry(PT_DATA, page, (DATA_FRAME + (page << 12)) | open | pte::D | pte::XD);
    }
    let read_only = DATA_LEN as u64 >> 12;
    entry(PT_DATA, read_only, (DATA_FRAME + (read_only << 12)) | used | pte::US | pte::XD);
    write(memory, DATA_FRAME + DATA_LEN as u64, &[READ_ONLY_FILL; 0x1000]);
    entry(PT_CODE, 0, CODE_FRAME | used | pte::US);
    write(memory, CODE_FRAME, &[0xcc; CODE_LEN]);
    for page in 0..5 {
        entry(PT_SYSTEM, page, (SYSTEM_FRAME + (page << 12)) | used | pte::RW | pte::D);
    }
    let system = |at: u64, bytes: &[u8]| write(memory, SYSTEM_FRAME + (at - SYSTEM), bytes);
    // GDT: 64-bit code for both rings, flat data for ring 3, a 64-bit TSS.
    for (selector, descriptor) in [
        (u64::from(KERNEL_CS), 0x00af_9b00_0000_ffffu64),
        (u64::from(SS) & !7, 0x00cf_f300_0000_ffff),
        (u64::from(CS) & !7, 0x00af_fb00_0000_ffff),
        (u64::from(TSS_SELECTOR), 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56),
    ] {
        system(SYSTEM + selector, &descriptor.to_le_bytes());
    }
    for vector in 0..256u64 {
        let handler = HANDLERS + 16 * vector;
        // Linux lets user code call 3 and 4.
        let rights = if vector == 3 || vector == 4 { 0xee } else { 0x8e };
        let low =
            handler & 0xffff | u64::from(KERNEL_CS) << 16 | rights << 40 | (handler >> 16 & 0xffff) << 48;
        system(IDT + 16 * vector, &low.to_le_bytes());
        system(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes());
    }
    system(TSS + 4, &STACK_TOP.to_le_bytes());
    system(TSS + 0x66, &0x68u16.to_le_bytes());
    system(HANDLERS, &[0xf4; 0x1000]);
}

fn start() -> CpuState {
    let flat = |selector: u16, attributes: u16, base: u64| Segment {
        base,
        limit: u32::MAX,
        attributes: Attributes(attributes),
        selector: Selector(selector),
    };
    let mut state = CpuState::default();
    state.segments[seg::CS] = flat(CS, 0xa0fb, 0);
    state.segments[seg::SS] = flat(SS, 0xc0f3, 0);
    state.segments[seg::DS] = Segment::default();
    state.segments[seg::ES] = Segment::default();
    state.segments[seg::FS] = Segment { base: FS_BASE, ..Segment::default() };
    state.segments[seg::GS] = Segment { base: GS_BASE, ..Segment::default() };
    state.ldtr = Segment::default();
    state.tr =
        Segment { base: TSS, limit: 0x67, attributes: Attributes(0x8b), selector: Selector(TSS_SELECTOR) };
    state.gdtr = TableRegister { base: SYSTEM, limit: 0x4f };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.cpl = 3;
    state.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::WP | cr0::MP | cr0::ET | cr0::AM;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE
        | cr4::PGE
        | cr4::DE
        | cr4::MCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT
        | cr4::OSXSAVE
        | cr4::FSGSBASE
        | cr4::UMIP;
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.activity = Activity::Running;
    state.vector.xcr0 = offered_xcr0();
    state
}
