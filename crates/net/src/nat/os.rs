//! The host's sockets, all in one epoll set in edge-triggered mode.
//!
//! The set's descriptor is itself readable when a socket in it has news, which is how the front end's worker waits for all.

use super::host::{Datagrams, Event, Host, Listener, Stream};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as the C library looks at.
const MOST_RESOLVERS: usize = 3;
/// How long an answer about `resolv.conf` holds.
const RESOLVERS_FOR: Duration = Duration::from_secs(2);
const EVENTS_AT_ONCE: usize = 256;
/// A guest's flows each take a descriptor; many hosts allow 1024 until asked for more.
const DESCRIPTORS: u64 = 16 << 10;

/// The real host.
#[derive(Debug)]
pub struct Os {
    epoll: Arc<OwnedFd>,
    start: Instant,
    resolvers: Vec<SocketAddr>,
    looked: Option<(Instant, Option<SystemTime>)>,
}

impl Os {
    /// An empty set.
    ///
    /// # Errors
    /// The host refuses epoll.
    pub fn new() -> io::Result<Self> {
        raise_descriptors();
        Ok(Self {
            epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            start: Instant::now(),
            resolvers: Vec::new(),
            looked: None,
        })
    }

    /// Readable when [`Host::poll`] has something to tell.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn watch(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        watch(&self.epoll, socket, token)
    }
}

fn watch(set: &OwnedFd, socket: &impl AsFd, token: u64) -> io::Result<()> {
    let what =
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    Ok(epoll::add(set, socket, epoll::EventData::new_u64(token), what)?)
}

/// As far as it goes: failing that, fewer flows fit.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_some_and(|now| now < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
    }
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<rustix::net::Protocol>,
) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)?)
}

impl Host for Os {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let mut found = Vec::<epoll::Event>::with_capacity(EVENTS_AT_ONCE);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&*self.epoll, spare_capacity(&mut found), Some(&now)).is_err() {
            return;
        }
        events.extend(found.iter().map(|event| {
            let flags = event.flags;
            let over = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            Event {
                token: event.data.u64(),
                readable: over || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: over || flags.contains(epoll::EventFlags::OUT),
            }
        }));
    }

    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<Box<dyn Stream>> {
        let socket = socket(family(&to), SocketType::STREAM, None)?;
        // Data goes on in the pieces in which the guest sent it.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        self.watch(&socket, token)?;
        Ok(Box::new(Tcp(TcpStream::from(socket))))
    }

    fn datagrams(&mut self, to: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        let socket = socket(family(&to), SocketType::DGRAM, None)?;
        rustix::net::connect(&socket, &to)?;
        self.watch(&socket, token)?;
        Ok(Box::new(Udp(UdpSocket::from(socket))))
    }

    fn echo(&mut self, to: Ipv4Addr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP))?;
        rustix::net::connect(&socket, &SocketAddr::new(IpAddr::V4(to), 0))?;
        self.watch(&socket, token)?;
        Ok(Box::new(Udp(UdpSocket::from(socket))))
    }

    fn listen(&mut self, at: SocketAddr, token: u64) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        self.watch(&listener, token)?;
        Ok(Box::new(Listening { listener, epoll: Arc::clone(&self.epoll) }))
    }

    fn bind(&mut self, at: SocketAddr, token: u64) -> io::Result<Box<dyn Datagrams>> {
        let socket = UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        self.watch(&socket, token)?;
        Ok(Box::new(Udp(socket)))
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        // Who talks to itself does so from the address that it talks to: the routing table answers, and nothing is sent.
        let asked = || -> io::Result<IpAddr> {
            let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            probe.connect((address, 9))?;
            Ok(probe.local_addr()?.ip())
        };
        match asked() {
            Ok(source) => source == IpAddr::V4(address) || source.is_loopback(),
            // Without a route, or without descriptors, the connection itself fails for the same reason.
            Err(_) => false,
        }
    }

    fn resolvers(&mut self) -> Vec<SocketAddr> {
        let now = Instant::now();
        if self.looked.is_none_or(|(at, _)| now - at >= RESOLVERS_FOR) {
            let modified = fs::metadata(RESOLV_CONF).and_then(|metadata| metadata.modified()).ok();
            if self.looked.is_none_or(|(_, before)| before != modified) {
                self.resolvers = resolvers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default());
            }
            self.looked = Some((now, modified));
        }
        self.resolvers.clone()
    }
}

/// resolv.conf(5): without a server, the host itself is one.
fn resolvers(text: &str) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(MOST_RESOLVERS)
        .collect();
    if found.is_empty() {
        found.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
    }
    found
}

struct Tcp(TcpStream);

impl Stream for Tcp {
    fn connected(&mut self) -> io::Result<()> {
        match self.0.take_error()? {
            Some(error) => Err(error),
            None => self.0.peer_addr().map(drop),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn finish(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    fn reset(&mut self) {
        let _ = sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
    }
}

struct Udp(UdpSocket);

impl Datagrams for Udp {
    fn send(&mut self, data: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
        match to {
            Some(to) => self.0.send_to(data, to).map(drop),
            None => self.0.send(data).map(drop),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer)
    }
}

struct Listening {
    listener: TcpListener,
    epoll: Arc<OwnedFd>,
}

impl Listener for Listening {
    fn accept(&mut self, token: u64) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, peer) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let _ = stream.set_nodelay(true);
        watch(&self.epoll, &stream, token)?;
        Ok((Box::new(Tcp(stream)), peer))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_come_from_the_file_and_else_the_host_is_one() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver\t9.9.9.9\n nameserver fe80::1%eth0\nnameserver ::1 \n\
                    nameservers 2.2.2.2\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["9.9.9.9:53", "[::1]:53", "8.8.8.8:53"]);
        assert_eq!(resolvers("search x\n"), [SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]);
    }

    #[test]
    fn the_hosts_own_addresses_are_known() {
        let host = Os::new().unwrap();
        assert!(host.is_own(Ipv4Addr::LOCALHOST));
        assert!(host.is_own(Ipv4Addr::new(127, 1, 2, 3)));
        assert!(!host.is_own(Ipv4Addr::new(192, 88, 99, 77)));
    }
}
