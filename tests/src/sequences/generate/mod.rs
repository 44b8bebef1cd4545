//! Makes programs: what a case is, from its seed.
//!
//! A program is a body that runs once, a few times, or often enough to become hot, functions, and landings where it goes on
//! when it got lost. It is put together from items; [`plain`] makes single instructions from all encodings that the host has,
//! the other modules those sequences that a translator has to get right: [`flow`] branches, calls and returns, [`patch`] code
//! that changes, [`paging`] page tables, [`system`] rings, events and control registers, [`strings`] repeated instructions.
//!
//! What two engines may answer differently isn't made: entries of page tables that lower rights are followed by an
//! invalidation before the page is used, and flags that are undefined aren't read.

mod flow;
mod paging;
mod patch;
mod plain;
mod strings;
mod system;

use super::furnish;
use super::kernel::service;
use super::layout::{
    ABSENT, CHANGING, CODE_ALIAS, COUNTERS, DEVICE, FOREIGN, KERNEL, LARGE, MMIO, Mode, OVERLAY_AT, PAGE,
    READ_ONLY, STACK_TOP, SYS, USER, World, data, system as place,
};
use super::program::{Assembler, Label, Program, Target};
use crate::oracle::random::Random;
use patch::Site;
use plain::Pools;
use x86::{CpuState, Rflags};

/// A case: where it starts from, and what is known of it.
#[derive(Clone)]
pub struct Case {
    /// The seed that makes it again.
    pub seed: u64,
    /// Its machine.
    pub world: World,
    /// Its program.
    pub program: Program,
    /// RAM at the start, the program in it.
    pub ram: Vec<u8>,
    /// Registers at the start.
    pub state: CpuState,
    /// For choices in how to run it.
    pub random: u64,
}

/// Makes cases from seeds.
pub struct Generator {
    wide: Pools,
    narrow: Pools,
    noise: Vec<u8>,
}

impl Default for Generator {
    fn default() -> Self {
        Self::new()
    }
}

impl Generator {
    /// A generator of all that the host has.
    #[must_use]
    pub fn new() -> Self {
        let mut random = Random::new(1);
        let noise = (0..0x2000).flat_map(|_| random.lane().to_le_bytes()).collect();
        Self { wide: Pools::new(64), narrow: Pools::new(32), noise }
    }

    /// The case that belongs to a seed.
    #[must_use]
    pub fn case(&self, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let world = World::random(&mut random);
        let pools = if world.mode == Mode::Long { &self.wide } else { &self.narrow };
        let (program, mut random) = Builder::new(world, pools, random).build();
        let ram = furnish::image(world, &program, &self.noise, &mut random).0;
        let state = furnish::state(world, &program, &self.noise, &mut random);
        Case { seed, world, program, ram, state, random: random.bits() }
    }
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// The counter of inner loops, and that of the outer one, in 64-bit code.
const INNER: u8 = 14;
const OUTER: u8 = 15;

/// Registers with fixed values that memory operands start from.
const POINTERS64: &[u8] = &[3, 5, 8, 9, 12];
const POINTERS32: &[u8] = &[3, 5];
/// A small number for the index.
const INDEX: u8 = 10;
/// Registers that instructions may write.
const FREE64: &[u8] = &[0, 1, 2, 6, 7, 11, 13];
const FREE32: &[u8] = &[0, 1, 2, 6, 7];

struct Builder<'a> {
    random: Random,
    world: World,
    pools: &'a Pools,
    asm: Assembler,
    /// Registers by number that items must leave as they are.
    kept: u32,
    pointers: Vec<(u8, u64)>,
    index: u64,
    functions: Vec<Label>,
    /// Functions on the page that differs between the address spaces.
    overlaid: Vec<Label>,
    /// Functions that may be called from here: those behind this one.
    callable: usize,
    sites: Vec<Site>,
    constants: Vec<(u64, u64, u64)>,
    /// Items must not touch volatile pages: an entry is about to be invalidated.
    hands_off: bool,
    in_loop: bool,
}

impl<'a> Builder<'a> {
    fn new(world: World, pools: &'a Pools, mut random: Random) -> Self {
        // Near the end of a page, so that the body crosses it, or anywhere.
        let start = if random.percent(50) { 0xf00 + random.below(0xe0) } else { random.below(0x800) };
        let wide = world.mode == Mode::Long;
        let asm = Assembler::new(world.mode.bits(), world.home(), start as usize);
        let free = if wide { FREE64 } else { FREE32 };
        let kept = free.iter().fold(0xffffu32, |kept, register| kept & !(1 << register));
        let mut this = Self {
            random,
            world,
            pools,
            asm,
            kept,
            pointers: Vec::new(),
            index: 0,
            functions: Vec::new(),
            overlaid: Vec::new(),
            callable: 0,
            sites: Vec::new(),
            constants: Vec::new(),
            hands_off: false,
            in_loop: false,
        };
        for &register in if wide { POINTERS64 } else { POINTERS32 } {
            let value = this.target(8);
            this.pointers.push((register, value));
        }
        this.index = this.random.below(0x400).wrapping_sub(0x200);
        this
    }

