//! The NBD protocol as a client speaks it: fixed newstyle handshake, simple replies. Everything big-endian.
//!
//! Source: the protocol's specification, `doc/proto.md` of the NetworkBlockDevice project. Left out: TLS, structured replies, metadata
//! contexts, the old handshake.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

const GREETING: &[u8; 8] = b"NBDMAGIC";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Handshake flags, of either side.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
/// Options.
const EXPORT_NAME: u32 = 1;
const GO: u32 = 7;
/// Kinds of an option's reply.
const ACK: u32 = 1;
const INFO: u32 = 3;
const IS_ERROR: u32 = 1 << 31;
const UNSUPPORTED: u32 = IS_ERROR | 1;
/// Kinds of information.
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// Bytes of an option's reply, replies to an option: no server needs more.
const MOST_REPLY: usize = 64 << 10;
const MOST_REPLIES: usize = 64;

/// What an export can do.
pub(super) mod flag {
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const ZEROES: u16 = 1 << 6;
    pub(crate) const MULTIPLE: u16 = 1 << 8;
}

/// Requests.
pub(super) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    /// Of [`WRITE_ZEROES`].
    pub(crate) const NO_HOLE: u16 = 1 << 1;
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// To a socket of this host.
    Unix(UnixStream),
    /// To any host.
    Tcp(TcpStream),
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(from),
            Self::Tcp(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk as the server describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its size.
    pub bytes: u64,
    /// What it can do.
    pub flags: u16,
    /// The smallest request, in bytes.
    pub least: u32,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn half(stream: &mut impl Read) -> io::Result<u16> {
    Ok(u16::from_be_bytes(take(stream)?))
}

fn word(stream: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(take(stream)?))
}

fn long(stream: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_be_bytes(take(stream)?))
}

/// The handshake, up to where requests may be made.
///
/// # Errors
/// The connection's; what the server says is wrong; that it refuses.
pub fn greet(stream: &mut (impl Read + Write), export: &str) -> io::Result<Export> {
    if &take::<8>(stream)? != GREETING {
        return Err(wrong("that is no NBD server"));
    }
    if &take::<8>(stream)? != OPTION {
        return Err(wrong("it speaks the old NBD handshake only"));
    }
    let theirs = half(stream)?;
    if theirs & FIXED_NEWSTYLE == 0 {
        return Err(wrong("it speaks an old NBD handshake only"));
    }
    let ours = theirs & (FIXED_NEWSTYLE | NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes())?;
    let mut data = Vec::new();
    data.extend((export.len() as u32).to_be_bytes());
    data.extend(export.as_bytes());
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    option(stream, GO, &data)?;
    let mut found = None;
    let mut least = 1;
    for _ in 0..MOST_REPLIES {
        let (kind, data) = reply(stream, GO)?;
        let mut data = data.as_slice();
        match kind {
            ACK => {
                let (bytes, flags) = found.ok_or_else(|| wrong("it doesn't say what it has"))?;
                return Ok(Export { bytes, flags, least });
            }
            INFO => match half(&mut data)? {
                INFO_EXPORT => found = Some((long(&mut data)?, half(&mut data)?)),
                INFO_BLOCK_SIZE => least = word(&mut data)?,
                _ => {}
            },
            UNSUPPORTED => return by_name(stream, export, ours),
            error if error & IS_ERROR != 0 => {
                let text: String =
                    String::from_utf8_lossy(data).chars().filter(|c| !c.is_control()).take(200).collect();
                return Err(wrong(format!("the server refuses ({}): {text}", error & !IS_ERROR)));
            }
            _ => return Err(wrong("an answer that was not asked for")),
        }
    }
    Err(wrong("it never comes to an end"))
}

/// The older way to choose a disk, which ends the handshake.
fn by_name(stream: &mut (impl Read + Write), export: &str, flags: u16) -> io::Result<Export> {
    option(stream, EXPORT_NAME, export.as_bytes())?;
    let export = Export { bytes: long(stream)?, flags: half(stream)?, least: 1 };
    if flags & NO_ZEROES == 0 {
        take::<124>(stream)?;
    }
    Ok(export)
}

fn option(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::new();
    message.extend(OPTION);
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

fn reply(stream: &mut impl Read, to: u32) -> io::Result<(u32, Vec<u8>)> {
    if long(stream)? != OPTION_REPLY || word(stream)? != to {
        return Err(wrong("an answer to something else"));
    }
    let kind = word(stream)?;
    let len = word(stream)? as usize;
    if len > MOST_REPLY {
        return Err(wrong("an answer is too long"));
    }
    let mut data = vec![0; len];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// A connection on which requests are made, one at a time.
#[derive(Debug)]
pub struct Session<S = Stream> {
    stream: S,
    cookie: u64,
}

impl<S: Read + Write> Session<S> {
    /// After the handshake.
    pub fn new(stream: S) -> Self {
        Self { stream, cookie: 0 }
    }

    /// A request and its answer, which is the inner result.
    ///
    /// # Errors
    /// The outer one: the connection is of no more use.
    pub fn request(
        &mut self,
        command: u16,
        flags: u16,
        at: u64,
        len: u32,
        out: &[u8],
        into: &mut [u8],
    ) -> io::Result<io::Result<()>> {
        self.cookie += 1;
        self.send(command, flags, at, len)?;
        self.stream.write_all(out)?;
        if word(&mut self.stream)? != REPLY {
            return Err(wrong("an answer that is none"));
        }
        let error = word(&mut self.stream)?;
        if long(&mut self.stream)? != self.cookie {
            return Err(wrong("an answer to something else"));
        }
        if error != 0 {
            // The protocol's numbers are Linux's.
            let error = i32::try_from(error).unwrap_or(5);
            return Ok(Err(io::Error::from_raw_os_error(error)));
        }
        self.stream.read_exact(into)?;
        Ok(Ok(()))
    }

    fn send(&mut self, command: u16, flags: u16, at: u64, len: u32) -> io::Result<()> {
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&command.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&at.to_be_bytes());
        head[24..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&head)
    }
}

impl Session {
    /// Tells the server that no more comes.
    pub(super) fn farewell(mut self) {
        let _ = self.send(command::DISCONNECT, 0, 0, 0);
        super::hang_up(&self.stream);
    }
}
