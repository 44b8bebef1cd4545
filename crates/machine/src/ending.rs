//! How a run ends: the one place where devices, vCPU threads, writers and handles say so, and where the machine's owner waits.
//!
//! The first ending counts, except that a reset gives way to what really ends the run, and everything to a failure. Saying it kicks every vCPU, so that their threads leave the guest.
//!
//! Threads: any. The lock is a leaf but for kickers, which are leaves too.

use crate::MachineError;
use engine::Kicker;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use x86::CpuState;

/// Why the vCPUs are to stop.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote the debug-exit port; the process's status.
    TestExit(u8),
    /// Triple fault.
    Shutdown { vcpu: u32, state: Box<CpuState> },
    /// Somebody used a [`Handle`](crate::Handle).
    Stopped,
    /// Ombra itself can't go on.
    Failed(MachineError),
}

/// Where a run's end is said and waited for.
#[derive(Default)]
pub(crate) struct Control {
    ending: Mutex<Option<Ending>>,
    said: Condvar,
    /// The same as a flag, for the vCPU threads.
    is_ending: AtomicBool,
    kickers: OnceLock<Vec<Kicker>>,
    /// Called with no lock held when an ending is said: whoever may be keeping a vCPU thread waiting lets it go.
    hurry: OnceLock<Vec<Box<dyn Fn() + Send + Sync>>>,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Option<Ending>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whom to kick. Once, before the machine runs.
    pub(crate) fn connect(&self, kickers: Vec<Kicker>, hurry: Vec<Box<dyn Fn() + Send + Sync>>) {
        let _ = self.kickers.set(kickers);
        let _ = self.hurry.set(hurry);
    }

    /// Ends the run, unless something else has ended it before. May be called with a device's lock held.
    pub(crate) fn end(&self, ending: Ending) {
        let mut said = self.lock();
        let counts = match (&*said, &ending) {
            (None | Some(Ending::Reset), _) => true,
            (Some(Ending::Failed(_)), _) => false,
            (_, Ending::Failed(_)) => true,
            _ => false,
        };
        if counts {
            *said = Some(ending);
        }
        self.is_ending.store(true, Ordering::SeqCst);
        drop(said);
        self.said.notify_all();
        for hurry in self.hurry.get().into_iter().flatten() {
            hurry();
        }
        for kicker in self.kickers.get().into_iter().flatten() {
            kicker.kick();
        }
    }

    /// Whether the vCPU threads are to return.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }

    /// Waits for the end and leaves it standing, so that threads that start late return at once.
    pub(crate) fn wait(&self) {
        let mut said = self.lock();
        while said.is_none() {
            said = self.said.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the ending; the machine may run again. To be called when all vCPU threads have returned.
    pub(crate) fn take(&self) -> Option<Ending> {
        let mut said = self.lock();
        self.is_ending.store(false, Ordering::SeqCst);
        said.take()
    }
}

/// Ends the run when its holder goes away unexpectedly: a panic of one thread must not leave the others waiting.
pub(crate) struct Presence {
    pub(crate) control: Arc<Control>,
    pub(crate) what: &'static str,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.control.end(Ending::Failed(MachineError::Panicked { what: self.what }));
        }
    }
}
