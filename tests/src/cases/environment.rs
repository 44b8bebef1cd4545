//! The worlds in which cases start: memory with descriptor tables, stubs and page tables, and the registers.
//!
//! Everything lies at fixed addresses below 1 MiB, mapped to itself, so that a case can name it ([`CONSTANTS`] are
//! defined for the assembler and for directives alike). Every vector has a handler that is one `HLT`: an exception
//! that the case didn't ask for ends it, with the frame still on the stack. All pages are user pages, accessed and dirty;
//! a case that needs others changes them.

use memory::GuestMemory;
use x86::control::{cr0, cr4, efer, xcr0};
use x86::descriptor::{Attributes, RawDescriptor, Selector};
use x86::paging::pte;
use x86::state::{Segment, TableRegister, gpr, seg};
use x86::{CpuState, Gpa, Rflags};

/// Where cases are linked to and start.
pub(super) const CODE: u64 = 0x7000;
/// `HLT` for each vector, 16 bytes apart.
pub(super) const STUBS: u64 = 0x5000;
const GDT: u64 = 0x1000;
const GDT_LIMIT: u16 = 0x1ff;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// 104 bytes of TSS, 32 of interrupt redirection (all to the monitor), 128 for ports 0-0x3ff (all denied), and the end mark.
const TSS_LIMIT: u64 = 0x108;
const LDT: u64 = 0x4000;
const STACK: u64 = 0xd000;
const STACK0: u64 = 0xe000;
const PML5: u64 = 0x8_0000;
const PML4: u64 = 0x8_1000;
const PDPT: u64 = 0x8_2000;
const PD: u64 = 0x8_3000;
const PT: u64 = 0x8_4000;

/// How a case starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum World {
    /// Real mode, all segments 0.
    Real,
    /// Virtual-8086 mode without paging, all segments 0.
    V86,
    /// Protected mode, 16-bit segments of 64 KiB, no paging.
    Flat16,
    /// Protected mode, flat 32-bit segments, no paging.
    Flat32,
    /// As `Flat32`, with 32-bit paging.
    Paged32,
    /// As `Flat32`, with PAE paging.
    Pae,
    /// 64-bit mode, 4-level paging.
    Long,
    /// 64-bit mode, 5-level paging.
    Long5,
    /// 32-bit compatibility mode.
    Compat,
}

/// A world and a ring in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mode {
    pub(crate) world: World,
    /// Ring 3 instead of ring 0.
    pub(crate) user: bool,
}

impl Mode {
    /// From a directive's text, for instance `long user`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let world = match words.next().unwrap_or_default() {
            "real" => World::Real,
            "v86" => World::V86,
            "flat16" => World::Flat16,
            "flat32" => World::Flat32,
            "paged32" => World::Paged32,
            "pae" => World::Pae,
            "long" => World::Long,
            "long5" => World::Long5,
            "compat" => World::Compat,
            other => return Err(format!("no mode is called `{other}`")),
        };
        let user = match words.next() {
            None => false,
            Some("user") => true,
            Some(other) => return Err(format!("`user` or nothing, not `{other}`")),
        };
        Ok(Self { world, user })
    }

    /// Bits that the assembler is told.
    pub(super) fn code_size(self) -> u32 {
        match self.world {
            World::Real | World::V86 | World::Flat16 => 16,
            World::Flat32 | World::Paged32 | World::Pae | World::Compat => 32,
            World::Long | World::Long5 => 64,
        }
    }

    /// Whether long mode is active.
    pub(super) fn is_long(self) -> bool {
        matches!(self.world, World::Long | World::Long5 | World::Compat)
    }

    /// The root of the page tables, if there is paging, and what indexes each level from there: (shift, bits).
    fn tables(self) -> Option<(u64, &'static [(u32, u32)])> {
        match self.world {
            World::Real | World::V86 | World::Flat16 | World::Flat32 => None,
            World::Paged32 => Some((PD, &[(22, 10), (12, 10)])),
            World::Pae => Some((PDPT, &[(30, 2), (21, 9), (12, 9)])),
            World::Long | World::Compat => Some((PML4, &[(39, 9), (30, 9), (21, 9), (12, 9)])),
            World::Long5 => Some((PML5, &[(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)])),
        }
    }

    /// Bytes in a paging-structure entry.
    pub(super) fn entry_bytes(self) -> u64 {
        if self.world == World::Paged32 { 4 } else { 8 }
    }

    /// Where the entry for a linear address is, `level` above the page table (0: its PTE), going through the tables as they are.
    pub(super) fn entry(self, memory: &GuestMemory, level: usize, linear: u64) -> Option<u64> {
        let (mut table, levels) = self.tables()?;
        let wanted = levels.len().checked_sub(level + 1)?;
        for (depth, (shift, bits)) in levels.iter().enumerate() {
            let at = table + (linear >> shift & ((1 << bits) - 1)) * self.entry_bytes();
            if depth == wanted {
                return Some(at);
            }
            table = load(memory, at, self.entry_bytes()) & 0x000f_ffff_ffff_f000;
        }
        None
    }
}

