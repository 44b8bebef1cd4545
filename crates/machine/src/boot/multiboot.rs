//! Multiboot 1 (Multiboot Specification 0.6.96), laid out as QEMU lays it out.
//!
//! The memory map is at 9000h and the information at 9500h, both written before the kernel, which may lie over them:
//! small real-mode test kernels do, and never look. Module table, command lines and the loader's name follow the
//! kernel's end, modules follow these.
//!
//! Left out: video modes (a kernel that asks for one gets none), drives, APM, symbols.
//!
//! Threads: plain functions.

use super::elf::{Elf, is_elf};
use super::entry::{Entry, Protocol};
use super::map::{self, MemoryMap};
use super::{BootError, Image, write_string, zero};
use memory::GuestMemory;
use x86::Gpa;

const MAGIC: u32 = 0x1bad_b002;
/// The header lies in the first so many bytes, at a multiple of 4 (3.1).
const SEARCH: usize = 8192;
/// Header flag: the address fields are valid.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Header flags that must be understood: of bits 0-15 there are only alignment of modules, memory size and video.
const UNKNOWN_REQUIREMENTS: u32 = 0xfff8;

const MEMORY_MAP: u64 = 0x9000;
const INFO: u64 = 0x9500;
/// Entries that fit before the information. There are never so many.
const MEMORY_MAP_ENTRIES: usize = (INFO - MEMORY_MAP) as usize / 24;
/// Bytes of the information, up to and with the video fields.
const INFO_LEN: usize = 116;
/// Where what follows the kernel may begin.
const FREE: u64 = 0xa000;
/// Memory size, boot device, command line, modules, memory map, loader's name (3.3).
const INFO_FLAGS: u32 = 0x24f;
/// The first hard disk, no partition.
const BOOT_DEVICE: u32 = 0x8000_ffff;
const LOADER_NAME: &str = "ombra";

/// A valid header: where in the file, and its flags.
fn find_header(file: &[u8]) -> Option<(usize, u32)> {
    let head = &file[..file.len().min(SEARCH)];
    (0..head.len()).step_by(4).find_map(|at| {
        let (magic, flags, checksum) = (field(head, at, 0)?, field(head, at, 1)?, field(head, at, 2)?);
        let sound = magic == MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
        sound.then_some((at, flags))
    })
}

