//! ELF kernels: which bytes go where, and the PVH note. Read with `object`; every number is checked here.
//!
//! Threads: plain functions.

use super::map::{self, MemoryMap};
use super::{BootError, Image, zero};
use memory::GuestMemory;
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use x86::Gpa;

/// Type of the note that holds PVH's entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u32 = 18;

/// Whether the file says that it is ELF.
pub(super) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// A part of the image. All of `at + len` fits 64 bits.
struct Segment<'a> {
    at: u64,
    data: &'a [u8],
    len: u64,
}

/// An ELF kernel whose numbers are sound in themselves.
pub(super) struct Elf<'a> {
    /// Whether it is 64-bit.
    pub(super) is_64: bool,
    /// Entry point.
    pub(super) entry: u64,
    /// Entry point of PVH, where it has one.
    pub(super) pvh: Option<u64>,
    /// Ascending, without overlaps, at least one.
    segments: Vec<Segment<'a>>,
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub(super) fn parse(image: &Image<'a>) -> Result<Self, BootError> {
        let is_64 = image.kernel.get(4) == Some(&2);
        if is_64 {
            Self::parse_as::<elf::FileHeader64<LittleEndian>>(image)
        } else {
            Self::parse_as::<elf::FileHeader32<LittleEndian>>(image)
        }
    }

    fn parse_as<Header: FileHeader<Endian = LittleEndian>>(image: &Image<'a>) -> Result<Self, BootError> {
        let data = image.kernel;
        let broken =
            |error: object::Error| image.problem(format!("it is a damaged or truncated ELF file: {error}"));
        let header = Header::parse(data).map_err(broken)?;
        let endian = header.endian().map_err(broken)?;
        if ![elf::EM_386, elf::EM_X86_64].contains(&header.e_machine(endian)) {
            return Err(image.problem("it is an ELF file for another processor than x86"));
        }
        let mut pvh = None;
        let mut segments = Vec::new();
        for program in header.program_headers(endian, data).map_err(broken)? {
            if let Ok(Some(mut notes)) = program.notes(endian, data) {
                while let Ok(Some(note)) = notes.next() {
                    if note.name() == b"Xen" && note.n_type(endian).0 == PHYS32_ENTRY {
                        pvh = entry_of_note(note.desc());
                    }
                }
            }
            if program.p_type(endian) != elf::PT_LOAD {
                continue;
            }
            let (at, len): (u64, u64) = (program.p_paddr(endian).into(), program.p_memsz(endian).into());
            let in_file: u64 = program.p_filesz(endian).into();
            if len == 0 && in_file == 0 {
                continue;
            }
            if in_file > len {
                return Err(image
                    .problem(format!("its segment at {at:#x} has more bytes in the file than in memory")));
            }
            if at.checked_add(len).is_none() {
                return Err(image
                    .problem(format!("its segment at {at:#x} wraps around the end of the address space")));
            }
            let data = program.data(endian, data).map_err(|()| {
                image.problem(format!("its segment at {at:#x} lies outside the file (truncated?)"))
            })?;
            segments.push(Segment { at, data, len });
        }
        segments.sort_by_key(|segment| segment.at);
        if segments.is_empty() {
            return Err(image.problem("it has no loadable segments"));
        }
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].at + pair[0].len > pair[1].at) {
            return Err(
                image.problem(format!("its segments at {:#x} and {:#x} overlap", pair[0].at, pair[1].at))
            );
        }
        Ok(Self { is_64: header.is_type_64(), entry: header.e_entry(endian).into(), pvh, segments })
    }

    /// End of the last segment.
    pub(super) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.at + segment.len)
    }

    /// Refuses what isn't in RAM below 4 GiB, or lies over `[busy.0, busy.1)`, which the protocol needs.
    pub(super) fn check(
        &self,
        image: &Image<'_>,
        map: &MemoryMap,
        busy: (u64, u64),
    ) -> Result<(), BootError> {
        for &Segment { at, len, .. } in &self.segments {
            let end = at + len;
            for (from, to) in [busy, (map::EBDA, map::HIGH)] {
                if at < to && end > from {
                    return Err(image.problem(format!(
                        "its segment at {at:#x} lies over {from:#x}-{to:#x}, which the boot protocol and the BIOS use"
                    )));
                }
            }
            if end > map.low_end {
                return Err(if end <= map::RAM_LIMIT {
                    image.too_little_memory(end, map.low_end)
                } else {
                    image.problem(format!("its segment {at:#x}-{end:#x} lies outside any RAM"))
                });
            }
        }
        Ok(())
    }

    /// Refuses an entry point outside the segments.
    pub(super) fn check_entry(&self, image: &Image<'_>, entry: u64) -> Result<(), BootError> {
        if self.segments.iter().any(|segment| (segment.at..segment.at + segment.len).contains(&entry)) {
            return Ok(());
        }
        Err(image.problem(format!("its entry point {entry:#x} is in none of its segments")))
    }

    /// Copies the segments to where they belong.
    pub(super) fn place(&self, memory: &GuestMemory) -> Result<(), BootError> {
        for segment in &self.segments {
            if !segment.data.is_empty() {
                memory.write(Gpa(segment.at), segment.data)?;
            }
            let in_file = segment.data.len() as u64;
            zero(memory, segment.at + in_file, segment.len - in_file)?;
        }
        Ok(())
    }
}

/// The note holds 4 or 8 bytes, by the kernel's class.
fn entry_of_note(desc: &[u8]) -> Option<u64> {
    match *desc {
        [a, b, c, d] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
        [a, b, c, d, 0, 0, 0, 0] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
        _ => None,
    }
}
