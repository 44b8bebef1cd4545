//! The card between a driver that writes rings by hand, and a backend that remembers.

use super::*;
use crate::Staff;
use crate::testkit::{Board, NEXT, VERSION_1, WRITE};
use ::net::{Busy, PartialChecksum, Segment, SegmentKind};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const BUFFER: u64 = 0x2000;

#[derive(Default)]
struct Cable {
    sent: Vec<(Vec<u8>, Offload)>,
    coming: VecDeque<(Vec<u8>, Offload)>,
    busy: bool,
    /// Frames come back at once.
    echoes: bool,
    resets: Vec<Offloads>,
}

struct Plug {
    cable: Arc<Mutex<Cable>>,
    wake: OwnedFd,
    offloads: Offloads,
}

impl Backend for Plug {
    fn offloads(&self) -> Offloads {
        self.offloads
    }
    fn reset(&mut self, deliver: Offloads) {
        self.cable.lock().unwrap().resets.push(deliver);
    }
    fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
    fn deadline(&self) -> Option<Duration> {
        None
    }
    fn poll(&mut self) {}
    fn send(&mut self, frame: Frame<'_>) -> Result<(), Busy> {
        let mut cable = self.cable.lock().unwrap();
        if cable.busy {
            return Err(Busy);
        }
        cable.sent.push((frame.bytes.to_vec(), frame.offload));
        if cable.echoes {
            cable.coming.push_back((frame.bytes.to_vec(), Offload::NONE));
        }
        Ok(())
    }
    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        let (frame, offload) = self.cable.lock().unwrap().coming.pop_front()?;
        *into = frame;
        Some(offload)
    }
}

const ALL: Offloads = Offloads { checksum: true, tcp4: true, tcp6: true };

fn card(offloads: Offloads) -> (Board, Arc<Mutex<Cable>>) {
    let cable = Arc::new(Mutex::new(Cable::default()));
    let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let plug = Plug { cable: Arc::clone(&cable), wake, offloads };
    (Board::new(Box::new(Net::new(MAC, Box::new(plug))), Staff::Caller), cable)
}

fn up(board: &mut Board, features: u64) {
    assert_eq!(board.negotiate(VERSION_1 | features), 11);
    board.set_up(RECEIVE, 8);
    board.set_up(TRANSMIT, 8);
    board.write(20, 1, 15);
}

fn offload() -> Offload {
    Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segment: Some(Segment { kind: SegmentKind::Tcp4, headers: 54, size: 1460 }),
    }
}

#[test]
fn the_address_is_read_and_what_the_backend_cannot_is_not_offered() {
    let (mut board, _) = card(Offloads::default());
    let mac: Vec<u8> = (0..6).map(|at| board.read(0x2000 + at, 1) as u8).collect();
    assert_eq!(mac, MAC);
    assert_eq!(board.read(0x2006, 2), 1, "the link is up");
    board.write(0, 4, 0);
    assert_eq!(board.read(4, 4) & 0x1d83, 0, "nothing to do with checksums");
    let (mut board, _) = card(ALL);
    board.write(0, 4, 0);
    assert_eq!(board.read(4, 4) & 0x1d83, 0x1983);
}

#[test]
fn a_frame_of_several_pieces_goes_out_with_its_header_understood() {
    let (mut board, cable) = card(ALL);
    up(&mut board, feature::CSUM | feature::HOST_TSO4);
    let frame: Vec<u8> = (0..3000).map(|at| at as u8).collect();
    let bytes = [&offload().to_header()[..], &frame].concat();
    board.memory.write(x86::Gpa(BUFFER), &bytes).unwrap();
    board.descriptor_on(TRANSMIT, 0, BUFFER, 100, NEXT, 1);
    board.descriptor_on(TRANSMIT, 1, BUFFER + 100, bytes.len() as u32 - 100, 0, 0);
    board.offer_on(TRANSMIT, 0);
    assert_eq!(cable.lock().unwrap().sent, [(frame, offload())]);
    assert_eq!(board.used_of(TRANSMIT), [(0, 0)]);
}

