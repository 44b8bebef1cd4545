//! Guest memory through its public face: accesses, bounds, and what derived structures see.

use memory::{Dma, GuestMemory, Layout, MemoryError, RamOffset, Region, Writer, Written};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use x86::Gpa;

fn memory() -> GuestMemory {
    let layout = Layout::new(vec![
        Region { start: Gpa(0), len: 0x4000 },
        Region { start: Gpa(0x1_0000_0000), len: 0x2000 },
    ])
    .expect("a sound layout");
    GuestMemory::new(layout).expect("24 KiB of memory")
}

#[test]
fn every_width_and_alignment_reads_back_what_was_written() {
    let memory = memory();
    for at in 0x100..0x108 {
        let at = RamOffset(at);
        let _ = memory.store(at, 0x1122_3344_5566_7788u64);
        assert_eq!(memory.load::<u64>(at), 0x1122_3344_5566_7788);
        assert_eq!(memory.load::<u32>(at), 0x5566_7788);
        assert_eq!(memory.load::<u16>(at), 0x7788);
        assert_eq!(memory.load::<u8>(at), 0x88);
    }
}

#[test]
fn regions_that_do_not_touch_in_guest_space_are_not_one_range() {
    let memory = memory();
    let mut byte = [0; 2];
    assert!(matches!(memory.read(Gpa(0x3fff), &mut byte), Err(MemoryError::NotRam { .. })));
    assert!(memory.write(Gpa(0x4000), &[1]).is_err());
    memory.write(Gpa(0x1_0000_1ffe), &[1, 2]).expect("the last two bytes of RAM");
    memory.read(Gpa(0x1_0000_1ffe), &mut byte).expect("the last two bytes of RAM");
    assert_eq!(byte, [1, 2]);
}

#[test]
#[should_panic(expected = "not inside guest memory")]
fn an_offset_beyond_ram_never_reaches_the_host() {
    let _ = memory().load::<u64>(RamOffset(0x5ff9));
}

#[test]
fn only_stores_to_marked_granules_advance_the_generation() {
    let memory = memory();
    let code = RamOffset(0x1040);
    assert_eq!(memory.store(code, 1u8), Written::Plain);
    memory.mark_derived(code, 70);
    let before = memory.generation(code);
    assert_eq!(memory.store(RamOffset(0x103f), 1u8), Written::Plain);
    assert_eq!(memory.store(RamOffset(0x10c0), 1u8), Written::Plain);
    assert_eq!(memory.generation(code), before);
    assert_eq!(memory.store(RamOffset(0x103f), 1u16), Written::Derived);
    assert_eq!(memory.store(RamOffset(0x10bf), 1u8), Written::Derived);
    assert_eq!(memory.fill(RamOffset(0x0ff0), 0u8, 0x100), Written::Derived);
    assert_eq!(memory.store_bytes(RamOffset(0x1080), &[1, 2, 3]), Written::Derived);
    memory.write(Gpa(0x1080), &[1]).expect("RAM");
    assert_eq!(memory.generation(code), before + 5);
}

#[test]
fn a_write_over_a_page_boundary_advances_both_pages() {
    let memory = memory();
    let (first, second) = (RamOffset(0x1fff), RamOffset(0x2000));
    memory.mark_derived(first, 1);
    memory.mark_derived(second, 1);
    assert_eq!(memory.store_bytes(first, &[1, 2]), Written::Derived);
    assert_eq!((memory.generation(first), memory.generation(second)), (1, 1));
}

#[test]
fn a_failed_exchange_changes_nothing() {
    let memory = memory();
    let at = RamOffset(0x1003);
    memory.mark_derived(at, 4);
    let _ = memory.store(at, 5u32);
    let generation = memory.generation(at);
    assert_eq!(memory.compare_exchange(at, 6u32, 7), (5, Written::Plain));
    assert_eq!(memory.generation(at), generation);
    assert_eq!(memory.compare_exchange(at, 5u32, 7), (5, Written::Derived));
    assert_eq!(memory.load::<u32>(at), 7);
    let wide = RamOffset(0x1010);
    assert_eq!(memory.compare_exchange_16(wide, 0, u128::MAX).0, 0);
    assert_eq!(memory.compare_exchange_16(wide, 0, 1).0, u128::MAX);
}

#[test]
fn an_ascending_copy_repeats_an_overlap() {
    let memory = memory();
    let _ = memory.store_bytes(RamOffset(0), b"abcd");
    let _ = memory.copy_ascending(RamOffset(0), RamOffset(1), 7);
    let mut bytes = [0; 8];
    memory.load_bytes(RamOffset(0), &mut bytes);
    assert_eq!(&bytes, b"aaaaaaaa");
}

#[test]
fn untouched_memory_is_not_resident() {
    let layout = Layout::new(vec![Region { start: Gpa(0), len: 64 << 30 }]).expect("a sound layout");
    let memory = GuestMemory::new(layout).expect("address space");
    let _ = memory.store(RamOffset(1 << 30), 1u8);
    if let Some(resident) = memory.resident() {
        assert!((4096..1 << 30).contains(&resident), "{resident} bytes are resident");
    }
}