/// What directives and the assembler know by name.
pub(super) const CONSTANTS: &[(&str, u64)] = &[
    // Addresses.
    ("GDT", GDT),
    ("IDT", IDT),
    ("TSS", TSS),
    ("LDT", LDT),
    ("STUBS", STUBS),
    // 4 KiB that nobody uses, reachable in real mode.
    ("SCRATCH", 0x6000),
    ("CODE", CODE),
    // Tops of stacks: the initial one, those of the TSS for rings 0 to 2, and the interrupt stack table's first two.
    ("STACK", STACK),
    ("STACK0", STACK0),
    ("STACK1", 0xe800),
    ("STACK2", 0xf000),
    ("IST1", 0xf800),
    ("IST2", 0xfc00),
    // 384 KiB that nobody uses.
    ("DATA", 0x2_0000),
    // Page tables, and eight zeroed pages for more of them.
    ("PML5", PML5),
    ("PML4", PML4),
    ("PDPT", PDPT),
    ("PD", PD),
    ("PT", PT),
    ("SPARE", 0x8_8000),
    // RAM above 4 GiB.
    ("HIGH", 0x1_0000_0000),
    // Selectors. Code and data of rings 0 and 3 in SYSCALL's and SYSENTER's order; SELECTORS and up are free.
    ("CODE32", 0x08),
    ("DATA32", 0x10),
    ("CODE64", 0x18),
    ("DATA64", 0x20),
    ("CODE16", 0x28),
    ("DATA16", 0x30),
    ("USER32", 0x3b),
    ("UDATA", 0x43),
    ("USER64", 0x4b),
    ("TR", 0x50),
    ("LDTR", 0x60),
    ("USER16", 0x73),
    ("UDATA16", 0x7b),
    ("RING1", 0x81),
    ("DATA1", 0x89),
    ("RING2", 0x92),
    ("DATA2", 0x9a),
    ("SELECTORS", 0xa0),
    // Ports of the test machine.
    ("NMI_PORT", 0xe0),
    ("INTERRUPT_PORT", 0xe1),
    ("DMA_ADDRESS_PORT", 0xe8),
    ("DMA_PORT", 0xec),
    // RFLAGS.
    ("CF", 1),
    ("PF", 4),
    ("AF", 0x10),
    ("ZF", 0x40),
    ("SF", 0x80),
    ("TF", 0x100),
    ("IF", 0x200),
    ("DF", 0x400),
    ("OF", 0x800),
    ("IOPL", 0x3000),
    ("NT", 0x4000),
    ("RF", 0x1_0000),
    ("VM", 0x2_0000),
    ("AC", 0x4_0000),
    ("VIF", 0x8_0000),
    ("VIP", 0x10_0000),
    ("ID", 0x20_0000),
    // Paging-structure entries.
    ("P", pte::P),
    ("RW", pte::RW),
    ("US", pte::US),
    ("A", pte::A),
    ("D", pte::D),
    ("PS", pte::PS),
    ("G", pte::G),
    ("NX", pte::XD),
    // Control registers.
    ("PE", cr0::PE),
    ("MP", cr0::MP),
    ("EM", cr0::EM),
    ("TS", cr0::TS),
    ("NE", cr0::NE),
    ("WP", cr0::WP),
    ("AM", cr0::AM),
    ("NW", cr0::NW),
    ("CD", cr0::CD),
    ("PG", cr0::PG),
    ("VME", cr4::VME),
    ("PVI", cr4::PVI),
    ("TSD", cr4::TSD),
    ("DE", cr4::DE),
    ("PSE", cr4::PSE),
    ("PAE", cr4::PAE),
    ("PGE", cr4::PGE),
    ("PCE", cr4::PCE),
    ("OSFXSR", cr4::OSFXSR),
    ("OSXMMEXCPT", cr4::OSXMMEXCPT),
    ("UMIP", cr4::UMIP),
    ("LA57", cr4::LA57),
    ("FSGSBASE", cr4::FSGSBASE),
    ("PCIDE", cr4::PCIDE),
    ("OSXSAVE", cr4::OSXSAVE),
    ("SMEP", cr4::SMEP),
    ("SMAP", cr4::SMAP),
    ("PKE", cr4::PKE),
    ("SCE", efer::SCE),
    ("LME", efer::LME),
    ("LMA", efer::LMA),
    ("NXE", efer::NXE),
];