/// The 32-bit word number `word` of the header at `at`.
fn field(file: &[u8], at: usize, word: usize) -> Option<u32> {
    let bytes = file.get(at + 4 * word..at + 4 * word + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Whether the file has a multiboot header.
pub(super) fn is_multiboot(file: &[u8]) -> bool {
    find_header(file).is_some()
}

/// Loads a multiboot kernel and its modules.
pub(super) fn load(memory: &GuestMemory, image: &Image<'_>, map: &MemoryMap) -> Result<Entry, BootError> {
    let Some((at, flags)) = find_header(image.kernel) else {
        return Err(image.problem("it has no multiboot header"));
    };
    if flags & UNKNOWN_REQUIREMENTS != 0 {
        return Err(
            image.problem(format!("its multiboot header asks for unknown features (flags {flags:#x})"))
        );
    }
    image.check_command_line(u64::MAX)?;
    write_memory_map(memory, map)?;
    zero(memory, INFO, INFO_LEN as u64)?;

    if flags & HAS_ADDRESSES == 0 && !is_elf(image.kernel) {
        return Err(image.problem("its multiboot header has no addresses, but it isn't an ELF file either"));
    }
    // The kernel's end must be known for the rest, and the rest must be written first: the kernel may lie over it.
    if flags & HAS_ADDRESSES != 0 {
        let raw = Raw::parse(image, at, map)?;
        write_info(memory, image, map, raw.end)?;
        memory.write(Gpa(raw.at), raw.data)?;
        let in_file = raw.at + raw.data.len() as u64;
        zero(memory, in_file, raw.end - in_file)?;
        Ok(Entry { protocol: Protocol::Multiboot, start: Gpa(raw.entry), info: Gpa(INFO) })
    } else {
        let elf = Elf::parse(image)?;
        elf.check(image, map, (0, 0))?;
        elf.check_entry(image, elf.entry)?;
        write_info(memory, image, map, elf.end())?;
        elf.place(memory)?;
        Ok(Entry { protocol: Protocol::Multiboot, start: Gpa(elf.entry), info: Gpa(INFO) })
    }
}

/// An image loaded by its header's address fields (3.1.3).
struct Raw<'a> {
    at: u64,
    data: &'a [u8],
    /// End of .bss.
    end: u64,
    entry: u64,
}

impl<'a> Raw<'a> {
    fn parse(image: &Image<'a>, header: usize, map: &MemoryMap) -> Result<Self, BootError> {
        let file = image.kernel;
        let word = |number| field(file, header, number).map(u64::from);
        let (Some(header_at), Some(load), Some(load_end), Some(bss_end), Some(entry)) =
            (word(3), word(4), word(5), word(6), word(7))
        else {
            return Err(image.problem("its multiboot header is truncated"));
        };
        let unsound = |what: &str| image.problem(format!("its multiboot header is unsound: {what}"));
        // The header is `header_at - load` bytes into what is loaded.
        let before = header_at.checked_sub(load).ok_or_else(|| unsound("load_addr is above header_addr"))?;
        let from = (header as u64)
            .checked_sub(before)
            .ok_or_else(|| unsound("header_addr and load_addr point before the file's start"))?;
        let from = usize::try_from(from).unwrap_or(file.len()).min(file.len());
        let rest = &file[from..];
        let data = if load_end == 0 {
            rest
        } else {
            let len =
                load_end.checked_sub(load).ok_or_else(|| unsound("load_end_addr is below load_addr"))?;
            rest.get(..usize::try_from(len).unwrap_or(usize::MAX))
                .ok_or_else(|| unsound("load_end_addr lies beyond the file's end (truncated?)"))?
        };
        let loaded = load + data.len() as u64;
        let end = if bss_end == 0 { loaded } else { bss_end };
        if end < loaded {
            return Err(unsound("bss_end_addr is below load_end_addr"));
        }
        if !(load..end).contains(&entry) {
            return Err(unsound("entry_addr lies outside the image"));
        }
        if load < map::HIGH && end > map::EBDA {
            return Err(unsound("the image lies over 0x9fc00-0x100000, which the BIOS uses"));
        }
        if end > map::RAM_LIMIT {
            return Err(unsound("the image lies outside any RAM"));
        }
        if end > map.low_end {
            return Err(image.too_little_memory(end, map.low_end));
        }
        Ok(Self { at: load, data, end, entry })
    }
}

/// The memory map: entries of `size` (not counting itself), base, length, type (3.3).
fn write_memory_map(memory: &GuestMemory, map: &MemoryMap) -> Result<(), BootError> {
    let mut bytes = Vec::new();
    for range in map.ranges.iter().take(MEMORY_MAP_ENTRIES) {
        bytes.extend_from_slice(&20u32.to_le_bytes());
        bytes.extend_from_slice(&range.start.to_le_bytes());
        bytes.extend_from_slice(&range.len.to_le_bytes());
        bytes.extend_from_slice(&(range.kind as u32).to_le_bytes());
    }
    memory.write(Gpa(MEMORY_MAP), &bytes)?;
    Ok(())
}

/// Modules, their table, all strings and the information itself.
fn write_info(
    memory: &GuestMemory,
    image: &Image<'_>,
    map: &MemoryMap,
    kernel_end: u64,
) -> Result<(), BootError> {
    const ENTRY: usize = 16;
    let command_line = format!("{} {}", image.name, image.cmdline);
    let table_len = ENTRY * image.modules.len().max(1);
    let strings: Vec<&str> = [command_line.as_str(), LOADER_NAME]
        .into_iter()
        .chain(image.modules.iter().map(|module| module.cmdline.as_str()))
        .collect();
    let head = table_len as u64 + strings.iter().map(|string| string.len() as u64 + 1).sum::<u64>();
    let total = image.modules.iter().fold(head.next_multiple_of(0x1000), |total, module| {
        total + (module.bytes.len() as u64).next_multiple_of(0x1000)
    });
    let mut start = kernel_end.max(FREE).next_multiple_of(0x1000);
    if start < map::HIGH && start + total > map::EBDA {
        start = map::HIGH;
    }
    if start + total > map.low_end {
        return Err(BootError::Initramfs { need: total, room: map.low_end.saturating_sub(start) });
    }

    let mut at = start + table_len as u64;
    let mut string_at = Vec::new();
    for string in &strings {
        write_string(memory, at, string)?;
        string_at.push(at as u32);
        at += string.len() as u64 + 1;
    }
    let mut table = Vec::new();
    for (module, &string) in image.modules.iter().zip(&string_at[2..]) {
        at = at.next_multiple_of(0x1000);
        let end = at + module.bytes.len() as u64;
        if !module.bytes.is_empty() {
            memory.write(Gpa(at), &module.bytes)?;
        }
        table.extend([at as u32, end as u32, string, 0]);
        at = end;
    }
    table.resize(table_len / 4, 0);
    memory.write(Gpa(start), &to_bytes(&table))?;

    let mut info = [0u32; INFO_LEN / 4];
    info[0] = INFO_FLAGS;
    info[1] = (map::EBDA >> 10) as u32;
    info[2] = map.high_kib() as u32;
    info[3] = BOOT_DEVICE;
    info[4] = string_at[0];
    info[5] = image.modules.len() as u32;
    info[6] = start as u32;
    info[11] = (24 * map.ranges.len().min(MEMORY_MAP_ENTRIES)) as u32;
    info[12] = MEMORY_MAP as u32;
    info[16] = string_at[1];
    memory.write(Gpa(INFO), &to_bytes(&info))?;
    Ok(())
}

fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
