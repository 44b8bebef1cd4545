//! What unprivileged code can't show: modes, gates, tasks, faults and their order. Each test names the manual's section.
//!
//! A test lays out descriptor tables and machine code in RAM, sets registers, runs until the vCPU halts and looks at what is
//! left. Handlers are a HLT each, at a known address, so that RIP tells which one was reached.

use engine::{
    Access, Budget, Engine, Event, Exit, GpFault, Groups, Hypercall, HypercallOutcome, Platform, Setup, Vcpu,
    VcpuId, Window,
};
use interpreter::Interpreter;
use memory::{GuestMemory, Layout, Region};
use x86::control::{cr0, cr4, dr6, efer};
use x86::cpuid::{Cpuid, Leaf};
use x86::descriptor::{RawDescriptor, Selector};
use x86::state::{Segment, TableRegister, gpr, seg};
use x86::{CpuState, Gpa, Rflags};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TSS2: u64 = 0x3100;
const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x2_0000;
const KERNEL_STACK: u64 = 0x8000;
const USER_STACK: u64 = 0x9000;
const TABLES: u64 = 0x5_0000;
/// Where there is no RAM but `World::board`.
const BOARD: u64 = 0x20_0000;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x1b;
const DATA3: u16 = 0x23;
const TASK: u16 = 0x28;
const TASK2: u16 = 0x30;
const CODE64: u16 = 0x38;
const GATE: u16 = 0x40;
const USER_CODE64: u16 = 0x5b;

/// The outside world: a queue of events, no devices but a little memory on the bus.
#[derive(Default)]
struct World {
    board: Vec<u8>,
    /// Offset of a TSS descriptor that becomes busy as soon as it has been read.
    taken_when_read: Option<usize>,
    nmis: u32,
    interrupts: Vec<u8>,
    startup: Option<u8>,
}

impl Platform for World {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        let len = match &access {
            Access::Read(data) => data.len(),
            Access::Write(data) => data.len(),
        };
        let start = at.0.wrapping_sub(BOARD) as usize;
        let board = start.checked_add(len).and_then(|end| self.board.get_mut(start..end));
        match (access, board) {
            (Access::Read(data), Some(board)) => {
                data.copy_from_slice(board);
                if len == 8 && self.taken_when_read == Some(start) {
                    board[5] |= 2;
                }
            }
            (Access::Read(data), None) => data.fill(0xff),
            (Access::Write(data), Some(board)) => board.copy_from_slice(data),
            (Access::Write(_), None) => {}
        }
    }
    fn pio(&mut self, _: u16, access: Access<'_>) {
        if let Access::Read(data) = access {
            data.fill(0x5a);
        }
    }
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
    fn take_event(&mut self, window: Window) -> Option<Event> {
        if let Some(vector) = self.startup.take() {
            return Some(Event::Startup(vector));
        }
        if window.nmi && self.nmis > 0 {
            self.nmis -= 1;
            return Some(Event::Nmi);
        }
        if window.interrupt { self.interrupts.pop().map(Event::Interrupt) } else { None }
    }
    fn apic_enabled(&mut self) -> bool {
        true
    }
}

struct Machine {
    memory: GuestMemory,
    vcpu: Box<dyn Vcpu>,
    world: World,
}

fn cpuid() -> Cpuid {
    let mut cpuid = Cpuid::default();
    cpuid.set(0, 0, Leaf { eax: 0xd, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 });
    cpuid.set(1, 0, Leaf { eax: 0x600, ebx: 0, ecx: !0, edx: !0 });
    cpuid.set(7, 0, Leaf { eax: 0, ebx: !0, ecx: !0, edx: !0 });
    cpuid.set(0xd, 1, Leaf { eax: !0, ..Leaf::default() });
    cpuid.set(0x8000_0000, 0, Leaf { eax: 0x8000_0008, ..Leaf::default() });
    cpuid.set(0x8000_0001, 0, Leaf { eax: 0, ebx: 0, ecx: 0, edx: !0 });
    cpuid.set(0x8000_0008, 0, Leaf { eax: 39, ..Leaf::default() });
    cpuid
}

