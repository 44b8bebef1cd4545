//! Linux's boot protocol: bzImage, and `vmlinux` by the same 64-bit entry (Documentation/arch/x86/boot.rst, whose
//! names the header fields have here).
//!
//! memtest86+ comes as a bzImage too: its 32-bit build is entered at `code32_start`, its 64-bit build at 200h beyond.
//!
//! Threads: plain functions.

use super::elf::Elf;
use super::entry::{Entry, Protocol};
use super::map::{self, MemoryMap};
use super::{BootError, Image, write_string};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use memory::GuestMemory;
use vm_memory::ByteValued;
use x86::Gpa;

/// "HdrS" at 202h of a bzImage.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Where the setup header begins, in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// How far a longer header than ours may reach in the zero page.
const HEADER_LIMIT: usize = 0x290;
/// `type_of_loader` of a boot loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
/// `loadflags`: the protected-mode code goes to 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `loadflags`: `heap_end_ptr` is valid, for real-mode code that isn't run.
const CAN_USE_HEAP: u8 = 0x80;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Where the 64-bit entry is in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Highest address of an initial RAM disk where the header gives none.
const DEFAULT_INITRD_MAX: u32 = 0x37ff_ffff;
/// The longest command line of an x86 Linux (`COMMAND_LINE_SIZE`, with its zero), for `vmlinux`, which doesn't say.
const VMLINUX_COMMAND_LINE: u32 = 2047;

/// Whether the file has a Linux boot header.
pub(super) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(&HEADER_MAGIC.to_le_bytes())
        && bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

/// Loads a bzImage.
pub(super) fn load_bzimage(
    memory: &GuestMemory,
    image: &Image<'_>,
    map: &MemoryMap,
) -> Result<Entry, BootError> {
    let mut params = boot_params::default();
    let (payload, header) = check_header(image, &mut params)?;

    let (load, needed) = if header.version >= 0x20a {
        (header.pref_address, u64::from(header.init_size).max(payload.len() as u64))
    } else {
        (u64::from(header.code32_start), payload.len() as u64)
    };
    if load < map::HIGH {
        return Err(image.problem(format!("its header asks to be loaded at {load:#x}, below 1 MiB")));
    }
    // Also a relocatable kernel moves itself up to `pref_address` before it unpacks: lower memory won't do.
    let end = load.saturating_add(needed);
    if end > map::RAM_LIMIT {
        return Err(image
            .problem(format!("its header asks for memory from {load:#x} to {end:#x}, where no RAM can be")));
    }
    if end > map.low_end {
        return Err(image.too_little_memory(end, map.low_end));
    }
    let is_64 = header.xloadflags & XLF_KERNEL_64 != 0;
    if is_64 && payload.len() as u64 <= ENTRY_64 {
        return Err(image.problem("its header claims a 64-bit entry that lies beyond its code"));
    }
    memory.write(Gpa(load), payload)?;

    params.hdr.code32_start = load as u32;
    finish(memory, image, map, &mut params, end)?;
    let (protocol, start) =
        if is_64 { (Protocol::Linux64, load + ENTRY_64) } else { (Protocol::Linux32, load) };
    Ok(Entry { protocol, start: Gpa(start), info: Gpa(map::BOOT_INFO) })
}

/// Checks the header against the file, copies it into the zero page and gives the protected-mode code.
fn check_header<'a>(
    image: &Image<'a>,
    params: &mut boot_params,
) -> Result<(&'a [u8], setup_header), BootError> {
    let file = image.kernel;
    // The jump at 200h leads to the header's end.
    let header_end = (0x202 + usize::from(file[0x201])).min(HEADER_LIMIT);
    let truncated = |said: u64, have: u64| {
        image.problem(format!("it is truncated, or its header lies: {said} bytes of {have} are missing"))
    };
    let Some(header) = file.get(HEADER..header_end.max(HEADER)) else {
        return Err(truncated((header_end - file.len()) as u64, header_end as u64));
    };
    params.as_mut_slice()[HEADER..HEADER + header.len()].copy_from_slice(header);
    let header = params.hdr;

    let version = header.version;
    if version < 0x206 {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(image.problem(format!("it has Linux boot protocol {major}.{minor:02}, older than 2.06")));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(
            image.problem("it is a zImage (loaded below 1 MiB), which isn't supported; build a bzImage")
        );
    }
    let setup_sectors = if header.setup_sects == 0 { 4 } else { usize::from(header.setup_sects) };
    let setup = (setup_sectors + 1) * 512;
    let said = u64::from(header.syssize) * 16;
    let have = file.len().saturating_sub(setup) as u64;
    if said == 0 {
        return Err(image.problem("its header says that it has no code (syssize is 0)"));
    }
    // `syssize` is rounded up to 16 bytes, the file isn't.
    if have + 15 < said {
        return Err(truncated(said - have, said));
    }
    // Beyond `syssize` there may be a signature, which isn't loaded.
    let payload = &file[setup..setup + said.min(have) as usize];
    Ok((payload, header))
}

