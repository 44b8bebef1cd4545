//! A machine in one of the CPU's modes: tables, handlers, code and registers, sound at first and then changed by the input.
//!
//! Low memory, whose physical and linear addresses are the same: vectors, GDT, LDT, IDT, task states, page tables, code,
//! handlers, stacks, data. Linear memory repeats it by larger pages and in the upper half.

use crate::Input;
use memory::GuestMemory;
use x86::control::{cr0, cr4, dr7, efer, xcr0};
use x86::cpuid::Cpuid;
use x86::descriptor::{Attributes, RawDescriptor, Selector};
use x86::paging::pte;
use x86::state::{Segment, TableRegister, gpr, seg};
use x86::{CpuState, Gpa, Rflags};

const GDT: u64 = 0x1000;
const LDT: u64 = 0x1800;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x4000;
const OTHER_TSS: u64 = 0x4200;
const TABLES: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const CODE_ROOM: usize = 0x3000;
const HANDLERS: u64 = 0x1_4000;
const STACKS: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
/// The input changes bytes below this.
const CHANGEABLE: u64 = 0x4_0000;

// Selectors of the GDT.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x1b;
const DATA3: u16 = 0x23;
const CODE3_LONG: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x40;
const LDT_SELECTOR: u16 = 0x60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Virtual8086,
    Compatibility,
    Long,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Paging {
    None,
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl Mode {
    const fn is_ia32e(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }
}

/// A bit of CR4 and the CPUID feature that it needs: leaf, register (0 is EAX), bit.
const CR4_BITS: &[(u64, u32, usize, u32)] = &[
    (cr4::VME, 1, 3, 1),
    (cr4::PVI, 1, 3, 1),
    (cr4::TSD, 1, 3, 4),
    (cr4::DE, 1, 3, 2),
    (cr4::PSE, 1, 3, 3),
    (cr4::PGE, 1, 3, 13),
    (cr4::OSFXSR, 1, 3, 24),
    (cr4::OSXMMEXCPT, 1, 3, 25),
    (cr4::UMIP, 7, 2, 2),
    (cr4::FSGSBASE, 7, 1, 0),
    (cr4::PCIDE, 1, 2, 17),
    (cr4::OSXSAVE, 1, 2, 26),
    (cr4::SMEP, 7, 1, 7),
    (cr4::SMAP, 7, 1, 20),
    (cr4::PKE, 7, 2, 3),
];

fn offers(cpuid: &Cpuid, leaf: u32, register: usize, bit: u32) -> bool {
    let leaf = cpuid.stored(leaf, 0);
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register] >> bit & 1 != 0
}

pub(super) struct World {
    /// The registers at the start.
    pub(super) start: CpuState,
    code_len: usize,
    code_base: u64,
}

impl World {
    /// Fills memory and makes the registers.
    pub(super) fn new(input: &mut Input<'_>, memory: &GuestMemory, cpuid: &Cpuid) -> Self {
        let mode = input.pick(&[
            Mode::Real,
            Mode::Protected16,
            Mode::Protected32,
            Mode::Protected32,
            Mode::Virtual8086,
            Mode::Compatibility,
            Mode::Long,
            Mode::Long,
            Mode::Long,
        ]);
        let shape = input.u8();
        let paging = match mode {
            Mode::Real => Paging::None,
            _ if mode.is_ia32e() && shape & 15 == 0 && offers(cpuid, 7, 2, 16) => Paging::Level5,
            _ if mode.is_ia32e() => Paging::Level4,
            _ => [Paging::None, Paging::Bits32, Paging::Pae, Paging::Bits32][usize::from(shape & 3)],
        };
        let ring = match mode {
            Mode::Real => 0,
            Mode::Virtual8086 => 3,
            _ if shape & 0x80 == 0 => 0,
            _ => 3,
        };
        let builder = Builder { memory, mode, ia32e: mode.is_ia32e() };
        builder.descriptors();
        builder.vectors(input.u8());
        builder.task_states();
        builder.page_tables(paging);
        let mut start = builder.registers(input, ring, paging, cpuid);
        for _ in 0..input.u8() & 15 {
            builder.change(input);
        }
        // PAE's four entries are loaded with CR3 (SDM 3A 4.4.1); reserved bits would have been refused.
        if paging == Paging::Pae {
            for (at, entry) in (TABLES + 0x1000..).step_by(8).zip(&mut start.pdptes) {
                *entry = builder.read64(at) & !0x1e6 & 0xf_ffff_ffff;
            }
        }
        let code = input.bytes(CODE_ROOM);
        builder.write(CODE, code);
        let code_base = if matches!(mode, Mode::Real | Mode::Virtual8086) { 0 } else { CODE };
        Self { start, code_len: code.len(), code_base }
    }

