use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use chipset::{Device as _, RestoreError, Saved};
use proptest::prelude::*;

use super::*;
use crate::device::{Job, Kind, Next, Wakes, Work};
use crate::queue::Broken;
use crate::rng::Rng;
use crate::testkit::{Board, EVENT_IDX, INDIRECT, NEXT, RAM, VERSION_1, WRITE};

const NEEDS_RESET: u8 = 64;
const BUFFER: u64 = 0x8000;

fn rng() -> Board {
    Board::new(Box::new(Rng), Staff::Caller)
}

#[test]
fn the_function_is_found_and_its_capabilities_lead_to_its_registers() {
    let mut board = rng();
    assert_eq!(board.config(0, 4), 0x1044_1af4);
    assert_eq!(board.config(6, 2) & 0x10, 0x10, "it has capabilities");
    let (mut at, mut parts, mut has_messages) = (board.config(0x34, 1) as u16, Vec::new(), false);
    while at != 0 {
        match board.config(at, 1) {
            9 => parts.push((board.config(at + 3, 1), board.config(at + 8, 4))),
            0x11 => has_messages = board.config(at + 2, 2) == 1,
            other => panic!("capability {other:#x}"),
        }
        at = board.config(at + 1, 1) as u16;
    }
    assert_eq!(parts, [(1, 0), (3, 0x1000), (4, 0x2000), (2, 0x3000), (5, 0)]);
    assert!(has_messages, "MSI-X with two vectors");
    assert_eq!(board.read(18, 2), 1, "one ring");
    assert_eq!(board.read(24, 2), 64, "of 64 entries");
}

