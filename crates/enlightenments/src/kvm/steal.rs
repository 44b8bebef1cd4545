//! Steal time: how long a vCPU wanted to run and the host ran something else, and whether it runs at all just now.
//!
//! Stolen is what is left of wall time without the thread's own CPU time and the time that it slept for its guest's HLT. So waiting
//! for a device counts too. It is brought up to date when the vCPU wakes, and now and then as it takes interrupts.
//!
//! While the thread sleeps the guest is told that the vCPU doesn't run: other vCPUs then leave it a TLB flush instead of
//! interrupting it.

use super::spec::steal_time;
use crate::page::Place;
use crate::time::{thread_nanos, wall_nanos};
use engine::GpFault;
use memory::GuestMemory;
use x86::Gpa;

/// How old the sum may be, in nanoseconds. To ask the host for a thread's time is a system call.
const STALE: u64 = 1_000_000;

/// One vCPU's steal time.
#[derive(Default)]
pub(super) struct Steal {
    /// What was last written to the MSR.
    pub(super) msr: u64,
    place: Option<Place>,
    /// Wall time and the thread's time as of the last look.
    seen: (u64, u64),
    total: u64,
}

impl Steal {
    /// The MSR that names the vCPU's structure: bit 0 switches it on.
    pub(super) fn set(&mut self, memory: &GuestMemory, value: u64) -> Result<(), GpFault> {
        if value & steal_time::RESERVED != 0 {
            return Err(GpFault);
        }
        let place = if value & 1 != 0 {
            Some(Place::new(memory, Gpa(value & !1), steal_time::BYTES).ok_or(GpFault)?)
        } else {
            None
        };
        (self.msr, self.place) = (value, place);
        self.seen = (wall_nanos(), thread_nanos());
        if let Some(place) = &self.place {
            place.store(steal_time::PREEMPTED, 0u8);
        }
        self.publish();
        Ok(())
    }

    /// Nanoseconds stolen since power-up.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Adds what was stolen since the last look, unless that was just now.
    pub(super) fn refresh(&mut self, at_once: bool) {
        if self.place.is_none() {
            return;
        }
        let wall = wall_nanos();
        let passed = wall.saturating_sub(self.seen.0);
        if passed < STALE && !at_once {
            return;
        }
        let own = thread_nanos();
        self.total += passed.saturating_sub(own.saturating_sub(self.seen.1));
        self.seen = (wall, own);
        self.publish();
    }

    fn publish(&self) {
        if let Some(place) = &self.place {
            place.write_versioned(steal_time::VERSION, |place| place.store(steal_time::STEAL, self.total));
        }
    }

    /// The guest has halted.
    pub(super) fn sleeps(&mut self) {
        self.refresh(true);
        if let Some(place) = &self.place {
            place.store(steal_time::PREEMPTED, steal_time::IS_PREEMPTED);
        }
    }

    /// The guest is to go on. True: somebody wants its translations dropped first.
    pub(super) fn wakes(&mut self) -> bool {
        // What passed meanwhile was the guest's own wish.
        self.seen = (wall_nanos(), thread_nanos());
        self.place
            .as_ref()
            .is_some_and(|place| place.swap(steal_time::PREEMPTED, 0) & steal_time::FLUSH_TLB != 0)
    }
}
