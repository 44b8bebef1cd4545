//! User networking, by what programs in a guest and on the host see of it.

use crate::process::{Guests, PATIENCE, run, wait};
use crate::{CLOUD, Test};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_web_server_in_the_guest_is_reached_through_a_published_port", NETWORK, web),
    ("a_hundred_megabytes_go_both_ways_unchanged", NETWORK, transfer),
    ("the_hosts_own_ports_are_refused_unless_allowed", NETWORK, loopback),
    ("dhcp_and_names_work_in_the_guest", NETWORK, names),
    ("a_published_port_that_is_taken_is_said", CLOUD, taken),
];

/// The kernel has its network card's driver as a module.
const NETWORK: &[&str] = &["cloud/vmlinuz", "cloud/modules", "busybox"];

const TRANSFER: usize = 100 << 20;

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

fn web(guests: &Guests) {
    let port = listen().1;
    let script = "mkdir /www; echo 'from the guest' >/www/page; exec httpd -f -p 80 -h /www";
    let mut child = guests
        .ombra()
        .args(["-p", &format!("{port}:80"), "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    let answer = loop {
        match get(port, "/page") {
            Ok(answer) => break answer,
            // While the guest boots, connections are taken and then reset.
            Err(error) => assert!(start.elapsed() < PATIENCE, "no answer: {error}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    child.kill().expect("it runs");
    wait(&mut child, PATIENCE);
    assert!(answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\nfrom the guest\n"), "{answer}");
}

/// The host's bytes end up in a file of the guest's, which sends them back.
fn transfer(guests: &Guests) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = (0..TRANSFER / 8)
        .flat_map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()
        })
        .collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), &data).expect("a file");
    let sum = Command::new("sha256sum").arg(file.path()).output().expect("sha256sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();

    let ((down, down_port), (up, up_port)) = (listen(), listen());
    let expected = data.clone();
    let server = thread::spawn(move || {
        let (mut stream, _) = down.accept().expect("a connection");
        stream.write_all(&data).expect("the guest reads");
        drop(stream);
        let (mut stream, _) = up.accept().expect("a connection");
        let mut back = vec![0; TRANSFER];
        stream.read_exact(&mut back).expect("the guest writes");
        back
    });
    let script = format!(
        "nc 10.0.2.2 {down_port} </dev/null >/tmp/file; sha256sum </tmp/file; nc 10.0.2.2 {up_port} </tmp/file"
    );
    let flags = ["--memory", "512M", "--net", "user,host-loopback=on", "--", "sh", "-c", &script];
    let ended = run(guests.ombra().args(flags), None);
    assert_eq!((ended.text().split(' ').next(), ended.status), (Some(&*sum), Some(0)), "{}", ended.stderr);
    assert!(server.join().expect("the server ends") == expected, "what came back differs");
}

fn loopback(guests: &Guests) {
    let (listener, port) = listen();
    listener.set_nonblocking(true).expect("a socket");
    let script = format!("for it in 10.0.2.2 127.0.0.1; do nc -w 20 $it {port} </dev/null; echo $?; done");
    let start = Instant::now();
    let ended = run(guests.ombra().args(["--net", "--", "sh", "-c", &script]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("1\n1\n", Some(0)), "{}", ended.stderr);
    assert!(ended.stderr.contains("refused"), "{}", ended.stderr);
    assert!(listener.accept().is_err(), "the guest has reached the host, after {:?}", start.elapsed());
}

fn names(guests: &Guests) {
    let script = "printf '#!/bin/sh\\necho $1 $ip $router $dns\\n' >/tmp/say; chmod +x /tmp/say
        udhcpc -f -q -n -i eth0 -s /tmp/say 2>/dev/null
        ping -c 1 -w 20 10.0.2.2 >/dev/null && echo pong
        cat /etc/resolv.conf
        nslookup deb.debian.org >/tmp/names 2>&1 && echo named || cat /tmp/names";
    let ended = run(guests.ombra().args(["--net", "--", "sh", "-c", script]), None);
    let text = ended.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("deconfig"), "{text}{}", ended.stderr);
    assert_eq!(lines.next(), Some("bound 10.0.2.15 10.0.2.2 10.0.2.3"), "{text}{}", ended.stderr);
    assert_eq!(lines.next(), Some("pong"), "{text}{}", ended.stderr);
    assert_eq!(lines.next(), Some("nameserver 10.0.2.3"), "{text}{}", ended.stderr);
    if ("deb.debian.org", 80)
        .to_socket_addrs()
        .is_ok_and(|mut found| found.any(|at| matches!(at, SocketAddr::V4(_))))
    {
        assert_eq!(lines.next(), Some("named"), "{text}{}", ended.stderr);
    } else {
        eprintln!("SKIPPED asking for a name: this host finds none");
    }
}

fn taken(guests: &Guests) {
    let (_listener, port) = listen();
    let ended = run(guests.ombra().args(["-p", &format!("{port}:80"), "--", "true"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("", Some(125)), "{}", ended.stderr);
    let line = format!("127.0.0.1:{port}/tcp");
    assert!(ended.stderr.contains(&line) && ended.stderr.contains("in use"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
