//! Delivery of exceptions, interrupts and traps: what leads to a gate, double and triple faults, software interrupts,
//! INIT and start-up (SDM 3A chapter 6). The gates themselves are in `gates.rs`.

use crate::cpu::{Cpu, Step, Stop, special};
use crate::op::Op;
use engine::Platform;
use iced_x86::Mnemonic;
use x86::control::{cr0, cr4, dr7};
use x86::descriptor::{Attributes, Selector};
use x86::state::{Activity, Segment, seg};
use x86::{CpuState, Exception, Rflags, Vector};

/// Where an event comes from; decides privilege checks and the EXT bit of error codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// An exception of the running instruction.
    Exception,
    /// An external interrupt or NMI.
    External,
    /// INT n, INT3, INTO: gate privilege is checked.
    Software,
    /// INT1: no privilege check, EXT set.
    PrivilegedSoftware,
}

impl Source {
    /// The EXT bit in error codes of faults met on the way (SDM 3A 6.13).
    pub(super) fn ext(self) -> u32 {
        u32::from(self != Self::Software)
    }
}

/// Faults in a row, each raised while delivering the one before, after which the CPU gives up. The double-fault rules end
/// every chain sooner; this bounds those that consist of benign ones.
const LONGEST_CHAIN: u32 = 8;

impl Cpu {
    /// Delivers an event. `code` is the error code to push. Faults met on the way are the caller's to raise; nothing has
    /// happened then, unless a task switch got as far as the new task.
    pub(crate) fn deliver(
        &mut self,
        vector: u8,
        code: Option<u32>,
        source: Source,
        io: &mut dyn Platform,
    ) -> Step {
        let flags = self.rflags();
        match self.deliver_with(vector, code, source, flags, io)? {
            Some(in_new_task) => Err(in_new_task.into()),
            None => Ok(()),
        }
    }

    /// As [`Cpu::deliver`], pushing `flags`. `Some`: the event went through a task gate, and the new task begins with this
    /// exception.
    fn deliver_with(
        &mut self,
        vector: u8,
        code: Option<u32>,
        source: Source,
        flags: Rflags,
        io: &mut dyn Platform,
    ) -> Result<Option<Exception>, Stop> {
        let begun = if self.state.cr0 & cr0::PE == 0 {
            self.deliver_real(vector, source, flags, io)?;
            None
        } else if self.long_mode {
            self.deliver_long(vector, code, source, flags, io)?;
            None
        } else {
            self.deliver_protected(vector, code, source, flags, io)?
        };
        if self.state.sti_shadow || self.state.mov_ss_shadow {
            // What the shadow held back is due now.
            self.special |= special::RECHECK;
        }
        self.state.sti_shadow = false;
        self.state.mov_ss_shadow = false;
        self.state.activity = Activity::Running;
        self.update_mode();
        Ok(begun)
    }

    /// Delivers a fault, and what comes of that: double and triple faults (SDM 3A 6.15, interrupt 8, table 6-5).
    pub(crate) fn raise(&mut self, exception: Exception, io: &mut dyn Platform) -> Step {
        // Traps that the instruction would have ended with are lost: it did not end.
        self.special &= !special::DEBUG_PENDING;
        self.debug_hits = 0;
        // A fault restarts its instruction, whose breakpoint has had its turn (SDM 3B 17.3.1.1).
        let flags = self.rflags() | Rflags::RF;
        self.raise_with(exception, flags, io)
    }

    /// Delivers a trap: the instruction before RIP is complete.
    pub(crate) fn raise_trap(&mut self, exception: Exception, io: &mut dyn Platform) -> Step {
        if exception.vector == Vector::Debug && self.debug_hits != 0 {
            self.state.dr6 = self.state.dr6 & !0xf | self.debug_hits;
            self.debug_hits = 0;
        }
        let flags = self.rflags();
        self.raise_with(exception, flags, io)
    }

    fn raise_with(&mut self, exception: Exception, mut flags: Rflags, io: &mut dyn Platform) -> Step {
        let mut current = exception;
        for _ in 0..LONGEST_CHAIN {
            if current.vector == Vector::Debug {
                // So that the handler can use the debug registers (SDM 3B 17.2.4).
                self.state.dr7 &= !dr7::GD;
            }
            let code = current.vector.has_error_code().then_some(current.code);
            let second = match self.deliver_with(current.vector as u8, code, Source::Exception, flags, io) {
                Ok(None) => return Ok(()),
                Ok(Some(in_new_task)) => {
                    flags = self.rflags() | Rflags::RF;
                    in_new_task
                }
                Err(Stop::Fault(second)) => second,
                Err(other) => return Err(other),
            };
            tracing::trace!(first = ?current, ?second, "a fault while delivering a fault");
            current = match current.vector {
                Vector::DoubleFault => return Err(Stop::TripleFault),
                first if doubles(first, second.vector) => Exception::new(Vector::DoubleFault),
                _ => second,
            };
        }
        Err(Stop::TripleFault)
    }

