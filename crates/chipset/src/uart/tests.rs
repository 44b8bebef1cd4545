use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::testkit::{TestClock, Wires, acts, hammer, inb, outb};

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl ByteSink for Collected {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().expect("not poisoned").extend(bytes);
    }
}

#[derive(Default)]
struct Room(AtomicU32);

impl InputRoom for Room {
    fn room(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    wires: Arc<Wires>,
    sent: Collected,
    room: Arc<Room>,
    uart: Uart,
}

fn bench() -> Bench {
    let (wires, sent, room) = (Wires::new(), Collected::default(), Arc::new(Room::default()));
    let uart = Uart::new(wires.line(4), Box::new(sent.clone()), Some(room.clone()));
    Bench { wires, sent, room, uart }
}

impl Bench {
    fn get(&mut self, register: u64) -> u8 {
        inb(&mut self.uart, REGISTERS, register)
    }
    fn put(&mut self, register: u64, value: u8) {
        outb(&mut self.uart, REGISTERS, register, value);
    }
}

#[test]
fn a_driver_identifies_a_16550a() {
    let mut b = bench();
    b.put(1, 0xff);
    assert_eq!(b.get(1), 0x0f);
    b.put(1, 0);
    b.put(4, 0x1a);
    assert_eq!(b.get(6) & 0xf0, 0x90, "RTS is CTS and OUT2 is DCD in loopback");
    b.put(4, 0);
    b.put(2, 1);
    assert_eq!(b.get(2) >> 6, 3);
    b.put(2, 0x21);
    assert_eq!(b.get(2) >> 5, 6, "no 64-byte FIFO");
    b.put(2, 0);
    assert_eq!(b.get(2), 1);
    b.put(7, 0x5a);
    assert_eq!(b.get(7), 0x5a);
}

#[test]
fn sending_interrupts_when_the_holding_register_is_empty_again() {
    let mut b = bench();
    b.put(1, 2);
    assert!(b.wires.high(4), "it is empty when the interrupt is enabled");
    assert_eq!(b.get(2), 2);
    assert!(!b.wires.high(4), "identifying it ends it");
    b.put(0, b'a');
    assert!(b.wires.high(4));
    let edges = b.wires.edges(4);
    b.put(0, b'b');
    assert_eq!(b.wires.edges(4), edges + 1, "each byte is an edge");
    assert_eq!(*b.sent.0.lock().expect("not poisoned"), b"ab");
    assert_eq!(b.get(5), 0x60);
    b.put(1, 0);
    assert!(!b.wires.high(4));
}

#[test]
fn input_below_the_trigger_is_a_timeout_and_above_it_is_data() {
    let mut b = bench();
    b.put(2, 0x41);
    b.put(1, 1);
    assert_eq!(b.uart.receive(b"abc"), 3);
    assert!(b.wires.high(4));
    assert_eq!(b.get(2), 0xcc);
    assert_eq!(b.uart.receive(b"d"), 1);
    assert_eq!(b.get(2), 0xc4);
    for byte in b"abcd" {
        assert_eq!(b.get(5) & 1, 1);
        assert_eq!(b.get(0), *byte);
    }
    assert_eq!(b.get(5) & 1, 0);
    assert_eq!(b.get(2), 0xc1);
    assert!(!b.wires.high(4));
}

#[test]
fn a_full_cable_turns_input_away_and_asks_for_more_when_it_is_empty() {
    let mut b = bench();
    b.put(2, 0x01);
    b.put(1, 0x01);
    assert_eq!(b.uart.receive(&[7; 2000]), 16 + BURST);
    for _ in 0..BURST + 15 {
        assert_eq!(b.room.0.load(Ordering::Relaxed), 0);
        b.get(5);
        assert_eq!(b.get(5) & 1, 1);
        b.get(0);
    }
    assert_eq!(b.room.0.load(Ordering::Relaxed), 0);
    b.get(0);
    assert_eq!(b.room.0.load(Ordering::Relaxed), 1);
    b.uart.receive(&[7; 3]);
    b.put(2, 0x03);
    assert_eq!(b.get(5) & 1, 0, "the receiver was cleared");
}

#[test]
fn the_fifo_fills_again_from_the_cable_once_the_guest_has_seen_it_empty_with_an_edge_each_time() {
    let mut b = bench();
    b.put(2, 0x01);
    b.put(1, 0x01);
    let bytes: Vec<u8> = (0..40).collect();
    assert_eq!(b.uart.receive(&bytes), 40);
    assert_eq!(b.wires.edges(4), 1);
    let mut got = Vec::new();
    let read_all = |b: &mut Bench, got: &mut Vec<u8>| {
        while b.get(5) & 1 != 0 {
            got.push(b.get(0));
        }
    };
    for (edges, total) in [(2, 16), (3, 32), (3, 40), (3, 40)] {
        read_all(&mut b, &mut got);
        assert_eq!((b.wires.edges(4), got.len()), (edges, total));
    }
    assert_eq!(got, bytes);
    assert!(!b.wires.high(4));
}

#[test]
fn without_fifos_each_byte_has_an_interrupt_of_its_own() {
    let mut b = bench();
    b.put(1, 0x01);
    assert_eq!(b.uart.receive(b"abc"), 3);
    for (edges, byte) in [(1, b'a'), (2, b'b'), (3, b'c')] {
        assert_eq!(b.wires.edges(4), edges);
        assert_eq!(b.get(0), byte);
    }
    assert!(!b.wires.high(4));
}

#[test]
fn what_is_on_the_cable_survives_clearing_the_fifo_and_waits_for_rts() {
    let mut b = bench();
    b.put(2, 0x01);
    b.put(4, 0x0b);
    b.put(1, 0x01);
    assert_eq!(b.uart.receive(&[vec![1; 16], vec![2; 16], vec![3; 16]].concat()), 48);
    b.put(2, 0x03);
    assert!(b.wires.high(4));
    for _ in 0..16 {
        assert_eq!(b.get(0), 2);
    }
    b.put(4, 0x09);
    assert_eq!(b.get(5) & 1, 0);
    assert_eq!(b.get(5) & 1, 0, "held off");
    assert!(!b.wires.high(4));
    let saved = b.uart.save();
    b.uart.restore(&saved).expect("its own format");
    b.put(4, 0x0b);
    assert!(b.wires.high(4));
    assert_eq!(b.get(0), 3);
}

#[test]
fn input_waits_until_a_driver_has_opened_the_port_and_what_it_discards_comes_again() {
    let mut b = bench();
    assert_eq!(b.uart.receive(b"early"), 0, "nobody receives");
    // What Linux does to a port that it opens: clears FIFOs, reads away what may be there, enables interrupts, and then switches
    // the FIFOs on.
    for value in [1, 7, 0] {
        b.put(2, value);
    }
    for register in [5, 0, 2, 6] {
        assert_ne!((register, b.get(register)), (0, b'e'));
    }
    assert_eq!(b.room.0.load(Ordering::Relaxed), 0);
    b.put(1, 0x05);
    assert_eq!(b.room.0.load(Ordering::Relaxed), 1);
    assert_eq!(b.uart.receive(b"early"), 5);
    b.put(2, 0x01);
    b.put(2, 0x81);
    b.put(4, 0x0b);
    assert!(b.wires.high(4));
    for byte in b"ear" {
        assert_eq!(b.get(0), *byte);
    }
    // Closing and opening it again loses nothing either.
    b.put(1, 0);
    b.put(2, 7);
    b.put(2, 0);
    assert_eq!((b.get(5) & 1, b.get(0)), (0, 0));
    b.put(2, 1);
    b.put(1, 1);
    assert!(b.wires.high(4));
    assert_eq!((b.get(0), b.get(0)), (b'l', b'y'));
}

#[test]
fn who_polls_for_input_receives_it_and_who_polls_to_send_does_not() {
    let mut b = bench();
    assert_eq!(b.uart.receive(b"ab"), 0);
    for _ in 0..100 {
        assert_eq!(b.get(5), 0x60);
        b.put(0, b'x');
        assert_eq!(b.get(5), 0x60);
        assert_eq!(b.get(1), 0);
    }
    assert_eq!(b.room.0.load(Ordering::Relaxed), 0);
    for _ in 0..=POLLS {
        assert_eq!(b.get(5) & 1, 0);
    }
    assert_eq!(b.room.0.load(Ordering::Relaxed), 1);
    assert_eq!(b.uart.receive(b"ab"), 2);
    for byte in b"ab" {
        assert_eq!(b.get(5) & 1, 1);
        assert_eq!(b.get(0), *byte);
        b.put(0, *byte);
        assert_eq!(b.get(5) & 0x60, 0x60);
    }
}

#[test]
fn what_came_over_the_loop_is_cleared_for_good() {
    let mut b = bench();
    b.put(4, 0x10);
    b.put(2, 1);
    b.put(0, b'x');
    b.put(4, 0);
    b.put(2, 3);
    b.put(1, 1);
    assert_eq!(b.get(5) & 1, 0);
}

#[test]
fn loopback_hears_itself_and_overruns() {
    let mut b = bench();
    b.put(4, 0x10);
    b.put(1, 0x05);
    assert_eq!(b.uart.receive(b"x"), 0);
    b.put(0, 1);
    b.put(0, 2);
    assert_eq!(b.get(2), 6, "line status is most urgent");
    assert_eq!(b.get(5) & 3, 3);
    assert_eq!(b.get(5) & 3, 1, "reading it clears the overrun");
    assert_eq!(b.get(2), 4);
    assert_eq!(b.get(0), 1);
    assert_eq!(*b.sent.0.lock().expect("not poisoned"), b"");
    b.put(4, 0);
    assert_eq!(b.room.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_guest_that_lowers_rts_is_left_alone_until_it_raises_it() {
    let mut b = bench();
    b.put(2, 0x01);
    b.put(4, 0x0b);
    b.put(1, 0x01);
    assert_eq!(b.uart.receive(b"a"), 1);
    b.put(4, 0x09);
    assert_eq!(b.uart.receive(b"bc"), 0);
    assert_eq!(b.get(0), b'a');
    assert_eq!(b.room.0.load(Ordering::Relaxed), 0, "an empty FIFO is no invitation");
    let saved = b.uart.save();
    b.uart.restore(&saved).expect("its own format");
    assert_eq!(b.uart.receive(b"bc"), 0, "held off still");
    b.put(4, 0x0b);
    assert_eq!(b.room.0.load(Ordering::Relaxed), 1);
    assert_eq!(b.uart.receive(b"bc"), 2);
}

#[test]
fn a_guest_without_flow_control_gets_its_input() {
    for controls in [&[][..], &[0x00], &[0x01], &[0x0b, 0x00], &[0x0b, 0x1b, 0x19, 0x01]] {
        let mut b = bench();
        for &control in controls {
            b.put(4, control);
        }
        b.put(1, 0x01);
        assert_eq!(b.uart.receive(b"x"), 1, "{controls:x?}");
    }
}

#[test]
fn modem_status_changes_interrupt_until_read() {
    let mut b = bench();
    assert_eq!(b.get(6), 0xb0);
    b.put(1, 8);
    b.put(4, 0x10);
    assert_eq!(b.get(2), 0);
    assert!(b.wires.high(4));
    assert_eq!(b.get(6), 0x0b);
    assert!(!b.wires.high(4));
    b.put(4, 0x14);
    assert_eq!(b.get(6), 0x40, "the ring indicator's beginning is no change");
    b.put(4, 0x10);
    assert_eq!(b.get(6), 0x04);
}

#[test]
fn the_divisor_hides_behind_its_latch() {
    let mut b = bench();
    b.put(3, 0x83);
    b.put(0, 1);
    b.put(1, 2);
    assert_eq!((b.get(0), b.get(1)), (1, 2));
    b.put(3, 0x03);
    assert_eq!((b.get(0), b.get(1)), (0, 0));
    assert!(b.sent.0.lock().expect("not poisoned").is_empty());
}

#[test]
fn a_saved_port_keeps_its_input() {
    let mut b = bench();
    b.put(2, 1);
    b.put(1, 1);
    b.uart.receive(b"hi");
    let saved = b.uart.save();
    let mut other = bench();
    other.uart.restore(&saved).expect("its own format");
    other.uart.resume();
    assert!(other.wires.high(4));
    assert_eq!((other.get(0), other.get(0)), (b'h', b'i'));
}

proptest! {
    #[test]
    fn no_register_access_panics(acts in acts()) {
        let mut b = bench();
        hammer(&mut b.uart, &COM1, &acts, &TestClock::new(), |uart| {
            uart.receive(&[1; 9]);
        });
        let saved = b.uart.save();
        b.uart.restore(&saved).expect("what can be reached can be restored");
    }
}

/// A sink whose reader has stopped.
struct Full(Arc<AtomicU32>);

impl ByteSink for Full {
    fn write(&mut self, bytes: &[u8]) {
        self.0.fetch_add(bytes.len() as u32, Ordering::Relaxed);
    }
    fn has_room(&mut self) -> bool {
        false
    }
}

#[test]
fn a_sink_without_room_keeps_the_transmitter_busy_until_it_has_some() {
    let wires = Wires::new();
    let sent = Arc::new(AtomicU32::new(0));
    let mut uart = Uart::new(wires.line(4), Box::new(Full(Arc::clone(&sent))), None);
    assert_eq!(inb(&mut uart, REGISTERS, 5), 0x60);
    outb(&mut uart, REGISTERS, 0, b'a');
    assert_eq!(inb(&mut uart, REGISTERS, 5), 0, "neither register is empty");
    outb(&mut uart, REGISTERS, 1, 2);
    assert!(!wires.high(4));
    assert_eq!(inb(&mut uart, REGISTERS, 2), 1);
    // Whoever sends all the same loses nothing.
    outb(&mut uart, REGISTERS, 0, b'b');
    assert_eq!(sent.load(Ordering::Relaxed), 2);
    uart.output_room();
    assert!(wires.high(4));
    assert_eq!(inb(&mut uart, REGISTERS, 5), 0x60);
    assert_eq!(inb(&mut uart, REGISTERS, 2), 2);
    assert!(!wires.high(4));
    // Room that nobody waited for is no news.
    uart.output_room();
    assert!(!wires.high(4));
}

#[test]
fn a_transmitter_that_was_busy_when_saved_is_empty_where_it_is_restored() {
    let wires = Wires::new();
    let mut busy = Uart::new(wires.line(4), Box::new(Full(Arc::default())), None);
    outb(&mut busy, REGISTERS, 1, 2);
    outb(&mut busy, REGISTERS, 0, b'a');
    let mut b = bench();
    b.uart.restore(&busy.save()).expect("its own kind");
    b.uart.resume();
    assert!(b.wires.high(4));
    assert_eq!(b.get(5), 0x60);
}
