//! `--net` and `--publish`: what they may say, and what they mean to a machine and to the init of its guest.

use control::{Forward, NetBackend, NetConfig, Protocol, UserNet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// One `--net`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Net(NetConfig);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let mut backend = match first.split_once('=') {
            None if first == "user" => NetBackend::User(UserNet::default()),
            Some(("tap", name)) if !name.is_empty() => NetBackend::Tap(name.to_owned()),
            Some(("socket", path)) if !path.is_empty() => NetBackend::Socket(PathBuf::from(path)),
            _ => return Err("wants user, tap=NAME or socket=PATH first".to_owned()),
        };
        let mut mac = None;
        for word in words {
            match (word.split_once('=').unwrap_or((word, "")), &mut backend) {
                (("mac", value), _) => mac = Some(address(value)?),
                (("hostfwd", value), NetBackend::User(user)) => user.forwards.push(hostfwd(value)?),
                (("host-loopback", value), NetBackend::User(user)) => {
                    user.host_loopback = match value {
                        "on" => true,
                        "off" => false,
                        _ => return Err("host-loopback wants on or off".to_owned()),
                    };
                }
                ((key @ ("hostfwd" | "host-loopback"), _), _) => {
                    return Err(format!("{key} goes with user networking only"));
                }
                ((key, _), _) => {
                    return Err(format!(
                        "knows no `{key}`: there are mac, and for user hostfwd and host-loopback"
                    ));
                }
            }
        }
        Ok(Self(NetConfig { mac, backend }))
    }
}

/// One `--publish`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Publish(Forward);

impl FromStr for Publish {
    type Err = String;

    /// `[IP:]HOST:GUEST[/PROTOCOL]`, as docker has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wants = || "wants [IP:]HOST:GUEST[/udp], such as 8080:80".to_owned();
        let (ports, protocol) = match text.rsplit_once('/') {
            Some((ports, name)) => (ports, protocol(name)?),
            None => (text, Protocol::Tcp),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(wants)?;
        let (address, host) = match host.rsplit_once(':') {
            Some((address, host)) => (host_address(address)?, host),
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
        };
        let (host, guest_port) = (port(host)?, port(guest)?);
        Ok(Self(Forward { protocol, host: SocketAddr::new(address, host), guest: None, guest_port }))
    }
}

/// QEMU's `PROTOCOL:[HOST]:PORT-[GUEST]:PORT`.
fn hostfwd(text: &str) -> Result<Forward, String> {
    let wants = || "hostfwd wants tcp|udp:[IP]:PORT-[IP]:PORT, such as tcp:127.0.0.1:2222-:22".to_owned();
    let (name, ends) = text.split_once(':').ok_or_else(wants)?;
    let (host, guest) = ends.rsplit_once('-').ok_or_else(wants)?;
    let (address, host) = host.rsplit_once(':').ok_or_else(wants)?;
    let (guest, guest_port) = guest.rsplit_once(':').ok_or_else(wants)?;
    let guest = match guest {
        "" => None,
        guest => Some(guest.parse().map_err(|_| format!("`{guest}` is no IPv4 address of a guest's"))?),
    };
    Ok(Forward {
        protocol: protocol(name)?,
        host: SocketAddr::new(host_address(address)?, port(host)?),
        guest,
        guest_port: port(guest_port)?,
    })
}

fn protocol(name: &str) -> Result<Protocol, String> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("`{name}` is neither tcp nor udp")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
    port.filter(|port| *port != 0).ok_or_else(|| format!("`{text}` is no port: they go from 1 to 65535"))
}

/// Nothing stands for this host alone: what is open to everybody should say so.
fn host_address(text: &str) -> Result<IpAddr, String> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match (text, inner) {
        ("", _) => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (_, Some(six)) => six.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        (four, None) => four.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
    .ok_or_else(|| format!("`{text}` is no address of this host's; IPv6 stands in brackets"))
}

fn address(text: &str) -> Result<[u8; 6], String> {
    let wants = || "mac wants six bytes of a single card's address, such as 52:54:00:12:34:56".to_owned();
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let bytes: Option<Vec<u8>> = parts
        .iter()
        .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
        .collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).ok_or_else(wants)?;
    if mac[0] & 1 != 0 || mac == [0; 6] { Err(wants()) } else { Ok(mac) }
}

