//! Fills the machine's memory and registers for a [`World`].

use super::kernel;
use super::layout::{
    CHANGING, CODE, CODE_LEN, DATA_PAGES, ENTRIES, FUNCTIONS, KERNEL, LARGE, Mode, OVERLAY, OVERLAY_AT, PAGE,
    RAM, SPACE, STACK_TOP, SYS, TABLES, USER, VOLATILE, VOLATILE_PAGES, World, data, image_offset, system,
};
use super::program::Program;
use crate::cases::environment::{SEGMENTS, descriptor, gate, registers};
use crate::oracle::guest::offered_xcr0;
use crate::oracle::random::Random;
use std::sync::LazyLock;
use x86::control::{cr0, cr4};
use x86::descriptor::{Attributes, Selector};
use x86::paging::pte;
use x86::state::{Segment, TableRegister, gpr, seg};
use x86::{CpuState, Rflags};

/// Selectors of [`SEGMENTS`] with their RPL.
pub(super) mod selector {
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const CODE32: u16 = 0x08;
    pub(crate) const CODE64: u16 = 0x18;
    pub(crate) const STACK64: u16 = 0x20;
    pub(crate) const USER32: u16 = 0x3b;
    pub(crate) const USER_DATA: u16 = 0x43;
    pub(crate) const USER64: u16 = 0x4b;
    pub(crate) const TSS: u16 = 0x50;
}

/// Asking a virtual host takes time.
static OFFERED: LazyLock<u64> = LazyLock::new(offered_xcr0);

/// Guest RAM being filled.
pub(super) struct Image(pub(super) Vec<u8>);

