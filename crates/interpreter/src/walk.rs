//! Page walks: linear to guest-physical, for every paging mode (SDM 3A chapter 4).
//!
//! Called when the TLB misses. Sets A and D bits exactly: A in each entry the walk uses, D in the leaf of a write
//! (SDM 3A 4.8), by compare-and-exchange, so that an update never undoes another vCPU's.

use crate::cpu::{Cpu, Stop};
use engine::{Access as Bus, Platform};
use memory::RamOffset;
use x86::address::PAGE_SIZE;
use x86::control::{cr0, cr4, efer};
use x86::paging::{fault, pte};
use x86::{Exception, Gpa, Rflags, Vector};

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Intent {
    Read,
    Write,
    Fetch,
    /// As [`Intent::Write`], but for an engine that asks in advance: sets no D bit, so [`Walked::may_write`] says whether it was set.
    Foresee,
}

/// Who does it: the instruction itself at its CPL, or the CPU on its behalf as supervisor (descriptor tables, TSS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Actor {
    Explicit,
    Implicit,
}

/// The outcome of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walked {
    /// Guest-physical address of the byte asked for.
    pub(crate) gpa: Gpa,
    /// Whether further reads (and writes: writes) of the page need no walk.
    pub(crate) may_read: bool,
    pub(crate) may_write: bool,
    /// User code may access the page, as far as its entries go.
    pub(crate) user_page: bool,
    /// The page is larger than 4 KiB.
    pub(crate) large: bool,
    /// The page is global.
    pub(crate) global: bool,
}

/// The shape of one paging mode.
struct Shape {
    levels: u32,
    entry_bytes: u64,
    index_bits: u32,
}

impl Cpu {
    /// Whether paging is on.
    #[inline]
    pub(crate) fn paging(&self) -> bool {
        self.state.cr0 & cr0::PG != 0
    }

    /// Guest-physical addresses beyond this bit count are reserved in entries.
    pub(crate) fn physical_mask(&self) -> u64 {
        (1 << self.physical_bits) - 1
    }

    /// Translates one linear address for one access, or gives the page fault (CR2 is set then).
    pub(crate) fn walk(
        &mut self,
        address: u64,
        intent: Intent,
        actor: Actor,
        io: &mut dyn Platform,
    ) -> Result<Walked, Stop> {
        if !self.paging() {
            let gpa = Gpa(address & 0xffff_ffff);
            return Ok(Walked {
                gpa,
                may_read: true,
                may_write: true,
                user_page: true,
                large: false,
                global: false,
            });
        }
        loop {
            // A failed update of an A or D bit means that somebody changed the entry: look again.
            if let Some(result) = self.try_walk(address, intent, actor, io) {
                return result;
            }
        }
    }

