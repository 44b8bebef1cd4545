//! Engines that are wrong in one way each: the interpreter with something done to it from outside.

use conformance::sequences::{Make, TABLES, code_frames};
use engine::{
    Access, Budget, Caps, Counters, Engine, EngineError, Event, Exit, GpFault, Groups, Hypercall,
    HypercallOutcome, Kicker, Platform, Setup, Vcpu, VcpuId, Window,
};
use memory::GuestMemory;
use x86::paging::pte;
use x86::{CpuState, Gpa, Rflags};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// INVLPG does nothing.
    IgnoresInvlpg,
    /// Stores to code don't change what runs.
    StaleCode,
    /// The carry is wrong once, after some hundred instructions.
    FlipsCarry,
    /// Every fourth write to a device is lost.
    DropsWrite,
    /// An event waits for the next occasion.
    LateEvent,
    /// One page that was written isn't marked so.
    LeavesClean,
}

/// A maker of an engine with the fault.
pub(crate) fn wrong(fault: Fault) -> Make {
    fn make(setup: Setup, fault: Fault) -> Result<Box<dyn Engine>, EngineError> {
        let memory = setup.memory.clone();
        Ok(Box::new(FaultyEngine { inner: conformance::interpreter(setup)?, memory, fault }))
    }
    match fault {
        Fault::IgnoresInvlpg => |setup| make(setup, Fault::IgnoresInvlpg),
        Fault::StaleCode => |setup| make(setup, Fault::StaleCode),
        Fault::FlipsCarry => |setup| make(setup, Fault::FlipsCarry),
        Fault::DropsWrite => |setup| make(setup, Fault::DropsWrite),
        Fault::LateEvent => |setup| make(setup, Fault::LateEvent),
        Fault::LeavesClean => |setup| make(setup, Fault::LeavesClean),
    }
}

struct FaultyEngine {
    inner: Box<dyn Engine>,
    memory: GuestMemory,
    fault: Fault,
}

impl Engine for FaultyEngine {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError> {
        let (memory, fault) = (self.memory.clone(), self.fault);
        Ok(Box::new(FaultyVcpu { inner: self.inner.create_vcpu(id)?, memory, fault, ran: 0 }))
    }
}

struct FaultyVcpu {
    inner: Box<dyn Vcpu>,
    memory: GuestMemory,
    fault: Fault,
    /// Instructions since the state was last set.
    ran: u64,
}

/// INVLPG of an absolute address and of [RAX], and NOPs of the same operands.
const INVALIDATIONS: [(&[u8], &[u8]); 2] =
    [(&[0x0f, 0x01, 0x3c, 0x25], &[0x0f, 0x1f, 0x04, 0x25]), (&[0x0f, 0x01, 0x38], &[0x0f, 0x1f, 0x00])];

impl FaultyVcpu {
    fn frames(&self) -> Vec<(u64, Vec<u8>)> {
        let read = |frame: u64| {
            let mut bytes = vec![0; 0x1000];
            self.memory.read(Gpa(frame), &mut bytes).expect("code lies in RAM");
            (frame, bytes)
        };
        code_frames().map(read).collect()
    }

    /// Replaces bytes wherever code has them; gives the places.
    fn replace(&self, from: &[u8], to: &[u8]) -> Vec<u64> {
        let mut places = Vec::new();
        for (frame, bytes) in self.frames() {
            for (at, window) in bytes.windows(from.len()).enumerate() {
                if window == from {
                    places.push(frame + at as u64);
                }
            }
        }
        for &place in &places {
            self.memory.write(Gpa(place), to).expect("code lies in RAM");
        }
        places
    }

    fn without_invlpg(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        let places = INVALIDATIONS.map(|(from, to)| self.replace(from, to));
        let exit = self.inner.run(budget, platform);
        for ((from, _), places) in INVALIDATIONS.iter().zip(&places) {
            for &place in places {
                self.memory.write(Gpa(place), from).expect("code lies in RAM");
            }
        }
        exit
    }

