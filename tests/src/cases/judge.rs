//! What a case came to, and whether that is what it says.
//!
//! Names in expectations: every register (`rax`, `eax`, `ax`, `al`, `rip`, `rflags`, single flags in lower case, `cs`,
//! `cs.base`, `ds.limit`, `gdtr.base`, `cr3`, `dr6`, `efer`, ..), the frame at the top of the stack where a stub ended the
//! case (`frame.ip`, `frame.cs`, `frame.flags`, `frame.sp`, `frame.ss`), labels and constants. Functions: `byte`, `word`,
//! `dword`, `qword` of a physical address; `pte`, `pde`, .. of a linear one; `out`, `outs`, `ins` of a port (last value, number
//! of writes, of reads); `written`, `writes`, `reads` of an address on the bus.

use super::assemble::Program;
use super::case::Case;
use super::environment::{Mode, STUBS, load};
use super::expression::{Names, evaluate};
use super::platform::TestPlatform;
use super::registers::register;
use super::setup::{Labels, entry_level};
use engine::Exit;
use memory::GuestMemory;
use std::fmt::Write;
use x86::CpuState;

/// What a run came to.
pub(super) struct Outcome {
    pub(super) exit: Exit,
    pub(super) state: CpuState,
    pub(super) memory: GuestMemory,
    pub(super) platform: TestPlatform,
}

impl Outcome {
    /// The vector of the stub that ended the case.
    fn vector(&self) -> Option<u64> {
        let at = register(&self.state, "linear_ip")?.wrapping_sub(STUBS + 1);
        (self.exit == Exit::Halted && at < 0x1000 && at.is_multiple_of(16)).then_some(at / 16)
    }

    /// Bytes in a word of the frame that a gate pushed.
    fn frame_width(&self) -> u64 {
        if self.state.efer & x86::control::efer::LMA != 0 {
            8
        } else if self.state.cr0 & x86::control::cr0::PE == 0 {
            2
        } else {
            4
        }
    }

    /// Word `index` of the stack, physical and linear addresses being equal there.
    fn stack_word(&self, index: u64) -> u64 {
        let width = self.frame_width();
        let at = register(&self.state, "linear_sp").unwrap_or(0) + index * width;
        load(&self.memory, at, width)
    }
}

/// The end that a case names.
#[derive(Debug, PartialEq, Eq)]
enum Ends {
    Halt,
    Shutdown,
    Endless,
    Vector { vector: u64, code: Option<u64> },
}

const EXCEPTIONS: &[(&str, u64)] = &[
    ("#DE", 0),
    ("#DB", 1),
    ("#BP", 3),
    ("#OF", 4),
    ("#BR", 5),
    ("#UD", 6),
    ("#NM", 7),
    ("#DF", 8),
    ("#TS", 10),
    ("#NP", 11),
    ("#SS", 12),
    ("#GP", 13),
    ("#PF", 14),
    ("#MF", 16),
    ("#AC", 17),
    ("#XM", 19),
];

fn parse_end(text: &str, mode: Mode, names: &dyn Names) -> Result<(Ends, Option<u64>), String> {
    let (what, at) = match text.split_once(" at ") {
        Some((what, at)) => (what.trim(), Some(evaluate(at, names)?)),
        None => (text.trim(), None),
    };
    if let Some(vector) = what.strip_prefix("interrupt") {
        return Ok((Ends::Vector { vector: evaluate(vector, names)?, code: None }, at));
    }
    if what.starts_with('#') {
        let (name, code) = what.split_once('(').unwrap_or((what, ""));
        let code = match code.strip_suffix(')') {
            Some(code) => Some(evaluate(code, names)?),
            None => None,
        };
        let known = EXCEPTIONS.iter().find(|(known, _)| *known == name);
        let vector = known.ok_or_else(|| format!("no exception is called `{name}`"))?.1;
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        // Real mode pushes none; what it would have been can't be seen.
        let expected = has_code && mode.world != super::environment::World::Real;
        if expected && code.is_none() {
            return Err(format!("`{text}` wants an error code"));
        }
        return Ok((Ends::Vector { vector, code: code.filter(|_| has_code) }, at));
    }
    Ok((
        match what {
            "halt" => Ends::Halt,
            "shutdown" => Ends::Shutdown,
            "endless" => Ends::Endless,
            other => return Err(format!("nothing ends with `{other}`")),
        },
        at,
    ))
}

