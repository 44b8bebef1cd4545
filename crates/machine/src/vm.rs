//! The machine's life: made, started, reset, ended.
//!
//! [`Machine::run`] starts one thread a vCPU and waits on [`Control`] until somebody says how the run ends. Then every vCPU
//! thread returns its vCPU. After a guest reset all devices are back at power-up, the kernel is loaded again, and the
//! threads start anew; memory keeps what else was in it, as on a real PC.
//!
//! Threads and lock order: see the crate's head.

use crate::MachineError;
use crate::acpi::BoardFacts;
use crate::board::{self, Chips};
use crate::boot::{self, Entry};
use crate::clock::TscClock;
use crate::cpuid;
use crate::ending::{Control, Ending, Presence};
use crate::events::{Events, Loop};
use crate::msr::{Msrs, Unknown};
use crate::platform::VcpuPlatform;
use crate::report::{self, Report};
use crate::streams::Streams;
use crate::windows::{EventWindow, WindowRequest, Windows};
use chipset::apic::Lapics;
use chipset::mux::Mux;
use chipset::{Clock, Msi, MsiSink};
use control::MachineConfig;
use engine::{Budget, Engine, EngineError, Exit, Groups, Setup, Vcpu, VcpuId};
use enlightenments::Interface;
use memory::{GuestMemory, Layout, Region};
use std::sync::Arc;
use std::time::Instant;
use x86::address::PAGE_SIZE;
use x86::state::Activity;
use x86::{CpuState, Gpa};

/// RAM below 4 GiB ends here at most; devices are above.
const LOW_RAM_END: u64 = 3 << 30;
/// Where the rest of RAM goes on.
const HIGH_RAM_START: u64 = 4 << 30;
/// A PC's real-mode part: less isn't a PC.
const LEAST_MEMORY: u64 = 1 << 20;

/// How a run ended, as far as the guest decides.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset, and the configuration says that this ends the run.
    Reset,
    /// A test device was told to end the process with this status.
    TestExit(u8),
    /// Triple fault.
    Shutdown {
        /// The vCPU.
        vcpu: u32,
        /// Its registers.
        state: Box<CpuState>,
    },
    /// [`Handle::stop`] was used.
    Stopped,
}

/// Reaches a running machine from other threads.
#[derive(Clone)]
pub struct Handle {
    control: Arc<Control>,
    lapics: Arc<Lapics>,
    mux: Arc<Mux>,
    windows: Arc<Windows>,
}

impl Handle {
    /// Ends the run with [`Outcome::Stopped`], unless it is ending already.
    pub fn stop(&self) {
        self.control.end(Ending::Stopped);
    }

    /// Sends vCPU 0 a non-maskable interrupt.
    pub fn inject_nmi(&self) {
        // Destination 0 physically, delivery mode NMI (SDM 3A 10.11).
        self.lapics.send(Msi { address: 0xfee0_0000, data: 0x400 });
    }

    /// The fabric of interrupt lines: who owns which, and the side that isn't the guest's. Lines are numbered as the MADT's global
    /// interrupts, but for ISA's interrupt 0, which is line 0.
    #[must_use]
    pub fn lines(&self) -> &Mux {
        &self.mux
    }

    /// Has `report` called once, on the vCPU's thread, when vCPU `cpu` can take such an event: at once if it can now. `None`: there is no
    /// such vCPU.
    pub fn request_window(
        &self,
        cpu: u32,
        kind: EventWindow,
        report: impl FnOnce() + Send + 'static,
    ) -> Option<WindowRequest> {
        self.windows.request(cpu, kind, Box::new(report))
    }
}

type Reporter = Box<dyn FnOnce(&Report) + Send>;

/// One vCPU with its surroundings, between two stays on a thread.
struct Seat {
    vcpu: Box<dyn Vcpu>,
    platform: VcpuPlatform,
}

/// A machine, from power-up to power-off.
pub struct Machine {
    // Fixed configuration.
    config: MachineConfig,
    facts: BoardFacts,
    memory: GuestMemory,
    // Runtime.
    clock: Arc<TscClock>,
    control: Arc<Control>,
    chips: Chips,
    /// Absent while the vCPUs are on their threads.
    seats: Vec<Seat>,
    entry: Entry,
    /// Lives as long as its vCPUs.
    engine: Arc<dyn Engine>,
    /// Dropped before the devices that it calls.
    events: Option<Loop>,
    /// Who wants to know what was counted.
    report: Option<Reporter>,
}

