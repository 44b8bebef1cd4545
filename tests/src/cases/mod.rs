//! Engine cases: short pieces of assembler with what they must come to, for what the oracle can't see - mode switches, gates,
//! faults and their order, page tables, events.
//!
//! The cases are the files in `tests/engine`; `case.rs` describes their format. `tests/engine.rs` gives each to every engine,
//! whole and in steps of one instruction. Nothing here knows which engine it is.

mod assemble;
mod case;
pub(crate) mod environment;
mod expression;
mod judge;
pub(crate) mod platform;
mod registers;
mod setup;

pub use assemble::is_available;
pub use case::{Case, parse};

use crate::oracle::guest::{MakeEngine, host_cpuid};
use engine::{Budget, Exit, Groups, Kicker, Setup, VcpuId};
use judge::Outcome;
use memory::{GuestMemory, Layout, Region};
use platform::TestPlatform;
use setup::Wake;
use std::fmt::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use x86::Gpa;
use x86::cpuid::Cpuid;

/// RAM from 0 and from 4 GiB.
const RAM: u64 = 16 << 20;
/// What two runs of a case must have left alike.
const COMPARED: usize = 1 << 20;

/// The CPUID table that cases see: the host's instructions, and every system feature whether or not the host has it.
#[must_use]
pub fn cpuid() -> Cpuid {
    let mut table = host_cpuid();
    let highest = table.leaf_mut(0, 0);
    highest.eax = highest.eax.max(0xd);
    // GenuineIntel on every host: what vendors do differently is a matter of the case.
    (highest.ebx, highest.edx, highest.ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
    let one = table.leaf_mut(1, 0);
    // MONITOR, PCID, x2APIC, XSAVE; VME, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE-36, CLFLUSH.
    one.ecx |= 1 << 3 | 1 << 17 | 1 << 21 | 1 << 26;
    one.edx |= 0b1010_1111_1011_0111_1110;
    // MWAIT that masked interrupts end.
    table.leaf_mut(5, 0).ecx |= 0b11;
    let seven = table.leaf_mut(7, 0);
    // FSGSBASE, SMEP, INVPCID, SMAP; UMIP, PKU, LA57.
    seven.ebx |= 1 << 0 | 1 << 7 | 1 << 10 | 1 << 20;
    seven.ecx |= 1 << 2 | 1 << 3 | 1 << 16;
    let extended = table.leaf_mut(0x8000_0000, 0);
    extended.eax = extended.eax.max(0x8000_0008);
    // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    let more = table.leaf_mut(0x8000_0001, 0);
    more.edx |= 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
    // SSE4a is AMD's, and decides what is fetched.
    more.ecx &= !(1 << 6);
    let widths = table.leaf_mut(0x8000_0008, 0);
    widths.eax = widths.eax & !0xffff | 57 << 8 | 46;
    table
}

/// How long a case may take that runs without a budget.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a case on an engine: whole, in steps, and, if it comes to an end, without a budget, as machines run.
///
/// # Errors
/// Everything in which the engine differs from what the case says, or what is wrong with the case.
pub fn run(case: &Case, make: &MakeEngine<'_>) -> Result<(), String> {
    let program =
        assemble::assemble(&case.text, case.mode, case.first_line).map_err(|error| report(case, &[error]))?;
    let attempt = |budget| attempt(case, &program, make, budget).map_err(|error| report(case, &[error]));
    let whole = attempt(Budget::Instructions(u64::MAX))?;
    let mut complaints = judge::judge(case, &program, &whole).map_err(|error| report(case, &[error]))?;
    if complaints.is_empty() {
        let stepped = attempt(Budget::Instructions(1))?;
        complaints.extend(differences("in steps", &whole, &stepped));
    }
    if complaints.is_empty() && matches!(whole.exit, Exit::Halted | Exit::Shutdown) {
        let unlimited = attempt(Budget::Unlimited)?;
        complaints.extend(differences("without a budget", &whole, &unlimited));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    Err(format!("{}\n{}", report(case, &complaints), whole.state))
}

fn report(case: &Case, complaints: &[String]) -> String {
    let mut text = format!("{}: {} ({})", case.place, case.name, case.manual);
    for complaint in complaints {
        let _ = write!(text, "\n  {complaint}");
    }
    text
}

/// One run in pieces of a budget.
fn attempt(
    case: &Case,
    program: &assemble::Program,
    make: &MakeEngine<'_>,
    budget: Budget,
) -> Result<Outcome, String> {
    let region = |start| Region { start: Gpa(start), len: RAM };
    let layout = Layout::new(vec![region(0), region(1 << 32)]).map_err(|error| error.to_string())?;
    let memory = GuestMemory::new(layout).map_err(|error| error.to_string())?;
    let start = setup::prepare(case, program, &memory)?;
    let broke = |error: engine::EngineError| format!("the engine broke: {error}");
    let engine = make(Setup { memory: memory.clone(), cpuid: cpuid(), tsc_offset: 0 }).map_err(broke)?;
    let mut vcpu = engine.create_vcpu(VcpuId(0)).map_err(broke)?;
    let mut platform = TestPlatform::new(memory.clone(), vcpu.kicker(), start.answers);
    *vcpu.state(Groups::all()).map_err(broke)? = start.state;
    let mut on_halt = start.on_halt;
    let mut left = case.budget;
    // Kicks are no progress; a vCPU that gives nothing else is stuck.
    let mut runs = case.budget * 2 + 100;
    let _alarm = (budget == Budget::Unlimited).then(|| Alarm::set(vcpu.kicker()));
    let exit = loop {
        let before = vcpu.instructions();
        let piece = match budget {
            Budget::Instructions(step) => Budget::Instructions(step.min(left)),
            Budget::Unlimited => Budget::Unlimited,
        };
        let exit = vcpu.run(piece, &mut platform).map_err(broke)?;
        left = left.saturating_sub(vcpu.instructions() - before);
        runs -= 1;
        match exit {
            Exit::Halted => match on_halt.take() {
                Some(Wake::Event(event)) => platform.raise(event),
                Some(Wake::Store(at, byte)) => {
                    memory.write(at, &[byte]).map_err(|error| error.to_string())?;
                }
                None => break exit,
            },
            Exit::Shutdown => break exit,
            Exit::Budget | Exit::Kicked if left == 0 || runs == 0 => break Exit::Budget,
            Exit::Budget | Exit::Kicked => {}
        }
    };
    let state = vcpu.state(Groups::all()).map_err(broke)?.clone();
    Ok(Outcome { exit, state, memory, platform })
}

/// Kicks a vCPU again and again when [`PATIENCE`] is over, unless it is dropped before.
struct Alarm {
    _dropped: Sender<()>,
}

impl Alarm {
    fn set(kicker: Kicker) -> Self {
        let (alarm, dropped) = mpsc::channel();
        std::thread::spawn(move || {
            let mut patience = PATIENCE;
            while dropped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                patience = Duration::from_millis(1);
                kicker.kick();
            }
        });
        Self { _dropped: alarm }
    }
}

/// In what a run came to something else than the one in one piece. `how` it was run.
fn differences(how: &str, whole: &Outcome, stepped: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if whole.exit != stepped.exit {
        found.push(format!("{how} it ends with {:?}, not {:?}", stepped.exit, whole.exit));
    }
    if whole.state != stepped.state {
        found.push(format!("{how} it ends in another state:\n{}\nwhole:", stepped.state));
    }
    if whole.platform.ports != stepped.platform.ports || whole.platform.bus != stepped.platform.bus {
        found.push(format!("{how} the devices see other accesses"));
    }
    let contents = |outcome: &Outcome| {
        let mut bytes = vec![0; COMPARED];
        let _ = outcome.memory.read(Gpa(0), &mut bytes);
        bytes
    };
    let (one, other) = (contents(whole), contents(stepped));
    if let Some(at) = one.iter().zip(&other).position(|(a, b)| a != b) {
        found.push(format!("{how} the byte at {at:#x} is {:#x}, not {:#x}", other[at], one[at]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<(), String> {
        let cases = parse("f.s", &format!("#: case c\n#: manual m\n{text}")).expect("a sound file");
        run(&cases[0], &crate::interpreter)
    }

    #[test]
    fn wrong_expectations_are_told() {
        if !is_available() {
            eprintln!("skipped: GNU as and ld are missing");
            return;
        }
        assert_eq!(outcome("#: expect eax = 5\n mov eax, 5\n hlt\n"), Ok(()));
        for (text, complaint) in [
            ("#: expect eax = 6\n mov eax, 5\n hlt\n", "eax is 0x5, not 0x6"),
            ("#: ends #UD at there\n hlt\nthere: hlt\n", "ends with Halt"),
            ("#: ends #UD at there\n ud2\nthere: hlt\n", "at 0x7000 instead of 0x7002"),
            ("#: ends #GP(0) at there\nthere: mov ax, 0x1f8\n mov ds, ax\n", "code: Some(1f8)"),
            (" ud2\n", "instead of Halt"),
            ("#: expect colour = 6\n hlt\n", "`colour` is unknown"),
            ("\n frobnicate\n", "case:4: Error"),
        ] {
            let error = outcome(text).expect_err(text);
            assert!(error.contains(complaint), "{error}");
        }
    }
}
