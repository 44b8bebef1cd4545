//! Saving and restoring, many threads, and random traffic.

use super::*;
use proptest::prelude::*;

#[test]
fn a_restored_board_goes_on_where_it_was() {
    let board = Board::new(2);
    board.write(0, LVT_TIMER, 0x70);
    board.write(0, DIVIDE, 0b1011);
    board.write(0, INITIAL, 1000);
    board.x2apic(1);
    board.ipi(0, 1, 0x41);
    board.io_write(0x24, 0x8045);
    board.lapics.quiesce();
    board.ioapic.quiesce();
    board.ioapic.set_pin(10, true);
    let (lapics, ioapic) = (board.lapics.save(), board.ioapic.save());

    let board = Board::cold(2);
    board.lapics.restore(&lapics).expect("fits");
    board.ioapic.restore(&ioapic).expect("fits");
    board.lapics.resume();
    board.ioapic.resume();
    assert_eq!(board.take(1), interrupt(0x41));
    assert_eq!(board.take(0), interrupt(0x45));
    board.advance(1000);
    assert_eq!(board.take(0), interrupt(0x70));
    assert!(Board::cold(1).lapics.restore(&lapics).is_err());
    assert!(board.ioapic.restore(&lapics).is_err());
}

#[test]
fn threads_that_use_everything_at_once_do_not_deadlock() {
    let board = Board::new(3);
    let pic = Pic::wire(&board);
    board.write(0, LINT0, 0x700);
    board.io_write(0x24, 0x8045);
    board.io_write(0x26, 0x8846);
    let (board, pic) = (&board, &pic);
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for cpu in 0..3 {
            let taken = &taken;
            scope.spawn(move || {
                for round in 0..3000 {
                    board.write(cpu, ICR, 0xc_0050);
                    board.io_write(0x24, 0x8045 | (round & 1) << 16);
                    while board.take(cpu).is_some() {
                        taken.fetch_add(1, Ordering::Relaxed);
                        board.write(cpu, EOI, 0);
                    }
                }
            });
        }
        scope.spawn(|| {
            for round in 0..3000 {
                board.ioapic.set_pin(10, round & 1 != 0);
                board.ioapic.set_pin(11, round & 2 != 0);
                pic.raise();
            }
            board.ioapic.set_pin(10, false);
        });
    });
    assert!(taken.into_inner() > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u32, u64),
    Write(u32, u64, u32),
    Rdmsr(u32, u32),
    Wrmsr(u32, u32, u64),
    Take(u32, bool, bool),
    Pin(u8, bool),
    IoPin(u8, bool),
    Io(u8, u32),
    Send(u64, u32),
    Cr8(u32, u8),
    Advance(u32),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let number = prop_oneof![8 => 0x800u32..0x842, 2 => Just(BASE_MSR), 2 => Just(DEADLINE_MSR)];
    let value = prop_oneof![
        any::<u64>(),
        any::<u64>().prop_map(|value| value & 0xff),
        any::<u64>().prop_map(|value| value & 0xf_dfff),
        any::<u64>().prop_map(|value| 0xfee0_0000 | value & 0xd00),
    ];
    let offset = prop_oneof![4 => (0u64..0x40).prop_map(|reg| reg << 4), 1 => 0u64..0x1000];
    let low = prop_oneof![any::<u32>(), any::<u32>().prop_map(|value| value & 0xf_dfff)];
    prop_oneof![
        1 => (0u32..3, offset.clone()).prop_map(|(cpu, at)| Step::Read(cpu, at)),
        4 => (0u32..3, offset, low.clone()).prop_map(|(cpu, at, value)| Step::Write(cpu, at, value)),
        1 => (0u32..3, number.clone()).prop_map(|(cpu, number)| Step::Rdmsr(cpu, number)),
        4 => (0u32..3, number, value).prop_map(|(cpu, number, value)| Step::Wrmsr(cpu, number, value)),
        4 => (0u32..3, any::<bool>(), any::<bool>()).prop_map(|(cpu, nmi, interrupt)| Step::Take(cpu, nmi, interrupt)),
        1 => (0u8..3, any::<bool>()).prop_map(|(pin, high)| Step::Pin(pin, high)),
        2 => (0u8..25, any::<bool>()).prop_map(|(pin, high)| Step::IoPin(pin, high)),
        2 => (any::<u8>(), low).prop_map(|(register, value)| Step::Io(register, value)),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(address, data)| Step::Send(address, data)),
        1 => (0u32..3, any::<u8>()).prop_map(|(cpu, priority)| Step::Cr8(cpu, priority)),
        2 => (0u32..1_000_000).prop_map(Step::Advance),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_traffic_breaks_the_invariants(steps in proptest::collection::vec(step(), 1..200)) {
        let board = Board::new(3);
        let pic = Pic::wire(&board);
        for step in steps {
            match step {
                Step::Read(cpu, at) => { board.read(cpu, at); }
                Step::Write(cpu, at, value) => {
                    if board.lapics.mmio_base(cpu).is_some() {
                        board.write(cpu, at, value);
                    }
                }
                Step::Rdmsr(cpu, number) => { let _ = board.lapics.rdmsr(cpu, number); }
                Step::Wrmsr(cpu, number, value) => {
                    let before = board.lapics.save();
                    if board.lapics.wrmsr(cpu, number, value).is_err() {
                        prop_assert_eq!(board.lapics.save(), before, "a refused write changes nothing");
                    }
                }
                Step::Take(cpu, nmi, window) => {
                    let pending = board.lapics.is_pending(cpu);
                    let event = board.lapics.take_event(cpu, nmi, window);
                    prop_assert!(pending || event.is_none());
                    prop_assert!(nmi || event != Some(ApicEvent::Nmi));
                    if let Some(ApicEvent::Interrupt(vector)) = event {
                        prop_assert!(window && vector >= 16);
                    }
                }
                Step::Pin(0, true) => pic.raise(),
                Step::Pin(pin, high) => board.lapics.set_pin(pin.max(1), high),
                Step::IoPin(pin, high) => board.ioapic.set_pin(pin, high),
                Step::Io(register, value) => {
                    board.io_write(register, value);
                    board.io_read(register);
                }
                Step::Send(address, data) => {
                    board.lapics.send(Msi { address, data });
                }
                Step::Cr8(cpu, priority) => {
                    board.lapics.set_cr8(cpu, priority);
                    prop_assert_eq!(board.lapics.cr8(cpu), priority & 0xf);
                }
                Step::Advance(by) => {
                    let to = board.clock.now().0 + u64::from(by);
                    board.advance(to);
                    for alarm in &board.alarms {
                        let at = *alarm.0.lock().expect("not poisoned");
                        prop_assert!(at.is_none_or(|at| at.0 > to), "an alarm in the past");
                    }
                }
                Step::Reset => board.lapics.reset(),
            }
            // Whatever happened, what is saved can be restored.
            prop_assert!(board.lapics.restore(&board.lapics.save()).is_ok());
            prop_assert!(board.ioapic.restore(&board.ioapic.save()).is_ok());
            for cpu in 0..3 {
                prop_assert!(board.lapics.mmio_base(cpu).is_none() || board.lapics.is_enabled(cpu));
            }
        }
    }
}
