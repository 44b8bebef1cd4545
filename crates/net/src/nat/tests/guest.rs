//! A guest in these tests: smoltcp on the other end of the cable, UDP, ICMP and DHCP by hand.

use super::super::host::Host;
use super::super::packet::{self, Ends, IPV4};
use super::super::policy::{self, GATEWAY, GUEST};
use super::super::reassembly::Reassembly;
use super::super::{Nat, Os};
use crate::frame::{ETHERNET, Frame};
use control::UserNet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, HardwareAddress, Icmpv4Packet,
    IpAddress, IpCidr, IpEndpoint, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
const OUT: Ends = Ends { source: MAC, destination: policy::MAC };
/// Nothing here takes long; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a network card, and what the card is plugged into.
pub(super) struct Machine<H = Os> {
    pub(super) nat: Nat<H>,
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    reassembly: Reassembly,
    datagrams: VecDeque<Datagram>,
    messages: VecDeque<(Ipv4Addr, Vec<u8>)>,
    /// The longest frame that came, and how many resets did.
    pub(super) longest: usize,
    pub(super) resets: usize,
    next_port: u16,
    start: std::time::Instant,
}

/// From whom, to which port, what.
pub(super) type Datagram = ((Ipv4Addr, u16), u16, Vec<u8>);

/// What DHCP has given.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) resolver: Option<Ipv4Addr>,
    pub(super) prefix: u32,
}

impl Machine {
    pub(super) fn new(config: &UserNet) -> Self {
        Self::over(Nat::open(config).unwrap())
    }
}

