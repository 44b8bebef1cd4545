//! Runs a case on one engine and takes down what it came to.
//!
//! A [`Machine`] serves many cases one after the other, as a vCPU serves many programs: what an engine has kept of an earlier
//! case must not show. Only pages of RAM that differ from what the next case wants are written in between.

use super::layout::{LOW_RAM, RAM, TABLES, physical};
use super::platform::{Record, Recorder};
use engine::{Budget, Engine, EngineError, Exit, Groups, Setup, Vcpu, VcpuId};
use memory::{GuestMemory, Layout, Region};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use x86::cpuid::Cpuid;
use x86::{CpuState, Gpa};

/// Asking a virtual host takes time.
static CPUID: LazyLock<Cpuid> = LazyLock::new(crate::cases::cpuid);

/// Makes an engine.
pub type Make = fn(Setup) -> Result<Box<dyn Engine>, EngineError>;

/// Runs that end without progress before an engine counts as stuck.
const MOST_IDLE: u32 = 64;

/// Cases run for milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a case is run: in which pieces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Lengths of the pieces in instructions, at least 1; the last one repeats.
    pub pieces: Vec<u64>,
    /// Instructions at most.
    pub limit: u64,
    /// The state is looked at after each piece, which gives the engine cause to write it back.
    pub look: bool,
    /// Without a budget, as a machine runs it, and in one piece: only for cases that end by themselves.
    pub unlimited: bool,
}

impl Plan {
    /// In one piece.
    #[must_use]
    pub fn whole(limit: u64) -> Self {
        Self { pieces: vec![limit], limit, look: false, unlimited: false }
    }

    /// Without a budget.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { unlimited: true, ..Self::whole(u64::MAX) }
    }
}

/// Why a case ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// HLT.
    Halted,
    /// Triple fault.
    Shutdown,
    /// The limit.
    Limit,
    /// An exception without end: no instruction completes.
    Stuck,
    /// The engine returned an error or panicked.
    Broken,
}

/// What a run came to.
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Instructions completed, where they are counted.
    pub instructions: Option<u64>,
    /// The state at the end.
    pub state: CpuState,
    /// States at the ends of pieces, with the number of instructions; only if the plan looks.
    pub stops: Vec<(u64, CpuState)>,
    /// Guest RAM.
    pub ram: Vec<u8>,
    /// Calls of the platform.
    pub record: Record,
}

/// A vCPU with its memory.
pub(crate) struct Machine {
    memory: GuestMemory,
    engine: Box<dyn Engine>,
    vcpu: Box<dyn Vcpu>,
    /// What the memory holds.
    ram: Vec<u8>,
}

const PAGE: usize = 0x1000;

impl Machine {
    /// A machine around an engine.
    ///
    /// # Errors
    /// The engine can't be made.
    ///
    /// # Panics
    /// The host refuses some hundred kilobytes of memory.
    pub(crate) fn new(make: Make) -> Result<Self, EngineError> {
        let low = Region { start: Gpa(0), len: LOW_RAM };
        let tables = Region { start: Gpa(TABLES), len: RAM - LOW_RAM };
        let layout = Layout::new(vec![low, tables]).expect("a valid layout");
        let memory = GuestMemory::new(layout).expect("memory for a small guest");
        let engine = make(Setup { memory: memory.clone(), cpuid: CPUID.clone(), tsc_offset: 0 })?;
        let vcpu = engine.create_vcpu(VcpuId(0))?;
        Ok(Self { memory, engine, vcpu, ram: vec![0; RAM as usize] })
    }

