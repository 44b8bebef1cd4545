//! Models of what happens between threads in `memory`, which loom runs in all interleavings, and with all that weak ordering allows.
//!
//! The files of the crate are built here with loom's atomics. Each model is run a second time with every ordering weakened to relaxed, or
//! without the barrier that it needs: then it has to fail, which shows that it would find such a mistake.
//!
//! The barrier that `memory` runs on all threads of the process (`membarrier`) costs those who store nothing; here it is a fence on
//! either side.

mod sync {
    //! Loom's atomics, which can be weakened. Loom takes sequentially consistent accesses for acquire and release, so those have the
    //! fence that x86 has in them.
    use std::cell::Cell;
    thread_local!(static WEAK: Cell<bool> = const { Cell::new(false) });

    pub(crate) use loom::sync::atomic::Ordering;
    pub(crate) const LOG_SLOTS: usize = 2;

    pub(crate) fn wait(_: u32) {
        loom::thread::yield_now();
    }
    pub(crate) fn weaken(weak: bool) {
        WEAK.set(weak);
    }
    pub(crate) fn fence(order: Ordering) {
        if !WEAK.get() {
            loom::sync::atomic::fence(order);
        }
    }
    fn full(order: Ordering) {
        if order == Ordering::SeqCst {
            fence(order);
        }
    }
    fn eased(order: Ordering) -> Ordering {
        if WEAK.get() { Ordering::Relaxed } else { order }
    }
    /// Of loads and stores: acquire or release at most.
    fn half(order: Ordering, most: Ordering) -> Ordering {
        eased(if order == Ordering::SeqCst { most } else { order })
    }

    macro_rules! atomic {
        ($name:ident, $type:ty) => {
            #[derive(Default)]
            pub(crate) struct $name(loom::sync::atomic::$name);
            #[allow(dead_code, reason = "not every type needs every operation")]
            impl $name {
                pub(crate) fn new(value: $type) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }
                pub(crate) fn load(&self, order: Ordering) -> $type {
                    full(order);
                    self.0.load(half(order, Ordering::Acquire))
                }
                pub(crate) fn store(&self, value: $type, order: Ordering) {
                    self.0.store(value, half(order, Ordering::Release));
                    full(order);
                }
                pub(crate) fn as_ptr(&self) -> *mut $type {
                    std::ptr::null_mut()
                }
            }
        };
    }
    macro_rules! number {
        ($name:ident, $type:ty) => {
            atomic!($name, $type);
            #[allow(dead_code, reason = "not every type needs every operation")]
            impl $name {
                pub(crate) fn fetch_add(&self, value: $type, order: Ordering) -> $type {
                    full(order);
                    let old = self.0.fetch_add(value, eased(order));
                    full(order);
                    old
                }
                pub(crate) fn fetch_or(&self, value: $type, order: Ordering) -> $type {
                    full(order);
                    let old = self.0.fetch_or(value, eased(order));
                    full(order);
                    old
                }
                pub(crate) fn fetch_and(&self, value: $type, order: Ordering) -> $type {
                    full(order);
                    let old = self.0.fetch_and(value, eased(order));
                    full(order);
                    old
                }
            }
        };
    }
    atomic!(AtomicBool, bool);
    number!(AtomicU8, u8);
    number!(AtomicU32, u32);
    number!(AtomicU64, u64);
}

#[path = "../src/direct.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate's own file")]
mod direct;
#[path = "../src/log.rs"]
#[allow(dead_code, reason = "the crate's own file")]
mod log;
#[path = "../src/page.rs"]
#[allow(dead_code, reason = "the crate's own file")]
mod page;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};

const PAGE: u64 = 1;

/// All interleavings with at most three switches that aren't waits, which is what finds mistakes of this size.
fn run(weak: bool, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        sync::weaken(weak);
        model();
    });
}

/// The model holds, and doesn't where orderings are weakened.
fn holds(model: impl Fn() + Sync + Send + Clone + 'static) {
    let again = model.clone();
    run(false, model);
    let weakened = catch_unwind(AssertUnwindSafe(|| run(true, again)));
    sync::weaken(false);
    assert!(weakened.is_err(), "the model doesn't notice weaker orderings");
}

fn drain(log: &log::PageLog, seen: &mut u64) -> Option<Vec<u64>> {
    let mut pages = Vec::new();
    log.read(seen, |page| pages.push(page)).then_some(pages)
}

