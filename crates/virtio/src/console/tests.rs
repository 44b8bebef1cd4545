//! Ports between a driver that writes rings by hand and streams that remember.

use super::spec::{self, event, message};
use super::*;
use crate::testkit::{Board, VERSION_1, WRITE};
use chipset::Device as _;
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use workers::Staff;

const BUFFER: u64 = 0x2000;
const MULTIPORT: u64 = feature::MULTIPORT;

struct Pipe(PipeReader);

impl Source for Pipe {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn receive(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut bytes = [0; 100];
        let count = self.0.read(&mut bytes)?;
        into.extend(&bytes[..count]);
        Ok(count > 0)
    }
}

#[derive(Clone)]
struct Paper {
    text: Arc<Mutex<Vec<u8>>>,
    room: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
}

impl Sink for Paper {
    fn has_room(&mut self) -> bool {
        self.room.load(Ordering::SeqCst)
    }
    fn send(&mut self, bytes: &[u8]) {
        self.text.lock().unwrap().extend(bytes);
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A console of two ports: the first has a source, the second a sink.
fn console() -> (Board, io::PipeWriter, Paper) {
    let (reader, writer) = io::pipe().unwrap();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let paper = Paper { text: Arc::default(), room: Arc::new(AtomicBool::new(true)), wake };
    let ports = vec![
        Port { name: "in".into(), is_console: true, source: Some(Box::new(Pipe(reader))), sink: None },
        Port { name: "out".into(), is_console: false, source: None, sink: Some(Box::new(paper.clone())) },
    ];
    (Board::new(Box::new(Console::new(ports).unwrap()), Staff::Caller), writer, paper)
}

/// The driver is ready, with buffers for what it is told.
fn up(board: &mut Board) {
    assert_eq!(board.negotiate(VERSION_1 | MULTIPORT), 11);
    for (ring, size) in [(0, 8), (1, 4), (2, 8), (3, 8), (4, 4), (5, 8)] {
        board.set_up(ring, size);
    }
    board.write(20, 1, 15);
    for index in 0..8 {
        board.descriptor_on(CONTROL_RECEIVE, index, BUFFER + 0x100 * u64::from(index), 0x100, WRITE, 0);
        board.offer_on(CONTROL_RECEIVE, index);
    }
}

/// Tells the device something.
fn tell(board: &mut Board, port: u32, what: u16, value: u16) {
    let index = board.used_of(CONTROL_TRANSMIT).len() as u16 % 8;
    board.memory.write(x86::Gpa(BUFFER + 0x1000), &message(port, what, value, &[])).unwrap();
    board.descriptor_on(CONTROL_TRANSMIT, index, BUFFER + 0x1000, 8, 0, 0);
    board.offer_on(CONTROL_TRANSMIT, index);
    // Threads would have been woken by the message; whoever rings has to.
    board.ring_on(CONTROL_TRANSMIT);
}

/// What the driver has been told.
fn told(board: &Board) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let used = board.used_of(CONTROL_RECEIVE);
    let read = |(index, len): &(u32, u32)| {
        let bytes = board.bytes(BUFFER + 0x100 * u64::from(*index), *len as usize);
        let (port, what, value) = spec::parse(bytes[..8].try_into().unwrap());
        (port, what, value, bytes[8..].to_vec())
    };
    used.iter().map(read).collect()
}

#[test]
fn the_driver_hears_of_ports_and_then_of_their_names() {
    let (mut board, _writer, _) = console();
    assert_eq!(board.read(0x2000 + 4, 4), 2);
    up(&mut board);
    assert_eq!(told(&board), []);
    tell(&mut board, u32::MAX, event::DEVICE_READY, 1);
    assert_eq!(told(&board), [(0, event::PORT_ADD, 1, vec![]), (1, event::PORT_ADD, 1, vec![])]);
    tell(&mut board, 0, event::PORT_READY, 1);
    tell(&mut board, 1, event::PORT_READY, 1);
    tell(&mut board, 2, event::PORT_READY, 1);
    let expected = [
        (0, event::CONSOLE_PORT, 1, vec![]),
        (0, event::PORT_NAME, 1, b"in\0".to_vec()),
        (0, event::PORT_OPEN, 1, vec![]),
        (1, event::PORT_NAME, 1, b"out\0".to_vec()),
        (1, event::PORT_OPEN, 1, vec![]),
    ];
    assert_eq!(told(&board)[2..], expected);
}

#[test]
fn bytes_wait_for_somebody_to_open_the_port_and_the_end_comes_after_the_last() {
    let (mut board, mut writer, _) = console();
    up(&mut board);
    writer.write_all(&[b'x'; 150]).unwrap();
    drop(writer);
    for index in 0..4 {
        board.descriptor_on(0, index, BUFFER + 0x2000 + 0x100 * u64::from(index), 60, WRITE, 0);
        board.offer_on(0, index);
    }
    assert_eq!(board.used_of(0), []);
    tell(&mut board, 0, event::PORT_OPEN, 1);
    board.ring_on(0);
    assert_eq!(board.used_of(0), [(0, 60), (1, 40), (2, 50)], "a read of 100 bytes, and one of 50");
    tell(&mut board, 5, event::PORT_OPEN, 1);
    assert_eq!(told(&board), [(0, event::PORT_OPEN, 0, vec![])]);
    assert_eq!(board.bytes(BUFFER + 0x2000, 60), [b'x'; 60]);
}

#[test]
fn bytes_of_the_guests_stay_in_the_ring_until_there_is_room() {
    let (mut board, _writer, paper) = console();
    up(&mut board);
    board.memory.write(x86::Gpa(BUFFER + 0x3000), b"hello").unwrap();
    board.descriptor_on(5, 0, BUFFER + 0x3000, 5, 0, 0);
    paper.room.store(false, Ordering::SeqCst);
    board.offer_on(5, 0);
    assert_eq!((board.used_of(5), paper.text.lock().unwrap().clone()), (vec![], vec![]));
    paper.room.store(true, Ordering::SeqCst);
    board.ring_on(5);
    assert_eq!((board.used_of(5), paper.text.lock().unwrap().clone()), (vec![(0, 0)], b"hello".to_vec()));
    // A port without a sink takes and drops.
    board.descriptor_on(1, 0, BUFFER + 0x3000, 5, 0, 0);
    board.offer_on(1, 0);
    assert_eq!(board.used_of(1), [(0, 0)]);
}

#[test]
fn a_driver_without_ports_has_the_first_one() {
    let (mut board, mut writer, _) = console();
    assert_eq!(board.negotiate(VERSION_1), 11);
    board.set_up(0, 8);
    board.set_up(1, 4);
    board.write(20, 1, 15);
    writer.write_all(b"key").unwrap();
    board.descriptor_on(0, 0, BUFFER, 60, WRITE, 0);
    board.offer_on(0, 0);
    assert_eq!(board.used_of(0), [(0, 3)]);
}

#[test]
fn a_stopped_console_goes_on_with_its_ports_open_and_a_reset_one_does_not() {
    let (mut board, mut writer, _) = console();
    up(&mut board);
    tell(&mut board, 0, event::PORT_OPEN, 1);
    board.transport.quiesce();
    board.transport.resume();
    board.descriptor_on(0, 0, BUFFER, 60, WRITE, 0);
    writer.write_all(b"key").unwrap();
    board.offer_on(0, 0);
    assert_eq!(board.used_of(0), [(0, 3)]);
    up(&mut board);
    writer.write_all(b"key").unwrap();
    board.descriptor_on(0, 0, BUFFER, 60, WRITE, 0);
    board.offer_on(0, 0);
    assert_eq!(board.used_of(0), []);
}

#[test]
fn a_driver_that_asks_without_listening_fills_no_memory() {
    let (mut board, _writer, _) = console();
    assert_eq!(board.negotiate(VERSION_1 | MULTIPORT), 11);
    for ring in 0..6 {
        board.set_up(ring, 4);
    }
    board.write(20, 1, 15);
    for _ in 0..1000 {
        tell(&mut board, u32::MAX, event::DEVICE_READY, 1);
    }
    assert_eq!(board.status(), 15);
}
