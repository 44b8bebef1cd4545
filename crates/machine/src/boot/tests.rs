//! Kernels made by hand, sound and unsound, and what becomes of them. The real kernels of `cache/guests` are loaded
//! too where they are there.

use super::map;
use super::{BoardFacts, BootError, Entry, Image, Module, Protocol, load, load_bytes};
use control::{BootConfig, Initramfs};
use memory::{GuestMemory, Layout, Region};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use x86::state::{CpuState, gpr, seg};
use x86::{Gpa, Rflags};

const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> GuestMemory {
    let layout = Layout::new(vec![Region { start: Gpa(0), len: bytes }]).expect("a sound layout");
    GuestMemory::new(layout).expect("address space")
}

fn try_load(
    memory: &GuestMemory,
    kernel: &[u8],
    modules: &[Module],
    cmdline: &str,
) -> Result<Entry, BootError> {
    load_bytes(memory, &Image { name: "kernel", kernel, modules, cmdline }, &BoardFacts::pc(1))
}

/// The message of the error that loading into 64 MiB gives.
fn refusal(kernel: &[u8]) -> String {
    let error = try_load(&memory(64 * MIB), kernel, &[], "").expect_err("must be refused");
    let message = error.to_string();
    assert!(!message.contains('\n') && message.contains("kernel"), "{message}");
    message
}

fn state(entry: &Entry) -> CpuState {
    let mut state = CpuState::default();
    entry.prepare(&mut state);
    state
}

fn bytes_at(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(Gpa(at), &mut bytes).expect("RAM");
    bytes
}

fn dword(memory: &GuestMemory, at: u64) -> u32 {
    u32::from_le_bytes(bytes_at(memory, at, 4).try_into().expect("four bytes"))
}

fn qword(memory: &GuestMemory, at: u64) -> u64 {
    u64::from_le_bytes(bytes_at(memory, at, 8).try_into().expect("eight bytes"))
}

fn string_at(memory: &GuestMemory, at: u64) -> String {
    let bytes = bytes_at(memory, at, 256);
    let end = bytes.iter().position(|&byte| byte == 0).expect("a final zero");
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn module(cmdline: &str, bytes: &[u8]) -> Module {
    Module { cmdline: cmdline.to_owned(), bytes: bytes.to_vec() }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of one setup sector and 4 KiB of code, wanting 16 MiB and 2 MiB from there, with a 64-bit entry.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    file[1024..].fill(0x90);
    file[0x1f1] = 1;
    put(&mut file, 0x1f4, &256u32.to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20fu16.to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut file, 0x260, &(2 * MIB as u32).to_le_bytes());
    file
}

/// One program header of [`elf`].
#[derive(Clone, Copy)]
struct Program {
    kind: u32,
    at: u64,
    file: (u64, u64),
    memory: u64,
}

const fn loadable(at: u64, offset: u64, in_file: u64, memory: u64) -> Program {
    Program { kind: 1, at, file: (offset, in_file), memory }
}

/// An ELF file of 8 KiB whose bytes from 4096 on are 0x90.
fn elf(is_64: bool, entry: u64, programs: &[Program]) -> Vec<u8> {
    let mut file = vec![0; 8192];
    file[4096..].fill(0x90);
    put(&mut file, 0, b"\x7fELF");
    put(&mut file, 4, &[if is_64 { 2 } else { 1 }, 1, 1]);
    put(&mut file, 16, &2u16.to_le_bytes());
    put(&mut file, 18, &(if is_64 { 62u16 } else { 3 }).to_le_bytes());
    put(&mut file, 20, &1u32.to_le_bytes());
    let word =
        |value: u64| if is_64 { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() };
    let (header, program_len) = if is_64 { (64u16, 56u16) } else { (52, 32) };
    put(&mut file, 24, &[word(entry), word(u64::from(header))].concat());
    let counts = if is_64 { 52 } else { 40 };
    for (index, value) in [header, program_len, programs.len() as u16].into_iter().enumerate() {
        put(&mut file, counts + 2 * index, &value.to_le_bytes());
    }
    for (index, program) in programs.iter().enumerate() {
        let (kind, flags) = (program.kind.to_le_bytes().to_vec(), 7u32.to_le_bytes().to_vec());
        let (offset, at, in_file) = (word(program.file.0), word(program.at), word(program.file.1));
        let (memory, align) = (word(program.memory), word(4));
        let fields = if is_64 {
            [kind, flags, offset, at.clone(), at, in_file, memory, align]
        } else {
            [kind, offset, at.clone(), at, in_file, memory, flags, align]
        };
        put(&mut file, usize::from(header) + index * usize::from(program_len), &fields.concat());
    }
    file
}

fn with_multiboot_header(mut file: Vec<u8>, at: usize, flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let header = [&[magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)], fields].concat();
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(&mut file, at, &bytes);
    file
}