/// The machine's cards. A published port alone makes one.
///
/// # Errors
/// Published ports and no network that could have them.
pub(crate) fn cards(nets: &[Net], publish: &[Publish]) -> Result<Vec<NetConfig>, String> {
    let mut cards: Vec<NetConfig> = nets.iter().map(|net| net.0.clone()).collect();
    if cards.is_empty() && !publish.is_empty() {
        cards.push(NetConfig { mac: None, backend: NetBackend::User(UserNet::default()) });
    }
    let mut users = cards.iter_mut().filter_map(|card| match &mut card.backend {
        NetBackend::User(user) => Some(user),
        _ => None,
    });
    let user = users.next();
    if users.next().is_some() {
        return Err("--net user makes sense only once".to_owned());
    }
    match user {
        Some(user) => user.forwards.extend(publish.iter().map(|publish| publish.0)),
        None if !publish.is_empty() => {
            return Err("--publish goes with --net user only".to_owned());
        }
        None => {}
    }
    Ok(cards)
}

/// What the guest's init does with the cards, in the order in which the guest finds them: a line each.
pub(crate) fn instructions(cards: &[NetConfig]) -> String {
    cards
        .iter()
        .enumerate()
        .map(|(number, card)| match &card.backend {
            // DHCP would say the same, later.
            NetBackend::User(_) => format!(
                "eth{number} {}/{} {} {}\n",
                UserNet::GUEST,
                UserNet::PREFIX,
                UserNet::GATEWAY,
                UserNet::RESOLVER
            ),
            NetBackend::Socket(_) | NetBackend::Tap(_) => format!("eth{number} dhcp\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Forward {
        text.parse::<Publish>().unwrap().0
    }

    #[test]
    fn ports_are_published_as_docker_does_but_to_this_host_alone() {
        let tcp = |host: &str, guest_port| Forward {
            protocol: Protocol::Tcp,
            host: host.parse().unwrap(),
            guest: None,
            guest_port,
        };
        assert_eq!(forward("8080:80"), tcp("127.0.0.1:8080", 80));
        assert_eq!(forward("0.0.0.0:8080:80"), tcp("0.0.0.0:8080", 80));
        assert_eq!(forward("[::1]:8080:80/tcp"), tcp("[::1]:8080", 80));
        assert_eq!(forward("53:5353/udp"), Forward { protocol: Protocol::Udp, ..tcp("127.0.0.1:53", 5353) });
        for wrong in
            ["", "80", "80:", ":80", "0:80", "80:65536", "+80:80", "x:80:80", "80:80/sctp", "::1:80:80"]
        {
            assert!(wrong.parse::<Publish>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_are_named_as_qemu_and_others_do() {
        let Net(config) = "user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.16:5353,host-loopback=on,mac=52:54:00:ab:cd:ef"
            .parse()
            .unwrap();
        assert_eq!(config.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        let NetBackend::User(user) = config.backend else { panic!("{config:?}") };
        assert!(user.host_loopback);
        let ends: Vec<_> =
            user.forwards.iter().map(|f| (f.host.to_string(), f.guest, f.guest_port)).collect();
        let second = Some(Ipv4Addr::new(10, 0, 2, 16));
        assert_eq!(
            ends,
            [("127.0.0.1:2222".to_owned(), None, 22), ("127.0.0.1:53".to_owned(), second, 5353)]
        );
        assert_eq!("tap=t0".parse::<Net>().unwrap().0.backend, NetBackend::Tap("t0".to_owned()));
        assert_eq!("socket=/x".parse::<Net>().unwrap().0.backend, NetBackend::Socket("/x".into()));
        for wrong in [
            "",
            "usr",
            "tap=",
            "socket",
            "user,",
            "user,hostfwd",
            "user,hostfwd=tcp:1-2",
            "user,hostfwd=x::1-:2",
            "user,mac=1:2:3:4:5:6",
            "user,mac=01:00:00:00:00:00",
            "tap=t,hostfwd=tcp::1-:2",
            "user,host-loopback",
            "user,foo=1",
        ] {
            assert!(wrong.parse::<Net>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_published_port_alone_makes_a_network() {
        let publish = ["8080:80".parse().unwrap()];
        let made = cards(&[], &publish).unwrap();
        assert!(
            matches!(&made[..], [NetConfig { backend: NetBackend::User(user), .. }] if user.forwards.len() == 1)
        );
        assert!(cards(&["tap=t".parse().unwrap()], &publish).is_err());
        assert!(cards(&["user".parse().unwrap(), "user".parse().unwrap()], &[]).is_err());
        assert_eq!(cards(&[], &[]), Ok(Vec::new()));
        assert_eq!(instructions(&made), "eth0 10.0.2.15/24 10.0.2.2 10.0.2.3\n");
    }
}
