//! From directives to a case's initial memory and registers.

use super::assemble::Program;
use super::case::{Case, Setting};
use super::environment::{constant, descriptor, furnish, gate, load, registers, store};
use super::expression::{Names, evaluate, split_outside};
use super::registers::register_mut;
use engine::Event;
use memory::GuestMemory;
use std::collections::BTreeMap;
use x86::{CpuState, Gpa};

/// What comes from outside while the vCPU waits.
pub(super) enum Wake {
    Event(Event),
    /// A device writes a byte.
    Store(Gpa, u8),
}

/// A case ready to run.
pub(super) struct Start {
    pub(super) state: CpuState,
    pub(super) answers: BTreeMap<u16, u64>,
    pub(super) on_halt: Option<Wake>,
}

/// Names while a case is set up: labels and constants.
pub(super) struct Labels<'a>(pub(super) &'a Program);

impl Names for Labels<'_> {
    fn name(&self, name: &str) -> Option<u64> {
        self.0.symbols.get(name).copied().or_else(|| constant(name))
    }

    fn call(&self, _: &str, _: u64) -> Option<u64> {
        None
    }
}

/// Descriptor kinds: attributes as in a descriptor's bits 40-55, without the limit's; default limit in bytes.
const KINDS: &[(&str, u16, u64)] = &[
    ("code16", 0x009b, 0xffff),
    ("code32", 0x409b, 0xffff_ffff),
    ("code64", 0x209b, 0xffff_ffff),
    ("data16", 0x0093, 0xffff),
    ("data32", 0x4093, 0xffff_ffff),
    ("ldt", 0x0082, 0xff),
    ("tss16", 0x0081, 0x2b),
    ("tss32", 0x0089, 0x67),
    ("tss64", 0x0089, 0x67),
];

/// Words that change a descriptor: bits to clear, bits to set.
const WORDS: &[(&str, u16, u16)] = &[
    ("absent", 0x80, 0),
    ("conforming", 0, 4),
    ("expand-down", 0, 4),
    ("read-only", 2, 0),
    ("execute-only", 2, 0),
    ("unaccessed", 1, 0),
    ("busy", 0, 2),
];

/// Gate kinds: type and present bit.
const GATES: &[(&str, u64)] = &[
    ("callgate16", 0x84),
    ("task", 0x85),
    ("int16", 0x86),
    ("trap16", 0x87),
    ("callgate32", 0x8c),
    ("callgate64", 0x8c),
    ("int32", 0x8e),
    ("int64", 0x8e),
    ("trap32", 0x8f),
    ("trap64", 0x8f),
];

/// Fields of TSSs: name, offset and bytes in the 32-bit form, offset in the 16-bit one.
const TSS_FIELDS: &[(&str, u64, u64, Option<u64>)] = &[
    ("link", 0, 2, Some(0)),
    ("esp0", 4, 4, Some(2)),
    ("ss0", 8, 2, Some(4)),
    ("cr3", 28, 4, None),
    ("eip", 32, 4, Some(14)),
    ("eflags", 36, 4, Some(16)),
    ("eax", 40, 4, Some(18)),
    ("ecx", 44, 4, Some(20)),
    ("edx", 48, 4, Some(22)),
    ("ebx", 52, 4, Some(24)),
    ("esp", 56, 4, Some(26)),
    ("ebp", 60, 4, Some(28)),
    ("esi", 64, 4, Some(30)),
    ("edi", 68, 4, Some(32)),
    ("es", 72, 2, Some(34)),
    ("cs", 76, 2, Some(36)),
    ("ss", 80, 2, Some(38)),
    ("ds", 84, 2, Some(40)),
    ("fs", 88, 2, None),
    ("gs", 92, 2, None),
    ("ldt", 96, 2, Some(42)),
    ("trap", 100, 2, None),
    ("iomap", 102, 2, None),
];