fn with_pvh_note(mut file: Vec<u8>, at: usize, start: u32) -> Vec<u8> {
    let words = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), start];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(&mut file, at, &bytes);
    file
}

#[test]
fn a_bzimage_is_entered_in_long_mode_with_a_full_zero_page() {
    let memory = memory(64 * MIB);
    let initrd = module("", b"cpio");
    let entry = try_load(&memory, &bzimage(), &[initrd], "console=ttyS0").expect("boots");
    assert_eq!(entry.protocol, Protocol::Linux64);
    assert_eq!(entry.start, Gpa(16 * MIB + 0x200));
    assert_eq!(bytes_at(&memory, 16 * MIB, 4096), vec![0x90; 4096]);

    let zero_page = entry.info.0;
    assert_eq!(dword(&memory, zero_page + 0x202), 0x5372_6448);
    assert_eq!(bytes_at(&memory, zero_page + 0x210, 2), [0xff, 1]);
    assert_eq!(string_at(&memory, u64::from(dword(&memory, zero_page + 0x228))), "console=ttyS0");
    let (at, len) = (dword(&memory, zero_page + 0x218), dword(&memory, zero_page + 0x21c));
    assert_eq!((at, len), ((64 * MIB - 4096) as u32, 4));
    assert_eq!(bytes_at(&memory, at.into(), 4), b"cpio");
    assert_eq!(bytes_at(&memory, qword(&memory, zero_page + 0x70), 8), b"RSD PTR ");
    assert_eq!(bytes_at(&memory, zero_page, 0x40), [0; 0x40]);

    let count = bytes_at(&memory, zero_page + 0x1e8, 1)[0];
    let entries: Vec<(u64, u64, u32)> = (0..u64::from(count))
        .map(|index| zero_page + 0x2d0 + 20 * index)
        .map(|at| (qword(&memory, at), qword(&memory, at + 8), dword(&memory, at + 16)))
        .collect();
    assert_eq!(entries[0], (0, 0x9_fc00, 1));
    assert_eq!(entries[1], (0x9_fc00, 0x400, 2));
    assert_eq!((entries[2].0, entries[2].2), (0xe_0000, 3));
    assert_eq!((entries[3].0 + entries[3].1, entries[3].2), (MIB, 2));
    assert_eq!(entries[4], (MIB, 63 * MIB, 1));

    let state = state(&entry);
    assert_eq!((state.rip, state.gpr[gpr::RSI]), (16 * MIB + 0x200, zero_page));
    assert_eq!(state.rflags, Rflags::ONE);
    assert_eq!((state.segments[seg::CS].selector.0, state.segments[seg::DS].selector.0), (0x10, 0x18));
    assert!(state.segments[seg::CS].attributes.is_long());
    assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
    for at in [0, zero_page, 16 * MIB, 0xfee0_0123, 0xffff_ffff] {
        assert_eq!(translate(&memory, state.cr3, at), Some(at));
    }
    // The GDT holds what the segment registers have cached.
    assert_eq!(qword(&memory, state.gdtr.base + 0x10), 0x00af_9b00_0000_ffff);
}

/// Walks 4-level tables made of 2 MiB pages.
fn translate(memory: &GuestMemory, root: u64, at: u64) -> Option<u64> {
    let mut table = root;
    for shift in [39, 30, 21] {
        let entry = qword(memory, table + ((at >> shift) & 511) * 8);
        if entry & 3 != 3 {
            return None;
        }
        table = entry & !0xfff;
    }
    Some(table | (at & 0x1f_ffff))
}

#[test]
fn a_bzimage_without_64_bit_entry_is_entered_in_protected_mode() {
    let mut kernel = bzimage();
    put(&mut kernel, 0x236, &[0, 0]);
    let memory = memory(64 * MIB);
    let entry = try_load(&memory, &kernel, &[], "").expect("boots");
    assert_eq!((entry.protocol, entry.start), (Protocol::Linux32, Gpa(16 * MIB)));
    assert_eq!(dword(&memory, entry.info.0 + 0x214), 16 * MIB as u32);
    let state = state(&entry);
    assert_eq!((state.cr0, state.efer, state.gpr[gpr::RSI]), (0x11, 0, entry.info.0));
    assert!(state.segments[seg::CS].attributes.is_big() && !state.segments[seg::CS].attributes.is_long());
}

