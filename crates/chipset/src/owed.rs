//! Ticks that a periodic timer owes its guest.
//!
//! On hardware a tick is lost when the one before it hasn't been taken, which is the guest's own doing. Here the host may be the
//! cause: it ran neither the vCPU nor the thread that rings the alarm while ticks fell due. Guests that count ticks (Linux does
//! when it looks whether its timer works) go wrong then. So such ticks are kept, and each is raised as soon as the one before it has been
//! taken. What falls due while the guest keeps its interrupts off merges as it does on hardware.
//!
//! Used by the PIT and the HPET, with their lock held. The machine calls [`Creditor::interrupt_taken`].

use crate::Edge;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most ticks that are owed, however long a stall was.
const MOST: u64 = 1000;

/// A device that wants to know when interrupts have been taken.
pub trait Creditor: Send {
    /// Whether there is any use in telling it. Looked at without the device's lock.
    fn owes(&self) -> Arc<AtomicBool>;
    /// A vCPU has taken an interrupt, whosoever.
    fn interrupt_taken(&mut self);
}

/// The ticks that one timer owes.
#[derive(Clone, Copy, Default, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Owed(u64);

impl Owed {
    /// `ticks` of them, at least one, have fallen due, of which at most one was due just now; `a_second` are as many as a second has.
    /// Says whether to raise one.
    pub(crate) fn fall_due(&mut self, ticks: u64, a_second: u64, last: Edge) -> bool {
        let late = ticks.saturating_sub(1).saturating_add(u64::from(last == Edge::Unseen));
        self.0 = self.0.saturating_add(late).min(a_second.clamp(1, MOST));
        last == Edge::Gone
    }

    /// Whether to raise one that is owed.
    pub(crate) fn collect(&mut self, last: impl FnOnce() -> Edge) -> bool {
        let raise = self.0 > 0 && last() == Edge::Gone;
        self.0 -= u64::from(raise);
        raise
    }

    pub(crate) fn any(self) -> bool {
        self.0 > 0
    }
}

/// What [`Creditor::owes`] gives, kept by the device.
#[derive(Clone, Default)]
pub(crate) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(crate) fn set(&self, owes: bool) {
        self.0.store(owes, Ordering::Release);
    }

    pub(crate) fn share(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_owed_when_it_comes_late_or_when_nobody_has_looked_at_the_one_before() {
        let mut owed = Owed::default();
        assert!(owed.fall_due(1, 100, Edge::Gone));
        assert!(!owed.any());
        assert!(!owed.fall_due(1, 100, Edge::Held), "merges");
        assert!(!owed.any());
        assert!(!owed.fall_due(1, 100, Edge::Unseen));
        assert!(!owed.collect(|| Edge::Unseen));
        assert!(owed.collect(|| Edge::Gone));
        assert!(!owed.collect(|| Edge::Gone));
        assert!(owed.fall_due(5, 100, Edge::Gone));
        assert_eq!((0..9).filter(|_| owed.collect(|| Edge::Gone)).count(), 4);
    }

    #[test]
    fn what_is_owed_is_bounded_by_a_second() {
        let mut owed = Owed::default();
        owed.fall_due(u64::MAX, 18, Edge::Unseen);
        assert_eq!((0..99).filter(|_| owed.collect(|| Edge::Gone)).count(), 18);
        owed.fall_due(u64::MAX, u64::MAX, Edge::Unseen);
        assert_eq!((0..9999).filter(|_| owed.collect(|| Edge::Gone)).count(), 1000);
    }
}
