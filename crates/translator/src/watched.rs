//! The platform, watched for whether an event may be waiting for the guest to set IF.
//!
//! The machine kicks a vCPU when an event comes. But one may also wait from before: one that came while IF was clear, or one that
//! the guest's own access to an interrupt controller let through. As long as there was no access and no kick since the machine
//! last said, with IF set, that there is nothing, translated code may set IF by itself.

use engine::{Access, Event, GpFault, Hypercall, HypercallOutcome, Platform, Window};
use x86::Gpa;

/// A platform that remembers.
pub(crate) struct Watched<'a> {
    inner: &'a mut dyn Platform,
    /// Nothing can be waiting for IF.
    pub(crate) quiet: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(inner: &'a mut dyn Platform) -> Self {
        Self { inner, quiet: false }
    }
}

impl Platform for Watched<'_> {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        self.quiet = false;
        self.inner.mmio(at, access);
    }
    fn pio(&mut self, port: u16, access: Access<'_>) {
        self.quiet = false;
        self.inner.pio(port, access);
    }
    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault> {
        self.inner.rdmsr(msr)
    }
    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault> {
        self.quiet = false;
        self.inner.wrmsr(msr, value)
    }
    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        self.quiet = false;
        self.inner.hypercall(call)
    }
    fn cr8(&mut self) -> u8 {
        self.inner.cr8()
    }
    fn set_cr8(&mut self, priority: u8) {
        self.quiet = false;
        self.inner.set_cr8(priority);
    }
    fn take_event(&mut self, window: Window) -> Option<Event> {
        let event = self.inner.take_event(window);
        self.quiet = event.is_none() && window.interrupt;
        event
    }
    fn has_event(&mut self) -> bool {
        self.inner.has_event()
    }
    fn apic_enabled(&mut self) -> bool {
        self.inner.apic_enabled()
    }
}
