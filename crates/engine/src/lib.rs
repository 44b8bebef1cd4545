//! The contract between a CPU engine and a machine.
//!
//! An [`Engine`] makes [`Vcpu`]s; a vCPU runs guest code until one of five [`Exit`]s and answers device accesses, MSRs and
//! events through the [`Platform`] that the machine lends it. What an engine can't do it says in [`Caps`], asked for up
//! front. No code of an engine lives here.
//!
//! Threads: an `Engine` is shared, a `Vcpu` belongs to one thread at a time but may move between runs, a [`Kicker`] may be
//! used by any thread at any time. No locks but the kicker's own, which is a leaf.

mod counters;
mod hypercall;
mod kick;

pub use counters::{Counter, Counters};
pub use hypercall::{Hypercall, HypercallOutcome};
pub use kick::Kicker;

use bitflags::bitflags;
use memory::GuestMemory;
use x86::cpuid::Cpuid;
use x86::{CpuState, Gpa, Gva};

/// The number of a vCPU in its machine, from 0. Also its initial APIC id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(pub u32);

/// What a machine gives an engine to start with.
#[derive(Clone)]
pub struct Setup {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// What CPUID answers. Leaves that name the APIC id are overlaid by the engine with the vCPU's own.
    pub cpuid: Cpuid,
    /// Guest TSC = host TSC + this at the start, wrapping.
    pub tsc_offset: u64,
}

/// What an engine can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// Its name, as `--engine` takes it.
    pub name: &'static str,
    /// Whether an instruction budget stops exactly there.
    pub exact_budget: bool,
    /// Most vCPUs of one machine.
    pub max_vcpus: u32,
}

/// Why an engine, or a vCPU of it, is unusable. Nothing that a guest does leads here.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something.
    #[error("the host lacks {0}")]
    Unsupported(&'static str),
    /// The host refused a resource.
    #[error("the host refused {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
}

/// Something that executes guest code.
pub trait Engine: Send + Sync {
    /// What it can do.
    fn caps(&self) -> Caps;
    /// Makes a vCPU in its power-up state, except that all but vCPU 0 wait for a start-up IPI.
    ///
    /// # Errors
    /// [`EngineError`] where the host refuses memory or features.
    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError>;
}

/// How long a run may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Budget {
    /// Until something else ends it.
    Unlimited,
    /// At most this many instructions; exact where [`Caps::exact_budget`] says so.
    Instructions(u64),
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The budget is used up.
    Budget,
    /// The kicker was used. May be spurious.
    Kicked,
    /// The vCPU waits for an event ([`x86::state::Activity::Halted`] or `WaitForStartup`), and none is there.
    Halted,
    /// Triple fault.
    Shutdown,
}

bitflags! {
    /// Groups of registers, for engines that fetch state from elsewhere.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Groups: u32 {
        /// General registers, RIP, RFLAGS.
        const GENERAL = 1 << 0;
        /// Segments, tables, control and debug registers, MSRs, interruptibility and activity.
        const SYSTEM = 1 << 1;
        /// x87, SSE, AVX, AVX-512, PKRU, XCR0.
        const VECTOR = 1 << 2;
    }
}

/// One virtual CPU.
pub trait Vcpu: Send {
    /// Runs guest code. Device accesses, MSRs and hypercalls are answered through `platform` and never leave `run`.
    ///
    /// # Errors
    /// The engine broke. Nothing that a guest does returns `Err`.
    fn run(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError>;

    /// Makes the register groups current and returns them; what the caller changes is in force at the next `run`.
    ///
    /// # Errors
    /// The engine broke.
    fn state(&mut self, groups: Groups) -> Result<&mut CpuState, EngineError>;

    /// A handle that makes this or the next `run` return [`Exit::Kicked`], or see a new event.
    fn kicker(&self) -> Kicker;

    /// Instructions completed since creation. An engine may leave some out where the budget is unlimited.
    fn instructions(&self) -> u64;

    /// What has been counted since creation. May look around in the host, so it isn't for every run.
    fn counters(&self) -> Counters;
}

/// One access of 1, 2, 4 or 8 bytes to a device; the buffer's length is the access's size.
#[derive(Debug)]
pub enum Access<'a> {
    /// Fill the buffer.
    Read(&'a mut [u8]),
    /// Take these bytes.
    Write(&'a [u8]),
}

/// The instruction gets `#GP(0)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpFault;

/// What can happen to a vCPU from outside between two instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// INIT (SDM 3A 10.4.7).
    Init,
    /// A start-up IPI with its vector: execution starts at `vector << 12`.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An external interrupt, already acknowledged at its controller.
    Interrupt(u8),
    /// Cached translations are dropped before the next instruction; a halted vCPU stays halted.
    Flush(Flush),
    /// A halted vCPU goes on behind its HLT, without an interrupt.
    Wake,
}

/// Which cached translations go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// All, of all address spaces.
    All,
    /// All but global ones (SDM 3A 4.10.2.4), of all address spaces.
    Local,
    /// Those of one linear address, global ones too.
    Page(Gva),
}

/// Which events the vCPU can take now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// NMIs aren't blocked.
    pub nmi: bool,
    /// IF is set and no shadow is in force.
    pub interrupt: bool,
    /// The vCPU has executed HLT and waits.
    pub halted: bool,
}

/// All that a vCPU sees outside its registers and RAM.
pub trait Platform {
    /// A guest-physical access that isn't RAM.
    fn mmio(&mut self, at: Gpa, access: Access<'_>);
    /// An I/O port access.
    fn pio(&mut self, port: u16, access: Access<'_>);
    /// An MSR that isn't the CPU's own.
    ///
    /// # Errors
    /// There is no such MSR, or it can't be read.
    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault>;
    /// An MSR that isn't the CPU's own; and IA32_TSC_ADJUST whenever the guest has moved its TSC, so that TSC deadlines
    /// are timed by the right one.
    ///
    /// # Errors
    /// There is no such MSR, or it refuses the value.
    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault>;
    /// VMCALL or VMMCALL, from any privilege level.
    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome;
    /// CR8: the task priority class, 0..=15 (SDM 3A 10.8.6).
    fn cr8(&mut self) -> u8;
    /// Sets CR8.
    fn set_cr8(&mut self, priority: u8);
    /// The event to take now, if there is one that the window admits; the vCPU takes it. INIT, start-up IPIs and flushes need no
    /// window, [`Event::Wake`] is for halted vCPUs. Asked when a run begins, after a kick, and again whenever the window has opened
    /// further.
    fn take_event(&mut self, window: Window) -> Option<Event>;
    /// Whether [`take_event`](Self::take_event) would find something if every window were open. For MWAIT, which a masked
    /// interrupt may end: true where there is nothing ends it early, which it may do anyway.
    fn has_event(&mut self) -> bool {
        true
    }
    /// Value of the APIC global enable bit in IA32_APIC_BASE, which CPUID.1:EDX.APIC mirrors.
    fn apic_enabled(&mut self) -> bool;
}
