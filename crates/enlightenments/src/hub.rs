//! What the vCPUs of a machine share: where each can be woken.
//!
//! Threads: any. No locks.

use chipset::Clock;
use chipset::apic::Lapics;
use engine::{Kicker, VcpuId};
use memory::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Seat {
    kicker: Kicker,
    /// The vCPU, halted or about to, is to go on.
    woken: AtomicBool,
}

/// What vCPUs share.
pub struct Hub {
    pub(crate) memory: GuestMemory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lapics: Arc<Lapics>,
    seats: Box<[Seat]>,
}

impl Hub {
    /// For as many vCPUs as there are kickers.
    #[must_use]
    pub fn new(memory: GuestMemory, clock: Arc<dyn Clock>, lapics: Arc<Lapics>, kickers: &[Kicker]) -> Self {
        let seats =
            kickers.iter().map(|kicker| Seat { kicker: kicker.clone(), woken: AtomicBool::new(false) });
        Self { memory, clock, lapics, seats: seats.collect() }
    }

    fn seat(&self, id: VcpuId) -> Option<&Seat> {
        self.seats.get(id.0 as usize)
    }

    /// Makes a halted vCPU go on; one that isn't halted goes on at once when it halts next. False: there is no such vCPU.
    pub(crate) fn wake(&self, id: VcpuId) -> bool {
        let Some(seat) = self.seat(id) else { return false };
        seat.woken.store(true, Ordering::SeqCst);
        seat.kicker.kick();
        true
    }

    /// Whether somebody has woken this vCPU, which isn't so any more.
    pub(crate) fn take_wake(&self, id: VcpuId) -> bool {
        self.seat(id).is_some_and(|seat| {
            seat.woken.load(Ordering::Relaxed) && seat.woken.swap(false, Ordering::SeqCst)
        })
    }
}
