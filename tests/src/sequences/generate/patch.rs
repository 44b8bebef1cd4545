//! Code that changes: instructions whose bytes the program stores to, before and after they have run.

use super::{Builder, INNER, OUTER, RAX, RCX, RDI, RDX};
use crate::cases::platform::{DMA_ADDRESS_PORT, DMA_PORT};
use crate::sequences::kernel::VIEW_MASK;
use crate::sequences::layout::{CODE, KERNEL, LARGE, OVERLAY_AT, USER};
use crate::sequences::program::{Label, Program, Target};
use x86::Rflags;

/// What kind of instruction changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// `mov eax, ..`: four bytes that may hold anything.
    Load,
    /// `add ecx, ..`: likewise.
    Add,
    /// INC or DEC of a register: one byte.
    IncDec,
    /// An instruction of one byte that sets, clears or complements the carry.
    Carry,
    /// A short jump, over the instruction behind it or not.
    Jump,
}

/// An instruction that changes.
#[derive(Clone, Copy)]
pub(super) struct Site {
    label: Label,
    kind: Kind,
    /// It stands in a function of its own, which this names.
    function: Option<Label>,
    placed: bool,
}

const INC_DEC: [u8; 5] = [0xc0, 0xc8, 0xc1, 0xca, 0xc2];
const CARRY: [u8; 4] = [0x90, 0xf8, 0xf9, 0xf5];
/// What a [`Kind::Jump`] may jump over.
const SKIPPED: [u8; 3] = [0x83, 0xc2, 0x11]; // add edx, 17