/// Access bytes and flags of a descriptor: as [`Attributes`] has them.
const FLAT_CODE32: u16 = 0xc09b;
const FLAT_DATA: u16 = 0xc093;
const FLAT_CODE64: u16 = 0xa09b;
const CODE16: u16 = 0x009b;
const DATA16: u16 = 0x0093;

const fn ring(attributes: u16, dpl: u16) -> u16 {
    attributes | dpl << 5
}

/// Selector without RPL, attributes, limit in the descriptor's unit.
pub(crate) const SEGMENTS: &[(u64, u16, u64)] = &[
    (0x08, FLAT_CODE32, 0xf_ffff),
    (0x10, FLAT_DATA, 0xf_ffff),
    (0x18, FLAT_CODE64, 0xf_ffff),
    (0x20, FLAT_DATA, 0xf_ffff),
    (0x28, CODE16, 0xffff),
    (0x30, DATA16, 0xffff),
    (0x38, ring(FLAT_CODE32, 3), 0xf_ffff),
    (0x40, ring(FLAT_DATA, 3), 0xf_ffff),
    (0x48, ring(FLAT_CODE64, 3), 0xf_ffff),
    (0x70, ring(CODE16, 3), 0xffff),
    (0x78, ring(DATA16, 3), 0xffff),
    (0x80, ring(FLAT_CODE32, 1), 0xf_ffff),
    (0x88, ring(FLAT_DATA, 1), 0xf_ffff),
    (0x90, ring(FLAT_CODE32, 2), 0xf_ffff),
    (0x98, ring(FLAT_DATA, 2), 0xf_ffff),
];

/// The value of a constant.
pub(super) fn constant(name: &str) -> Option<u64> {
    CONSTANTS.iter().find(|(known, _)| *known == name).map(|&(_, value)| value)
}

/// A segment or system descriptor from its parts; the limit in the descriptor's unit.
pub(crate) const fn descriptor(base: u64, limit: u64, attributes: u16) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes as u64 & 0xf0ff) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

/// A gate's low 8 bytes.
pub(crate) const fn gate(selector: u64, offset: u64, access: u64, count: u64) -> u64 {
    offset & 0xffff
        | (selector & 0xffff) << 16
        | (count & 0x1f) << 32
        | access << 40
        | (offset >> 16 & 0xffff) << 48
}

/// Writes the low `bytes` of `value`; false where there is no RAM.
pub(super) fn store(memory: &GuestMemory, at: u64, bytes: u64, value: u64) -> bool {
    memory.write(Gpa(at), &value.to_le_bytes()[..bytes.min(8) as usize]).is_ok()
}

/// Reads `bytes` bytes; zero where there is no RAM.
pub(super) fn load(memory: &GuestMemory, at: u64, bytes: u64) -> u64 {
    let mut data = [0; 8];
    let _ = memory.read(Gpa(at), &mut data[..bytes.min(8) as usize]);
    u64::from_le_bytes(data)
}

