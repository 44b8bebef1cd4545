//! The engine and its vCPUs: [`engine::Engine`] and [`engine::Vcpu`] for the interpreter.

use crate::blocks::{BlockIndex, Blocks};
use crate::cpu::Cpu;
use engine::{
    Budget, Caps, Counters, Engine, EngineError, Exit, Groups, Kicker, Platform, Setup, Vcpu, VcpuId,
};
use x86::CpuState;
use x86::state::Activity;

/// Most vCPUs of one machine.
pub const MAX_VCPUS: u32 = 64;

/// The reference engine: decodes and executes one instruction after the other, in every mode of the architecture.
pub struct Interpreter {
    setup: Setup,
}

impl Interpreter {
    /// An engine for one machine.
    ///
    /// # Errors
    /// None so far; other engines need host features here.
    pub fn new(setup: Setup) -> Result<Self, EngineError> {
        Ok(Self { setup })
    }
}

impl Engine for Interpreter {
    fn caps(&self) -> Caps {
        Caps { name: "interpreter", exact_budget: true, max_vcpus: MAX_VCPUS }
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(InterpretedVcpu::new(id, self.setup.clone())?))
    }
}

/// One interpreted vCPU.
pub(crate) struct InterpretedVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) blocks: Blocks,
    /// The block run last, whose successors are tried first. May be out of date: it is only a hint.
    pub(crate) last: BlockIndex,
    /// The state has been lent out and may have been changed.
    borrowed: bool,
}

impl InterpretedVcpu {
    pub(crate) fn new(id: VcpuId, setup: Setup) -> Result<Self, EngineError> {
        let mut cpu = Cpu::new(id, setup)?;
        if id.0 != 0 {
            cpu.state.activity = Activity::WaitForStartup;
            cpu.update_mode();
        }
        Ok(Self { cpu, blocks: Blocks::new(), last: 0, borrowed: false })
    }

    /// Takes over what was changed while the state was lent out.
    pub(crate) fn take_back(&mut self) {
        if std::mem::take(&mut self.borrowed) {
            self.cpu.adopt();
        }
    }
}

impl Vcpu for InterpretedVcpu {
    fn run(&mut self, budget: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        self.take_back();
        let limit = match budget {
            Budget::Unlimited => u64::MAX,
            Budget::Instructions(count) => count,
        };
        Ok(self.execute(limit, platform))
    }

    fn state(&mut self, _groups: Groups) -> Result<&mut CpuState, EngineError> {
        if !self.borrowed {
            self.cpu.forget_wait();
            self.cpu.publish();
            self.borrowed = true;
        }
        Ok(&mut self.cpu.state)
    }

    fn kicker(&self) -> Kicker {
        self.cpu.kicker.clone()
    }

    fn instructions(&self) -> u64 {
        self.cpu.instructions
    }

    fn counters(&self) -> Counters {
        let mut counters = Counters::new();
        counters.add("instructions", "interpreted", self.cpu.instructions);
        counters.add("decoded", "blocks", self.blocks.decoded);
        counters.add("decoded", "bytes", self.blocks.size as u64);
        counters
    }
}
