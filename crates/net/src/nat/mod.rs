//! User networking: the guest's IPv4 network ends in this process, and goes on through sockets of the host that need no
//! privileges.
//!
//! | part | what |
//! |---|---|
//! | [`host`], [`os`] | what is needed of the host, and the real one |
//! | `policy` | addresses; where a destination leads |
//! | `packet`, `reassembly` | making packets, cutting them, putting them together |
//! | `dhcp` | the server |
//! | `table` | all flows |
//! | `tcp`, `datagram`, `forward` | the kinds of flows |
//! | `guest` | what a frame from the guest does |
//! | `deliver` | what comes for the guest |
//!
//! The guest's packets never go anywhere as they are. What arrives is taken apart, and sockets of the host say the same
//! again; so the guest can't send from a port or address that the host would not have given it, and nothing but TCP, UDP and
//! echo gets out.
//!
//! Memory is bounded: flows are counted, their buffers are smaller where there are many, and packets for the guest are made
//! when it has room for them. What has no such way to wait (answers to echo, ARP, DHCP) is dropped when the guest doesn't
//! take it.
//!
//! Left out: IPv6 on the guest's side, multicast, broadcasts but DHCP's.

mod datagram;
mod deliver;
mod dhcp;
mod forward;
mod guest;
pub mod host;
pub mod os;
mod packet;
mod policy;
mod reassembly;
mod table;
mod tcp;
#[cfg(test)]
mod tests;

use crate::frame::{Frame, Offload, Offloads};
use crate::{Backend, Busy, NetError};
use control::UserNet;
use host::{Event, Host};
use os::Os;
use packet::Ends;
use reassembly::Reassembly;
use smoltcp::wire::{ArpOperation, EthernetAddress};
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use table::{Flow, Table};

/// Frames that wait for the guest without a flow of theirs.
const MOST_WAITING: usize = 256;
/// An unanswered question for an address is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The network behind a guest's card.
pub struct Nat<H = Os> {
    host: H,
    host_loopback: bool,
    deliver: Offloads,
    table: Table,
    dhcp: dhcp::Server,
    reassembly: Reassembly,
    /// Who on the cable has which address.
    neighbors: HashMap<Ipv4Addr, EthernetAddress>,
    /// When an address was last asked for.
    asked: HashMap<Ipv4Addr, Duration>,
    waiting: VecDeque<(Vec<u8>, Offload)>,
    events: Vec<Event>,
    scratch: Vec<u8>,
    datagram: Vec<u8>,
    /// Which of the host's resolvers is asked.
    resolver: usize,
    /// The gateway's port that is tried next for a forwarded connection.
    next_port: u16,
    /// Of IP fragments.
    identification: u16,
    seed: u64,
    /// The host's refusal to ping was reported.
    echo_refused: bool,
}

impl Nat<Os> {
    /// Opens the network, its forwarded ports included.
    ///
    /// # Errors
    /// The host refuses epoll or a port.
    pub fn open(config: &UserNet) -> Result<Self, NetError> {
        let host = Os::new().map_err(NetError::Host)?;
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self::new(host, config, seed)
    }
}

impl<H: Host> Nat<H> {
    /// A network over `host`. `seed` decides where TCP's sequence numbers begin.
    ///
    /// # Errors
    /// The host refuses a port.
    pub fn new(mut host: H, config: &UserNet, seed: u64) -> Result<Self, NetError> {
        let mut table = Table::default();
        forward::open(&mut host, &mut table, &config.forwards)?;
        Ok(Self {
            host,
            host_loopback: config.host_loopback,
            deliver: Offloads::default(),
            table,
            dhcp: dhcp::Server::new(policy::offer()),
            reassembly: Reassembly::default(),
            neighbors: HashMap::new(),
            asked: HashMap::new(),
            waiting: VecDeque::new(),
            events: Vec::new(),
            scratch: Vec::new(),
            datagram: vec![0; 65535],
            resolver: 0,
            next_port: FIRST_PORT,
            identification: 0,
            seed,
            echo_refused: false,
        })
    }

    /// The host that it stands on.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// What it takes, and can give, with work left to do.
    pub const OFFLOADS: Offloads = Offloads { checksum: true, tcp4: true, tcp6: false };

    /// As [`Backend::reset`].
    pub fn forget(&mut self, deliver: Offloads) {
        let flows: Vec<u32> = self
            .table
            .flows()
            .filter(|(_, flow)| !matches!(flow, Flow::TcpPort(_) | Flow::UdpPort(_)))
            .map(|(slot, _)| slot)
            .collect();
        for slot in flows {
            self.close(slot);
        }
        self.deliver = deliver;
        self.waiting.clear();
        self.neighbors.clear();
        self.asked.clear();
        self.reassembly = Reassembly::default();
    }

    /// As [`Backend::deadline`].
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.table.deadline().map(|at| at.saturating_sub(self.host.now()))
    }

    /// Ends a flow, whatever it is, with a reset where it was a connection.
    fn close(&mut self, slot: u32) {
        match self.table.leave(slot) {
            Some(Flow::Tcp(mut flow)) => flow.abandon(),
            Some(Flow::Datagrams(flow)) => {
                if let datagram::Link::Port(port, peer) = flow.link
                    && let Some(Flow::UdpPort(port)) = self.table.flow(port)
                {
                    port.peers.remove(&peer);
                }
                if flow.asked {
                    // Perhaps another resolver answers the next time.
                    self.resolver = self.resolver.wrapping_add(1);
                }
            }
            _ => {}
        }
    }

    /// Puts a complete frame into the queue.
    fn wait(&mut self, frame: Vec<u8>) {
        self.wait_with(frame, Offload::NONE);
    }

    /// Puts a frame into the queue.
    fn wait_with(&mut self, frame: Vec<u8>, offload: Offload) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push_back((frame, offload));
        }
    }

    /// From the gateway to whoever has an address; asks for it where nobody is known to have it.
    fn ends(&mut self, guest: Ipv4Addr) -> Option<Ends> {
        if let Some(&destination) = self.neighbors.get(&guest) {
            return Some(Ends { source: policy::MAC, destination });
        }
        let now = self.host.now();
        if self.asked.get(&guest).is_none_or(|&at| now - at >= ASK_AGAIN) {
            self.asked.insert(guest, now);
            let mut frame = Vec::new();
            let ends = Ends { source: policy::MAC, destination: EthernetAddress::BROADCAST };
            packet::push_arp(
                &mut frame,
                ends,
                ArpOperation::Request,
                policy::GATEWAY,
                (EthernetAddress([0; 6]), guest),
            );
            self.wait(frame);
        }
        None
    }
}

/// The gateway's ports for forwarded connections begin here (RFC 6335, 6: dynamic ports).
const FIRST_PORT: u16 = 49152;

impl Backend for Nat<Os> {
    fn offloads(&self) -> Offloads {
        Self::OFFLOADS
    }

    fn reset(&mut self, deliver: Offloads) {
        self.forget(deliver);
    }

    fn wake(&self) -> BorrowedFd<'_> {
        self.host.wake()
    }

    fn deadline(&self) -> Option<Duration> {
        self.next()
    }

    fn poll(&mut self) {
        self.news();
    }

    fn send(&mut self, frame: Frame<'_>) -> Result<(), Busy> {
        self.frame(frame);
        Ok(())
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        self.produce(into)
    }
}
