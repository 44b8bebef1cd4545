//! RDMSR and WRMSR (SDM 4). The CPU's own registers are here; all others are the platform's.

use super::Output;
use super::raw::host_tsc;
use crate::cpu::{Cpu, Step, Stop, special};
use crate::op::Op;
use engine::Platform;
use x86::state::seg;
use x86::{Exception, msr};

/// Bits of SPEC_CTRL that may be set: IBRS, STIBP, SSBD and the ones for RRSBA, PSFD, BHI (SDM 4 table 2-2).
const SPEC_CTRL_BITS: u64 = 0x7 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10;

impl Cpu {
    /// The guest's TSC.
    pub(crate) fn tsc(&self) -> u64 {
        host_tsc().wrapping_add(self.state.tsc_offset)
    }

    pub(super) fn edx_eax(&self) -> u64 {
        self.regs[2] << 32 | self.regs[0] & 0xffff_ffff
    }

    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.regs[0] = value & 0xffff_ffff;
        self.regs[2] = value >> 32;
    }

    fn offers_speculation_control(&self) -> bool {
        // IBRS, STIBP or SSBD, by Intel's or AMD's bits.
        let intel = self.setup.cpuid.stored(7, 0).edx >> 26 & 0x27 != 0;
        intel || self.setup.cpuid.stored(0x8000_0008, 0).ebx & (1 << 14 | 1 << 15 | 1 << 24) != 0
    }

    pub(crate) fn read_msr(&mut self, number: u32, io: &mut dyn Platform) -> Result<u64, Stop> {
        let state = &self.state;
        Ok(match number {
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST if self.offers(7, 0, Output::Ebx, 1) => state.tsc_adjust,
            msr::TSC_AUX => state.tsc_aux,
            msr::EFER => state.efer,
            msr::STAR => state.star,
            msr::LSTAR => state.lstar,
            msr::CSTAR => state.cstar,
            msr::FMASK => state.sfmask,
            msr::FS_BASE => state.segments[seg::FS].base,
            msr::GS_BASE => state.segments[seg::GS].base,
            msr::KERNEL_GS_BASE => state.kernel_gs_base,
            msr::SYSENTER_CS => state.sysenter_cs,
            msr::SYSENTER_ESP => state.sysenter_esp,
            msr::SYSENTER_EIP => state.sysenter_eip,
            msr::PAT => state.pat,
            msr::XSS if self.offers(0xd, 1, Output::Eax, 3) => state.xss,
            msr::SPEC_CTRL if self.offers_speculation_control() => state.spec_ctrl,
            _ => io.rdmsr(number).map_err(|_| Stop::from(Exception::GP0))?,
        })
    }

    /// The machine times TSC deadlines, so it has to know how far this vCPU's TSC has been moved.
    fn tell_tsc_adjust(&mut self, io: &mut dyn Platform) {
        // A machine without such timers has nothing to say.
        let _ = io.wrmsr(msr::TSC_ADJUST, self.state.tsc_adjust);
    }

    pub(crate) fn write_msr(&mut self, number: u32, value: u64, io: &mut dyn Platform) -> Step {
        let canonical = self.is_canonical(value);
        let check = |good: bool| if good { Ok(()) } else { Err(Stop::from(Exception::GP0)) };
        match number {
            msr::TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
                // SDM 3B 17.17.3: a write to the TSC moves TSC_ADJUST by as much.
                self.state.tsc_adjust = self.state.tsc_adjust.wrapping_add(delta);
                self.tell_tsc_adjust(io);
            }
            msr::TSC_ADJUST if self.offers(7, 0, Output::Ebx, 1) => {
                let delta = value.wrapping_sub(self.state.tsc_adjust);
                self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
                self.state.tsc_adjust = value;
                self.tell_tsc_adjust(io);
            }
            msr::TSC_AUX => {
                check(value >> 32 == 0)?;
                self.state.tsc_aux = value;
            }
            msr::EFER => self.write_efer(value)?,
            msr::STAR => self.state.star = value,
            msr::LSTAR => {
                check(canonical)?;
                self.state.lstar = value;
            }
            msr::CSTAR => {
                check(canonical)?;
                self.state.cstar = value;
            }
            msr::FMASK => {
                check(value >> 32 == 0)?;
                self.state.sfmask = value;
            }
            msr::FS_BASE => {
                check(canonical)?;
                self.set_base(seg::FS, value);
            }
            msr::GS_BASE => {
                check(canonical)?;
                self.set_base(seg::GS, value);
            }
            msr::KERNEL_GS_BASE => {
                check(canonical)?;
                self.state.kernel_gs_base = value;
            }
            msr::SYSENTER_CS => self.state.sysenter_cs = value,
            msr::SYSENTER_ESP => {
                check(canonical)?;
                self.state.sysenter_esp = value;
            }
            msr::SYSENTER_EIP => {
                check(canonical)?;
                self.state.sysenter_eip = value;
            }
            msr::PAT => {
                // Memory types 2 and 3 are reserved, and so are those above 7 (SDM 3A 11.12.2).
                check(value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)))?;
                self.state.pat = value;
            }
            msr::XSS if self.offers(0xd, 1, Output::Eax, 3) => {
                let leaf = self.setup.cpuid.stored(0xd, 1);
                let offered = u64::from(leaf.ecx) | u64::from(leaf.edx) << 32;
                check(value & !offered == 0)?;
                self.state.xss = value;
            }
            msr::SPEC_CTRL if self.offers_speculation_control() => {
                check(value & !SPEC_CTRL_BITS == 0)?;
                self.state.spec_ctrl = value;
            }
            // Barriers: nothing here speculates.
            msr::PRED_CMD if self.offers_speculation_control() => check(value & !0x81 == 0)?,
            msr::FLUSH_CMD if self.offers(7, 0, Output::Edx, 28) => check(value & !1 == 0)?,
            _ => io.wrmsr(number, value).map_err(|_| Stop::from(Exception::GP0))?,
        }
        // The interrupt controller's registers are among them.
        self.special |= special::RECHECK;
        Ok(())
    }
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    cpu.require_cpl0()?;
    let value = cpu.read_msr(cpu.regs[1] as u32, io)?;
    cpu.set_edx_eax(value);
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Cpu, _: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    cpu.require_cpl0()?;
    cpu.write_msr(cpu.regs[1] as u32, cpu.edx_eax(), io)
}
