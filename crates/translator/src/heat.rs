//! When code is worth a translation, and when the marks on what it is made of are in the way.
//!
//! Both are guesses that cost time when they are wrong, nothing else. Used by the run loop on the vCPU's thread; no locks.

const SLOTS: usize = 1 << 16;
/// Code whose translations died is met up to `hot` times 2 to the power of this before it is translated again.
const MOST_DOUBLINGS: u8 = 4;

/// How often code was met since it was last translated in vain.
pub(crate) struct Heat {
    slots: Box<[Slot]>,
    /// Code is translated when it is met for this many times.
    hot: u8,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    met: u8,
    /// How often translations died here, up to [`MOST_DOUBLINGS`].
    died: u8,
    /// There was nothing to translate.
    vain: bool,
}

impl Heat {
    /// Code is translated when it is met for `hot` times.
    pub(crate) fn new(hot: u8) -> Self {
        Self { slots: vec![Slot::default(); SLOTS].into_boxed_slice(), hot: hot.max(1) }
    }

    fn slot(&mut self, rip: u64) -> &mut Slot {
        &mut self.slots[(rip ^ rip >> 16) as usize % SLOTS]
    }

    /// Code without a translation is met. True: it is worth one. The user's is worth it after half as many times: much of the kernel's
    /// runs while it boots and never again.
    pub(crate) fn meet(&mut self, rip: u64, user: bool) -> bool {
        let hot = u32::from(self.hot);
        let slot = self.slot(rip);
        slot.met = slot.met.saturating_add(1 + u8::from(user));
        u32::from(slot.met) >= (hot << slot.died).min(255)
    }

    /// Whether it is worth a try although it hasn't been met often: not where one was in vain.
    pub(crate) fn may_try(&mut self, rip: u64) -> bool {
        !self.slot(rip).vain
    }

    /// It can't be translated: not for a while.
    pub(crate) fn cool(&mut self, rip: u64) {
        let slot = self.slot(rip);
        (slot.met, slot.vain) = (0, true);
    }

    /// It is worth a translation when it is met next.
    pub(crate) fn warm(&mut self, rip: u64) {
        *self.slot(rip) = Slot { met: u8::MAX, ..Slot::default() };
    }

    /// A translation died because its code has changed. Code that changes more often than it runs isn't worth any.
    pub(crate) fn die(&mut self, rip: u64) {
        let slot = self.slot(rip);
        (slot.met, slot.vain) = (0, false);
        slot.died = (slot.died + 1).min(MOST_DOUBLINGS);
    }
}

const PAGES: usize = 64;
/// Writes in a row that hit marks and were of no use to anybody before the marks are taken back.
const MOST_VAIN: u8 = 3;

/// Pages whose marks are hit by write after write while nobody makes anything of them.
pub(crate) struct Rewritten {
    pages: [Page; PAGES],
}

#[derive(Clone, Copy)]
struct Page {
    frame: u64,
    /// What had been decoded and translated by the last write.
    made: u64,
    vain: u8,
}

impl Rewritten {
    pub(crate) fn new() -> Self {
        Self { pages: [Page { frame: u64::MAX, made: 0, vain: 0 }; PAGES] }
    }

    /// Marks of a page were hit. `made` counts what is decoded and translated, of whatever page. True: marks that no translation
    /// needs should be taken back.
    pub(crate) fn note(&mut self, frame: u64, made: u64) -> bool {
        let page = &mut self.pages[frame as usize % PAGES];
        if (page.frame, page.made) != (frame, made) {
            *page = Page { frame, made, vain: 0 };
        }
        page.vain = (page.vain + 1).min(MOST_VAIN);
        page.vain == MOST_VAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_translated_when_it_was_met_often_enough() {
        let mut heat = Heat::new(3);
        let met = |heat: &mut Heat| (1..).find(|_| heat.meet(0x1234, false)).expect("some time");
        assert_eq!(met(&mut heat), 3);
        assert!(heat.meet(0x1234, false), "evicted code is translated at once");
        heat.die(0x1234);
        assert_eq!(met(&mut heat), 6);
        (0..100).for_each(|_| heat.die(0x1234));
        assert_eq!(met(&mut heat), 48);
        assert!(heat.may_try(0x1234));
        heat.cool(0x1234);
        assert!(!heat.may_try(0x1234));
        assert_eq!(met(&mut heat), 48);
        heat.warm(0x1234);
        assert!(heat.may_try(0x1234) && heat.meet(0x1234, false));
        let mut heat = Heat::new(255);
        heat.die(0x1234);
        assert_eq!(met(&mut heat), 255);
        let mut heat = Heat::new(8);
        assert_eq!((1..).find(|_| heat.meet(0x1234, true)), Some(4));
    }

    #[test]
    fn marks_are_in_the_way_when_they_are_hit_again_and_again_in_vain() {
        let mut rewritten = Rewritten::new();
        assert!((0..10).all(|made| !rewritten.note(5, made)), "each write was followed by a decoding");
        assert!(!rewritten.note(5, 10) && !rewritten.note(5, 10) && rewritten.note(5, 10));
        assert!(rewritten.note(5, 10) && !rewritten.note(5, 11));
    }
}