    /// The engine's name.
    pub(crate) fn name(&self) -> &'static str {
        self.engine.caps().name
    }

    /// Whether the engine's instruction budgets are exact.
    #[must_use]
    pub(crate) fn is_exact(&self) -> bool {
        self.engine.caps().exact_budget
    }

    /// Runs a case: RAM and registers to start with, and how.
    ///
    /// # Panics
    /// Guest memory isn't where it was.
    pub(crate) fn run(&mut self, ram: &[u8], state: &CpuState, plan: &Plan) -> Outcome {
        for (page, (new, old)) in ram.chunks(PAGE).zip(self.ram.chunks(PAGE)).enumerate() {
            if new != old {
                self.memory.write(Gpa(physical(page * PAGE)), new).expect("in RAM");
            }
        }
        let mut recorder = Recorder::new(self.memory.clone(), self.vcpu.kicker());
        // A kick that nobody has seen belongs to the case before.
        let _ = self.vcpu.kicker().take();
        let start = self.vcpu.instructions();
        let mut stops = Vec::new();
        // An engine that panics is wrong, but the judge goes on to tell which case it was.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            *self.vcpu.state(Groups::all())? = state.clone();
            let end = if plan.unlimited {
                drive_unlimited(self.vcpu.as_mut(), &mut recorder)?
            } else {
                drive(self.vcpu.as_mut(), &mut recorder, plan, start, &mut stops)?
            };
            Ok::<_, EngineError>((end, self.vcpu.state(Groups::all())?.clone()))
        }));
        let (low, tables) = self.ram.split_at_mut(LOW_RAM as usize);
        self.memory.read(Gpa(0), low).expect("in RAM");
        self.memory.read(Gpa(TABLES), tables).expect("in RAM");
        let (end, final_state) = ran.ok().and_then(Result::ok).unwrap_or((End::Broken, state.clone()));
        let instructions = (!plan.unlimited).then(|| self.vcpu.instructions() - start);
        if end == End::Broken
            && let Ok(vcpu) = self.engine.create_vcpu(VcpuId(0))
        {
            self.vcpu = vcpu;
        }
        Outcome {
            end,
            instructions,
            state: final_state,
            stops,
            ram: self.ram.clone(),
            record: recorder.into_record(),
        }
    }
}

/// Runs without a budget, for [`PATIENCE`] at most.
fn drive_unlimited(vcpu: &mut dyn Vcpu, recorder: &mut Recorder) -> Result<End, EngineError> {
    let kicker = vcpu.kicker();
    let late = AtomicBool::new(false);
    let (over, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let wait = wait;
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                late.store(true, Ordering::Relaxed);
                kicker.kick();
            }
        });
        // Ends the wait however this ends.
        let _over = over;
        loop {
            match vcpu.run(Budget::Unlimited, recorder)? {
                Exit::Halted => return Ok(End::Halted),
                Exit::Shutdown => return Ok(End::Shutdown),
                Exit::Budget | Exit::Kicked if late.load(Ordering::Relaxed) => return Ok(End::Limit),
                Exit::Budget | Exit::Kicked => {}
            }
        }
    })
}

fn drive(
    vcpu: &mut dyn Vcpu,
    recorder: &mut Recorder,
    plan: &Plan,
    start: u64,
    stops: &mut Vec<(u64, CpuState)>,
) -> Result<End, EngineError> {
    let mut idle = 0;
    let mut piece = 0;
    let length = |piece: usize| plan.pieces.get(piece).or(plan.pieces.last()).copied().unwrap_or(plan.limit);
    let mut piece_end = length(0).min(plan.limit);
    loop {
        let before = vcpu.instructions() - start;
        let exit = vcpu.run(Budget::Instructions(piece_end.saturating_sub(before)), recorder)?;
        let done = vcpu.instructions() - start;
        idle = if done == before { idle + 1 } else { 0 };
        match exit {
            Exit::Halted => return Ok(End::Halted),
            Exit::Shutdown => return Ok(End::Shutdown),
            Exit::Budget | Exit::Kicked if done >= plan.limit => return Ok(End::Limit),
            Exit::Budget | Exit::Kicked if idle == MOST_IDLE => return Ok(End::Stuck),
            Exit::Budget | Exit::Kicked => {}
        }
        if done >= piece_end {
            if plan.look {
                stops.push((done, vcpu.state(Groups::all())?.clone()));
            }
            piece += 1;
            piece_end = (done + length(piece)).min(plan.limit);
        }
    }
}
