//! When a thread that serves a queue tells its driver, and how long it looks for more before it sleeps.
//!
//! A driver that waits for one request wants to hear of it at once. One that keeps many in flight is still handing in new ones while the
//! first are done: an interrupt for each would cost it more than the requests. So news waits until about half of what the driver
//! usually has in flight is done, unless the driver goes quiet or has waited for long. It usually has as much in flight as it
//! lately had.
//!
//! Waking a thread costs more than a request takes. So a thread looks for more work for a while, where that has paid lately.
//!
//! Threads: belongs to one.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// News waits so long at most.
const MOST_SILENCE: Duration = Duration::from_micros(150);
/// A driver that hands nothing in for so long waits for news.
const QUIET: Duration = Duration::from_micros(20);
/// A thread looks for more for so long at most, and for so long when it begins to.
const MOST_LOOK: Duration = Duration::from_micros(60);
const FIRST_LOOK: Duration = Duration::from_micros(15);

/// What to do while there is nothing to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Tell the driver, then ask again.
    Tell,
    /// Look whether there is something now, then ask again.
    Look,
    /// There is nothing to wait for but doorbells.
    Sleep,
}

/// The pace of one queue.
#[derive(Debug)]
pub struct Pace {
    /// Requests that the driver lately had in flight.
    depth: u32,
    /// How many it has now.
    now: u32,
    /// The first of what has been done and not been told.
    untold: Option<Instant>,
    /// When something was done last.
    last: Instant,
    look: Duration,
    /// Since when there has been nothing to do, where the thread has gone to sleep.
    asleep: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        let last = Instant::now();
        Self { depth: 0, now: 0, untold: None, last, look: Duration::ZERO, asleep: None }
    }
}

/// Looking takes a processor from somebody where there is only one.
fn may_look() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

impl Pace {
    /// A request has been done. The driver has not seen the end of `flight`, of which `done` have been. True: tell it now.
    pub fn done(&mut self, done: u32, flight: u32) -> bool {
        let now = Instant::now();
        if let Some(since) = self.asleep.take() {
            // Looking a little longer would have found it.
            self.look = if now - since > MOST_LOOK {
                Duration::ZERO
            } else {
                (2 * self.look).clamp(FIRST_LOOK, MOST_LOOK)
            };
        }
        self.last = now;
        self.now = flight;
        self.depth = self.depth.max(flight);
        let since = *self.untold.get_or_insert(now);
        done >= self.depth / 2 || now - since > MOST_SILENCE
    }

    /// The driver has been told, or didn't want to be.
    pub fn told(&mut self) {
        self.untold = None;
        // A driver that keeps more in flight says so again.
        self.depth -= self.depth / 16;
    }

    /// There is nothing to serve.
    pub fn idle(&mut self) -> Idle {
        let quiet = self.last.elapsed();
        if self.untold.is_some() {
            if quiet < QUIET && self.depth > 1 && may_look() {
                return Idle::Look;
            }
            // It waits for these.
            self.depth = self.now;
            return Idle::Tell;
        }
        if quiet < self.look && self.asleep.is_none() && may_look() {
            return Idle::Look;
        }
        self.asleep.get_or_insert_with(Instant::now);
        Idle::Sleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_has_one_in_flight_is_told_at_once() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            assert!(pace.done(1, 1));
            pace.told();
            while pace.idle() == Idle::Look {}
            assert_eq!(pace.idle(), Idle::Sleep);
        }
    }

    #[test]
    fn a_driver_that_has_many_in_flight_is_told_of_half_of_them_together() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for done in 1..16 {
            let told = pace.done(done, 32);
            // A busy host may have kept us from here for so long.
            assert!(!told || start.elapsed() > MOST_SILENCE, "{done}");
        }
        assert!(pace.done(16, 32));
    }

    #[test]
    fn a_driver_that_goes_quiet_is_told() {
        let mut pace = Pace::default();
        assert!(!pace.done(1, 32) || pace.untold.is_some());
        while pace.idle() == Idle::Look {}
        pace.told();
        // From now on it seems to have that much.
        assert!(pace.depth <= 32);
        assert_ne!(pace.idle(), Idle::Tell);
    }

    #[test]
    fn looking_begins_where_sleep_was_short_and_ends_where_it_was_long() {
        let mut pace = Pace::default();
        pace.done(1, 1);
        pace.told();
        assert_eq!(pace.idle(), Idle::Sleep);
        pace.asleep = Some(Instant::now());
        pace.done(1, 1);
        assert!(pace.look >= FIRST_LOOK || pace.look.is_zero());
        pace.asleep = Some(Instant::now() - Duration::from_millis(5));
        pace.done(1, 1);
        assert_eq!(pace.look, Duration::ZERO);
    }
}
