//! What comes for the guest: news of the host's sockets, time, and the next frame.
//!
//! Flows that may have something wait in one queue and take turns, a frame each.

use super::Nat;
use super::datagram::{Datagrams, Link, MOST_UDP, PATIENCE};
use super::guest::{MOST_TCP, unreachable};
use super::host::Host;
use super::packet;
use super::policy;
use super::table::{Flow, Key};
use super::tcp::{Fate, Pair, Tcp};
use super::{ASK_AGAIN, FIRST_PORT};
use crate::frame::Offload;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A connection that has nothing to say is not asked again sooner, whatever it says.
const SOONEST: Duration = Duration::from_millis(1);
/// When a forwarded port that could not take a connection tries again.
const RETRY: Duration = Duration::from_millis(500);

impl<H: Host> Nat<H> {
    /// As [`crate::Backend::poll`].
    pub fn news(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.host.poll(&mut events);
        for event in events.drain(..) {
            let Some(slot) = self.table.by_token(event.token) else { continue };
            let mut failure = None;
            match self.table.flow(slot) {
                Some(Flow::Tcp(flow)) => {
                    if let Fate::Failed(error) = flow.ready(event.readable, event.writable) {
                        failure = Some(error);
                    }
                }
                Some(Flow::Datagrams(flow)) => flow.readable |= event.readable,
                Some(Flow::Echo(flow)) => flow.readable |= event.readable,
                Some(Flow::TcpPort(port)) => port.readable |= event.readable,
                Some(Flow::UdpPort(port)) => port.readable |= event.readable,
                None => {}
            }
            match failure {
                Some(error) => self.not_connected(slot, &error),
                None => self.table.queue(slot),
            }
        }
        self.events = events;
        self.timers();
    }

    fn timers(&mut self) {
        let now = self.host.now();
        while let Some(slot) = self.table.expired(now) {
            let (used, patience) = match self.table.flow(slot) {
                Some(Flow::Datagrams(flow)) => (flow.used, flow.patience),
                Some(Flow::Echo(flow)) => (flow.used, super::datagram::ECHO_PATIENCE),
                Some(Flow::TcpPort(port)) => {
                    port.readable = true;
                    self.table.queue(slot);
                    continue;
                }
                Some(Flow::Tcp(_) | Flow::UdpPort(_)) => {
                    self.table.queue(slot);
                    continue;
                }
                None => continue,
            };
            if now >= used + patience {
                self.close(slot);
            } else {
                self.table.set_deadline(slot, Some(used + patience));
            }
        }
    }

    /// The host could not connect.
    fn not_connected(&mut self, slot: u32, error: &io::Error) {
        let Some(Flow::Tcp(flow)) = self.table.flow(slot) else { return };
        let (pair, quoted) = (flow.pair, std::mem::take(&mut flow.quoted));
        match unreachable(error) {
            Some(code) => {
                self.unreachable(pair, code, &quoted);
                self.close(slot);
            }
            None => {
                flow.break_off();
                self.table.queue(slot);
            }
        }
    }

    /// As [`crate::Backend::receive`].
    pub fn produce(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        loop {
            if let Some((frame, offload)) = self.waiting.pop_front() {
                *into = frame;
                return Some(offload);
            }
            let slot = self.table.next_ready()?;
            let made = match self.table.flow(slot) {
                Some(Flow::Tcp(_)) => self.next_segment(slot, into),
                Some(Flow::Datagrams(_)) => self.next_datagram(slot),
                Some(Flow::Echo(_)) => self.next_echo(slot),
                Some(Flow::TcpPort(_)) => self.accept(slot),
                Some(Flow::UdpPort(_)) => self.next_forwarded(slot),
                None => None,
            };
            if made.is_some() {
                return made;
            }
        }
    }

    fn next_segment(&mut self, slot: u32, into: &mut Vec<u8>) -> Option<Offload> {
        let now = self.host.now();
        let Some(Flow::Tcp(flow)) = self.table.flow(slot) else { return None };
        let guest = flow.pair.guest.0;
        let Some(ends) = self.ends(guest) else {
            self.table.set_deadline(slot, Some(now + ASK_AGAIN));
            return None;
        };
        let Some(Flow::Tcp(flow)) = self.table.flow(slot) else { return None };
        if let Some(offload) = flow.transmit(now, into) {
            packet::wrap(into, ends);
            self.table.queue(slot);
            return Some(offload);
        }
        match flow.fate() {
            Fate::Gone => drop(self.table.leave(slot)),
            _ => {
                let deadline = flow.deadline(now).map(|at| at.max(now + SOONEST));
                self.table.set_deadline(slot, deadline);
            }
        }
        None
    }

