//! Traces: who is told of stores, and how.
//!
//! A *trace* says that somebody depends on some granules of a page. There are two kinds, for two kinds of structures:
//!
//! - **Told afterwards**, for what is derived from guest bytes and compared with them before it is used again: decoded instructions,
//!   translations. Whoever derives such things is a *party*, with an inbox of its own ([`GuestMemory::new_party`]). Each page has the
//!   set of parties that have marked granules of it. A store to a marked granule is made, and then puts the page's number into the
//!   inboxes of that set, and of nobody else. The receiver reads its inbox when it likes, but not later than at its next
//!   point of order (an instruction that serializes, an entry into a block). Nobody is waited for.
//! - **Asked before**, for what has to see memory as it was, or that has to know before anybody else does: a copy of memory while the
//!   guest runs, an observer ([`GuestMemory::guard`]). The writer's own thread calls the [`Guard`], which has all the time it wants:
//!   the store is made when it returns.
//!
//! Every writer counts: vCPUs on any engine, devices, the debugger. Translated code, which stores by host address, has none of a page
//! with traces, or looks at its marks before each store ([`GuestMemory::watch_granules`]).
//!
//! Threads: inboxes are written by any thread and read by the party's; no locks. The list of guards has one, taken by stores to guarded
//! pages and while guards come and go.

use crate::log::PageLog;
use crate::{GuestMemory, RamOffset, granules};
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use x86::address::PAGE_SIZE;

/// Parties that are told apart. Those beyond share the last inbox: they may be told of what another one depends on, never too little.
const INBOXES: u32 = 64;

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// A vCPU.
    Cpu,
    /// A device, or the machine when it loads something.
    Device,
}

/// Asked before bytes are written.
pub trait Guard: Send + Sync {
    /// `len` bytes at `at`, which lie in one page, are about to be written by `by`, some of them guarded. They still hold what
    /// they did; when this returns they are written. Called on the writer's thread, by several at once. It may read memory, and not write
    /// where it is a guard itself. A device may be about to read only.
    fn before_store(&self, at: RamOffset, len: u64, by: Writer);
}

/// Granules of a page that are guarded. Dropped, they aren't any more.
#[must_use = "dropped, it guards nothing"]
pub struct Guarded {
    memory: GuestMemory,
    number: u64,
    frame: u64,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("frame", &self.frame).finish_non_exhaustive()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.memory.unguard(self.number, self.frame);
    }
}

/// What has happened to traces, of all parties.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TraceCounts {
    /// Stores to marked granules, by vCPUs and by devices.
    pub events: [u64; 2],
    /// Notices put into inboxes. Parties times events would be what telling everybody costs.
    pub notices: u64,
    /// Stores that a guard was asked about.
    pub asked: u64,
    /// Parties.
    pub parties: u64,
}

struct Entry {
    number: u64,
    frame: u64,
    granules: u64,
    guard: Arc<dyn Guard>,
}

/// A handle's party: its bit in the sets of pages, and its inbox.
#[derive(Clone)]
pub(crate) struct Party {
    pub(crate) bit: u64,
    /// Others have the same bit.
    pub(crate) shared: bool,
    pub(crate) inbox: Arc<PageLog>,
}

/// All of a memory's traces, but for what is in the pages' own bookkeeping.
pub(crate) struct Traces {
    inboxes: [OnceLock<Arc<PageLog>>; INBOXES as usize],
    parties: AtomicU32,
    guards: RwLock<Vec<Entry>>,
    guards_made: AtomicU64,
    events: [AtomicU64; 2],
    notices: AtomicU64,
    asked: AtomicU64,
}

impl Traces {
    pub(crate) fn new() -> Self {
        Self {
            inboxes: [const { OnceLock::new() }; INBOXES as usize],
            parties: AtomicU32::new(0),
            guards: RwLock::default(),
            guards_made: AtomicU64::new(0),
            events: Default::default(),
            notices: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        }
    }

    pub(crate) fn add_party(&self) -> Party {
        let slot = self.parties.fetch_add(1, Ordering::Relaxed).min(INBOXES - 1);
        self.party(slot)
    }