    /// Runs instruction by instruction, and after each does something.
    fn stepping(
        &mut self,
        budget: Budget,
        platform: &mut dyn Platform,
        after: &mut dyn FnMut(&mut Self) -> Result<(), EngineError>,
    ) -> Result<Exit, EngineError> {
        let Budget::Instructions(mut left) = budget else { return self.inner.run(budget, platform) };
        while left > 0 {
            let before = self.inner.instructions();
            let exit = self.inner.run(Budget::Instructions(1), platform)?;
            let done = self.inner.instructions() - before;
            self.ran += done;
            left -= done.min(left);
            after(self)?;
            if exit != Exit::Budget {
                return Ok(exit);
            }
        }
        Ok(Exit::Budget)
    }

    fn with_stale_code(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        let old = self.frames();
        let mut stores: Vec<(u64, u8)> = Vec::new();
        let exit = self.stepping(budget, platform, &mut |this| {
            for ((frame, now), (_, old)) in this.frames().into_iter().zip(&old) {
                if now == *old {
                    continue;
                }
                for (at, (&now, &old)) in now.iter().zip(old).enumerate() {
                    if now != old {
                        stores.push((frame + at as u64, now));
                    }
                }
                this.memory.write(Gpa(frame), old).expect("code lies in RAM");
            }
            Ok(())
        });
        for (at, byte) in stores {
            self.memory.write(Gpa(at), &[byte]).expect("code lies in RAM");
        }
        exit
    }

    fn flipping(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        self.stepping(budget, platform, &mut |this| {
            if this.ran == 300 {
                this.inner.state(Groups::all())?.rflags ^= Rflags::CF;
            }
            Ok(())
        })
    }

    /// Takes the dirty flag from the first volatile page's entry.
    fn clean(&self) {
        let at = Gpa(TABLES + 4 * 0x1000 + 8 * 0x10);
        let mut byte = [0];
        self.memory.read(at, &mut byte).expect("tables lie in RAM");
        self.memory.write(at, &[byte[0] & !(pte::D as u8)]).expect("tables lie in RAM");
    }
}

impl Vcpu for FaultyVcpu {
    fn run(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        match self.fault {
            Fault::IgnoresInvlpg => self.without_invlpg(budget, platform),
            Fault::StaleCode => self.with_stale_code(budget, platform),
            Fault::FlipsCarry => self.flipping(budget, platform),
            Fault::DropsWrite | Fault::LateEvent => {
                let mut between = Between { inner: platform, fault: self.fault, count: 0 };
                self.inner.run(budget, &mut between)
            }
            Fault::LeavesClean => {
                let exit = self.inner.run(budget, platform);
                self.clean();
                exit
            }
        }
    }

    fn state(&mut self, groups: Groups) -> Result<&mut CpuState, EngineError> {
        self.ran = 0;
        self.inner.state(groups)
    }

    fn kicker(&self) -> Kicker {
        self.inner.kicker()
    }

    fn instructions(&self) -> u64 {
        self.inner.instructions()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// Stands between the engine and its platform.
struct Between<'a> {
    inner: &'a mut dyn Platform,
    fault: Fault,
    count: u32,
}

impl Platform for Between<'_> {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        if self.fault == Fault::DropsWrite && matches!(access, Access::Write(_)) {
            self.count += 1;
            if self.count.is_multiple_of(4) {
                return;
            }
        }
        self.inner.mmio(at, access);
    }

    fn pio(&mut self, port: u16, access: Access<'_>) {
        self.inner.pio(port, access);
    }

    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault> {
        self.inner.rdmsr(msr)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault> {
        self.inner.wrmsr(msr, value)
    }

    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        self.inner.hypercall(call)
    }

    fn cr8(&mut self) -> u8 {
        self.inner.cr8()
    }

    fn set_cr8(&mut self, priority: u8) {
        self.inner.set_cr8(priority);
    }

    fn take_event(&mut self, window: Window) -> Option<Event> {
        self.count += 1;
        if self.fault == Fault::LateEvent && self.count.is_multiple_of(2) {
            return None;
        }
        self.inner.take_event(window)
    }

    fn has_event(&mut self) -> bool {
        self.inner.has_event()
    }

    fn apic_enabled(&mut self) -> bool {
        self.inner.apic_enabled()
    }
}