/// Loads an ELF `vmlinux` for its 64-bit entry, which expects the same state as a bzImage's.
pub(super) fn load_vmlinux(
    memory: &GuestMemory,
    image: &Image<'_>,
    elf: &Elf<'_>,
    map: &MemoryMap,
) -> Result<Entry, BootError> {
    if !elf.is_64 {
        return Err(image.problem("it is a 32-bit ELF file with neither a PVH note nor a multiboot header"));
    }
    elf.check(image, map, (0, map::BOOT_INFO_END))?;
    elf.check_entry(image, elf.entry)?;
    elf.place(memory)?;
    let hdr = setup_header {
        boot_flag: 0xaa55,
        header: HEADER_MAGIC,
        version: 0x20c,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x20_0000,
        cmdline_size: VMLINUX_COMMAND_LINE,
        initrd_addr_max: 0x7fff_ffff,
        ..setup_header::default()
    };
    let mut params = boot_params { hdr, ..boot_params::default() };
    finish(memory, image, map, &mut params, elf.end())?;
    Ok(Entry { protocol: Protocol::Linux64, start: Gpa(elf.entry), info: Gpa(map::BOOT_INFO) })
}

/// What a bzImage and a `vmlinux` have in common: command line, initial RAM disk, memory map, zero page. `screen_info`
/// stays zero, which says that there is no screen.
fn finish(
    memory: &GuestMemory,
    image: &Image<'_>,
    map: &MemoryMap,
    params: &mut boot_params,
    kernel_end: u64,
) -> Result<(), BootError> {
    let limit = match params.hdr.cmdline_size {
        0 => 255,
        limit => limit,
    };
    image.check_command_line(u64::from(limit))?;
    write_string(memory, map::COMMAND_LINE, image.cmdline)?;

    let highest = match params.hdr.initrd_addr_max {
        0 => DEFAULT_INITRD_MAX,
        highest => highest,
    };
    let (at, len) = place_initrd(memory, image, kernel_end, map.low_end.min(u64::from(highest) + 1))?;
    params.hdr.ramdisk_image = at;
    params.hdr.ramdisk_size = len;

    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.loadflags &= !CAN_USE_HEAP;
    params.hdr.cmd_line_ptr = map::COMMAND_LINE as u32;
    params.hdr.setup_data = 0;
    params.hdr.hardware_subarch = 0;
    params.acpi_rsdp_addr = map::ACPI;
    params.alt_mem_k = u32::try_from(map.high_kib()).unwrap_or(u32::MAX);
    let mut table = params.e820_table;
    let mut entries = 0u8;
    for (entry, range) in table.iter_mut().zip(&map.ranges) {
        *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    memory.write(Gpa(map::BOOT_INFO), params.as_slice())?;
    Ok(())
}

/// Puts the initial RAM disk as high as it may be. Gives its address and length, zeros where there is none.
pub(super) fn place_initrd(
    memory: &GuestMemory,
    image: &Image<'_>,
    kernel_end: u64,
    limit: u64,
) -> Result<(u32, u32), BootError> {
    let initrd = match image.modules {
        [] => return Ok((0, 0)),
        [initrd] => &initrd.bytes,
        _ => return Err(image.problem("it takes one initial RAM disk, not several modules")),
    };
    if initrd.is_empty() {
        return Ok((0, 0));
    }
    let need = initrd.len() as u64;
    let floor = kernel_end.next_multiple_of(0x1000);
    let at = limit.checked_sub(need).map_or(0, |at| at & !0xfff);
    if at < floor {
        return Err(BootError::Initramfs { need, room: limit.saturating_sub(floor) });
    }
    memory.write(Gpa(at), initrd)?;
    // Both are below 4 GiB, because `limit` is.
    Ok((at as u32, need as u32))
}
