//! The interface of Hyper-V (TLFS 6.0b): identity, hypercalls, time, APIC accesses, the synthetic interrupt controller and its timers,
//! flushes and IPIs for many vCPUs, idling, crash reports.
//!
//! | module | what |
//! |---|---|
//! | `spec` | numbers |
//! | `partition` | what vCPUs share |
//! | `synic`, `timers` | one vCPU's interrupt controller and timers |
//! | `calls`, `processors` | hypercalls, and the sets of vCPUs that they name |
//! | `msrs` | the MSRs |
//! | `testdev` | the test device of bare-metal kernels |
//!
//! Left out, and not offered: pages as overlays (what a page held before is gone), XMM registers as input, virtual trust levels,
//! partitions' privileges over others, nested virtualization, an invariant TSC, reenlightenment.

mod calls;
mod msrs;
mod partition;
mod processors;
mod spec;
mod synic;
mod testdev;
mod timers;

pub use partition::{Connection, Partition};
pub use spec::Status;
pub use synic::Message;
pub use testdev::{TEST_DEVICE_PORTS, TestDevice};

use crate::Paravirt;
use crate::page::{Flag, Place};
use control::Parts;
use engine::{Counters, Event, GpFault, Hypercall, HypercallOutcome, VcpuId, Window};
use spec::{calls as right, code, feature, hint, msr, privilege};
use std::sync::Arc;
use x86::cpuid::{Cpuid, Leaf};

/// What the parts are in EAX of leaf 0x40000003.
fn privileges(parts: Parts) -> u32 {
    let part = |part, bits| if parts.contains(part) { bits } else { 0 };
    privilege::HYPERCALL
        | privilege::VP_INDEX
        | privilege::VP_RUNTIME
        | privilege::RESET
        | privilege::FREQUENCY
        | part(Parts::CLOCK, privilege::REFERENCE_COUNTER | privilege::REFERENCE_TSC)
        | part(Parts::EOI, privilege::APIC)
        | part(Parts::SYNIC, privilege::SYNIC)
        // Timers that send messages need slots, all need the reference time.
        | part(Parts::SYNIC | Parts::CLOCK | Parts::TIMERS, privilege::TIMERS)
        | part(Parts::SPIN, privilege::GUEST_IDLE)
}

/// Leaves from 0x40000000 to 0x40000006.
pub(crate) fn offer(table: &mut Cpuid, parts: Parts, cpus: u32) {
    crate::sign(table, spec::SIGNATURE);
    let privileges = privileges(parts);
    let part = |part, bits| if parts.contains(part) { bits } else { 0 };
    table.set(0x4000_0001, 0, Leaf { eax: spec::INTERFACE, ..Leaf::default() });
    table.set(0x4000_0002, 0, Leaf { ebx: spec::VERSION, ..Leaf::default() });
    let direct = if privileges & privilege::TIMERS != 0 { feature::DIRECT_TIMERS } else { 0 };
    let features = Leaf {
        eax: privileges,
        ebx: part(Parts::SYNIC, right::POST_MESSAGES | right::SIGNAL_EVENTS),
        ecx: 0,
        edx: feature::FREQUENCY | feature::CRASH | direct,
    };
    table.set(0x4000_0003, 0, features);
    let hints = hint::RELAXED_TIMING
        | part(Parts::FLUSH, hint::REMOTE_FLUSH)
        | part(Parts::EOI, hint::APIC)
        | part(Parts::IPI, hint::CLUSTER_IPI)
        | if parts.intersects(Parts::FLUSH | Parts::IPI) { hint::EX_MASKS } else { 0 };
    let spins = if parts.contains(Parts::YIELD) { spec::SPINS } else { spec::NEVER };
    table.set(0x4000_0004, 0, Leaf { eax: hints, ebx: spins, ..Leaf::default() });
    table.set(0x4000_0005, 0, Leaf { eax: cpus, ebx: cpus, ..Leaf::default() });
    table.set(0x4000_0006, 0, Leaf::default());
}

/// What one vCPU has counted.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    calls: u64,
    refused: u64,
    flushes: u64,
    flushed: u64,
    ipis: u64,
    spins: u64,
    idles: u64,
}

/// One vCPU's side of the interface.
pub(crate) struct Hyperv {
    id: VcpuId,
    partition: Arc<Partition>,
    parts: Parts,
    privileges: u32,
    /// MSR and, where it is on, the flag in the page it names.
    assist: (u64, Option<Flag>),
    /// A flush that this vCPU waits for.
    waiting: Option<calls::Waiting>,
    counts: Counts,
}