    /// Somewhere in the code.
    pub(super) fn entry(&self, place: u8) -> u64 {
        // Places are 4 bytes apart.
        self.code_base + 4 * (u64::from(place) % (self.code_len as u64 / 4 + 1))
    }
}

struct Builder<'a> {
    memory: &'a GuestMemory,
    mode: Mode,
    ia32e: bool,
}

/// A segment descriptor with the full limit of its kind.
const fn segment(kind: u64, dpl: u64, flags: u64) -> u64 {
    0x000f_0000_0000_ffff | (0x90 | dpl << 5 | kind) << 40 | flags << 52
}

/// A system descriptor, low half.
const fn system(kind: u64, base: u64, limit: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | (0x80 | kind) << 40 | (base >> 24 & 0xff) << 56
}

/// A gate, low half, that anyone may use.
const fn gate(kind: u64, selector: u16, offset: u64, more: u64) -> u64 {
    offset & 0xffff
        | (selector as u64) << 16
        | more << 32
        | (0xe0 | kind) << 40
        | (offset >> 16 & 0xffff) << 48
}

/// G, D/B, L as they lie in bits 52 to 55.
const BITS16: u64 = 0;
const BITS32: u64 = 0xc;
const BITS64: u64 = 0xa;

impl Builder<'_> {
    fn write(&self, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.memory.write(Gpa(at), bytes).expect("low memory is RAM");
        }
    }

    fn write64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn read64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(Gpa(at), &mut bytes).expect("low memory is RAM");
        u64::from_le_bytes(bytes)
    }

    fn code_flags(&self) -> u64 {
        match self.mode {
            Mode::Long => BITS64,
            Mode::Protected16 => BITS16,
            _ => BITS32,
        }
    }

    fn descriptors(&self) {
        let handlers = if self.ia32e { BITS64 } else { self.code_flags() };
        let data = if self.mode == Mode::Protected16 { BITS16 } else { BITS32 };
        let tss = if self.mode == Mode::Protected16 { 3 } else { 11 };
        let other = if tss == 3 { 1 } else { 9 };
        let gate_kind = if tss == 3 { 4 } else { 12 };
        let entries = [
            0,
            segment(0xb, 0, handlers),
            segment(0x3, 0, data),
            segment(0xb, 3, if self.mode == Mode::Protected16 { BITS16 } else { BITS32 }),
            segment(0x3, 3, data),
            segment(0xb, 3, if self.ia32e { BITS64 } else { BITS16 }),
            segment(0xf, 0, BITS32),
            segment(0x7, 3, BITS32),
            system(tss, TSS, 0x1ff),
            0,
            system(other, OTHER_TSS, 0x1ff),
            0,
            system(2, LDT, 0x7f),
            0,
            gate(gate_kind, CODE0, HANDLERS + 0x20, 2),
            0,
            gate(5, 0x50, 0, 0),
            segment(0xb, 0, BITS16),
            segment(0x3, 0, BITS16),
            system(1, OTHER_TSS, 0x1ff),
            gate(4, 0x88, HANDLERS & 0xffff, 1),
            segment(0xb, 0, BITS32),
            segment(0x1, 3, BITS32),
            segment(0x9, 1, BITS32),
        ];
        for (at, entry) in (GDT..).step_by(8).zip(entries) {
            self.write64(at, entry);
            self.write64(at + (LDT - GDT), entry);
        }
        self.write64(LDT + 8, segment(0xb, 3, self.code_flags()));
    }

    /// Vectors and handlers. Most halt, which ends a turn soon; `choice` says how often a handler returns, or runs code.
    fn vectors(&self, choice: u8) {
        // hlt; then the return of each size; an error code is dropped by the second kind.
        let drop = if self.ia32e { [0x48, 0x83, 0xc4, 0x08] } else { [0x66, 0x83, 0xc4, 0x04] };
        let back: &[u8] = match self.mode {
            Mode::Real | Mode::Protected16 => &[0xcf],
            _ if self.ia32e => &[0x48, 0xcf],
            _ => &[0xcf],
        };
        self.write(HANDLERS, &[0xf4]);
        self.write(HANDLERS + 1, back);
        self.write(HANDLERS + 0x10, back);
        self.write(HANDLERS + 0x20, &drop);
        self.write(HANDLERS + 0x24, back);
        for vector in 0..256u64 {
            let mixed = (vector as u8).wrapping_mul(37) ^ choice;
            let target = match mixed & 7 {
                0 => HANDLERS + 0x10,
                1 => HANDLERS + 0x20,
                2 if choice & 0x80 != 0 => CODE + u64::from(mixed >> 3),
                _ => HANDLERS,
            };
            let trap = u64::from(mixed >> 6 & 1);
            // Interrupt vectors of real and virtual-8086 mode.
            let far = u32::from((target & 0xffff) as u16) | 0x1000 << 16;
            self.write(4 * vector, &far.to_le_bytes());
            if self.ia32e {
                let ist = if mixed & 0x18 == 0x18 { 1 } else { 0 };
                self.write64(IDT + 16 * vector, gate(14 | trap, CODE0, target, ist));
                self.write64(IDT + 16 * vector + 8, 0);
            } else {
                let entry = match (self.mode, mixed) {
                    (_, 0x5a) => gate(5, 0x50, 0, 0),
                    (Mode::Protected16, _) => gate(6 | trap, CODE0, target & 0xffff, 0),
                    _ => gate(14 | trap, CODE0, target, 0),
                };
                self.write64(IDT + 8 * vector, entry);
            }
        }
    }

    /// Task states: stacks, a task to switch to, permission for some ports (SDM 3A 7.2.1, 7.7).
    fn task_states(&self) {
        let dword = |at: u64, value: u64| self.write(at, &(value as u32).to_le_bytes());
        if self.ia32e {
            for stack in 0..3 {
                self.write64(TSS + 4 + 8 * stack, STACKS + 0x1000 * (stack + 1));
            }
            self.write64(TSS + 36, STACKS + 0x5000);
        } else if self.mode == Mode::Protected16 {
            self.write(TSS + 2, &0x1000u16.to_le_bytes());
            self.write(TSS + 4, &DATA0.to_le_bytes());
        } else {
            dword(TSS + 4, STACKS + 0x1000);
            dword(TSS + 8, DATA0.into());
        }
        for tss in [TSS, OTHER_TSS] {
            dword(tss + 28, TABLES + 0x2000);
            dword(tss + 0x64, 0x80 << 16);
            // Ports 0 to 7 are forbidden, 8 to 1023 open.
            self.write(tss + 0x80, &[0xff]);
            self.write(tss + 0x180, &[0xff]);
        }
        dword(OTHER_TSS + 32, HANDLERS);
        dword(OTHER_TSS + 36, 2);
        dword(OTHER_TSS + 56, STACKS + 0x3000);
        for (n, selector) in [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0, LDT_SELECTOR].into_iter().enumerate()
        {
            dword(OTHER_TSS + 72 + 4 * n as u64, selector.into());
        }
    }

    fn page_tables(&self, paging: Paging) {
        let open = pte::P | pte::RW | pte::US;
        let [level4, pointers, directory, pages, level5] =
            [0, 0x1000, 0x2000, 0x3000, 0x4000].map(|at| TABLES + at);
        match paging {
            Paging::None => {}
            Paging::Bits32 => {
                let entry = |at: u64, value: u64| self.write(at, &(value as u32).to_le_bytes());
                entry(directory, pages | open);
                entry(directory + 4, open | pte::PS);
                entry(directory + 4 * 1023, directory | open);
                for page in 0..256 {
                    entry(pages + 4 * page, page << 12 | open);
                }
            }
            Paging::Pae | Paging::Level4 | Paging::Level5 => {
                self.write64(level5, level4 | open);
                self.write64(level5 + 8 * 511, level4 | open);
                self.write64(level4, pointers | open);
                self.write64(level4 + 8 * 511, pointers | open);
                let link = if paging == Paging::Pae { pte::P } else { open };
                self.write64(pointers, directory | link);
                self.write64(
                    pointers + 8,
                    if paging == Paging::Pae { directory | link } else { open | pte::PS },
                );
                self.write64(pointers + 8 * 511, directory | open);
                self.write64(directory, pages | open);
                self.write64(directory + 8, open | pte::PS);
                self.write64(directory + 8 * 511, pages | open);
                for page in 0..256 {
                    self.write64(pages + 8 * page, page << 12 | open);
                }
            }
        }
    }

    /// A change anywhere below [`CHANGEABLE`], most often in a table.
    fn change(&self, input: &mut Input<'_>) {
        let (at, room) = input.pick(&[
            (GDT, 0x100),
            (IDT, 0x1000),
            (TSS, 0x400),
            (TABLES, 0x20),
            (TABLES + 0x1000, 0x20),
            (TABLES + 0x2000, 0x20),
            (TABLES + 0x3000, 0x800),
            (TABLES + 0x4000, 0x20),
            (HANDLERS, 0x30),
            (0, CHANGEABLE - 8),
        ]);
        let offset = u64::from(input.u16()) * 8 % room;
        let at = at + offset;
        let value = match input.u8() {
            bit @ 0..=127 => self.read64(at) ^ 1 << (bit & 63),
            _ => input.number(),
        };
        self.write64(at, value);
    }

    fn registers(&self, input: &mut Input<'_>, ring: u8, paging: Paging, cpuid: &Cpuid) -> CpuState {
        let mut state = CpuState::default();
        self.control_registers(&mut state, input, paging, cpuid);
        self.segments(&mut state, input, ring);
        for register in &mut state.gpr {
            *register = value(input);
        }
        state.gpr[gpr::RSP] = STACKS + 0xe00;
        state.rip = CODE;
        if matches!(self.mode, Mode::Real | Mode::Virtual8086) {
            state.gpr[gpr::RSP] = 0xe00;
            state.rip = 0;
        }
        let mut flags = Rflags::from_bits_truncate(input.u32().into()) | Rflags::ONE;
        flags.set(Rflags::VM, self.mode == Mode::Virtual8086);
        // Single steps, nested tasks and alignment checks now and then only: they hide the rest.
        if input.u8() & 7 != 0 {
            flags.remove(Rflags::TF | Rflags::NT | Rflags::AC);
        }
        state.rflags = flags;
        let rare = input.u8();
        state.sti_shadow = rare == 1;
        state.mov_ss_shadow = rare == 2;
        state.nmi_blocked = rare == 3;
        if rare & 0xf0 == 0x10 {
            state.dr = std::array::from_fn(|_| value(input));
            state.dr7 = u64::from(input.u32()) & !0xd800 | dr7::RESET;
        }
        self.msrs(&mut state, input);
        vectors(&mut state, input, cpuid);
        state
    }

    fn control_registers(&self, state: &mut CpuState, input: &mut Input<'_>, paging: Paging, cpuid: &Cpuid) {
        let choice = input.u8();
        state.cr0 = cr0::ET;
        for (n, bit) in
            [cr0::MP, cr0::EM, cr0::TS, cr0::NE, cr0::WP, cr0::AM, cr0::CD].into_iter().enumerate()
        {
            // Everything is on most easily where the coprocessor isn't hidden.
            let hides = matches!(bit, cr0::EM | cr0::TS);
            if choice >> n & 1 != 0 && (!hides || choice & 0x80 != 0) {
                state.cr0 |= bit;
            }
        }
        if self.mode != Mode::Real {
            state.cr0 |= cr0::PE;
        }
        if paging != Paging::None {
            state.cr0 |= cr0::PG;
        }
        let wanted = input.u16();
        let always = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        for (n, &(bit, leaf, register, place)) in CR4_BITS.iter().enumerate() {
            let wanted = wanted >> n & 1 != 0 || always & bit != 0 && wanted & 0x8000 == 0;
            if wanted && offers(cpuid, leaf, register, place) && (bit != cr4::PCIDE || self.ia32e) {
                state.cr4 |= bit;
            }
        }
        // Handlers and code lie on user pages, where SMEP would stop the kernel at once: seldom.
        if wanted & 0xf0 != 0 {
            state.cr4 &= !cr4::SMEP;
        }
        state.cr3 = match paging {
            Paging::None => 0,
            Paging::Bits32 => TABLES + 0x2000,
            Paging::Pae => TABLES + 0x1000,
            Paging::Level4 => TABLES,
            Paging::Level5 => TABLES + 0x4000,
        };
        if matches!(paging, Paging::Pae | Paging::Level4 | Paging::Level5) {
            state.cr4 |= cr4::PAE;
        }
        if paging == Paging::Level5 {
            state.cr4 |= cr4::LA57;
        }
        let choice = input.u8();
        state.efer =
            if choice & 1 == 0 { efer::SCE } else { 0 } | if choice & 2 == 0 { efer::NXE } else { 0 };
        if self.ia32e {
            state.efer |= efer::LME | efer::LMA;
        }
    }

    fn segments(&self, state: &mut CpuState, input: &mut Input<'_>, ring: u8) {
        let load = |selector: u16| {
            let at = GDT + u64::from(selector & !7);
            Segment::from_descriptor(Selector(selector), RawDescriptor(self.read64(at)))
        };
        state.gdtr = TableRegister { base: GDT, limit: 0xff };
        state.idtr = TableRegister { base: IDT, limit: 0xfff };
        state.cpl = ring;
        match self.mode {
            Mode::Real | Mode::Virtual8086 => {
                let attributes = Attributes(if self.mode == Mode::Real { 0x93 } else { 0xf3 });
                state.segments = [Segment::real_mode(0x3000, attributes); 6];
                state.segments[seg::SS] = Segment::real_mode(0x2000, attributes);
                let code = Attributes(if self.mode == Mode::Real { 0x9b } else { 0xf3 });
                state.segments[seg::CS] = Segment::real_mode(0x1000, code);
                if self.mode == Mode::Real {
                    state.idtr = TableRegister { base: 0, limit: 0x3ff };
                    // What is called unreal mode: a limit left over from protected mode.
                    if input.u8() & 7 == 7 {
                        state.segments[seg::DS].limit = u32::MAX;
                    }
                    return;
                }
            }
            _ => {
                let code = match (self.mode, ring) {
                    (Mode::Long, 3) => CODE3_LONG,
                    // The kernel's own code is 64-bit: this one is the conforming 32-bit one.
                    (Mode::Compatibility, 0) => 0x30,
                    (_, 3) => CODE3,
                    _ => CODE0,
                };
                state.segments = [load(if ring == 3 { DATA3 } else { DATA0 }); 6];
                state.segments[seg::CS] = load(code);
                for (index, name) in [seg::ES, seg::DS, seg::FS, seg::GS].into_iter().enumerate() {
                    self.odd_segment(&mut state.segments[name], input, index >= 2);
                }
            }
        }
        state.tr = load(TSS_SELECTOR);
        state.ldtr = load(LDT_SELECTOR);
    }

    /// Sometimes another base, limit or type of a data segment.
    fn odd_segment(&self, segment: &mut Segment, input: &mut Input<'_>, has_base: bool) {
        match input.u8() {
            0..=3 => *segment = Segment::default(),
            4..=7 => segment.limit = input.number() as u32,
            8..=11 => segment.attributes.0 ^= 1 << (input.u8() & 3),
            12..=19 if has_base => segment.base = DATA + u64::from(input.u8()),
            20..=23 if has_base && self.mode == Mode::Long => segment.base = 0xffff_ffff_8000_0000,
            _ => {}
        }
    }

    fn msrs(&self, state: &mut CpuState, input: &mut Input<'_>) {
        // SYSRET adds 8 and 16 to the upper selector; SYSCALL's are the kernel's.
        state.star = u64::from(CODE3) << 48 | u64::from(CODE0) << 32 | HANDLERS;
        state.lstar = HANDLERS;
        state.cstar = HANDLERS;
        state.sfmask = u64::from(input.u16());
        state.kernel_gs_base = DATA;
        state.sysenter_cs = CODE0.into();
        state.sysenter_eip = HANDLERS;
        state.sysenter_esp = STACKS + 0x4000;
    }
}

