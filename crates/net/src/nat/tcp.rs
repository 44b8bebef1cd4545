//! One TCP connection: smoltcp plays the guest's peer, a socket of the host goes on to the real one, and bytes move between
//! the two buffers.
//!
//! Each connection has a smoltcp interface to itself, with the peer's address and this one socket, so that a packet costs the
//! same however many connections there are.
//!
//! A guest's SYN is answered once the host's connection stands, and with a reset or an ICMP error when it can't. The end of
//! one direction is passed on as such, and a reset as a reset, both ways. Each side is read only while the other has room.

use super::host::Stream;
use super::packet;
use crate::frame::{ETHERNET, Offload, Offloads};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

/// The guest's end and its peer's, as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Pair {
    pub(super) guest: (Ipv4Addr, u16),
    pub(super) peer: (Ipv4Addr, u16),
}

/// The longest IP packet that is left to the guest to cut. A multiple of no segment size in particular.
const LONGEST_SENT: usize = 65535;

/// What a connection is made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) now: Duration,
    /// What the guest takes.
    pub(super) deliver: Offloads,
    /// Bytes of each direction's buffer.
    pub(super) buffer: usize,
    /// For sequence numbers.
    pub(super) seed: u64,
}

/// How far the host's end is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// The host is connecting.
    Connecting,
    /// The guest is: it came through a forwarded port.
    Offered,
    Open,
}

/// What has become of a connection.
#[derive(Debug)]
pub(super) enum Fate {
    Alive,
    /// Nothing of it is left.
    Gone,
    /// The host couldn't connect; the guest is still to be told.
    Failed(io::Error),
}

/// A connection.
pub(super) struct Tcp {
    pub(super) pair: Pair,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    deliver: Offloads,
    stream: Box<dyn Stream>,
    progress: Progress,
    /// The host's socket may be read, or written.
    readable: bool,
    writable: bool,
    /// The host's peer sends no more.
    host_ended: bool,
    /// The guest sends no more, and the host's peer knows it.
    guest_ended: bool,
    /// The guest has reset it.
    reset: bool,
    /// When something last moved.
    pub(super) used: Duration,
    /// The start of the guest's first packet, while an error may still be about it.
    pub(super) quoted: Vec<u8>,
}

impl Tcp {
    /// A connection that the guest asks for: `syn` is its IPv4 packet.
    pub(super) fn outward(pair: Pair, stream: Box<dyn Stream>, terms: Terms, syn: &[u8]) -> Self {
        let mut flow = Self::new(pair, stream, terms, Progress::Connecting);
        let socket = flow.sockets.get_mut::<tcp::Socket<'_>>(flow.handle);
        socket.pause_synack(true);
        // Can't fail: the socket is new and the port isn't 0, which the NAT has looked at.
        let _ = socket.listen(IpEndpoint::new(pair.peer.0.into(), pair.peer.1));
        flow.quoted = packet::quote(syn);
        flow.packet(syn, false, terms.now, &mut Vec::new());
        flow
    }

    /// A connection that came through a forwarded port, to be offered to the guest.
    pub(super) fn inward(pair: Pair, stream: Box<dyn Stream>, terms: Terms) -> Self {
        let mut flow = Self::new(pair, stream, terms, Progress::Offered);
        let socket = flow.sockets.get_mut::<tcp::Socket<'_>>(flow.handle);
        let (guest, peer) = (
            IpEndpoint::new(pair.guest.0.into(), pair.guest.1),
            IpEndpoint::new(pair.peer.0.into(), pair.peer.1),
        );
        // As above.
        let _ = socket.connect(flow.interface.context(), guest, peer);
        flow
    }

