//! What a run of the oracle found, readable.

use super::case::{Initial, Outcome};
use super::generate::Case;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, OpKind, Register};
use std::collections::BTreeMap;
use std::fmt::Write;
use x86::Rflags;

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that ran.
    pub cases: u64,
    /// How the cases ended on the host, by vector.
    pub vectors: BTreeMap<u32, u64>,
    /// Cases per CPUID feature; every feature that the host offers is there.
    pub features: BTreeMap<String, u64>,
    /// Cases that differed.
    pub mismatches: u64,
    /// The first cases that differed, shrunk, as text.
    pub details: Vec<String>,
    /// How often an instruction was the one that differed.
    pub families: BTreeMap<String, u64>,
}

/// Names of the general registers in encoding order.
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// One difference between host and engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// What differs.
    pub what: String,
    /// The host's and the engine's value.
    pub values: String,
}

fn differ(all: &mut Vec<Difference>, what: &str, host: u64, engine: u64) {
    if host != engine {
        all.push(Difference { what: what.to_owned(), values: format!("host {host:#x}, engine {engine:#x}") });
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All differences that count between two outcomes of `case`.
#[must_use]
pub fn compare(case: &Case, host: &Outcome, engine: &Outcome) -> Vec<Difference> {
    let mut all = Vec::new();
    differ(&mut all, "vector", u64::from(host.vector), u64::from(engine.vector));
    let code = |outcome: &Outcome| match outcome.vector {
        // Linux says "present" for all addresses of its own, so as not to tell what is mapped; to it the last page of the
        // lower half belongs, too.
        // The guest has system pages of its own where the host has nothing.
        14 if outcome.cr2 >= 0x7fff_ffff_f000 || super::guest::is_system(outcome.cr2) => {
            u64::from(outcome.code & !1)
        }
        _ => u64::from(outcome.code),
    };
    differ(&mut all, "error code", code(host), code(engine));
    differ(&mut all, "cr2", host.cr2, engine.cr2);
    differ(&mut all, "rip", host.rip, engine.rip);
    for (i, name) in NAMES.iter().enumerate() {
        differ(&mut all, name, host.gpr[i], engine.gpr[i]);
    }
    let mask = !undefined_at(case, host.rip).bits();
    if (host.rflags ^ engine.rflags) & mask != 0 {
        let flags = Rflags::from_bits_retain((host.rflags ^ engine.rflags) & mask);
        all.push(Difference {
            what: "rflags".to_owned(),
            values: format!("host {:#x}, engine {:#x}: {flags:?}", host.rflags, engine.rflags),
        });
    }
    let (a, b) = (&host.vectors, &engine.vectors);
    for i in 0..32 {
        if a.zmm[i] != b.zmm[i] {
            all.push(Difference {
                what: format!("zmm{i}"),
                values: format!("\n      host   {}\n      engine {}", hex(&a.zmm[i]), hex(&b.zmm[i])),
            });
        }
    }
    for i in 0..8 {
        differ(&mut all, &format!("k{i}"), a.k[i], b.k[i]);
    }
    differ(&mut all, "mxcsr", u64::from(a.mxcsr), u64::from(b.mxcsr));
    let word = |bytes: &[u8; 160], at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    differ(&mut all, "fcw", word(&a.x87, 0), word(&b.x87, 0));
    differ(&mut all, "fsw", word(&a.x87, 2), word(&b.x87, 2));
    differ(&mut all, "ftw", u64::from(a.x87[4]), u64::from(b.x87[4]));
    // FOP, FIP and FDP are left out: they hold where the instruction ran.
    for i in 0..8 {
        let at = 32 + 16 * i;
        if a.x87[at..at + 10] != b.x87[at..at + 10] {
            all.push(Difference {
                what: format!("st{i}"),
                values: format!("host {}, engine {}", hex(&a.x87[at..at + 10]), hex(&b.x87[at..at + 10])),
            });
        }
    }
    let different: Vec<usize> = (0..host.data.len()).filter(|&i| host.data[i] != engine.data[i]).collect();
    if let (Some(&first), Some(&last)) = (different.first(), different.last()) {
        let end = (last + 1).min(first + 32);
        all.push(Difference {
            what: "memory".to_owned(),
            values: format!(
                "{} bytes from {:#x}: host {}, engine {}",
                different.len(),
                super::case::DATA + first as u64,
                hex(&host.data[first..end]),
                hex(&engine.data[first..end])
            ),
        });
    }
    all.retain(|difference| !super::vendor::is_open(case, host, &difference.what));
    if super::vendor::is_amd() {
        all.retain(|difference| !super::vendor::forgives(case, host, engine, &difference.what));
    }
    all
}

/// The flags that are undefined where a case ended.
fn undefined_at(case: &Case, rip: u64) -> Rflags {
    if let Some((.., before)) = case.instructions.iter().find(|&&(ip, ..)| ip == rip) {
        return *before;
    }
    let all = case.instructions.iter().fold(Rflags::empty(), |all, &(.., before)| all | before);
    let end = case.initial.rip + case.initial.code_len;
    if rip == end + 1 { case.undefined } else { all | case.undefined }
}

/// The code of a case, one line an instruction.
#[must_use]
pub fn disassemble(case: &Case) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    for &(ip, len, _) in &case.instructions {
        let at = (ip - case.initial.rip) as usize;
        let bytes = &case.initial.code[at..at + len];
        if bytes.iter().all(|&byte| byte == 0x90) {
            continue;
        }
        let instruction = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let plain = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x} ");
            text
        });
        let _ = writeln!(text, "    {ip:#x}: {plain:<45} {line}");
    }
    text
}