/// A descriptor; `flags` has the access byte low and G, D/B, L, AVL in bits 15..=12.
fn descriptor(base: u64, limit: u64, flags: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (flags & 0xf0ff) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// A gate; `access` is P, DPL and type.
fn gate(selector: u16, offset: u64, access: u64) -> u64 {
    (offset & 0xffff) | u64::from(selector) << 16 | access << 40 | (offset >> 16 & 0xffff) << 48
}

const GDT_ENTRIES: [(u64, u64, u64); 12] = [
    (0, 0, 0),
    (0, 0xf_ffff, 0xc09b),
    (0, 0xf_ffff, 0xc093),
    (0, 0xf_ffff, 0xc0fb),
    (0, 0xf_ffff, 0xc0f3),
    (TSS, 0x67, 0x008b),
    (TSS2, 0x67, 0x0089),
    (0, 0xf_ffff, 0xa09b),
    (0, 0, 0),
    (0, 0, 0),
    (0, 0xf_ffff, 0xc0f3),
    (0, 0xf_ffff, 0xa0fb),
];

fn segment(selector: u16) -> Segment {
    let (base, limit, flags) = GDT_ENTRIES[usize::from(selector >> 3)];
    Segment::from_descriptor(Selector(selector), RawDescriptor(descriptor(base, limit, flags)))
}

impl Machine {
    fn new() -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: 1 << 20 }]).expect("a valid layout");
        let memory = GuestMemory::new(layout).expect("host memory");
        let engine = Interpreter::new(Setup { memory: memory.clone(), cpuid: cpuid(), tsc_offset: 0 })
            .expect("an engine");
        let vcpu = engine.create_vcpu(VcpuId(0)).expect("a vCPU");
        Self { memory, vcpu, world: World::default() }
    }

    /// Ring 0 of flat 32-bit protected mode, with 32-bit gates (DPL 0, but 3 for 0x80) to HLTs.
    fn protected(code: &[u8]) -> Self {
        let mut machine = Self::new();
        for (index, &(base, limit, flags)) in GDT_ENTRIES.iter().enumerate() {
            machine.put(GDT + index as u64 * 8, descriptor(base, limit, flags), 8);
        }
        for vector in 0..256 {
            let access = if vector == 0x80 { 0xee } else { 0x8e };
            machine.put(IDT + vector * 8, gate(CODE0, HANDLERS + vector * 16, access), 8);
            machine.put(HANDLERS + vector * 16, 0xf4, 1);
        }
        machine.put(TSS + 4, KERNEL_STACK, 4);
        machine.put(TSS + 8, DATA0.into(), 2);
        machine.put(TSS + 102, 0x68, 2);
        machine.memory.write(Gpa(CODE), code).expect("RAM");
        let state = machine.state();
        state.cr0 = cr0::PE | cr0::ET;
        for slot in 0..6 {
            state.segments[slot] = segment(DATA0);
        }
        state.segments[seg::CS] = segment(CODE0);
        state.gdtr = TableRegister { base: GDT, limit: 0x5f };
        state.idtr = TableRegister { base: IDT, limit: 0x7ff };
        state.tr = segment(TASK);
        state.rip = CODE;
        state.gpr[gpr::RSP] = 0x7000;
        machine
    }

    fn enter_ring3(&mut self) {
        let state = self.state();
        state.cpl = 3;
        for slot in 0..6 {
            state.segments[slot] = segment(DATA3);
        }
        state.segments[seg::CS] = segment(CODE3);
        state.gpr[gpr::RSP] = USER_STACK;
    }

    /// Long mode, ring 0, everything below 1 GiB mapped with 2 MiB pages for everyone; 64-bit gates.
    fn long(code: &[u8]) -> Self {
        let mut machine = Self::protected(code);
        machine.put(TABLES, (TABLES + 0x1000) | 7, 8);
        machine.put(TABLES + 0x1000, (TABLES + 0x2000) | 7, 8);
        for index in 0..512 {
            machine.put(TABLES + 0x2000 + index * 8, index << 21 | 0x87, 8);
        }
        for vector in 0..256 {
            machine.put(IDT + vector * 16, gate(CODE64, HANDLERS + vector * 16, 0x8e), 8);
            machine.put(IDT + vector * 16 + 8, 0, 8);
        }
        machine.put(TSS + 4, KERNEL_STACK, 8);
        let state = machine.state();
        state.idtr.limit = 0xfff;
        state.cr4 = cr4::PAE;
        state.cr3 = TABLES;
        state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        state.cr0 |= cr0::PG | cr0::WP;
        state.segments[seg::CS] = segment(CODE64);
        machine
    }

    fn put(&mut self, at: u64, value: u64, size: usize) {
        self.memory.write(Gpa(at), &value.to_le_bytes()[..size]).expect("RAM");
    }

    fn get(&self, at: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.memory.read(Gpa(at), &mut data[..size]).expect("RAM");
        u64::from_le_bytes(data)
    }

    fn state(&mut self) -> &mut CpuState {
        self.vcpu.state(Groups::all()).expect("the interpreter doesn't break")
    }

    fn run(&mut self, most: u64) -> Exit {
        self.vcpu.run(Budget::Instructions(most), &mut self.world).expect("the interpreter doesn't break")
    }

    /// Runs to a HLT and gives its address.
    fn run_to_halt(&mut self) -> u64 {
        assert_eq!(self.run(1000), Exit::Halted, "state: {:x?}", self.state().rip);
        self.state().rip - 1
    }

    fn run_to_handler(&mut self) -> u64 {
        let at = self.run_to_halt();
        assert!(at >= HANDLERS, "halted at {at:#x}, not in a handler");
        (at - HANDLERS) / 16
    }

    /// Slot `index` of the frame on the stack.
    fn slot(&mut self, index: u64, size: usize) -> u64 {
        let at = self.state().gpr[gpr::RSP];
        self.get(at + index * size as u64, size)
    }
}