    fn wide(&self) -> bool {
        self.asm.bits == 64
    }

    fn build(mut self) -> (Program, Random) {
        let none = Rflags::empty();
        let entry = self.asm.label(none);
        for _ in 0..self.random.below(4) {
            let label = self.asm.label(none);
            self.functions.push(label);
        }
        for _ in 0..2 {
            let label = self.asm.label(none);
            self.overlaid.push(label);
        }
        self.plan_sites();
        let top = self.asm.label(none);
        let again = self.asm.label(none);
        let out = self.asm.label(none);
        let turns = match self.random.below(10) {
            0..=4 => 1 + self.random.below(3),
            5..=7 => 20 + self.random.below(60),
            _ => 60 + self.random.below(140),
        };
        self.asm.bind(entry);
        self.set_counter(OUTER, turns);
        self.asm.bind(top);
        if self.random.percent(60) {
            self.reset_stack();
        }
        self.callable = 0;
        let count = 3 + self.random.below(if turns > 3 { 14 } else { 26 });
        self.items(count, 0);
        self.asm.bind(again);
        if self.random.percent(15) {
            self.asm.raw(&[0xfc]); // cld
        }
        self.count_down(OUTER, top);
        self.asm.bind(out);
        let count = self.random.below(6);
        self.items(count, 0);
        self.asm.raw(&[0xcd, service::END]);
        self.bodies();
        let landings = [(); 8].map(|()| {
            let at = self.asm.label(none);
            self.asm.bind(at);
            self.reset_stack();
            let to = if self.random.percent(80) { again } else { out };
            self.asm.branch(&[0xe9], to);
            at
        });
        self.overlay();
        let mut program = self.asm.finish(entry, landings);
        patch::vary_overlay(&mut program);
        paging::write_functions(&mut program, &mut self.random);
        program.pinned =
            self.pointers.iter().map(|&(register, value)| (usize::from(register), value)).collect();
        if program.bits == 64 {
            program.pinned.push((usize::from(INDEX), self.index));
        }
        program.constants = self.constants;
        (program, self.random)
    }

    /// The functions that the body calls.
    fn bodies(&mut self) {
        for (index, label) in self.functions.clone().into_iter().enumerate() {
            self.asm.need_defined();
            self.asm.bind(label);
            self.callable = index + 1;
            let count = 1 + self.random.below(4);
            self.items(count, 1);
            self.function_end();
        }
        self.remaining_sites();
    }

    /// Functions behind the program, whose bytes differ between the address spaces. One begins on the program's last page.
    fn overlay(&mut self) {
        let mut at = OVERLAY_AT - 3;
        for label in self.overlaid.clone() {
            self.asm.move_to(at);
            self.asm.bind(label);
            // add eax, ..; xor edx, ..: their immediates are what differs.
            let (one, other) = (self.random.bits(), self.random.bits());
            self.asm.raw32(&[0x81, 0xc0], one);
            self.asm.raw32(&[0x81, 0xf2], other);
            self.asm.need_defined();
            self.asm.raw(&[0xc3]);
            at = OVERLAY_AT + 0x40 + self.random.below(0x80) as usize;
        }
    }

    fn items(&mut self, count: u64, depth: u32) {
        for _ in 0..count {
            if !self.asm.has_room(0x140) {
                return;
            }
            self.item(depth);
        }
    }

    fn item(&mut self, depth: u32) {
        match self.random.below(100) {
            0..=56 => self.plain(),
            57..=62 => self.stack_item(),
            63..=75 => self.flow_item(depth),
            76..=80 => self.string_item(),
            81..=86 => self.patch_item(),
            87..=91 => {
                self.asm.group();
                self.paging_item();
                self.asm.ungroup(0);
            }
            92..=97 => {
                self.asm.group();
                self.system_item();
                self.asm.ungroup(0);
            }
            _ => self.wild_item(),
        }
    }

    // What items are made from.

    /// A register that items may write, below 8 so that it needs no prefix.
    fn scratch(&mut self) -> u8 {
        loop {
            let register = self.random.pick(FREE32);
            if self.kept & 1 << register == 0 {
                return register;
            }
        }
    }