    /// The party of a handle that nobody has made one for.
    pub(crate) fn last_party(&self) -> Party {
        self.party(INBOXES - 1)
    }

    fn party(&self, slot: u32) -> Party {
        let inbox = self.inboxes[slot as usize].get_or_init(|| Arc::new(PageLog::new())).clone();
        Party { bit: 1 << slot, shared: slot == INBOXES - 1, inbox }
    }

    /// Puts a page into the inboxes of `set`.
    pub(crate) fn tell(&self, frame: u64, set: u64) {
        let mut left = set;
        while left != 0 {
            if let Some(inbox) = self.inboxes[left.trailing_zeros() as usize].get() {
                inbox.push(frame);
            }
            left &= left - 1;
        }
        self.notices.fetch_add(u64::from(set.count_ones()), Ordering::Relaxed);
    }

    pub(crate) fn count_event(&self, by: Writer) {
        self.events[usize::from(by == Writer::Device)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> TraceCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TraceCounts {
            events: [load(&self.events[0]), load(&self.events[1])],
            notices: load(&self.notices),
            asked: load(&self.asked),
            parties: self.parties.load(Ordering::Relaxed).into(),
        }
    }

    /// The granules of a page that have guards.
    pub(crate) fn guarded(&self, frame: u64) -> u64 {
        let guards = self.guards.read().unwrap_or_else(PoisonError::into_inner);
        guards.iter().filter(|entry| entry.frame == frame).fold(0, |all, entry| all | entry.granules)
    }

    /// Asks who guards what is about to be written, in one page.
    pub(crate) fn ask(&self, at: RamOffset, len: u64, by: Writer) {
        let (frame, mask) = (at.frame(), granules(at, len));
        let guards: Vec<Arc<dyn Guard>> = {
            let guards = self.guards.read().unwrap_or_else(PoisonError::into_inner);
            let touched = |entry: &&Entry| entry.frame == frame && entry.granules & mask != 0;
            guards.iter().filter(touched).map(|entry| entry.guard.clone()).collect()
        };
        // The lock isn't held meanwhile: a guard may take its time, and guards may go.
        for guard in guards {
            self.asked.fetch_add(1, Ordering::Relaxed);
            guard.before_store(at, len, by);
        }
    }
}

impl GuestMemory {
    /// The same memory for a party of its own: marks that are made through this handle, and its clones, are told to its inbox
    /// ([`written_since`](Self::written_since), [`epoch`](Self::epoch)), and others' aren't. One party may be used by one thread at
    /// a time. A handle that was never made one for shares its inbox with all others of that kind.
    #[must_use]
    pub fn new_party(&self) -> Self {
        Self { party: self.shared.traces.add_party(), ..self.clone() }
    }

    /// From now on `guard` is asked before any of `len` bytes at `at`, which lie in one page, are written; granules are told apart. A
    /// store that has begun when this is called may still be made without: who can't have that calls it while vCPUs and devices
    /// stand still.
    pub fn guard(&self, at: RamOffset, len: u64, guard: Arc<dyn Guard>) -> Guarded {
        let (frame, mask) = (at.frame(), granules(at, len));
        let number = self.shared.traces.guards_made.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { number, frame, granules: mask, guard };
        self.shared.traces.guards.write().unwrap_or_else(PoisonError::into_inner).push(entry);
        self.set_guarded(frame, true);
        // Marked, no translated code writes there by itself.
        self.mark_granules(RamOffset(frame * PAGE_SIZE), mask);
        Guarded { memory: self.clone(), number, frame }
    }

    fn unguard(&self, number: u64, frame: u64) {
        {
            let mut guards = self.shared.traces.guards.write().unwrap_or_else(PoisonError::into_inner);
            guards.retain(|entry| entry.number != number);
            if guards.iter().any(|entry| entry.frame == frame) {
                return;
            }
        }
        self.set_guarded(frame, false);
        // Its marks would only be in the way.
        self.leave_page(RamOffset(frame * PAGE_SIZE));
    }

    /// What has happened to traces so far.
    #[must_use]
    pub fn trace_counts(&self) -> TraceCounts {
        self.shared.traces.counts()
    }
}
