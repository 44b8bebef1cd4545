//! Boot protocols: from a kernel file to guest memory and the first vCPU's registers.
//!
//! The machine calls [`load`] before it starts and again after each guest reset, then [`Entry::prepare`] on the
//! bootstrap processor, and plays [`legacy::PORT_WRITES`] on its bus. What a file is, its contents decide, in this
//! order:
//!
//! - a **bzImage** (also memtest86+): Linux's boot protocol 2.06 or newer (Documentation/arch/x86/boot.rst), 64-bit
//!   entry where the image offers it, else the 32-bit one;
//! - a **multiboot 1** header in the first 8 KiB (Multiboot Specification 0.6.96), laid out as QEMU does it, because
//!   kernels written for QEMU depend on it;
//! - an **ELF** file with a PVH note (Xen's `docs/misc/pvh.pandoc`), else a 64-bit one entered as a Linux `vmlinux`.
//!
//! Lower memory is laid out by `map`: low 4 KiB vectors and BIOS data, boot information at 64 KiB, the command line at
//! 128 KiB, and in the BIOS area (e0000h-fffffh, reserved in the map the kernel gets) ACPI tables, page tables, GDT
//! and a few real-mode handlers.
//!
//! # Why not all of it is `linux-loader`'s
//!
//! Its loaders fill `vm_memory::GuestMemory`, which Ombra's memory is not (stores must be seen by whoever derived
//! something from the bytes), and they trust sizes that a hostile file chooses. Its structures (zero page, PVH start
//! info) are used, with `vm-memory`'s `ByteValued` to see them as bytes; ELF files are read by `object`.
//!
//! A kernel file is hostile until shown otherwise: every size is checked against the file and against RAM before
//! anything is written, and reads are bounded. Left out: real-mode entry, zImage, EFI, multiboot 2, compressed ELF.
//!
//! Threads: plain functions, to be called while no vCPU runs.

mod elf;
mod entry;
mod error;
pub mod legacy;
mod linux;
mod map;
mod multiboot;
mod pvh;
#[cfg(test)]
mod tests;

pub use crate::acpi::BoardFacts;
pub use entry::{Entry, Protocol};
pub use error::BootError;

use crate::acpi;
use control::{BootConfig, Initramfs};
use map::MemoryMap;
use memory::{GuestMemory, MemoryError};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use x86::Gpa;

/// The largest kernel file that is read, in bytes. A `vmlinux` with debug information has half of that.
const KERNEL_LIMIT: u64 = 1 << 30;

/// A kernel and what it is given, in memory.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The kernel's path, for messages and for a multiboot kernel's `argv[0]`.
    pub name: &'a str,
    /// The kernel file's contents.
    pub kernel: &'a [u8],
    /// Multiboot modules; for Linux, at most one, the initial RAM disk.
    pub modules: &'a [Module],
    /// The command line, for multiboot without the kernel's name.
    pub cmdline: &'a str,
}

/// A multiboot module or an initial RAM disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its name and arguments.
    pub cmdline: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

impl Image<'_> {
    fn problem(&self, problem: impl Into<String>) -> BootError {
        BootError::Image { kernel: self.name.to_owned(), problem: problem.into() }
    }

    /// Refuses a command line of more than `limit` bytes, or one that doesn't fit where it is to go.
    fn check_command_line(&self, limit: u64) -> Result<(), BootError> {
        let limit = limit.min(map::COMMAND_LINE_ROOM - 1);
        let len = self.cmdline.len() as u64;
        if len > limit {
            return Err(BootError::CommandLine { kernel: self.name.to_owned(), len, limit });
        }
        Ok(())
    }

    /// The error for RAM that ends at `have` where the kernel needs it up to `need`.
    fn too_little_memory(&self, need: u64, have: u64) -> BootError {
        BootError::Memory { kernel: self.name.to_owned(), need: need.div_ceil(1024), have: have >> 10 }
    }
}

/// Loads what `config` names into `memory` and tells how to enter it.
///
/// # Errors
/// [`BootError`], for unreadable and unfit files and for memory that is too small.
pub fn load(memory: &GuestMemory, config: &BootConfig, facts: &BoardFacts) -> Result<Entry, BootError> {
    let kernel = read("kernel", &config.kernel, KERNEL_LIMIT)?;
    let name = config.kernel.to_string_lossy();
    // Nothing may lie above 4 GiB, so what exceeds the first region can't be placed in any case.
    let room = memory.layout().regions().first().map_or(0, |region| region.len);
    let modules = match &config.initramfs {
        None => Vec::new(),
        Some(Initramfs::Bytes(bytes)) => vec![Module { cmdline: String::new(), bytes: bytes.clone() }],
        Some(Initramfs::File(list)) if multiboot::is_multiboot(&kernel) => {
            read_modules(&list.to_string_lossy(), room)?
        }
        Some(Initramfs::File(file)) => {
            let bytes = read("initial RAM disk", file, room)?;
            vec![Module { cmdline: file.to_string_lossy().into_owned(), bytes }]
        }
    };
    load_bytes(
        memory,
        &Image { name: &name, kernel: &kernel, modules: &modules, cmdline: &config.cmdline },
        facts,
    )
}

