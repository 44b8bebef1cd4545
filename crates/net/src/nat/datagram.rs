//! Flows without connections: UDP between the guest and one peer, and echoes.
//!
//! Each has a socket of its own on the host, connected to the peer, so that nobody else's datagrams come in and errors come
//! back to where they belong. They end when nothing has moved for a while.

use super::Nat;
use super::guest::code;
use super::guest::unreachable;
use super::host::{self, Host};
use super::packet;
use super::policy;
use super::table::{Flow, Key};
use super::tcp::Pair;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(super) const MOST_UDP: usize = 1024;
const MOST_ECHO: usize = 64;

/// RFC 4787, REQ-5: not below two minutes.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// A question to a resolver has one answer.
pub(super) const DNS_PATIENCE: Duration = Duration::from_secs(15);
/// RFC 5508, REQ-1.
pub(super) const ECHO_PATIENCE: Duration = Duration::from_secs(60);

/// UDP between the guest and one peer.
pub(super) struct Datagrams {
    pub(super) pair: Pair,
    pub(super) link: Link,
    /// When something last moved.
    pub(super) used: Duration,
    pub(super) patience: Duration,
    pub(super) readable: bool,
    /// Header and first bytes of what the guest sent last, which an error is about.
    pub(super) quoted: Vec<u8>,
    /// It goes to a resolver that has not answered yet.
    pub(super) asked: bool,
}

/// What a flow uses on the host.
pub(super) enum Link {
    /// A socket to itself.
    Own(Box<dyn host::Datagrams>),
    /// A forwarded port's, whose slot this is, and who is behind it.
    Port(u32, SocketAddr),
}

/// Echoes between the guest and one peer.
pub(super) struct Echo {
    pub(super) guest: Ipv4Addr,
    pub(super) peer: Ipv4Addr,
    /// The guest's. The host's socket has one of its own.
    pub(super) identifier: u16,
    pub(super) socket: Box<dyn host::Datagrams>,
    pub(super) used: Duration,
    pub(super) readable: bool,
    pub(super) quoted: Vec<u8>,
}

impl<H: Host> Nat<H> {
    /// Tells the guest what the host has said to what it sent.
    pub(super) fn failed(&mut self, pair: Pair, error: &io::Error, bytes: &[u8]) {
        self.unreachable(pair, unreachable(error).unwrap_or(code::PORT), bytes);
    }

    /// A datagram from the guest: `bytes` is its packet.
    pub(super) fn udp(&mut self, bytes: &[u8], guest: (Ipv4Addr, u16), peer: (Ipv4Addr, u16), data: &[u8]) {
        let pair = Pair { guest, peer };
        let key = Key::Udp(pair);
        if guest.1 == 0 || peer.1 == 0 {
            return;
        }
        let slot = match self.table.find(&key) {
            Some(slot) => slot,
            None => {
                let Some(to) = self.way(peer) else {
                    if policy::is_routed(peer.0) {
                        self.unreachable(pair, code::PORT, bytes);
                    }
                    return;
                };
                if !self.has_room(&key, MOST_UDP) {
                    return;
                }
                let asked = peer.0 == policy::RESOLVER;
                let (slot, token) = self.table.reserve();
                let socket = match self.host.datagrams(to, token) {
                    Ok(socket) => socket,
                    Err(error) => {
                        self.table.leave(slot);
                        self.failed(pair, &error, bytes);
                        return;
                    }
                };
                let flow = Datagrams {
                    pair,
                    link: Link::Own(socket),
                    used: self.host.now(),
                    patience: if asked { DNS_PATIENCE } else { PATIENCE },
                    readable: false,
                    quoted: Vec::new(),
                    asked,
                };
                self.table.put(slot, Some(key), Flow::Datagrams(flow));
                slot
            }
        };
        let now = self.host.now();
        let Some(Flow::Datagrams(flow)) = self.table.flow(slot) else { return };
        flow.used = now;
        let until = now + flow.patience;
        let sent = match &mut flow.link {
            Link::Own(socket) => {
                flow.quoted = packet::quote(bytes);
                socket.send(data, None)
            }
            &mut Link::Port(port, peer) => match self.table.flow(port) {
                Some(Flow::UdpPort(port)) => port.socket.send(data, Some(peer)),
                _ => Ok(()),
            },
        };
        self.table.set_deadline(slot, Some(until));
        match sent {
            Err(error) if !is_loss(&error) => self.failed(pair, &error, bytes),
            _ => {}
        }
    }