#[test]
fn a_bzimage_whose_header_lies_is_refused() {
    let cases: &[(usize, &[u8], &str)] = &[
        (0x1f4, &[0, 0, 0, 0], "no code"),
        (0x1f4, &[0, 2, 0, 0], "truncated"),
        (0x1f4, &[0xff; 4], "truncated"),
        (0x1f1, &[200], "truncated"),
        (0x206, &[5, 2], "2.05"),
        (0x211, &[0], "zImage"),
        (0x258, &[0; 8], "below 1 MiB"),
        (0x258, &[0xff; 8], "where no RAM can be"),
        (0x260, &[0xff; 4], "where no RAM can be"),
        (0x260, &[0, 0, 0, 8], "at least 147456 KiB"),
    ];
    for (at, bytes, message) in cases {
        let mut kernel = bzimage();
        put(&mut kernel, *at, bytes);
        let refused = refusal(&kernel);
        assert!(refused.contains(message), "{refused:?} should say {message:?}");
    }
    let mut short = bzimage();
    put(&mut short, 0x1f4, &[1, 0, 0, 0]);
    assert!(refusal(&short[..1040]).contains("64-bit entry"));
}

#[test]
fn every_truncation_of_a_bzimage_is_refused() {
    let kernel = bzimage();
    for len in (0..kernel.len() - 16).step_by(7) {
        refusal(&kernel[..len]);
    }
}

#[test]
fn a_command_line_may_be_as_long_as_the_header_says_and_no_longer() {
    let memory = memory(64 * MIB);
    assert!(try_load(&memory, &bzimage(), &[], &"x".repeat(2047)).is_ok());
    let refused = try_load(&memory, &bzimage(), &[], &"x".repeat(2048)).expect_err("too long").to_string();
    assert!(refused.contains("2048") && refused.contains("2047"), "{refused}");
}

#[test]
fn an_initial_ram_disk_goes_between_the_kernel_and_the_limit_or_is_refused() {
    let memory = memory(64 * MIB);
    let room = 64 * MIB - 18 * MIB;
    assert!(try_load(&memory, &bzimage(), &[module("", &vec![1; room as usize])], "").is_ok());
    let refused =
        try_load(&memory, &bzimage(), &[module("", &vec![1; room as usize + 1])], "").expect_err("too large");
    assert!(matches!(refused, BootError::Initramfs { need, room: had } if need == room + 1 && had == room));
    let mut low = bzimage();
    put(&mut low, 0x22c, &(20 * MIB as u32 - 1).to_le_bytes());
    let entry = try_load(&memory, &low, &[module("", &[1; 5000])], "").expect("boots");
    assert_eq!(u64::from(dword(&memory, entry.info.0 + 0x218)), 20 * MIB - 8192);
}

#[test]
fn memory_that_is_too_small_is_refused() {
    for size in [4096, 64 << 10, MIB, 2 * MIB, 17 * MIB] {
        let refused = try_load(&memory(size), &bzimage(), &[], "").expect_err("too small");
        assert!(matches!(refused, BootError::Memory { .. }), "{refused}");
    }
}

#[test]
fn memory_above_4_gib_is_in_the_map() {
    let layout = Layout::new(vec![
        Region { start: Gpa(0), len: 3 << 30 },
        Region { start: Gpa(4 << 30), len: 5 << 30 },
    ]);
    let memory = GuestMemory::new(layout.expect("a sound layout")).expect("address space");
    let facts = BoardFacts { ecam: Some(0xe000_0000), ..BoardFacts::pc(4) };
    let map = map::MemoryMap::new(&memory, &facts, 0x1234, "kernel").expect("enough memory");
    let last = map.ranges.last().expect("ranges");
    assert_eq!((last.start, last.len, last.kind), (4 << 30, 5 << 30, map::Kind::Usable));
    assert!(map.ranges.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start));
    assert!(map.ranges.iter().any(|range| range.start == 0xe000_0000 && range.kind == map::Kind::Reserved));
}