/// Fills memory and makes the registers for a case.
pub(super) fn prepare(case: &Case, program: &Program, memory: &GuestMemory) -> Result<Start, String> {
    furnish(memory, case.mode);
    for (at, bytes) in &program.parts {
        memory.write(Gpa(*at), bytes).map_err(|error| error.to_string())?;
    }
    let mut start = Start { state: registers(case.mode), answers: BTreeMap::new(), on_halt: None };
    for setting in &case.setup {
        apply(case, setting, program, memory, &mut start)
            .map_err(|error| format!("line {}: {}: {error}", setting.line, setting.directive))?;
    }
    Ok(start)
}

fn apply(
    case: &Case,
    setting: &Setting,
    program: &Program,
    memory: &GuestMemory,
    start: &mut Start,
) -> Result<(), String> {
    let names = Labels(program);
    let value = |text: &str| evaluate(text, &names);
    let put = |at: u64, bytes: u64, value: u64| {
        if store(memory, at, bytes, value) { Ok(()) } else { Err(format!("{at:#x} is not RAM")) }
    };
    let rest = setting.rest.as_str();
    match setting.directive.as_str() {
        "set" => {
            for part in split_outside(rest, ',') {
                let (name, change, text) = assignment(part)?;
                let value = value(text)?;
                if !register_mut(&mut start.state, name, &mut |old| change.apply(old, value)) {
                    return Err(format!("no register is called `{name}`"));
                }
            }
            Ok(())
        }
        width @ ("byte" | "word" | "dword" | "qword") => {
            let bytes = match width {
                "byte" => 1,
                "word" => 2,
                "dword" => 4,
                _ => 8,
            };
            let (at, _, values) = assignment(rest)?;
            let mut at = value(at)?;
            for text in split_outside(values, ',') {
                put(at, bytes, value(text)?)?;
                at += bytes;
            }
            Ok(())
        }
        level @ ("pte" | "pde" | "pdpte" | "pml4e" | "pml5e") => {
            let (linear, change, text) = assignment(rest)?;
            let linear = value(linear)?;
            let at = case.mode.entry(memory, entry_level(level).unwrap_or(0), linear);
            let at = at.ok_or_else(|| format!("there is no {level} in this mode"))?;
            let bytes = case.mode.entry_bytes();
            put(at, bytes, change.apply(load(memory, at, bytes), value(text)?))
        }
        "supervisor" => {
            let (from, to) = rest.split_once("..").ok_or("`FROM .. TO` is wanted")?;
            for page in (value(from)?..value(to)?).step_by(0x1000) {
                let at = case.mode.entry(memory, 0, page).ok_or("there is no paging in this mode")?;
                put(at, 1, load(memory, at, 1) & !x86::paging::pte::US)?;
            }
            Ok(())
        }
        table @ ("gdt" | "ldt" | "gate") => {
            let (index, _, text) = assignment(rest)?;
            let index = value(index)?;
            let (low, high) = descriptor_text(text, &value)?;
            let at = match table {
                "gdt" => start.state.gdtr.base + (index & !7),
                "ldt" => start.state.ldtr.base + (index & !7),
                _ => start.state.idtr.base + index * if case.mode.is_long() { 16 } else { 8 },
            };
            put(at, 8, low)?;
            // Call gates and system segments have 16 bytes only where long mode is active.
            let wide = case.mode.is_long() && low >> 44 & 1 == 0 && !text.starts_with("raw");
            if wide { put(at + 8, 8, high) } else { Ok(()) }
        }
        "tss32" | "tss16" => {
            let wide = setting.directive == "tss32";
            let (at, fields) = rest.split_once(':').ok_or("`ADDRESS: FIELD=VALUE ..` is wanted")?;
            let at = value(at)?;
            for field in fields.split_whitespace() {
                let (name, text) = field.split_once('=').ok_or("`FIELD=VALUE` is wanted")?;
                let known = TSS_FIELDS.iter().find(|(known, ..)| *known == name);
                let Some(&(_, offset, bytes, narrow)) = known else {
                    return Err(format!("a TSS has no `{name}`"));
                };
                let (offset, bytes) = match narrow {
                    _ if wide => (offset, bytes),
                    Some(offset) => (offset, 2),
                    None => return Err(format!("a 16-bit TSS has no `{name}`")),
                };
                put(at + offset, bytes, value(text)?)?;
            }
            Ok(())
        }
        "port" => {
            let (port, _, text) = assignment(rest)?;
            start.answers.insert(value(port)? as u16, value(text)?);
            Ok(())
        }
        "on-halt" => {
            start.on_halt = Some(match rest.split_once(' ') {
                None if rest == "nmi" => Wake::Event(Event::Nmi),
                Some(("interrupt", vector)) => Wake::Event(Event::Interrupt(value(vector)? as u8)),
                Some(("store", text)) => {
                    let (at, _, text) = assignment(text)?;
                    Wake::Store(Gpa(value(at)?), value(text)? as u8)
                }
                _ => {
                    return Err("`nmi`, `interrupt VECTOR` or `store ADDRESS = VALUE` is wanted".to_owned());
                }
            });
            Ok(())
        }
        other => Err(format!("no directive is called `{other}`")),
    }
}

