//! Whoever reads and writes RAM by host address, not through [`GuestMemory`](crate::GuestMemory)'s own functions.
//!
//! Translated code does. Its stores tell nobody, so it may keep host addresses for writing only of pages from which nothing
//! is derived. When a page is marked for the first time, the marking thread waits until every [`DirectWriter`]
//! that is running has stopped; before such a writer runs again it has to take notice of the marks and forget its addresses of
//! those pages. A thread that marks is never running itself, so two of them don't wait for each other.
//!
//! Of other pages it may keep the address of the word of marks and look there before each store. Looking and storing are two
//! steps, so who marks a granule of such a page waits, too.
//!
//! Locks: the list of writers, a leaf, never held while waiting.

use crate::log::PageLog;
use crate::sync::{AtomicBool, Ordering, fence, wait};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One party with host addresses. Belongs to a vCPU's thread; others only look.
pub struct DirectWriter {
    running: AtomicBool,
    interrupt: Box<dyn Fn() + Send + Sync>,
}

impl DirectWriter {
    /// Ends what [`GuestMemory::enter_direct`](crate::GuestMemory::enter_direct) began.
    #[inline]
    pub fn leave(&self) {
        self.running.store(false, Ordering::Release);
    }
}

/// All of a memory's direct writers, and the marks that they have to take notice of.
pub(crate) struct Directs {
    writers: Mutex<Vec<Weak<DirectWriter>>>,
    /// Pages that something was derived from for the first time.
    marks: PageLog,
}

impl Directs {
    pub(crate) fn new() -> Self {
        Self { writers: Mutex::new(Vec::new()), marks: PageLog::new() }
    }

    pub(crate) fn add(&self, interrupt: Box<dyn Fn() + Send + Sync>) -> Arc<DirectWriter> {
        let writer = Arc::new(DirectWriter { running: AtomicBool::new(false), interrupt });
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|writer| writer.strong_count() > 0);
        writers.push(Arc::downgrade(&writer));
        writer
    }

    pub(crate) fn position(&self) -> u64 {
        self.marks.position()
    }

    pub(crate) fn read(&self, seen: &mut u64, each: impl FnMut(u64)) -> bool {
        self.marks.read(seen, each)
    }

    /// See [`GuestMemory::enter_direct`](crate::GuestMemory::enter_direct).
    #[inline]
    pub(crate) fn enter(&self, writer: &DirectWriter, seen: u64) -> bool {
        // Sequentially consistent against `mark`: either it sees this running, or this sees its mark.
        writer.running.store(true, Ordering::SeqCst);
        if self.marks.position() == seen {
            return true;
        }
        writer.leave();
        false
    }

    /// A page's first mark: returns when no running writer can have an address of it for writing any more.
    pub(crate) fn mark(&self, page: u64) {
        self.marks.push(page);
        self.await_all();
    }

    /// Returns when every writer that is running now has stopped once.
    pub(crate) fn await_all(&self) {
        fence(Ordering::SeqCst);
        let writers: Vec<_> = {
            let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            writers.iter().filter_map(Weak::upgrade).collect()
        };
        for writer in writers {
            let mut turns = 0u32;
            while writer.running.load(Ordering::SeqCst) {
                // Again and again: a kick may be used up by a run that ends and is followed by another.
                if turns.is_multiple_of(64) {
                    (writer.interrupt)();
                }
                wait(turns);
                turns += 1;
            }
        }
    }
}
