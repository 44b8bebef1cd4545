//! The interface of KVM: kvm-clock, steal time, EOI without an exit, halting in spin locks, TLB flushes and IPIs for many vCPUs.
//!
//! Linux uses it where CPUID has KVM's signature. VMCALL and VMMCALL both do, whatever the vendor. Left out, and not offered: page
//! faults that the host reports later, migration, encrypted memory, the old clock MSRs.
//!
//! Used by the vCPU's thread only.

mod calls;
mod clock;
mod spec;
mod steal;

use crate::Paravirt;
use crate::hub::Hub;
use crate::page::{Flag, Place};
use clock::Clock;
use control::Parts;
use engine::{Counters, Event, Flush, GpFault, Hypercall, HypercallOutcome, VcpuId, Window};
use spec::{feature, msr};
use std::sync::Arc;
use steal::Steal;
use x86::Gpa;
use x86::cpuid::{Cpuid, Leaf};

/// What each part of the interface is in CPUID.
const PARTS: [(Parts, u32); 8] = [
    (Parts::CLOCK, feature::CLOCKSOURCE2 | feature::CLOCKSOURCE_STABLE),
    (Parts::STEAL, feature::STEAL_TIME),
    (Parts::EOI, feature::PV_EOI),
    (Parts::SPIN, feature::PV_UNHALT),
    (Parts::FLUSH, feature::PV_TLB_FLUSH),
    (Parts::IPI, feature::PV_SEND_IPI),
    (Parts::YIELD, feature::PV_SCHED_YIELD),
    (Parts::POLL, feature::POLL_CONTROL),
];

/// Feature bits of the parts. No port of this machine needs a pause after an access, so Linux may always leave them out.
fn features(parts: Parts) -> u32 {
    let mut bits = feature::NOP_IO_DELAY;
    for (part, bit) in PARTS {
        if parts.contains(part) {
            bits |= bit;
        }
    }
    // A flush is left with a vCPU that doesn't run, which the steal time says.
    if !parts.contains(Parts::STEAL) {
        bits &= !(feature::PV_TLB_FLUSH | feature::PV_SCHED_YIELD);
    }
    bits
}

/// The leaves 0x40000000 and 0x40000001.
pub(crate) fn offer(table: &mut Cpuid, parts: Parts) {
    crate::sign(table, spec::SIGNATURE);
    table.set(spec::FEATURES_LEAF, 0, Leaf { eax: features(parts), ..Leaf::default() });
}

/// What one vCPU has counted.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    kicks: u64,
    ipi_calls: u64,
    ipis: u64,
    yields: u64,
    wakes: u64,
    flushes: u64,
    unknown: u64,
}

/// One vCPU's side of the interface.
pub(crate) struct Kvm {
    id: VcpuId,
    hub: Arc<Hub>,
    features: u32,
    clock: Clock,
    steal: Steal,
    /// MSR and, where it is on, the flag it names.
    eoi: (u64, Option<Flag>),
    poll_control: u64,
    /// While the thread slept somebody has left a flush.
    flush: bool,
    counts: Counts,
}

