//! The memory map that every boot protocol hands to the kernel (INT 15h E820 in its terms), and where boot structures
//! lie.
//!
//! Threads: plain functions.

use super::BootError;
use crate::acpi::{BoardFacts, ECAM_BYTES};
use memory::GuestMemory;

/// Linux's zero page, or PVH's start info, both with what belongs to them.
pub(super) const BOOT_INFO: u64 = 0x1_0000;
/// The command line of Linux and PVH kernels.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes kept for it, with its final zero.
pub(super) const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// Where boot structures in low memory end.
pub(super) const BOOT_INFO_END: u64 = COMMAND_LINE + COMMAND_LINE_ROOM;
/// Extended BIOS data area: the last KiB below 640 KiB.
pub(super) const EBDA: u64 = 0x9_fc00;
/// Where a PC's video memory begins. There is RAM here, but no map shows it.
pub(super) const VIDEO: u64 = 0xa_0000;
/// RSDP and ACPI tables. A guest finds the RSDP by scanning from here on (ACPI 5.2.5.1).
pub(super) const ACPI: u64 = 0xe_0000;
/// Bytes kept for the tables.
pub(super) const ACPI_ROOM: u64 = 0x1_0000;
/// Identity page tables of the 64-bit entry: PML4, PDPT, four page directories.
pub(super) const PAGE_TABLES: u64 = 0xf_0000;
/// The GDTs of all entries.
pub(super) const GDT: u64 = 0xf_6000;
/// The ACPI FACS.
pub(super) const FACS: u64 = 0xf_7000;
/// Real-mode code of the BIOS area.
pub(super) const BIOS_CODE: u64 = 0xf_e000;
/// Where memory above the BIOS area begins.
pub(super) const HIGH: u64 = 0x10_0000;
/// No RAM is below this and above the first region: devices' addresses.
pub(super) const RAM_LIMIT: u64 = 0xc000_0000;

/// What a range of addresses is; the numbers are E820's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Kind {
    Usable = 1,
    Reserved = 2,
    AcpiReclaim = 3,
}

/// One entry of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) kind: Kind,
}

/// The map a kernel is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MemoryMap {
    /// Ascending, without overlaps.
    pub(super) ranges: Vec<Range>,
    /// End of the RAM that begins at 0.
    pub(super) low_end: u64,
}

impl MemoryMap {
    /// The map for `memory`, with ACPI tables of `acpi` bytes at [`ACPI`].
    ///
    /// # Errors
    /// [`BootError::Memory`] where there is less than 2 MiB, which every protocol needs.
    pub(super) fn new(
        memory: &GuestMemory,
        facts: &BoardFacts,
        acpi: u64,
        kernel: &str,
    ) -> Result<Self, BootError> {
        let regions = memory.layout().regions();
        let low_end = regions.first().filter(|region| region.start.0 == 0).map_or(0, |region| region.len);
        if low_end < 2 * HIGH {
            return Err(BootError::Memory {
                kernel: kernel.to_owned(),
                need: (2 * HIGH) >> 10,
                have: low_end >> 10,
            });
        }
        let range = |start: u64, end: u64, kind| Range { start, len: end - start, kind };
        let acpi_end = ACPI + acpi.next_multiple_of(0x1000);
        let mut ranges = vec![
            range(0, EBDA, Kind::Usable),
            range(EBDA, VIDEO, Kind::Reserved),
            range(ACPI, acpi_end, Kind::AcpiReclaim),
            range(acpi_end, HIGH, Kind::Reserved),
            range(HIGH, low_end, Kind::Usable),
        ];
        ranges.extend(regions[1..].iter().map(|region| Range {
            start: region.start.0,
            len: region.len,
            kind: Kind::Usable,
        }));
        if let Some(ecam) = facts.ecam.map(u64::from).filter(|&ecam| ecam >= low_end) {
            ranges.push(range(ecam, ecam + u64::from(ECAM_BYTES), Kind::Reserved));
        }
        ranges.sort_by_key(|range| range.start);
        Ok(Self { ranges, low_end })
    }

    /// KiB of RAM from 1 MiB up, as old interfaces count them.
    pub(super) const fn high_kib(&self) -> u64 {
        (self.low_end - HIGH) >> 10
    }
}