    /// `mov register, value`.
    fn set(&mut self, register: u8, value: u64) {
        if self.wide() {
            let low = register & 7 | 0xb8;
            let rex = 0x40 | register >> 3;
            if value > 0xffff_ffff {
                let bytes = [&[rex | 8, low][..], &value.to_le_bytes()].concat();
                self.asm.raw(&bytes);
            } else if register < 8 {
                self.asm.raw32(&[low], value);
            } else {
                self.asm.raw32(&[rex, low], value);
            }
        } else {
            self.asm.raw32(&[0xb8 | register], value);
        }
    }

    /// The address of a label in the view that runs, in a register below 8.
    fn address_of(&mut self, register: u8, label: Label) {
        self.address(register, Target::Label(label, 0));
    }

    fn address(&mut self, register: u8, target: Target) {
        if self.wide() {
            self.asm.with_memory(&[0x48, 0x8d, 5 | register << 3], target, &[]); // lea
        } else {
            self.asm.with_address(&[0xb8 | register], target);
        }
    }

    /// Moves an address in EAX to another view.
    fn view_from(&mut self, view: u64) {
        self.asm.raw32(&[0x25], u64::from(super::kernel::VIEW_MASK));
        self.asm.raw32(&[0x0d], view);
    }

    fn reset_stack(&mut self) {
        self.address(4, Target::Offset(STACK_TOP));
    }

    /// The counter's place in memory, for code without registers to spare.
    fn counter(register: u8) -> Target {
        Target::Offset(data(COUNTERS) + 0x800 + u64::from(register) * 8)
    }

    fn set_counter(&mut self, register: u8, turns: u64) {
        if self.wide() {
            self.set(register, turns);
        } else {
            let turns = (turns as u32).to_le_bytes();
            self.asm.with_memory(&[0xc7, 0x05], Self::counter(register), &turns);
        }
    }

    fn count_down(&mut self, register: u8, top: Label) {
        if self.wide() {
            self.asm.raw(&[0x49, 0xff, 0xc8 | register & 7]); // dec
        } else {
            self.asm.with_memory(&[0xff, 0x0d], Self::counter(register), &[]);
        }
        self.asm.branch(&[0x0f, 0x85], top);
    }

    /// Whether flags may be undefined at a new label: only AF, which logic leaves so, or all.
    fn some_flags(&mut self) -> Rflags {
        if self.random.percent(60) { Rflags::AF } else { Rflags::ARITHMETIC }
    }

    /// A linear address for an operand of `size` bytes.
    fn target(&mut self, size: u64) -> u64 {
        let random = &mut self.random;
        let size = size.clamp(1, 64);
        let home = self.world.home();
        let other = if self.world.user { KERNEL } else { USER };
        let view = match random.below(100) {
            0..=81 => home,
            82..=89 => other,
            90..=95 if !self.hands_off => {
                // Not the functions, nor what a repeated instruction reaches them from.
                let page = random.below(5);
                return CHANGING + page * PAGE + Self::offset(random, size);
            }
            96 => return LARGE + 0x4_0000 + random.below(12) * PAGE + Self::offset(random, size),
            97 => return LARGE + MMIO + random.below(0x800),
            98 => return SYS + place::SPARE + random.below(PAGE - size),
            _ => home,
        };
        let page = match random.below(100) {
            0..=29 => 0,
            30..=49 => 1,
            50..=61 => 2,
            62..=65 => READ_ONLY,
            66 | 67 => ABSENT,
            68..=75 => 5,
            76..=78 => DEVICE,
            79..=82 => FOREIGN,
            83..=88 => 8,
            89 => return view + STACK_TOP - 8 * random.below(16),
            _ => 0,
        };
        // Behind the last of them are the loops' counters.
        let offset = Self::offset(random, size);
        let offset = if page == 8 { offset.min(PAGE - size) } else { offset };
        view + data(page) + offset
    }

    fn offset(random: &mut Random, size: u64) -> u64 {
        match random.below(100) {
            0..=44 => random.below(PAGE) & !(size.next_power_of_two() - 1),
            45..=54 => random.below(16) * 8,
            55..=69 => random.below(PAGE - size),
            // Across a line, across the page's end.
            70..=77 => (random.below(63) + 1) * 64 - random.below(size),
            78..=92 => PAGE - random.below(size),
            _ => PAGE - size,
        }
    }

    /// Bytes of the program as data: where the same bytes are mapped once more.
    fn alias_distance(&mut self) -> u64 {
        if self.random.percent(40) { data(CODE_ALIAS) } else { 0 }
    }
}