#[test]
fn a_vmlinux_is_entered_in_long_mode_with_its_bss_zeroed() {
    let memory = memory(64 * MIB);
    memory.write(Gpa(16 * MIB + 4096), &[1; 4096]).expect("RAM");
    let kernel = elf(true, 16 * MIB + 8, &[loadable(16 * MIB, 4096, 4096, 3 * 4096)]);
    let entry = try_load(&memory, &kernel, &[], "quiet").expect("boots");
    assert_eq!((entry.protocol, entry.start), (Protocol::Linux64, Gpa(16 * MIB + 8)));
    assert_eq!(bytes_at(&memory, 16 * MIB, 4096), vec![0x90; 4096]);
    assert_eq!(bytes_at(&memory, 16 * MIB + 4096, 8192), vec![0; 8192]);
    assert_eq!(dword(&memory, entry.info.0 + 0x202), 0x5372_6448);
    assert_eq!(string_at(&memory, u64::from(dword(&memory, entry.info.0 + 0x228))), "quiet");
}

#[test]
fn a_pvh_note_wins_over_the_64_bit_entry() {
    let memory = memory(64 * MIB);
    let note = Program { kind: 4, at: 0, file: (2048, 20), memory: 20 };
    let kernel = elf(true, 16 * MIB, &[loadable(16 * MIB, 4096, 4096, 4096), note]);
    let kernel = with_pvh_note(kernel, 2048, 16 * MIB as u32 + 64);
    let entry = try_load(&memory, &kernel, &[module("", b"cpio")], "quiet").expect("boots");
    assert_eq!((entry.protocol, entry.start), (Protocol::Pvh, Gpa(16 * MIB + 64)));
    let info = entry.info.0;
    assert_eq!((dword(&memory, info), dword(&memory, info + 4)), (0x336e_c578, 1));
    assert_eq!(dword(&memory, info + 12), 1);
    let modules = qword(&memory, info + 16);
    assert_eq!(bytes_at(&memory, qword(&memory, modules), 4), b"cpio");
    assert_eq!(qword(&memory, modules + 8), 4);
    assert_eq!(string_at(&memory, qword(&memory, info + 24)), "quiet");
    assert_eq!(bytes_at(&memory, qword(&memory, info + 32), 8), b"RSD PTR ");
    let (map, entries) = (qword(&memory, info + 40), dword(&memory, info + 48));
    assert_eq!((entries, qword(&memory, map + 8), dword(&memory, map + 16)), (5, 0x9_fc00, 1));
    let state = state(&entry);
    assert_eq!((state.gpr[gpr::RBX], state.cr0, state.cr4), (info, 0x11, 0));
    assert_eq!(state.tr.limit, 0x67);
}

#[test]
fn elf_files_with_absurd_segments_are_refused() {
    let at = 16 * MIB;
    let cases: &[(Vec<u8>, &str)] = &[
        (elf(true, at, &[]), "no loadable"),
        (elf(true, at, &[loadable(at, 4096, 4096, 100)]), "more bytes in the file"),
        (elf(true, at, &[loadable(at, 4096, 4097, 8192)]), "outside the file"),
        (elf(true, at, &[loadable(at, u64::MAX - 5, 4096, 8192)]), "outside the file"),
        (elf(true, at, &[loadable(u64::MAX - 100, 4096, 101, 4096)]), "wraps around"),
        (elf(true, at, &[loadable(at, 4096, 0, u64::MAX)]), "wraps around"),
        (elf(true, at, &[loadable(at, 4096, 16, 1 << 40)]), "outside any RAM"),
        (elf(true, at, &[loadable(1 << 50, 4096, 16, 16)]), "outside any RAM"),
        (elf(true, at, &[loadable(at, 4096, 16, 100 * MIB)]), "at least"),
        (elf(true, at, &[loadable(at, 4096, 4096, 4096), loadable(at + 4095, 4096, 10, 10)]), "overlap"),
        (elf(true, at, &[loadable(0x1_0000, 4096, 16, 16)]), "boot protocol"),
        (elf(true, at, &[loadable(0xf_0000, 4096, 16, 16)]), "BIOS"),
        (elf(true, at - 1, &[loadable(at, 4096, 16, 16)]), "entry point"),
        (elf(false, at, &[loadable(at, 4096, 16, 16)]), "neither a PVH note"),
    ];
    for (kernel, message) in cases {
        let refused = refusal(kernel);
        assert!(refused.contains(message), "{refused:?} should say {message:?}");
    }
    let mut arm = elf(true, at, &[loadable(at, 4096, 16, 16)]);
    put(&mut arm, 18, &183u16.to_le_bytes());
    assert!(refusal(&arm).contains("another processor"));
    assert!(refusal(&arm[..40]).contains("truncated"));
}

