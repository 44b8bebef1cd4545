//! PVH: an ELF kernel with Xen's 32-bit entry note (Xen's `docs/misc/pvh.pandoc`, `arch-x86/hvm/start_info.h`).
//!
//! Threads: plain functions.

use super::elf::Elf;
use super::entry::{Entry, Protocol};
use super::map::{self, MemoryMap};
use super::{BootError, Image, write_string};
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use memory::GuestMemory;
use vm_memory::ByteValued;
use x86::Gpa;

/// Where the module list is.
const MODULE_LIST: u64 = map::BOOT_INFO + 0x100;
/// Where the memory map is.
const MEMORY_MAP: u64 = map::BOOT_INFO + 0x1000;

/// Loads a PVH kernel whose note says `start`.
pub(super) fn load(
    memory: &GuestMemory,
    image: &Image<'_>,
    elf: &Elf<'_>,
    start: u64,
    map: &MemoryMap,
) -> Result<Entry, BootError> {
    elf.check(image, map, (map::BOOT_INFO, map::BOOT_INFO_END))?;
    elf.check_entry(image, start)?;
    image.check_command_line(u64::MAX)?;
    elf.place(memory)?;
    write_string(memory, map::COMMAND_LINE, image.cmdline)?;
    let (at, len) = super::linux::place_initrd(memory, image, elf.end().max(map::HIGH), map.low_end)?;

    let mut entries = 0;
    for (at, range) in (MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map.ranges) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write(Gpa(at), entry.as_slice())?;
        entries += 1;
    }
    let modules = u32::from(len != 0);
    if modules != 0 {
        let entry = hvm_modlist_entry { paddr: at.into(), size: len.into(), ..hvm_modlist_entry::default() };
        memory.write(Gpa(MODULE_LIST), entry.as_slice())?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: modules,
        modlist_paddr: if modules == 0 { 0 } else { MODULE_LIST },
        cmdline_paddr: map::COMMAND_LINE,
        rsdp_paddr: map::ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: entries,
        ..hvm_start_info::default()
    };
    memory.write(Gpa(map::BOOT_INFO), info.as_slice())?;
    Ok(Entry { protocol: Protocol::Pvh, start: Gpa(start), info: Gpa(map::BOOT_INFO) })
}