/// Fills memory for a mode.
pub(super) fn furnish(memory: &GuestMemory, mode: Mode) {
    let put = |at, bytes, value| {
        let stored = store(memory, at, bytes, value);
        debug_assert!(stored, "the tables lie in RAM");
    };
    for &(selector, attributes, limit) in SEGMENTS {
        put(GDT + selector, 8, descriptor(0, limit, attributes));
    }
    // A busy TSS: the task register holds it.
    put(GDT + 0x50, 8, descriptor(TSS, TSS_LIMIT, 0x8b));
    put(GDT + 0x60, 8, descriptor(LDT, 0xff, 0x82));
    for vector in 0..256 {
        let stub = STUBS + 16 * vector;
        put(stub, 1, 0xf4);
        put(4 * vector, 4, stub);
        let open = vector == 3 || vector == 4 || vector >> 4 == 8;
        let access = if open { 0xee } else { 0x8e };
        if mode.is_long() {
            put(IDT + 16 * vector, 8, gate(0x18, stub, access, 0));
        } else {
            put(IDT + 8 * vector, 8, gate(0x08, stub, access, 0));
        }
    }
    if mode.is_long() {
        for (at, value) in [(4, STACK0), (12, 0xe800), (20, 0xf000), (0x24, 0xf800), (0x2c, 0xfc00)] {
            put(TSS + at, 8, value);
        }
    } else {
        for (at, value) in
            [(4, STACK0), (8, 0x10), (12, 0xe800), (16, 0x89), (20, 0xf000), (24, 0x9a), (28, root(mode))]
        {
            put(TSS + at, 4, value);
        }
    }
    put(TSS + 102, 2, 0x88);
    for byte in 0x68..=TSS_LIMIT {
        put(TSS + byte, 1, 0xff);
    }
    let open = pte::P | pte::RW | pte::US | pte::A;
    put(PML5, 8, PML4 | open);
    put(PML4, 8, PDPT | open);
    // PAE's PDPTEs have neither RW nor US nor A (SDM 3A table 4-8).
    put(PDPT, 8, if mode.world == World::Pae { PD | pte::P } else { PD | open });
    put(PD, mode.entry_bytes(), PT | open);
    for page in 0..0x1000 / mode.entry_bytes() {
        put(PT + page * mode.entry_bytes(), mode.entry_bytes(), page << 12 | open | pte::D);
    }
}

fn root(mode: Mode) -> u64 {
    mode.tables().map_or(0, |(root, _)| root)
}

/// The registers at the start.
pub(crate) fn registers(mode: Mode) -> CpuState {
    let mut state = CpuState { gpr: [0; 16], rip: CODE, ..CpuState::default() };
    state.gpr[gpr::RSP] = STACK;
    state.gdtr = TableRegister { base: GDT, limit: GDT_LIMIT };
    state.vector.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    state.cr0 = cr0::ET | cr0::NE | cr0::MP;
    state.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    let eight086 = |attributes| Segment::real_mode(0, Attributes(attributes));
    if mode.world == World::Real {
        state.segments = [eight086(0x93); 6];
        state.segments[seg::CS] = eight086(0x9b);
        state.idtr = TableRegister { base: 0, limit: 0x3ff };
        return state;
    }
    state.cr0 |= cr0::PE;
    state.idtr = TableRegister { base: IDT, limit: if mode.is_long() { 0xfff } else { 0x7ff } };
    let system = |selector, base, limit, attributes| Segment {
        base,
        limit,
        attributes: Attributes(attributes),
        selector: Selector(selector),
    };
    state.tr = system(0x50, TSS, TSS_LIMIT as u32, 0x8b);
    state.ldtr = system(0x60, LDT, 0xff, 0x82);
    state.cpl = if mode.user || mode.world == World::V86 { 3 } else { 0 };
    if mode.tables().is_some() {
        state.cr0 |= cr0::PG | cr0::WP;
        state.cr3 = root(mode);
        state.cr4 |= cr4::PGE;
    }
    match mode.world {
        World::Paged32 => state.cr4 |= cr4::PSE,
        World::Pae => {
            state.cr4 |= cr4::PAE;
            state.efer = efer::NXE;
            state.pdptes = [PD | pte::P, 0, 0, 0];
        }
        World::Long | World::Long5 | World::Compat => {
            state.cr4 |= cr4::PAE;
            state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
            if mode.world == World::Long5 {
                state.cr4 |= cr4::LA57;
            }
        }
        _ => {}
    }
    if mode.world == World::V86 {
        state.rflags |= Rflags::VM;
        state.segments = [eight086(0xf3); 6];
        return state;
    }
    let (code, data): (u16, u16) = match (mode.world, mode.user) {
        (World::Flat16, false) => (0x28, 0x30),
        (World::Flat16, true) => (0x73, 0x7b),
        (World::Long | World::Long5, false) => (0x18, 0x10),
        (World::Long | World::Long5, true) => (0x4b, 0x43),
        (_, false) => (0x08, 0x10),
        (_, true) => (0x3b, 0x43),
    };
    let segment = |selector: u16| {
        let found = SEGMENTS.iter().find(|&&(known, ..)| known == u64::from(selector & !7));
        let raw = found.map_or(0, |&(_, attributes, limit)| descriptor(0, limit, attributes));
        Segment::from_descriptor(Selector(selector), RawDescriptor(raw))
    };
    state.segments = [segment(data); 6];
    state.segments[seg::CS] = segment(code);
    state
}
