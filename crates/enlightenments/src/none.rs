//! No interface: what a vCPU has whose guest isn't to know.

use crate::{Flag, Paravirt};
use engine::{Counters, Event, GpFault, Hypercall, HypercallOutcome, Window};

/// Offers nothing: hypercalls get `#UD`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Plain;

impl Paravirt for Plain {
    fn owns_msr(&self, _: u32) -> bool {
        false
    }
    fn rdmsr(&mut self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn wrmsr(&mut self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn hypercall(&mut self, _: Hypercall<'_>) -> HypercallOutcome {
        HypercallOutcome::Undefined
    }
    fn tsc_moved(&mut self, _: u64) {}
    fn event(&mut self, _: Window) -> Option<Event> {
        None
    }
    fn eoi_flag(&self) -> Option<&Flag> {
        None
    }
    fn may_end_untold(&self) -> bool {
        false
    }
    fn end_told(&mut self) {}
    fn event_taken(&mut self) {}
    fn sleeps(&mut self) {}
    fn wakes(&mut self) {}
    fn reset(&mut self) {}
    fn counters(&self, _: &mut Counters) {}
}
