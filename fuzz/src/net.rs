//! Frames from a hostile guest against the NAT of user networking: ARP, DHCP, UDP, TCP, ICMP echo and fragments, on a host that
//! is as hostile, and time that passes in leaps.
//!
//! A frame is either what the input says byte by byte, or has headers that are right where the input doesn't choose otherwise,
//! so that what is behind them is reached. Whatever happens, frames for the guest have sound headers.

use crate::Input;
use control::{Forward, Protocol, UserNet};
use net::nat::Nat;
use net::nat::host::{Datagrams, Event, Host, Listener, Stream};
use net::{Frame, MAX_FRAME, Offload, Offloads, PartialChecksum};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const SOURCES: [[u8; 4]; 6] =
    [GUEST, [10, 0, 2, 77], [10, 0, 2, 2], [0, 0, 0, 0], [255, 255, 255, 255], [8, 8, 8, 8]];
const PEERS: [[u8; 4]; 9] = [
    [10, 0, 2, 2],
    [10, 0, 2, 3],
    [8, 8, 8, 8],
    [192, 0, 2, 1],
    [127, 0, 0, 1],
    [255, 255, 255, 255],
    [10, 0, 2, 255],
    [224, 0, 0, 1],
    [0, 0, 0, 0],
];
const PORTS: [u16; 8] = [53, 67, 68, 80, 1, 0, 0xffff, 49152];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Runs the network as `bytes` say.
///
/// # Panics
/// A finding.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mood = Arc::new(Mutex::new(Mood(input.u64() | 1)));
    let host = Fake { now: Duration::ZERO, mood, tokens: Vec::new() };
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let forward = |protocol| Forward { protocol, host: at, guest: None, guest_port: 22 };
    let config = UserNet {
        host_loopback: input.flag(),
        forwards: vec![forward(Protocol::Tcp), forward(Protocol::Udp)],
    };
    let mut nat = Nat::new(host, &config, input.u64()).expect("this host refuses no port");
    let mut last = None;
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        step(&mut nat, &mut input, &mut last);
    }
    drain(&mut nat, &mut last);
}

/// What is needed to answer a segment of the network's.
#[derive(Clone, Copy)]
struct Segment {
    from: ([u8; 4], u16),
    to: ([u8; 4], u16),
    sequence: u32,
    acknowledged: u32,
    length: u32,
}

fn step(nat: &mut Nat<Fake>, input: &mut Input<'_>, last: &mut Option<Segment>) {
    match input.below(11) {
        0 => {
            let length = usize::from(input.u16() % 1600);
            let offload = offload(input);
            nat.frame(Frame { bytes: input.bytes(length), offload });
        }
        1 => {
            let frame = arp(input);
            nat.frame(Frame::complete(&frame));
        }
        2 => ipv4(nat, input, UDP, udp),
        3 => ipv4(nat, input, TCP, tcp),
        4 => ipv4(nat, input, ICMP, icmp),
        5 => dhcp(nat, input),
        6 | 7 => answer(nat, input, *last),
        8 => {
            nat.host().now += Duration::from_millis(1 << input.below(24));
            nat.news();
        }
        9 => {
            nat.forget(Offloads { checksum: input.flag(), tcp4: input.flag(), tcp6: false });
            *last = None;
        }
        _ => drain(nat, last),
    }
    if input.flag() {
        nat.news();
        drain(nat, last);
    }
}

fn offload(input: &mut Input<'_>) -> Offload {
    let mut header = [0; net::frame::HEADER];
    header[0] = input.u8() & 1;
    header[1] = input.pick(&[0, 1, 4, 0x81]);
    for at in [2, 4, 6, 8] {
        header[at..at + 2].copy_from_slice(&input.u16().to_le_bytes());
    }
    Offload::from_header(&header).unwrap_or_default()
}

/// The checksum is left to the other side, so that none has to be right.
const UNSUMMED: Offload =
    Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }), segment: None };

fn ethernet(kind: u16) -> Vec<u8> {
    [&[0x52, 0x55, 10, 0, 2, 2][..], &GUEST_MAC, &kind.to_be_bytes()].concat()
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = ethernet(0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, input.pick(&[1, 2, 3])]);
    frame.extend(GUEST_MAC);
    frame.extend(input.pick(&SOURCES));
    frame.extend([0; 6]);
    frame.extend(input.pick(&PEERS));
    frame
}

/// An IPv4 header that is right, but for what the input wants wrong, and what `fill` puts behind it.
fn ipv4(nat: &mut Nat<Fake>, input: &mut Input<'_>, protocol: u8, fill: fn(&mut Input<'_>, &mut Vec<u8>)) {
    let (from, to) = (input.pick(&SOURCES), input.pick(&PEERS));
    let mut payload = Vec::new();
    fill(input, &mut payload);
    let fragment = if input.below(4) == 0 { input.u16() } else { 0 };
    let lie = if input.below(8) == 0 { input.u16() } else { 0 };
    send(nat, protocol, from, to, &payload, (fragment, lie));
}

