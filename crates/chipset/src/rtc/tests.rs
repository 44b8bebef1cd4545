use proptest::prelude::*;

use super::*;
use crate::testkit::{TestAlarm, TestClock, Wires, acts, hammer, inb, outb};

struct Bench {
    clock: Arc<TestClock>,
    alarm: Arc<TestAlarm>,
    wires: Arc<Wires>,
    rtc: Rtc,
}

fn bench() -> Bench {
    let (clock, alarm, wires) = (TestClock::new(), TestAlarm::new(), Wires::new());
    let memory = MemorySize { below_4g: 3 << 30, above_4g: 1 << 30 };
    let rtc = Rtc::new(clock.clone(), alarm.clone(), wires.line(8), memory);
    Bench { clock, alarm, wires, rtc }
}

impl Bench {
    fn get(&mut self, register: u8) -> u8 {
        outb(&mut self.rtc, CMOS, 0, register);
        inb(&mut self.rtc, CMOS, 1)
    }
    fn put(&mut self, register: u8, value: u8) {
        outb(&mut self.rtc, CMOS, 0, register);
        outb(&mut self.rtc, CMOS, 1, value);
    }
    fn time(&mut self) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|register| self.get(register))
    }
    fn ring(&mut self) {
        self.clock.set(self.alarm.at().expect("the alarm is set"));
        self.rtc.on_alarm();
    }
}

#[test]
fn the_wall_clock_is_shown_and_passes_into_a_leap_day() {
    let mut b = bench();
    assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x50]);
    b.clock.set(10 * SECOND);
    assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0]);
    assert_eq!(inb(&mut b.rtc, CMOS, 0), 0xff);
}

#[test]
fn binary_and_twelve_hours_are_shown_as_asked() {
    let mut b = bench();
    b.put(0x0b, BINARY);
    assert_eq!(b.time(), [20, 24, 2, 28, 4, 0x80 | 11, 59, 50]);
    b.clock.set(10 * SECOND);
    assert_eq!(b.get(4), 12, "midnight is 12 AM");
}

#[test]
fn a_time_that_the_guest_sets_goes_on_from_there() {
    let mut b = bench();
    b.put(0x0b, SET | HOURS_24);
    for (register, value) in
        [(CENTURY, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)]
    {
        b.put(register, value);
    }
    b.clock.set(5 * SECOND);
    assert_eq!(b.get(0), 0x59, "frozen while it is being set");
    b.put(0x0b, HOURS_24);
    b.clock.set(6 * SECOND);
    assert_eq!(b.time(), [0x20, 0, 1, 1, 7, 0, 0, 0]);
}

#[test]
fn update_in_progress_is_seen_just_before_the_second_changes() {
    let mut b = bench();
    b.clock.set(SECOND - UPDATE - 1);
    assert_eq!(b.get(0x0a), 0x26);
    b.clock.set(SECOND - 1);
    assert_eq!(b.get(0x0a), 0xa6);
    assert_eq!(b.get(0), 0x50);
    b.clock.set(SECOND);
    assert_eq!(b.get(0x0a), 0x26);
    assert_eq!(b.get(0), 0x51);
}

#[test]
fn register_c_tells_flags_once_and_lowers_the_line() {
    let mut b = bench();
    b.put(0x0b, HOURS_24 | UPDATE_ENDED);
    b.get(0x0c);
    b.ring();
    assert_eq!(b.clock.now().0, SECOND);
    assert!(b.wires.high(8));
    assert_eq!(b.alarm.at(), None, "nothing more to say until it is read");
    assert_eq!(b.get(0x0c) & 0x90, 0x90);
    assert!(!b.wires.high(8));
    assert_eq!(b.get(0x0c) & 0x90, 0);
    assert_eq!(b.alarm.at(), Some(2 * SECOND));
}

#[test]
fn flags_are_set_without_being_enabled() {
    let mut b = bench();
    b.clock.set(SECOND);
    assert_eq!(b.get(0x0c), UPDATE_ENDED | PERIODIC);
    assert!(!b.wires.high(8));
}

#[test]
fn the_periodic_interrupt_keeps_its_rate() {
    let mut b = bench();
    b.put(0x0b, HOURS_24 | PERIODIC);
    b.get(0x0c);
    for n in 1..=4_u32 {
        b.ring();
        assert_eq!(b.wires.edges(8), n);
        assert_eq!(b.clock.now(), Nanos::from_ticks(u64::from(n), 1024));
        b.get(0x0c);
    }
    b.clock.advance(SECOND);
    b.rtc.on_alarm();
    assert_eq!(b.wires.edges(8), 5, "missed periods give one interrupt");
}

#[test]
fn the_alarm_matches_with_dont_care_fields() {
    let mut b = bench();
    for (register, value) in [(1, 0x55), (3, 0xff), (5, 0xc0)] {
        b.put(register, value);
    }
    b.put(0x0b, HOURS_24 | ALARM);
    b.get(0x0c);
    for second in 1..=5 {
        assert!(!b.wires.high(8));
        b.ring();
        assert_eq!(b.clock.now().0, second * SECOND);
    }
    assert!(b.wires.high(8));
    assert_eq!(b.get(0x0c) & 0xa0, 0xa0);
}

#[test]
fn cmos_tells_the_memory_size_and_remembers() {
    let mut b = bench();
    assert_eq!(u16::from_le_bytes([b.get(0x15), b.get(0x16)]), 640);
    assert_eq!(u16::from_le_bytes([b.get(0x34), b.get(0x35)]), 0xbf00);
    assert_eq!([b.get(0x5b), b.get(0x5c), b.get(0x5d)], [0, 0x40, 0]);
    b.put(0x7f, 0x5a);
    b.rtc.reset();
    assert_eq!(b.get(0x7f), 0x5a);
    assert_eq!(b.get(0x0d), 0x80);
}

#[test]
fn a_saved_clock_keeps_the_time_that_was_set() {
    let mut b = bench();
    b.put(9, 0x30);
    let saved = b.rtc.save();
    let mut other = bench();
    other.rtc.restore(&saved).expect("its own format");
    other.rtc.resume();
    assert_eq!(other.get(9), 0x30);
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let mut b = bench();
        hammer(&mut b.rtc, &PORTS, &acts, &b.clock, Rtc::on_alarm);
    }
}
