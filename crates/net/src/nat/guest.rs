//! What a frame from the guest does. Every byte of it is as the guest likes.

use super::Nat;
use super::host::Host;
use super::packet::{self, Ends};
use super::policy::{self, Way};
use super::table::{Flow, Key};
use super::tcp::{Pair, Tcp, Terms};
use crate::frame::{Frame, Offload};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Connections at a time; all together have less than 256 MiB of buffers.
pub(super) const MOST_TCP: usize = 4096;
/// A flow on which nothing has moved for so long gives way to a new one when there are too many.
const STALE: Duration = Duration::from_secs(60);

/// Codes of "destination unreachable" (RFC 792, RFC 1122, RFC 1812).
pub(super) mod code {
    pub(in crate::nat) const NET: u8 = 0;
    pub(in crate::nat) const HOST: u8 = 1;
    pub(in crate::nat) const PORT: u8 = 3;
    pub(in crate::nat) const PROHIBITED: u8 = 13;
}

/// Which code says what the host said; `None`: nobody is at that port.
pub(super) fn unreachable(error: &io::Error) -> Option<u8> {
    match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => Some(code::NET),
        io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Some(code::HOST),
        io::ErrorKind::PermissionDenied => Some(code::PROHIBITED),
        _ => None,
    }
}

impl<H: Host> Nat<H> {
    /// A frame from the guest.
    pub fn frame(&mut self, frame: Frame<'_>) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame.bytes) else { return };
        let source = ethernet.src_addr();
        if !source.is_unicast() {
            return;
        }
        let (protocol, payload) = (ethernet.ethertype(), &frame.bytes[crate::frame::ETHERNET..]);
        match protocol {
            EthernetProtocol::Arp => self.arp(payload),
            EthernetProtocol::Ipv4 => self.ipv4(source, payload, frame.offload),
            _ => {}
        }
    }

    fn arp(&mut self, message: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(message) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: sender,
            source_protocol_addr: address,
            target_protocol_addr: target,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        if !sender.is_unicast() {
            return;
        }
        self.learn(address, sender);
        if operation == ArpOperation::Request && policy::is_ours(target) {
            let mut frame = Vec::new();
            let ends = Ends { source: policy::MAC, destination: sender };
            packet::push_arp(&mut frame, ends, ArpOperation::Reply, target, (sender, address));
            self.wait(frame);
        }
    }

    /// Somebody on the cable has an address. Flows that wait for it go on.
    fn learn(&mut self, address: Ipv4Addr, sender: EthernetAddress) {
        // The network has 254 addresses, so this is never more.
        if policy::is_guest(address) && self.neighbors.insert(address, sender).is_none() {
            self.asked.remove(&address);
            let waiting: Vec<u32> = self.table.flows().map(|(slot, _)| slot).collect();
            for slot in waiting {
                self.table.queue(slot);
            }
        }
    }

