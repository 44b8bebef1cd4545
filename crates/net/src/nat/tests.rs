//! The NAT with a guest made of smoltcp, over real sockets of this host.

mod guest;

use super::policy::{GATEWAY, GUEST, RESOLVER};
use super::*;
use control::{Forward, Protocol};
use guest::Machine;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn reachable() -> UserNet {
    UserNet { host_loopback: true, forwards: Vec::new() }
}

/// A forward to a port of the guest's, and where the host listens.
fn forwarded(protocol: Protocol, guest_port: u16) -> (Machine, SocketAddr) {
    // Taken and given back at once: nobody else here asks for a port by its number.
    let host = match protocol {
        Protocol::Tcp => TcpListener::bind((LOCAL, 0)).unwrap().local_addr(),
        Protocol::Udp => UdpSocket::bind((LOCAL, 0)).unwrap().local_addr(),
    }
    .unwrap();
    let forward = Forward { protocol, host, guest: None, guest_port };
    (Machine::new(&UserNet { host_loopback: false, forwards: vec![forward] }), host)
}

/// Bytes that a shift or a swap would show.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn dhcp_gives_the_guest_its_address_router_and_resolver() {
    let mut machine = Machine::new(&UserNet::default());
    let lease = machine.dhcp();
    assert_eq!(lease.address, GUEST);
    assert_eq!((lease.router, lease.resolver, lease.prefix), (Some(GATEWAY), Some(RESOLVER), 24));
    assert_eq!(machine.dhcp().address, GUEST, "the same card gets the same address");
}