    /// Through the real-mode vector table (SDM 3B 20.1.4). No error codes are pushed.
    fn deliver_real(&mut self, vector: u8, source: Source, flags: Rflags, io: &mut dyn Platform) -> Step {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.state.idtr.limit) {
            return Err(Exception::with_code(
                Vector::GeneralProtection,
                u32::from(vector) * 8 + 2 + source.ext(),
            )
            .into());
        }
        let target = self.read_system(self.state.idtr.base.wrapping_add(entry), 4, io)?;
        self.enter_real_handler(target as u32, flags, io)
    }

    /// Pushes FLAGS, CS and IP and goes to a real-mode far pointer.
    fn enter_real_handler(&mut self, target: u32, flags: Rflags, io: &mut dyn Platform) -> Step {
        let mut stack = self.current_stack(0);
        let frame =
            [flags.bits() & 0xffff, self.state.segments[seg::CS].selector.0.into(), self.rip & 0xffff];
        self.push_frame(&mut stack, &frame, 2, io)?;
        self.regs[4] = stack.merge(self.regs[4]);
        self.state.segments[seg::CS] = self.real_segment(seg::CS, (target >> 16) as u16);
        self.rip = u64::from(target & 0xffff);
        self.state.rflags.remove(Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF);
        self.update_mode();
        Ok(())
    }

    /// INT n in virtual-8086 mode with CR4.VME where the redirection bitmap sends it to the 8086 program's own handler
    /// (SDM 3B 20.3.3). `false`: it doesn't.
    fn redirect_virtual_interrupt(&mut self, vector: u8, io: &mut dyn Platform) -> Result<bool, Stop> {
        if self.state.cr4 & cr4::VME == 0 {
            return Ok(false);
        }
        let tr = self.state.tr;
        if tr.limit < 103 {
            return Err(Exception::GP0.into());
        }
        let io_map = self.read_system(tr.base.wrapping_add(102), 2, io)?;
        // The 32 bytes below the I/O permission bitmap.
        let at = (io_map + u64::from(vector / 8)).wrapping_sub(32);
        if at > u64::from(tr.limit) {
            return Err(Exception::GP0.into());
        }
        let byte = self.read_system(tr.base.wrapping_add(at), 1, io)?;
        if byte >> (vector % 8) & 1 != 0 {
            return Ok(false);
        }
        let target = self.read_system(u64::from(vector) * 4, 4, io)?;
        let mut flags = self.rflags();
        let virtual_if = flags.iopl() < 3;
        if virtual_if {
            // The program sees IOPL 3 and VIF in the place of IF.
            flags.set(Rflags::IF, self.state.rflags.contains(Rflags::VIF));
            flags |= Rflags::IOPL;
        }
        let old = self.state.rflags;
        self.enter_real_handler(target as u32, flags, io)?;
        // Unlike in real mode AC stays: the program's IRET doesn't bring it back.
        self.state.rflags |= old & Rflags::AC;
        if virtual_if {
            self.state.rflags |= old & Rflags::IF;
            self.state.rflags.remove(Rflags::VIF);
        }
        self.update_mode();
        Ok(true)
    }

    /// A software interrupt: the instruction is complete when it is delivered.
    fn software_interrupt(&mut self, op: &Op, vector: u8, source: Source, io: &mut dyn Platform) -> Step {
        self.rip = self.next_rip(op);
        let flags = self.rflags();
        match self.deliver_with(vector, None, source, flags, io)? {
            Some(in_new_task) => self.begin_task_with(in_new_task, io),
            None => Ok(()),
        }
    }

    /// A task switch has succeeded but its task begins with a fault.
    pub(super) fn begin_task_with(&mut self, exception: Exception, io: &mut dyn Platform) -> Step {
        self.raise(exception, io)?;
        Err(Stop::Leave)
    }

    /// INIT (SDM 3A table 9-1): everything but the caches, the TSC, the MSRs and the FPU starts afresh.
    pub(crate) fn init(&mut self) {
        let old = self.state.clone();
        let fresh = CpuState::default();
        self.state = CpuState {
            // CD and NW stay.
            cr0: (old.cr0 & (cr0::CD | cr0::NW)) | cr0::ET,
            // Not EFER: long mode ends.
            star: old.star,
            lstar: old.lstar,
            cstar: old.cstar,
            sfmask: old.sfmask,
            kernel_gs_base: old.kernel_gs_base,
            sysenter_cs: old.sysenter_cs,
            sysenter_esp: old.sysenter_esp,
            sysenter_eip: old.sysenter_eip,
            pat: old.pat,
            tsc_aux: old.tsc_aux,
            xss: old.xss,
            spec_ctrl: old.spec_ctrl,
            tsc_offset: old.tsc_offset,
            tsc_adjust: old.tsc_adjust,
            vector: old.vector,
            ..fresh
        };
        self.state.gpr[x86::state::gpr::RDX] = u64::from(self.setup.cpuid.stored(1, 0).eax);
        // All but the bootstrap processor wait (SDM 3A 8.4.3).
        if self.id.0 != 0 {
            self.state.activity = Activity::WaitForStartup;
        }
        self.special = 0;
        self.debug_hits = 0;
        self.adopt();
        self.special |= special::RECHECK;
    }

    /// A start-up IPI (SDM 3A 8.4.3): ignored unless the CPU waits for one.
    pub(crate) fn startup(&mut self, vector: u8) {
        if self.state.activity != Activity::WaitForStartup {
            return;
        }
        let selector = u16::from(vector) << 8;
        self.state.segments[seg::CS] = Segment {
            base: u64::from(vector) << 12,
            limit: 0xffff,
            attributes: Attributes(0x9b),
            selector: Selector(selector),
        };
        self.rip = 0;
        self.state.activity = Activity::Running;
        self.update_mode();
    }
}