#[test]
fn a_notice_is_read_with_what_was_written_before_it() {
    holds(|| {
        let log = Arc::new(log::PageLog::new());
        let bytes = Arc::new(AtomicU64::new(0));
        let writer = thread::spawn({
            let (log, bytes) = (log.clone(), bytes.clone());
            move || {
                bytes.store(1, Ordering::Relaxed);
                log.push(PAGE);
            }
        });
        let mut seen = 0;
        if let Some(pages) = drain(&log, &mut seen)
            && pages == [PAGE]
        {
            assert_eq!(bytes.load(Ordering::Relaxed), 1, "a notice of what isn't there yet");
        }
        writer.join().expect("the writer ends");
    });
}

#[test]
fn no_notice_is_lost_or_told_twice_by_an_inbox_that_two_write() {
    run(false, || {
        let log = Arc::new(log::PageLog::new());
        let writers = [1, 2].map(|page| {
            let log = log.clone();
            thread::spawn(move || log.push(page))
        });
        let mut seen = 0;
        let mut all = drain(&log, &mut seen).expect("there is room for both");
        writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
        all.extend(drain(&log, &mut seen).expect("there is room for both"));
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}

/// One page and one party. A store and the making of something derived from what it changes meet: whoever derives has the new bytes, or is
/// told.
fn derive(barrier: bool) {
    struct World {
        info: page::PageInfo,
        flags: sync::AtomicU8,
        inbox: log::PageLog,
        bytes: AtomicU64,
    }
    let world = Arc::new(World {
        info: page::PageInfo::default(),
        flags: sync::AtomicU8::new(0),
        inbox: log::PageLog::new(),
        bytes: AtomicU64::new(0),
    });
    let writer = thread::spawn({
        let world = world.clone();
        move || {
            world.bytes.store(1, Ordering::Relaxed);
            if barrier {
                sync::fence(Ordering::SeqCst);
            }
            if world.info.hit(&world.flags, 1).is_some_and(|parties| parties & 1 != 0) {
                world.inbox.push(PAGE);
            }
        }
    });
    world.info.announce(&world.flags, 1, 1);
    if barrier {
        sync::fence(Ordering::SeqCst);
    }
    world.info.settle(1);
    let mut seen = world.inbox.position();
    let derived = world.bytes.load(Ordering::Relaxed);
    writer.join().expect("the writer ends");
    let told = drain(&world.inbox, &mut seen).expect("one notice");
    assert!(derived == 1 || told == [PAGE], "old bytes are derived from, and nobody is told");
}

#[test]
fn what_is_derived_is_new_or_told_to_be_old() {
    holds(|| derive(true));
}

#[test]
fn without_the_barrier_old_bytes_would_stay() {
    // The writer's look needs no order of its own but for the barrier: with x86's stores and loads alone it comes too early.
    let without = catch_unwind(AssertUnwindSafe(|| run(false, || derive(false))));
    sync::weaken(false);
    assert!(without.is_err());
}

/// Marking in two steps: the mark is there for all to see, and counts once every direct writer that may not have seen it has stopped.
fn two_steps(waits: bool) {
    let directs = Arc::new(direct::Directs::new());
    let writer = directs.add(Box::new(|| ()));
    let bytes = Arc::new(AtomicU64::new(0));
    let running = thread::spawn({
        let (directs, bytes, writer) = (directs.clone(), bytes.clone(), writer.clone());
        move || {
            // It knows no mark: its address for writing is good as long as it may enter.
            if directs.enter(&writer, 0) {
                bytes.store(1, Ordering::Relaxed);
                writer.leave();
            }
        }
    });
    if waits {
        directs.mark(PAGE);
    }
    let derived = bytes.load(Ordering::Relaxed);
    running.join().expect("the writer ends");
    assert_eq!(bytes.load(Ordering::Relaxed), derived, "a store that nobody was told of");
    // Those that are gone aren't waited for.
    drop(writer);
}

#[test]
fn after_a_pages_first_mark_nobody_stores_there_unseen() {
    holds(|| two_steps(true));
}

#[test]
fn without_the_second_step_somebody_would() {
    assert!(catch_unwind(AssertUnwindSafe(|| run(false, || two_steps(false)))).is_err());
}
