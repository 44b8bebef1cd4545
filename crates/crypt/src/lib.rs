//! Encryption of disks: every sector of a disk passes through a [`Technique`]. Called by `disk`; knows no image format and no guest.
//!
//! [`open`] makes a [`Volume`] of the bytes of an encrypted disk (a [`Store`]), a [`Method`] and a key: where in the store the sectors are,
//! how large they are, and the technique that makes ciphertext of plaintext and back. [`create`] makes the header of a new one.
//!
//! | method | what | where |
//! |---|---|---|
//! | XTS and others without a header | the key is the key | [`sectors`] |
//! | LUKS1, LUKS2 | a header with slots that passphrases open | [`luks`] |
//! | a plug-in | a library or a process that speaks the protocol of `docs/encryption.md` | [`plugin`] |
//!
//! # Keys
//! Keys and what is derived from them live in a [`Secret`] or in a technique's own locked memory: not swapped out, not in core dumps, wiped when
//! dropped, never printed. What a library puts on the stack meanwhile is overwritten ([`secret::scrub`]).
//!
//! # What this is not
//! None of the techniques here notices that somebody has changed a sector, or put an old one back.
//!
//! # Threads
//! None of its own; a technique may be called from any number of threads. Locks: a plug-in that is a process has one around its
//! connection, a leaf.

mod error;
pub mod luks;
pub mod plugin;
mod raw;
pub mod secret;
pub mod sectors;
#[cfg(test)]
mod tests;

pub use error::CryptError;
pub use secret::Secret;

use sectors::Spec;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes in the sectors that numbers count, whatever the size of a technique's own.
pub const SECTOR_BYTES: u64 = 512;

/// The bytes of an encrypted disk.
pub trait Store {
    /// How many there are.
    fn len(&self) -> u64;

    /// There are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` from byte `at` on.
    ///
    /// # Errors
    /// The host's; `UnexpectedEof` beyond the end.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Makes ciphertext of plaintext and back.
pub trait Technique: Send + Sync {
    /// Encrypts whole sectors of the volume's size in place. `sector`: the number of the first, counted in 512 bytes from where the
    /// volume's sectors begin.
    ///
    /// # Errors
    /// A plug-in's; then `data` is neither.
    fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError>;

    /// The reverse.
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt).
    fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError>;
}

/// An encrypted disk, open.
#[derive(Clone)]
pub struct Volume {
    /// What its sectors pass through.
    pub technique: Arc<dyn Technique>,
    /// Where in the store the first sector is, in bytes; a multiple of 512.
    pub offset: u64,
    /// How many bytes the sectors have together; a multiple of `sector_bytes`.
    pub bytes: u64,
    /// What is encrypted at once, in bytes: a power of two from 512 to 4096.
    pub sector_bytes: u32,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("offset", &self.offset)
            .field("bytes", &self.bytes)
            .field("sector_bytes", &self.sector_bytes)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// A volume from `offset` on, to the end of the store unless it says where it ends.
    ///
    /// # Errors
    /// It doesn't lie in the store, or its sectors have an impossible size.
    pub fn new(
        technique: Arc<dyn Technique>,
        store: u64,
        offset: u64,
        bytes: Option<u64>,
        sector_bytes: u32,
    ) -> Result<Self, CryptError> {
        let damaged = |what: &str| CryptError::Header(what.to_owned());
        if !sector_bytes.is_power_of_two() || !(512..=4096).contains(&sector_bytes) {
            return Err(damaged("sectors have 512 to 4096 bytes"));
        }
        if !offset.is_multiple_of(SECTOR_BYTES) {
            return Err(damaged("the data begins within a sector"));
        }
        let rest = store.checked_sub(offset).ok_or_else(|| damaged("the data begins beyond the end"))?;
        let bytes = bytes.unwrap_or(rest);
        if bytes > rest {
            return Err(damaged("it is cut off: there is more data in it than in the file"));
        }
        let bytes = bytes - bytes % u64::from(sector_bytes);
        if bytes == 0 {
            return Err(damaged("there is no sector behind it"));
        }
        Ok(Self { technique, offset, bytes, sector_bytes })
    }
}

/// How a disk is encrypted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Method {
    /// No header: the cipher, and the key itself.
    Plain(Spec),
    /// A LUKS header of either version.
    Luks,
    /// A plug-in and what it is told.
    Plugin(plugin::Plugin),
}

/// A disk to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Creation {
    /// See [`Method::Plain`].
    Plain(Spec),
    /// See [`Method::Luks`].
    Luks(luks::Creation),
    /// See [`Method::Plugin`].
    Plugin(plugin::Plugin),
}

/// The start of a new encrypted disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// What is to be written where, in bytes; zeros between.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// Where the sectors begin.
    pub offset: u64,
}

/// What a header may ask for before it is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rounds of PBKDF2.
    pub rounds: u32,
    /// Memory of Argon2, in KiB.
    pub memory: u32,
    /// Passes of Argon2.
    pub passes: u32,
}

impl Default for Limits {
    /// More than anything in use, less than a machine's life.
    fn default() -> Self {
        Self { rounds: 1 << 30, memory: 4 << 20, passes: 1 << 12 }
    }
}

/// Opens an encrypted disk.
///
/// # Errors
/// [`CryptError`].
pub fn open(store: &dyn Store, method: &Method, key: &Secret, limits: Limits) -> Result<Volume, CryptError> {
    let volume = match method {
        Method::Plain(spec) => Volume::new(spec.technique(key, 512, 0)?, store.len(), 0, None, 512),
        Method::Luks => luks::open(store, key, limits),
        Method::Plugin(plugin) => plugin::open(store, plugin, key),
    };
    secret::scrub();
    volume
}

/// Makes the header of a disk whose sectors have so many bytes together.
///
/// # Errors
/// [`CryptError`].
pub fn create(creation: &Creation, bytes: u64, key: &Secret) -> Result<Header, CryptError> {
    let header = match creation {
        Creation::Plain(spec) => {
            // Only whether the key fits.
            spec.technique(key, 512, 0)?;
            Ok(Header { pieces: Vec::new(), offset: 0 })
        }
        Creation::Luks(creation) => luks::create(creation, key),
        Creation::Plugin(plugin) => plugin::create(plugin, bytes, key),
    };
    secret::scrub();
    header
}

/// Where a program or library lies, for messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
