//! Which pages of code change so often that their translations had better look at their source by themselves (`emit::check`) than be
//! told of writes.
//!
//! A page becomes one of them when translations on it die again and again in a short time, and stops being one when nothing
//! has changed between two looks at it. Then writes to it are watched again; if they come again, the next look is later. Guesses that cost
//! time when they are wrong, nothing else. Used by the run loop on the vCPU's thread; no locks.
//!
//! Time is counted in turns of the run loop, so that equal runs do equal things.

use std::collections::HashMap;

/// Pages that are remembered by the low bits of their number.
const PAGES: usize = 256;
/// Longest time between two of them.
const NEAR: u64 = 4096;
/// Time between two looks at a page.
const LOOK: u64 = 1024;
/// A page that comes back again and again is looked at up to 2 to the power of this times more rarely.
const MOST_DOUBLINGS: u8 = 10;
/// Pages that change at a time.
const MOST_CHANGING: usize = 512;

#[derive(Clone, Copy, Default)]
struct Page {
    frame: u64,
    last: u64,
    deaths: u8,
    /// How often it was one that changes.
    times: u8,
}

struct Change {
    /// When it is looked at next.
    due: u64,
    /// Time between two looks.
    every: u64,
    /// Something has changed since the last look.
    seen: bool,
}

pub(crate) struct Changing {
    /// Writes that kill translations before a page is one of them; 0: all pages are.
    rewrites: u8,
    pages: Box<[Page; PAGES]>,
    changing: HashMap<u64, Change>,
    /// When the first of them is due.
    due: u64,
}

impl Changing {
    /// `rewrites`: see [`Options::rewrites`](crate::Options::rewrites).
    pub(crate) fn new(rewrites: u8) -> Self {
        Self { rewrites, pages: Box::new([Page::default(); PAGES]), changing: HashMap::new(), due: u64::MAX }
    }

    /// There are such pages.
    pub(crate) fn any(&self) -> bool {
        self.rewrites == 0 || !self.changing.is_empty()
    }

    /// Whether a page is one of them.
    pub(crate) fn has(&self, frame: u64) -> bool {
        self.rewrites == 0 || !self.changing.is_empty() && self.changing.contains_key(&frame)
    }

    /// A write to a page has killed translations. True: from now on it is one that changes.
    pub(crate) fn note_death(&mut self, frame: u64, now: u64) -> bool {
        let page = &mut self.pages[frame as usize % PAGES];
        if page.frame != frame {
            *page = Page { frame, ..Page::default() };
        }
        page.deaths = if now - page.last <= NEAR { page.deaths.saturating_add(1) } else { 1 };
        page.last = now;
        if page.deaths < self.rewrites || self.changing.len() >= MOST_CHANGING {
            return false;
        }
        let every = LOOK << page.times;
        page.deaths = 0;
        page.times = (page.times + 1).min(MOST_DOUBLINGS);
        self.changing.insert(frame, Change { due: now + every, every, seen: true });
        self.due = self.due.min(now + every);
        true
    }

    /// A translation on such a page has found that its source has changed.
    pub(crate) fn note_change(&mut self, frame: u64) {
        if let Some(change) = self.changing.get_mut(&frame) {
            change.seen = true;
        }
    }

    /// Whether [`Changing::look`] has something to do.
    #[inline]
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Looks at the pages whose time has come. Those on which nothing has changed, as far as noted here and as `has_changed` says, are
    /// given: they aren't such pages any more.
    pub(crate) fn look(&mut self, now: u64, mut has_changed: impl FnMut(u64) -> bool) -> Vec<u64> {
        let mut calm = Vec::new();
        self.due = u64::MAX;
        for (&frame, change) in &mut self.changing {
            if change.due <= now {
                let changed = has_changed(frame);
                if !std::mem::take(&mut change.seen) && !changed {
                    calm.push(frame);
                    continue;
                }
                change.due = now + change.every;
            }
            self.due = self.due.min(change.due);
        }
        for frame in &calm {
            self.changing.remove(frame);
        }
        calm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(changing: &mut Changing, from: u64) -> bool {
        (0..4).any(|n| changing.note_death(5, from + n))
    }

    #[test]
    fn a_page_whose_translations_die_again_and_again_is_one_that_changes() {
        let mut changing = Changing::new(4);
        assert!((1..100).all(|n| !changing.note_death(5, n * (NEAR + 1))), "once in a while");
        assert!(kill(&mut changing, 1_000_000));
        assert!(changing.has(5) && !changing.has(6));
    }

    #[test]
    fn all_pages_are_ones_that_change_where_that_is_wanted() {
        assert!(Changing::new(0).any() && Changing::new(0).has(7));
    }

    #[test]
    fn it_is_one_until_nothing_has_changed_for_a_while_and_longer_the_next_time() {
        let mut changing = Changing::new(4);
        assert!(kill(&mut changing, 0));
        let mut now = 2 * LOOK;
        assert!(changing.is_due(now));
        assert!(changing.look(now, |_| false).is_empty(), "it has only just begun");
        changing.note_change(5);
        now += LOOK;
        assert!(changing.look(now, |_| false).is_empty());
        now += LOOK;
        assert!(changing.look(now, |frame| frame == 5).is_empty());
        assert!(!changing.is_due(now));
        now += LOOK;
        assert_eq!(changing.look(now, |_| false), [5]);
        assert!(!changing.any() && !changing.is_due(now + 1_000_000));
        assert!(kill(&mut changing, now));
        assert!(!changing.is_due(now + LOOK + LOOK / 2) && changing.is_due(now + 3 * LOOK));
    }
}
