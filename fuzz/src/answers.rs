//! What other processes answer: an NBD server's handshake and replies, a plug-in's messages. Any bytes end in an error or in what was asked for.
//!
//! Asserted: nothing panics, no answer takes more memory than it has bytes.
//!
//! Threads: one.

use crate::Input;
use crypt::plugin::protocol::{self, Head, Kind};
use disk::nbd::wire::{self, Session};
use std::io::{self, Read, Write};

/// The other end: says what the input has, and hears nothing.
struct Says<'a>(&'a [u8]);

impl Read for Says<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Says<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One run.
///
/// # Panics
/// Where an answer breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (server, prefixed) = (input.flag(), input.flag());
    let rest = bytes.get(2..).unwrap_or_default();
    if server {
        let mut all = Vec::new();
        if prefixed {
            // A sound greeting, so that the rest is looked at.
            all.extend(b"NBDMAGICIHAVEOPT\0\x03");
        }
        all.extend(rest);
        let mut stream = Says(&all);
        let _ = wire::greet(&mut stream, "export");
        let mut session = Session::new(stream);
        let mut sector = [0; 512];
        while matches!(session.request(0, 0, 0, 512, &[], &mut sector), Ok(Ok(()) | Err(_))) {}
        return;
    }
    let mut answer = Vec::new();
    for kind in [Kind::Open, Kind::Create, Kind::Encrypt, Kind::Decrypt] {
        let mut all = Vec::new();
        if prefixed {
            all.extend(Head { kind: kind as u16, status: 0, sector: 0, len: rest.len() }.bytes());
        }
        all.extend(rest);
        let exactly = matches!(kind, Kind::Encrypt | Kind::Decrypt).then_some(512);
        let asked = protocol::ask(&mut Says(&all), kind, 0, &[b"x"], &mut answer, exactly);
        assert!(answer.len() <= all.len() && answer.capacity() <= 4 * all.len() + 64);
        if matches!(asked, Ok(Ok(()))) {
            assert!(exactly.is_none_or(|exactly| exactly == answer.len()));
            let _ = protocol::answer(&answer);
        }
    }
}
