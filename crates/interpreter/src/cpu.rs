//! One vCPU as the handlers see it: registers, what follows from them, and the paths to memory.
//!
//! Owned by the [vCPU](crate::vcpu::InterpretedVcpu); used by one thread at a time, no locks.
//!
//! While guest code runs, general registers, RIP and the arithmetic flags live in [`Cpu::regs`], [`Cpu::rip`] and
//! [`Cpu::flags`]; [`Cpu::state`] holds all the rest. [`Cpu::publish`] and [`Cpu::adopt`] move them over. What handlers need
//! fast and can be derived from the state (code size, segment bases, which TLB set is in force) is cached in fields that
//! [`Cpu::update_mode`] recomputes; whoever changes CR0, CR4, EFER, CPL, CS, a segment, RFLAGS.AC/TF or DR7 calls it.

use crate::flags::Flags;
use crate::native::Native;
use crate::tlb::Tlb;
use crate::width::Width;
use engine::{Kicker, Setup, VcpuId};
use iced_x86::Register;
use memory::{GuestMemory, LineMonitor};
use x86::control::{cr0, cr4, efer};
use x86::state::{Segment, seg};
use x86::{CpuState, Exception, Rflags};

/// Index in [`Cpu::regs`] that always holds zero: the base or index register that isn't there.
pub(crate) const ZERO: u8 = 16;
/// Index in [`Cpu::regs`] that holds the RIP of the running block's first instruction: the base of RIP-relative operands.
pub(crate) const BLOCK_RIP: u8 = 17;

/// How a handler ends when it doesn't just complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The instruction raised a fault: nothing of it has happened (except completed iterations of a string instruction);
    /// RIP stays on it. For page faults CR2 is already set.
    Fault(Exception),
    /// The instruction is complete and has set [`Cpu::rip`]; the block must not go on (a change of mode, a trap taken, HLT).
    Leave,
    /// A string instruction has to pause between iterations: RIP stays on it, but an event may be taken.
    Pause,
    /// Delivering an exception failed for the third time.
    TripleFault,
    /// The block looks at vector registers, which somebody else has; nothing has happened. See [`Cpu::vector_elsewhere`].
    WantsVector,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

/// What a handler returns.
pub(crate) type Step = Result<(), Stop>;

/// Size of the code being executed: CS.L and CS.D (SDM 3A 3.4.5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub(crate) enum CodeSize {
    #[default]
    Bits16,
    Bits32,
    Bits64,
}

/// Things that make the main loop go instruction by instruction and look closely; see `run.rs`.
pub(crate) mod special {
    /// STI or MOV SS has just executed.
    pub(crate) const SHADOW: u8 = 1 << 0;
    /// RFLAGS.TF is set.
    pub(crate) const TRAP: u8 = 1 << 1;
    /// DR7 has an enabled breakpoint.
    pub(crate) const BREAKPOINTS: u8 = 1 << 2;
    /// RFLAGS.RF is set.
    pub(crate) const RESUME: u8 = 1 << 3;
    /// A debug trap is pending for the end of the instruction.
    pub(crate) const DEBUG_PENDING: u8 = 1 << 4;
    /// Activity isn't Running.
    pub(crate) const INACTIVE: u8 = 1 << 5;
    /// An event is known to be pending and the window has just opened.
    pub(crate) const RECHECK: u8 = 1 << 6;
}

/// Permissions for accesses through a segment that need no further check; see [`Cpu::segment_fast`].
pub(crate) const FAST_READ: u8 = 1;
pub(crate) const FAST_WRITE: u8 = 2;

/// How MWAIT waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wait {
    /// An interrupt ends it even with IF clear (ECX bit 0).
    pub(crate) breaks: bool,
}

