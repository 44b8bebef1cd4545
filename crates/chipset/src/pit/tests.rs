use proptest::prelude::*;

use super::*;
use crate::testkit::{TestAlarm, TestClock, Wires, acts, hammer, inb, outb};

struct Bench {
    clock: Arc<TestClock>,
    alarm: Arc<TestAlarm>,
    wires: Arc<Wires>,
    pit: Pit,
}

fn bench() -> Bench {
    let (clock, alarm, wires) = (TestClock::new(), TestAlarm::new(), Wires::new());
    let pit = Pit::new(clock.clone(), alarm.clone(), wires.line(0));
    Bench { clock, alarm, wires, pit }
}

impl Bench {
    fn at(&mut self, tick: u64) {
        self.clock.set(Nanos::from_ticks(tick, HZ).0);
    }
    fn out(&mut self, port: u64, value: u8) {
        outb(&mut self.pit, COUNTERS, port, value);
    }
    fn program(&mut self, channel: u8, mode: u8, count: u16) {
        self.out(3, channel << 6 | 0x30 | mode << 1);
        self.out(u64::from(channel), count as u8);
        self.out(u64::from(channel), (count >> 8) as u8);
    }
    fn count(&mut self, channel: u64) -> u16 {
        self.out(3, (channel as u8) << 6);
        let low = inb(&mut self.pit, COUNTERS, channel);
        u16::from_le_bytes([low, inb(&mut self.pit, COUNTERS, channel)])
    }
    fn ring(&mut self) {
        self.clock.set(self.alarm.at().expect("the alarm is set"));
        self.pit.on_alarm();
    }
}

#[test]
fn mode_2_counts_from_n_to_1_and_interrupts_each_period() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.at(1);
    assert_eq!(b.count(0), 1000);
    b.at(1000);
    assert_eq!(b.count(0), 1);
    let edges = b.wires.edges(0);
    b.ring();
    assert_eq!(b.clock.now().to_ticks(HZ), 1001);
    assert_eq!(b.count(0), 1000);
    assert_eq!(b.wires.edges(0), edges + 1);
    assert!(b.wires.high(0));
    b.ring();
    assert_eq!(b.clock.now().to_ticks(HZ), 2001);
    assert_eq!(b.wires.edges(0), edges + 2);
}

#[test]
fn a_long_stall_gives_one_edge_and_keeps_the_phase() {
    let mut b = bench();
    b.program(0, 2, 1000);
    let edges = b.wires.edges(0);
    b.at(50_501);
    b.pit.on_alarm();
    assert_eq!(b.wires.edges(0), edges + 1);
    assert_eq!(b.alarm.at(), Some(Nanos::from_ticks(51_001, HZ).0));
}

/// Interrupts that come one after the other as the guest takes them.
fn taken(b: &mut Bench) -> u32 {
    let before = b.wires.edges(0);
    for _ in 0..2000 {
        b.pit.interrupt_taken();
    }
    b.wires.edges(0) - before
}

