//! A log of page numbers that any number of threads write and any number read, each at its own pace.
//!
//! Bounded: who falls behind by more than [`SLOTS`] entries learns only that. No locks. A writer takes a number and then fills
//! its slot, so a reader may have to wait for the few instructions between.

use crate::sync::{AtomicU64, LOG_SLOTS as SLOTS, Ordering, wait};

/// A slot holds the entry's page in the low bits and its number, cut short, above them, so that an empty or old slot
/// isn't taken for the entry.
const PAGE_BITS: u32 = 40;

pub(crate) struct PageLog {
    next: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

impl PageLog {
    pub(crate) fn new() -> Self {
        // No slot is valid for number 0 .. SLOTS: their tags would have to be `number + 1`.
        Self { next: AtomicU64::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// How many entries there have been.
    #[inline(always)]
    pub(crate) fn position(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Where the position is kept.
    pub(crate) fn address(&self) -> u64 {
        self.next.as_ptr() as u64
    }

    pub(crate) fn push(&self, page: u64) {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        self.slots[number as usize % SLOTS].store(slot(number, page), Ordering::Release);
    }

    /// Gives the entries after `seen`, which becomes the present position, to `each`. False: some are lost.
    pub(crate) fn read(&self, seen: &mut u64, mut each: impl FnMut(u64)) -> bool {
        let end = self.position();
        let from = std::mem::replace(seen, end);
        if end - from > SLOTS as u64 {
            return false;
        }
        for number in from..end {
            let value = loop {
                let value = self.slots[number as usize % SLOTS].load(Ordering::Acquire);
                if value >> PAGE_BITS == slot(number, 0) >> PAGE_BITS {
                    break value;
                }
                // Overwritten by a writer that is a whole round ahead?
                if self.position() - number > SLOTS as u64 {
                    return false;
                }
                wait(0);
            };
            each(value & ((1 << PAGE_BITS) - 1));
        }
        true
    }
}

fn slot(number: u64, page: u64) -> u64 {
    (number + 1) << PAGE_BITS | page
}