#[test]
fn a_multiboot_elf_kernel_is_laid_out_as_qemu_does_it() {
    let memory = memory(64 * MIB);
    let base = 4 * MIB;
    let kernel =
        elf(false, base + 16, &[loadable(base, 4096, 2048, 2048), loadable(base + 4096, 6144, 2048, 10000)]);
    let kernel = with_multiboot_header(kernel, 0xb0, 0, &[]);
    let modules = [module("env a b", b"NR_CPUS=1\n"), module("second", &[7; 5000])];
    let entry = try_load(&memory, &kernel, &modules, "one two").expect("boots");
    assert_eq!((entry.protocol, entry.start, entry.info), (Protocol::Multiboot, Gpa(base + 16), Gpa(0x9500)));
    let info = |word: u64| dword(&memory, 0x9500 + 4 * word);
    assert_eq!(info(0), 0x24f);
    assert_eq!((info(1), info(2), info(3)), (639, 63 << 10, 0x8000_ffff));
    assert_eq!(string_at(&memory, info(4).into()), "kernel one two");
    assert_eq!((info(12), info(11)), (0x9000, 5 * 24));
    assert_eq!((dword(&memory, 0x9000), qword(&memory, 0x9004), qword(&memory, 0x900c)), (20, 0, 0x9_fc00));
    assert_eq!(string_at(&memory, info(16).into()), "ombra");
    assert_eq!(info(5), 2);
    let table = u64::from(info(6));
    assert!(table >= base + 4096 + 10000);
    let (from, to) = (dword(&memory, table), dword(&memory, table + 4));
    assert_eq!(bytes_at(&memory, from.into(), (to - from) as usize), b"NR_CPUS=1\n");
    assert_eq!(string_at(&memory, dword(&memory, table + 8).into()), "env a b");
    assert_eq!(dword(&memory, table + 20) - dword(&memory, table + 16), 5000);
    assert_eq!(dword(&memory, table + 16) % 4096, 0);

    let state = state(&entry);
    assert_eq!((state.gpr[gpr::RAX], state.gpr[gpr::RBX]), (0x2bad_b002, 0x9500));
    assert_eq!((state.segments[seg::CS].selector.0, state.segments[seg::SS].selector.0), (8, 0x10));
    assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x11, 0, 0, 0));
}

#[test]
fn a_multiboot_kernel_may_lie_over_the_information() {
    let memory = memory(4 * MIB);
    let kernel = elf(false, 0x8018, &[loadable(0x8000, 4096, 4096, 0x5a30)]);
    let entry = try_load(&memory, &with_multiboot_header(kernel, 0x1000, 0, &[]), &[], "").expect("boots");
    assert_eq!(entry.start, Gpa(0x8018));
    assert_eq!(bytes_at(&memory, 0x8ff0, 16), [0x90; 16]);
    assert_eq!(bytes_at(&memory, 0x9500, 16), [0; 16]);
}

/// A flat multiboot image of 4 KiB with its header at 64.
fn flat(header_at: u32, load: u32, load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    with_multiboot_header(vec![0x90; 4096], 64, 1 << 16, &[header_at, load, load_end, bss_end, entry])
}

#[test]
fn a_multiboot_image_with_address_fields_is_loaded_by_them() {
    let memory = memory(16 * MIB);
    let base = 2 * MIB as u32;
    memory.write(Gpa(u64::from(base) + 4096 - 32), &[1; 64]).expect("RAM");
    let entry =
        try_load(&memory, &flat(base + 32, base, 0, base + 8192, base + 100), &[], "").expect("boots");
    assert_eq!(entry.start, Gpa(u64::from(base) + 100));
    // The header is 64 bytes into the file but 32 into memory: the first 32 bytes aren't loaded.
    assert_eq!(dword(&memory, u64::from(base) + 32), 0x1bad_b002);
    assert_eq!(bytes_at(&memory, u64::from(base) + 4096 - 33, 34), [&[0x90][..], &[0; 33]].concat());
}

