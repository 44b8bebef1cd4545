//! A qcow2 image's header, as far as it is told to users or written here: imago has the rest.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`. Everything big-endian.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 2.
const OLD: usize = 72;
/// Of an extension: the backing file's format; the end.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// What is read: headers, extensions and the backing file's name lie in the first cluster.
const LOOK: usize = 64 << 10;
/// The longest name of a backing file.
const LONGEST_NAME: usize = 1023;

/// A header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) bytes: u64,
    pub(crate) cluster_bytes: u64,
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    /// The number of its own way of encryption; 0 for none.
    pub(crate) encryption: u32,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes =
        bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(|| wrong("its header is cut off"))?;
    Ok(u32::from_be_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> io::Result<u64> {
    Ok(u64::from(word(bytes, at)?) << 32 | u64::from(word(bytes, at + 4)?))
}

/// The start of a file.
fn start(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LOOK];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64)? {
            0 => break,
            count => len += count,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Header {
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let bytes = start(file)?;
        if !bytes.starts_with(&MAGIC) {
            return Err(wrong("it has no qcow2 header"));
        }
        let version = word(&bytes, 4)?;
        let cluster_bits = word(&bytes, 20)?;
        if !matches!(version, 2 | 3) || !(9..=21).contains(&cluster_bits) {
            return Err(wrong("its version or cluster size is unknown"));
        }
        let name_at = long(&bytes, 8)? as usize;
        let name_len = word(&bytes, 16)? as usize;
        let backing = match name_at {
            0 => None,
            at => {
                let end = at.checked_add(name_len).filter(|_| name_len <= LONGEST_NAME);
                let name = end.and_then(|end| bytes.get(at..end));
                Some(text(name.ok_or_else(|| wrong("its backing file's name is cut off"))?))
            }
        };
        let mut backing_format = None;
        let mut at = if version == 2 { OLD } else { word(&bytes, 100)? as usize };
        while let Some((kind, data, next)) = extension(&bytes, at) {
            if kind == BACKING_FORMAT {
                backing_format = Some(text(data));
            }
            at = next;
        }
        Ok(Self {
            version,
            bytes: long(&bytes, 24)?,
            cluster_bytes: 1 << cluster_bits,
            backing,
            backing_format,
            encryption: word(&bytes, 32)?,
        })
    }

    /// Makes version 2 of an image of version 3 that is empty and uses nothing else that version 2 doesn't have.
    pub(crate) fn make_old(path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let header = Self::read(&file)?;
        let mut bytes = start(&file)?;
        let features = [72, 80, 88].map(|at| long(&bytes, at));
        if header.version != 3 || !features.iter().all(|bits| matches!(bits, Ok(0))) || word(&bytes, 96)? != 4
        {
            return Err(io::Error::other("it uses what version 2 of qcow2 doesn't have"));
        }
        let first = (header.cluster_bytes as usize).min(bytes.len());
        bytes.truncate(first);
        bytes[OLD..].fill(0);
        bytes[4..8].copy_from_slice(&2u32.to_be_bytes());
        let mut at = OLD;
        if let Some(format) = &header.backing_format {
            let len = format.len();
            bytes[at..at + 4].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&(len as u32).to_be_bytes());
            bytes[at + 8..at + 8 + len].copy_from_slice(format.as_bytes());
            at += 8 + len.next_multiple_of(8);
        }
        // The end of the extensions.
        at += 8;
        if let Some(name) = &header.backing {
            let room = bytes
                .get_mut(at..at + name.len())
                .ok_or_else(|| wrong("its backing file's name is too long"))?;
            room.copy_from_slice(name.as_bytes());
            bytes[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        }
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    }
}

/// An extension's kind and data, and where the next one is.
fn extension(bytes: &[u8], at: usize) -> Option<(u32, &[u8], usize)> {
    let kind = word(bytes, at).ok()?;
    let len = word(bytes, at + 4).ok()? as usize;
    let data = bytes.get(at + 8..(at + 8).checked_add(len)?)?;
    (kind != 0).then_some((kind, data, at + 8 + len.next_multiple_of(8)))
}