impl Builder<'_> {
    /// Decides on the program's changing instructions.
    pub(super) fn plan_sites(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let function = self.random.percent(50).then(|| self.asm.label(Rflags::empty()));
            let site = self.site(function);
            self.sites.push(site);
        }
    }

    fn site(&mut self, function: Option<Label>) -> Site {
        let kind =
            self.random.pick(&[Kind::Load, Kind::Load, Kind::Add, Kind::IncDec, Kind::Carry, Kind::Jump]);
        Site { label: self.asm.label(Rflags::empty()), kind, function, placed: false }
    }

    fn place_site(&mut self, site: Site) {
        let group = self.asm.fix();
        self.asm.need_defined();
        self.asm.bind(site.label);
        match site.kind {
            Kind::Load => self.asm.raw32(&[0xb8], 0x1234_5678),
            Kind::Add => self.asm.raw32(&[0x81, 0xc1], 0x0101),
            Kind::IncDec => {
                self.asm.raw(&[0xff, 0xc0]);
            }
            Kind::Carry => {
                self.asm.raw(&[0xf9]);
            }
            Kind::Jump => {
                self.asm.raw(&[0xeb, SKIPPED.len() as u8]);
                self.asm.raw(&SKIPPED);
            }
        }
        self.asm.ungroup(group);
    }

    /// Sites that are functions, and those that found no place.
    pub(super) fn remaining_sites(&mut self) {
        for site in self.sites.clone() {
            if site.placed {
                continue;
            }
            self.asm.need_defined();
            if let Some(function) = site.function {
                self.asm.bind(function);
                for _ in 0..self.random.below(3) {
                    self.plain();
                }
            }
            self.place_site(site);
            self.plain();
            self.asm.need_defined();
            self.asm.raw(&[0xc3]);
        }
    }

    pub(super) fn patch_item(&mut self) {
        let index = self.random.below(self.sites.len() as u64) as usize;
        let site = self.sites[index];
        match self.random.below(12) {
            // An instruction right ahead.
            0..=3 => {
                let site = self.site(None);
                self.change(site);
                for _ in 0..self.random.below(3) {
                    self.plain();
                }
                if self.random.percent(30) {
                    self.pad_to_page_end();
                }
                self.place_site(site);
            }
            4..=6 => self.change(site),
            7..=9 => match site.function {
                Some(function) => {
                    if self.random.percent(40) {
                        self.change(site);
                    }
                    self.asm.need_defined();
                    self.asm.branch(&[0xe8], function);
                }
                None if site.placed => self.change(site),
                None => {
                    self.sites[index].placed = true;
                    if self.random.percent(30) {
                        self.pad_to_page_end();
                    }
                    self.place_site(site);
                }
            },
            _ => self.data_among_code(),
        }
    }

    /// Has the next instruction lie on two pages, if they aren't far.
    fn pad_to_page_end(&mut self) {
        let at = self.asm.at();
        let wanted = 0x1000 - 1 - self.random.below(3) as usize;
        if at <= wanted && wanted - at < 48 {
            while self.asm.at() < wanted {
                self.asm.raw(&[0x90]);
            }
        }
    }

    /// A word on the page of code that the program counts in.
    fn data_among_code(&mut self) {
        let word = self.asm.label(Rflags::empty());
        let over = self.asm.label(Rflags::empty());
        self.asm.need_defined();
        self.asm.branch(&[0xe9], over);
        self.asm.bind(word);
        self.asm.raw32(&[0xb8], 0); // never run
        self.asm.bind(over);
        let distance = self.alias_distance();
        let target = Target::Label(word, distance + 1);
        match self.random.below(3) {
            0 => self.asm.with_memory(&[0xff, 0x05], target, &[]), // inc
            1 => self.asm.with_memory(&[0xf0, 0x0f, 0xc1, 0x05], target, &[]), // lock xadd
            _ => {
                self.asm.with_memory(&[0x89, 0x05], target, &[]);
                self.asm.with_memory(&[0x8b, 0x15], target, &[]);
            }
        }
    }

    /// The bytes that a store may put there: how far from the instruction's start, and one of them.
    fn fresh_byte(&mut self, kind: Kind) -> (u64, u8) {
        match kind {
            Kind::Load => (1 + self.random.below(4), self.random.byte()),
            Kind::Add => (2 + self.random.below(4), self.random.byte()),
            Kind::IncDec => (1, self.random.pick(&INC_DEC)),
            Kind::Carry => (0, self.random.pick(&CARRY)),
            Kind::Jump => (1, self.random.pick(&[0, SKIPPED.len() as u8])),
        }
    }

    /// Stores to a changing instruction in one of many ways.
    fn change(&mut self, site: Site) {
        let (distance, byte) = self.fresh_byte(site.kind);
        let alias = self.alias_distance();
        let target = Target::Label(site.label, alias + distance);
        let any = matches!(site.kind, Kind::Load | Kind::Add);
        let whole = Target::Label(site.label, alias + if site.kind == Kind::Load { 1 } else { 2 });
        match self.random.below(16) {
            0..=3 => self.asm.with_memory(&[0xc6, 0x05], target, &[byte]),
            4 if any => {
                let value = (self.random.bits() as u32).to_le_bytes();
                self.asm.with_memory(&[0xc7, 0x05], whole, &value);
            }
            // What the turn decides.
            5 | 6 if any && self.wide() => {
                let counter = if self.in_loop { INNER } else { OUTER };
                self.asm.with_memory(&[0x44, 0x88, 5 | (counter & 7) << 3], target, &[]);
            }
            7 if any => self.asm.with_memory(&[0xf0, 0x87, 0x05], whole, &[]), // lock xchg
            8 if any => self.asm.with_memory(&[0x83, 0x05], whole, &[byte]),   // add
            10 => {
                // rep stosb of one byte, or without the prefix.
                self.address(RDI, target);
                self.set(RAX, u64::from(byte));
                self.set(RCX, 1);
                let repeated: &[u8] = if self.random.percent(50) { &[0xf3, 0xaa] } else { &[0xaa] };
                self.asm.raw(&[0xfc]);
                self.asm.raw(repeated);
            }
            11 => self.change_by_device(site, distance, byte),
            12..=14 => self.change_elsewhere(site, distance, byte),
            _ => self.asm.with_memory(&[0xc6, 0x05], target, &[byte]),
        }
    }

    /// Through another mapping of the same page.
    fn change_elsewhere(&mut self, site: Site, distance: u64, byte: u8) {
        self.address(RAX, Target::Label(site.label, distance));
        let view = self.random.pick(VIEWS);
        self.see_from(view);
        self.asm.raw(&[0xc6, 0x00, byte]); // mov byte [rax], ..
    }

    fn see_from(&mut self, view: u64) {
        if view == LARGE {
            self.asm.raw32(&[0x25], u64::from(VIEW_MASK));
            self.asm.raw32(&[0x05], LARGE + CODE);
        } else {
            self.view_from(view);
        }
    }

    /// By a device's write to memory.
    fn change_by_device(&mut self, site: Site, distance: u64, byte: u8) {
        self.address(RAX, Target::Label(site.label, distance));
        self.asm.raw32(&[0x25], u64::from(VIEW_MASK));
        self.asm.raw32(&[0x05], CODE);
        self.set(RDX, u64::from(DMA_ADDRESS_PORT));
        self.asm.raw(&[0xef]); // out dx, eax
        self.set(RDX, u64::from(DMA_PORT));
        self.set(RAX, u64::from(byte));
        self.asm.raw(&[0xee]); // out dx, al
    }
}

/// Where code can be stored to besides the view that runs.
const VIEWS: &[u64] = &[KERNEL, USER, USER, LARGE];

/// Gives the page behind the program other immediates in the second address space.
pub(super) fn vary_overlay(program: &mut Program) {
    for placed in &program.placed {
        let (at, len) = (usize::from(placed.at), usize::from(placed.len));
        let end = at + len;
        if end > OVERLAY_AT && program.code[at] == 0x81 {
            for offset in (at + 2).max(OVERLAY_AT)..end {
                program.overlay[offset - OVERLAY_AT] ^= 0x5a;
            }
        }
    }
}