/// Names at the end of a run.
struct Final<'a> {
    case: &'a Case,
    program: &'a Program,
    outcome: &'a Outcome,
    /// Words between the stack's top and the return address.
    skip: u64,
}

impl Names for Final<'_> {
    fn name(&self, name: &str) -> Option<u64> {
        let frame = ["ip", "cs", "flags", "sp", "ss"];
        if let Some(field) = name.strip_prefix("frame.") {
            let index = frame.iter().position(|known| *known == field)?;
            return Some(self.outcome.stack_word(self.skip + index as u64));
        }
        register(&self.outcome.state, name).or_else(|| Labels(self.program).name(name))
    }

    fn call(&self, function: &str, argument: u64) -> Option<u64> {
        let Outcome { memory, platform, .. } = self.outcome;
        let port = || platform.ports.get(&(argument as u16)).copied().unwrap_or_default();
        let bus = || platform.bus.get(&argument).copied().unwrap_or_default();
        Some(match function {
            "byte" => load(memory, argument, 1),
            "word" => load(memory, argument, 2),
            "dword" => load(memory, argument, 4),
            "qword" => load(memory, argument, 8),
            "out" => port().value,
            "outs" => port().writes,
            "ins" => port().reads,
            "written" => bus().value,
            "writes" => bus().writes,
            "reads" => bus().reads,
            level => {
                let at = self.case.mode.entry(memory, entry_level(level)?, argument)?;
                load(memory, at, self.case.mode.entry_bytes())
            }
        })
    }
}

/// Everything in which `outcome` differs from what the case says.
pub(super) fn judge(case: &Case, program: &Program, outcome: &Outcome) -> Result<Vec<String>, String> {
    let (ends, at) = parse_end(&case.ends, case.mode, &Labels(program))?;
    let mut complaints = Vec::new();
    let found = match (outcome.exit, outcome.vector()) {
        (Exit::Shutdown, _) => Ends::Shutdown,
        (Exit::Budget | Exit::Kicked, _) => Ends::Endless,
        (Exit::Halted, None) => Ends::Halt,
        (Exit::Halted, Some(vector)) => {
            let code = matches!(&ends, Ends::Vector { code: Some(_), .. });
            Ends::Vector { vector, code: code.then(|| outcome.stack_word(0) & 0xffff_ffff) }
        }
    };
    let skip = match &found {
        Ends::Vector { code: Some(_), .. } => 1,
        _ => 0,
    };
    if found != ends {
        let mut stack = String::new();
        for index in 0..6 {
            let _ = write!(stack, " {:x}", outcome.stack_word(index));
        }
        complaints.push(format!("ends with {found:x?} instead of {ends:x?}; the stack begins with{stack}"));
    }
    let names = Final { case, program, outcome, skip };
    if let (Some(at), Ends::Vector { .. } | Ends::Halt) = (at, &found) {
        let ip = match &found {
            Ends::Halt => outcome.state.rip,
            _ => outcome.stack_word(skip),
        };
        if ip != at {
            complaints.push(format!("at {ip:#x} instead of {at:#x}"));
        }
    }
    for (left, right) in &case.expect {
        let (found, wanted) = (evaluate(left, &names)?, evaluate(right, &names)?);
        if found != wanted {
            complaints.push(format!("{left} is {found:#x}, not {wanted:#x}"));
        }
    }
    Ok(complaints)
}