#[test]
fn bytes_go_out_and_come_back_unchanged_with_and_without_offloads() {
    for offloads in [Offloads::default(), Nat::<Os>::OFFLOADS] {
        let server = TcpListener::bind((LOCAL, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let echo = thread::spawn(move || {
            let (mut peer, _) = server.accept().unwrap();
            let mut all = Vec::new();
            // Half-closed: everything is read up to the guest's end before a byte goes back.
            peer.read_to_end(&mut all).unwrap();
            peer.write_all(&all).unwrap();
            all
        });
        let mut machine = Machine::new(&reachable());
        machine.nat.forget(offloads);
        let data = pattern(3 << 20);
        let handle = machine.connect((GATEWAY, port));
        let back = machine.exchange(handle, &data);
        assert!(back == data, "{} bytes of {}", back.len(), data.len());
        assert_eq!(echo.join().unwrap(), data);
        let most = machine.longest;
        assert_eq!(most > 1514, offloads.tcp4, "longest frame: {most}");
    }
}

#[test]
fn a_refused_connection_is_refused_to_the_guest() {
    let free = TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
    let mut machine = Machine::new(&reachable());
    let handle = machine.connect((GATEWAY, free));
    machine.until(|machine| machine.state(handle) == State::Closed);
    assert!(machine.resets > 0);
}

#[test]
fn the_host_itself_is_out_of_reach_unless_allowed() {
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut machine = Machine::new(&UserNet::default());
    // 192.0.2.x and the like can't be relied on here: an address of this host's, if it has one but loopback.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.88.99.1:9").and_then(|()| probe.local_addr()).ok();
    let mut targets = vec![GATEWAY, LOCAL, Ipv4Addr::new(127, 9, 9, 9)];
    targets.extend(own.and_then(|address| match address.ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }));
    for target in targets {
        let handle = machine.connect((target, port));
        machine.until(|machine| machine.state(handle) == State::Closed);
        assert!(server.accept().is_err(), "reached through {target}");
    }
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut machine = Machine::new(&reachable());
    // The host's.
    let handle = machine.connect((GATEWAY, port));
    machine.until(|machine| machine.state(handle) == State::Established);
    let (peer, _) = server.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    machine.until(|machine| machine.state(handle) == State::Closed);
    // The guest's.
    let handle = machine.connect((GATEWAY, port));
    machine.until(|machine| machine.state(handle) == State::Established);
    let (mut peer, _) = server.accept().unwrap();
    machine.abort(handle);
    peer.set_nonblocking(true).unwrap();
    let mut end = None;
    machine.until(|_| {
        end = peer.read(&mut [0]).err().map(|error| error.kind());
        end != Some(std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_peer_that_reads_nothing_stops_the_guest_and_memory_stays_as_it_is() {
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut machine = Machine::new(&reachable());
    let handle = machine.connect((GATEWAY, port));
    machine.until(|machine| machine.state(handle) == State::Established);
    let (mut peer, _) = server.accept().unwrap();
    let data = pattern(64 << 10);
    let mut sent = Vec::new();
    let mut idle = 0;
    while idle < 200 {
        let count = machine.send(handle, &data);
        sent.extend_from_slice(&data[..count]);
        machine.turn();
        idle = if count == 0 { idle + 1 } else { 0 };
        assert!(sent.len() < 64 << 20, "nothing stops the guest");
    }
    machine.close(handle);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    });
    machine.until(|_| reader.is_finished());
    assert!(reader.join().unwrap().unwrap() == sent);
}

#[test]
fn a_port_of_the_host_leads_into_the_guest() {
    let (mut machine, host) = forwarded(Protocol::Tcp, 80);
    let handle = machine.listen(80);
    let data = pattern(1 << 20);
    let expected = data.clone();
    let client = thread::spawn(move || {
        let mut peer = TcpStream::connect(host).unwrap();
        peer.write_all(&data).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        peer.read_to_end(&mut back).unwrap();
        back
    });
    machine.until(|machine| machine.state(handle) == State::Established);
    assert_eq!(machine.peer(handle).unwrap().0, GATEWAY);
    assert!(machine.exchange(handle, b"from the guest") == expected);
    machine.until(|_| client.is_finished());
    assert_eq!(client.join().unwrap(), b"from the guest");
}

#[test]
fn a_guest_that_refuses_a_forwarded_connection_resets_it() {
    let (mut machine, host) = forwarded(Protocol::Tcp, 81);
    let mut peer = TcpStream::connect(host).unwrap();
    peer.set_nonblocking(true).unwrap();
    let mut end = None;
    machine.until(|_| {
        end = peer.read(&mut [0]).err().map(|error| error.kind());
        end != Some(std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_port_that_is_taken_is_refused_with_its_name() {
    let taken = TcpListener::bind((LOCAL, 0)).unwrap();
    let host = taken.local_addr().unwrap();
    let forward = Forward { protocol: Protocol::Tcp, host, guest: None, guest_port: 22 };
    let error = Nat::open(&UserNet { host_loopback: false, forwards: vec![forward] }).err().unwrap();
    assert!(error.to_string().contains(&format!("{host}/tcp")), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("in use"));
}

#[test]
fn datagrams_go_both_ways_also_long_ones() {
    let server = UdpSocket::bind((LOCAL, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    server.set_nonblocking(true).unwrap();
    let mut machine = Machine::new(&reachable());
    for length in [0, 1, 1472, 1473, 9000, 60_000] {
        let data = pattern(length);
        machine.send_datagram(4000, (GATEWAY, port), &data);
        let mut buffer = vec![0; 65536];
        let mut got = None;
        machine.until(|_| {
            got = server.recv_from(&mut buffer).ok();
            got.is_some()
        });
        let (count, from) = got.unwrap();
        assert!(buffer[..count] == data, "{count} of {length}");
        server.send_to(&buffer[..count], from).unwrap();
        let mut back = None;
        machine.until(|machine| {
            back = machine.datagram();
            back.is_some()
        });
        assert_eq!(back, Some(((GATEWAY, port), 4000, data)));
    }
}

#[test]
fn a_datagram_to_a_closed_port_comes_back_as_unreachable() {
    let free = UdpSocket::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
    for (loopback, what) in [(true, "closed"), (false, "forbidden")] {
        let mut machine = Machine::new(&UserNet { host_loopback: loopback, forwards: Vec::new() });
        machine.send_datagram(4001, (GATEWAY, free), b"anybody?");
        let mut answer = None;
        machine.until(|machine| {
            answer = machine.icmp();
            answer.is_some()
        });
        let (from, message) = answer.unwrap();
        assert_eq!((from, message[0], message[1]), (GATEWAY, 3, 3), "{what}");
        // What it is about: the guest's own header, and its ports.
        assert_eq!(message[8 + 20..8 + 22], 4001_u16.to_be_bytes());
    }
}

#[test]
fn a_udp_port_of_the_host_leads_into_the_guest_and_back() {
    let (mut machine, host) = forwarded(Protocol::Udp, 53);
    machine.announce();
    let clients = [UdpSocket::bind((LOCAL, 0)).unwrap(), UdpSocket::bind((LOCAL, 0)).unwrap()];
    for (client, text) in clients.iter().zip([&b"one"[..], b"two"]) {
        client.set_nonblocking(true).unwrap();
        client.send_to(text, host).unwrap();
        let mut got = None;
        machine.until(|machine| {
            got = machine.datagram();
            got.is_some()
        });
        let (from, to, data) = got.unwrap();
        assert_eq!((from.0, to, &data[..]), (GATEWAY, 53, text));
        machine.send_datagram(53, from, text);
    }
    for (client, text) in clients.iter().zip([&b"one"[..], b"two"]) {
        let mut buffer = [0; 16];
        let mut got = None;
        machine.until(|_| {
            got = client.recv_from(&mut buffer).ok();
            got.is_some()
        });
        assert_eq!((&buffer[..text.len()], got), (text, Some((text.len(), host))));
    }
}

#[test]
fn the_gateway_answers_echo() {
    let mut machine = Machine::new(&UserNet::default());
    for peer in [GATEWAY, RESOLVER] {
        machine.ping(peer, 7, 1, b"are you there");
        let mut answer = None;
        machine.until(|machine| {
            answer = machine.icmp();
            answer.is_some()
        });
        let (from, message) = answer.unwrap();
        assert_eq!(
            (from, message[0], &message[4..8], &message[8..]),
            (peer, 0, &[0, 7, 0, 1][..], &b"are you there"[..])
        );
    }
}

#[test]
fn a_thousand_connections_at_a_time_work() {
    const COUNT: usize = 1000;
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut machine = Machine::new(&reachable());
    let peers = thread::spawn(move || -> Vec<TcpStream> {
        (0..COUNT)
            .map(|_| {
                let (mut peer, _) = server.accept().unwrap();
                peer.write_all(b"hello").unwrap();
                peer
            })
            .collect()
    });
    let mut handles = Vec::new();
    for _ in 0..COUNT {
        let handle = machine.connect((GATEWAY, port));
        machine.until(|machine| machine.state(handle) == State::Established);
        handles.push(handle);
    }
    let peers = peers.join().unwrap();
    machine.until(|machine| handles.iter().all(|&handle| machine.received(handle) == 5));
    drop(peers);
    for handle in handles {
        machine.close(handle);
        machine.until(|machine| matches!(machine.state(handle), State::TimeWait | State::Closed));
    }
    machine.until(|machine| machine.nat.table.count(&table::Key::TCP) == 0);
}

#[test]
fn a_new_driver_finds_no_flows_of_the_old_one() {
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut machine = Machine::new(&reachable());
    let handle = machine.connect((GATEWAY, port));
    machine.until(|machine| machine.state(handle) == State::Established);
    machine.nat.forget(Offloads::default());
    assert_eq!(machine.nat.table.count(&table::Key::TCP), 0);
    let (mut peer, _) = server.accept().unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// This host, but for its resolvers.
struct Resolving(Os, Vec<SocketAddr>);

impl Host for Resolving {
    fn now(&self) -> Duration {
        self.0.now()
    }
    fn poll(&mut self, events: &mut Vec<Event>) {
        self.0.poll(events);
    }
    fn connect(&mut self, to: SocketAddr, token: u64) -> std::io::Result<Box<dyn host::Stream>> {
        self.0.connect(to, token)
    }
    fn datagrams(&mut self, to: SocketAddr, token: u64) -> std::io::Result<Box<dyn host::Datagrams>> {
        self.0.datagrams(to, token)
    }
    fn echo(&mut self, to: Ipv4Addr, token: u64) -> std::io::Result<Box<dyn host::Datagrams>> {
        self.0.echo(to, token)
    }
    fn listen(&mut self, at: SocketAddr, token: u64) -> std::io::Result<Box<dyn host::Listener>> {
        self.0.listen(at, token)
    }
    fn bind(&mut self, at: SocketAddr, token: u64) -> std::io::Result<Box<dyn host::Datagrams>> {
        self.0.bind(at, token)
    }
    fn is_own(&self, address: Ipv4Addr) -> bool {
        self.0.is_own(address)
    }
    fn resolvers(&mut self) -> Vec<SocketAddr> {
        self.1.clone()
    }
}

#[test]
fn questions_go_to_the_hosts_resolvers_and_answers_come_from_the_guests() {
    let server = UdpSocket::bind((LOCAL, 0)).unwrap();
    server.set_nonblocking(true).unwrap();
    let host = Resolving(Os::new().unwrap(), vec![server.local_addr().unwrap()]);
    let mut machine = Machine::over(Nat::new(host, &UserNet::default(), 1).unwrap());
    machine.send_datagram(4000, (RESOLVER, 53), b"where is it?");
    let mut buffer = [0; 64];
    let mut asked = None;
    machine.until(|_| {
        asked = server.recv_from(&mut buffer).ok();
        asked.is_some()
    });
    let (length, from) = asked.unwrap();
    assert_eq!(&buffer[..length], b"where is it?");
    server.send_to(b"there", from).unwrap();
    let mut answer = None;
    machine.until(|machine| {
        answer = machine.datagram();
        answer.is_some()
    });
    assert_eq!(answer, Some(((RESOLVER, 53), 4000, b"there".to_vec())));
    // Nothing else of the resolver's is there.
    machine.send_datagram(4001, (RESOLVER, 54), b"?");
    machine.until(|machine| machine.icmp().is_some());
}
