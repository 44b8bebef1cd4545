//! Where an NBD server is, in the form of URI that its tools share: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`.

use super::wire::Stream;
use crate::OpenError;
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// IANA's number.
const PORT: u16 = 10809;

/// A server's address and which of its disks is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    place: Place,
    /// The disk's name; mostly empty.
    pub export: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Address {
    /// `None` where the text doesn't begin like an address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self, OpenError>> {
        let parsed = if let Some(rest) = text.strip_prefix("nbd+unix://") {
            unix(rest)
        } else if let Some(rest) = text.strip_prefix("nbd://") {
            tcp(rest)
        } else {
            return None;
        };
        Some(parsed.ok_or_else(|| OpenError::Nbd {
            at: text.to_owned(),
            source: io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither nbd://HOST[:PORT]/EXPORT nor nbd+unix:///EXPORT?socket=PATH",
            ),
        }))
    }

    /// It is on this host, behind a socket in the file system.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Unix(_))
    }

    pub(super) fn connect(&self) -> io::Result<Stream> {
        Ok(match &self.place {
            Place::Tcp(host, port) => Stream::Tcp(TcpStream::connect((host.as_str(), *port))?),
            Place::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{}", self.export),
            Place::Unix(path) => write!(f, "nbd+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

fn unix(rest: &str) -> Option<Address> {
    let (export, query) = rest.strip_prefix('/')?.split_once('?')?;
    let path = query.split('&').find_map(|pair| pair.strip_prefix("socket="))?;
    let path = unescaped(path)?;
    (!path.is_empty()).then_some(Address { place: Place::Unix(path.into()), export: unescaped(export)? })
}

fn tcp(rest: &str) -> Option<Address> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    // An IPv6 address stands in brackets.
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    (!host.is_empty())
        .then_some(Address { place: Place::Tcp(host.to_owned(), port), export: unescaped(export)? })
}

/// Text with `%XX` for bytes.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        bytes.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        Address::parse(text)
            .map(|parsed| parsed.map_or_else(|_| "wrong".to_owned(), |address| address.to_string()))
    }

    #[test]
    fn addresses_are_those_of_the_tools() {
        let same = |text: &str| assert_eq!(shown(text).as_deref(), Some(text));
        same("nbd://localhost:10810/disk");
        same("nbd+unix:///?socket=/tmp/x");
        same("nbd+unix:///a/b?socket=/tmp/x");
        assert_eq!(shown("nbd://host").as_deref(), Some("nbd://host:10809/"));
        assert_eq!(shown("nbd://[::1]:5/").as_deref(), Some("nbd://::1:5/"));
        assert_eq!(shown("nbd+unix:///?socket=a%20b").as_deref(), Some("nbd+unix:///?socket=a b"));
        for wrong in [
            "nbd://",
            "nbd://h:x/",
            "nbd+unix:///",
            "nbd+unix://h/?socket=a",
            "nbd+unix:///?socket=%0",
            "nbd://h/%00",
        ] {
            assert_eq!(shown(wrong).as_deref(), Some("wrong"), "{wrong}");
        }
        assert_eq!(shown("disk.img"), None);
        assert_eq!(shown("nbd.img"), None);
    }
}