    fn try_walk(
        &mut self,
        address: u64,
        intent: Intent,
        actor: Actor,
        io: &mut dyn Platform,
    ) -> Option<Result<Walked, Stop>> {
        let user = self.state.cpl == 3 && actor == Actor::Explicit;
        let pae = self.state.cr4 & cr4::PAE != 0;
        let shape = if !pae {
            Shape { levels: 2, entry_bytes: 4, index_bits: 10 }
        } else if !self.long_mode {
            Shape { levels: 2, entry_bytes: 8, index_bits: 9 }
        } else if self.state.cr4 & cr4::LA57 != 0 {
            Shape { levels: 5, entry_bytes: 8, index_bits: 9 }
        } else {
            Shape { levels: 4, entry_bytes: 8, index_bits: 9 }
        };
        let address = if self.long_mode { address } else { address & 0xffff_ffff };
        let deny = |cpu: &mut Self, code: u32| Some(Err(cpu.page_fault(address, code, intent, user)));

        let mut table = if !pae {
            self.state.cr3 & 0xffff_f000
        } else if !self.long_mode {
            // PDPTEs are registers, loaded with CR3 (SDM 3A 4.4.1).
            let pdpte = self.state.pdptes[(address >> 30 & 3) as usize];
            if pdpte & pte::P == 0 {
                return deny(self, 0);
            }
            pdpte & self.physical_mask() & !0xfff
        } else {
            self.state.cr3 & self.physical_mask() & !0xfff
        };

        let mut rights = pte::RW | pte::US;
        let mut execute_disable = false;
        let nxe = self.state.efer & efer::NXE != 0;
        let mut level = shape.levels;
        loop {
            let shift = 12 + (level - 1) * shape.index_bits;
            let index = address >> shift & ((1 << shape.index_bits) - 1);
            let at = Gpa(table + index * shape.entry_bytes);
            let entry = self.read_entry(at, shape.entry_bytes, io);
            if entry & pte::P == 0 {
                return deny(self, 0);
            }
            let leaf = level == 1 || entry & pte::PS != 0 && self.may_be_leaf(level, pae);
            if entry & self.reserved_bits(level, leaf, pae, nxe, entry) != 0 {
                return deny(self, fault::P | fault::RSVD);
            }
            rights &= entry;
            execute_disable |= nxe && pae && entry & pte::XD != 0;
            if !leaf {
                if entry & pte::A == 0 && !self.update_entry(at, shape.entry_bytes, entry, entry | pte::A, io)
                {
                    return None;
                }
                table = entry & self.physical_mask() & !0xfff & if pae { u64::MAX } else { 0xffff_ffff };
                level -= 1;
                continue;
            }

            // The leaf: judge the access, then set A and D.
            let writable = rights & pte::RW != 0;
            let user_page = rights & pte::US != 0;
            let write_protect = user || self.state.cr0 & cr0::WP != 0;
            let (key_read, key_write) = self.key_rights(user_page, entry, write_protect);
            let smap_hit = self.smap_applies(user, actor) && user_page;
            let may_write = (writable || !write_protect) && key_write && key_read;
            let permitted = match intent {
                _ if user && !user_page => false,
                Intent::Fetch => !execute_disable && (user || !user_page || self.state.cr4 & cr4::SMEP == 0),
                _ if smap_hit => false,
                Intent::Read => key_read,
                Intent::Write | Intent::Foresee => may_write,
            };
            if !permitted {
                let ordinary = match intent {
                    _ if user && !user_page => false,
                    Intent::Fetch => false,
                    _ if smap_hit => false,
                    Intent::Read => true,
                    Intent::Write | Intent::Foresee => writable || !write_protect,
                };
                // PK is set when the protection key alone, or too, denies it (SDM 3A 4.7).
                let key_denies = match intent {
                    Intent::Fetch => false,
                    Intent::Read => !key_read,
                    Intent::Write | Intent::Foresee => !(key_read && key_write),
                };
                let pk = if key_denies && (ordinary || user_page) { fault::PK } else { 0 };
                return deny(self, fault::P | pk);
            }
            let mut updated = entry | pte::A;
            if intent == Intent::Write {
                updated |= pte::D;
            }
            if updated != entry && !self.update_entry(at, shape.entry_bytes, entry, updated, io) {
                return None;
            }
            let base = self.leaf_base(level, entry, pae, shift);
            let gpa = Gpa(base | address & ((1 << shift) - 1));
            return Some(Ok(Walked {
                gpa,
                may_read: intent != Intent::Fetch && key_read,
                may_write: intent != Intent::Fetch && may_write && updated & pte::D != 0,
                user_page,
                large: level > 1,
                global: entry & pte::G != 0 && self.state.cr4 & cr4::PGE != 0,
            }));
        }
    }

    /// Whether PS makes an entry above the last level one of a page (SDM 3A 4.3-4.5).
    pub(crate) fn may_be_leaf(&self, level: u32, pae: bool) -> bool {
        if pae { level == 2 || level == 3 } else { level == 2 && self.state.cr4 & cr4::PSE != 0 }
    }

    /// SMAP: supervisor accesses to user pages fault unless explicit and RFLAGS.AC is set (SDM 3A 4.6.1).
    fn smap_applies(&self, user: bool, actor: Actor) -> bool {
        !user
            && self.state.cr4 & cr4::SMAP != 0
            && !(actor == Actor::Explicit && self.state.rflags.contains(Rflags::AC))
    }

    /// What the protection key of a user page allows: (any data access, writes) (SDM 3A 4.6.2).
    pub(crate) fn key_rights(&self, user_page: bool, leaf: u64, write_protect: bool) -> (bool, bool) {
        if !user_page || !self.long_mode || self.state.cr4 & cr4::PKE == 0 {
            return (true, true);
        }
        let key = leaf >> pte::KEY_SHIFT & 15;
        let rights = self.state.vector.pkru >> (2 * key);
        (rights & 1 == 0, rights & 2 == 0 || !write_protect)
    }