pub(crate) struct Cpu {
    // Hot: used by nearly every handler.
    /// 0..=15 general registers, then [`ZERO`] and [`BLOCK_RIP`].
    pub(crate) regs: [u64; 32],
    /// RIP. Stale inside a block: see [`Cpu::next_rip`].
    pub(crate) rip: u64,
    pub(crate) flags: Flags,
    /// Ops of the running block that may still run; a handler sets it to 0 to leave the block after its instruction.
    pub(crate) stop_at: usize,
    /// Bases in force: zero for ES, CS, SS and DS in 64-bit mode.
    pub(crate) segment_base: [u64; 8],
    /// `FAST_READ`, `FAST_WRITE`: no limit or type check is needed for accesses through the segment.
    pub(crate) segment_fast: [u8; 8],
    pub(crate) tlb: Tlb,
    pub(crate) memory: GuestMemory,

    // Derived from the state by `update_mode`.
    pub(crate) code_size: CodeSize,
    /// EFER.LMA.
    pub(crate) long_mode: bool,
    /// CR0.PE and not virtual-8086.
    pub(crate) protected: bool,
    /// Mask of the stack pointer: 16, 32 or 64 bits (SS.B; SDM 3A 6.2.3).
    pub(crate) stack_mask: u64,
    /// See [`special`].
    pub(crate) special: u8,
    /// DR6's B0-B3 for data and I/O breakpoints that the running instruction has hit.
    pub(crate) debug_hits: u64,

    /// Everything else. `gpr`, `rip` and the arithmetic bits of `rflags` are stale while guest code runs.
    pub(crate) state: CpuState,
    /// Instructions completed.
    pub(crate) instructions: u64,
    /// Another engine has the vector registers; those in [`Cpu::state`] are out of date.
    pub(crate) vector_elsewhere: bool,
    /// PAUSEs executed: see `misc::pause`.
    pub(crate) pauses: u32,
    /// MONITOR's line, once there has been one.
    pub(crate) monitor: Option<LineMonitor>,
    /// While the activity is `Halted`: it is MWAIT's, not HLT's.
    pub(crate) wait: Option<Wait>,

    // Fixed configuration and glue.
    pub(crate) id: VcpuId,
    pub(crate) setup: Setup,
    pub(crate) kicker: Kicker,
    /// Physical-address bits of the guest: CPUID 8000_0008.
    pub(crate) physical_bits: u32,
    pub(crate) native: Native,
}

impl Cpu {
    pub(crate) fn new(id: VcpuId, setup: Setup) -> Result<Self, engine::EngineError> {
        let physical_bits = match setup.cpuid.stored(0x8000_0008, 0).eax & 0xff {
            bits @ 32..=52 => bits,
            _ => 36,
        };
        let mut state = CpuState { tsc_offset: setup.tsc_offset, ..CpuState::default() };
        state.gpr[x86::state::gpr::RDX] = u64::from(setup.cpuid.stored(1, 0).eax);
        let mut cpu = Self {
            regs: [0; 32],
            rip: 0,
            flags: Flags::from_rflags(Rflags::empty()),
            stop_at: 0,
            segment_base: [0; 8],
            segment_fast: [0; 8],
            tlb: Tlb::new(),
            memory: setup.memory.new_party(),
            code_size: CodeSize::Bits16,
            long_mode: false,
            protected: false,
            stack_mask: 0xffff,
            special: 0,
            debug_hits: 0,
            state,
            instructions: 0,
            vector_elsewhere: false,
            pauses: 0,
            monitor: None,
            wait: None,
            id,
            setup,
            kicker: Kicker::new(),
            physical_bits,
            native: Native::new()?,
        };
        cpu.adopt();
        Ok(cpu)
    }

    /// Takes general registers, RIP and flags over from [`Cpu::state`], which somebody may have changed.
    pub(crate) fn adopt(&mut self) {
        self.regs[..16].copy_from_slice(&self.state.gpr);
        self.rip = self.state.rip;
        self.flags = Flags::from_rflags(self.state.rflags);
        self.debug_hits = self.state.pending_debug & 0xf;
        self.special &= !special::DEBUG_PENDING;
        if self.state.pending_debug != 0 {
            self.special |= special::DEBUG_PENDING;
        }
        self.tlb.flush();
        self.update_mode();
    }