impl<H: Host> Machine<H> {
    pub(super) fn over(nat: Nat<H>) -> Self {
        let mut card = Card::default();
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ethernet(MAC)), &mut card, Instant::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self {
            nat,
            interface,
            sockets: SocketSet::new(Vec::new()),
            card,
            reassembly: Reassembly::default(),
            datagrams: VecDeque::new(),
            messages: VecDeque::new(),
            longest: 0,
            resets: 0,
            next_port: 20_000,
            start: std::time::Instant::now(),
        }
    }

    /// Moves what can be moved once.
    pub(super) fn turn(&mut self) {
        let now = Instant::from_micros(self.start.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        for frame in self.card.out.drain(..) {
            self.nat.frame(Frame::complete(&frame));
        }
        self.nat.news();
        let mut frame = Vec::new();
        for _ in 0..64 {
            let Some(offload) = self.nat.produce(&mut frame) else { break };
            self.longest = self.longest.max(frame.len());
            if offload.checksum.is_some() {
                complete(&mut frame);
            }
            self.arrived(frame.clone());
        }
    }

    /// Turns until something is so.
    pub(super) fn until(&mut self, mut so: impl FnMut(&mut Self) -> bool) {
        let start = std::time::Instant::now();
        while !so(self) {
            assert!(start.elapsed() < PATIENCE, "it takes too long");
            self.turn();
            if self.card.inside.is_empty() {
                std::thread::yield_now();
            }
        }
    }

    fn arrived(&mut self, frame: Vec<u8>) {
        if frame[12..14] == [8, 0] {
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET..]).expect("a whole packet");
            assert!(packet.verify_checksum());
            if packet.more_frags() || packet.frag_offset() != 0 {
                if let Some(whole) = self.reassembly.add(&packet, Duration::ZERO) {
                    self.sort(&whole);
                }
            } else {
                self.sort(&frame[ETHERNET..]);
            }
        }
        self.card.inside.push_back(frame);
    }

    fn sort(&mut self, bytes: &[u8]) {
        let packet = Ipv4Packet::new_unchecked(bytes);
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        match packet.next_header() {
            IpProtocol::Udp => {
                let datagram = UdpPacket::new_checked(packet.payload()).expect("a whole datagram");
                assert!(datagram.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)));
                self.datagrams.push_back((
                    (from, datagram.src_port()),
                    datagram.dst_port(),
                    datagram.payload().to_vec(),
                ));
            }
            IpProtocol::Icmp => {
                assert!(Icmpv4Packet::new_checked(packet.payload()).expect("a message").verify_checksum());
                self.messages.push_back((from, packet.payload().to_vec()));
            }
            IpProtocol::Tcp => {
                let segment = TcpPacket::new_checked(packet.payload()).expect("a whole segment");
                self.resets += usize::from(segment.rst());
            }
            _ => {}
        }
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 128 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Begins to connect.
    pub(super) fn connect(&mut self, (address, port): (Ipv4Addr, u16)) -> SocketHandle {
        let handle = self.add();
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let to = IpEndpoint::new(address.into(), port);
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        handle
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add();
        self.socket(handle).listen(port).unwrap();
        handle
    }

    pub(super) fn state(&mut self, handle: SocketHandle) -> State {
        self.socket(handle).state()
    }

    pub(super) fn peer(&mut self, handle: SocketHandle) -> Option<(Ipv4Addr, u16)> {
        let endpoint = self.socket(handle).remote_endpoint()?;
        match endpoint.addr {
            IpAddress::Ipv4(address) => Some((address, endpoint.port)),
            IpAddress::Ipv6(_) => None,
        }
    }

    pub(super) fn abort(&mut self, handle: SocketHandle) {
        self.socket(handle).abort();
    }

    pub(super) fn close(&mut self, handle: SocketHandle) {
        self.socket(handle).close();
    }

    /// Sends as much of `data` as there is room for.
    pub(super) fn send(&mut self, handle: SocketHandle, data: &[u8]) -> usize {
        self.socket(handle).send_slice(data).unwrap_or(0)
    }

    /// Bytes that have come.
    pub(super) fn received(&mut self, handle: SocketHandle) -> usize {
        self.socket(handle).recv_queue()
    }

    /// Sends `data`, then the end; returns all that came until the peer's end.
    pub(super) fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let mut left = data;
        let mut back = Vec::new();
        self.until(|machine| {
            let socket = machine.socket(handle);
            if socket.may_send() {
                left = &left[socket.send_slice(left).unwrap()..];
                if left.is_empty() {
                    socket.close();
                }
            }
            while let Ok(count @ 1..) = socket.recv(|data| {
                back.extend_from_slice(data);
                (data.len(), data.len())
            }) {
                assert!(count > 0);
            }
            left.is_empty()
                && matches!(
                    socket.state(),
                    State::TimeWait | State::Closed | State::CloseWait | State::LastAck
                )
        });
        back
    }

    fn emit(&mut self, frame: &[u8]) {
        let pieces = packet::fragments(frame, 77);
        if pieces.is_empty() {
            self.nat.frame(Frame::complete(frame));
        }
        for piece in pieces {
            self.nat.frame(Frame::complete(&piece));
        }
    }

    /// Tells who has the guest's address, as Linux does when it gets one.
    pub(super) fn announce(&mut self) {
        let mut frame = Vec::new();
        packet::push_arp(&mut frame, OUT, ArpOperation::Request, GUEST, (EthernetAddress([0; 6]), GATEWAY));
        self.emit(&frame);
    }

    pub(super) fn send_datagram(&mut self, port: u16, to: (Ipv4Addr, u16), data: &[u8]) {
        let mut frame = Vec::new();
        packet::push_udp(&mut frame, OUT, (GUEST, port), to, data);
        self.emit(&frame);
    }

    pub(super) fn datagram(&mut self) -> Option<Datagram> {
        self.datagrams.pop_front()
    }

    pub(super) fn ping(&mut self, to: Ipv4Addr, identifier: u16, sequence: u16, data: &[u8]) {
        let mut message = vec![8, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(data);
        let mut frame = Vec::new();
        packet::push_icmp(&mut frame, OUT, (GUEST, to), &message);
        self.emit(&frame);
    }

    /// The next ICMP message and who sent it.
    pub(super) fn icmp(&mut self) -> Option<(Ipv4Addr, Vec<u8>)> {
        self.messages.pop_front()
    }

    /// Asks for an address.
    pub(super) fn dhcp(&mut self) -> Lease {
        let mut wanted = None;
        for kind in [DhcpMessageType::Discover, DhcpMessageType::Request] {
            let request = DhcpRepr {
                message_type: kind,
                transaction_id: 0x1234,
                secs: 0,
                client_hardware_address: MAC,
                client_ip: Ipv4Addr::UNSPECIFIED,
                your_ip: Ipv4Addr::UNSPECIFIED,
                server_ip: Ipv4Addr::UNSPECIFIED,
                router: None,
                subnet_mask: None,
                relay_agent_ip: Ipv4Addr::UNSPECIFIED,
                broadcast: true,
                requested_ip: wanted,
                client_identifier: None,
                server_identifier: None,
                parameter_request_list: None,
                dns_servers: None,
                max_size: None,
                lease_duration: None,
                renew_duration: None,
                rebind_duration: None,
                additional_options: &[],
            };
            let mut bytes = vec![0; request.buffer_len()];
            request.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
            let mut frame = Vec::new();
            let ends = Ends { source: MAC, destination: EthernetAddress::BROADCAST };
            let nobody = (Ipv4Addr::UNSPECIFIED, 68);
            packet::push_udp(&mut frame, ends, nobody, (Ipv4Addr::BROADCAST, 67), &bytes);
            self.emit(&frame);
            let mut answer = None;
            self.until(|machine| {
                answer = machine.datagram();
                answer.is_some()
            });
            let (from, to, bytes) = answer.unwrap();
            assert_eq!((from, to), ((GATEWAY, 67), 68));
            let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
            let reply = DhcpRepr::parse(&packet).unwrap();
            assert_eq!(reply.transaction_id, 0x1234);
            if kind == DhcpMessageType::Request {
                assert_eq!(reply.message_type, DhcpMessageType::Ack);
                return Lease {
                    address: reply.your_ip,
                    router: reply.router,
                    resolver: reply.dns_servers.and_then(|list| list.first().copied()),
                    prefix: reply.subnet_mask.map_or(0, |mask| u32::from(mask).count_ones()),
                };
            }
            wanted = Some(reply.your_ip);
        }
        unreachable!("a request was made")
    }
}

/// What a driver does with a checksum that was left to it.
fn complete(frame: &mut [u8]) {
    let packet = Ipv4Packet::new_unchecked(&frame[ETHERNET..]);
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    TcpPacket::new_unchecked(&mut frame[ETHERNET + IPV4..]).fill_checksum(&from.into(), &to.into());
}

/// The guest's end of the cable.
#[derive(Default)]
struct Card {
    inside: VecDeque<Vec<u8>>,
    out: Vec<Vec<u8>>,
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.inside.pop_front()?;
        Some((Received(frame), Transmit(&mut self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Transmit<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}
