//! The main loop: events, blocks, and the careful path for single instructions.
//!
//! Between blocks the loop looks at one word ([`Cpu::special`]) and one atomic flag (the kicker). As long as neither is set it
//! runs whole blocks. Else it goes one instruction at a time, which is how interrupt shadows, TF, debug registers, RF and
//! instruction budgets are exact. Priorities follow SDM 3A table 6-2.

use crate::blocks::{BlockIndex, Key};
use crate::cpu::{BLOCK_RIP, CodeSize, Cpu, Stop, special};
use crate::system::deliver::Source;
use crate::tlb::Fill;
use crate::vcpu::InterpretedVcpu;
use crate::walk::{Actor, Intent};
use engine::{Event, Exit, Flush, Platform, Window};
use memory::RamOffset;
use x86::address::PAGE_SIZE;
use x86::control::dr6;
use x86::state::{Activity, seg};
use x86::{Exception, Gpa, Rflags, Vector};

/// Where the next instruction comes from.
enum Code {
    Block(BlockIndex),
    /// Not in RAM: decoded afresh each time.
    Uncached(Box<crate::blocks::Block>),
}

/// Where code lies. Found by one walk: page tables that are in a device may say something else to the next.
pub(crate) enum CodePlace {
    Ram(RamOffset),
    Device(Gpa),
}

/// Faults, or parts of a repeated instruction, in a row without any instruction completing. A handler that faults at its own
/// first instruction goes on without end on a CPU, and no budget would end it; a run returns after so many.
const MOST_STUCK: u32 = 1000;

impl InterpretedVcpu {
    /// Runs up to `limit` instructions.
    pub(crate) fn execute(&mut self, limit: u64, io: &mut dyn Platform) -> Exit {
        let mut left = limit;
        // A fresh run may have been asked for because something is pending.
        self.cpu.special |= special::RECHECK;
        let (mut seen, mut stuck) = (0, 0);
        loop {
            if self.cpu.special != 0 || self.cpu.kicker.is_requested() {
                if let Some(exit) = self.attend(io) {
                    return exit;
                }
                // An event was taken; the next one may be due before any instruction (a trap gate leaves IF set), and a
                // CPU that now waits for a start-up IPI executes none.
                if self.cpu.special & special::RECHECK != 0 {
                    continue;
                }
            }
            if left == 0 {
                return Exit::Budget;
            }
            let careful = self.cpu.special & !special::RECHECK != 0;
            let most = if careful { 1 } else { left.min(usize::MAX as u64) as usize };
            let before = self.cpu.instructions;
            let outcome = self.step(most, careful, io);
            left -= (self.cpu.instructions - before).min(left);
            if let Err(stop) = outcome {
                if let Some(exit) = self.settle(stop, io) {
                    return exit;
                }
                if seen != self.cpu.instructions {
                    (seen, stuck) = (self.cpu.instructions, 0);
                }
                stuck += 1;
                if stuck == MOST_STUCK {
                    return Exit::Kicked;
                }
            }
        }
    }

