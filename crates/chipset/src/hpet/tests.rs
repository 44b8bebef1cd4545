use proptest::prelude::*;

use super::*;
use crate::LineSink;
use crate::testkit::{TestAlarm, TestClock, Wires, acts, hammer, inl, outl};

struct Bench {
    clock: Arc<TestClock>,
    alarm: Arc<TestAlarm>,
    wires: Arc<Wires>,
    legacy: Arc<LegacyRoute>,
    hpet: Hpet,
}

fn bench() -> Bench {
    let (clock, alarm, wires) = (TestClock::new(), TestAlarm::new(), Wires::new());
    let legacy = LegacyRoute::new(wires.line(0), wires.line(8));
    let lines = [20, 21].map(|pin| (pin, wires.line(pin)));
    let hpet = Hpet::new(clock.clone(), alarm.clone(), legacy.clone(), &lines);
    Bench { clock, alarm, wires, legacy, hpet }
}

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;
const TIMER: u64 = 0x100;
const EDGE_ON_20: u64 = 20 << 9 | 1 << 2;

impl Bench {
    fn put(&mut self, register: u64, value: u64) {
        let at = At { window: REGISTERS, offset: register };
        self.hpet.write(at, &value.to_le_bytes()).expect("the register exists");
    }
    fn get(&mut self, register: u64) -> u64 {
        let mut data = [0; 8];
        let at = At { window: REGISTERS, offset: register };
        self.hpet.read(at, &mut data).expect("the register exists");
        u64::from_le_bytes(data)
    }
    fn ring(&mut self) -> u64 {
        let at = self.alarm.at().expect("the alarm is set");
        self.clock.set(at);
        self.hpet.on_alarm();
        at
    }
}

#[test]
fn the_counter_runs_at_100_mhz_while_it_is_enabled() {
    let mut b = bench();
    assert_eq!(b.get(0) >> 32, 10_000_000);
    b.clock.set(1000);
    assert_eq!(b.get(0xf0), 0);
    b.put(0x10, ENABLE);
    b.clock.set(2000);
    assert_eq!(b.get(0xf0), 100);
    b.put(0x10, 0);
    b.clock.set(3000);
    assert_eq!(b.get(0xf0), 100);
    b.put(0xf0, 7 << 32);
    b.put(0x10, ENABLE);
    b.clock.set(4000);
    assert_eq!(inl(&mut b.hpet, REGISTERS, 0xf4), 7);
    assert_eq!(inl(&mut b.hpet, REGISTERS, 0xf0), 100);
}

#[test]
fn a_one_shot_fires_once() {
    let mut b = bench();
    b.put(0x10, ENABLE);
    b.put(TIMER, EDGE_ON_20);
    b.put(TIMER + 8, 50_000);
    assert_eq!(b.ring(), 500_000);
    assert_eq!(b.wires.edges(20), 1);
    assert!(!b.wires.high(20));
    assert_eq!(b.alarm.at(), None);
    b.put(TIMER + 8, 100);
    assert_eq!(b.alarm.at(), None, "the past never comes");
}

#[test]
fn a_periodic_timer_keeps_its_phase_and_does_not_burst() {
    let mut b = bench();
    b.put(0x10, ENABLE);
    b.put(TIMER, EDGE_ON_20 | 1 << 8 | 1 << 3 | 1 << 6);
    outl(&mut b.hpet, REGISTERS, TIMER + 8, 30_000);
    outl(&mut b.hpet, REGISTERS, TIMER + 8, 20_000);
    for at in [300_000, 500_000, 700_000] {
        assert_eq!(b.ring(), at);
    }
    assert_eq!(b.wires.edges(20), 3);
    assert_eq!(b.get(TIMER + 8), 90_000);
    b.clock.set(10_050_000);
    b.hpet.on_alarm();
    assert_eq!(b.wires.edges(20), 4);
    assert_eq!(b.alarm.at(), Some(10_150_000), "at the least interval after the last");
    b.ring();
    assert_eq!(b.alarm.at(), Some(10_300_000), "and in phase again");
}

