//! LUKS headers, versions 1 and 2: both open what `cryptsetup` and `qemu-img` make, and make what they open.
//!
//! Sources: "LUKS On-Disk Format Specification" 1.2.3 (version 1); "LUKS2 On-Disk Format Specification" 1.1.3 (version 2).
//!
//! A header has slots. Each has the disk's key, spread over many sectors ([`derive::merge`]) and encrypted with a key derived from a
//! passphrase. A digest of the disk's key tells whether a slot has opened.
//!
//! Left out: headers in files of their own, several segments, integrity (dm-integrity), re-encryption under way, tokens, and changing
//! slots: `cryptsetup luksAddKey` and the like do that on the file.

mod derive;
mod json;
mod v1;
mod v2;

use crate::sectors::Spec;
use crate::{CryptError, Header, Limits, Secret, Store, Volume};
use std::time::Duration;

/// The first bytes of every header.
const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// A disk's key is spread over so many times its size.
const STRIPES: u32 = 4000;
/// The longest key of a disk, in bytes.
const LONGEST_KEY: usize = 128;

/// A version of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Binary, PBKDF2; what QEMU knows.
    One,
    /// JSON, Argon2, sectors of 4096 bytes.
    Two,
}

/// A disk to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Creation {
    /// The header's.
    pub version: Version,
    /// What encrypts sectors.
    pub spec: Spec,
    /// 512 or, in version 2, up to 4096.
    pub sector_bytes: u32,
    /// How long deriving a key from a passphrase is to take here.
    pub effort: Duration,
    /// Argon2id's memory in KiB; `None` for PBKDF2, which version 1 has alone.
    pub memory: Option<u32>,
}

impl Creation {
    /// What `cryptsetup` would choose, but for a sector size of 512 bytes.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self {
            version,
            spec: Spec::AES_XTS,
            sector_bytes: 512,
            effort: Duration::from_secs(2),
            memory: (version == Version::Two).then_some(512 << 10),
        }
    }
}

/// What a header says without a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its version.
    pub version: u16,
    /// What encrypts sectors, in dm-crypt's words.
    pub cipher: String,
    /// Bytes.
    pub sector_bytes: u32,
    /// Bits of the disk's key.
    pub key_bits: usize,
    /// Its name.
    pub uuid: String,
    /// Key slots in use, and how each derives its key.
    pub slots: Vec<String>,
    /// Where the sectors begin, in bytes.
    pub offset: u64,
}

/// The checksum of one of version 2's copies, whose own place counts as zeros: what a changed copy needs to be looked at again.
#[must_use]
pub fn checksum(copy: &[u8]) -> [u8; 32] {
    v2::checksum(copy)
}

/// A header of either version.
enum Parsed {
    One(Box<v1::Header>),
    Two(Box<v2::Header>),
}

fn parse(store: &dyn Store) -> Result<Parsed, CryptError> {
    let mut start = [0; 8];
    read(store, 0, &mut start)?;
    match (start.starts_with(&MAGIC), u16::from_be_bytes([start[6], start[7]])) {
        (true, 1) => Ok(Parsed::One(Box::new(v1::Header::read(store)?))),
        (true, 2) => Ok(Parsed::Two(Box::new(v2::Header::read(store)?))),
        (true, version) => Err(CryptError::Unsupported(format!("version {version} of LUKS"))),
        // The first of version 2's two headers may be lost.
        (false, _) => v2::Header::second(store).map_or(Err(CryptError::NotLuks), |header| {
            tracing::warn!(
                "the first LUKS header is damaged; the second one is used (cryptsetup repair mends it)"
            );
            Ok(Parsed::Two(Box::new(header)))
        }),
    }
}

/// Opens a disk with a passphrase or the contents of a key file.
///
/// # Errors
/// [`CryptError`].
pub fn open(store: &dyn Store, key: &Secret, limits: Limits) -> Result<Volume, CryptError> {
    match parse(store)? {
        Parsed::One(header) => header.open(store, key, limits),
        Parsed::Two(header) => header.open(store, key, limits),
    }
}

/// What a header says, without a key.
///
/// # Errors
/// [`CryptError::NotLuks`] where there is none.
pub fn info(store: &dyn Store) -> Result<Info, CryptError> {
    match parse(store)? {
        Parsed::One(header) => Ok(header.info()),
        Parsed::Two(header) => header.info(),
    }
}

/// Makes a header with a new random key and one slot, which `key` opens.
///
/// # Errors
/// [`CryptError`].
pub fn create(creation: &Creation, key: &Secret) -> Result<Header, CryptError> {
    match creation.version {
        Version::One => v1::create(creation, key),
        Version::Two => v2::create(creation, key),
    }
}

/// Bytes of a header: what isn't there is damage, not the host's fault.
fn read(store: &dyn Store, at: u64, into: &mut [u8]) -> Result<(), CryptError> {
    let end = at.checked_add(into.len() as u64);
    if end.is_none_or(|end| end > store.len()) {
        return Err(damaged("it is cut off"));
    }
    Ok(store.read(at, into)?)
}

fn damaged(what: impl Into<String>) -> CryptError {
    CryptError::Header(what.into())
}

/// A random name in the usual form (RFC 9562, version 4).
fn uuid() -> Result<String, CryptError> {
    let mut bytes = [0; 16];
    crate::secret::random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Text in a field that zeros fill.
fn text(field: &[u8]) -> Result<String, CryptError> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).map_err(|_| damaged("a name in it is no text"))?;
    if text.chars().any(char::is_control) {
        return Err(damaged("a name in it is no text"));
    }
    Ok(text.to_owned())
}

/// Whether two digests are the same, in a time that doesn't say where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && !a.is_empty()
        && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