    fn new(pair: Pair, stream: Box<dyn Stream>, terms: Terms, progress: Progress) -> Self {
        let mut output = Vec::new();
        let mut wire = Wire::new(terms.deliver, None, &mut output);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = terms.seed;
        let mut interface = Interface::new(config, &mut wire, instant(terms.now));
        interface.update_ip_addrs(|addresses| {
            // Has room: the list is empty.
            let _ = addresses.push(IpCidr::new(pair.peer.0.into(), 32));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; terms.buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            pair,
            interface,
            sockets,
            handle,
            deliver: terms.deliver,
            stream,
            progress,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
            reset: false,
            used: terms.now,
            quoted: Vec::new(),
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// A packet from the guest. What it is answered with at once, if anything, is in `reply` afterwards, behind [`ETHERNET`]
    /// bytes for a header.
    pub(super) fn packet(
        &mut self,
        packet: &[u8],
        is_reset: bool,
        now: Duration,
        reply: &mut Vec<u8>,
    ) -> Option<Offload> {
        self.used = now;
        let mut wire = Wire::new(self.deliver, Some(packet), reply);
        self.interface.poll_ingress_single(instant(now), &mut wire, &mut self.sockets);
        let sent = wire.sent();
        if is_reset && matches!(self.socket().state(), State::Closed | State::Listen) {
            self.reset = true;
        }
        self.drain_guest();
        sent
    }

    /// The host's socket has news.
    pub(super) fn ready(&mut self, readable: bool, writable: bool) -> Fate {
        self.readable |= readable;
        self.writable |= writable;
        if self.progress == Progress::Connecting && (readable || writable) {
            match self.stream.connected() {
                Ok(()) => {
                    self.progress = Progress::Open;
                    self.socket().pause_synack(false);
                }
                // Linux says so while it is still at it.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => return Fate::Failed(error),
            }
        }
        self.drain_guest();
        Fate::Alive
    }

    /// From the guest to the host.
    fn drain_guest(&mut self) {
        if self.progress != Progress::Open {
            return;
        }
        let Self { stream, sockets, handle, writable, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        let mut broken = false;
        while *writable && !broken && socket.can_recv() {
            let taken = socket.recv(|data| match stream.write(data) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match taken {
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => *writable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => broken = true,
                Ok(Ok(())) | Err(_) => {}
            }
        }
        if broken {
            self.break_off();
            return;
        }
        let over = matches!(
            self.socket().state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        );
        if over && self.socket().recv_queue() == 0 && !self.guest_ended && !self.reset {
            self.guest_ended = true;
            self.stream.finish();
        }
    }

    /// From the host to the guest.
    fn drain_host(&mut self) {
        if self.progress == Progress::Offered && self.socket().may_send() {
            self.progress = Progress::Open;
            // Edges from before count: nothing was read or written yet.
            self.readable = true;
            self.writable = true;
        }
        if self.progress != Progress::Open {
            return;
        }
        self.drain_guest();
        let Self { stream, sockets, handle, readable, host_ended, .. } = self;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
        let mut broken = false;
        while *readable && !*host_ended && !broken && socket.can_send() {
            let given = socket.send(|room| match stream.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match given {
                Ok(Ok(0)) => *host_ended = true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => *readable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => broken = true,
                Ok(Ok(_)) | Err(_) => {}
            }
        }
        if broken {
            self.break_off();
        } else if self.host_ended {
            self.socket().close();
        }
    }

    /// Both sides are to see a reset.
    pub(super) fn break_off(&mut self) {
        self.reset = true;
        self.socket().abort();
    }

    /// The next packet for the guest, in `into` behind [`ETHERNET`] bytes for a header.
    pub(super) fn transmit(&mut self, now: Duration, into: &mut Vec<u8>) -> Option<Offload> {
        self.drain_host();
        let mut wire = Wire::new(self.deliver, None, into);
        self.interface.poll_egress(instant(now), &mut wire, &mut self.sockets);
        let sent = wire.sent();
        if sent.is_some() {
            self.used = now;
        }
        sent
    }

    /// Whether it is over, after [`Tcp::transmit`] had nothing more.
    pub(super) fn fate(&mut self) -> Fate {
        // What the guest has sent may still wait for a slow peer of the host's.
        let waits = self.progress == Progress::Open && self.socket().recv_queue() > 0 && !self.reset;
        if self.socket().state() == State::Closed && !waits {
            // The peer's data may not have come through: a close would tell it that it has.
            if self.reset || !self.host_ended || self.progress != Progress::Open {
                self.stream.reset();
            }
            return Fate::Gone;
        }
        Fate::Alive
    }

    /// Leaves without a word to the host's peer but a reset.
    pub(super) fn abandon(&mut self) {
        self.stream.reset();
    }

    /// When it wants to be looked at again whatever happens.
    pub(super) fn deadline(&mut self, now: Duration) -> Option<Duration> {
        // The host's time-out counts.
        if self.progress == Progress::Connecting && self.socket().state() != State::Closed {
            return None;
        }
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)).max(now))
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// What smoltcp's interface is plugged into for one call: at most one packet in and one packet out.
struct Wire<'a> {
    deliver: Offloads,
    input: Option<&'a [u8]>,
    /// Empty until a packet has been sent.
    output: &'a mut Vec<u8>,
    segment: Option<u16>,
}

impl<'a> Wire<'a> {
    fn new(deliver: Offloads, input: Option<&'a [u8]>, output: &'a mut Vec<u8>) -> Self {
        output.clear();
        Self { deliver, input, output, segment: None }
    }

    /// Finishes what was sent.
    fn sent(self) -> Option<Offload> {
        (!self.output.is_empty()).then(|| packet::finish_tcp(self.output, self.deliver, self.segment))
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Transmit<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_>)> {
        let input = self.input.take()?;
        Some((Received(input), Transmit { output: self.output, segment: &mut self.segment }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        self.output.is_empty().then_some(Transmit { output: self.output, segment: &mut self.segment })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = packet::MTU;
        // Looked at before packets come here, and made after they leave.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = Checksum::Tx;
        if self.deliver.checksum && self.deliver.tcp4 {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(LONGEST_SENT);
        }
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Transmit<'a> {
    output: &'a mut Vec<u8>,
    segment: &'a mut Option<u16>,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.output.clear();
        self.output.resize(ETHERNET + length, 0);
        f(&mut self.output[ETHERNET..])
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        *self.segment = meta.segmentation_offload_size.map(Into::into);
    }
}