/// How far above the page table a function or directive looks.
pub(super) fn entry_level(name: &str) -> Option<usize> {
    ["pte", "pde", "pdpte", "pml4e", "pml5e"].iter().position(|known| *known == name)
}

#[derive(Clone, Copy)]
enum Change {
    Replace,
    Or,
    And,
}

impl Change {
    fn apply(self, old: u64, value: u64) -> u64 {
        match self {
            Self::Replace => value,
            Self::Or => old | value,
            Self::And => old & value,
        }
    }
}

fn assignment(text: &str) -> Result<(&str, Change, &str), String> {
    let (left, right) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`"))?;
    let (left, change) = if let Some(left) = left.strip_suffix('|') {
        (left, Change::Or)
    } else if let Some(left) = left.strip_suffix('&') {
        (left, Change::And)
    } else {
        (left, Change::Replace)
    };
    Ok((left.trim(), change, right.trim()))
}

/// The two halves of a descriptor.
fn descriptor_text(text: &str, value: &dyn Fn(&str) -> Result<u64, String>) -> Result<(u64, u64), String> {
    let mut words = text.split_whitespace();
    let kind = words.next().unwrap_or_default();
    if kind == "raw" {
        return Ok((value(words.next().unwrap_or_default())?, 0));
    }
    if let Some(&(_, access)) = GATES.iter().find(|(known, _)| *known == kind) {
        let target = words.next().unwrap_or_default();
        let (selector, offset) = target.split_once(':').unwrap_or((target, "0"));
        let (selector, offset) = (value(selector)?, value(offset)?);
        let (mut access, mut count) = (access, 0);
        for word in words {
            match word.split_once('=') {
                Some(("dpl", text)) => access |= (value(text)? & 3) << 5,
                Some(("count" | "ist", text)) => count = value(text)?,
                None if word == "absent" => access &= !0x80,
                _ => return Err(format!("a gate has no `{word}`")),
            }
        }
        return Ok((gate(selector, offset, access, count), offset >> 32));
    }
    let known = KINDS.iter().find(|(known, ..)| *known == kind);
    let Some(&(_, mut attributes, mut limit)) = known else {
        return Err(format!("no descriptor is called `{kind}`"));
    };
    let mut base = 0;
    for word in words {
        match word.split_once('=') {
            Some(("base", text)) => base = value(text)?,
            Some(("limit", text)) => limit = value(text)?,
            Some(("dpl", text)) => attributes |= (value(text)? as u16 & 3) << 5,
            _ => match WORDS.iter().find(|(known, ..)| *known == word) {
                Some((_, clear, set)) => attributes = attributes & !clear | set,
                None => return Err(format!("a descriptor has no `{word}`")),
            },
        }
    }
    if limit > 0xf_ffff {
        attributes |= 0x8000;
        limit >>= 12;
    }
    Ok((descriptor(base, limit, attributes), base >> 32))
}