fn host_refuses(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// Where RAM of this many bytes lies.
fn layout(bytes: u64, physical_bits: u32) -> Result<Layout, MachineError> {
    if bytes < LEAST_MEMORY {
        return Err(MachineError::Config(format!(
            "memory of {bytes} bytes is too little: a PC has at least 1M"
        )));
    }
    if !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(MachineError::Config(format!("memory of {bytes} bytes is not a multiple of 4K")));
    }
    let low = bytes.min(LOW_RAM_END);
    let high = bytes - low;
    let most = (1u64 << physical_bits) - HIGH_RAM_START + LOW_RAM_END;
    if bytes > most {
        let tib = bytes >> 30;
        return Err(MachineError::Config(format!(
            "memory of {tib}G is more than the guest can address: at most {}G ({physical_bits} address bits)",
            most >> 30
        )));
    }
    let mut regions = vec![Region { start: Gpa(0), len: low }];
    if high > 0 {
        regions.push(Region { start: Gpa(HIGH_RAM_START), len: high });
    }
    Ok(Layout::new(regions)?)
}

impl Machine {
    /// Makes a machine and loads its kernel. `make_engine` is called once, with what the engine needs.
    ///
    /// # Errors
    /// [`MachineError`]: everything that can be wrong with the configuration, its files and the host is found here.
    pub fn new(
        config: MachineConfig,
        io: Streams,
        make_engine: impl FnOnce(Setup) -> Result<Arc<dyn Engine>, EngineError>,
    ) -> Result<Self, MachineError> {
        if config.cpus == 0 {
            return Err(MachineError::Config("a machine needs at least one vCPU".into()));
        }
        let physical_bits = cpuid::physical_bits(&cpuid::host);
        let memory = GuestMemory::new(layout(config.memory, physical_bits)?)?;
        let clock = Arc::new(TscClock::start());
        let options = cpuid::Options {
            cpus: config.cpus,
            tsc_hz: clock.tsc_hz(),
            la57: config.la57,
            mwait: config.mwait,
            mitigations: config.mitigations,
        };
        let interface = Interface::of(config.enlightenments);
        let mut cpuid = cpuid::build(&cpuid::host, options);
        interface.offer(&mut cpuid, config.parts, config.cpus);
        let setup = Setup { memory: memory.clone(), cpuid: cpuid.clone(), tsc_offset: clock.offset() };
        let engine = make_engine(setup)?;
        let caps = engine.caps();
        if config.cpus > caps.max_vcpus {
            return Err(MachineError::Config(format!(
                "{} vCPUs are more than the {} engine runs: at most {}",
                config.cpus, caps.name, caps.max_vcpus
            )));
        }
        let vcpus =
            (0..config.cpus).map(|id| engine.create_vcpu(VcpuId(id))).collect::<Result<Vec<_>, _>>()?;
        let kickers: Vec<_> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();

        let control = Arc::new(Control::default());
        let events = Events::new(Arc::clone(&clock)).map_err(host_refuses("an event descriptor"))?;
        let chips = board::build(
            &board::Parts {
                config: &config,
                memory: &memory,
                clock: &clock,
                events: &events,
                control: &control,
                kickers: &kickers,
                physical_bits: physical_bits as u8,
            },
            io,
        )?;
        let outputs = chips.outputs.clone();
        let hurry = outputs
            .into_iter()
            .map(|output| -> Box<dyn Fn() + Send + Sync> { Box::new(move || output.hurry(true)) });
        control.connect(kickers, hurry.collect());

        let facts = board::facts(&config);
        let entry = boot::load(&memory, &config.boot, &facts)?;
        let unknown = Unknown::default();
        let seats = (0..).zip(vcpus).map(|(id, vcpu)| {
            let msrs = Msrs::new(&cpuid, Arc::clone(&unknown));
            let id = VcpuId(id);
            let paravirt = chips.host.vcpu(id);
            Seat { vcpu, platform: VcpuPlatform::new(id, Arc::clone(&chips.board), msrs, paravirt) }
        });
        let seats = seats.collect();
        let events = events.start(Arc::clone(&control)).map_err(host_refuses("a thread"))?;
        Ok(Self {
            config,
            facts,
            memory,
            clock,
            control,
            chips,
            seats,
            entry,
            engine,
            events: Some(events),
            report: None,
        })
    }

