//! Registers by name, for directives that set them and expectations that read them.

use x86::CpuState;
use x86::descriptor::{Attributes, Selector};
use x86::flags::Rflags;
use x86::state::{Segment, gpr, seg};

const WORDS: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// A general register's index, lowest bit and width in bits.
fn general(name: &str) -> Option<(usize, u32, u32)> {
    let word = |name: &str| WORDS.iter().position(|known| *known == name);
    if let Some(index) = word(name) {
        return Some((index, 0, 16));
    }
    if let Some(index) = name.strip_prefix('e').and_then(word) {
        return Some((index, 0, 32));
    }
    if let Some(index) = name.strip_prefix('r').and_then(word) {
        return Some((index, 0, 64));
    }
    let byte = ["al", "cl", "dl", "bl", "ah", "ch", "dh", "bh"].iter().position(|known| *known == name);
    if let Some(index) = byte {
        return Some((index % 4, if index < 4 { 0 } else { 8 }, 8));
    }
    let number = name.strip_prefix('r')?;
    let (digits, width) = match number.strip_suffix('d') {
        Some(digits) => (digits, 32),
        None => (number, 64),
    };
    let index = digits.parse().ok()?;
    (8..16).contains(&index).then_some((index, 0, width))
}

/// Lets `change` compute a register's new value from its old one. False: there is no such register.
pub(super) fn register_mut(state: &mut CpuState, name: &str, change: &mut dyn FnMut(u64) -> u64) -> bool {
    if let Some((index, shift, width)) = general(name) {
        let mask = (u64::MAX >> (64 - width)) << shift;
        let old = state.gpr[index];
        state.gpr[index] = old & !mask | (change((old & mask) >> shift) << shift) & mask;
        return true;
    }
    if name == "rflags" {
        state.rflags = Rflags::from_bits_retain(change(state.rflags.bits()));
        return true;
    }
    if name == "cpl" {
        state.cpl = change(state.cpl.into()) as u8;
        return true;
    }
    if name == "pkru" {
        state.vector.pkru = change(state.vector.pkru.into()) as u32;
        return true;
    }
    if let Some((table, field)) = name.split_once('.') {
        if let Some(segment) = segment_mut(state, table) {
            return segment_field(segment, field, change);
        }
        let table = match table {
            "gdtr" => &mut state.gdtr,
            "idtr" => &mut state.idtr,
            _ => return false,
        };
        match field {
            "base" => table.base = change(table.base),
            "limit" => table.limit = change(table.limit.into()) as u16,
            _ => return false,
        }
        return true;
    }
    if let Some(segment) = segment_mut(state, name) {
        segment.selector = Selector(change(segment.selector.0.into()) as u16);
        return true;
    }
    let Some(register) = plain_mut(state, name) else { return false };
    *register = change(*register);
    true
}

fn segment_field(segment: &mut Segment, field: &str, change: &mut dyn FnMut(u64) -> u64) -> bool {
    match field {
        "base" => segment.base = change(segment.base),
        "limit" => segment.limit = change(segment.limit.into()) as u32,
        "attributes" => segment.attributes = Attributes(change(segment.attributes.0.into()) as u16),
        _ => return false,
    }
    true
}

fn segment_mut<'a>(state: &'a mut CpuState, name: &str) -> Option<&'a mut Segment> {
    match name {
        "tr" => Some(&mut state.tr),
        "ldtr" => Some(&mut state.ldtr),
        _ => SEGMENTS.iter().position(|known| *known == name).map(|index| &mut state.segments[index]),
    }
}

fn plain_mut<'a>(state: &'a mut CpuState, name: &str) -> Option<&'a mut u64> {
    Some(match name {
        "rip" => &mut state.rip,
        "cr0" => &mut state.cr0,
        "cr2" => &mut state.cr2,
        "cr3" => &mut state.cr3,
        "cr4" => &mut state.cr4,
        "dr0" => &mut state.dr[0],
        "dr1" => &mut state.dr[1],
        "dr2" => &mut state.dr[2],
        "dr3" => &mut state.dr[3],
        "dr6" => &mut state.dr6,
        "dr7" => &mut state.dr7,
        "efer" => &mut state.efer,
        "star" => &mut state.star,
        "lstar" => &mut state.lstar,
        "cstar" => &mut state.cstar,
        "sfmask" => &mut state.sfmask,
        "kernel_gs_base" => &mut state.kernel_gs_base,
        "sysenter_cs" => &mut state.sysenter_cs,
        "sysenter_esp" => &mut state.sysenter_esp,
        "sysenter_eip" => &mut state.sysenter_eip,
        "xcr0" => &mut state.vector.xcr0,
        _ => return None,
    })
}

/// Single flags, by their lower-case names.
const FLAGS: &[(&str, u32)] = &[
    ("cf", 0),
    ("pf", 2),
    ("af", 4),
    ("zf", 6),
    ("sf", 7),
    ("tf", 8),
    ("if", 9),
    ("df", 10),
    ("of", 11),
    ("nt", 14),
    ("rf", 16),
    ("vm", 17),
    ("ac", 18),
    ("vif", 19),
    ("vip", 20),
];

/// A register's value. Flags read as 0 or 1.
pub(super) fn register(state: &CpuState, name: &str) -> Option<u64> {
    match name {
        "iopl" => return Some(state.rflags.iopl().into()),
        "nmi_blocked" => return Some(state.nmi_blocked.into()),
        "linear_ip" => return Some(state.segments[seg::CS].base.wrapping_add(state.rip)),
        "linear_sp" => {
            let stack = state.segments[seg::SS];
            let mask = if state.segments[seg::CS].attributes.is_long() && state.efer & 1 << 10 != 0 {
                u64::MAX
            } else if stack.attributes.is_big() {
                0xffff_ffff
            } else {
                0xffff
            };
            let base = if mask == u64::MAX { 0 } else { stack.base };
            return Some(base.wrapping_add(state.gpr[gpr::RSP] & mask));
        }
        _ => {}
    }
    if let Some((_, bit)) = FLAGS.iter().find(|(known, _)| *known == name) {
        return Some(state.rflags.bits() >> bit & 1);
    }
    let mut copy = state.clone();
    let mut value = 0;
    register_mut(&mut copy, name, &mut |old| {
        value = old;
        old
    })
    .then_some(value)
}