    /// Makes [`Cpu::state`] complete.
    pub(crate) fn publish(&mut self) {
        self.state.gpr.copy_from_slice(&self.regs[..16]);
        self.state.rip = self.rip;
        self.state.rflags = self.rflags();
        let pending = self.special & special::DEBUG_PENDING != 0;
        self.state.pending_debug = if pending { 1 << 12 | self.debug_hits } else { 0 };
    }

    /// All of RFLAGS.
    pub(crate) fn rflags(&self) -> Rflags {
        (self.state.rflags - Rflags::ARITHMETIC) | self.flags.to_rflags() | Rflags::ONE
    }

    /// Loads all of RFLAGS as given; which bits may change is the caller's business.
    pub(crate) fn set_rflags(&mut self, flags: Rflags) {
        self.flags = Flags::from_rflags(flags);
        self.state.rflags = flags | Rflags::ONE;
        if flags.contains(Rflags::IF) {
            // Something may have been waiting for it.
            self.special |= special::RECHECK;
        }
        self.update_mode();
    }

    /// Recomputes what is derived from mode, segments and flags. See the module's head for who has to call it.
    pub(crate) fn update_mode(&mut self) {
        let state = &self.state;
        let virtual_8086 = state.rflags.contains(Rflags::VM);
        self.long_mode = state.efer & efer::LMA != 0;
        self.protected = state.cr0 & cr0::PE != 0 && !virtual_8086;
        let code = &state.segments[seg::CS];
        self.code_size = if self.long_mode && code.attributes.is_long() {
            CodeSize::Bits64
        } else if code.attributes.is_big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        let flat = self.code_size == CodeSize::Bits64;
        self.stack_mask = if flat {
            u64::MAX
        } else if state.segments[seg::SS].attributes.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        for (index, segment) in state.segments.iter().enumerate() {
            let base_counts = !flat || matches!(index, seg::FS | seg::GS);
            self.segment_base[index] = if base_counts { segment.base } else { 0 };
            self.segment_fast[index] =
                if flat { FAST_READ | FAST_WRITE } else { fast_checks(segment, self.protected) };
        }
        self.special &= special::DEBUG_PENDING | special::RECHECK;
        if state.sti_shadow || state.mov_ss_shadow {
            self.special |= special::SHADOW;
        }
        if state.rflags.contains(Rflags::TF) {
            self.special |= special::TRAP;
        }
        if state.rflags.contains(Rflags::RF) {
            self.special |= special::RESUME;
        }
        if state.dr7 & x86::control::dr7::ENABLES != 0 {
            self.special |= special::BREAKPOINTS;
        }
        if state.activity != x86::state::Activity::Running {
            self.special |= special::INACTIVE;
        }
        self.select_tlb();
    }

    /// Chooses the TLB's set by CPL, CR4.SMAP, RFLAGS.AC and DR7: the part of [`Cpu::update_mode`] that memory needs.
    pub(crate) fn select_tlb(&mut self) {
        let state = &self.state;
        let breakpoints = state.dr7 & x86::control::dr7::ENABLES != 0;
        let user = state.cpl == 3;
        let smap_off = state.cr4 & cr4::SMAP == 0 || state.rflags.contains(Rflags::AC);
        let aligned = user && state.cr0 & cr0::AM != 0 && state.rflags.contains(Rflags::AC);
        self.tlb.select(user, smap_off, aligned || breakpoints);
    }