fn send(
    nat: &mut Nat<Fake>,
    protocol: u8,
    from: [u8; 4],
    to: [u8; 4],
    payload: &[u8],
    (fragment, lie): (u16, u16),
) {
    let mut frame = ethernet(0x0800);
    let total = ((IPV4 + payload.len()) as u16).wrapping_add(lie);
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 7]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    let sum = !sum(&frame[ETHERNET..]);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(payload);
    nat.frame(Frame { bytes: &frame, offload: UNSUMMED });
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn udp(input: &mut Input<'_>, to: &mut Vec<u8>) {
    let (source, destination) = (input.pick(&PORTS), input.pick(&PORTS));
    let length = usize::from(input.u8());
    to.extend(source.to_be_bytes());
    to.extend(destination.to_be_bytes());
    let lie = if input.below(8) == 0 { input.u16() } else { 0 };
    to.extend(((8 + length) as u16).wrapping_add(lie).to_be_bytes());
    to.extend([0, 0]);
    let data = input.bytes(length);
    to.extend(data);
    to.resize(8 + length, 0);
}

fn tcp(input: &mut Input<'_>, to: &mut Vec<u8>) {
    let ends = (input.pick(&PORTS), input.pick(&PORTS));
    let numbers = (input.u32(), input.u32());
    segment(input, to, ends, numbers);
}

fn segment(
    input: &mut Input<'_>,
    to: &mut Vec<u8>,
    (source, destination): (u16, u16),
    (sequence, acknowledged): (u32, u32),
) {
    to.extend(source.to_be_bytes());
    to.extend(destination.to_be_bytes());
    to.extend(sequence.to_be_bytes());
    to.extend(acknowledged.to_be_bytes());
    let options = 4 * input.pick(&[0, 0, 0, 1, 2, 10]);
    let lie = if input.below(16) == 0 { input.u8() } else { 0 };
    to.push(((5 + options as u8 / 4) << 4).wrapping_add(lie));
    to.push(input.pick(&[2, 0x10, 0x18, 0x11, 4, 0x14, 1, 0x12, 0, 0xff]));
    to.extend(input.u16().to_be_bytes());
    to.extend([0; 4]);
    let start = to.len();
    to.extend(input.bytes(options));
    to.resize(start + options, 1);
    let length = usize::from(input.u8());
    to.extend(input.bytes(length));
}

fn icmp(input: &mut Input<'_>, to: &mut Vec<u8>) {
    let mut message = vec![input.pick(&[8, 0, 3]), 0, 0, 0];
    let length = usize::from(input.u8());
    message.extend(input.bytes(length));
    message.resize(message.len().max(8), 0);
    let sum = !sum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    to.extend(message);
}

