//! The rest: HLT and MWAIT, hypercalls, time-stamp and performance counters, and instructions that do nothing here.

use super::Output;
use crate::cpu::{CodeSize, Cpu, Step, Stop, Wait, special};
use crate::op::Op;
use engine::{Hypercall, HypercallOutcome, Platform};
use memory::LineMonitor;
use x86::control::cr4;
use x86::state::Activity;
use x86::{Exception, msr};

/// Nothing: NOP, ENDBR, LFENCE, SFENCE (stores are in order already), prefetches, hints.
pub(super) fn nothing(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    Ok(())
}

/// MFENCE: the host's, since guest loads and stores are the host's own.
pub(super) fn fence(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    super::serialize();
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: there is no cache, but the address is checked as a read's is.
pub(super) fn flush_line(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let offset = cpu.effective_address(op);
    cpu.place_for_read(op.segment, offset, 1, io)?;
    Ok(())
}

/// UD0, UD1, UD2, and what this CPU doesn't offer.
pub(super) fn undefined(_: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    Err(Exception::UD.into())
}

/// HLT.
pub(super) fn hlt(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_cpl0()?;
    cpu.halt(op);
    Ok(())
}

/// VMCALL and VMMCALL.
pub(super) fn hypercall(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let (long, cpl, protected) = (cpu.code_size == CodeSize::Bits64, cpu.cpl(), cpu.protected);
    let Some(registers) = cpu.regs.first_chunk_mut() else { return Err(Exception::UD.into()) };
    match io.hypercall(Hypercall { registers, long, cpl, protected }) {
        HypercallOutcome::Undefined => Err(Exception::UD.into()),
        HypercallOutcome::Again => {
            // Whoever is waited for may need this thread's place.
            std::thread::yield_now();
            cpu.special |= special::RECHECK;
            Err(Stop::Pause)
        }
        HypercallOutcome::Done => {
            if op.ends_in_branch {
                cpu.rip = cpu.next_rip(op);
            }
            // Interrupt controllers and translations may have changed.
            cpu.special |= special::RECHECK;
            cpu.stop_at = 0;
            Ok(())
        }
    }
}

impl Cpu {
    fn halt(&mut self, op: &Op) {
        self.state.activity = Activity::Halted;
        self.wait = None;
        if op.ends_in_branch {
            self.rip = self.next_rip(op);
        }
        self.update_mode();
        self.special |= special::RECHECK;
    }

    fn require_monitor(&self) -> Step {
        let there = self.offers(1, 0, Output::Ecx, 3);
        if there && self.cpl() == 0 { Ok(()) } else { Err(Exception::UD.into()) }
    }

    /// What MONITOR and MWAIT are asked for in ECX: in 64-bit code all of RCX.
    fn extensions(&self) -> u64 {
        if self.code_size == CodeSize::Bits64 { self.regs[1] } else { self.regs[1] & 0xffff_ffff }
    }

    fn disarm(&self) {
        if let Some(monitor) = &self.monitor {
            monitor.disarm();
        }
    }

    /// Ends MWAIT where its line has been written, or an interrupt has come that may end it, or an event has been taken
    /// (SDM 2B MWAIT). The line has to be armed anew before the next.
    pub(crate) fn end_wait(&mut self, io: &mut dyn Platform) {
        let Some(wait) = self.wait else { return };
        if self.state.activity == Activity::Halted {
            let armed = self.monitor.as_ref().is_some_and(LineMonitor::is_armed);
            if armed && !(wait.breaks && io.has_event()) {
                return;
            }
        }
        self.forget_wait();
    }

    /// Ends MWAIT, for no reason, as it may. Also for whoever takes the state away, in which there are no lines.
    pub(crate) fn forget_wait(&mut self) {
        if self.wait.take().is_some() {
            self.disarm();
            if self.state.activity == Activity::Halted {
                self.state.activity = Activity::Running;
                self.update_mode();
            }
        }
    }
}

/// MONITOR: the line of 64 bytes that the address lies in is watched from before it is read (SDM 2B MONITOR). Where it isn't in RAM, no
/// line is.
pub(super) fn monitor(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    cpu.require_monitor()?;
    if cpu.extensions() != 0 {
        return Err(Exception::GP0.into());
    }
    let mask = match op.instruction().op0_register().size() {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    let offset = cpu.regs[0] & mask;
    let segment = crate::op::segment_slot(match op.instruction().segment_prefix() {
        iced_x86::Register::None => iced_x86::Register::DS,
        prefix => prefix,
    });
    let place = cpu.place_for_read(segment, offset, 1, io)?;
    match place.ram() {
        Some(at) => {
            let (memory, kicker) = (&cpu.memory, &cpu.kicker);
            let monitor = cpu.monitor.get_or_insert_with(|| {
                let kicker = kicker.clone();
                memory.add_monitor(Box::new(move || kicker.kick()))
            });
            monitor.arm(at);
        }
        None => cpu.disarm(),
    }
    cpu.load(&place, 1, io);
    Ok(())
}

/// MWAIT: as HLT, but also ended by a store to the line that MONITOR has armed; nothing at all where there is none. C-states are hints
/// (SDM 2B MWAIT).
pub(super) fn mwait(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_monitor()?;
    let breaks = cpu.extensions() == 1;
    if cpu.extensions() > 1 || breaks && !cpu.offers(5, 0, Output::Ecx, 1) {
        return Err(Exception::GP0.into());
    }
    if cpu.monitor.as_ref().is_some_and(LineMonitor::is_armed) {
        cpu.halt(op);
        cpu.wait = Some(Wait { breaks });
    } else if op.ends_in_branch {
        cpu.rip = cpu.next_rip(op);
    }
    Ok(())
}

/// PAUSEs after which a vCPU that spins lets another thread run: with more vCPUs than the host has free CPUs, who is waited for
/// may not be running at all.
const SPIN: u32 = 32;

/// PAUSE.
pub(super) fn pause(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(SPIN) {
        std::thread::yield_now();
    }
    Ok(())
}

impl Cpu {
    fn require_tsc(&self) -> Step {
        let denied = self.state.cr4 & cr4::TSD != 0 && self.cpl() != 0;
        if denied { Err(Exception::GP0.into()) } else { Ok(()) }
    }
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    cpu.require_tsc()?;
    let tsc = cpu.tsc();
    cpu.set_edx_eax(tsc);
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.offers(0x8000_0001, 0, Output::Edx, 27) {
        return Err(Exception::UD.into());
    }
    rdtsc(cpu, op, io)?;
    cpu.regs[1] = cpu.state.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPID.
pub(super) fn rdpid(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.offers(7, 0, Output::Ecx, 22) {
        return Err(Exception::UD.into());
    }
    cpu.set_operand(op, 0, cpu.state.tsc_aux, io)
}

/// RDPMC: the counters are the platform's MSRs, from IA32_PMC0 up.
pub(super) fn rdpmc(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    const PMC0: u32 = 0xc1;
    if cpu.cpl() != 0 && cpu.state.cr4 & cr4::PCE == 0 {
        return Err(Exception::GP0.into());
    }
    let index = cpu.regs[1] as u32;
    if index > 7 {
        return Err(Exception::GP0.into());
    }
    debug_assert!(PMC0 + index < msr::MTRR_CAP);
    let value = io.rdmsr(PMC0 + index).map_err(|_| Stop::from(Exception::GP0))?;
    cpu.set_edx_eax(value);
    Ok(())
}

/// SERIALIZE.
pub(super) fn serialize(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    super::serialize();
    if cpu.offers(7, 0, Output::Edx, 14) { Ok(()) } else { Err(Exception::UD.into()) }
}