/// Where memory operands lie if the registers are still those of the start.
fn operands(case: &Case) -> Vec<(u64, u64)> {
    let initial = &case.initial;
    let address = |&(ip, len, _): &(u64, usize, Rflags)| {
        let at = (ip - initial.rip) as usize;
        let instruction =
            Decoder::with_ip(64, &initial.code[at..at + len], ip, DecoderOptions::NONE).decode();
        let operand = instruction.op_kinds().position(|kind| kind == OpKind::Memory)?;
        let address = instruction.virtual_address(operand as u32, 0, |register, _, _| match register {
            Register::FS => Some(super::case::FS_BASE),
            Register::GS => Some(super::case::GS_BASE),
            register if register.is_gpr() => Some(initial.gpr[register.full_register().number()]),
            _ => Some(0),
        })?;
        Some((ip, address))
    };
    case.instructions.iter().filter_map(address).collect()
}

/// A mismatch as text.
#[must_use]
pub fn describe(case: &Case, differences: &[Difference]) -> String {
    let mut text = format!("case {:#x} ({:?})\n{}", case.seed, case.shape, disassemble(case));
    let Initial { gpr, rflags, vector, .. } = &case.initial;
    for (row, names) in NAMES.chunks(4).enumerate() {
        text.push_str("    ");
        for (column, name) in names.iter().enumerate() {
            let _ = write!(text, "{name:>3} {:016x}  ", gpr[4 * row + column]);
        }
        text.push('\n');
    }
    let fcw = u16::from_le_bytes([vector.x87[0], vector.x87[1]]);
    let fsw = u16::from_le_bytes([vector.x87[2], vector.x87[3]]);
    let _ = writeln!(
        text,
        "    rflags {rflags:#x} mxcsr {:#x} fcw {fcw:#x} fsw {fsw:#x} ftw {:#x}",
        vector.mxcsr, vector.x87[4]
    );
    let masks = vector.k.iter().fold(String::new(), |mut text, k| {
        let _ = write!(text, " {k:x}");
        text
    });
    let _ = writeln!(text, "    k{masks}");
    for (ip, operand) in operands(case) {
        let _ = writeln!(text, "    {ip:#x}: operand at {operand:#x}");
    }
    for difference in differences {
        let _ = writeln!(text, "  {}: {}", difference.what, difference.values);
    }
    text
}
