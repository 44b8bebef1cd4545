//! A virtio device's jobs as works of a [`Crew`].
//!
//! Threads: `ombra-NAME-N`. A thread has its rings to itself. Locks: none.

use crate::device::{Job, Next, Wakes};
use crate::interrupt::Signals;
use crate::queue::Queue;
use std::io;
use std::sync::Arc;
use workers::{Crew, OnPanic, Staff};

/// A job, and what becomes of it.
struct Served {
    job: Job,
    /// The driver has broken a ring, and has been told.
    broken: bool,
    signals: Arc<Signals>,
    name: &'static str,
}

impl workers::Work for Served {
    fn turn(&mut self) -> Next {
        if self.broken {
            return Next::Wait;
        }
        match self.job.work.run(&mut self.job.queues) {
            Ok(next) => next,
            Err(why) => {
                tracing::info!("virtio {}: {why}; it waits for a reset", self.name);
                self.broken = true;
                self.signals.need_reset();
                Next::Wait
            }
        }
    }

    fn wakes(&self) -> Wakes<'_> {
        if self.broken { Wakes::default() } else { self.job.work.wakes() }
    }
}

/// Those who do a device's work.
#[derive(Default)]
pub(crate) struct Threads {
    crew: Crew<Served>,
    /// The indices of each one's rings.
    rings: Vec<Vec<u16>>,
}

impl Threads {
    /// Starts a thread for each job, or has callers do them.
    ///
    /// # Errors
    /// What the host refuses; the threads that have been started are stopped again.
    pub(crate) fn start(
        staff: Staff,
        name: &'static str,
        jobs: Vec<Job>,
        signals: &Arc<Signals>,
        on_panic: &OnPanic,
    ) -> io::Result<Self> {
        let rings = jobs.iter().map(|job| job.queues.iter().map(Queue::index).collect()).collect();
        let served = |job| Served { job, broken: false, signals: Arc::clone(signals), name };
        let works = jobs.into_iter().map(served).collect();
        Ok(Self { crew: Crew::start(staff, name, works, on_panic)?, rings })
    }

    /// Wakes the thread that has this ring.
    pub(crate) fn ring(&mut self, queue: u16) {
        if let Some(place) = self.rings.iter().position(|rings| rings.contains(&queue)) {
            self.crew.ring(place);
        }
    }

    /// Asks all threads to end.
    pub(crate) fn ask_to_stop(&self) {
        self.crew.ask_to_stop();
    }

    /// Whether none runs any more.
    pub(crate) fn have_ended(&self) -> bool {
        self.crew.have_ended()
    }

    /// Ends all threads, waits for them, and gives their rings back.
    pub(crate) fn stop(&mut self) -> Vec<Queue> {
        self.rings.clear();
        // One that panicked has said so; its rings are gone.
        self.crew.stop().into_iter().flat_map(|served| served.job.queues).collect()
    }
}
