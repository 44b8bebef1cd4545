//! Hyper-V's MSRs (TLFS appendix B): each needs the privilege that CPUID tells, or it isn't there.

use super::Hyperv;
use super::spec::{ENABLE, crash, msr, privilege, sint};
use super::timers::units;
use crate::time::thread_nanos;
use chipset::PowerRequest;
use chipset::apic::TIMER_HZ;
use engine::GpFault;

/// Which privilege an MSR needs; `None`: there is no such MSR.
fn needs(number: u32) -> Option<u32> {
    Some(match number {
        msr::GUEST_OS_ID | msr::HYPERCALL => privilege::HYPERCALL,
        msr::VP_INDEX => privilege::VP_INDEX,
        msr::RESET => privilege::RESET,
        msr::VP_RUNTIME => privilege::VP_RUNTIME,
        msr::REFERENCE_COUNT => privilege::REFERENCE_COUNTER,
        msr::REFERENCE_TSC => privilege::REFERENCE_TSC,
        msr::TSC_FREQUENCY | msr::APIC_FREQUENCY => privilege::FREQUENCY,
        msr::EOI..=msr::VP_ASSIST_PAGE => privilege::APIC,
        msr::SCONTROL..=msr::EOM | msr::SINT0..=msr::SINT15 => privilege::SYNIC,
        msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => privilege::TIMERS,
        msr::GUEST_IDLE => privilege::GUEST_IDLE,
        msr::CRASH_P0..=msr::CRASH_CTL => 0,
        _ => return None,
    })
}

impl Hyperv {
    pub(super) fn read(&mut self, number: u32) -> Result<u64, GpFault> {
        self.may(needs(number).ok_or(GpFault)?)?;
        let (cpu, partition) = (self.id.0, &self.partition);
        let hub = &partition.hub;
        let own = |value: Option<u64>| value.ok_or(GpFault);
        Ok(match number {
            msr::GUEST_OS_ID => partition.os_id(),
            msr::HYPERCALL => partition.hypercall_page(),
            msr::VP_INDEX => cpu.into(),
            msr::RESET => 0,
            msr::VP_RUNTIME => thread_nanos() / 100,
            msr::REFERENCE_COUNT => units(hub.clock.now()),
            msr::REFERENCE_TSC => partition.reference_tsc(),
            msr::TSC_FREQUENCY => hub.clock.tsc_hz(),
            msr::APIC_FREQUENCY => TIMER_HZ,
            msr::ICR => hub.lapics.icr(cpu),
            msr::TPR => hub.lapics.tpr(cpu).into(),
            msr::VP_ASSIST_PAGE => self.assist.0,
            msr::SCONTROL => own(partition.with(cpu, |synic, _| synic.control()))?,
            msr::SVERSION => 1,
            msr::SIEFP => own(partition.with(cpu, |synic, _| synic.event_page()))?,
            msr::SIMP => own(partition.with(cpu, |synic, _| synic.message_page()))?,
            msr::EOM => 0,
            msr::SINT0..=msr::SINT15 => {
                own(partition.with(cpu, |synic, _| synic.source((number - msr::SINT0) as usize)))?
            }
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => {
                let at = number - msr::STIMER0_CONFIG;
                let timer = (at / 2) as usize;
                own(partition.with(cpu, |synic, _| match at % 2 {
                    0 => synic.timers.config(timer),
                    _ => synic.timers.count(timer),
                }))?
            }
            msr::GUEST_IDLE => {
                self.counts.idles += 1;
                hub.idle(self.id);
                0
            }
            msr::CRASH_P0..=msr::CRASH_P4 => partition.crash_parameter((number - msr::CRASH_P0) as usize),
            msr::CRASH_CTL => crash::NOTIFY | crash::MESSAGE,
            // EOI can only be written.
            _ => return Err(GpFault),
        })
    }

    pub(super) fn write(&mut self, number: u32, value: u64) -> Result<(), GpFault> {
        self.may(needs(number).ok_or(GpFault)?)?;
        let (cpu, partition) = (self.id.0, &self.partition);
        let hub = &partition.hub;
        let lapics = &hub.lapics;
        let own = |result: Option<Result<(), GpFault>>| result.unwrap_or(Err(GpFault));
        match number {
            msr::GUEST_OS_ID => partition.set_os_id(value),
            msr::HYPERCALL => return partition.set_hypercall_page(value),
            msr::RESET if value & ENABLE != 0 => hub.power.request(PowerRequest::Reset),
            msr::RESET => {}
            msr::REFERENCE_TSC => return partition.set_reference_tsc(value),
            msr::EOI => {
                lapics.eoi(cpu);
                if partition.waits(cpu) {
                    partition.rescan(cpu, false);
                }
            }
            msr::ICR => lapics.set_icr(cpu, value),
            msr::TPR if value <= 0xff => lapics.set_tpr(cpu, value as u8),
            msr::VP_ASSIST_PAGE => return self.set_assist_page(value),
            msr::SCONTROL => {
                own(partition.with(cpu, |synic, _| synic.set_control(lapics, value)))?;
                partition.rescan(cpu, false);
            }
            msr::SIEFP => {
                return own(partition.with(cpu, |synic, _| synic.set_event_page(&hub.memory, value)));
            }
            msr::SIMP => {
                own(partition.with(cpu, |synic, _| synic.set_message_page(lapics, &hub.memory, value)))?;
                partition.rescan(cpu, false);
            }
            msr::EOM => partition.rescan(cpu, true),
            msr::SINT0..=msr::SINT15 => {
                let source = (number - msr::SINT0) as usize;
                debug_assert!(source < sint::COUNT);
                return own(partition.with(cpu, |synic, _| synic.set_source(lapics, source, value)));
            }
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => {
                let at = number - msr::STIMER0_CONFIG;
                let timer = (at / 2) as usize;
                return own(partition.with(cpu, |synic, now| {
                    if at.is_multiple_of(2) {
                        synic.timers.set_config(timer, value, now)?;
                    } else {
                        synic.timers.set_count(timer, value, now);
                    }
                    // What is due already expires at once.
                    synic.run_timers(lapics, now);
                    Ok(())
                }));
            }
            msr::CRASH_P0..=msr::CRASH_P4 => {
                partition.set_crash_parameter((number - msr::CRASH_P0) as usize, value);
            }
            msr::CRASH_CTL if value & crash::NOTIFY != 0 => partition.crashed(value & crash::MESSAGE != 0),
            msr::CRASH_CTL => {}
            // The others can only be read, or the value has no meaning.
            _ => return Err(GpFault),
        }
        Ok(())
    }
}
