//! The registers with which each boot protocol enters a kernel.
//!
//! Made by the loaders of this module's siblings; [`Entry::prepare`] is called by the machine on the bootstrap
//! processor's state before its first instruction.

use super::map;
use memory::{GuestMemory, MemoryError};
use x86::Gpa;
use x86::control::{cr0, cr4, efer};
use x86::descriptor::{RawDescriptor, Selector};
use x86::paging::pte;
use x86::state::{Activity, CpuState, Segment, TableRegister, gpr, seg};

/// How the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, RSI = zero page.
    Linux64,
    /// Linux's 32-bit boot protocol: flat protected mode, ESI = zero page.
    Linux32,
    /// PVH: flat protected mode, EBX = start info.
    Pvh,
    /// Multiboot 1: flat protected mode, EAX = magic, EBX = information.
    Multiboot,
}

/// A loaded kernel's first instruction and the state it expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// How it is entered.
    pub protocol: Protocol,
    /// Address of its first instruction.
    pub start: Gpa,
    /// Address of the structure that tells it about the machine.
    pub info: Gpa,
}

/// What EAX holds at a multiboot kernel's entry.
const MULTIBOOT_LOADED: u64 = 0x2bad_b002;

const CODE64: RawDescriptor = RawDescriptor(0x00af_9b00_0000_ffff);
const CODE32: RawDescriptor = RawDescriptor(0x00cf_9b00_0000_ffff);
const DATA: RawDescriptor = RawDescriptor(0x00cf_9300_0000_ffff);
/// A busy 32-bit TSS of the least length, at 0. Nothing reads it before the kernel loads its own.
const TSS: RawDescriptor = RawDescriptor(0x0000_8b00_0000_0067);

impl Protocol {
    /// The GDT and the selectors of code and data in it. Linux's are given by its protocol (`__BOOT_CS` and
    /// `__BOOT_DS`), multiboot's are QEMU's.
    const fn descriptors(self) -> ([RawDescriptor; 5], u16, u16) {
        let null = RawDescriptor(0);
        match self {
            Self::Linux64 => ([null, null, CODE64, DATA, TSS], 0x10, 0x18),
            Self::Linux32 => ([null, null, CODE32, DATA, TSS], 0x10, 0x18),
            Self::Pvh | Self::Multiboot => ([null, CODE32, DATA, null, TSS], 8, 0x10),
        }
    }
}

impl Entry {
    /// Writes the GDT, and the page tables if it takes any, to the BIOS area.
    pub(super) fn write_tables(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let (gdt, ..) = self.protocol.descriptors();
        let words: Vec<u64> = gdt.iter().map(|descriptor| descriptor.0).collect();
        memory.write(Gpa(map::GDT), &to_bytes(&words))?;
        if self.protocol == Protocol::Linux64 {
            write_identity_tables(memory)?;
        }
        Ok(())
    }

    /// Puts a vCPU into the state that the kernel expects. What the protocol says nothing about is as after reset.
    pub fn prepare(&self, state: &mut CpuState) {
        let (gdt, code, data) = self.protocol.descriptors();
        let segment = |selector: u16, raw| Segment::from_descriptor(Selector(selector), raw);
        let data = segment(data, DATA);
        let fresh = CpuState::default();
        *state = CpuState {
            rip: self.start.0,
            segments: [data; 6],
            tr: segment(0x20, TSS),
            ldtr: Segment { limit: 0xffff, attributes: fresh.ldtr.attributes, ..Segment::default() },
            gdtr: TableRegister {
                base: map::GDT,
                limit: u16::try_from(size_of_val(&gdt) - 1).unwrap_or(u16::MAX),
            },
            // No vectors: until the kernel has its own, an exception means that it is lost.
            idtr: TableRegister { base: 0, limit: 0 },
            cr0: cr0::PE | cr0::ET,
            // Both belong to the vCPU's clock, which the machine set before.
            tsc_offset: state.tsc_offset,
            tsc_adjust: state.tsc_adjust,
            activity: Activity::Running,
            ..fresh
        };
        state.gpr = [0; 16];
        state.segments[seg::CS] = segment(code, gdt[usize::from(code / 8)]);
        match self.protocol {
            Protocol::Linux64 => {
                state.cr0 |= cr0::PG;
                state.cr3 = map::PAGE_TABLES;
                state.cr4 = cr4::PAE;
                state.efer = efer::LME | efer::LMA;
                state.gpr[gpr::RSI] = self.info.0;
            }
            Protocol::Linux32 => state.gpr[gpr::RSI] = self.info.0,
            Protocol::Pvh => state.gpr[gpr::RBX] = self.info.0,
            Protocol::Multiboot => {
                state.gpr[gpr::RAX] = MULTIBOOT_LOADED;
                state.gpr[gpr::RBX] = self.info.0;
            }
        }
    }
}

/// The first 4 GiB mapped to themselves by 2 MiB pages.
fn write_identity_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    const DIRECTORIES: u64 = map::PAGE_TABLES + 0x2000;
    let link = pte::P | pte::RW;
    let mut words = vec![0u64; 1024];
    words[0] = (map::PAGE_TABLES + 0x1000) | link;
    for (entry, at) in words[512..516].iter_mut().zip((DIRECTORIES..).step_by(0x1000)) {
        *entry = at | link;
    }
    words.extend((0..2048u64).map(|page| page << 21 | link | pte::PS));
    memory.write(Gpa(map::PAGE_TABLES), &to_bytes(&words))
}

fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