/// SDM 3B 20.1.4.
#[test]
fn real_mode_interrupts_go_through_the_vector_table_and_come_back() {
    let mut machine = Machine::new();
    machine.memory.write(Gpa(0x1000), &[0xfb, 0xcd, 0x21, 0xf4]).expect("RAM");
    machine.put(0x21 * 4, 0x0000_2000, 4);
    machine.put(0x2000, 0xcf, 1);
    let state = machine.state();
    state.segments[seg::CS] = Segment { base: 0, selector: Selector(0), ..state.segments[seg::CS] };
    state.rip = 0x1000;
    state.gpr[gpr::RSP] = 0x800;
    assert_eq!(machine.run_to_halt(), 0x1003);
    assert_eq!(machine.state().gpr[gpr::RSP], 0x800);
    assert!(machine.state().rflags.contains(Rflags::IF));
    assert_eq!(machine.get(0x7fa, 2), 0x1003, "the return address was on the stack");
}

/// SDM 3A 6.12.1: privilege change through an interrupt gate.
#[test]
fn a_gate_to_ring_0_switches_to_the_stack_in_the_tss() {
    let mut machine = Machine::protected(&[0xcd, 0x80]);
    machine.enter_ring3();
    machine.state().rflags |= Rflags::IF;
    assert_eq!(machine.run_to_handler(), 0x80);
    assert_eq!(machine.state().gpr[gpr::RSP], KERNEL_STACK - 20);
    assert_eq!(machine.slot(0, 4), CODE + 2);
    assert_eq!(machine.slot(1, 4), u64::from(CODE3));
    assert_eq!(machine.slot(2, 4), 0x202);
    assert_eq!(machine.slot(3, 4), USER_STACK);
    assert_eq!(machine.slot(4, 4), u64::from(DATA3));
    let state = machine.state();
    assert_eq!((state.cpl, state.segments[seg::SS].selector.0), (0, DATA0));
    assert!(!state.rflags.contains(Rflags::IF));
}

/// SDM 3A 6.12.1.2: software interrupts need the gate's privilege; the error code has the IDT bit, not EXT.
#[test]
fn a_software_interrupt_without_privilege_is_a_gp_with_the_vector() {
    let mut machine = Machine::protected(&[0xcd, 0x21]);
    machine.enter_ring3();
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(0, 4), 0x21 * 8 + 2);
    assert_eq!(machine.slot(1, 4), CODE);
    assert_ne!(machine.slot(3, 4) & Rflags::RF.bits(), 0, "faults push RF (SDM 3B 17.3.1.1)");
}

/// SDM 3A 6.13.
#[test]
fn a_selector_beyond_the_table_is_a_gp_with_the_selector() {
    let mut machine = Machine::protected(&[0x66, 0xb8, 0x63, 0x01, 0x8e, 0xd8]);
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(0, 4), 0x160);
    assert_eq!(machine.slot(1, 4), CODE + 4);
}

