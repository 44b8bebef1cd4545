//! A log of page numbers that any number of threads write and any number read, each at its own pace.
//!
//! Bounded: who falls behind by more than [`SLOTS`] entries learns only that. No locks. A writer takes a number and then fills
//! its slot, so a reader may have to wait for the few instructions between.

use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 1024;
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
        Self { next: AtomicU64::new(0), slots: [const { AtomicU64::new(0) }; SLOTS] }
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
                std::hint::spin_loop();
            };
            each(value & ((1 << PAGE_BITS) - 1));
        }
        true
    }
}

fn slot(number: u64, page: u64) -> u64 {
    (number + 1) << PAGE_BITS | page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_sees_every_entry_once() {
        let log = PageLog::new();
        let mut seen = 0;
        let mut all = Vec::new();
        log.push(7);
        log.push(0);
        assert!(log.read(&mut seen, |page| all.push(page)));
        assert!(log.read(&mut seen, |page| all.push(page)));
        log.push(9);
        assert!(log.read(&mut seen, |page| all.push(page)));
        assert_eq!(all, [7, 0, 9]);
        assert_eq!(seen, log.position());
    }

    #[test]
    fn who_is_too_late_learns_it() {
        let log = PageLog::new();
        let mut seen = 0;
        for page in 0..=SLOTS as u64 {
            log.push(page);
        }
        assert!(!log.read(&mut seen, |_| {}));
        log.push(3);
        let mut all = Vec::new();
        assert!(log.read(&mut seen, |page| all.push(page)));
        assert_eq!(all, [3]);
    }

    #[test]
    fn writers_on_several_threads_lose_nothing() {
        let log = PageLog::new();
        std::thread::scope(|scope| {
            for first in [0, 1000] {
                let log = &log;
                scope.spawn(move || (first..first + 300).for_each(|page| log.push(page)));
            }
        });
        let (mut seen, mut all) = (0, Vec::new());
        assert!(log.read(&mut seen, |page| all.push(page)));
        all.sort_unstable();
        assert_eq!(all, (0..300).chain(1000..1300).collect::<Vec<_>>());
    }
}
