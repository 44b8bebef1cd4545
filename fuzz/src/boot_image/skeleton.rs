//! Sound kernels of each kind, a few of whose numbers the input changes: random bytes would never pass the first checks.
//!
//! Threads: plain functions.

use crate::Input;

/// The rest of the input as a kernel file: as it is, or as a skeleton with changes.
pub(super) fn kernel(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.u8() % 8;
    let (mut file, head) = match kind {
        0 => return input.bytes(usize::MAX).to_vec(),
        1 | 2 => bzimage(),
        3 => elf64(None),
        4 => elf64(Some(LOAD_AT + 0x10)),
        5 => elf32(),
        6 => multiboot_raw(),
        _ => multiboot_elf(),
    };
    while !input.is_empty() {
        change(&mut file, &head, input);
    }
    file
}

/// Where the skeletons' code is loaded, which is in RAM and above the BIOS area.
const LOAD_AT: u64 = 0x10_0000;
/// Offset of the code in ELF and multiboot files.
const CODE: usize = 0x1000;
const CODE_LEN: usize = 0x200;

/// Places of numbers that matter: offset and size in bytes.
type Fields = Vec<(usize, usize)>;

/// One change: a field, any byte of the head, or the file's length.
fn change(file: &mut Vec<u8>, fields: &[(usize, usize)], input: &mut Input<'_>) {
    let (at, len) = match input.u8() {
        0 => {
            file.truncate(usize::from(input.u16()));
            return;
        }
        1 => {
            file.resize(file.len() + usize::from(input.u16()), 0x90);
            return;
        }
        2..=99 => (usize::from(input.u16() & 0x3ff), 1 << (input.u8() & 3)),
        _ => input.pick(fields),
    };
    let value = near(input).to_le_bytes();
    if let Some(place) = file.get_mut(at..at + len) {
        place.copy_from_slice(&value[..len]);
    }
}

/// A number that an image might hold: an address or a size near something that is checked, or any.
fn near(input: &mut Input<'_>) -> u64 {
    const BASES: [u64; 14] = [
        0,
        0x1000,
        0x1_0000,
        0x2_0000,
        0x3_0000,
        0x9_0000,
        0x9_fc00,
        0xe_0000,
        LOAD_AT,
        0x20_0000,
        0x40_0000,
        0xc000_0000,
        1 << 32,
        0x16,
    ];
    match input.u8() {
        low @ 0..=127 => {
            let base = BASES[usize::from(low) % BASES.len()];
            base.wrapping_add_signed(i64::from(input.u8() as i8) * if low & 64 == 0 { 1 } else { 0x100 })
        }
        _ => input.number(),
    }
}