#[test]
fn the_ticks_of_a_stall_come_as_they_are_taken() {
    let mut b = bench();
    b.program(0, 2, 1000);
    let edges = b.wires.edges(0);
    b.at(50_501);
    b.pit.on_alarm();
    assert_eq!(b.wires.edges(0), edges + 1);
    b.wires.set_last_edge(Edge::Unseen);
    assert_eq!(taken(&mut b), 0, "the first one has not been taken");
    b.wires.set_last_edge(Edge::Gone);
    assert_eq!(taken(&mut b), 49);
    assert!(!b.pit.owes().load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn ticks_that_find_the_last_one_unseen_are_owed_and_those_that_the_guest_holds_up_merge() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.ring();
    b.wires.set_last_edge(Edge::Held);
    b.ring();
    b.ring();
    b.wires.set_last_edge(Edge::Gone);
    assert_eq!(taken(&mut b), 0);
    b.wires.set_last_edge(Edge::Unseen);
    b.ring();
    b.ring();
    b.wires.set_last_edge(Edge::Gone);
    assert_eq!(taken(&mut b), 2);
}

#[test]
fn a_second_of_ticks_is_owed_at_most_and_none_after_the_timer_is_programmed_anew() {
    let mut b = bench();
    b.program(0, 2, 0);
    b.at(HZ * 3600);
    b.pit.on_alarm();
    assert_eq!(taken(&mut b), 18);
    b.at(HZ * 3700);
    b.pit.on_alarm();
    b.program(0, 2, 0);
    assert_eq!(taken(&mut b), 0);
    // Faster than alarms ring.
    b.program(0, 2, 20);
    b.at(HZ * 3800);
    b.pit.on_alarm();
    assert_eq!(taken(&mut b), 0);
}

#[test]
fn a_tiny_divisor_does_not_ring_more_often_than_the_limit() {
    let mut b = bench();
    b.program(0, 2, 2);
    b.ring();
    let before = b.clock.now().0;
    b.ring();
    assert!(b.clock.now().0 >= before + 99_000);
}

#[test]
fn mode_0_stays_low_until_the_terminal_count() {
    let mut b = bench();
    b.program(0, 0, 500);
    assert!(!b.wires.high(0));
    b.ring();
    assert_eq!(b.clock.now().to_ticks(HZ), 501);
    assert!(b.wires.high(0));
    assert_eq!(b.count(0), 0);
    assert_eq!(b.alarm.at(), None);
    b.at(503);
    assert_eq!(b.count(0), 0xfffe, "it goes on counting");
    b.out(3, 0x30);
    assert!(!b.wires.high(0));
}

#[test]
fn mode_4_strobes_once() {
    let mut b = bench();
    b.program(0, 4, 500);
    let edges = b.wires.edges(0);
    assert!(b.wires.high(0));
    b.ring();
    assert_eq!(b.wires.edges(0), edges + 1);
    assert_eq!(b.alarm.at(), None);
}

#[test]
fn mode_3_is_high_for_the_longer_half() {
    let mut b = bench();
    outb(&mut b.pit, SPEAKER, 0, 1);
    b.program(2, 3, 5);
    let levels: Vec<u8> = (1..=10)
        .map(|tick| {
            b.at(tick);
            inb(&mut b.pit, SPEAKER, 0) >> 5 & 1
        })
        .collect();
    assert_eq!(levels, [1, 1, 1, 0, 0, 1, 1, 1, 0, 0]);
}

#[test]
fn mode_1_is_triggered_by_the_gate() {
    let mut b = bench();
    b.program(2, 1, 10);
    assert_eq!(inb(&mut b.pit, SPEAKER, 0) & 0x20, 0x20);
    outb(&mut b.pit, SPEAKER, 0, 1);
    b.at(5);
    assert_eq!(inb(&mut b.pit, SPEAKER, 0) & 0x20, 0);
    b.at(11);
    assert_eq!(inb(&mut b.pit, SPEAKER, 0) & 0x20, 0x20);
}

#[test]
fn mode_5_strobes_when_the_gate_rises() {
    let mut b = bench();
    b.program(2, 5, 10);
    outb(&mut b.pit, SPEAKER, 0, 1);
    for (tick, level) in [(5, 0x20), (11, 0), (12, 0x20)] {
        b.at(tick);
        assert_eq!(inb(&mut b.pit, SPEAKER, 0) & 0x20, level, "tick {tick}");
    }
}

#[test]
fn the_gate_of_channel_2_holds_the_count() {
    let mut b = bench();
    outb(&mut b.pit, SPEAKER, 0, 1);
    b.program(2, 0, 100);
    b.at(41);
    outb(&mut b.pit, SPEAKER, 0, 0);
    b.at(1000);
    assert_eq!(b.count(2), 60);
    outb(&mut b.pit, SPEAKER, 0, 3);
    b.at(1010);
    assert_eq!(b.count(2), 50);
    b.at(1060);
    assert_eq!(inb(&mut b.pit, SPEAKER, 0) & 0x2f, 0x23);
}

#[test]
fn a_latched_count_stays_until_it_is_read() {
    let mut b = bench();
    b.program(0, 2, 0);
    b.at(0x101);
    b.out(3, 0);
    b.at(0x1000);
    b.out(3, 0);
    let low = inb(&mut b.pit, COUNTERS, 0);
    let high = inb(&mut b.pit, COUNTERS, 0);
    assert_eq!(u16::from_le_bytes([low, high]), 0xff00);
    assert_eq!(b.count(0), 0xf001);
}

#[test]
fn read_back_latches_status_then_count() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.out(3, 0xe2);
    assert_eq!(
        inb(&mut b.pit, COUNTERS, 0),
        0x80 | 0x40 | 0x34,
        "null count: not loaded before the next clock"
    );
    b.at(11);
    b.out(3, 0xc2);
    assert_eq!(inb(&mut b.pit, COUNTERS, 0), 0x80 | 0x34);
    assert_eq!(inb(&mut b.pit, COUNTERS, 0), (990 & 0xff) as u8);
    assert_eq!(inb(&mut b.pit, COUNTERS, 0), (990 >> 8) as u8);
}