    /// Runs (part of) one block: at most `most` instructions.
    #[inline(always)]
    pub(crate) fn step(&mut self, most: usize, careful: bool, io: &mut dyn Platform) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        let address = cpu.segment_base[seg::CS].wrapping_add(cpu.rip);
        let address = if cpu.code_size == CodeSize::Bits64 { address } else { address & 0xffff_ffff };
        if careful {
            cpu.check_breakpoints(address)?;
        }
        let context = cpu.tlb.epoch() << 3 | u64::from(cpu.state.cpl == 3) << 2 | cpu.code_size as u64;
        let index = match self.blocks.successor(self.last, address, context) {
            Some(index) if self.blocks.is_current_at(index, &self.cpu.memory) => index,
            _ => match self.next_block(address, context, io)? {
                Code::Block(index) => index,
                Code::Uncached(block) => {
                    if self.cpu.vector_elsewhere && block.touches_vector {
                        return Err(Stop::WantsVector);
                    }
                    return run_block(&mut self.cpu, &block, most, careful, io);
                }
            },
        };
        self.last = index;
        if self.cpu.vector_elsewhere && self.blocks.get(index).touches_vector {
            return Err(Stop::WantsVector);
        }
        run_block(&mut self.cpu, self.blocks.get(index), most, careful, io)
    }

    /// The block at a linear address, which isn't the one that last followed the block just run.
    #[inline(never)]
    fn next_block(&mut self, address: u64, context: u64, io: &mut dyn Platform) -> Result<Code, Stop> {
        if let Some(index) = self.blocks.lookup(address, context)
            && self.blocks.is_current_at(index, &self.cpu.memory)
        {
            self.blocks.link(self.last, address, context, index);
            return Ok(Code::Block(index));
        }
        self.find_code(address, context, io)
    }

    /// Translates, finds or decodes the block at a linear address.
    #[cold]
    fn find_code(&mut self, address: u64, context: u64, io: &mut dyn Platform) -> Result<Code, Stop> {
        let Some(at) = self.cpu.fetch_target(address, io)? else {
            return Ok(Code::Uncached(Box::new(self.cpu.decode_uncached(address, io)?)));
        };
        let key = Key { at, size: self.cpu.code_size };
        if let Some(index) = self.blocks.find(key)
            && self.blocks.is_current(index, &self.cpu.memory)
        {
            let Some((second, _)) = self.blocks.get(index).second else {
                self.blocks.remember(address, context, index);
                return Ok(Code::Block(index));
            };
            // The instruction continues on another page: is it still the same one?
            let next = (address | (PAGE_SIZE - 1)).wrapping_add(1);
            if self.cpu.fetch_target(next, io)? == Some(second) {
                return Ok(Code::Block(index));
            }
        }
        let block = self.cpu.decode_block(key, address, io)?;
        if block.is_cacheable() {
            let straddles = block.second.is_some();
            let index = self.blocks.insert(block);
            if !straddles {
                self.blocks.remember(address, context, index);
            }
            Ok(Code::Block(index))
        } else {
            Ok(Code::Uncached(Box::new(block)))
        }
    }

    /// Deals with whatever ended a block early. `Some` ends the run.
    pub(crate) fn settle(&mut self, stop: Stop, io: &mut dyn Platform) -> Option<Exit> {
        match stop {
            Stop::Leave | Stop::Pause | Stop::WantsVector => None,
            Stop::Fault(exception) => {
                tracing::trace!(?exception, rip = self.cpu.rip, cr2 = self.cpu.state.cr2, "exception");
                self.cpu.raise(exception, io).err().and_then(|stop| self.settle(stop, io))
            }
            Stop::TripleFault => {
                self.cpu.state.activity = Activity::Shutdown;
                self.cpu.update_mode();
                Some(Exit::Shutdown)
            }
        }
    }

    /// What is due between two instructions. `Some` ends the run.
    #[cold]
    pub(crate) fn attend(&mut self, io: &mut dyn Platform) -> Option<Exit> {
        let kicked = self.cpu.kicker.take();
        if kicked {
            self.cpu.special |= special::RECHECK;
        }
        // Traps on the instruction that has just completed come before events (SDM 3A table 6-2, class 4).
        // After MOV SS they wait for one instruction more (SDM 3A 6.8.3).
        if self.cpu.special & special::DEBUG_PENDING != 0
            && !self.cpu.state.mov_ss_shadow
            && self.cpu.state.activity != Activity::Shutdown
        {
            self.cpu.special &= !special::DEBUG_PENDING;
            let delivered = self.cpu.raise_trap(Exception::new(Vector::Debug), io);
            if let Err(stop) = delivered {
                return self.settle(stop, io);
            }
        }
        if self.cpu.special & special::RECHECK != 0 {
            let cpu = &mut self.cpu;
            let shadow = cpu.state.sti_shadow || cpu.state.mov_ss_shadow;
            let interrupt = cpu.state.rflags.contains(Rflags::IF) && !shadow;
            // After INIT nothing but a start-up IPI gets through (SDM 3A 8.4.2).
            let awake = cpu.state.activity != Activity::WaitForStartup;
            // STI's shadow holds NMIs back too, as it does on the CPUs that kernels are tested on (SDM 2B STI: it may).
            let nmi = awake && !cpu.state.nmi_blocked && !shadow;
            let halted = cpu.state.activity == Activity::Halted && cpu.wait.is_none();
            let window = Window { nmi, interrupt: awake && interrupt, halted };
            match io.take_event(window) {
                Some(event) => {
                    let delivered = cpu.accept(event, io);
                    cpu.update_mode();
                    if let Err(stop) = delivered
                        && let Some(exit) = self.settle(stop, io)
                    {
                        return Some(exit);
                    }
                }
                // Whoever opens the window further sets RECHECK again.
                None => cpu.special &= !special::RECHECK,
            }
        }
        self.cpu.end_wait(io);
        if kicked {
            return Some(Exit::Kicked);
        }
        match self.cpu.state.activity {
            Activity::Running => None,
            Activity::Shutdown => Some(Exit::Shutdown),
            Activity::Halted | Activity::WaitForStartup => {
                (self.cpu.special & special::RECHECK == 0).then_some(Exit::Halted)
            }
        }
    }
}

