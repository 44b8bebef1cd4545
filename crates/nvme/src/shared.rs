//! What a controller's registers and its threads share.
//!
//! Locks, outer to inner: a submission queue's, which its thread holds while it serves it; a completion queue's; the rest of the state's;
//! pins; the function's interrupts. vCPUs take all but the first.

use crate::features::Features;
use crate::log::{Counters, Errors};
use crate::queue::{CompletionQueue, Lost, SubmissionQueue, Voice};
use crate::spec::{MOST_ADMIN_ENTRIES, Outcome};
use disk::Requests;
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Asynchronous event requests that may wait (5.2).
pub(crate) const MOST_EVENT_REQUESTS: usize = 4;

/// Type and information of an event of type "error" (5.2, figures 147 and 148), and the log page that says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A doorbell of a queue that isn't there.
    DoorbellRegister,
    /// A doorbell with a value that the queue doesn't have.
    DoorbellValue,
}

impl Event {
    /// As a completion's first dword has it: type 0, this information, log page 1.
    pub(crate) const fn result(self) -> u32 {
        (match self {
            Self::DoorbellRegister => 0,
            Self::DoorbellValue => 1,
        }) << 8
            | 1 << 16
    }
}

/// Everything that isn't a queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) features: Features,
    pub(crate) errors: Errors,
    /// Identifiers of the asynchronous event requests that wait.
    pub(crate) event_requests: Vec<u16>,
    /// Identifiers of such requests that have been aborted, of which the driver has yet to be told.
    pub(crate) aborted: Vec<u16>,
    /// The event that hasn't been told. One of a type waits at most, and this is the only type.
    pub(crate) event: Option<Event>,
    /// The driver has been told of one and has not read the log since (5.2).
    pub(crate) events_masked: bool,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            features: Features::new(),
            errors: Errors::default(),
            event_requests: Vec::new(),
            aborted: Vec::new(),
            event: None,
            events_masked: false,
        }
    }
}

/// A submission queue's doorbell.
#[derive(Default)]
pub(crate) struct Bell {
    /// Entries of the queue; 0 where there is none.
    pub(crate) size: AtomicU32,
    /// The driver's tail.
    pub(crate) tail: AtomicU32,
}

/// How far a shutdown is (3.1.6).
pub(crate) mod shutdown {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const GOES_ON: u32 = 1;
    pub(crate) const DONE: u32 = 2;
}

/// One controller.
pub(crate) struct Shared {
    // Fixed configuration and wiring.
    pub(crate) disk: Requests,
    pub(crate) memory: GuestMemory,
    pub(crate) voice: Voice,
    pub(crate) names: Names,
    // Queues, the admin queues first. As many of one kind as of the other.
    pub(crate) bells: Vec<Bell>,
    submissions: Vec<Mutex<Option<SubmissionQueue>>>,
    completions: Vec<Mutex<Option<CompletionQueue>>>,
    // Guest-visible state.
    state: Mutex<State>,
    pub(crate) counters: Counters,
    /// The driver has broken what can't be answered (CSTS.CFS).
    pub(crate) fatal: AtomicBool,
    /// See [`shutdown`].
    pub(crate) shutdown: AtomicU32,
}

