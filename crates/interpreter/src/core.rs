//! What a faster engine needs of this one: the vCPU's architectural state, its page walks, its events, and the execution of
//! whatever that engine leaves to the reference.
//!
//! Called by the translator, on the vCPU's thread. The faster engine keeps the general registers, RIP and arithmetic flags while
//! its own code runs and puts them back ([`Core::registers`], [`Core::set_rip`], [`Core::set_arithmetic_flags`]) before it calls
//! anything here that executes. It may also keep the vector registers, and says so ([`Core::keep_vector`]).

use crate::blocks::SMALL_BUDGET;
use crate::cpu::{Cpu, Stop, special};
use crate::flags::Flags;
use crate::probe::Prober;
use crate::tlb::Dropped;
use crate::vcpu::InterpretedVcpu;
use crate::walk::{Actor, Intent};
use engine::{Counters, EngineError, Exit, Groups, Kicker, Platform, Setup, Vcpu, VcpuId};
use memory::{GuestMemory, RamOffset};
use x86::state::{VectorState, seg};
use x86::{CpuState, Rflags};

/// How code is to be understood (SDM 3A 3.4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CodeMode {
    /// CS.D clear, outside 64-bit mode.
    Bits16,
    /// CS.D set, outside 64-bit mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// How [`Core::interpret`] went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Something was executed, or an exception delivered.
    Ran,
    /// The run is over.
    Exit(Exit),
    /// The code looks at vector registers: bring them back ([`Core::vector`]) and try again.
    WantsVector,
}

/// What a walk found, for an engine that caches translations of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First byte of the page in RAM.
    pub ram: RamOffset,
    /// Further reads need no walk.
    pub read: bool,
    /// Further writes need no walk: the page is writable and its D bit is set.
    pub write: bool,
    /// The page is global.
    pub global: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

/// One vCPU of the reference engine in another engine's hands.
pub struct Core {
    pub(crate) vcpu: InterpretedVcpu,
}

impl Core {
    /// A vCPU as [`engine::Engine::create_vcpu`] makes it.
    ///
    /// # Errors
    /// The host refuses memory.
    pub fn new(id: VcpuId, setup: Setup) -> Result<Self, EngineError> {
        let mut vcpu = InterpretedVcpu::new(id, setup)?;
        vcpu.blocks.budget = SMALL_BUDGET;
        Ok(Self { vcpu })
    }

    fn cpu(&mut self) -> &mut Cpu {
        &mut self.vcpu.cpu
    }

