//! The API of plug-ins that are processes: messages on a stream socket. `docs/encryption.md` is its specification.
//!
//! A message is a head of 24 bytes and up to [`MOST_PAYLOAD`] bytes, everything little-endian: magic, kind and status (16 bits each), a
//! sector's number (64), the payload's length (32), zero (32). Each request gets one answer of the same kind.

use super::Answer;
use std::io::{self, Read, Write};
use zeroize::Zeroize;

/// The first four bytes of every message: version 1.
pub const MAGIC: u32 = u32::from_le_bytes(*b"OCR1");
/// Bytes of a head.
pub const HEAD: usize = 24;
/// Bytes of a payload, at most: a header and what goes with it.
pub const MOST_PAYLOAD: usize = (64 << 20) + (16 << 20);
/// Bytes of sectors in one message, at most.
pub const MOST_DATA: usize = 1 << 20;
/// Bytes before the header, key and options of [`Kind::Open`] and [`Kind::Create`].
const SIZES: usize = 24;
/// Bytes of an answer.
const ANSWER: usize = 24;

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// A disk is opened.
    Open = 1,
    /// The start of a disk is made.
    Create = 2,
    /// Sectors are encrypted.
    Encrypt = 3,
    /// Sectors are decrypted.
    Decrypt = 4,
}

/// A message's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What it is about, as a number.
    pub kind: u16,
    /// 0 where it is a request or all went well; else the payload of an answer is a text.
    pub status: u16,
    /// The first sector's number.
    pub sector: u64,
    /// Bytes that follow.
    pub len: usize,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Head {
    /// As bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.status.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sector.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// It is none, or announces too much.
    pub fn parse(bytes: &[u8; HEAD]) -> io::Result<Self> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let len = word(16) as usize;
        if word(0) != MAGIC {
            return Err(wrong("that is no message of the encryption API"));
        }
        if len > MOST_PAYLOAD {
            return Err(wrong("a message is too long"));
        }
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        Ok(Self { kind: half(4), status: half(6), sector, len })
    }
}

/// Sends a request and gives its answer's payload; what an answer with a status says is the `Ok` value's error. The payload must be as long as
/// `exactly`, where that is said.
///
/// # Errors
/// The connection's, or an answer that isn't one: the connection is of no more use.
pub fn ask(
    stream: &mut (impl Read + Write),
    kind: Kind,
    sector: u64,
    payload: &[&[u8]],
    answer: &mut Vec<u8>,
    exactly: Option<usize>,
) -> io::Result<Result<(), String>> {
    let len = payload.iter().map(|part| part.len()).sum();
    stream.write_all(&Head { kind: kind as u16, status: 0, sector, len }.bytes())?;
    for part in payload {
        stream.write_all(part)?;
    }
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let head = Head::parse(&head)?;
    if head.kind != kind as u16 {
        return Err(wrong("an answer to something else"));
    }
    let fits =
        if head.status != 0 { head.len <= 4096 } else { exactly.is_none_or(|exactly| exactly == head.len) };
    if !fits {
        return Err(wrong("an answer of the wrong length"));
    }
    answer.zeroize();
    // As it comes: a length alone takes no memory.
    Read::take(&mut *stream, head.len as u64).read_to_end(answer)?;
    if answer.len() < head.len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if head.status == 0 {
        return Ok(Ok(()));
    }
    let text = String::from_utf8_lossy(answer).chars().filter(|c| !c.is_control()).collect();
    Ok(Err(text))
}

/// The payload of [`Kind::Open`] and [`Kind::Create`] before its three parts.
#[must_use]
pub fn sizes(disk: u64, header: usize, key: usize, options: usize) -> [u8; SIZES] {
    let mut bytes = [0; SIZES];
    bytes[..8].copy_from_slice(&disk.to_le_bytes());
    for (at, size) in [(8, header), (12, key), (16, options)] {
        bytes[at..at + 4].copy_from_slice(&(size as u32).to_le_bytes());
    }
    bytes
}

/// An answer to [`Kind::Open`] or [`Kind::Create`], and what follows it.
///
/// # Errors
/// It is too short.
pub fn answer(payload: &[u8]) -> io::Result<(Answer, &[u8])> {
    let Some((bytes, rest)) = payload.split_first_chunk::<ANSWER>() else {
        return Err(wrong("an answer that is too short"));
    };
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let answer = Answer { offset: long(0), bytes: long(8), sector_bytes: word(16), header_bytes: word(20) };
    Ok((answer, rest))
}