/// Whether `second`, raised while `first` was being delivered, makes a double fault (SDM 3A table 6-5).
fn doubles(first: Vector, second: Vector) -> bool {
    let page_fault = |vector| matches!(vector, Vector::PageFault | Vector::Virtualization);
    if first.is_contributory() {
        second.is_contributory()
    } else {
        page_fault(first) && (page_fault(second) || second.is_contributory())
    }
}

/// INT n, INT3, INTO, INT1 (SDM 2A INT n).
pub(super) fn interrupt(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    match op.instruction().mnemonic() {
        Mnemonic::Int1 => {
            // A data breakpoint that MOV SS held back comes with this #DB, not after it.
            if cpu.debug_hits != 0 {
                cpu.state.dr6 = cpu.state.dr6 & !0xf | cpu.debug_hits;
                cpu.debug_hits = 0;
            }
            cpu.special &= !special::DEBUG_PENDING;
            cpu.software_interrupt(op, Vector::Debug as u8, Source::PrivilegedSoftware, io)
        }
        Mnemonic::Int3 => cpu.software_interrupt(op, Vector::Breakpoint as u8, Source::Software, io),
        Mnemonic::Into => {
            if !cpu.flags.of() {
                cpu.rip = cpu.next_rip(op);
                return Ok(());
            }
            cpu.software_interrupt(op, Vector::Overflow as u8, Source::Software, io)
        }
        _ => {
            let vector = op.imm as u8;
            if cpu.virtual_8086() {
                let rip = cpu.rip;
                cpu.rip = cpu.next_rip(op);
                if cpu.redirect_virtual_interrupt(vector, io)? {
                    return Ok(());
                }
                cpu.rip = rip;
                if cpu.state.rflags.iopl() < 3 {
                    return Err(Exception::GP0.into());
                }
            }
            cpu.software_interrupt(op, vector, Source::Software, io)
        }
    }
}

/// BOUND (SDM 2A BOUND): `#BR` unless the index lies between the two bounds in memory.
pub(super) fn bound(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let index = cpu.operand(op, 0, io)?;
    let at = cpu.effective_address(op);
    let inside = if op.instruction().op0_register().size() == 2 {
        let low = cpu.read::<u16>(op.segment, at, io)? as i16;
        let high = cpu.read::<u16>(op.segment, at.wrapping_add(2) & op.address_mask, io)? as i16;
        (low..=high).contains(&(index as i16))
    } else {
        let low = cpu.read::<u32>(op.segment, at, io)? as i32;
        let high = cpu.read::<u32>(op.segment, at.wrapping_add(4) & op.address_mask, io)? as i32;
        (low..=high).contains(&(index as i32))
    };
    if !inside {
        return Err(Exception::new(Vector::BoundRange).into());
    }
    if op.ends_in_branch {
        cpu.rip = cpu.next_rip(op);
    }
    Ok(())
}