    /// Reaches the machine while [`run`](Self::run) has it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            control: Arc::clone(&self.control),
            lapics: Arc::clone(&self.chips.board.lapics),
            mux: Arc::clone(&self.chips.mux),
            windows: Arc::clone(&self.chips.board.windows),
        }
    }

    /// Has `report` called once, when the run has ended however it ended. vCPUs then count every instruction, which costs some speed.
    pub fn report_to(&mut self, report: impl FnOnce(&Report) + Send + 'static) {
        self.report = Some(Box::new(report));
    }

    /// Runs the guest until it ends. What it wrote to its serial ports has been written out when this returns.
    ///
    /// # Errors
    /// [`MachineError`] where Ombra can't go on: the engine broke, output can't be delivered, the kernel file is gone when
    /// the guest resets.
    pub fn run(mut self) -> Result<Outcome, MachineError> {
        let started = Instant::now();
        let result = self.run_to_the_end();
        if let Some(report) = self.report.take() {
            let vcpus = self.seats.iter().map(|seat| (&*seat.vcpu, seat.platform.counters()));
            let lines = report::lines(&self.chips.mux);
            report(&report::collect(&*self.engine, vcpus, &lines, &self.memory, started.elapsed()));
        }
        // Nobody calls devices any more when the last output is waited for. Timers first: no new alarms.
        self.chips.quiesce();
        self.events = None;
        let patient = result.as_ref().is_ok_and(|outcome| !matches!(outcome, Outcome::Stopped));
        for writer in &mut self.chips.writers {
            writer.finish(patient);
        }
        // The last piece may have failed after the guest's own end.
        match (result, self.control.take()) {
            (Ok(_), Some(Ending::Failed(error))) => Err(error),
            (result, _) => result,
        }
    }

    fn run_to_the_end(&mut self) -> Result<Outcome, MachineError> {
        loop {
            self.power_up()?;
            self.start_threads_and_wait()?;
            return Ok(match self.control.take() {
                Some(Ending::Reset) if !self.config.no_reboot => {
                    self.reset()?;
                    continue;
                }
                Some(Ending::Reset) => Outcome::Reset,
                Some(Ending::PowerOff) => Outcome::PowerOff,
                Some(Ending::TestExit(status)) => Outcome::TestExit(status),
                Some(Ending::Shutdown { vcpu, state }) => Outcome::Shutdown { vcpu, state },
                Some(Ending::Failed(error)) => return Err(error),
                Some(Ending::Stopped) | None => Outcome::Stopped,
            });
        }
    }

    /// Everything back to power-up, and the kernel loaded afresh.
    fn reset(&mut self) -> Result<(), MachineError> {
        tracing::info!("the guest resets the machine");
        self.chips.reset();
        for seat in &mut self.seats {
            seat.platform.reset();
        }
        for output in &self.chips.outputs {
            output.hurry(false);
        }
        self.entry = boot::load(&self.memory, &self.config.boot, &self.facts)?;
        Ok(())
    }

    /// What firmware would do: registers of all vCPUs, interrupt controllers, timer.
    fn power_up(&mut self) -> Result<(), MachineError> {
        for (id, seat) in self.seats.iter_mut().enumerate() {
            let state = seat.vcpu.state(Groups::all())?;
            *state = CpuState { tsc_offset: self.clock.offset(), ..CpuState::default() };
            if id == 0 {
                self.entry.prepare(state);
            } else {
                state.activity = Activity::WaitForStartup;
            }
        }
        for (port, byte) in boot::legacy::PORT_WRITES {
            self.chips.board.ports.write(u64::from(*port), &[*byte]);
        }
        self.chips.board.lapics.virtual_wire(0);
        Ok(())
    }

    fn start_threads_and_wait(&mut self) -> Result<(), MachineError> {
        let mut threads = Vec::new();
        let mut refused = None;
        // With a budget, engines count.
        let budget = if self.report.is_some() { Budget::Instructions(u64::MAX) } else { Budget::Unlimited };
        for (id, seat) in self.seats.drain(..).enumerate() {
            let control = Arc::clone(&self.control);
            let name = format!("ombra-vcpu{id}");
            match std::thread::Builder::new()
                .name(name)
                .spawn(move || occupy(seat, id as u32, budget, &control))
            {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    // The others must come back before this can be reported.
                    self.control.end(Ending::Stopped);
                    refused.get_or_insert(MachineError::Host { what: "a thread", source });
                }
            }
        }
        self.control.wait();
        for thread in threads {
            match thread.join() {
                Ok(seat) => self.seats.push(seat),
                Err(_) => refused = refused.or(Some(MachineError::Panicked { what: "a vCPU" })),
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// A vCPU thread: runs the guest until the run ends, and gives the vCPU back.
fn occupy(mut seat: Seat, id: u32, budget: Budget, control: &Arc<Control>) -> Seat {
    let _presence = Presence { control: Arc::clone(control), what: "a vCPU" };
    let kicker = seat.vcpu.kicker();
    while !control.is_ending() {
        let ending = match seat.vcpu.run(budget, &mut seat.platform) {
            Ok(Exit::Budget | Exit::Kicked) => continue,
            Ok(Exit::Halted) => {
                // The engine takes the request when it runs again. An ending kicks, so this wakes for it too.
                seat.platform.sleeps();
                kicker.wait(None);
                seat.platform.wakes();
                continue;
            }
            Ok(Exit::Shutdown) => match seat.vcpu.state(Groups::all()) {
                Ok(state) => Ending::Shutdown { vcpu: id, state: Box::new(state.clone()) },
                Err(error) => Ending::Failed(error.into()),
            },
            Err(error) => Ending::Failed(error.into()),
        };
        control.end(ending);
    }
    seat
}

#[cfg(test)]
mod tests;