impl Kvm {
    pub(crate) fn new(id: VcpuId, hub: Arc<Hub>, parts: Parts) -> Self {
        Self {
            id,
            features: features(parts),
            clock: Clock::default(),
            steal: Steal::default(),
            eoi: (0, None),
            poll_control: 1,
            flush: false,
            counts: Counts::default(),
            hub,
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// Bit 0 switches it on, bit 1 has to be zero, the rest is the address.
    fn set_eoi(&mut self, value: u64) -> Result<(), GpFault> {
        if value & 2 != 0 {
            return Err(GpFault);
        }
        let on = value & 1 != 0;
        let place = || Place::new(&self.hub.memory, Gpa(value & !3), 4).ok_or(GpFault);
        let flag = if on { Some(Flag(place()?)) } else { None };
        // An interrupt that the guest may have ended in the old place.
        if let Some(old) = &self.eoi.1
            && self.hub.lapics.is_lazy(self.id.0)
        {
            self.hub.lapics.settle_lazy(self.id.0, old.take());
        }
        self.eoi = (value, flag);
        Ok(())
    }
}

impl Paravirt for Kvm {
    fn owns_msr(&self, number: u32) -> bool {
        (msr::FIRST..=msr::LAST).contains(&number)
    }

    fn rdmsr(&mut self, number: u32) -> Result<u64, GpFault> {
        match number {
            msr::WALL_CLOCK if self.has(feature::CLOCKSOURCE2) => Ok(self.clock.wall),
            msr::SYSTEM_TIME if self.has(feature::CLOCKSOURCE2) => Ok(self.clock.system),
            msr::STEAL_TIME if self.has(feature::STEAL_TIME) => Ok(self.steal.msr),
            msr::PV_EOI if self.has(feature::PV_EOI) => Ok(self.eoi.0),
            msr::POLL_CONTROL if self.has(feature::POLL_CONTROL) => Ok(self.poll_control),
            _ => Err(GpFault),
        }
    }

    fn wrmsr(&mut self, number: u32, value: u64) -> Result<(), GpFault> {
        match number {
            msr::WALL_CLOCK if self.has(feature::CLOCKSOURCE2) => self.clock.write_wall(&self.hub, value),
            msr::SYSTEM_TIME if self.has(feature::CLOCKSOURCE2) => self.clock.set_system(&self.hub, value),
            msr::STEAL_TIME if self.has(feature::STEAL_TIME) => self.steal.set(&self.hub.memory, value),
            msr::PV_EOI if self.has(feature::PV_EOI) => self.set_eoi(value),
            // Whether the host may poll for a halted vCPU's next event before it sleeps. It never does.
            msr::POLL_CONTROL if self.has(feature::POLL_CONTROL) && value & !1 == 0 => {
                self.poll_control = value;
                Ok(())
            }
            _ => Err(GpFault),
        }
    }

    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        self.call(call)
    }

    fn tsc_moved(&mut self, ahead: u64) {
        self.clock.set_ahead(&self.hub, ahead);
    }

    fn event(&mut self, window: Window) -> Option<Event> {
        if std::mem::take(&mut self.flush) {
            self.counts.flushes += 1;
            return Some(Event::Flush(Flush::All));
        }
        if window.halted && self.hub.take_wake(self.id) {
            self.counts.wakes += 1;
            return Some(Event::Wake);
        }
        None
    }

    fn eoi_flag(&self) -> Option<&Flag> {
        self.eoi.1.as_ref()
    }

    fn may_end_untold(&self) -> bool {
        true
    }

    fn end_told(&mut self) {}

    fn event_taken(&mut self) {
        self.steal.refresh(false);
    }

    fn sleeps(&mut self) {
        self.steal.sleeps();
    }

    fn wakes(&mut self) {
        self.flush |= self.steal.wakes();
    }

    fn reset(&mut self) {
        let parts = self.features;
        let fresh = Self::new(self.id, Arc::clone(&self.hub), Parts::empty());
        let counts = self.counts;
        *self = Self { features: parts, counts, ..fresh };
        // Nobody waits for what was before.
        let _ = self.hub.take_wake(self.id);
    }

    fn counters(&self, counters: &mut Counters) {
        let Counts { kicks, ipi_calls, ipis, yields, wakes, flushes, unknown } = self.counts;
        for (name, value) in [
            ("kicks", kicks),
            ("ipi_calls", ipi_calls),
            ("ipis", ipis),
            ("yields", yields),
            ("wakes_by_kick", wakes),
            ("flushes_on_waking", flushes),
            ("unknown_calls", unknown),
            ("steal_microseconds", self.steal.total() / 1000),
        ] {
            counters.add("kvm", name, value);
        }
    }
}

/// A place for a structure of that many bytes at the address, which has to be aligned to `align`.
fn place(hub: &Hub, at: u64, bytes: u64, align: u64) -> Result<Place, GpFault> {
    let aligned = at.is_multiple_of(align);
    aligned.then(|| Place::new(&hub.memory, Gpa(at), bytes)).flatten().ok_or(GpFault)
}