    fn next_datagram(&mut self, slot: u32) -> Option<Offload> {
        let Some(Flow::Datagrams(flow)) = self.table.flow(slot) else { return None };
        let (pair, Link::Own(socket)) = (flow.pair, &mut flow.link) else { return None };
        if !flow.readable {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.datagram);
        let received = socket.receive(&mut buffer);
        self.datagram = buffer;
        let now = self.host.now();
        let Some(Flow::Datagrams(flow)) = self.table.flow(slot) else { return None };
        match received {
            Ok((length, _)) => {
                flow.used = now;
                flow.asked = false;
                self.table.queue(slot);
                self.pass_datagram(pair, length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
            Err(error) => {
                let quoted = std::mem::take(&mut flow.quoted);
                self.table.queue(slot);
                if !quoted.is_empty() {
                    self.failed(pair, &error, &quoted);
                }
            }
        }
        None
    }

    /// Queues a datagram from [`Nat::datagram`] from the flow's peer.
    fn pass_datagram(&mut self, pair: Pair, length: usize) {
        let Some(ends) = self.ends(pair.guest.0) else { return };
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        // The host's datagrams are IPv4's or IPv6's, whose longest are a little longer.
        let data = &self.datagram[..length.min(packet::LONGEST_DATAGRAM)];
        packet::push_udp(&mut frame, ends, pair.peer, pair.guest, data);
        self.wait_cut(&frame);
        self.scratch = frame;
    }

    fn next_echo(&mut self, slot: u32) -> Option<Offload> {
        let Some(Flow::Echo(flow)) = self.table.flow(slot) else { return None };
        if !flow.readable {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.datagram);
        let received = flow.socket.receive(&mut buffer);
        let (guest, peer, identifier) = (flow.guest, flow.peer, flow.identifier);
        match received {
            Ok((length, _)) => {
                self.table.queue(slot);
                let message = &mut buffer[..length.min(packet::LONGEST_DATAGRAM)];
                if let Ok(mut reply) = Icmpv4Packet::new_checked(&mut *message)
                    && reply.msg_type() == Icmpv4Message::EchoReply
                {
                    reply.set_echo_ident(identifier);
                    if let Some(ends) = self.ends(guest) {
                        let mut frame = Vec::new();
                        packet::push_icmp(&mut frame, ends, (peer, guest), message);
                        self.wait_cut(&frame);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.readable = false,
            Err(error) => {
                let quoted = std::mem::take(&mut flow.quoted);
                self.table.queue(slot);
                if !quoted.is_empty() {
                    let pair = Pair { guest: (guest, 0), peer: (peer, 0) };
                    self.failed_echo(pair, &error, &quoted);
                }
            }
        }
        self.datagram = buffer;
        None
    }

    /// A port of the gateway's that stands for nobody else towards this guest.
    fn gateway_port(&mut self, guest: (Ipv4Addr, u16), key: fn(Pair) -> Key) -> Option<Pair> {
        for _ in FIRST_PORT..=u16::MAX {
            let pair = Pair { guest, peer: (policy::GATEWAY, self.next_port) };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if self.table.find(&key(pair)).is_none() {
                return Some(pair);
            }
        }
        None
    }

    fn accept(&mut self, slot: u32) -> Option<Offload> {
        let Some(Flow::TcpPort(port)) = self.table.flow(slot) else { return None };
        if !port.readable {
            return None;
        }
        let guest = port.guest;
        let pair = if self.has_room(&Key::TCP, MOST_TCP) { self.gateway_port(guest, Key::Tcp) } else { None };
        let Some(pair) = pair else {
            self.table.set_deadline(slot, Some(self.host.now() + RETRY));
            return None;
        };
        let (new, token) = self.table.reserve();
        let Some(Flow::TcpPort(port)) = self.table.flow(slot) else { return None };
        match port.listener.accept(token) {
            Ok((stream, _)) => {
                self.table.queue(slot);
                let terms = self.terms();
                let flow = Tcp::inward(pair, stream, terms);
                self.table.put(new, Some(Key::Tcp(pair)), Flow::Tcp(Box::new(flow)));
                self.table.queue(new);
            }
            Err(error) => {
                port.readable = false;
                self.table.leave(new);
                if error.kind() != io::ErrorKind::WouldBlock {
                    // One that hung up at once, or no descriptors left: others may wait behind it.
                    self.table.set_deadline(slot, Some(self.host.now() + RETRY));
                }
            }
        }
        None
    }

    fn next_forwarded(&mut self, slot: u32) -> Option<Offload> {
        let Some(Flow::UdpPort(port)) = self.table.flow(slot) else { return None };
        if !port.readable {
            return None;
        }
        let guest = port.guest;
        let mut buffer = std::mem::take(&mut self.datagram);
        let received = port.socket.receive(&mut buffer);
        self.datagram = buffer;
        match received {
            Ok((length, peer)) => {
                self.table.queue(slot);
                if let Some(pair) = self.stand_in(slot, guest, peer) {
                    self.pass_datagram(pair, length);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => port.readable = false,
            // An answer of the guest's did not arrive: no matter of the guest's.
            Err(_) => self.table.queue(slot),
        }
        None
    }

    /// The flow of a peer behind a forwarded UDP port; a new one if there is none.
    fn stand_in(&mut self, slot: u32, guest: (Ipv4Addr, u16), peer: SocketAddr) -> Option<Pair> {
        let now = self.host.now();
        let Some(Flow::UdpPort(port)) = self.table.flow(slot) else { return None };
        if let Some(&known) = port.peers.get(&peer) {
            let pair = Pair { guest, peer: (policy::GATEWAY, known) };
            if let Some(found) = self.table.find(&Key::Udp(pair))
                && let Some(Flow::Datagrams(flow)) = self.table.flow(found)
            {
                flow.used = now;
                return Some(pair);
            }
        }
        if !self.has_room(&Key::UDP, MOST_UDP) {
            return None;
        }
        let pair = self.gateway_port(guest, Key::Udp)?;
        let (new, _) = self.table.reserve();
        let flow = Datagrams {
            pair,
            link: Link::Port(slot, peer),
            used: now,
            patience: PATIENCE,
            readable: false,
            quoted: Vec::new(),
            asked: false,
        };
        self.table.put(new, Some(Key::Udp(pair)), Flow::Datagrams(flow));
        self.table.set_deadline(new, Some(now + PATIENCE));
        if let Some(Flow::UdpPort(port)) = self.table.flow(slot) {
            port.peers.insert(peer, pair.peer.1);
        }
        Some(pair)
    }
}