/// SDM 3A 4.7.
#[test]
fn page_faults_say_why_and_where() {
    // mov eax, [0x00800000]
    let mut machine = Machine::protected(&[0xa1, 0, 0, 0x80, 0]);
    machine.put(TABLES, 0x83, 4);
    let state = machine.state();
    (state.cr3, state.cr4) = (TABLES, cr4::PSE);
    state.cr0 |= cr0::PG;
    assert_eq!(machine.run_to_handler(), 14);
    assert_eq!(machine.state().cr2, 0x80_0000);
    assert_eq!(machine.slot(0, 4), 0);

    // From ring 3: mov [0x4], eax, where code is the user's and low memory the supervisor's.
    let mut machine = Machine::protected(&[0xa3, 4, 0, 0, 0]);
    machine.enter_ring3();
    machine.put(TABLES, (TABLES + 0x1000) | 7, 4);
    for page in 0..256 {
        let user = if page << 12 == CODE { 7 } else { 3 };
        machine.put(TABLES + 0x1000 + page * 4, page << 12 | user, 4);
    }
    let state = machine.state();
    state.cr3 = TABLES;
    state.cr0 |= cr0::PG;
    assert_eq!(machine.run_to_handler(), 14);
    assert_eq!(machine.state().cr2, 4);
    assert_eq!(machine.slot(0, 4), 7, "present, write, user");
}

/// SDM 3A table 6-5.
#[test]
fn a_contributory_fault_on_a_contributory_fault_is_a_double_fault() {
    let mut machine = Machine::protected(&[0x66, 0xb8, 0x63, 0x01, 0x8e, 0xd8]);
    machine.put(IDT + 13 * 8, gate(CODE0, HANDLERS, 0x0e), 8);
    assert_eq!(machine.run_to_handler(), 8);
    assert_eq!(machine.slot(0, 4), 0);
}

/// SDM 3A 6.15, interrupt 8.
#[test]
fn a_fault_on_the_way_to_the_double_fault_handler_is_the_end() {
    let mut machine = Machine::protected(&[0x0f, 0x0b]);
    machine.state().idtr.limit = 0;
    assert_eq!(machine.run(10), Exit::Shutdown);
}

fn second_task(machine: &mut Machine, code: &[u8]) {
    machine.memory.write(Gpa(0x1_8000), code).expect("RAM");
    machine.put(TSS2 + 32, 0x1_8000, 4);
    machine.put(TSS2 + 36, 2, 4);
    machine.put(TSS2 + 56, 0x6000, 4);
    for slot in 0..6 {
        let selector = if slot == 1 { CODE0 } else { DATA0 };
        machine.put(TSS2 + 72 + slot * 4, selector.into(), 2);
    }
}

/// SDM 3A 7.3, table 7-2.
#[test]
fn a_jump_to_a_tss_switches_tasks() {
    let mut machine = Machine::protected(&[0xea, 0, 0, 0, 0, TASK2 as u8, 0]);
    second_task(&mut machine, &[0xf4]);
    assert_eq!(machine.run_to_halt(), 0x1_8000);
    let state = machine.state();
    assert_eq!(state.tr.selector.0, TASK2);
    assert_eq!(state.gpr[gpr::RSP], 0x6000);
    assert_ne!(state.cr0 & cr0::TS, 0);
    assert!(!state.rflags.contains(Rflags::NT));
    assert_eq!(machine.get(TSS + 32, 4), CODE + 7);
    assert_eq!(machine.get(GDT + u64::from(TASK) + 5, 1), 0x89, "the old task is available");
    assert_eq!(machine.get(GDT + u64::from(TASK2) + 5, 1), 0x8b, "the new one busy");
}

/// SDM 3A 7.4.
#[test]
fn a_called_task_returns_through_its_link() {
    let mut machine = Machine::protected(&[0x9a, 0, 0, 0, 0, TASK2 as u8, 0, 0xf4]);
    second_task(&mut machine, &[0xcf]);
    assert_eq!(machine.run_to_halt(), CODE + 7);
    assert_eq!(machine.get(TSS2, 2), u64::from(TASK));
    assert_eq!(machine.state().tr.selector.0, TASK);
    assert!(!machine.state().rflags.contains(Rflags::NT));
}