/// What a register might hold to do harm.
fn value(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=39 => DATA + u64::from(input.u8()) * 8,
        40..=49 => DATA + 0xff0 + u64::from(input.u8() & 31),
        // Where linear memory repeats: by large pages and in the upper half.
        50..=59 => 0x20_0000 + DATA + u64::from(input.u8()),
        60..=69 => 0xffff_8000_0000_0000 | DATA | u64::from(input.u8()),
        // Around the hole in RAM.
        70..=84 => 0x7_fff8 + u64::from(input.u8() & 15),
        85..=94 => 0x8_0000 + u64::from(input.u16()),
        // Tables.
        95..=104 => TABLES + u64::from(input.u16() & 0x4fff),
        105..=114 => GDT + u64::from(input.u16() & 0x1fff),
        115..=124 => CODE + u64::from(input.u8()),
        // The ends of the canonical halves.
        125..=129 => 0x0000_7fff_ffff_fff8 + u64::from(input.u8() & 15),
        130..=134 => 0xffff_ffff_ffff_fff0 + u64::from(input.u8() & 15),
        // Selectors.
        135..=149 => u64::from(input.u8() & !4),
        150..=199 => u64::from(input.u8()),
        _ => input.number(),
    }
}

fn vectors(state: &mut CpuState, input: &mut Input<'_>, cpuid: &Cpuid) {
    let offered = u64::from(cpuid.stored(0xd, 0).eax);
    state.vector.xcr0 = match input.u8() & 7 {
        0 => xcr0::X87,
        1 => xcr0::X87 | xcr0::SSE,
        2 => offered & (xcr0::X87 | xcr0::SSE | xcr0::AVX),
        _ => offered,
    };
    let choice = input.u8();
    if choice & 1 != 0 {
        state.vector.x87[..2].copy_from_slice(&(input.u16() & 0x1f7f | 0x40).to_le_bytes());
        state.vector.x87[2..4].copy_from_slice(&input.u16().to_le_bytes());
        state.vector.x87[4] = input.u8();
    }
    if choice & 2 != 0 {
        state.vector.mxcsr = u32::from(input.u16()) & 0xffbf;
    }
    if choice & 4 != 0 {
        state.vector.pkru = input.u32();
    }
    let pattern = input.u64().to_le_bytes();
    for (n, register) in state.vector.zmm.iter_mut().enumerate() {
        for (byte, value) in register.iter_mut().zip(pattern.iter().cycle()) {
            *byte = value.wrapping_add(n as u8);
        }
    }
    state.vector.k = std::array::from_fn(|n| u64::from_le_bytes(pattern) >> n);
}