fn dhcp(nat: &mut Nat<Fake>, input: &mut Input<'_>) {
    let mut message = vec![1, 1, 6, 0];
    message.extend(input.bytes(24));
    message.resize(28, 0);
    message.extend([2, 0, 0, 0, 0, input.u8()]);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, input.pick(&[1, 3, 8, 4, 7, 0])]);
    let length = usize::from(input.u8());
    message.extend(input.bytes(length));
    if input.flag() {
        message.push(255);
    }
    let mut datagram = vec![0, 68, 0, 67];
    datagram.extend(((8 + message.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(message);
    let to = input.pick(&[[255, 255, 255, 255], [10, 0, 2, 2]]);
    send(nat, UDP, input.pick(&SOURCES), to, &datagram, (0, 0));
}

/// Goes on with the connection that was heard of last, mostly as its other end would.
fn answer(nat: &mut Nat<Fake>, input: &mut Input<'_>, last: Option<Segment>) {
    let Some(last) = last else { return };
    let off = |input: &mut Input<'_>| if input.below(4) == 0 { input.number() as u32 } else { 0 };
    let sequence = last.acknowledged.wrapping_add(off(input));
    let acknowledged = last.sequence.wrapping_add(last.length).wrapping_add(off(input));
    let mut payload = Vec::new();
    segment(input, &mut payload, (last.to.1, last.from.1), (sequence, acknowledged));
    send(nat, TCP, last.to.0, last.from.0, &payload, (0, 0));
}

/// Takes all that there is for the guest.
fn drain(nat: &mut Nat<Fake>, last: &mut Option<Segment>) {
    let mut frame = Vec::new();
    for _ in 0..300 {
        let Some(offload) = nat.produce(&mut frame) else { return };
        sound(&frame, offload);
        if frame[12..14] == [8, 0] && frame[ETHERNET + 9] == TCP {
            *last = Some(understood(&frame));
        }
    }
}

fn sound(frame: &[u8], offload: Offload) {
    assert!((ETHERNET..=MAX_FRAME).contains(&frame.len()), "{} bytes", frame.len());
    assert_ne!(frame[..6], GUEST_MAC.map(|_| 0), "to nobody");
    if frame[12..14] == [8, 6] {
        assert_eq!(frame.len(), ETHERNET + 28);
        return;
    }
    assert_eq!(frame[12..14], [8, 0], "neither ARP nor IPv4");
    let packet = &frame[ETHERNET..];
    assert!(packet.len() >= IPV4 && packet[0] == 0x45);
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    assert_eq!(sum(&packet[..IPV4]), 0xffff, "the header's checksum");
    assert!(offload.segment.is_some() || packet.len() <= 1500, "longer than the network takes");
}

fn understood(frame: &[u8]) -> Segment {
    let packet = &frame[ETHERNET..];
    let segment = &packet[IPV4..];
    let word =
        |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let address = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
    let header = usize::from(segment[12] >> 4) * 4;
    let counted = u32::from(segment[13] & 3 != 0);
    Segment {
        from: (address(12), port(0)),
        to: (address(16), port(2)),
        sequence: word(4),
        acknowledged: word(8),
        length: (segment.len() - header) as u32 + counted,
    }
}

/// What the host does next, made of a number that the input gives.
struct Mood(u64);

impl Mood {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

type Moods = Arc<Mutex<Mood>>;

fn next(mood: &Moods) -> usize {
    (mood.lock().expect("not poisoned").next() >> 33) as usize
}

/// Now and then, what hosts say.
fn refuse(mood: &Moods) -> io::Result<()> {
    Err(match next(mood) % 16 {
        0 => io::ErrorKind::ConnectionRefused.into(),
        1 => io::ErrorKind::NetworkUnreachable.into(),
        2 => io::ErrorKind::PermissionDenied.into(),
        3 => io::ErrorKind::ConnectionReset.into(),
        4 => io::ErrorKind::Interrupted.into(),
        5 | 6 => io::ErrorKind::WouldBlock.into(),
        7 => io::ErrorKind::TimedOut.into(),
        _ => return Ok(()),
    })
}

/// A host.
struct Fake {
    now: Duration,
    mood: Moods,
    tokens: Vec<u64>,
}

impl Fake {
    fn socket(&mut self, token: u64) -> io::Result<Box<Socket>> {
        refuse(&self.mood)?;
        if self.tokens.len() < 64 {
            self.tokens.push(token);
        }
        Ok(Box::new(Socket(Arc::clone(&self.mood))))
    }
}

impl Host for Fake {
    fn now(&self) -> Duration {
        self.now
    }
    fn poll(&mut self, events: &mut Vec<Event>) {
        for &token in &self.tokens {
            let mood = next(&self.mood);
            if mood & 1 == 0 {
                events.push(Event { token, readable: mood & 2 == 0, writable: mood & 4 == 0 });
            }
        }
    }
    fn connect(&mut self, _: SocketAddr, token: u64) -> io::Result<Box<dyn Stream>> {
        Ok(self.socket(token)?)
    }
    fn datagrams(&mut self, _: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        Ok(self.socket(token)?)
    }
    fn echo(&mut self, _: Ipv4Addr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        Ok(self.socket(token)?)
    }
    fn listen(&mut self, _: SocketAddr, token: u64) -> io::Result<Box<dyn Listener>> {
        self.tokens.push(token);
        Ok(Box::new(Socket(Arc::clone(&self.mood))))
    }
    fn bind(&mut self, _: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        self.tokens.push(token);
        Ok(Box::new(Socket(Arc::clone(&self.mood))))
    }
    fn is_own(&self, address: Ipv4Addr) -> bool {
        address == Ipv4Addr::new(192, 0, 2, 1)
    }
    fn resolvers(&mut self) -> Vec<SocketAddr> {
        vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]
    }
}

/// Any socket.
struct Socket(Moods);

impl Socket {
    fn some(&self, most: usize) -> io::Result<usize> {
        refuse(&self.0)?;
        Ok(next(&self.0) % (most + 1))
    }
}

impl Stream for Socket {
    fn connected(&mut self) -> io::Result<()> {
        refuse(&self.0)
    }
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.some(buffer.len())
    }
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.some(data.len())
    }
    fn finish(&mut self) {}
    fn reset(&mut self) {}
}

impl Datagrams for Socket {
    fn send(&mut self, _: &[u8], _: Option<SocketAddr>) -> io::Result<()> {
        refuse(&self.0)
    }
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + (next(&self.0) % 8) as u16));
        Ok((self.some(buffer.len())?, peer))
    }
}

impl Listener for Socket {
    fn accept(&mut self, _: u64) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        refuse(&self.0)?;
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Ok((Box::new(Socket(Arc::clone(&self.0))), peer))
    }
    fn address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
    }
}