/// SDM 3A 7.3: what a switch doesn't change needn't be writable, and stays as another processor may have made it.
#[test]
fn a_task_switch_writes_only_what_it_changes() {
    const OLD: u64 = 0x4000 - 32;
    const NEW: u64 = 0x6000 - 32;
    let mut machine = Machine::protected(&[0x9a, 0, 0, 0, 0, TASK2 as u8, 0]);
    // Pages 3 and 6 can't be written: the first 32 bytes of the old TSS, all but those of the new one.
    machine.put(TABLES, (TABLES + 0x1000) | 3, 4);
    for page in 0..256 {
        let rights = if page == 3 || page == 6 { 1 } else { 3 };
        machine.put(TABLES + 0x1000 + page * 4, page << 12 | rights, 4);
    }
    machine.put(GDT + u64::from(TASK), descriptor(OLD, 0x67, 0x8b), 8);
    machine.put(GDT + u64::from(TASK2), descriptor(NEW, 0x67, 0x89), 8);
    for (offset, value) in [(28, TABLES), (32, 0x1_8000), (36, 2), (56, 0x7000)] {
        machine.put(NEW + offset, value, 4);
    }
    for slot in 0..6 {
        let selector = if slot == 1 { CODE0 } else { DATA0 };
        machine.put(NEW + 72 + slot * 4, selector.into(), 2);
    }
    machine.put(OLD + 74, 0x7777, 2);
    machine.put(0x1_8000, 0xf4, 1);
    let state = machine.state();
    state.tr = Segment::from_descriptor(Selector(TASK), RawDescriptor(descriptor(OLD, 0x67, 0x8b)));
    state.cr3 = TABLES;
    state.cr0 |= cr0::PG | cr0::WP;
    assert_eq!(machine.run_to_halt(), 0x1_8000);
    assert_eq!(machine.get(OLD + 32, 4), CODE + 7);
    assert_eq!(machine.get(OLD + 72, 4), 0x7777_0000 | u64::from(DATA0), "ES, and what lies above it");
    assert_eq!(machine.get(NEW, 2), u64::from(TASK), "the link");
}

/// SDM 3A 7.2.2: the busy bit is tested and set in one. The other processor is played by the memory that the GDT is in.
#[test]
fn a_tss_that_another_processor_takes_at_the_same_time_is_busy() {
    // mov eax, TASK2; ltr ax. And a far call to it.
    for code in [&[0xb8, TASK2 as u8, 0, 0, 0, 0x0f, 0x00, 0xd8][..], &[0x9a, 0, 0, 0, 0, TASK2 as u8, 0]] {
        let mut machine = Machine::protected(code);
        second_task(&mut machine, &[0xf4]);
        machine.world.board = vec![0; 0x60];
        machine.memory.read(Gpa(GDT), &mut machine.world.board).expect("RAM");
        machine.world.taken_when_read = Some(TASK2.into());
        machine.state().gdtr.base = BOARD;
        assert_eq!(machine.run_to_handler(), 13);
        assert_eq!(machine.slot(0, 4), u64::from(TASK2));
        assert_eq!(machine.state().tr.selector.0, TASK);
        assert_eq!(machine.world.board[usize::from(TASK2) + 5], 0x8b, "the other's");
        assert_eq!(machine.get(TSS + 32, 4), 0, "nothing is saved");
    }
}

/// SDM 3A 3.5.1: the table wraps around at the top of the address space.
#[test]
fn a_descriptor_may_end_beyond_the_top_of_the_address_space() {
    // mov eax, 8; lldt ax
    let mut machine = Machine::long(&[0xb8, 8, 0, 0, 0, 0x0f, 0x00, 0xd0, 0xf4]);
    machine.put(TABLES + 0xff8, (TABLES + 0x1000) | 3, 8);
    machine.put(TABLES + 0x1ff8, (TABLES + 0x2000) | 3, 8);
    machine.put(TABLES + 0x2ff8, (TABLES + 0x3000) | 3, 8);
    machine.put(TABLES + 0x3ff8, 0x6_0003, 8);
    machine.put(0x6_0ff8, descriptor(0x1234, 0x67, 0x82), 8);
    machine.put(0, 1, 8);
    machine.state().gdtr = TableRegister { base: 0xffff_ffff_ffff_fff0, limit: 0x1f };
    assert_eq!(machine.run_to_halt(), CODE + 8);
    assert_eq!(machine.state().ldtr.base, 0x1_0000_1234);
}

/// SDM 1 13.2, 13.6.
#[test]
fn xgetbv_of_register_1_gives_the_components_in_use() {
    let in_use = |change: fn(&mut CpuState)| {
        // mov ecx, 1; xgetbv
        let mut machine = Machine::protected(&[0xb9, 1, 0, 0, 0, 0x0f, 0x01, 0xd0, 0xf4]);
        let state = machine.state();
        state.cr4 = cr4::OSXSAVE;
        state.vector.xcr0 = 7;
        change(state);
        assert_eq!(machine.run_to_halt(), CODE + 8);
        (machine.state().gpr[gpr::RDX] << 32) | machine.state().gpr[gpr::RAX]
    };
    assert_eq!(in_use(|_| {}), 0);
    assert_eq!(in_use(|state| state.vector.x87[0] ^= 1), 1, "FCW");
    assert_eq!(in_use(|state| state.vector.zmm[3][0] = 1), 2);
    assert_eq!(in_use(|state| state.vector.mxcsr ^= 0x80), 2, "MXCSR is SSE's");
    assert_eq!(in_use(|state| state.vector.zmm[3][16] = 1), 4);
    assert_eq!(in_use(|state| state.vector.zmm[20][0] = 1), 0, "not enabled");
}