#[test]
fn a_level_stays_until_its_status_is_cleared() {
    let mut b = bench();
    b.put(0x10, ENABLE);
    b.put(TIMER + 0x20, 21 << 9 | 1 << 2 | 1 << 1);
    b.put(TIMER + 0x28, 50_000);
    b.ring();
    assert!(b.wires.high(21));
    assert_eq!(b.get(0x20), 2);
    b.put(0x20, 2);
    assert!(!b.wires.high(21));
    assert_eq!(b.get(0x20), 0);
}

#[test]
fn a_forced_32_bit_timer_matches_after_the_wrap() {
    let mut b = bench();
    b.put(0xf0, 0xffff_0000);
    b.put(TIMER, EDGE_ON_20 | 1 << 8);
    b.put(TIMER + 8, 0x1_0000_4000);
    assert_eq!(b.get(TIMER + 8), 0x4000);
    b.put(0x10, ENABLE);
    assert_eq!(b.ring(), 0x1_4000 * 10);
    assert_eq!(b.wires.edges(20), 1);
}

#[test]
fn legacy_replacement_takes_irq_0_and_8_over() {
    let mut b = bench();
    let pit = Line::new(b.legacy.clone() as Arc<dyn LineSink>, PIT_PIN);
    pit.pulse();
    assert_eq!(b.wires.edges(0), 1);
    b.put(0x10, ENABLE | LEGACY);
    pit.pulse();
    assert_eq!(b.wires.edges(0), 1);
    for n in 0..2 {
        b.put(TIMER + 0x20 * n, EDGE_ON_20);
        b.put(TIMER + 0x20 * n + 8, 50_000);
    }
    b.ring();
    assert_eq!((b.wires.edges(0), b.wires.edges(8), b.wires.edges(20)), (2, 1, 0));
    b.hpet.reset();
    pit.pulse();
    assert_eq!(b.wires.edges(0), 3);
}

#[test]
fn a_route_that_can_not_be_does_not_stick() {
    let mut b = bench();
    b.put(TIMER, 5 << 9);
    assert_eq!(b.get(TIMER) >> 9 & 0x1f, 0);
    b.put(TIMER, 21 << 9);
    assert_eq!(b.get(TIMER) >> 9 & 0x1f, 21);
    assert_eq!(b.get(TIMER) >> 32, 0x0030_0000);
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let mut b = bench();
        hammer(&mut b.hpet, &MMIO, &acts, &b.clock, Hpet::on_alarm);
        let saved = b.hpet.save();
        b.hpet.restore(&saved).expect("what can be reached can be restored");
    }

    #[test]
    fn no_access_to_the_registers_that_exist_panics(
        writes in proptest::collection::vec((0..20_u64, any::<bool>(), any::<u64>(), 0..1_u64 << 40), 1..100),
    ) {
        let mut b = bench();
        for (register, wide, value, wait) in writes {
            let register = if register < 8 { register * 8 } else if register == 8 { 0xf0 } else { 0x100 + (register - 8) * 8 };
            let at = At { window: REGISTERS, offset: register };
            let _ = b.hpet.write(at, &value.to_le_bytes()[..if wide { 8 } else { 4 }]);
            b.clock.advance(wait);
            b.hpet.on_alarm();
        }
    }
}

#[test]
fn periods_of_a_stall_come_as_they_are_taken() {
    for (general, pin) in [(ENABLE, 20), (ENABLE | LEGACY, 0)] {
        let mut b = bench();
        let taken = |b: &mut Bench| {
            let before = b.wires.edges(pin);
            (0..2000).for_each(|_| b.hpet.interrupt_taken());
            b.wires.edges(pin) - before
        };
        b.put(TIMER, EDGE_ON_20 | 1 << 3 | 1 << 6);
        b.put(TIMER + 8, 100_000);
        b.put(TIMER + 8, 100_000);
        b.put(0x10, general);
        b.clock.set(9_500_000);
        b.hpet.on_alarm();
        assert_eq!(b.wires.edges(pin), 1);
        b.wires.set_last_edge(Edge::Unseen);
        assert_eq!(taken(&mut b), 0);
        b.clock.set(10_500_000);
        b.hpet.on_alarm();
        b.wires.set_last_edge(Edge::Gone);
        assert_eq!(taken(&mut b), 9);
        b.clock.set(20_500_000);
        b.hpet.on_alarm();
        b.put(0x10, 0);
        assert_eq!(taken(&mut b), 0, "stopped");
    }
}