#[test]
fn what_the_backend_does_not_take_waits_and_is_sent_once() {
    let (mut board, cable) = card(ALL);
    up(&mut board, 0);
    cable.lock().unwrap().busy = true;
    for head in 0..4 {
        board.memory.write(x86::Gpa(BUFFER + 12), &[head as u8; 60]).unwrap();
        board.descriptor_on(TRANSMIT, head, BUFFER, 72, 0, 0);
        board.offer_on(TRANSMIT, head);
    }
    assert_eq!(board.used_of(TRANSMIT).len(), 1, "one is taken out, the others wait in the ring");
    cable.lock().unwrap().busy = false;
    board.ring_on(TRANSMIT);
    assert_eq!(cable.lock().unwrap().sent.len(), 4);
    assert_eq!(cable.lock().unwrap().sent[0].0, [0; 60]);
}

#[test]
fn a_long_frame_is_spread_over_buffers_and_waits_until_they_suffice() {
    let (mut board, cable) = card(ALL);
    up(&mut board, feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4);
    let frame: Vec<u8> = (0..2500).map(|at| (at / 3) as u8).collect();
    cable.lock().unwrap().coming.push_back((frame.clone(), offload()));
    for head in 0..3_u16 {
        let at = BUFFER + 0x1000 * u64::from(head);
        board.descriptor_on(RECEIVE, head, at, 1000, WRITE, 0);
        assert!(board.used_of(RECEIVE).is_empty(), "given back before it was whole");
        board.offer_on(RECEIVE, head);
    }
    assert_eq!(board.used_of(RECEIVE), [(0, 1000), (1, 1000), (2, 512)]);
    let parts = [(0, 1000), (0x1000, 1000), (0x2000, 512)];
    let all: Vec<u8> = parts.iter().flat_map(|&(at, len)| board.bytes(BUFFER + at, len)).collect();
    let mut header = offload().to_header();
    header[10] = 3;
    assert_eq!(all, [&header[..], &frame].concat());
}

#[test]
fn an_answer_that_is_there_at_once_needs_no_other_doorbell() {
    let (mut board, cable) = card(ALL);
    up(&mut board, 0);
    cable.lock().unwrap().echoes = true;
    board.descriptor_on(RECEIVE, 0, BUFFER + 0x1000, 1000, WRITE, 0);
    board.offer_on(RECEIVE, 0);
    board.descriptor_on(TRANSMIT, 0, BUFFER, 72, 0, 0);
    board.offer_on(TRANSMIT, 0);
    assert_eq!(board.used_of(RECEIVE), [(0, 72)]);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_cut() {
    let (mut board, cable) = card(ALL);
    up(&mut board, 0);
    cable.lock().unwrap().coming.push_back((vec![1; 500], Offload::NONE));
    cable.lock().unwrap().coming.push_back((vec![2; 60], Offload::NONE));
    for head in 0..2 {
        board.descriptor_on(RECEIVE, head, BUFFER + 0x1000 * u64::from(head), 100, WRITE, 0);
        board.offer_on(RECEIVE, head);
    }
    assert_eq!(board.used_of(RECEIVE), [(0, 100), (1, 72)]);
    assert_eq!(board.bytes(BUFFER + 0x1000 + 12, 60), [2; 60]);
}

#[test]
fn a_reset_brings_the_backend_back_for_the_next_driver() {
    let (mut board, cable) = card(ALL);
    up(&mut board, feature::GUEST_CSUM);
    up(&mut board, feature::GUEST_CSUM | feature::GUEST_TSO4);
    let resets = cable.lock().unwrap().resets.clone();
    assert_eq!(
        resets,
        [
            Offloads { checksum: true, tcp4: false, tcp6: false },
            Offloads { checksum: true, tcp4: true, tcp6: false }
        ]
    );
}

#[test]
fn hostile_frames_are_dropped_and_given_back() {
    let (mut board, cable) = card(ALL);
    up(&mut board, 0);
    // No header; too long; not RAM.
    for (head, (at, len)) in [(BUFFER, 5), (BUFFER, 0x2_0000), (1 << 40, 100)].into_iter().enumerate() {
        board.descriptor_on(TRANSMIT, head as u16, at, len, 0, 0);
        board.offer_on(TRANSMIT, head as u16);
    }
    assert_eq!(board.used_of(TRANSMIT).len(), 3);
    assert!(cable.lock().unwrap().sent.is_empty());
    assert_eq!(board.status() & 64, 0, "none of it is the ring's fault");
}