/// SDM 3B 20.2.5, 20.3.1.1.
#[test]
fn virtual_8086_mode_is_entered_by_iret_and_left_by_a_fault() {
    let mut machine = Machine::protected(&[0xcf]);
    machine.put(0x4567, 0xf4, 1);
    let frame = [0x567, 0x400, 0x2_0002, 0x700, 0x500, 0x11, 0x22, 0x33, 0x44];
    for (index, value) in frame.into_iter().enumerate() {
        machine.put(0x7000 + index as u64 * 4, value, 4);
    }
    assert_eq!(machine.run(1), Exit::Budget);
    let state = machine.state();
    assert!(state.rflags.contains(Rflags::VM));
    assert_eq!((state.cpl, state.segments[seg::DS].base), (3, 0x220));
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(0, 4), 0);
    assert_eq!(machine.slot(1, 4), 0x567);
    assert_eq!(machine.slot(2, 4), 0x400);
    assert_ne!(machine.slot(3, 4) & Rflags::VM.bits(), 0);
    assert_eq!(machine.slot(5, 4), 0x500);
    assert_eq!([6, 7, 8, 9].map(|slot| machine.slot(slot, 4)), [0x11, 0x22, 0x33, 0x44], "ES, DS, FS, GS");
    assert_eq!(machine.state().segments[seg::GS].selector.0, 0);
}

/// SDM 3A 5.8.8.
#[test]
fn syscall_and_sysret_go_to_the_kernel_and_back() {
    // syscall; hlt - the HLT faults in ring 3.
    let mut machine = Machine::long(&[0x0f, 0x05, 0xf4]);
    machine.memory.write(Gpa(0x1_1000), &[0x90, 0x48, 0x0f, 0x07]).expect("RAM");
    machine.enter_ring3();
    let state = machine.state();
    state.segments[seg::CS] = segment(USER_CODE64);
    state.star = u64::from(CODE64) << 32 | 0x4b << 48;
    state.lstar = 0x1_1000;
    state.sfmask = Rflags::IF.bits();
    state.rflags |= Rflags::IF;
    assert_eq!(machine.run(2), Exit::Budget);
    let state = machine.state();
    assert_eq!((state.cpl, state.rip), (0, 0x1_1001));
    assert_eq!((state.gpr[gpr::RCX], state.gpr[gpr::R11]), (CODE + 2, 0x202));
    assert!(!state.rflags.contains(Rflags::IF));
    assert_eq!(machine.run(1), Exit::Budget);
    let state = machine.state();
    assert_eq!((state.cpl, state.rip), (3, CODE + 2));
    assert_eq!(state.segments[seg::CS].selector.0, USER_CODE64);
    assert!(state.rflags.contains(Rflags::IF));
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(1, 8), CODE + 2);
    assert_eq!(machine.slot(5, 8), 0x53);
}

/// SDM 2B SYSRET: Intel's CPUs fault in ring 0 on a return address that isn't canonical.
#[test]
fn sysret_to_an_address_that_is_not_canonical_faults_in_ring_0() {
    let mut machine = Machine::long(&[0x48, 0x0f, 0x07]);
    machine.state().gpr[gpr::RCX] = 1 << 47;
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(2, 8), u64::from(CODE64));
}

/// SDM 3A 6.14: IST, and IRETQ.
#[test]
fn long_mode_uses_the_interrupt_stack_table_and_iretq_comes_back() {
    let mut machine = Machine::long(&[0xcd, 0x40, 0xf4]);
    machine.put(IDT + 0x40 * 16 + 4, 1, 1);
    machine.put(TSS + 36, 0x6ff8, 8);
    machine.memory.write(Gpa(HANDLERS + 0x400), &[0x48, 0xcf]).expect("RAM");
    assert_eq!(machine.run(1), Exit::Budget);
    assert_eq!(machine.state().gpr[gpr::RSP], 0x6ff0 - 40, "aligned to 16 bytes");
    assert_eq!(machine.run_to_halt(), CODE + 2);
    assert_eq!(machine.state().gpr[gpr::RSP], 0x7000);
}

/// SDM 3B 17.3.1.4.
#[test]
fn tf_traps_after_each_instruction() {
    let mut machine = Machine::protected(&[0x90, 0x90]);
    machine.state().rflags |= Rflags::TF;
    assert_eq!(machine.run_to_handler(), 1);
    assert_eq!(machine.slot(0, 4), CODE + 1);
    assert_ne!(machine.state().dr6 & dr6::BS, 0);
    assert!(!machine.state().rflags.contains(Rflags::TF));
}

