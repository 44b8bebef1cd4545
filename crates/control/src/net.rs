//! A guest's network card: what it is plugged into. Plain data.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A network card.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetConfig {
    /// The card's address; `None` where the machine may choose one.
    pub mac: Option<[u8; 6]>,
    /// What it is plugged into.
    pub backend: NetBackend,
}

/// What a network card is plugged into.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NetBackend {
    /// A network of its own that goes out through the host's sockets.
    User(UserNet),
    /// A Unix socket that another process listens on, with frames behind their length.
    Socket(PathBuf),
    /// A tap device of the host, by name.
    Tap(String),
}

/// A network of the guest's own.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct UserNet {
    /// The guest may reach the host itself: its loopback through the gateway's address, and the host's own addresses.
    pub host_loopback: bool,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

impl UserNet {
    /// The guest's address on its network.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// Its router, and the host's name there.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// Its resolver.
    pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
    /// Bits of the network's address.
    pub const PREFIX: u32 = 24;
}

/// A port of the host that leads into the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forward {
    /// Of both ports.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Which guest; `None` for the one that has the network's first address.
    pub guest: Option<Ipv4Addr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// Protocols that have ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As flags and messages have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