    /// An ICMP message from the guest: `bytes` is its packet.
    pub(super) fn icmp(&mut self, bytes: &[u8], guest: Ipv4Addr, peer: Ipv4Addr, message: &[u8]) {
        let Ok(request) = Icmpv4Packet::new_checked(message) else { return };
        if request.msg_type() != Icmpv4Message::EchoRequest
            || request.msg_code() != 0
            || !request.verify_checksum()
        {
            return;
        }
        if policy::is_ours(peer) {
            self.echo_reply(guest, peer, message);
            return;
        }
        let identifier = request.echo_ident();
        let key = Key::Echo(guest, peer, identifier);
        let pair = Pair { guest: (guest, 0), peer: (peer, 0) };
        let slot = match self.table.find(&key) {
            Some(slot) => slot,
            None => {
                // Any port: only the address matters.
                if self.way((peer, 1)).is_none() {
                    if policy::is_routed(peer) {
                        self.unreachable(pair, code::PROHIBITED, bytes);
                    }
                    return;
                }
                if !self.has_room(&key, MOST_ECHO) {
                    return;
                }
                let (slot, token) = self.table.reserve();
                let socket = match self.host.echo(peer, token) {
                    Ok(socket) => socket,
                    Err(error) => {
                        self.table.leave(slot);
                        if error.kind() == io::ErrorKind::PermissionDenied
                            && !std::mem::replace(&mut self.echo_refused, true)
                        {
                            tracing::warn!(
                                "this host doesn't let this user ping (net.ipv4.ping_group_range): \
                                 only the guest's gateway answers its pings"
                            );
                        }
                        self.failed_echo(pair, &error, bytes);
                        return;
                    }
                };
                let used = self.host.now();
                let echo =
                    Echo { guest, peer, identifier, socket, used, readable: false, quoted: Vec::new() };
                self.table.put(slot, Some(key), Flow::Echo(echo));
                slot
            }
        };
        let now = self.host.now();
        let Some(Flow::Echo(flow)) = self.table.flow(slot) else { return };
        flow.used = now;
        flow.quoted = packet::quote(bytes);
        let sent = flow.socket.send(message, None);
        self.table.set_deadline(slot, Some(now + ECHO_PATIENCE));
        match sent {
            Err(error) if !is_loss(&error) => self.failed_echo(pair, &error, bytes),
            _ => {}
        }
    }

    /// As [`Nat::failed`], for what has no port.
    pub(super) fn failed_echo(&mut self, pair: Pair, error: &io::Error, bytes: &[u8]) {
        self.unreachable(pair, unreachable(error).unwrap_or(code::HOST), bytes);
    }

    /// Answers an echo ourselves.
    fn echo_reply(&mut self, guest: Ipv4Addr, peer: Ipv4Addr, message: &[u8]) {
        let Some(ends) = self.ends(guest) else { return };
        let mut reply = message.to_vec();
        reply[0] = u8::from(Icmpv4Message::EchoReply);
        let mut frame = Vec::new();
        packet::push_icmp(&mut frame, ends, (peer, guest), &reply);
        self.wait_cut(&frame);
    }
}

/// What happens to datagrams on any network, and nobody is told of.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::InvalidInput
    ) || rustix::io::Errno::from_io_error(error)
        .is_some_and(|errno| matches!(errno, rustix::io::Errno::MSGSIZE | rustix::io::Errno::NOBUFS))
}