/// SDM 3B 17.3.1.2.
#[test]
fn a_data_breakpoint_traps_after_the_store() {
    let mut machine = Machine::protected(&[0xa3, 0, 0x60, 0, 0, 0x90]);
    let state = machine.state();
    state.dr[0] = 0x6000;
    state.dr7 = 0x000d_0401;
    assert_eq!(machine.run_to_handler(), 1);
    assert_eq!(machine.slot(0, 4), CODE + 5);
    assert_eq!(machine.state().dr6 & 0xf, 1);
}

/// SDM 3B 17.3.1.1.
#[test]
fn an_instruction_breakpoint_faults_before_and_rf_lets_it_pass() {
    let mut machine = Machine::protected(&[0x90, 0xf4]);
    machine.put(HANDLERS + 16, 0xcf, 1);
    let state = machine.state();
    state.dr[1] = CODE;
    state.dr7 = 0x404;
    assert_eq!(machine.run_to_halt(), CODE + 1);
    assert_eq!(machine.state().dr6 & 0xf, 2);
}

/// SDM 3B 17.2.4: general detect.
#[test]
fn general_detect_guards_the_debug_registers() {
    let mut machine = Machine::protected(&[0x0f, 0x21, 0xf8]);
    machine.state().dr7 = 0x2400;
    assert_eq!(machine.run_to_handler(), 1);
    assert_eq!(machine.slot(0, 4), CODE);
    assert_ne!(machine.state().dr6 & dr6::BD, 0);
    assert_eq!(machine.state().dr7, 0x400, "GD is clear for the handler");
}

/// SDM 2B STI.
#[test]
fn sti_holds_interrupts_back_for_one_instruction() {
    let mut machine = Machine::protected(&[0xfb, 0x90, 0x90]);
    machine.world.interrupts.push(0x40);
    assert_eq!(machine.run_to_handler(), 0x40);
    assert_eq!(machine.slot(0, 4), CODE + 2);
}

/// SDM 3A 6.8.3.
#[test]
fn mov_ss_holds_interrupts_back_for_one_instruction() {
    // mov ax, ss; sti; mov ss, ax; nop; nop
    let mut machine = Machine::protected(&[0x8c, 0xd0, 0xfb, 0x8e, 0xd0, 0x90, 0x90]);
    machine.world.interrupts.push(0x40);
    assert_eq!(machine.run_to_handler(), 0x40);
    assert_eq!(machine.slot(0, 4), CODE + 6);
}

/// SDM 3A 6.7.1.
#[test]
fn nmis_are_blocked_until_iret() {
    let mut machine = Machine::protected(&[0x90, 0x90, 0x90]);
    machine.memory.write(Gpa(HANDLERS + 0x20), &[0x90, 0x90, 0xcf]).expect("RAM");
    machine.world.nmis = 2;
    for _ in 0..2 {
        assert_eq!(machine.run(1), Exit::Budget);
        assert_eq!(machine.world.nmis, 1);
    }
    assert_eq!(machine.run(1), Exit::Budget);
    assert_eq!(machine.run(1), Exit::Budget);
    assert_eq!(machine.world.nmis, 0);
}

/// SDM 3A 5.8.4: a call gate to more privilege copies parameters.
#[test]
fn a_call_gate_switches_stacks_and_copies_parameters() {
    let mut machine = Machine::protected(&[0x9a, 0, 0, 0, 0, GATE as u8 | 3, 0]);
    machine.enter_ring3();
    machine.put(GDT + u64::from(GATE), gate(CODE0, HANDLERS, 0xec) | 2 << 32, 8);
    machine.put(USER_STACK, 0x1111, 4);
    machine.put(USER_STACK + 4, 0x2222, 4);
    assert_eq!(machine.run_to_handler(), 0);
    let frame = [0, 1, 2, 3, 4, 5].map(|slot| machine.slot(slot, 4));
    assert_eq!(frame, [CODE + 7, CODE3.into(), 0x1111, 0x2222, USER_STACK, DATA3.into()]);
}

