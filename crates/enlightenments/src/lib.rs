//! What guests that know they are guests may use: the interfaces that KVM and Hyper-V have for them.
//!
//! A machine has one [`Host`] and for each vCPU one [`Paravirt`], which answers the interface's MSRs and hypercalls, says what the vCPU
//! has to do beside the interrupts of its local APIC ([`Paravirt::event`]), and knows where the guest shares flags with it. Which
//! interface that is, [`Interface`] says; [`Interface::offer`] tells the guest by CPUID. Nothing is offered that isn't done.
//!
//! | module | what |
//! |---|---|
//! | `hub` | what a machine's vCPUs share: where to flush, wake and interrupt each other |
//! | `page` | words in guest memory that the guest and this share |
//! | `scale` | from TSC ticks to nanoseconds, as either interface writes it |
//! | `time` | the host's clocks |
//! | `kvm` | the interface of KVM |
//! | `hyperv` | the interface of Hyper-V |
//!
//! Threads: a [`Paravirt`] is used by its vCPU's thread, the hub by all. Lock order: a seat's lock in the hub is a leaf; local APICs
//! are called with nothing locked.

mod hub;
pub mod hyperv;
mod kvm;
mod none;
mod page;
mod scale;
mod time;

#[cfg(test)]
mod tests;

pub use hub::Hub;
pub use none::Plain;
pub use page::Flag;

use control::{Enlightenments, Parts};
use engine::{Counters, Event, GpFault, Hypercall, HypercallOutcome, VcpuId, Window};
use std::sync::Arc;
use x86::cpuid::{Cpuid, Leaf};

/// One vCPU's interface. All methods are for the vCPU's thread.
pub trait Paravirt: Send {
    /// Whether the MSR is the interface's.
    fn owns_msr(&self, msr: u32) -> bool;
    /// Reads one of its MSRs.
    ///
    /// # Errors
    /// There is no such MSR, or it can't be read.
    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault>;
    /// Writes one of its MSRs.
    ///
    /// # Errors
    /// There is no such MSR, or it refuses the value.
    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault>;
    /// Answers a hypercall.
    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome;
    /// The vCPU's TSC is now that much ahead of the machine's, wrapping.
    fn tsc_moved(&mut self, ahead: u64);
    /// What the vCPU has to do beside what its local APIC wants.
    fn event(&mut self, window: Window) -> Option<Event>;
    /// Where the guest says that it has ended an interrupt without telling; `None` where it hasn't asked for that.
    fn eoi_flag(&self) -> Option<&Flag>;
    /// Whether nobody here has to hear of an interrupt's end.
    fn may_end_untold(&self) -> bool;
    /// The guest has told its local APIC of an interrupt's end.
    fn end_told(&mut self);
    /// The vCPU has taken an interrupt, an NMI, INIT or a start-up IPI.
    fn event_taken(&mut self);
    /// The vCPU has halted, and its thread is going to sleep.
    fn sleeps(&mut self);
    /// The thread is awake; the guest hasn't run since [`Paravirt::sleeps`].
    fn wakes(&mut self);
    /// Power-up state.
    fn reset(&mut self);
    /// What has been counted.
    fn counters(&self, counters: &mut Counters);
}

/// The interface that a machine offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    /// None: hypercalls get `#UD`.
    None,
    /// KVM's.
    Kvm,
    /// Hyper-V's.
    HyperV,
}

impl Interface {
    /// What a configuration comes to.
    #[must_use]
    pub fn of(wanted: Enlightenments) -> Self {
        match wanted {
            // KVM's saves exits, but with it a busy host has seen a device's interrupt get lost.
            Enlightenments::Auto | Enlightenments::None => Self::None,
            Enlightenments::Kvm => Self::Kvm,
            Enlightenments::HyperV => Self::HyperV,
        }
    }

    /// What CPUID says of it to a guest with `cpus` vCPUs: leaves from 0x40000000 up, but for the frequencies in 0x40000010.
    pub fn offer(self, table: &mut Cpuid, parts: Parts, cpus: u32) {
        match self {
            Self::None => {}
            Self::Kvm => kvm::offer(table, parts),
            Self::HyperV => hyperv::offer(table, parts, cpus),
        }
    }
}

/// The machine's side of the interface.
pub struct Host {
    interface: Interface,
    parts: Parts,
    hub: Arc<Hub>,
    partition: Option<Arc<hyperv::Partition>>,
}

impl Host {
    /// For the vCPUs of a hub.
    #[must_use]
    pub fn new(interface: Interface, parts: Parts, hub: Hub) -> Self {
        let hub = Arc::new(hub);
        let partition =
            (interface == Interface::HyperV).then(|| Arc::new(hyperv::Partition::new(Arc::clone(&hub))));
        Self { interface, parts, hub, partition }
    }

    /// One vCPU's side.
    #[must_use]
    pub fn vcpu(&self, id: VcpuId) -> Box<dyn Paravirt> {
        match (&self.partition, self.interface) {
            (Some(partition), _) => Box::new(hyperv::Hyperv::new(id, Arc::clone(partition), self.parts)),
            (None, Interface::Kvm) => Box::new(kvm::Kvm::new(id, Arc::clone(&self.hub), self.parts)),
            (None, _) => Box::new(Plain),
        }
    }

    /// What the vCPUs share, where the interface is Hyper-V's.
    #[must_use]
    pub fn partition(&self) -> Option<&Arc<hyperv::Partition>> {
        self.partition.as_ref()
    }

    /// The alarm of a vCPU's timers went off.
    pub fn timer_alarm(&self, cpu: u32) {
        if let Some(partition) = &self.partition {
            partition.timer_alarm(cpu);
        }
    }
}

/// The leaf 0x40000000: the signature, and 0x40000010 as the highest leaf, which has the frequencies.
fn sign(table: &mut Cpuid, signature: &[u8; 12]) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| signature[at + byte]));
    table.set(0x4000_0000, 0, Leaf { eax: 0x4000_0010, ebx: word(0), ecx: word(4), edx: word(8) });
}