/// Runs the first `most` ops of a block.
#[inline(always)]
fn run_block(
    cpu: &mut Cpu,
    block: &crate::blocks::Block,
    most: usize,
    careful: bool,
    io: &mut dyn Platform,
) -> Result<(), Stop> {
    if careful {
        return run_careful(cpu, block, io);
    }
    let rip = cpu.rip;
    if cpu.code_size != CodeSize::Bits64 {
        // Inside CS's limit? Blocks that straddle it go instruction by instruction (SDM 3A 5.3).
        let limit = u64::from(cpu.state.segments[seg::CS].limit);
        if rip + block.len - 1 > limit {
            return run_careful(cpu, block, io);
        }
    }
    cpu.regs[BLOCK_RIP as usize] = rip;
    let ops = &block.ops[..];
    cpu.stop_at = ops.len().min(most);
    let mut done = 0;
    while done < cpu.stop_at {
        let Some(op) = ops.get(done) else { break };
        if let Err(stop) = (op.run)(cpu, op, io) {
            return leave_block(cpu, op, done, stop);
        }
        done += 1;
    }
    cpu.instructions += done as u64;
    match ops.get(done) {
        // Cut short: by the budget, or because code was written.
        Some(op) => cpu.rip = cpu.current_rip(op),
        None if !ops.last().is_some_and(|op| op.ends_in_branch) => {
            cpu.rip = cpu.mask_rip(rip.wrapping_add(block.len));
        }
        None => {}
    }
    Ok(())
}

#[cold]
fn leave_block(cpu: &mut Cpu, op: &crate::op::Op, done: usize, stop: Stop) -> Result<(), Stop> {
    cpu.instructions += done as u64;
    match stop {
        Stop::Leave => cpu.instructions += 1,
        Stop::Fault(_) | Stop::Pause | Stop::TripleFault | Stop::WantsVector => cpu.rip = cpu.current_rip(op),
    }
    Err(stop)
}

/// Runs one instruction with everything that [`Cpu::special`] asks for.
#[cold]
fn run_careful(cpu: &mut Cpu, block: &crate::blocks::Block, io: &mut dyn Platform) -> Result<(), Stop> {
    let trap = cpu.state.rflags.contains(Rflags::TF);
    let resume = cpu.state.rflags.contains(Rflags::RF);
    let (sti, mov_ss) = (cpu.state.sti_shadow, cpu.state.mov_ss_shadow);
    let rip = cpu.rip;
    cpu.regs[BLOCK_RIP as usize] = rip;
    let Some(op) = block.ops.first() else { return Ok(()) };
    if cpu.code_size != CodeSize::Bits64
        && rip + u64::from(op.next) - 1 > u64::from(cpu.state.segments[seg::CS].limit)
    {
        return Err(Exception::GP0.into());
    }
    cpu.stop_at = 1;
    // The shadows cover exactly this instruction, which may cast its own (MOV SS again, not STI again).
    (cpu.state.sti_shadow, cpu.state.mov_ss_shadow) = (false, false);
    let outcome = (op.run)(cpu, op, io);
    let completed = matches!(outcome, Ok(()) | Err(Stop::Leave));
    match outcome {
        Ok(()) => {
            if !op.ends_in_branch {
                cpu.rip = cpu.next_rip(op);
            }
        }
        Err(Stop::Leave) => {}
        Err(_) => {
            cpu.rip = cpu.current_rip(op);
            // The fault is taken before the shadow ends; the handler sees the state before the instruction.
            if matches!(outcome, Err(Stop::Pause)) {
                (cpu.state.sti_shadow, cpu.state.mov_ss_shadow) = (sti, mov_ss);
            }
        }
    }
    if completed {
        cpu.instructions += 1;
        // RF is cleared by every instruction that completes, except those that load it (SDM 3B 17.3.1.1).
        if resume && !op.loads_rf() {
            cpu.state.rflags.remove(Rflags::RF);
        }
        // SYSCALL may clear TF, and is not trapped then.
        let trap = trap && (cpu.state.rflags.contains(Rflags::TF) || !op.is_syscall());
        if trap && !op.suppresses_trap() {
            cpu.state.dr6 |= dr6::BS;
            cpu.special |= special::DEBUG_PENDING;
        }
    }
    cpu.update_mode();
    if sti || mov_ss {
        cpu.special |= special::RECHECK;
    }
    outcome
}

