//! Ports of the host that lead into the guest.
//!
//! The guest sees its gateway as the peer, with a port that stands for the real one. A connection is taken from the host
//! before the guest is asked, so a guest that refuses shows as a reset.

use super::host::{self, Host, Listener};
use super::policy;
use super::table::{Flow, Table};
use crate::NetError;
use control::{Forward, Protocol};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// A port that takes connections.
pub(super) struct TcpPort {
    pub(super) listener: Box<dyn Listener>,
    pub(super) guest: (Ipv4Addr, u16),
    pub(super) readable: bool,
}

/// A port that takes datagrams.
pub(super) struct UdpPort {
    pub(super) socket: Box<dyn host::Datagrams>,
    pub(super) guest: (Ipv4Addr, u16),
    pub(super) readable: bool,
    /// The gateway's port that stands for a peer.
    pub(super) peers: HashMap<SocketAddr, u16>,
}

/// Opens the ports.
///
/// # Errors
/// The first that the host refuses.
pub(super) fn open(host: &mut impl Host, table: &mut Table, forwards: &[Forward]) -> Result<(), NetError> {
    for forward in forwards {
        let guest = (forward.guest.unwrap_or(policy::GUEST), forward.guest_port);
        let (slot, token) = table.reserve();
        let flow = match forward.protocol {
            Protocol::Tcp => host
                .listen(forward.host, token)
                .map(|listener| Flow::TcpPort(TcpPort { listener, guest, readable: false })),
            Protocol::Udp => host.bind(forward.host, token).map(|socket| {
                Flow::UdpPort(UdpPort { socket, guest, readable: false, peers: HashMap::new() })
            }),
        };
        let refused = |source: io::Error| NetError::Listen {
            address: forward.host,
            protocol: forward.protocol.name(),
            guest_port: forward.guest_port,
            source,
        };
        table.put(slot, None, flow.map_err(refused)?);
    }
    Ok(())
}

#[cfg(test)]
impl UdpPort {
    /// One that nobody sends to.
    pub(super) fn for_test() -> Self {
        let mut host = super::os::Os::new().expect("epoll");
        let socket = host.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 0).expect("a free port");
        Self { socket, guest: (policy::GUEST, 1), readable: false, peers: HashMap::new() }
    }
}