impl Hyperv {
    pub(crate) fn new(id: VcpuId, partition: Arc<Partition>, parts: Parts) -> Self {
        Self {
            id,
            partition,
            parts,
            privileges: privileges(parts),
            assist: (0, None),
            waiting: None,
            counts: Counts::default(),
        }
    }

    fn may(&self, privilege: u32) -> Result<(), GpFault> {
        if self.privileges & privilege == privilege { Ok(()) } else { Err(GpFault) }
    }

    /// Whether a hypercall is there at all.
    fn offers(&self, call: u16) -> bool {
        match call {
            code::FLUSH_SPACE | code::FLUSH_LIST | code::FLUSH_SPACE_EX | code::FLUSH_LIST_EX => {
                self.parts.contains(Parts::FLUSH)
            }
            code::SEND_IPI | code::SEND_IPI_EX => self.parts.contains(Parts::IPI),
            code::POST_MESSAGE | code::SIGNAL_EVENT => self.parts.contains(Parts::SYNIC),
            _ => true,
        }
    }

    /// The page whose first bit says that an interrupt's end needn't be told.
    fn set_assist_page(&mut self, value: u64) -> Result<(), GpFault> {
        let flag = if value & spec::ENABLE != 0 {
            let at = x86::Gpa(value & spec::PAGE);
            let place = Place::new(&self.partition.hub.memory, at, 0x1000).ok_or(GpFault)?;
            place.store(0, 0u32);
            Some(Flag(place))
        } else {
            None
        };
        // An interrupt that the guest may have ended in the old page.
        let lapics = &self.partition.hub.lapics;
        if let Some(old) = &self.assist.1
            && lapics.is_lazy(self.id.0)
        {
            lapics.settle_lazy(self.id.0, old.take());
        }
        self.assist = (value, flag);
        Ok(())
    }
}

impl Paravirt for Hyperv {
    fn owns_msr(&self, number: u32) -> bool {
        (msr::FIRST..=msr::LAST).contains(&number)
    }

    fn rdmsr(&mut self, number: u32) -> Result<u64, GpFault> {
        self.read(number)
    }

    fn wrmsr(&mut self, number: u32, value: u64) -> Result<(), GpFault> {
        self.write(number, value)
    }

    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        self.call(call)
    }

    fn tsc_moved(&mut self, ahead: u64) {
        self.partition.tsc_moved(ahead);
    }

    fn event(&mut self, _: Window) -> Option<Event> {
        let flush = self.partition.hub.take_flush(self.id)?;
        self.counts.flushed += 1;
        Some(Event::Flush(flush))
    }

    fn eoi_flag(&self) -> Option<&Flag> {
        self.assist.1.as_ref()
    }

    fn may_end_untold(&self) -> bool {
        // Messages that wait are looked after when an end is told.
        !self.partition.waits(self.id.0)
    }

    fn end_told(&mut self) {
        if self.partition.waits(self.id.0) {
            self.partition.rescan(self.id.0, false);
        }
    }

    fn event_taken(&mut self) {
        // Who knows whether the guest comes back to the call that it was in.
        self.waiting = None;
    }

    fn sleeps(&mut self) {
        self.partition.hub.set_asleep(self.id, true);
    }

    fn wakes(&mut self) {
        self.partition.hub.set_asleep(self.id, false);
    }

    fn reset(&mut self) {
        if self.id.0 == 0 {
            self.partition.reset();
        }
        self.partition.with(self.id.0, |synic, _| synic.reset());
        let fresh = Self::new(self.id, Arc::clone(&self.partition), self.parts);
        *self = Self { counts: self.counts, ..fresh };
    }

    fn counters(&self, counters: &mut Counters) {
        let Counts { calls, refused, flushes, flushed, ipis, spins, idles } = self.counts;
        let synic = self.partition.with(self.id.0, |synic, _| synic.counts).unwrap_or_default();
        for (name, value) in [
            ("calls", calls),
            ("calls_refused", refused),
            ("flushes_asked", flushes),
            ("flushes_done", flushed),
            ("ipis", ipis),
            ("spin_notices", spins),
            ("idles", idles),
            ("messages", synic.posted),
            ("messages_pending", synic.pending_set),
            ("ends_of_messages", synic.eoms),
            ("event_flags", synic.events),
            ("timer_expirations", synic.timers),
        ] {
            counters.add("hyperv", name, value);
        }
    }
}