impl Cpu {
    /// `#DB` before the instruction at a linear address, and before anything that fetching it may raise (SDM 3A table 6-2).
    #[cold]
    fn check_breakpoints(&mut self, address: u64) -> Result<(), Stop> {
        let held_back = self.state.mov_ss_shadow || self.state.rflags.contains(Rflags::RF);
        if self.special & special::BREAKPOINTS == 0 || held_back {
            return Ok(());
        }
        let hits = self.instruction_breakpoints(address);
        if hits == 0 {
            return Ok(());
        }
        self.state.dr6 = self.state.dr6 & !0xf | hits;
        Err(Exception::new(Vector::Debug).into())
    }

    /// Where in RAM code at a linear address lies; `None` where it isn't RAM.
    pub(crate) fn fetch_target(
        &mut self,
        address: u64,
        io: &mut dyn Platform,
    ) -> Result<Option<RamOffset>, Stop> {
        match self.locate_code(address, io)? {
            CodePlace::Ram(ram) => Ok(Some(ram)),
            CodePlace::Device(_) => Ok(None),
        }
    }

    /// Where code at a linear address lies.
    pub(crate) fn locate_code(&mut self, address: u64, io: &mut dyn Platform) -> Result<CodePlace, Stop> {
        if let Some(ram) = self.tlb.fetch(address) {
            return Ok(CodePlace::Ram(ram));
        }
        if self.long_mode && !self.is_canonical(address) {
            return Err(Exception::GP0.into());
        }
        let walked = self.walk(address, Intent::Fetch, Actor::Explicit, io)?;
        let Some(page) = self.page_in_ram(walked.gpa) else { return Ok(CodePlace::Device(walked.gpa)) };
        self.tlb.fill_code(Fill {
            page: address & !(PAGE_SIZE - 1),
            ram: page,
            read: true,
            write: false,
            large: walked.large,
        });
        Ok(CodePlace::Ram(RamOffset(page.0 + walked.gpa.offset())))
    }

    /// Takes an event that the machine has handed out.
    fn accept(&mut self, event: Event, io: &mut dyn Platform) -> Result<(), Stop> {
        match event {
            Event::Init => {
                self.init();
                Ok(())
            }
            Event::Startup(vector) => {
                self.startup(vector);
                Ok(())
            }
            Event::Nmi => {
                self.state.activity = Activity::Running;
                self.state.nmi_blocked = true;
                self.deliver(Vector::Nmi as u8, None, Source::External, io)
            }
            Event::Interrupt(vector) => {
                self.state.activity = Activity::Running;
                self.deliver(vector, None, Source::External, io)
            }
            Event::Flush(flush) => {
                match flush {
                    Flush::All => self.tlb.flush(),
                    Flush::Local => self.tlb.flush_local(),
                    Flush::Page(at) => self.tlb.flush_address(at.0),
                }
                Ok(())
            }
            Event::Wake => {
                if self.state.activity == Activity::Halted {
                    self.state.activity = Activity::Running;
                }
                Ok(())
            }
        }
    }
}
