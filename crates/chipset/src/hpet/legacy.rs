//! Who drives IRQ 0 and IRQ 8: PIT and RTC, or in legacy replacement mode the HPET's first two comparators.
//!
//! Lock order: device, this, interrupt controllers.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Edge, Line, LineSink};

/// The PIT's input.
pub const PIT_PIN: u8 = 0;
/// The RTC's input.
pub const RTC_PIN: u8 = 1;

#[derive(Default)]
struct Levels {
    replaced: bool,
    /// PIT and RTC.
    old: [bool; 2],
    /// Comparators 0 and 1.
    new: [bool; 2],
}

/// The switch in front of IRQ 0 and IRQ 8. PIT and RTC get lines into it ([`PIT_PIN`], [`RTC_PIN`]).
pub struct LegacyRoute {
    irqs: [Line; 2],
    levels: Mutex<Levels>,
}

impl LegacyRoute {
    /// A switch that passes PIT and RTC on.
    #[must_use]
    pub fn new(irq0: Line, irq8: Line) -> Arc<Self> {
        Arc::new(Self { irqs: [irq0, irq8], levels: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut levels);
        let driving = if levels.replaced { levels.new } else { levels.old };
        // Told with the lock held, so that changes arrive in order.
        for (irq, high) in self.irqs.iter().zip(driving) {
            irq.set(high);
        }
    }

    pub(super) fn set_replaced(&self, replaced: bool) {
        self.change(|levels| levels.replaced = replaced);
    }

    /// Of comparator `n`'s last edge.
    pub(super) fn last_edge_of(&self, n: usize) -> Edge {
        self.irqs[n].last_edge()
    }

    pub(super) fn set_comparator(&self, n: usize, high: bool) {
        self.change(|levels| levels.new[n] = high);
    }
}

impl LineSink for LegacyRoute {
    fn set_pin(&self, pin: u8, high: bool) {
        if let PIT_PIN | RTC_PIN = pin {
            self.change(|levels| levels.old[usize::from(pin)] = high);
        }
    }

    fn last_edge(&self, pin: u8) -> Edge {
        let replaced = self.levels.lock().unwrap_or_else(PoisonError::into_inner).replaced;
        match pin {
            PIT_PIN | RTC_PIN if !replaced => self.irqs[usize::from(pin)].last_edge(),
            _ => Edge::Gone,
        }
    }
}