    /// Bits of an entry that must be zero (SDM 3A 4.3-4.5, figures 4-4 to 4-11).
    pub(crate) fn reserved_bits(&self, level: u32, leaf: bool, pae: bool, nxe: bool, entry: u64) -> u64 {
        if !pae {
            // PSE-36: a 4 MiB page's bits 20:13 are address bits 39:32, as far as the machine has them; bit 21 is reserved.
            if leaf && level == 2 {
                let have = self.physical_bits.min(40) - 32;
                return 1 << 21 | (0xff << 13 & !(((1 << have) - 1) << 13));
            }
            return 0;
        }
        let beyond = if self.long_mode {
            0x000f_ffff_ffff_f000 & !self.physical_mask()
        } else {
            // PAE paging: everything between MAXPHYADDR and bit 62 is reserved.
            0x7fff_ffff_ffff_f000 & !self.physical_mask()
        };
        let no_execute = if nxe { 0 } else { pte::XD };
        let large = if leaf && level > 1 {
            // Address bits below the page's size, but for PAT in bit 12.
            ((1u64 << (12 + (level - 1) * 9)) - 1) & !0x1fff
        } else {
            0
        };
        let size = if entry & pte::PS != 0 && !leaf && level >= 3 { pte::PS } else { 0 };
        // PS in a PML4E or PML5E is reserved; in a PDPTE it makes a 1 GiB page, which is a leaf above.
        beyond | no_execute | large | size
    }

    pub(crate) fn leaf_base(&self, level: u32, entry: u64, pae: bool, shift: u32) -> u64 {
        if pae {
            entry & self.physical_mask() & !((1 << shift) - 1)
        } else if level == 2 {
            (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32
        } else {
            entry & 0xffff_f000
        }
    }

    fn page_fault(&mut self, address: u64, code: u32, intent: Intent, user: bool) -> Stop {
        let mut code = code;
        if intent == Intent::Write {
            code |= fault::W;
        }
        if user {
            code |= fault::U;
        }
        let fetch_told = (self.state.cr4 & cr4::PAE != 0 && self.state.efer & efer::NXE != 0)
            || self.state.cr4 & cr4::SMEP != 0;
        if intent == Intent::Fetch && fetch_told {
            code |= fault::I;
        }
        self.state.cr2 = address;
        Exception::with_code(Vector::PageFault, code).into()
    }

    /// Reads a paging-structure entry, from RAM or, where a guest put its tables elsewhere, from the bus.
    fn read_entry(&self, at: Gpa, bytes: u64, io: &mut dyn Platform) -> u64 {
        match self.memory.locate(at) {
            Some(ram) if bytes == 4 => self.memory.load::<u32>(ram).into(),
            Some(ram) => self.memory.load::<u64>(ram),
            None => {
                let mut data = [0; 8];
                io.mmio(at, Bus::Read(&mut data[..bytes as usize]));
                u64::from_le_bytes(data)
            }
        }
    }

    /// Replaces an entry if it still is `old`.
    fn update_entry(&mut self, at: Gpa, bytes: u64, old: u64, new: u64, io: &mut dyn Platform) -> bool {
        let Some(ram) = self.memory.locate(at) else {
            io.mmio(at, Bus::Write(&new.to_le_bytes()[..bytes as usize]));
            return true;
        };
        let (done, written) = if bytes == 4 {
            let (found, written) = self.memory.compare_exchange(ram, old as u32, new as u32);
            (found == old as u32, written)
        } else {
            let (found, written) = self.memory.compare_exchange(ram, old, new);
            (found == old, written)
        };
        self.note_written(written);
        done
    }

    /// The RAM behind a walked page, from its first byte, if it is RAM.
    pub(crate) fn page_in_ram(&self, gpa: Gpa) -> Option<RamOffset> {
        // Regions are page-aligned, so a page is RAM as a whole or not at all.
        self.memory.locate(Gpa(gpa.0 & !(PAGE_SIZE - 1)))
    }

    /// Reads the PDPTEs that `cr3` points to, as MOV to CR3 and the like do with PAE paging (SDM 3A 4.4.1). `None` where a
    /// present one has a reserved bit set: #GP.
    pub(crate) fn read_pdptes(&self, cr3: u64, io: &mut dyn Platform) -> Option<[u64; 4]> {
        let mut pdptes = [0; 4];
        let reserved = !self.physical_mask() | 0x1e6;
        for (index, pdpte) in pdptes.iter_mut().enumerate() {
            *pdpte = self.read_entry(Gpa((cr3 & 0xffff_ffe0) + index as u64 * 8), 8, io);
            if *pdpte & pte::P != 0 && *pdpte & reserved != 0 {
                return None;
            }
        }
        Some(pdptes)
    }
}