    /// Guest memory, as this vCPU's party: what either engine derives is told to one inbox.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.vcpu.cpu.memory
    }

    /// The kicker.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        self.vcpu.cpu.kicker.clone()
    }

    /// The whole state, for [`engine::Vcpu::state`].
    ///
    /// # Errors
    /// None so far.
    pub fn lend_state(&mut self) -> Result<&mut CpuState, EngineError> {
        self.vcpu.state(Groups::all())
    }

    /// Takes over what was changed since [`Core::lend_state`], and looks for events. To be called as a run begins.
    pub fn begin(&mut self) {
        self.vcpu.take_back();
        self.cpu().special |= special::RECHECK;
    }

    /// The state, in which general registers, RIP, arithmetic flags and kept vector registers are out of date.
    #[must_use]
    pub fn state(&self) -> &CpuState {
        &self.vcpu.cpu.state
    }

    /// Flags other than the arithmetic ones, as code that another engine ran has left them. IF, DF and AC may differ from before;
    /// nothing else.
    pub fn set_system_flags(&mut self, flags: Rflags) {
        let cpu = self.cpu();
        let changed = cpu.state.rflags ^ flags;
        cpu.state.rflags = flags;
        if changed.contains(Rflags::AC) {
            cpu.select_tlb();
        }
    }

    /// Sets or clears RFLAGS.AC as STAC and CLAC do.
    pub fn set_alignment_flag(&mut self, set: bool) {
        let cpu = self.cpu();
        cpu.state.rflags.set(Rflags::AC, set);
        cpu.select_tlb();
    }

    /// The FS and GS bases in force, and IA32_KERNEL_GS_BASE, which SWAPGS exchanges.
    #[inline]
    pub fn set_bases(&mut self, fs: u64, gs: u64, kernel: u64) {
        let cpu = self.cpu();
        for (slot, base) in [(seg::FS, fs), (seg::GS, gs)] {
            if cpu.segment_base[slot] != base {
                cpu.state.segments[slot].base = base;
                cpu.segment_base[slot] = base;
            }
        }
        cpu.state.kernel_gs_base = kernel;
    }

    /// The instruction at hand follows an STI that another engine executed: no event is taken before it (SDM 2B STI).
    pub fn cast_sti_shadow(&mut self) {
        let cpu = self.cpu();
        cpu.state.sti_shadow = true;
        cpu.special |= special::RECHECK;
        cpu.update_mode();
    }

    /// General registers in encoding order.
    #[inline]
    pub fn registers(&mut self) -> &mut [u64; 16] {
        self.vcpu.cpu.regs.first_chunk_mut().expect("there are more than 16")
    }

    /// RIP, an offset in CS.
    #[inline]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.vcpu.cpu.rip
    }

    /// Sets RIP.
    #[inline]
    pub fn set_rip(&mut self, rip: u64) {
        self.vcpu.cpu.rip = rip;
    }

    /// RFLAGS, complete.
    #[must_use]
    pub fn rflags(&self) -> Rflags {
        self.vcpu.cpu.rflags()
    }

    /// Sets the six arithmetic flags from RFLAGS's bits.
    #[inline]
    pub fn set_arithmetic_flags(&mut self, flags: Rflags) {
        self.vcpu.cpu.flags = Flags::from_rflags(flags);
    }

    /// How code is to be understood now.
    #[must_use]
    pub fn code_mode(&self) -> CodeMode {
        match self.vcpu.cpu.code_size {
            crate::cpu::CodeSize::Bits16 => CodeMode::Bits16,
            crate::cpu::CodeSize::Bits32 => CodeMode::Bits32,
            crate::cpu::CodeSize::Bits64 => CodeMode::Bits64,
        }
    }

    /// For each segment register, whether accesses through it need no check of limit or type.
    #[must_use]
    pub fn unchecked_segments(&self) -> [bool; 6] {
        std::array::from_fn(|index| {
            self.vcpu.cpu.segment_fast[index] == crate::cpu::FAST_READ | crate::cpu::FAST_WRITE
        })
    }

    /// The segment bases in force: zero for ES, CS, SS and DS in 64-bit mode.
    #[must_use]
    pub fn segment_bases(&self) -> [u64; 6] {
        std::array::from_fn(|index| self.vcpu.cpu.segment_base[index])
    }

    /// Mask of the stack pointer: 16, 32 or 64 bits.
    #[must_use]
    pub fn stack_mask(&self) -> u64 {
        self.vcpu.cpu.stack_mask
    }

    /// Whether the next instruction needs nothing that only the reference does: no shadow, trap flag, breakpoint, pending debug
    /// trap, RF, and the vCPU is running. A request to look for events doesn't count.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.vcpu.cpu.special & !special::RECHECK == 0
    }

    /// Whether [`Core::attend`] has something to look at.
    #[inline]
    #[must_use]
    pub fn wants_attention(&self) -> bool {
        self.vcpu.cpu.special != 0 || self.vcpu.cpu.kicker.is_requested()
    }

    /// Asks for [`Core::attend`] to look for events.
    pub fn look_for_events(&mut self) {
        self.cpu().special |= special::RECHECK;
    }

    /// What is due between two instructions: kicks, debug traps, events. `Some` ends the run. After `None`, more may be due
    /// ([`Core::wants_event`]).
    pub fn attend(&mut self, io: &mut dyn Platform) -> Option<Exit> {
        self.vcpu.attend(io)
    }

    /// An event may have to be taken before anything else.
    #[inline]
    #[must_use]
    pub fn wants_event(&self) -> bool {
        self.vcpu.cpu.special & special::RECHECK != 0
    }

    /// Executes at most `most` instructions, of one block.
    #[inline]
    pub fn interpret(&mut self, most: u64, io: &mut dyn Platform) -> Outcome {
        let careful = !self.is_plain();
        let most = if careful { 1 } else { most.min(usize::MAX as u64) as usize };
        match self.vcpu.step(most, careful, io) {
            Ok(()) => Outcome::Ran,
            Err(Stop::WantsVector) => Outcome::WantsVector,
            Err(stop) => match self.vcpu.settle(stop, io) {
                Some(exit) => Outcome::Exit(exit),
                None => Outcome::Ran,
            },
        }
    }

    /// Instructions that [`Core::interpret`] has completed.
    #[inline]
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.vcpu.cpu.instructions
    }

    /// Blocks that [`Core::interpret`] has decoded.
    #[must_use]
    pub fn decoded(&self) -> u64 {
        self.vcpu.blocks.decoded
    }

    /// What the reference has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.vcpu.counters()
    }

    /// Says whether another engine has the vector registers.
    #[inline]
    pub fn keep_vector(&mut self, kept: bool) {
        self.cpu().vector_elsewhere = kept;
    }

    /// The vector registers, to be brought back or taken. PKRU and XCR0 are never kept elsewhere.
    #[inline]
    pub fn vector(&mut self) -> &mut VectorState {
        &mut self.cpu().state.vector
    }

    /// Translates a linear address for a data access of the running code, setting A bits as the access would. `None` where it faults,
    /// isn't RAM, or has to be watched. D bits aren't set: who writes first to a page may fault yet for another reason, and the
    /// page can't be written then as far as this is concerned.
    pub fn map(&mut self, address: u64, write: bool, io: &mut dyn Platform) -> Option<Mapping> {
        let cpu = self.cpu();
        if cpu.long_mode && !cpu.is_canonical(address) {
            return None;
        }
        let cr2 = cpu.state.cr2;
        let intent = if write { Intent::Foresee } else { Intent::Read };
        let Ok(walked) = cpu.walk(address, intent, Actor::Explicit, io) else {
            // The instruction itself will fault, or not.
            cpu.state.cr2 = cr2;
            return None;
        };
        let ram = cpu.page_in_ram(walked.gpa)?;
        Some(Mapping {
            ram,
            read: walked.may_read,
            write: walked.may_write,
            global: walked.global,
            large: walked.large,
        })
    }

    /// What the code at a linear address lies in, for an engine that caches translations of its own: the page in RAM, whether it is
    /// global, whether it is large. `None` where fetching faults (nothing has happened then), or it isn't RAM.
    pub fn map_code(&mut self, address: u64, io: &mut dyn Platform) -> Option<Mapping> {
        let cpu = self.cpu();
        if cpu.long_mode && !cpu.is_canonical(address) {
            return None;
        }
        let cr2 = cpu.state.cr2;
        let Ok(walked) = cpu.walk(address, Intent::Fetch, Actor::Explicit, io) else {
            cpu.state.cr2 = cr2;
            return None;
        };
        let ram = cpu.page_in_ram(walked.gpa)?;
        Some(Mapping { ram, read: false, write: false, global: walked.global, large: walked.large })
    }

    /// Walks that leave no trace, from the tables that are in force.
    #[must_use]
    pub fn prober(&self) -> Prober<'_> {
        Prober::new(&self.vcpu.cpu)
    }

    /// What tells one address space from another: the address of its first table.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.vcpu.cpu.state.cr3 & 0x000f_ffff_ffff_f000
    }

    /// Loads CR3 as MOV does. False where that faults: nothing has happened then.
    pub fn load_root(&mut self, value: u64, io: &mut dyn Platform) -> bool {
        crate::system::serialize();
        self.cpu().write_cr3(value, io).is_ok()
    }

    /// Drops the translations of a linear address as INVLPG does.
    pub fn drop_address(&mut self, address: u64) {
        crate::system::serialize();
        let cpu = self.cpu();
        // Otherwise it does nothing (SDM 2A INVLPG).
        if !cpu.long_mode || cpu.is_canonical(address) {
            cpu.tlb.flush_address(address);
        }
    }

    /// Whether the guest has invalidated translations since [`Core::take_dropped`].
    #[inline]
    #[must_use]
    pub fn has_dropped(&self) -> bool {
        self.vcpu.cpu.tlb.has_dropped()
    }

    /// Which translations the guest has invalidated since this was last asked.
    pub fn take_dropped(&mut self) -> Dropped {
        self.cpu().tlb.take_dropped()
    }

    /// CS's limit.
    #[must_use]
    pub fn code_limit(&self) -> u64 {
        u64::from(self.vcpu.cpu.state.segments[seg::CS].limit)
    }
}