impl Image {
    pub(super) fn put(&mut self, at: u64, bytes: u64, value: u64) {
        let at = image_offset(at);
        self.0[at..at + bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
    }

    pub(super) fn copy(&mut self, at: u64, bytes: &[u8]) {
        let at = image_offset(at);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The entries that volatile pages may get, in the mode's width: the first [`DATA_ENTRIES`] for pages of data, the others for
/// the page of functions. Data isn't executable where the mode knows that, and functions are never written through these.
pub(super) fn volatile_entries(mode: Mode) -> [u64; 16] {
    let no_execute = if mode == Mode::Paged32 { 0 } else { pte::XD };
    let user = pte::P | pte::US | no_execute;
    let code = pte::P | pte::US;
    let frame = |index: u64| VOLATILE + index * PAGE;
    [
        0,
        frame(0) | pte::RW | pte::US,
        frame(1) | pte::P | pte::RW | no_execute,
        frame(2) | user,
        frame(3) | user,
        frame(3) | user | pte::RW,
        frame(0) | user | pte::RW,
        frame(1) | user | pte::RW,
        frame(2) | user | pte::RW,
        frame(3) | user | pte::RW | pte::A,
        frame(1) | user | pte::RW | pte::A | pte::D,
        frame(2) | user | pte::RW | pte::A,
        FUNCTIONS | code,
        (FUNCTIONS + PAGE) | code,
        FUNCTIONS | code | no_execute,
        (FUNCTIONS + PAGE) | pte::P,
    ]
}

/// See [`volatile_entries`].
pub(super) const DATA_ENTRIES: u64 = 12;
/// The volatile page that has functions.
pub(super) const FUNCTION_PAGE: u64 = VOLATILE_PAGES - 1;

/// The regions that have a page table of their own, in the tables' order.
const REGIONS: [u64; 4] = [KERNEL, USER, CHANGING, SYS];

struct Space<'a> {
    image: &'a mut Image,
    mode: Mode,
    tables: u64,
}

impl Space<'_> {
    fn entry(&mut self, at: u64, index: u64, value: u64) {
        let bytes = self.mode.entry_bytes();
        self.image.put(at + index * bytes, bytes, value);
    }

    fn directory_shift(&self) -> u32 {
        if self.mode == Mode::Paged32 { 22 } else { 21 }
    }

    /// Everything above the page tables.
    fn roots(&mut self) {
        let open = pte::P | pte::RW | pte::US | pte::A;
        let (root, pointers, directory) = (self.tables, self.tables + PAGE, self.tables + 2 * PAGE);
        match self.mode {
            Mode::Long | Mode::Compat => {
                self.entry(root, 0, pointers | open);
                self.entry(pointers, 0, directory | open);
            }
            Mode::Pae => self.entry(pointers, 0, directory | pte::P),
            Mode::Paged32 => {}
        }
        let mask = if self.mode == Mode::Paged32 { 0x3ff } else { 0x1ff };
        let shift = self.directory_shift();
        for (region, linear) in REGIONS.iter().enumerate() {
            let table = self.tables + (3 + region as u64) * PAGE;
            self.entry(directory, linear >> shift & mask, table | open);
        }
        self.entry(directory, LARGE >> shift & mask, pte::P | pte::RW | pte::PS);
    }

    fn map(&mut self, linear: u64, value: u64) {
        let shift = self.directory_shift();
        let region = REGIONS.iter().position(|region| region >> shift == linear >> shift).unwrap_or(0);
        let mask = (1 << (shift - 12)) - 1;
        self.entry(self.tables + (3 + region as u64) * PAGE, linear >> 12 & mask, value);
    }
}

/// Memory before the program's first instruction.
pub(super) fn image(world: World, program: &Program, noise: &[u8], random: &mut Random) -> Image {
    let mut image = Image(vec![0; RAM as usize]);
    let mode = world.mode;
    descriptors(&mut image, mode);
    kernel::furnish(&mut image, world, program);
    image.copy(CODE, &program.code[..OVERLAY_AT]);
    image.copy(OVERLAY[0], &program.code[OVERLAY_AT..CODE_LEN]);
    image.copy(OVERLAY[1], &program.overlay);
    image.copy(FUNCTIONS, &program.functions[0]);
    image.copy(FUNCTIONS + PAGE, &program.functions[1]);
    for frame in (0x4_0000..0x4_c000).chain(VOLATILE..VOLATILE + 4 * PAGE).step_by(PAGE as usize) {
        let from = random.below(noise.len() as u64 - PAGE) as usize;
        image.copy(frame, &noise[from..from + PAGE as usize]);
    }
    for &(at, bytes, value) in &program.constants {
        image.put(at, bytes, value);
    }
    let entries = volatile_entries(mode);
    for (space, overlay) in OVERLAY.into_iter().enumerate() {
        let mut tables = Space { image: &mut image, mode, tables: TABLES + space as u64 * SPACE };
        tables.roots();
        // A global page stays known in the other address space, whose entry then stays as it is.
        let fresh = |random: &mut Random, global: u64| {
            if global != 0 || random.percent(50) { pte::A | pte::D } else { 0 }
        };
        for (alias, right) in [(KERNEL, 0), (USER, pte::US)] {
            for (index, frame) in [CODE, CODE + PAGE, overlay].into_iter().enumerate() {
                let global = if world.global && index < 2 { pte::G } else { 0 };
                let flags = pte::P | pte::RW | right | global | fresh(random, global);
                tables.map(alias + index as u64 * PAGE, frame | flags);
            }
            for (index, page) in DATA_PAGES.iter().enumerate() {
                let right = if page.foreign { right ^ pte::US } else { right };
                let same = page.frames[0] == page.frames[1];
                let global = if world.global && same && page.flags != 0 { pte::G } else { 0 };
                let flags = page.flags | right | global;
                let flags = if page.flags == 0 { 0 } else { flags | fresh(random, global) };
                tables.map(alias + data(index as u64), page.frames[space] | flags);
            }
        }
        let (of_data, of_code) = entries.split_at(DATA_ENTRIES as usize);
        for page in 0..VOLATILE_PAGES {
            let choice = if page == FUNCTION_PAGE { of_code } else { of_data };
            tables.map(CHANGING + page * PAGE, random.pick(choice));
        }
        for at in (system::GDT..system::END).step_by(PAGE as usize) {
            tables.map(SYS + at, at | pte::P | pte::RW | pte::A | pte::D);
        }
        let own = tables.tables + 5 * PAGE;
        tables.map(ENTRIES, own | pte::P | pte::RW | pte::A | pte::D);
    }
    image
}

fn descriptors(image: &mut Image, mode: Mode) {
    use system::{GDT, IDT, NMI_STACK, STACK, STACK0, STUBS, TSS};
    for &(at, attributes, limit) in SEGMENTS {
        image.put(GDT + at, 8, descriptor(0, limit, attributes));
    }
    image.put(GDT + u64::from(selector::TSS), 8, descriptor(SYS + TSS, 0x67, 0x8b));
    for vector in 0..256 {
        // #BP and #OF, and the services.
        let rights = if matches!(vector, 3 | 4 | 0x40..=0x4f) { 0xee } else { 0x8e };
        let stub = SYS + STUBS + 16 * vector;
        if mode.is_long() {
            let stack = if vector == 2 { 2 } else { 1 };
            image.put(IDT + 16 * vector, 8, gate(u64::from(selector::CODE64), stub, rights, stack));
            image.put(IDT + 16 * vector + 8, 8, stub >> 32);
        } else {
            image.put(IDT + 8 * vector, 8, gate(u64::from(selector::CODE32), stub, rights, 0));
        }
    }
    if mode.is_long() {
        for (at, top) in [(4, STACK0), (0x24, STACK), (0x2c, NMI_STACK)] {
            image.put(TSS + at, 8, SYS + top);
        }
    } else {
        image.put(TSS + 4, 4, SYS + STACK);
        image.put(TSS + 8, 4, u64::from(selector::DATA));
    }
    image.put(TSS + 0x66, 2, 0x68);
}

/// Registers before the program's first instruction.
pub(super) fn state(world: World, program: &Program, noise: &[u8], random: &mut Random) -> CpuState {
    let mut state = registers(world.mode.case_mode(world.user));
    for value in &mut state.gpr {
        *value = random.integer();
    }
    for &(register, value) in &program.pinned {
        state.gpr[register] = value;
    }
    state.gpr[gpr::RSP] = world.home() + STACK_TOP;
    if world.mode != Mode::Long {
        state.gpr[8..].fill(0);
        state.gpr[..8].iter_mut().for_each(|value| *value &= 0xffff_ffff);
    }
    state.rip = world.home() + u64::from(program.entry);
    state.rflags = Rflags::from_bits_retain(
        0x2 | random.bits() & Rflags::ARITHMETIC.bits()
            | u64::from(world.iopl) << 12
            | if random.percent(50) { Rflags::IF.bits() } else { 0 }
            | if random.percent(5) { Rflags::AC.bits() } else { 0 },
    );
    state.gdtr = TableRegister { base: SYS + system::GDT, limit: 0xff };
    state.idtr =
        TableRegister { base: SYS + system::IDT, limit: if world.mode.is_long() { 0xfff } else { 0x7ff } };
    state.tr = Segment {
        base: SYS + system::TSS,
        limit: 0x67,
        attributes: Attributes(0x8b),
        selector: Selector(selector::TSS),
    };
    state.ldtr = Segment::default();
    state.cr3 = world.root(0);
    if world.mode == Mode::Pae {
        state.pdptes = [(TABLES + 2 * PAGE) | pte::P, 0, 0, 0];
    }
    let set = |register: &mut u64, bit: u64, on: bool| {
        *register = *register & !bit | if on { bit } else { 0 };
    };
    set(&mut state.cr0, cr0::WP, world.write_protect);
    set(&mut state.cr0, cr0::AM, world.alignment);
    set(&mut state.cr4, cr4::SMAP, world.smap);
    set(&mut state.cr4, cr4::SMEP, world.smep);
    set(&mut state.cr4, cr4::PCIDE, world.pcid);
    set(&mut state.cr4, cr4::FSGSBASE, world.mode.is_long());
    set(&mut state.cr4, cr4::PSE, true);
    state.vector.xcr0 = *OFFERED;
    state.star = u64::from(selector::CODE64) << 32 | 0x3b << 48;
    state.lstar = kernel::syscall_entry(world.returning);
    state.cstar = state.lstar;
    state.sfmask = random.pick(&[0, 0x200, 0x4_7700]);
    state.kernel_gs_base = USER + data(0);
    if world.mode == Mode::Long {
        state.segments[seg::FS].base = world.home() + data(1);
        state.segments[seg::GS].base = world.home() + data(0) + 0x800;
    }
    vectors(&mut state, noise, random);
    state
}

fn vectors(state: &mut CpuState, noise: &[u8], random: &mut Random) {
    for zmm in &mut state.vector.zmm {
        let from = random.below(noise.len() as u64 - 64) as usize;
        zmm.copy_from_slice(&noise[from..from + 64]);
    }
    for mask in &mut state.vector.k {
        *mask = random.integer();
    }
    if random.percent(30) {
        // Rounding, FTZ, DAZ, sticky flags; now and then an exception that is judged by its operands alone.
        state.vector.mxcsr = 0x1f80 | random.bits() as u32 & 0xe07f;
        if random.percent(10) {
            state.vector.mxcsr &= !(random.bits() as u32 & 0x0380);
        }
    }
    let x87 = &mut state.vector.x87;
    if random.percent(50) {
        let mut control = 0x37f | random.bits() as u16 & 0x0f00;
        if random.percent(10) {
            control &= !(random.bits() as u16 & 0x07);
        }
        x87[..2].copy_from_slice(&control.to_le_bytes());
        x87[2..4].copy_from_slice(&(random.bits() as u16 & 0x7f00).to_le_bytes());
        x87[4] = random.byte();
        for register in x87[32..160].chunks_exact_mut(16) {
            register[..8].copy_from_slice(&random.lane().to_le_bytes());
            register[7] |= 0x80;
            register[8..10].copy_from_slice(&(0x3fff + random.below(40) as u16 - 20).to_le_bytes());
        }
    }
}