#[test]
fn base_addresses_are_sized_moved_and_switched_off() {
    use chipset::bus::{Bus, Router};
    use std::sync::Mutex;
    let decoder = chipset::pci::Decoder::new();
    let decode = decoder.add();
    let ears = Arc::new(crate::testkit::Ears::default());
    let memory = rng().memory;
    let wiring = Wiring {
        name: "test".to_owned(),
        memory,
        decode: decode.clone(),
        line: Line::new(ears.clone(), 16),
        messages: ears,
        address: 0xc000_8000,
        staff: Staff::Caller,
        on_panic: Arc::new(|_| ()),
    };
    let function = Arc::new(Mutex::new(Transport::new(Box::new(Rng), wiring)));
    decode.reaches(&function);
    let write = |offset, value: u32| {
        function.lock().expect("not poisoned").write_config(offset, &value.to_le_bytes());
    };
    let read = |offset| {
        let mut data = [0; 4];
        function.lock().expect("not poisoned").read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let mut bus = Bus::new();
    bus.claim_routed(chipset::pci::MEMORY, decoder.clone()).expect("free");
    let queues_at = |address: u64| {
        let mut data = [0; 2];
        bus.read(address + 18, &mut data);
        u16::from_le_bytes(data)
    };
    assert_eq!(read(0x10), 0xc000_8000, "as firmware has set it");
    assert_eq!(queues_at(0xc000_8000), 0xffff, "but not decoded");
    write(0x04, 2);
    assert_eq!(queues_at(0xc000_8000), 1);
    write(0x10, 0xffff_ffff);
    assert_eq!(read(0x10), 0xffff_8000, "32 KiB");
    write(0x10, 0xd123_8000);
    assert_eq!((queues_at(0xc000_8000), queues_at(0xd123_8000)), (0xffff, 1));
    write(0x04, 0);
    assert!(decoder.route(0xd123_8000).is_none());
    write(0x04, 2);
    function.lock().expect("not poisoned").reset();
    assert_eq!(read(0x10), 0xc000_8000);
    assert!(decoder.route(0xd123_8000).is_none());
}

#[test]
fn features_are_agreed_on_only_if_they_are_offered_and_version_1_is_among_them() {
    let mut board = rng();
    assert_eq!(board.negotiate(0), 3);
    assert_eq!(board.negotiate(VERSION_1 | 1 << 40), 3);
    assert_eq!(board.negotiate(VERSION_1), 11);
    board.write(8, 4, 0);
    board.write(12, 4, 0xffff_ffff);
    assert_eq!(board.read(12, 4), 0, "what has been agreed on stands");
    board.write(0, 4, 1);
    assert_eq!(board.read(4, 4), 1, "VERSION_1 is bit 32");
    assert_eq!(board.negotiate(0), 3, "until a reset");
    board.write(20, 1, 15);
    assert_eq!(board.status(), 3, "no DRIVER_OK without features");
}

#[test]
fn a_request_is_served_and_announced_by_message() {
    let mut board = rng();
    board.use_messages();
    board.bring_up(VERSION_1);
    board.descriptor(0, BUFFER, 64, WRITE | NEXT, 5);
    board.descriptor(5, BUFFER + 64, 16, WRITE, 0);
    board.offer(0);
    assert_eq!(board.used(), [(0, 80)]);
    assert_ne!(board.bytes(BUFFER, 80), [0; 80]);
    assert_eq!(board.messages(), [0x41]);
    assert!(!board.line());
}

#[test]
fn without_messages_the_line_rises_until_the_isr_is_read() {
    let mut board = rng();
    board.bring_up(VERSION_1);
    board.descriptor(0, BUFFER, 64, WRITE, 0);
    board.offer(0);
    assert!(board.line() && board.messages().is_empty());
    assert_eq!(board.config(6, 1) & 8, 8, "interrupt status");
    assert_eq!(board.read(0x1000, 1), 1);
    assert!(!board.line());
    assert_eq!(board.read(0x1000, 1), 0);
    board.transport.write_config(4, &0x0406u16.to_le_bytes());
    board.offer(0);
    assert!(!board.line(), "INTx is disabled");
    board.transport.write_config(4, &0x0006u16.to_le_bytes());
    assert!(board.line());
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let mut board = rng();
    board.use_messages();
    board.bring_up(VERSION_1);
    board.write(0x4000 + 16 + 12, 4, 1);
    board.descriptor(0, BUFFER, 64, WRITE, 0);
    board.offer(0);
    assert_eq!((board.messages(), board.read(0x6000, 1)), (vec![], 2));
    board.write(0x4000 + 16 + 12, 4, 0);
    assert_eq!((board.messages(), board.read(0x6000, 1)), (vec![0x41], 0));
}

#[test]
fn a_driver_says_when_it_wants_interrupts() {
    let mut board = rng();
    board.use_messages();
    board.bring_up(VERSION_1 | EVENT_IDX);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    board.set_used_event(2);
    board.offer(0);
    board.offer(0);
    assert!(board.messages().is_empty());
    board.offer(0);
    assert_eq!(board.messages(), [0x41], "as the used index passes 2");

    board.bring_up(VERSION_1);
    board.set_available_flags(1);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    board.offer(0);
    assert_eq!((board.used().len(), board.messages().len()), (1, 1), "not without event indices either");
}

#[test]
fn descriptors_may_be_in_a_table_of_their_own() {
    let mut board = rng();
    board.bring_up(VERSION_1);
    board.describe(0x9000, 0, BUFFER, 8, WRITE | NEXT, 1);
    board.describe(0x9000, 1, BUFFER + 0x100, 8, WRITE, 0);
    board.descriptor(3, 0x9000, 32, INDIRECT, 0);
    board.offer(3);
    assert_eq!(board.used(), [(3, 16)]);
}

/// What a hostile driver does to ring 0 before it rings.
type Attack = fn(&mut Board);

const ATTACKS: &[(&str, Attack)] = &[
    ("a loop", |board| {
        board.descriptor(0, BUFFER, 8, WRITE | NEXT, 1);
        board.descriptor(1, BUFFER, 8, WRITE | NEXT, 0);
        board.offer(0);
    }),
    ("a next beyond the table", |board| {
        board.descriptor(0, BUFFER, 8, WRITE | NEXT, 8);
        board.offer(0);
    }),
    ("a head beyond the table", |board| board.offer(8)),
    ("an index too far ahead", |board| {
        board.set_available(9);
        board.ring();
    }),
    ("a table in a table", |board| {
        board.descriptor(0, 0x9000, 16, INDIRECT, 0);
        board.describe(0x9000, 0, 0x9000, 16, INDIRECT, 0);
        board.offer(0);
    }),
    ("a table outside of RAM", |board| {
        board.descriptor(0, RAM - 8, 32, INDIRECT, 0);
        board.offer(0);
    }),
    ("an empty table", |board| {
        board.descriptor(0, 0x9000, 0, INDIRECT, 0);
        board.offer(0);
    }),
    ("a table longer than the ring", |board| {
        for index in 0..20 {
            board.describe(0x9000, index, BUFFER, 8, WRITE | NEXT, index + 1);
        }
        board.descriptor(0, 0x9000, 16 * 20, INDIRECT, 0);
        board.offer(0);
    }),
    ("lengths that add up to more than 4 GiB", |board| {
        board.descriptor(0, BUFFER, u32::MAX, WRITE | NEXT, 1);
        board.descriptor(1, BUFFER, u32::MAX, WRITE, 0);
        board.offer(0);
    }),
    ("room before input", |board| {
        board.descriptor(0, BUFFER, 8, WRITE | NEXT, 1);
        board.descriptor(1, BUFFER, 8, 0, 0);
        board.offer(0);
    }),
];

#[test]
fn a_broken_ring_asks_for_a_reset_after_which_all_is_well() {
    for (what, attack) in ATTACKS {
        let mut board = rng();
        board.bring_up(VERSION_1);
        attack(&mut board);
        assert_eq!(board.status(), 15 | NEEDS_RESET, "{what}");
        assert!(board.line(), "{what}: the driver is told");
        assert_eq!(board.read(0x1000, 1) & 2, 2, "{what}: of a change");
        assert_eq!(board.used(), [], "{what}");
        board.bring_up(VERSION_1);
        board.descriptor(0, BUFFER, 8, WRITE, 0);
        board.offer(0);
        assert_eq!((board.status(), board.used()), (15, vec![(0, 8)]), "{what}");
    }
}

#[test]
fn a_ring_that_is_not_in_ram_asks_for_a_reset() {
    for (field, address) in [(32, RAM - 64), (40, RAM), (48, u64::MAX - 7), (40, 0)] {
        let mut board = rng();
        assert_eq!(board.negotiate(VERSION_1), 11);
        board.write(22, 2, 0);
        board.set_up(0, 8);
        board.transport.registers.queues[0].enabled = false;
        board.write(field, 8, address);
        board.write(28, 2, 1);
        board.write(20, 1, 15);
        assert_eq!(board.status(), 15 | NEEDS_RESET, "{field}: {address:#x}");
    }
}

#[test]
fn a_buffer_outside_of_ram_fails_its_request_alone() {
    let mut board = rng();
    board.bring_up(VERSION_1);
    board.descriptor(0, RAM - 8, 64, WRITE, 0);
    board.descriptor(1, u64::MAX, 64, WRITE, 0);
    board.descriptor(2, BUFFER, 8, WRITE, 0);
    for head in 0..3 {
        board.offer(head);
    }
    assert_eq!((board.status(), board.used()), (15, vec![(0, 0), (1, 0), (2, 8)]));
}

#[test]
fn configuration_space_has_a_window_on_the_registers() {
    let mut board = rng();
    let mut at = board.config(0x34, 1) as u16;
    while board.config(at, 1) != 9 || board.config(at + 3, 1) != 5 {
        at = board.config(at + 1, 1) as u16;
    }
    board.transport.write_config(at + 8, &20u32.to_le_bytes());
    board.transport.write_config(at + 12, &1u32.to_le_bytes());
    board.transport.write_config(at + 16, &[3]);
    assert_eq!((board.status(), board.config(at + 16, 1)), (3, 3));
    board.transport.write_config(at + 12, &3u32.to_le_bytes());
    board.transport.write_config(at + 16, &[1]);
    assert_eq!(board.status(), 3, "no access of three bytes");
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    let mut board = rng();
    board.use_messages();
    board.bring_up(VERSION_1 | EVENT_IDX);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    board.offer(0);
    board.transport.quiesce();
    board.offer(0);
    assert_eq!(board.used().len(), 1, "held back");
    let saved = board.transport.save();
    let mut other = rng();
    other.memory = board.memory.clone();
    other.transport.memory = board.memory.clone();
    other.transport.restore(&saved).expect("its own format");
    assert_eq!(other.transport.save(), saved);
    other.transport.resume();
    assert_eq!(other.used().len(), 2);
    other.set_used_event(2);
    board.transport.reset();
    assert_eq!(board.status(), 0);
    assert!(other.transport.restore(&Saved(vec![1; 40])).is_err());
}

/// A work that takes as long as it is told to.
struct Slow(Arc<AtomicBool>, Arc<AtomicU32>);

impl Device for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn kind(&self) -> Kind {
        Kind::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> Vec<u16> {
        vec![8]
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn write_config(&mut self, _: u64, _: &[u8]) {}
    fn start(&mut self, start: Start) -> Vec<Job> {
        let work = Box::new(Slow(Arc::clone(&self.0), Arc::clone(&self.1)));
        vec![Job { queues: start.queues, work }]
    }
    fn stop(&mut self) {}
    fn save(&self) -> Saved {
        Saved(Vec::new())
    }
    fn restore(&mut self, _: &Saved) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Work for Slow {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        self.1.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        queues[0].serve(|_| Ok(0))
    }
    fn wakes(&self) -> Wakes<'_> {
        Wakes::default()
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < end, "it doesn't happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_reset_is_over_when_the_work_has_ended_and_waits_for_nobody() {
    let (busy, runs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut board = Board::new(Box::new(Slow(Arc::clone(&busy), Arc::clone(&runs))), Staff::Threads);
    board.bring_up(VERSION_1);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    board.offer(0);
    until(|| board.used().len() == 1);
    busy.store(true, Ordering::SeqCst);
    let before = runs.load(Ordering::SeqCst);
    board.offer(0);
    until(|| runs.load(Ordering::SeqCst) > before);
    board.write(20, 1, 0);
    assert_eq!(board.status(), 15, "the thread is in the middle of something");
    board.write(20, 1, 1);
    assert_eq!(board.status(), 15, "nothing is set up meanwhile");
    busy.store(false, Ordering::SeqCst);
    until(|| board.status() == 0);
    board.bring_up(VERSION_1);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    board.offer(0);
    until(|| board.used().len() == 1);
}

#[test]
fn every_doorbell_is_heard() {
    let (busy, runs) = (Arc::default(), Arc::default());
    let mut board = Board::new(Box::new(Slow(busy, runs)), Staff::Threads);
    board.bring_up(VERSION_1);
    board.descriptor(0, BUFFER, 8, WRITE, 0);
    for count in 1..=1000 {
        board.offer(0);
        until(|| board.used().len() == count);
    }
}

#[derive(Clone, Debug)]
enum Act {
    Read(u64, usize),
    Write(u64, usize, u64),
    ReadConfig(u16, usize),
    WriteConfig(u16, usize, u32),
    Memory(u64, u64),
    Ready,
    SaveAndRestore,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let offset =
        prop_oneof![3 => 0..56u64, 1 => 0x1000..0x1004u64, 1 => 0x3000..0x3008u64, 1 => 0..0x8000u64];
    let len = prop_oneof![Just(1), Just(2), Just(4), Just(8)];
    let value = prop_oneof![0..16u64, any::<u64>(), 0x1_0000..0x1_8000u64];
    let act = prop_oneof![
        (offset.clone(), len.clone()).prop_map(|(at, len)| Act::Read(at, len)),
        (offset, len.clone(), value.clone()).prop_map(|(at, len, value)| Act::Write(at, len, value)),
        (0..256u16, len.clone()).prop_map(|(at, len)| Act::ReadConfig(at, len.min(4))),
        (0..256u16, len, any::<u32>()).prop_map(|(at, len, value)| Act::WriteConfig(at, len.min(4), value)),
        (0x1_0000..0x1_6000u64, value).prop_map(|(at, value)| Act::Memory(at, value)),
        Just(Act::Ready),
        Just(Act::SaveAndRestore),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #[test]
    fn nothing_that_a_driver_writes_panics(acts in acts()) {
        let mut board = rng();
        for act in acts {
            let at = |offset| At { window: WINDOW, offset };
            match act {
                Act::Read(offset, len) => {
                    let _ = board.transport.read(at(offset), &mut [0; 8][..len]);
                }
                Act::Write(offset, len, value) => {
                    let _ = board.transport.write(at(offset), &value.to_le_bytes()[..len]);
                }
                Act::ReadConfig(offset, len) => board.transport.read_config(offset, &mut [0; 4][..len]),
                Act::WriteConfig(offset, len, value) => {
                    board.transport.write_config(offset, &value.to_le_bytes()[..len]);
                }
                Act::Memory(at, value) => board.memory.write(x86::Gpa(at), &value.to_le_bytes()).expect("RAM"),
                Act::Ready => board.bring_up(VERSION_1),
                Act::SaveAndRestore => {
                    board.transport.quiesce();
                    let saved = board.transport.save();
                    board.transport.restore(&saved).expect("its own format");
                    assert_eq!(board.transport.save(), saved);
                    board.transport.resume();
                }
            }
        }
    }
}
