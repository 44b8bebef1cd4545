//! What guests that know they are guests may use: the interfaces that KVM and Hyper-V have for them.
//!
//! A machine has one [`Hub`] and for each vCPU one [`Paravirt`], which answers the interface's MSRs and hypercalls, says what the vCPU
//! has to do beside the interrupts of its local APIC ([`Paravirt::event`]), and knows where the guest shares flags with it. Which
//! interface that is, [`Interface`] says; [`offer`] tells the guest by CPUID. Nothing is offered that isn't done.
//!
//! | module | what |
//! |---|---|
//! | `hub` | what a machine's vCPUs share: where to flush, wake and interrupt each other |
//! | `page` | words in guest memory that the guest and this share |
//! | `scale` | from TSC ticks to nanoseconds, as either interface writes it |
//! | `kvm` | the interface of KVM |
//!
//! Threads: a [`Paravirt`] is used by its vCPU's thread, the hub by all. Lock order: a seat's lock in the hub is a leaf; local APICs
//! are called with nothing locked.

mod hub;
mod kvm;
mod none;
mod page;
mod scale;

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
    /// The vCPU has taken an interrupt.
    fn interrupt_taken(&mut self);
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
}

impl Interface {
    /// What a configuration comes to.
    #[must_use]
    pub fn of(wanted: Enlightenments) -> Self {
        match wanted {
            Enlightenments::None => Self::None,
            Enlightenments::Auto | Enlightenments::Kvm => Self::Kvm,
        }
    }

    /// What CPUID says of it: leaves from 0x40000000 up, but for the frequencies in 0x40000010.
    pub fn offer(self, table: &mut Cpuid, parts: Parts) {
        match self {
            Self::None => {}
            Self::Kvm => kvm::offer(table, parts),
        }
    }

    /// The interface of one vCPU.
    #[must_use]
    pub fn vcpu(self, id: VcpuId, hub: &Arc<Hub>, parts: Parts) -> Box<dyn Paravirt> {
        match self {
            Self::None => Box::new(Plain),
            Self::Kvm => Box::new(kvm::Kvm::new(id, Arc::clone(hub), parts)),
        }
    }
}

/// The leaf 0x40000000: the signature, and 0x40000010 as the highest leaf, which has the frequencies.
fn sign(table: &mut Cpuid, signature: &[u8; 12]) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| signature[at + byte]));
    table.set(0x4000_0000, 0, Leaf { eax: 0x4000_0010, ebx: word(0), ecx: word(4), edx: word(8) });
}