fn put(file: &mut [u8], at: usize, value: u64, len: usize) -> (usize, usize) {
    file[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    (at, len)
}

/// Boot protocol 2.12 with a 64-bit entry (Documentation/arch/x86/boot.rst).
fn bzimage() -> (Vec<u8>, Fields) {
    let mut file = vec![0x90; 2 * 512 + 0x800];
    file[0x1f1..0x290].fill(0);
    let fields = [
        (0x1f1, 1, 1),           // setup_sects
        (0x1f4, 0x80, 4),        // syssize
        (0x1fe, 0xaa55, 2),      // boot_flag
        (0x200, 0x66eb, 2),      // jump: the header's end
        (0x202, 0x5372_6448, 4), // header
        (0x206, 0x20c, 2),       // version
        (0x211, 1, 1),           // loadflags
        (0x214, LOAD_AT, 4),     // code32_start
        (0x22c, 0x7fff_ffff, 4), // initrd_addr_max
        (0x230, 0x1000, 4),      // kernel_alignment
        (0x234, 1, 1),           // relocatable_kernel
        (0x236, 3, 2),           // xloadflags
        (0x238, 2047, 4),        // cmdline_size
        (0x258, LOAD_AT, 8),     // pref_address
        (0x260, 0x1000, 4),      // init_size
        (0x264, 0, 4),           // handover_offset
    ];
    let fields = fields.map(|(at, value, len)| put(&mut file, at, value, len));
    (file, fields.to_vec())
}

/// An ELF file with two segments and perhaps a PVH note (System V ABI, object files).
fn elf64(pvh: Option<u64>) -> (Vec<u8>, Fields) {
    let mut file = vec![0; CODE + CODE_LEN];
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut fields = vec![
        put(&mut file, 16, 2, 2),       // e_type
        put(&mut file, 18, 62, 2),      // e_machine
        put(&mut file, 20, 1, 4),       // e_version
        put(&mut file, 24, LOAD_AT, 8), // e_entry
        put(&mut file, 32, 64, 8),      // e_phoff
        put(&mut file, 40, 0, 8),       // e_shoff
        put(&mut file, 52, 64, 2),      // e_ehsize
        put(&mut file, 54, 56, 2),      // e_phentsize
        put(&mut file, 56, 3, 2),       // e_phnum
        put(&mut file, 60, 0, 2),       // e_shnum
    ];
    let (code, half) = (CODE as u64, CODE_LEN as u64 / 2);
    // Type, offset, address, bytes in the file, bytes in memory.
    let programs = [
        (1, code, LOAD_AT, half, half),
        (1, code + half, LOAD_AT + 0x1000, half, 0x2000),
        (if pvh.is_some() { 4 } else { 0 }, 0x200, 0, 20, 20),
    ];
    for (n, (kind, offset, at, in_file, in_memory)) in programs.into_iter().enumerate() {
        let program = 64 + 56 * n;
        fields.extend([
            put(&mut file, program, kind, 4),
            put(&mut file, program + 8, offset, 8),
            put(&mut file, program + 16, at, 8),
            put(&mut file, program + 24, at, 8),
            put(&mut file, program + 32, in_file, 8),
            put(&mut file, program + 40, in_memory, 8),
            put(&mut file, program + 48, 4, 8),
        ]);
    }
    if let Some(entry) = pvh {
        note(&mut file, &mut fields, entry);
    }
    (file, fields)
}

/// Xen's note with the 32-bit entry, at 200h.
fn note(file: &mut [u8], fields: &mut Fields, entry: u64) {
    fields.extend([
        put(file, 0x200, 4, 4),
        put(file, 0x204, 4, 4),
        put(file, 0x208, 18, 4),
        put(file, 0x20c, u64::from(u32::from_le_bytes(*b"Xen\0")), 4),
        put(file, 0x210, entry, 4),
    ]);
}

fn elf32() -> (Vec<u8>, Fields) {
    let mut file = vec![0; CODE + CODE_LEN];
    file[..16].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut fields = vec![
        put(&mut file, 16, 2, 2),       // e_type
        put(&mut file, 18, 3, 2),       // e_machine
        put(&mut file, 20, 1, 4),       // e_version
        put(&mut file, 24, LOAD_AT, 4), // e_entry
        put(&mut file, 28, 52, 4),      // e_phoff
        put(&mut file, 32, 0, 4),       // e_shoff
        put(&mut file, 40, 52, 2),      // e_ehsize
        put(&mut file, 42, 32, 2),      // e_phentsize
        put(&mut file, 44, 2, 2),       // e_phnum
        put(&mut file, 48, 0, 2),       // e_shnum
    ];
    let programs = [(1, CODE as u64, LOAD_AT, CODE_LEN as u64, 0x1000), (4, 0x200, 0, 20, 20)];
    for (n, (kind, offset, at, in_file, in_memory)) in programs.into_iter().enumerate() {
        let program = 52 + 32 * n;
        for (word, value) in [kind, offset, at, at, in_file, in_memory, 0, 4].into_iter().enumerate() {
            fields.push(put(&mut file, program + 4 * word, value, 4));
        }
    }
    note(&mut file, &mut fields, LOAD_AT);
    (file, fields)
}

/// A multiboot header at `at`, its checksum sound, whose flags say `flags`.
fn multiboot(file: &mut [u8], at: usize, flags: u32) -> Fields {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let load = LOAD_AT;
    let words = [
        0x1bad_b002,
        flags.into(),
        checksum.into(),
        load + at as u64,             // header_addr
        load,                         // load_addr
        load + file.len() as u64,     // load_end_addr
        load + 2 * file.len() as u64, // bss_end_addr
        load + 0x40,                  // entry_addr
    ];
    (0..).zip(words).map(|(word, value)| put(file, at + 4 * word, value, 4)).collect()
}

fn multiboot_raw() -> (Vec<u8>, Fields) {
    let mut file = vec![0x90; 0x400];
    let fields = multiboot(&mut file, 0x10, 0x1_0003);
    (file, fields)
}

fn multiboot_elf() -> (Vec<u8>, Fields) {
    let (mut file, mut fields) = elf32();
    fields.extend(multiboot(&mut file, 0x300, 3));
    (file, fields)
}