#[test]
fn multiboot_headers_with_absurd_addresses_are_refused() {
    let base = 2 * MIB as u32;
    let cases: &[(Vec<u8>, &str)] = &[
        (flat(base, base + 1, 0, 0, base + 8), "load_addr is above"),
        (flat(base + 65, base, 0, 0, base + 8), "before the file's start"),
        (flat(base + 64, base, base - 1, 0, base), "load_end_addr is below"),
        (flat(base + 64, base, base + 4097, 0, base), "beyond the file's end"),
        (flat(base + 64, base, 0, base + 100, base), "bss_end_addr"),
        (flat(base + 64, base, 0, 0, base + 4096), "entry_addr"),
        (flat(0x9_f040, 0x9_f000, 0, 0, 0x9_f000), "BIOS"),
        (flat(0xffff_f040, 0xffff_f000, 0, 0, 0xffff_f000), "outside any RAM"),
        (flat(base + 64, base, 0, 100 * MIB as u32, base), "at least"),
        (with_multiboot_header(vec![0; 4096], 0, 1 << 5, &[]), "unknown features"),
        (with_multiboot_header(vec![0; 4096], 0, 0, &[]), "isn't an ELF"),
        (with_multiboot_header(vec![0; 16], 0, 1 << 16, &[]), "truncated"),
    ];
    for (kernel, message) in cases {
        let refused = refusal(kernel);
        assert!(refused.contains(message), "{refused:?} should say {message:?}");
    }
}

#[test]
fn files_of_other_kinds_are_refused_with_what_they_are() {
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(b"\x1f\x8b\x08\0\0").contains("compressed"));
    assert!(refusal(b"MZ\0\0").contains("EFI"));
    assert!(refusal(&[0x5a; 4096]).contains("neither"));
    assert!(refusal(b"\x7fELF").contains("truncated"));
}

#[test]
fn legacy_structures_lead_to_handlers_that_return() {
    let memory = memory(64 * MIB);
    try_load(&memory, &bzimage(), &[], "").expect("boots");
    assert_eq!(bytes_at(&memory, 0x40e, 2), 0x9fc0u16.to_le_bytes());
    assert_eq!(bytes_at(&memory, 0x413, 2), 639u16.to_le_bytes());
    for vector in 0..256u64 {
        let [low, high, segment_low, segment_high] = dword(&memory, 4 * vector).to_le_bytes();
        let offset = u64::from(u16::from_le_bytes([low, high]));
        assert_eq!(u16::from_le_bytes([segment_low, segment_high]), 0xf000);
        let code = bytes_at(&memory, 0xf_0000 + offset, 24);
        assert!(code.contains(&0xcf) || vector == 0x19, "INT {vector:x} has no IRET");
        if vector == 8 {
            let end_of_interrupt = [0xb0, 0x20, 0xe6, 0x20];
            assert!(code.windows(4).any(|window| window == end_of_interrupt));
        }
    }
    assert_eq!(bytes_at(&memory, 0xf_fff0, 1), [0xea]);
    assert_eq!(bytes_at(&memory, 0xf_fffe, 1), [0xfc]);
}

fn config(kernel: &Path) -> BootConfig {
    BootConfig { kernel: kernel.to_owned(), initramfs: None, cmdline: String::new() }
}

#[test]
fn files_that_cannot_be_read_are_refused_by_name() {
    let memory = memory(64 * MIB);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let facts = BoardFacts::pc(1);
    let refused = |config: &BootConfig| load(&memory, config, &facts).expect_err("must be refused");

    let missing = refused(&config(&folder.path().join("missing")));
    assert!(
        matches!(missing, BootError::Read { what: "kernel", .. }) && missing.to_string().contains("missing")
    );
    assert!(refused(&config(folder.path())).to_string().contains("is a directory"));
    assert!(refused(&config(Path::new("/dev/zero"))).to_string().contains("is a device"));

    let huge = folder.path().join("huge");
    std::fs::File::create(&huge)
        .and_then(|file| file.set_len(super::KERNEL_LIMIT + 1))
        .expect("a sparse file");
    assert!(matches!(refused(&config(&huge)), BootError::TooLarge { what: "kernel", .. }));

    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, bzimage()).expect("written");
    assert!(load(&memory, &config(&kernel), &facts).is_ok());
    let initrd = Some(Initramfs::File(folder.path().join("initrd")));
    let missing = refused(&BootConfig { initramfs: initrd, ..config(&kernel) });
    assert!(matches!(missing, BootError::Read { what: "initial RAM disk", .. }));
    let huge = refused(&BootConfig { initramfs: Some(Initramfs::File(huge)), ..config(&kernel) });
    assert!(matches!(huge, BootError::TooLarge { what: "initial RAM disk", .. }));
}

