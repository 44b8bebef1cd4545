//! Walks that leave no trace: what the present tables give for a page, as far as no accessed or dirty bit has to be set for it.
//!
//! A processor may cache such a translation at any time, asked or not (SDM 3A 4.10.2.3), so an engine that keeps translations may
//! enter what it finds here whenever it likes. Called through [`Core::prober`](crate::Core::prober), on the vCPU's thread.

use crate::cpu::Cpu;
use memory::RamOffset;
use x86::Gpa;
use x86::control::{cr0, cr4, efer};
use x86::paging::pte;

/// As whom to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Viewer {
    /// User code.
    User,
    /// Supervisor code under SMAP, where CR4 has it.
    Supervisor,
    /// Supervisor code that SMAP doesn't apply to (RFLAGS.AC is set, or CR4.SMAP clear).
    SupervisorOpen,
}

/// What the tables give for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probed {
    /// First byte of the page in RAM.
    pub ram: RamOffset,
    /// It may be read.
    pub read: bool,
    /// It may be written, and its D bit is set.
    pub write: bool,
    /// Code may be fetched from it.
    pub fetch: bool,
    /// The page is global.
    pub global: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

/// What the entries above the last level lead to.
#[derive(Clone, Copy)]
struct Bottom {
    rights: u64,
    execute_disable: bool,
    leads_to: LeadsTo,
}

#[derive(Clone, Copy)]
enum LeadsTo {
    /// A table of the last level.
    Table(RamOffset),
    /// A page of a higher level, whose entry this is.
    Page { entry: u64, level: u32 },
}

/// Looks up pages; quick where one follows another. Good until anything changes that walks depend on.
pub struct Prober<'a> {
    cpu: &'a Cpu,
    pae: bool,
    no_execute: bool,
    levels: u32,
    entry_bytes: u64,
    index_bits: u32,
    /// What the last table's region led to.
    last: Option<(u64, Option<Bottom>)>,
}

impl<'a> Prober<'a> {
    pub(crate) fn new(cpu: &'a Cpu) -> Self {
        let pae = cpu.state.cr4 & cr4::PAE != 0;
        let levels = match (pae, cpu.long_mode) {
            (false, _) | (true, false) => 2,
            (true, true) if cpu.state.cr4 & cr4::LA57 != 0 => 5,
            (true, true) => 4,
        };
        let (entry_bytes, index_bits) = if pae { (8, 9) } else { (4, 10) };
        let no_execute = pae && cpu.state.efer & efer::NXE != 0;
        Self { cpu, pae, no_execute, levels, entry_bytes, index_bits, last: None }
    }

    /// What the page at a linear address is for `viewer`. `None` where there is nothing, a fault, a device, or an entry that
    /// nobody has used yet. Each table's entry is read once for all pages of its region that follow each other.
    pub fn probe(&mut self, address: u64, viewer: Viewer) -> Option<Probed> {
        let cpu = self.cpu;
        if !cpu.paging() || cpu.long_mode && !cpu.is_canonical(address) {
            return None;
        }
        let address = if cpu.long_mode { address } else { address & 0xffff_ffff };
        let region = address >> (12 + self.index_bits);
        let bottom = match self.last {
            Some((last, bottom)) if last == region => bottom,
            _ => {
                let bottom = self.descend(address);
                self.last = Some((region, bottom));
                bottom
            }
        }?;
        let (entry, level) = match bottom.leads_to {
            LeadsTo::Table(table) => {
                let entry = self.load(table, address >> 12)?;
                if entry & cpu.reserved_bits(1, true, self.pae, self.no_execute, entry) != 0 {
                    return None;
                }
                (entry, 1)
            }
            LeadsTo::Page { entry, level } => (entry, level),
        };
        let shift = 12 + (level - 1) * self.index_bits;
        let base = cpu.leaf_base(level, entry, self.pae, shift);
        let ram = cpu.page_in_ram(Gpa(base | address & ((1 << shift) - 1)))?;
        let rights = bottom.rights & entry;
        let execute_disable = bottom.execute_disable || self.no_execute && entry & pte::XD != 0;
        self.judge(entry, rights, execute_disable, viewer, ram, level > 1)
    }

    /// The rights that `viewer` has; see SDM 3A 4.6.
    fn judge(
        &self,
        entry: u64,
        rights: u64,
        execute_disable: bool,
        viewer: Viewer,
        ram: RamOffset,
        large: bool,
    ) -> Option<Probed> {
        let cpu = self.cpu;
        let user = viewer == Viewer::User;
        let user_page = rights & pte::US != 0;
        if user && !user_page {
            return None;
        }
        let write_protect = user || cpu.state.cr0 & cr0::WP != 0;
        let (key_read, key_write) = cpu.key_rights(user_page, entry, write_protect);
        let smap = viewer == Viewer::Supervisor && user_page && cpu.state.cr4 & cr4::SMAP != 0;
        let read = key_read && !smap;
        let writable = rights & pte::RW != 0 || !write_protect;
        Some(Probed {
            ram,
            read,
            write: read && writable && key_write && entry & pte::D != 0,
            fetch: !execute_disable && (user || !user_page || cpu.state.cr4 & cr4::SMEP == 0),
            global: entry & pte::G != 0 && cpu.state.cr4 & cr4::PGE != 0,
            large,
        })
    }

    /// Goes through the levels above the last.
    fn descend(&self, address: u64) -> Option<Bottom> {
        let cpu = self.cpu;
        let mut table = if !self.pae {
            cpu.state.cr3 & 0xffff_f000
        } else if !cpu.long_mode {
            let pdpte = cpu.state.pdptes[(address >> 30 & 3) as usize];
            if pdpte & pte::P == 0 {
                return None;
            }
            pdpte & cpu.physical_mask() & !0xfff
        } else {
            cpu.state.cr3 & cpu.physical_mask() & !0xfff
        };
        let mut rights = pte::RW | pte::US;
        let mut execute_disable = false;
        for level in (2..=self.levels).rev() {
            let index = address >> (12 + (level - 1) * self.index_bits);
            let entry = self.load(cpu.memory.locate(Gpa(table))?, index)?;
            let leaf = entry & pte::PS != 0 && cpu.may_be_leaf(level, self.pae);
            if entry & cpu.reserved_bits(level, leaf, self.pae, self.no_execute, entry) != 0 {
                return None;
            }
            if leaf {
                return Some(Bottom { rights, execute_disable, leads_to: LeadsTo::Page { entry, level } });
            }
            rights &= entry;
            execute_disable |= self.no_execute && entry & pte::XD != 0;
            table = entry & cpu.physical_mask() & !0xfff & if self.pae { u64::MAX } else { 0xffff_ffff };
        }
        let leads_to = LeadsTo::Table(cpu.memory.locate(Gpa(table))?);
        Some(Bottom { rights, execute_disable, leads_to })
    }

    /// An entry that is present and has been used.
    fn load(&self, table: RamOffset, index: u64) -> Option<u64> {
        let index = index & ((1 << self.index_bits) - 1);
        let at = RamOffset(table.0 + index * self.entry_bytes);
        let entry =
            if self.pae { self.cpu.memory.load(at) } else { u64::from(self.cpu.memory.load::<u32>(at)) };
        const USED: u64 = pte::P | pte::A;
        (entry & USED == USED).then_some(entry)
    }
}
