//! What the NAT needs of the host, apart from it: sockets, a clock, names of resolvers.
//!
//! [`super::os`] is the real one. Tests and fuzzing have others, which do the same every time.
//!
//! All sockets are non-blocking, and readiness is told in edges: [`Host::poll`] names a socket once when it becomes readable
//! or writable, and again only after an operation on it has said `WouldBlock`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The host, as the NAT sees it. `token` is what [`Event`]s of the new socket carry.
pub trait Host: Send {
    /// Time since some moment in the past. Never goes back.
    fn now(&self) -> Duration;

    /// Adds what has happened since the last call to `events`.
    fn poll(&mut self, events: &mut Vec<Event>);

    /// Begins to connect; writable, when it is decided.
    ///
    /// # Errors
    /// The host's refusal, where it is known at once.
    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<Box<dyn Stream>>;

    /// A UDP socket for one peer.
    ///
    /// # Errors
    /// The host's refusal.
    fn datagrams(&mut self, to: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>>;

    /// A socket for ICMP echo with one peer: takes and gives ICMP messages; the identifier is the host's.
    ///
    /// # Errors
    /// The host doesn't let this user ping.
    fn echo(&mut self, to: Ipv4Addr, token: u64) -> io::Result<Box<dyn Datagrams>>;

    /// Listens for connections.
    ///
    /// # Errors
    /// The host's refusal.
    fn listen(&mut self, at: SocketAddr, token: u64) -> io::Result<Box<dyn Listener>>;

    /// A UDP socket for everybody.
    ///
    /// # Errors
    /// The host's refusal.
    fn bind(&mut self, at: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>>;

    /// Whether the host itself has this address.
    fn is_own(&self, address: Ipv4Addr) -> bool;

    /// The host's resolvers, in its order; at least one.
    fn resolvers(&mut self) -> Vec<SocketAddr>;
}

/// Something has happened to a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The socket's.
    pub token: u64,
    /// Data, the end or an error may have come.
    pub readable: bool,
    /// There may be room, or the connection is decided.
    pub writable: bool,
}

/// A TCP connection. Dropping it closes it.
pub trait Stream: Send {
    /// What became of connecting.
    ///
    /// # Errors
    /// Why there is no connection.
    fn connected(&mut self) -> io::Result<()>;

    /// Reads into `buffer`; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock`, or how the connection ended.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from `data`.
    ///
    /// # Errors
    /// `WouldBlock`, or how the connection ended.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;

    /// No more data will be written.
    fn finish(&mut self);

    /// The peer is to see a reset when this is dropped.
    fn reset(&mut self);
}

/// A socket that keeps messages apart.
pub trait Datagrams: Send {
    /// Sends to the one peer, or to `to`.
    ///
    /// # Errors
    /// `WouldBlock`, or what came back to what was sent earlier.
    fn send(&mut self, data: &[u8], to: Option<SocketAddr>) -> io::Result<()>;

    /// Receives a message, cut to `buffer`: its length and its sender.
    ///
    /// # Errors
    /// `WouldBlock`, or what came back to what was sent.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
}

/// A port that takes connections.
pub trait Listener: Send {
    /// The next connection. The peer's address goes with it.
    ///
    /// # Errors
    /// `WouldBlock`, or the host's refusal.
    fn accept(&mut self, token: u64) -> io::Result<(Box<dyn Stream>, SocketAddr)>;

    /// Where it listens, with the port that the host chose if that was left to it.
    ///
    /// # Errors
    /// The host's refusal.
    fn address(&self) -> io::Result<SocketAddr>;
}
