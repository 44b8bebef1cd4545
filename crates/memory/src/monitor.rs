//! Monitored lines: how a vCPU learns of a store to a line of memory, for MONITOR and MWAIT (SDM 3A 9.10.4).
//!
//! A line is a [granule](crate::GRANULE). Arming marks it, as bytes are marked from which something is derived, so every store to it
//! by whatever writer takes the slow path, which looks here. Marking anew costs a stop of all direct writers, so a mark
//! stays when its line has been hit: who waits for stores waits for the same line again and again. Whoever takes marks back
//! in vain asks [`GuestMemory::monitored_granules`] first. One that is taken back all the same counts as a store.
//!
//! Threads: a monitor belongs to a vCPU's thread, any thread's store may hit it. Locks: the list of monitors, held while `wake`
//! is called, which may lock no more than a kicker.

use crate::{GRANULE, GuestMemory, RamOffset, granules};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use x86::address::PAGE_SIZE;

/// How often marks of a line that nobody arms again are spared.
const SPARED: u32 = 1000;

/// No line.
const NONE: u64 = u64::MAX;

struct Watcher {
    /// The line's number.
    line: AtomicU64,
    armed: AtomicBool,
    /// How often its mark will still be spared while it isn't armed.
    spared: AtomicU32,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Watcher {
    /// Its line's page, and the line's bit there.
    fn place(&self) -> Option<(u64, u64)> {
        let line = self.line.load(Ordering::SeqCst);
        let per_page = PAGE_SIZE / GRANULE;
        (line != NONE).then(|| (line / per_page, 1 << (line % per_page)))
    }
}

/// All of a memory's monitors.
pub(crate) struct Monitors {
    /// Monitors there have been: as long as there are none, nobody takes the lock.
    made: AtomicU32,
    list: Mutex<Vec<Weak<Watcher>>>,
}

impl Monitors {
    pub(crate) fn new() -> Self {
        Self { made: AtomicU32::new(0), list: Mutex::new(Vec::new()) }
    }

    fn add(&self, watcher: &Arc<Watcher>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|watcher| watcher.strong_count() > 0);
        list.push(Arc::downgrade(watcher));
        self.made.fetch_add(1, Ordering::SeqCst);
    }

    fn each(&self, mut does: impl FnMut(&Watcher)) {
        if self.made.load(Ordering::Relaxed) == 0 {
            return;
        }
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().filter_map(Weak::upgrade).for_each(|watcher| does(&watcher));
    }

    /// Granules of a page have been written, or have lost their marks.
    pub(crate) fn hit(&self, frame: u64, mask: u64) {
        // Either this sees a monitor that is being armed, or its vCPU sees the store.
        fence(Ordering::SeqCst);
        self.each(|watcher| {
            if watcher.place().is_some_and(|(page, line)| page == frame && line & mask != 0)
                && watcher.armed.swap(false, Ordering::SeqCst)
            {
                (watcher.wake)();
            }
        });
    }

    fn of_page(&self, frame: u64) -> u64 {
        let mut found = 0;
        self.each(|watcher| {
            let Some((_, line)) = watcher.place().filter(|&(page, _)| page == frame) else { return };
            let less = |left: u32| left.checked_sub(1);
            if watcher.armed.load(Ordering::SeqCst)
                || watcher.spared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
            {
                found |= line;
            }
        });
        found
    }
}

/// One vCPU's monitor of a line.
pub struct LineMonitor {
    memory: GuestMemory,
    watcher: Arc<Watcher>,
}

impl fmt::Debug for LineMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LineMonitor").field(&self.watcher.place()).field(&self.is_armed()).finish()
    }
}

impl LineMonitor {
    /// Watches the line that the byte at `at` lies in, and no other any more. Reads that follow see every store that it hasn't seen.
    pub fn arm(&self, at: RamOffset) {
        let watcher = &self.watcher;
        watcher.armed.store(false, Ordering::SeqCst);
        watcher.line.store(at.0 / GRANULE, Ordering::SeqCst);
        watcher.spared.store(SPARED, Ordering::Relaxed);
        watcher.armed.store(true, Ordering::SeqCst);
        self.memory.mark_granules(at, granules(at, 1));
        fence(Ordering::SeqCst);
    }

    /// Whether it has been armed, and nothing has been stored to its line since.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.watcher.armed.load(Ordering::SeqCst)
    }

    /// Ends that.
    pub fn disarm(&self) {
        self.watcher.armed.store(false, Ordering::SeqCst);
    }
}

impl GuestMemory {
    /// A monitor that isn't armed. `wake` is called once for each time that it is armed and its line is then written, by any
    /// thread.
    #[must_use]
    pub fn add_monitor(&self, wake: Box<dyn Fn() + Send + Sync>) -> LineMonitor {
        let watcher = Arc::new(Watcher {
            line: AtomicU64::new(NONE),
            armed: AtomicBool::new(false),
            spared: AtomicU32::new(0),
            wake,
        });
        self.shared.monitors.add(&watcher);
        LineMonitor { memory: self.clone(), watcher }
    }

    /// Granules of the page at `at` that are marked because of a [`LineMonitor`], one bit each. Who asks means to take marks back: lines
    /// that aren't armed again are left out after a while.
    #[must_use]
    pub fn monitored_granules(&self, at: RamOffset) -> u64 {
        self.shared.monitors.of_page(at.frame())
    }
}