/// What the controller calls itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Names {
    /// 20 bytes of ASCII count.
    pub(crate) serial: String,
    /// Tells the controllers of one machine apart.
    pub(crate) number: u8,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// A controller with `queues` pairs of I/O queues.
    pub(crate) fn new(disk: Requests, memory: GuestMemory, voice: Voice, names: Names, queues: u16) -> Self {
        let all = 0..=queues;
        Self {
            disk,
            memory,
            voice,
            names,
            bells: all.clone().map(|_| Bell::default()).collect(),
            submissions: all.clone().map(|_| Mutex::default()).collect(),
            completions: all.map(|_| Mutex::default()).collect(),
            state: Mutex::new(State::new()),
            counters: Counters::default(),
            fatal: AtomicBool::new(false),
            shutdown: AtomicU32::new(shutdown::NONE),
        }
    }

    /// Pairs of I/O queues.
    pub(crate) fn queues(&self) -> u16 {
        self.bells.len() as u16 - 1
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn submission(&self, number: u16) -> Option<MutexGuard<'_, Option<SubmissionQueue>>> {
        self.submissions.get(usize::from(number)).map(lock)
    }

    pub(crate) fn completion(&self, number: u16) -> Option<MutexGuard<'_, Option<CompletionQueue>>> {
        self.completions.get(usize::from(number)).map(lock)
    }

    /// Does something with a completion queue that is there.
    pub(crate) fn with_completion<R>(
        &self,
        number: u16,
        with: impl FnOnce(&mut CompletionQueue) -> R,
    ) -> Option<R> {
        self.completion(number)?.as_mut().map(with)
    }

    /// Puts a submission queue in place, or takes it away. Waits for the thread that serves it.
    pub(crate) fn set_submission(&self, number: u16, queue: Option<SubmissionQueue>) {
        let (Some(bell), Some(mut place)) = (self.bells.get(usize::from(number)), self.submission(number))
        else {
            return;
        };
        bell.tail.store(queue.as_ref().map_or(0, |queue| queue.head), Ordering::Release);
        bell.size.store(queue.as_ref().map_or(0, |queue| queue.size), Ordering::Release);
        *place = queue;
    }

    /// Puts a completion queue in place, or takes it away.
    pub(crate) fn set_completion(&self, number: u16, queue: Option<CompletionQueue>) {
        if let Some(mut place) = self.completion(number) {
            self.voice.heard(number);
            *place = queue;
        }
    }

    /// Promises an entry of a completion queue. `false`: there is no room now.
    pub(crate) fn promise(&self, completions: u16) -> bool {
        self.with_completion(completions, CompletionQueue::promise).unwrap_or(false)
    }

    /// Takes such a promise back.
    pub(crate) fn release(&self, completions: u16) {
        self.with_completion(completions, CompletionQueue::release);
    }

    /// Writes the promised entry. Gives the entries that the driver hasn't seen.
    pub(crate) fn post(&self, from: &SubmissionQueue, number: u16, id: u16, outcome: Outcome) -> u32 {
        let posted = self.with_completion(from.completions, |queue| {
            let posted = queue.post(&self.memory, number, from.head, id, outcome);
            posted.map(|()| queue.len())
        });
        match posted {
            Some(Ok(unseen)) => unseen,
            Some(Err(Lost)) => {
                self.fail("a completion queue is not in RAM");
                0
            }
            None => 0,
        }
    }

    /// Interrupts for what has been posted.
    pub(crate) fn tell(&self, completions: u16) {
        self.with_completion(completions, |queue| self.voice.tell(completions, queue));
    }

    /// The controller can't go on until it is reset.
    pub(crate) fn fail(&self, why: &str) {
        if !self.fatal.swap(true, Ordering::AcqRel) {
            tracing::info!("nvme: {why}; it waits for a reset");
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.fatal.load(Ordering::Acquire)
    }

    /// Something that the driver has done wrong to a doorbell. The admin queue's thread tells it.
    pub(crate) fn note_event(&self, event: Event) {
        let mut state = self.state();
        state.errors.add_event();
        state.event.get_or_insert(event);
    }

    /// Forgets queues, requests and features: a controller reset (7.3.2), without the admin queues' registers.
    pub(crate) fn reset(&self) {
        for number in 0..=self.queues() {
            self.set_submission(number, None);
            self.set_completion(number, None);
        }
        self.voice.with_pins(|pins| *pins = Default::default());
        *self.state() = State::new();
        self.fatal.store(false, Ordering::Release);
        self.shutdown.store(shutdown::NONE, Ordering::Release);
    }

    pub(crate) fn save(&self) -> SavedQueues {
        let submissions = (0..=self.queues()).map(|number| {
            let queue = self.submission(number).and_then(|queue| queue.clone());
            (queue, self.bells[usize::from(number)].tail.load(Ordering::Acquire))
        });
        SavedQueues {
            submissions: submissions.collect(),
            completions: self.completions.iter().map(|queue| lock(queue).clone()).collect(),
            state: self.state().clone(),
            masked: self.voice.with_pins(|pins| *pins),
            fatal: self.has_failed(),
            shutdown: self.shutdown.load(Ordering::Acquire),
        }
    }

    /// Whether this can be the state of a controller with as many queues.
    pub(crate) fn is_possible(&self, saved: &SavedQueues) -> bool {
        let count = self.bells.len();
        let bound = |queue: &SubmissionQueue| {
            let completions = saved.completions.get(usize::from(queue.completions));
            completions.is_some_and(Option::is_some)
        };
        saved.submissions.len() == count
            && saved.completions.len() == count
            && saved.submissions.iter().all(|(queue, tail)| {
                queue.as_ref().is_none_or(|queue| {
                    (2..=MOST_ADMIN_ENTRIES).contains(&queue.size)
                        && queue.head < queue.size
                        && *tail < queue.size
                        && bound(queue)
                })
            })
            && saved.completions.iter().flatten().all(|queue| queue.is_possible(MOST_ADMIN_ENTRIES))
            && saved.state.event_requests.len() <= MOST_EVENT_REQUESTS
            && saved.state.aborted.len() <= MOST_EVENT_REQUESTS
            && saved.state.features.is_possible()
            && saved.state.errors.is_possible()
            && saved.shutdown <= shutdown::DONE
    }

    pub(crate) fn restore(&self, saved: SavedQueues) {
        self.reset();
        let count = 0..=self.queues();
        for (number, queue) in count.clone().zip(saved.completions) {
            self.set_completion(number, queue);
        }
        for (number, (queue, tail)) in count.zip(saved.submissions) {
            self.set_submission(number, queue);
            self.bells[usize::from(number)].tail.store(tail, Ordering::Release);
        }
        *self.state() = saved.state;
        self.voice.with_pins(|pins| *pins = saved.masked);
        self.fatal.store(saved.fatal, Ordering::Release);
        self.shutdown.store(saved.shutdown, Ordering::Release);
    }
}

/// Guest-visible state but for registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SavedQueues {
    /// With their doorbells.
    submissions: Vec<(Option<SubmissionQueue>, u32)>,
    completions: Vec<Option<CompletionQueue>>,
    state: State,
    masked: crate::queue::Pins,
    fatal: bool,
    shutdown: u32,
}
