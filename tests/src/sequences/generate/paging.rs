//! Page tables that change, address spaces that are switched, and rights that depend on control registers.
//!
//! An entry that loses rights or leads elsewhere is invalidated before its page is used again, in one of the ways that the
//! manual has (SDM 3A 4.10.4); one that gains rights isn't always (4.10.4.3).

use super::{Builder, RAX, RCX};
use crate::oracle::random::Random;
use crate::sequences::furnish::{DATA_ENTRIES, FUNCTION_PAGE, volatile_entries};
use crate::sequences::kernel::service;
use crate::sequences::layout::{CHANGING, ENTRIES, FOREIGN, PAGE, SYS, data, system};
use crate::sequences::program::Program;
use x86::control::{cr0, cr4};
use x86::paging::pte;

/// Zeroes: INVPCID's descriptor for what needs none.
const NO_DESCRIPTOR: u64 = SYS + system::VARIABLES + 0xe00;

impl Builder<'_> {
    pub(super) fn paging_item(&mut self) {
        // What needs ring 0 raises #GP elsewhere, which is worth a look, but not often.
        let inline = self.world.mode.is_long() && (!self.world.user || self.random.percent(20));
        match self.random.below(16) {
            0..=2 => self.change_by_service(),
            3 => {
                self.asm.raw(&[0xcd, service::SWITCH]);
            }
            4..=7 if inline => self.change_inline(),
            8 if inline => self.gain_rights(),
            9 | 10 if inline => self.switch(),
            11 | 12 if inline => self.toggle(),
            13 => {
                let bytes = self.random.pick(&[0xcb, 0xca]);
                self.asm.raw(&[0x0f, 0x01, bytes]); // stac, clac
                self.use_page(self.world.home() + data(FOREIGN));
            }
            14 => self.call_volatile(),
            15 => {
                self.change_functions(inline);
                self.call_volatile();
            }
            _ => self.change_by_service(),
        }
    }

    /// An instruction or two that use a page.
    fn use_page(&mut self, page: u64) {
        for _ in 0..1 + self.random.below(2) {
            let at = page + self.random.below(PAGE / 8) * 8;
            let register = self.scratch();
            let opcode = self.random.pick(&[0x8b, 0x8b, 0x89, 0x01, 0x87]);
            self.asm.raw32(&[opcode, register << 3 | 4, 0x25], at);
        }
    }

    fn data_page(&mut self) -> (u64, u64) {
        (self.random.below(FUNCTION_PAGE), self.random.below(DATA_ENTRIES))
    }

    fn change_by_service(&mut self) {
        let (page, entry) = self.data_page();
        self.set(RAX, page);
        self.set(RCX, entry);
        self.asm.raw(&[0xcd, service::SET_ENTRY]);
        self.use_page(CHANGING + page * PAGE);
    }

    /// Stores an entry.
    fn store_entry(&mut self, page: u64, entry: u64) {
        let at = ENTRIES + page * self.world.mode.entry_bytes();
        if self.wide() {
            self.set(RAX, entry);
            self.asm.raw32(&[0x48, 0x89, 0x04, 0x25], at);
        } else {
            let store = |value: u64, at: u64| {
                [&[0xc7, 0x05][..], &(at as u32).to_le_bytes(), &(value as u32).to_le_bytes()].concat()
            };
            self.asm.raw(&store(entry >> 32, at + 4));
            self.asm.raw(&store(entry, at));
        }
    }

    fn invalidate(&mut self, page: u64) {
        let linear = CHANGING + page * PAGE;
        match self.random.below(10) {
            0..=3 => self.asm.raw32(&[0x0f, 0x01, 0x3c, 0x25], linear),
            4 | 5 => {
                let byte = self.random.below(PAGE);
                self.set(RAX, linear + byte);
                self.asm.raw(&[0x0f, 0x01, 0x38]); // invlpg [rax]
            }
            6 | 7 => {
                self.asm.raw(&[0x0f, 0x20, 0xd8]);
                self.asm.raw(&[0x0f, 0x22, 0xd8]); // mov cr3, rax
            }
            8 => {
                self.flip_cr4(cr4::PGE);
                self.flip_cr4(cr4::PGE);
            }
            _ => {
                self.set(RCX, 2);
                self.asm.raw32(&[0x66, 0x0f, 0x38, 0x82, 0x0c, 0x25], NO_DESCRIPTOR); // invpcid
            }
        }
    }

    fn change_inline(&mut self) {
        let (page, entry) = self.data_page();
        let entry = volatile_entries(self.world.mode)[entry as usize];
        self.change_page(page, entry);
        self.use_page(CHANGING + page * PAGE);
    }

    fn change_page(&mut self, page: u64, entry: u64) {
        self.store_entry(page, entry);
        self.hands_off = true;
        for _ in 0..self.random.below(3) {
            self.plain();
        }
        self.hands_off = false;
        self.invalidate(page);
    }

    /// From absent to present, from read-only to writable: nothing need be invalidated.
    fn gain_rights(&mut self) {
        let page = self.random.below(FUNCTION_PAGE);
        let entries = volatile_entries(self.world.mode);
        // Clearing A and D would need an invalidation.
        let full = entries[6 + self.random.below(6) as usize] | pte::A | pte::D;
        let less = self.random.pick(&[0, full & !pte::RW, full & !pte::P]);
        self.change_page(page, less);
        self.use_page(CHANGING + page * PAGE);
        self.store_entry(page, full);
        self.use_page(CHANGING + page * PAGE);
    }

    fn change_functions(&mut self, inline: bool) {
        let entry = DATA_ENTRIES + self.random.below(4);
        if inline && self.random.percent(60) {
            let entry = volatile_entries(self.world.mode)[entry as usize];
            self.change_page(FUNCTION_PAGE, entry);
        } else {
            self.set(RAX, FUNCTION_PAGE);
            self.set(RCX, entry);
            self.asm.raw(&[0xcd, service::SET_ENTRY]);
        }
    }

    /// Calls whatever function the page has now.
    fn call_volatile(&mut self) {
        let at = CHANGING + FUNCTION_PAGE * PAGE + 0x10 * self.random.below(8);
        let register = self.scratch();
        self.set(register, at);
        self.asm.raw(&[0xff, 0xd0 | register]);
    }

    /// MOV to CR3, with and without keeping what PCIDs keep.
    fn switch(&mut self) {
        let space = self.random.below(2);
        let root = self.world.root(space);
        let keep = self.wide() && self.world.pcid && self.random.percent(50);
        self.set(RAX, root | if keep { 1 << 63 } else { 0 });
        self.asm.raw(&[0x0f, 0x22, 0xd8]);
        if self.random.percent(50) {
            // The page that differs.
            self.use_page(self.world.home() + data(8));
        }
    }

    fn flip_cr4(&mut self, bit: u64) {
        self.asm.raw(&[0x0f, 0x20, 0xe0]);
        self.asm.raw32(&[0x35], bit);
        self.asm.raw(&[0x0f, 0x22, 0xe0]);
    }

    /// CR0.WP, CR0.AM, CR4.SMAP, CR4.SMEP.
    fn toggle(&mut self) {
        match self.random.below(6) {
            0..=2 => {
                let bit = self.random.pick(&[cr0::WP, cr0::WP, cr0::AM]);
                self.asm.raw(&[0x0f, 0x20, 0xc0]);
                self.asm.raw32(&[0x35], bit);
                self.asm.raw(&[0x0f, 0x22, 0xc0]);
            }
            3 | 4 => self.flip_cr4(cr4::SMAP),
            _ => self.flip_cr4(cr4::SMEP),
        }
        self.plain();
    }
}

/// Fills the pages of functions: `add eax, ..` and RET, with immediates of their own.
pub(super) fn write_functions(program: &mut Program, random: &mut Random) {
    for page in &mut program.functions {
        for function in page.chunks_mut(0x10) {
            function[0] = 0x05;
            function[1..5].copy_from_slice(&(random.bits() as u32).to_le_bytes());
            function[5] = 0xc3;
        }
    }
}