#[test]
fn multiboot_modules_are_a_list_of_files_with_arguments() {
    let memory = memory(64 * MIB);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (kernel, first, second) =
        (folder.path().join("kernel"), folder.path().join("first"), folder.path().join("sec,ond"));
    let base = 2 * MIB as u32;
    std::fs::write(&kernel, flat(base + 64, base, 0, 0, base)).expect("written");
    std::fs::write(&first, "1").expect("written");
    std::fs::write(&second, "22").expect("written");
    let doubled = second.display().to_string().replace(',', ",,");
    let list = format!("{} with arguments,{doubled}", first.display());
    let config = BootConfig { initramfs: Some(Initramfs::File(PathBuf::from(list))), ..config(&kernel) };
    load(&memory, &config, &BoardFacts::pc(1)).expect("boots");
    assert_eq!(dword(&memory, 0x9500 + 20), 2);
    let table = u64::from(dword(&memory, 0x9500 + 24));
    assert!(string_at(&memory, dword(&memory, table + 8).into()).ends_with("first with arguments"));
    assert_eq!(dword(&memory, table + 20) - dword(&memory, table + 16), 2);
}

#[test]
fn as_many_vcpus_as_the_tables_hold_and_no_more() {
    let memory = memory(64 * MIB);
    let kernel = bzimage();
    let image = Image { name: "kernel", kernel: &kernel, modules: &[], cmdline: "" };
    assert!(load_bytes(&memory, &image, &BoardFacts::pc(1000)).is_ok());
    for cpus in [4095, u32::MAX] {
        let refused = load_bytes(&memory, &image, &BoardFacts::pc(cpus)).expect_err("too many");
        assert!(matches!(refused, BootError::Tables { .. }));
    }
}

/// Real kernels: (path under `cache/guests`, memory, how they are entered).
const REAL: &[(&str, u64, Protocol)] = &[
    ("cloud/vmlinuz", 256, Protocol::Linux64),
    ("rt/vmlinuz", 256, Protocol::Linux64),
    ("686-pae/vmlinuz", 256, Protocol::Linux32),
    ("memtest86+x64.bin", 64, Protocol::Linux64),
    ("memtest86+ia32.bin", 64, Protocol::Linux32),
];

#[test]
fn real_kernels_load() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cache/guests");
    for &(name, mib, protocol) in REAL {
        let kernel = cache.join(name);
        if !kernel.is_file() {
            eprintln!("skipped: no {name} in cache/guests");
            continue;
        }
        let memory = memory(mib * MIB);
        let entry = load(&memory, &config(&kernel), &BoardFacts::pc(2)).expect(name);
        assert_eq!(entry.protocol, protocol, "{name}");
        assert_ne!(bytes_at(&memory, entry.start.0, 16), [0; 16], "{name}");
    }
}

/// Sound images of every kind.
fn sound_images() -> Vec<Vec<u8>> {
    let (base, high) = (2 * MIB as u32, 16 * MIB);
    let note = Program { kind: 4, at: 0, file: (2048, 20), memory: 20 };
    let program = loadable(high, 4096, 4096, 3 * 4096);
    vec![
        bzimage(),
        elf(true, high, &[program]),
        with_pvh_note(elf(true, high, &[program, note]), 2048, high as u32),
        with_multiboot_header(elf(false, high, &[program]), 0x100, 3, &[]),
        flat(base + 64, base, 0, 0, base),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_images_never_panic(
        kind in 0..5usize,
        changes in prop::collection::vec((0..1024usize, prop_oneof![Just(0u8), Just(0xff), Just(0x80), any::<u8>()]), 1..12),
        cut in prop::option::of(0..8192usize),
        mib in 1..40u64,
    ) {
        let mut kernel = sound_images().swap_remove(kind);
        for (at, value) in changes {
            kernel[at] = value;
        }
        kernel.truncate(cut.unwrap_or(usize::MAX));
        // Either answer is fine; a sound one must be enterable.
        if let Ok(entry) = try_load(&memory(mib * MIB), &kernel, &[module("m", b"contents")], "words") {
            prop_assert!(entry.start.0 < mib * MIB);
        }
    }

    #[test]
    fn random_files_never_panic(kernel in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = try_load(&memory(4 * MIB), &kernel, &[], "");
    }
}
