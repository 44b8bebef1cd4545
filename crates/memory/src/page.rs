//! One page's bookkeeping: marks, whom to tell, how often it was written.
//!
//! Who marks and who stores meet here without a lock, and without a fence on the side that stores:
//!
//! ```text
//!     who marks                      who stores
//!     announce                       the bytes
//!     barrier on all threads         hit: flag, granules, parties
//!     settle
//!     the bytes
//! ```
//!
//! The barrier stands between the writer's store and its look, or before both, or after: either the look sees the mark and whom to
//! tell, or the reads behind the barrier see the bytes. Changes of marks are locked against each other by the caller.

use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// In a page's flags: some granules are marked.
pub(crate) const HAS_DERIVED: u8 = 1;
/// Some have guards, too.
pub(crate) const GUARDED: u8 = 2;

/// All zero at first, so untouched pages cost no host memory.
#[derive(Default)]
#[repr(C)]
pub(crate) struct PageInfo {
    /// Granules something was derived from, one bit each.
    pub(crate) granules: AtomicU64,
    /// Those of them whose marking every thread is known to have seen.
    pub(crate) settled: AtomicU64,
    /// Advanced by each store to a marked granule.
    pub(crate) generation: AtomicU32,
    /// Not zero: a direct writer may look at `granules` before it stores.
    pub(crate) watched: AtomicU32,
    /// Parties that have marked any of them, one bit each.
    pub(crate) parties: AtomicU64,
}

impl PageInfo {
    /// Whether granules are marked, and the barrier that goes with it is over.
    #[inline]
    pub(crate) fn is_settled(&self, mask: u64) -> bool {
        self.settled.load(Ordering::Acquire) & mask == mask
    }

    /// Whether a party is told. Sound only for a bit that one thread sets.
    #[inline]
    pub(crate) fn tells(&self, party: u64) -> bool {
        self.parties.load(Ordering::Acquire) & party != 0
    }

    /// The first step of marking; then comes the barrier.
    pub(crate) fn announce(&self, flags: &AtomicU8, mask: u64, party: u64) {
        self.parties.fetch_or(party, Ordering::SeqCst);
        self.granules.fetch_or(mask, Ordering::SeqCst);
        flags.fetch_or(HAS_DERIVED, Ordering::SeqCst);
    }

    /// The last, after the barrier.
    pub(crate) fn settle(&self, mask: u64) {
        self.settled.fetch_or(mask, Ordering::Release);
    }

    /// Takes back marks; those of `guarded` granules stay.
    pub(crate) fn clear(&self, flags: &AtomicU8, mask: u64, guarded: u64) {
        let mask = mask & !guarded;
        let left = self.granules.fetch_and(!mask, Ordering::SeqCst) & !mask;
        self.settled.fetch_and(!mask, Ordering::SeqCst);
        if left & !guarded == 0 {
            self.parties.store(0, Ordering::SeqCst);
        }
        if left == 0 {
            flags.fetch_and(!HAS_DERIVED, Ordering::SeqCst);
        }
    }

    /// After a store to some granules: whom to tell, if any is marked.
    pub(crate) fn hit(&self, flags: &AtomicU8, mask: u64) -> Option<u64> {
        if flags.load(Ordering::Relaxed) == 0 || self.granules.load(Ordering::Relaxed) & mask == 0 {
            return None;
        }
        fence(Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
        Some(self.parties.load(Ordering::SeqCst))
    }
}