/// The same with files already read.
///
/// # Errors
/// [`BootError`], for unfit contents and for memory that is too small.
pub fn load_bytes(memory: &GuestMemory, image: &Image<'_>, facts: &BoardFacts) -> Result<Entry, BootError> {
    if image.kernel.is_empty() {
        return Err(image.problem("the file is empty"));
    }
    // A table of 1,000 vCPUs still fits; far beyond, don't even build it.
    let too_many = BootError::Tables { cpus: facts.cpus };
    if facts.cpus > 0xfff {
        return Err(too_many);
    }
    let tables = acpi::build(facts, map::ACPI as u32, map::FACS as u32);
    if tables.bytes.len() as u64 > map::ACPI_ROOM {
        return Err(too_many);
    }
    let map = MemoryMap::new(memory, facts, tables.bytes.len() as u64, image.name)?;

    legacy::write(memory)?;
    memory.zero(Gpa(map::ACPI), map::ACPI_ROOM)?;
    memory.write(Gpa(map::ACPI), &tables.bytes)?;
    memory.write(Gpa(map::FACS), &tables.facs)?;

    let entry = if linux::is_bzimage(image.kernel) {
        linux::load_bzimage(memory, image, &map)?
    } else if multiboot::is_multiboot(image.kernel) {
        multiboot::load(memory, image, &map)?
    } else if elf::is_elf(image.kernel) {
        let elf = elf::Elf::parse(image)?;
        match elf.pvh {
            Some(start) => pvh::load(memory, image, &elf, start, &map)?,
            None => linux::load_vmlinux(memory, image, &elf, &map)?,
        }
    } else {
        return Err(image.problem(unknown_kind(image.kernel)));
    };
    entry.write_tables(memory)?;
    Ok(entry)
}

/// What to say about a file that is none of the kinds above.
fn unknown_kind(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x1f, 0x8b, ..]
        | [0x28, 0xb5, 0x2f, 0xfd, ..]
        | [0xfd, b'7', b'z', b'X', b'Z', ..]
        | [b'B', b'Z', b'h', ..] => "it is a compressed file; decompress it first",
        [b'M', b'Z', ..] => "it is an EFI program without a Linux boot header",
        _ => "it is neither a bzImage nor an ELF or multiboot kernel (or it is truncated)",
    }
}

/// Reads a whole file of at most `limit` bytes.
fn read(what: &'static str, file: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Read { what, file: file.to_owned(), source };
    let metadata = std::fs::metadata(file).map_err(failed)?;
    let not_a_file = |problem| BootError::NotAFile { what, file: file.to_owned(), problem };
    if metadata.is_dir() {
        return Err(not_a_file("is a directory"));
    }
    if is_device(&metadata) {
        return Err(not_a_file("is a device"));
    }
    let too_large = || BootError::TooLarge { what, file: file.to_owned(), limit };
    if metadata.len() > limit {
        return Err(too_large());
    }
    // A pipe has no length and a file may grow: the bound must hold while reading too.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    File::open(file).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

fn is_device(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    kind.is_char_device() || kind.is_block_device() || kind.is_socket()
}

/// Multiboot modules: `FILE[ ARGUMENTS]`, separated by commas; a doubled comma stands for one.
fn read_modules(list: &str, mut room: u64) -> Result<Vec<Module>, BootError> {
    let mut modules = Vec::new();
    for cmdline in split_at_commas(list) {
        let file = cmdline.split(' ').next().unwrap_or_default();
        let bytes = read("module", Path::new(file), room)?;
        room -= bytes.len() as u64;
        modules.push(Module { bytes, cmdline });
    }
    Ok(modules)
}

/// The files of a list of modules.
pub(crate) fn modules(list: &Path) -> Vec<PathBuf> {
    let list = list.to_string_lossy();
    split_at_commas(&list).iter().map(|module| module.split(' ').next().unwrap_or_default().into()).collect()
}

fn split_at_commas(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// Zeroes a range without touching pages that are zero already: the memory of a fresh machine is, and a large .bss
/// should not cost the host anything.
fn zero(memory: &GuestMemory, at: u64, len: u64) -> Result<(), MemoryError> {
    const CHUNK: u64 = 0x1_0000;
    let mut buffer = vec![0; CHUNK as usize];
    let mut done = 0;
    while done < len {
        let chunk = (len - done).min(CHUNK);
        let bytes = &mut buffer[..chunk as usize];
        memory.read(Gpa(at + done), bytes)?;
        if bytes.iter().any(|&byte| byte != 0) {
            memory.zero(Gpa(at + done), chunk)?;
        }
        done += chunk;
    }
    Ok(())
}

/// Writes a string and its final zero.
fn write_string(memory: &GuestMemory, at: u64, string: &str) -> Result<(), MemoryError> {
    memory.write(Gpa(at), string.as_bytes())?;
    memory.write(Gpa(at + string.len() as u64), &[0])
}