    /// RIP of the instruction after `op`, for handlers that set RIP or push it.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &crate::op::Op) -> u64 {
        self.mask_rip(self.regs[BLOCK_RIP as usize].wrapping_add(u64::from(op.next)))
    }

    /// RIP of `op` itself.
    #[inline(always)]
    pub(crate) fn current_rip(&self, op: &crate::op::Op) -> u64 {
        self.mask_rip(self.regs[BLOCK_RIP as usize].wrapping_add(u64::from(op.start)))
    }

    /// RIP as wide as the code is: outside 64-bit mode it has 32 bits.
    #[inline(always)]
    pub(crate) fn mask_rip(&self, rip: u64) -> u64 {
        if self.code_size == CodeSize::Bits64 { rip } else { rip & 0xffff_ffff }
    }

    /// Sets RIP after a near branch, checking it against CS's limit or canonicality first (SDM 2A JMP, CALL; 2B RET).
    #[inline(always)]
    pub(crate) fn branch_to(&mut self, rip: u64) -> Step {
        if self.code_size == CodeSize::Bits64 {
            if !self.is_canonical(rip) {
                return Err(Exception::GP0.into());
            }
        } else if rip > u64::from(self.state.segments[seg::CS].limit) {
            return Err(Exception::GP0.into());
        }
        self.rip = rip;
        Ok(())
    }

    /// Whether a linear address is canonical for the paging mode (SDM 1 3.3.7.1).
    #[inline(always)]
    pub(crate) fn is_canonical(&self, address: u64) -> bool {
        let unused = if self.state.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// The privilege level, 0..=3.
    #[inline(always)]
    pub(crate) fn cpl(&self) -> u8 {
        self.state.cpl
    }

    /// Whether CR0.PE is set and RFLAGS.VM too.
    #[inline]
    pub(crate) fn virtual_8086(&self) -> bool {
        self.state.rflags.contains(Rflags::VM)
    }

    /// Reads a general register operand of any width.
    #[inline]
    pub(crate) fn reg<W: Width>(&self, index: u8, shift: u8) -> W {
        W::extract(self.regs[usize::from(index & 31)], shift)
    }

    /// Writes a general register operand of any width.
    #[inline]
    pub(crate) fn set_reg<W: Width>(&mut self, index: u8, shift: u8, value: W) {
        let register = &mut self.regs[usize::from(index & 31)];
        *register = value.merge(*register, shift);
    }

    /// The value of a general register that iced names, zero-extended.
    pub(crate) fn read_register(&self, register: Register) -> u64 {
        let (index, shift) = register_slot(register);
        let value = self.regs[usize::from(index)] >> shift;
        match register.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes a general register that iced names, with the architecture's merging rules.
    pub(crate) fn write_register(&mut self, register: Register, value: u64) {
        let (index, shift) = register_slot(register);
        match register.size() {
            1 => self.set_reg(index, shift, value as u8),
            2 => self.set_reg(index, shift, value as u16),
            4 => self.set_reg(index, shift, value as u32),
            _ => self.set_reg(index, shift, value),
        }
    }
}

/// Where a general register lies in [`Cpu::regs`]: index and, for AH, CH, DH and BH, a shift of 8.
pub(crate) fn register_slot(register: Register) -> (u8, u8) {
    match register {
        Register::AH => (0, 8),
        Register::CH => (1, 8),
        Register::DH => (2, 8),
        Register::BH => (3, 8),
        Register::None => (ZERO, 0),
        _ => (register.full_register().number() as u8 & 15, 0),
    }
}

/// Whether every 32-bit offset passes the segment's checks, for reads and for writes.
fn fast_checks(segment: &Segment, protected: bool) -> u8 {
    if segment.base != 0 || segment.limit != u32::MAX {
        return 0;
    }
    if !protected {
        return FAST_READ | FAST_WRITE;
    }
    let attributes = segment.attributes;
    if !attributes.is_present() || attributes.is_expand_down() {
        return 0;
    }
    let read = if attributes.is_readable() { FAST_READ } else { 0 };
    let write = if attributes.is_writable() { FAST_WRITE } else { 0 };
    read | write
}