/// SDM 1 19.5.2.
#[test]
fn ports_go_by_the_bitmap_in_the_tss() {
    // in al, 0x60; in al, 0x61 - the second is forbidden.
    let mut machine = Machine::protected(&[0xe4, 0x60, 0xe4, 0x61]);
    machine.enter_ring3();
    machine.put(TSS + 0x68 + 0x60 / 8, 0b10, 2);
    machine.state().tr.limit = 0x100;
    assert_eq!(machine.run_to_handler(), 13);
    assert_eq!(machine.slot(1, 4), CODE + 2);
    assert_eq!(machine.state().gpr[gpr::RAX] & 0xff, 0x5a);
}

/// SDM 3A 9.8.5: from protected to long mode and on.
#[test]
fn paging_with_lme_activates_long_mode() {
    // mov cr0, eax; jmp far CODE64:HANDLERS
    let mut machine = Machine::protected(&[0x0f, 0x22, 0xc0, 0xea, 0, 0, 2, 0, CODE64 as u8, 0]);
    let tables = Machine::long(&[]);
    for at in (TABLES..TABLES + 0x3000).step_by(8) {
        let entry = tables.get(at, 8);
        machine.put(at, entry, 8);
    }
    let state = machine.state();
    state.cr4 = cr4::PAE;
    state.cr3 = TABLES;
    state.efer = efer::LME;
    state.gpr[gpr::RAX] = cr0::PG | cr0::PE;
    assert_eq!(machine.run_to_handler(), 0);
    assert_ne!(machine.state().efer & efer::LMA, 0);
    assert!(machine.state().segments[seg::CS].attributes.is_long());
}

/// SDM 3A 2.5: reserved combinations.
#[test]
fn control_registers_refuse_what_the_manual_forbids() {
    for (code, value) in [
        ([0x0f, 0x22, 0xc0], cr0::PG),
        ([0x0f, 0x22, 0xc0], cr0::PE | cr0::NW),
        ([0x0f, 0x22, 0xe0], cr4::PCIDE),
        ([0x0f, 0x22, 0xe0], 1 << 15),
    ] {
        let mut machine = Machine::protected(&code);
        machine.state().gpr[gpr::RAX] = value;
        assert_eq!(machine.run_to_handler(), 13, "{value:#x}");
        assert_eq!(machine.slot(1, 4), CODE);
    }
}

/// SDM 2B NOP, RDSSPD: the hint space does nothing on CPUs that don't know the hint.
#[test]
fn hints_that_are_not_offered_do_nothing() {
    let code = [
        0x0f, 0x19, 0xc0, 0x0f, 0x1e, 0xc0, 0x0f, 0x1c, 0xc0, 0x0f, 0x0d, 0xc0, 0x0f, 0x1a, 0xc0, 0xf3, 0x0f,
        0x1e, 0xc8, 0xf3, 0x0f, 0x1e, 0xfb, 0xf3, 0x90, 0xf4,
    ];
    let mut machine = Machine::protected(&code);
    assert_eq!(machine.run_to_halt(), CODE + code.len() as u64 - 1);
}

/// SDM 3A 9.1, table 9-1; 8.4.3.
#[test]
fn init_and_a_startup_ipi_start_real_mode_code() {
    let mut machine = Machine::protected(&[]);
    let engine = Interpreter::new(Setup { memory: machine.memory.clone(), cpuid: cpuid(), tsc_offset: 0 })
        .expect("an engine");
    machine.vcpu = engine.create_vcpu(VcpuId(1)).expect("a vCPU");
    machine.world.nmis = 1;
    assert_eq!(machine.run(10), Exit::Halted);
    assert_eq!(machine.world.nmis, 1, "NMIs wait with it");
    machine.world.nmis = 0;
    machine.world.startup = Some(0x20);
    assert_eq!(machine.run_to_halt(), 0);
    let state = machine.state();
    assert_eq!((state.segments[seg::CS].selector.0, state.segments[seg::CS].base), (0x2000, HANDLERS));
}

/// A handler whose first instruction faults goes on without end: the stack wraps around, so nothing stops it. No instruction
/// completes, so a budget alone would never be used up.
#[test]
fn a_handler_that_faults_without_end_returns_to_the_machine() {
    let mut machine = Machine::protected(&[0x0f, 0x0b]);
    machine.put(HANDLERS + 6 * 16, 0x0b0f, 2);
    // A 16-bit stack pointer wraps within its 64 KiB, where nothing but the stack is.
    let state = machine.state();
    state.segments[seg::SS].attributes.0 &= !(1 << 14);
    state.segments[seg::SS].base = 0x6_0000;
    let exit = machine.vcpu.run(Budget::Instructions(1000), &mut machine.world).expect("the engine lives");
    assert_eq!(exit, Exit::Kicked);
    assert_eq!(machine.vcpu.instructions(), 0);
}