#[test]
fn bcd_counts_in_decimal() {
    let mut b = bench();
    b.out(3, 0x31);
    b.out(0, 0x00);
    b.out(0, 0x10);
    b.at(2);
    assert_eq!(b.count(0), 0x0999);
    b.at(1002);
    assert_eq!(b.count(0), 0x9999);
}

#[test]
fn a_new_count_in_mode_2_waits_for_the_end_of_the_period() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.at(501);
    b.out(0, 0xd0);
    b.out(0, 0x07);
    assert_eq!(b.count(0), 500);
    b.ring();
    assert_eq!(b.count(0), 2000);
    assert_eq!(b.alarm.at(), Some(Nanos::from_ticks(3001, HZ).0));
}

#[test]
fn the_refresh_bit_toggles() {
    let mut b = bench();
    let first = inb(&mut b.pit, SPEAKER, 0) & 0x10;
    b.at(REFRESH);
    assert_ne!(inb(&mut b.pit, SPEAKER, 0) & 0x10, first);
}

#[test]
fn a_quiesced_timer_is_silent_and_a_restored_one_goes_on() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.pit.quiesce();
    assert_eq!(b.alarm.at(), None);
    let saved = b.pit.save();
    let mut other = bench();
    other.pit.restore(&saved).expect("its own format");
    other.pit.resume();
    assert_eq!(other.alarm.at(), Some(Nanos::from_ticks(1001, HZ).0));
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let mut b = bench();
        hammer(&mut b.pit, &PORTS, &acts, &b.clock, Pit::on_alarm);
        let saved = b.pit.save();
        b.pit.restore(&saved).expect("what can be reached can be restored");
    }
}

#[test]
fn every_byte_of_a_damaged_state_is_refused_or_gives_a_state_that_restores_again() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.at(10);
    // One that takes over at the end of the period, whose count could be anything in a file.
    b.program(2, 2, 50);
    b.out(0, 0x10);
    b.out(0, 0x27);
    let good = b.pit.save();
    for at in 0..good.0.len() {
        for flip in [1, 0x40, 0x80, 0xff] {
            let mut b = bench();
            let mut damaged = good.clone();
            damaged.0[at] ^= flip;
            if b.pit.restore(&damaged).is_err() {
                continue;
            }
            b.pit.resume();
            for tick in [11, 2000, 1 << 20, 1 << 40] {
                b.at(tick);
                b.pit.on_alarm();
                let saved = b.pit.save();
                assert!(b.pit.restore(&saved).is_ok(), "byte {at} changed by {flip:#x}");
            }
        }
    }
}

#[test]
fn a_waiting_count_that_the_chip_cannot_hold_is_refused() {
    let mut b = bench();
    b.program(0, 2, 1000);
    b.at(10);
    b.out(0, 0xe8);
    b.out(0, 0x03);
    let mut saved = b.pit.save();
    // The waiting count 1000 as a varint, made longer than 16 bits.
    let at = saved.0.windows(2).rposition(|pair| pair == [0xe8, 0x07]).expect("it is saved");
    saved.0.splice(at..at + 2, [0xe8, 0x87, 0x10]);
    assert!(matches!(b.pit.restore(&saved), Err(RestoreError::Impossible { device: "pit", .. })));
}