#[test]
fn marks_that_are_taken_back_count_as_a_write_and_can_be_made_again() {
    let memory = memory();
    let at = RamOffset(0x1040);
    let generation = memory.mark_derived(at, 70);
    assert_eq!(memory.marked_granules(at), 0b110);
    let epoch = memory.epoch();
    memory.unmark_derived(at, 0b10);
    assert_ne!(memory.generation(at), generation);
    assert_ne!(memory.epoch(), epoch);
    assert!(memory.is_derived(at));
    assert_eq!(memory.store(at, 1u8), Written::Plain);
    assert_eq!(memory.store(RamOffset(0x1080), 1u8), Written::Derived);
    memory.unmark_derived(at, u64::MAX);
    assert!(!memory.is_derived(at));
    // Direct writers may have addresses again, so the page is among the marked ones again.
    let mut marks = memory.marks();
    assert_eq!(memory.mark_derived(at, 1), memory.generation(at));
    let mut pages = Vec::new();
    assert!(memory.marked_since(&mut marks, |page| pages.push(page)));
    assert_eq!(pages, [1]);
    assert_eq!(memory.store(at, 1u8), Written::Derived);
}

#[test]
fn a_monitor_is_woken_once_by_the_first_store_to_its_line_by_anybody() {
    let memory = memory();
    let woken = Arc::new(AtomicU32::new(0));
    let wakes = Arc::clone(&woken);
    let monitor = memory.add_monitor(Box::new(move || {
        wakes.fetch_add(1, Ordering::SeqCst);
    }));
    let line = RamOffset(0x1048);
    assert!(!monitor.is_armed());
    let _ = memory.store(line, 1u8);
    let stores: [fn(&GuestMemory); 6] = [
        |memory| {
            let _ = memory.store(RamOffset(0x107f), 0u8);
        },
        |memory| {
            let _ = memory.compare_exchange(RamOffset(0x1040), 0u64, 0);
        },
        |memory| {
            let _ = memory.store_bytes(RamOffset(0xff0), &[0; 0x51]);
        },
        |memory| {
            let _ = memory.copy_ascending(RamOffset(0), RamOffset(0x1000), 0x100);
        },
        |memory| memory.write(Gpa(0x1060), &[1]).expect("RAM"),
        // Whoever takes the mark back ends the watch.
        |memory| {
            memory.unmark_derived(RamOffset(0x1000), 0b10);
        },
    ];
    for (number, store) in (1..).zip(stores) {
        monitor.arm(line);
        let _ = memory.store(RamOffset(0x103f), 1u8);
        let _ = memory.store(RamOffset(0x1080), 1u64);
        let _ = memory.store(RamOffset(0x3040), 1u64);
        assert!(monitor.is_armed());
        store(&memory);
        store(&memory);
        assert!(!monitor.is_armed());
        assert_eq!(woken.load(Ordering::SeqCst), number);
    }
    monitor.arm(line);
    monitor.disarm();
    let _ = memory.store(line, 1u8);
    monitor.arm(RamOffset(0x2000));
    let _ = memory.store(line, 1u8);
    assert!(monitor.is_armed());
    assert_eq!(woken.load(Ordering::SeqCst), 6);
    drop(monitor);
    let _ = memory.store(RamOffset(0x2000), 1u8);
    assert_eq!(woken.load(Ordering::SeqCst), 6);
}

#[test]
fn marks_of_a_line_are_spared_while_it_is_armed_and_a_while_longer() {
    let memory = memory();
    let monitor = memory.add_monitor(Box::new(|| ()));
    let line = RamOffset(0x1040);
    monitor.arm(line);
    for _ in 0..10_000 {
        assert_eq!(memory.monitored_granules(RamOffset(0x1fff)), 0b10);
    }
    assert_eq!(memory.monitored_granules(RamOffset(0x2040)), 0);
    let _ = memory.store(line, 1u8);
    assert!((0..10_000).any(|_| memory.monitored_granules(line) == 0));
    monitor.arm(line);
    assert_eq!(memory.monitored_granules(line), 0b10);
}

/// A sleeper that arms, looks, and sleeps only while armed, as the guest's MONITOR, load and MWAIT do, never misses a store.
#[test]
fn no_store_of_another_thread_is_missed() {
    let memory = memory();
    let kicker = Arc::new((Mutex::new(false), Condvar::new()));
    let other = Arc::clone(&kicker);
    let monitor = memory.add_monitor(Box::new(move || {
        *other.0.lock().expect("no panic") = true;
        other.1.notify_all();
    }));
    let (there, back) = (RamOffset(0x1040), RamOffset(0x2040));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=20_000u32 {
                let _ = memory.store(there, round);
                while memory.load::<u32>(back) != round {
                    std::thread::yield_now();
                }
            }
        });
        for round in 1..=20_000u32 {
            loop {
                *kicker.0.lock().expect("no panic") = false;
                monitor.arm(there);
                if memory.load::<u32>(there) == round {
                    break;
                }
                let guard = kicker.0.lock().expect("no panic");
                let wait = |woken: &mut bool| monitor.is_armed() && !*woken;
                let time = Duration::from_secs(60);
                let (_guard, ended) = kicker.1.wait_timeout_while(guard, time, wait).expect("no panic");
                assert!(!ended.timed_out(), "round {round}");
            }
            let _ = memory.store(back, round);
        }
    });
}

