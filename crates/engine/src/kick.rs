//! The kicker: how another thread gets a vCPU's attention.
//!
//! Used by devices and timers (through the interrupt controllers) and by whoever stops a machine; waited on by vCPU threads
//! whose guest has halted. Costs two atomic operations where the vCPU runs, one wake-up where it sleeps.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Gets a vCPU's attention from any thread. All clones are the same kicker.
#[derive(Clone, Default)]
pub struct Kicker {
    inner: Arc<Inner>,
}

struct Inner {
    /// Zero where there is a request.
    proceed: AtomicU32,
    asleep: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            proceed: AtomicU32::new(1),
            asleep: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }
}

impl Kicker {
    /// A kicker that nobody has used yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the vCPU look up at its next block boundary, or wakes it.
    pub fn kick(&self) {
        // Sequentially consistent against `wait`: either it sees the request, or this sees it asleep.
        self.inner.proceed.store(0, Ordering::SeqCst);
        if self.inner.asleep.load(Ordering::SeqCst) {
            let _guard = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.inner.wake.notify_all();
        }
    }

    /// Whether there is a request. For the engine's block boundaries: one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.inner.proceed.load(Ordering::Relaxed) == 0
    }

    /// The word that [`Kicker::is_requested`] looks at, for code that looks by itself: zero where there is a request. It
    /// stays where it is as long as any clone of the kicker exists.
    #[must_use]
    pub fn word(&self) -> &AtomicU32 {
        &self.inner.proceed
    }

    /// Takes the request, if there is one.
    #[must_use]
    pub fn take(&self) -> bool {
        self.inner.proceed.swap(1, Ordering::SeqCst) == 0
    }

    /// Sleeps until there is a request or the time is over. The request stays to be taken.
    pub fn wait(&self, at_most: Option<Duration>) {
        let mut guard = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.asleep.store(true, Ordering::SeqCst);
        if self.inner.proceed.load(Ordering::SeqCst) != 0 {
            guard = match at_most {
                Some(time) => {
                    self.inner.wake.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.inner.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
            };
        }
        self.inner.asleep.store(false, Ordering::SeqCst);
        drop(guard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_before_the_wait_is_not_lost() {
        let kicker = Kicker::new();
        kicker.kick();
        kicker.wait(None);
        assert!(kicker.take());
        assert!(!kicker.take());
    }

    #[test]
    fn a_kick_wakes_a_sleeper() {
        let kicker = Kicker::new();
        let sleeper = std::thread::spawn({
            let kicker = kicker.clone();
            move || {
                while !kicker.take() {
                    kicker.wait(None);
                }
            }
        });
        kicker.kick();
        sleeper.join().expect("the sleeper ends");
    }
}