    fn ipv4(&mut self, sender: EthernetAddress, bytes: &[u8], offload: Offload) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        if packet.version() != 4 || !packet.verify_checksum() {
            return;
        }
        let whole = &bytes[..usize::from(packet.total_len())];
        if packet.more_frags() || packet.frag_offset() != 0 {
            let now = self.host.now();
            if policy::is_guest(packet.src_addr())
                && let Some(whole) = self.reassembly.add(&packet, now)
            {
                self.packet(sender, &whole, Offload::NONE);
            }
            return;
        }
        self.packet(sender, whole, offload);
    }

    /// A whole packet with a good header.
    fn packet(&mut self, sender: EthernetAddress, bytes: &[u8], offload: Offload) {
        let packet = Ipv4Packet::new_unchecked(bytes);
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        let payload = packet.payload();
        // Whoever leaves the checksum to us has none yet.
        let unsummed = offload.checksum.is_some() || offload.segment.is_some();
        if packet.next_header() == IpProtocol::Udp {
            let Ok(datagram) = UdpPacket::new_checked(payload) else { return };
            if !unsummed && !datagram.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)) {
                return;
            }
            if datagram.dst_port() == DHCP_SERVER_PORT && (to.is_broadcast() || to == policy::GATEWAY) {
                self.dhcp(from, datagram.payload());
            } else if policy::is_guest(from) {
                self.learn(from, sender);
                self.udp(bytes, (from, datagram.src_port()), (to, datagram.dst_port()), datagram.payload());
            }
            return;
        }
        // Nobody else's address, and none that couldn't be answered.
        if !policy::is_guest(from) {
            return;
        }
        self.learn(from, sender);
        match packet.next_header() {
            IpProtocol::Tcp => {
                let Ok(segment) = TcpPacket::new_checked(payload) else { return };
                if !unsummed && !segment.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)) {
                    return;
                }
                let pair = Pair { guest: (from, segment.src_port()), peer: (to, segment.dst_port()) };
                self.tcp(bytes, pair, &segment);
            }
            IpProtocol::Icmp => self.icmp(bytes, from, to, payload),
            _ => {}
        }
    }

    fn dhcp(&mut self, from: Ipv4Addr, message: &[u8]) {
        let Some(reply) = self.dhcp.answer(message) else { return };
        // Who has an address already is answered there; who hasn't can only hear what goes to all.
        let to = if policy::is_guest(from) { from } else { Ipv4Addr::BROADCAST };
        let destination = self.neighbors.get(&to).copied().unwrap_or(EthernetAddress::BROADCAST);
        let mut frame = Vec::new();
        packet::push_udp(
            &mut frame,
            Ends { source: policy::MAC, destination },
            (policy::GATEWAY, DHCP_SERVER_PORT),
            (to, DHCP_CLIENT_PORT),
            &reply,
        );
        self.wait(frame);
    }

    fn tcp(&mut self, bytes: &[u8], pair: Pair, segment: &TcpPacket<&[u8]>) {
        let now = self.host.now();
        if let Some(slot) = self.table.find(&Key::Tcp(pair)) {
            if let Some(Flow::Tcp(flow)) = self.table.flow(slot) {
                let mut reply = Vec::new();
                let answered = flow.packet(bytes, segment.rst(), now, &mut reply);
                if let Some(offload) = answered
                    && let Some(ends) = self.ends(pair.guest.0)
                {
                    packet::wrap(&mut reply, ends);
                    self.wait_with(reply, offload);
                }
                self.table.queue(slot);
            }
            return;
        }
        let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
        if pair.guest.1 == 0 || pair.peer.1 == 0 {
            return;
        }
        if !opens {
            self.refuse(pair, segment);
            return;
        }
        match self.way(pair.peer) {
            Some(to) if self.has_room(&Key::Tcp(pair), MOST_TCP) => {
                let (slot, token) = self.table.reserve();
                match self.host.connect(to, token) {
                    Ok(stream) => {
                        let flow = Tcp::outward(pair, stream, self.terms(), bytes);
                        self.table.put(slot, Some(Key::Tcp(pair)), Flow::Tcp(Box::new(flow)));
                        self.table.queue(slot);
                    }
                    Err(error) => {
                        self.table.leave(slot);
                        match unreachable(&error) {
                            Some(code) => self.unreachable(pair, code, bytes),
                            None => self.refuse(pair, segment),
                        }
                    }
                }
            }
            Some(_) => self.refuse(pair, segment),
            None if policy::is_routed(pair.peer.0) => self.refuse(pair, segment),
            None => {}
        }
    }

    /// What new connections are made with.
    pub(super) fn terms(&mut self) -> Terms {
        // SplitMix64's increment: every connection begins elsewhere.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let buffer = match self.table.count(&Key::TCP) {
            0..32 => 512 << 10,
            32..256 => 128 << 10,
            256..1024 => 32 << 10,
            _ => 16 << 10,
        };
        Terms { now: self.host.now(), deliver: self.deliver, buffer, seed: self.seed }
    }

    /// Where a destination leads, if anywhere.
    pub(super) fn way(&mut self, (address, port): (Ipv4Addr, u16)) -> Option<SocketAddr> {
        match policy::way(&self.host, self.host_loopback, address, port) {
            Way::To(to) => Some(to),
            Way::Resolver => {
                let resolvers = self.host.resolvers();
                resolvers.get(self.resolver % resolvers.len().max(1)).copied()
            }
            Way::Refused | Way::Nowhere => None,
        }
    }

    /// Whether there is room for a flow of `key`'s kind. Makes some by ending one that has been quiet for long.
    pub(super) fn has_room(&mut self, key: &Key, most: usize) -> bool {
        if self.table.count(key) < most {
            return true;
        }
        let now = self.host.now();
        let stale = self
            .table
            .flows()
            .filter_map(|(slot, flow)| match (flow, key) {
                (Flow::Tcp(flow), Key::Tcp(_)) => Some((flow.used, slot)),
                (Flow::Datagrams(flow), Key::Udp(_)) => Some((flow.used, slot)),
                (Flow::Echo(flow), Key::Echo(..)) => Some((flow.used, slot)),
                _ => None,
            })
            .min()
            .filter(|(used, _)| now - *used >= STALE);
        if let Some((_, slot)) = stale {
            self.close(slot);
        }
        stale.is_some()
    }

    fn refuse(&mut self, pair: Pair, segment: &TcpPacket<&[u8]>) {
        let Some(ends) = self.ends(pair.guest.0) else { return };
        let mut frame = Vec::new();
        if packet::push_reset(&mut frame, ends, (pair.peer.0, pair.guest.0), segment).is_some() {
            self.wait(frame);
        }
    }

    /// Tells the guest that `bytes`, a packet or the start of one, did not get there.
    pub(super) fn unreachable(&mut self, pair: Pair, code: u8, bytes: &[u8]) {
        let Some(ends) = self.ends(pair.guest.0) else { return };
        let mut frame = Vec::new();
        // A port is missing at its host; anything else is what a router says.
        let from = if code == code::PORT { pair.peer.0 } else { policy::GATEWAY };
        packet::push_unreachable(&mut frame, ends, (from, pair.guest.0), code, &packet::quote(bytes));
        self.wait(frame);
    }

    /// As [`Nat::wait`], cut where it is longer than a packet.
    pub(super) fn wait_cut(&mut self, frame: &[u8]) {
        self.identification = self.identification.wrapping_add(1);
        let pieces = packet::fragments(frame, self.identification);
        if pieces.is_empty() {
            self.wait(frame.to_vec());
        }
        for piece in pieces {
            self.wait(piece);
        }
    }
}