#[test]
fn only_parties_that_marked_a_page_are_told_of_it() {
    let memory = memory();
    let (first, second, third) = (memory.new_party(), memory.new_party(), memory.new_party());
    let (page, other) = (RamOffset(0x1000), RamOffset(0x2000));
    first.mark_derived(page, 64);
    second.mark_derived(page, 64);
    second.mark_derived(other, 64);
    let before = [&first, &second, &third].map(GuestMemory::epoch);
    let told = || -> u64 {
        let now = [&first, &second, &third].map(GuestMemory::epoch);
        now.iter().zip(before).map(|(now, before)| now - before).sum()
    };
    let counts = memory.trace_counts();
    assert_eq!(third.store(page, 1u8), Written::Derived);
    assert_eq!(told(), 2);
    memory.write(Gpa(0x2000), &[1]).expect("RAM");
    assert_eq!(told(), 3);
    let now = memory.trace_counts();
    assert_eq!((now.events, now.notices - counts.notices), ([counts.events[0] + 1, counts.events[1] + 1], 3));
    // Who has left hears no more of it, but for its own leaving.
    assert!(!second.leave_page(page));
    let mut seen = second.epoch();
    let _ = memory.store(page, 2u8);
    assert!(second.written_since(&mut seen, |page| panic!("told of page {page}")));
    assert!(first.leave_page(page));
    assert_eq!(memory.store(page, 3u8), Written::Plain);
    assert!(!memory.is_derived(page) && memory.is_derived(other));
}

#[test]
fn more_parties_than_inboxes_are_told_too_much_and_never_too_little() {
    let memory = memory();
    let parties: Vec<_> = (0..100).map(|_| memory.new_party()).collect();
    for (number, party) in parties.iter().enumerate() {
        party.mark_derived(RamOffset(0x1000), 64);
        let mut seen = party.epoch();
        let _ = memory.store(RamOffset(0x1000), number as u8);
        let mut pages = Vec::new();
        assert!(party.written_since(&mut seen, |page| pages.push(page)));
        assert_eq!(pages, [1]);
    }
}

/// Keeps what a page held before it was first written.
struct Keeper {
    memory: GuestMemory,
    kept: Mutex<Vec<(u64, u8, Writer)>>,
}

impl memory::Guard for Keeper {
    fn before_store(&self, at: RamOffset, _: u64, by: Writer) {
        let old = self.memory.load::<u8>(at);
        self.kept.lock().expect("no panic").push((at.0, old, by));
    }
}

#[test]
fn a_guard_sees_memory_as_it_was_before_any_writer() {
    use vm_memory::{Bytes, GuestAddress};
    let memory = memory();
    let _ = memory.store(RamOffset(0x1000), 7u8);
    let keeper = Arc::new(Keeper { memory: memory.clone(), kept: Mutex::default() });
    let guarded = memory.guard(RamOffset(0x1000), 64, keeper.clone());
    let party = memory.new_party();
    party.mark_derived(RamOffset(0x1000), 4096);
    assert_eq!(memory.store(RamOffset(0x1040), 1u8), Written::Derived, "beside it");
    assert_eq!(memory.store(RamOffset(0x1000), 8u8), Written::Derived);
    let _ = memory.compare_exchange(RamOffset(0x1000), 8u8, 9);
    let _ = memory.fill(RamOffset(0x0ff8), 10u64, 2);
    memory.write(Gpa(0x1000), &[11]).expect("RAM");
    Dma::new(&memory).write_obj(12u8, GuestAddress(0x1000)).expect("RAM");
    let kept = std::mem::take(&mut *keeper.kept.lock().expect("no panic"));
    let cpu = [7, 8, 9].map(|old| (0x1000, old, Writer::Cpu));
    let device = [10, 11].map(|old| (0x1000, old, Writer::Device));
    assert_eq!(kept, [&cpu[..], &device[..]].concat());
    // Nobody but its owner takes a guard away.
    memory.unmark_derived(RamOffset(0x1000), u64::MAX);
    let _ = memory.store(RamOffset(0x1000), 13u8);
    assert_eq!(keeper.kept.lock().expect("no panic").len(), 1);
    drop(guarded);
    assert_eq!(memory.store(RamOffset(0x1000), 14u8), Written::Plain);
    assert_eq!(keeper.kept.lock().expect("no panic").len(), 1);
}
