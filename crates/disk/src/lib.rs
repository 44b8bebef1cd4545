//! Disk images: sectors in files of the host. Knows no guest.
//!
//! [`open`] makes a [`Layer`] of what a user has named: a raw file or block device ([`rawfile`]), or a qcow2 image with whatever it is
//! backed by ([`qcow2`]), under a temporary overlay where nothing is to be kept; above all that what decrypts it ([`encrypted`]); or a disk that
//! a server of another process has ([`nbd`]). [`make`] makes new images and copies them. Front ends (virtio-blk, NVMe) read and write
//! layers from their own threads, through [`Requests`].
//!
//! # I/O model
//! Synchronous: every call returns when the host has done it, and any number of threads may call at once. What has been written is on
//! stable storage once a later [`Layer::flush`] has returned; before, it may be in the host's page cache or in a format's own
//! caches. Two writes to the same sectors at the same time leave either.
//!
//! # Errors
//! What the host refuses (no space, I/O errors, files that have become shorter) is a [`DiskError`] of that request and changes nothing
//! else; the caller may go on.
//!
//! # Formats are not guessed for writing
//! A guest that writes a raw disk can write a qcow2 header to it, which names other files of the host. So a format is taken from what
//! the user says, or the name's ending; by its contents only where the image is only read, and then files that
//! it names are not opened.
//!
//! # Locks
//! An image is locked while it is open: exclusively for writing, shared for reading, as are the images that it is backed by. Twice: by
//! flock, which also tells two disks of one process apart, and by a record lock, which QEMU respects. In `qcow2`: discarding excludes other
//! requests of the same image; in `encrypted`: writing less than an encrypted sector does; in `nbd`: connections that nobody uses at the moment.
//!
//! # Threads
//! None.

pub mod encrypted;
#[cfg(test)]
mod encrypted_tests;
mod error;
mod files;
mod host;
pub mod make;
pub mod nbd;
pub mod qcow2;
pub mod rawfile;
mod requests;
#[cfg(test)]
mod tests;

pub use error::{DiskError, OpenError};
pub use files::{Files, files};
pub use requests::{Buffer, Failed, Requests};

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes in a sector, the unit in which all layers count.
pub const SECTOR_BYTES: u64 = 512;

/// The number of a sector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sector(pub u64);

impl Sector {
    /// Its first byte.
    #[must_use]
    pub const fn byte(self) -> u64 {
        self.0.saturating_mul(SECTOR_BYTES)
    }
}

/// What a layer is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerInfo {
    /// Its size.
    pub sectors: u64,
    /// Writing fails.
    pub read_only: bool,
}

/// An image, or something that looks like one. Ranges that end beyond the last sector are refused as a whole.
pub trait Layer: Send + Sync {
    /// What it is like; never changes.
    fn info(&self) -> LayerInfo;
    /// Fills `into`, whole sectors, from `first` on.
    ///
    /// # Errors
    /// [`DiskError`]; `into` may have been written to.
    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError>;
    /// Writes `from`, whole sectors, from `first` on.
    ///
    /// # Errors
    /// [`DiskError`]; some of the sectors may have been written.
    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError>;
    /// Makes `count` sectors read as zeros. `unmap`: they need no space any more.
    ///
    /// # Errors
    /// [`DiskError`]; some of the sectors may be zero.
    fn zero(&self, first: Sector, count: u64, unmap: bool) -> Result<(), DiskError>;
    /// `count` sectors may have any contents from now on. Where the host or the format can't give their space back, nothing happens.
    ///
    /// # Errors
    /// [`DiskError`].
    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError>;
    /// Returns when all that has been written is on stable storage.
    ///
    /// # Errors
    /// [`DiskError`]; then nobody knows what is.
    fn flush(&self) -> Result<(), DiskError>;
}

/// How the bytes of an image are arranged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's qcow2, version 2 or 3.
    Qcow2,
}

impl Format {
    /// What the ending of a file's name says.
    #[must_use]
    pub fn by_name(file: &Path) -> Option<Self> {
        file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2")).then_some(Self::Qcow2)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// What is to be opened, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The file or block device.
    pub file: PathBuf,
    /// Its format, where the user has said it.
    pub format: Option<Format>,
    /// It is not to be written.
    pub read_only: bool,
    /// What is written goes to a temporary file, and is gone at the end.
    pub snapshot: bool,
    /// How it is encrypted.
    pub encryption: Option<Encryption>,
}

impl Image {
    /// A file that is read and written, in the format that its name says.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), format: None, read_only: false, snapshot: false, encryption: None }
    }
}

/// How an image is encrypted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Encryption {
    /// Here, sector by sector.
    Sectors {
        /// How.
        method: crypt::Method,
        /// The key or passphrase.
        key: crypt::secret::Source,
    },
    /// By a command that opens the file itself and serves it.
    Server {
        /// For the shell; see [`nbd::Nbd::start`].
        command: String,
    },
}

/// Opens an image.
///
/// # Errors
/// [`OpenError`].
pub fn open(image: &Image) -> Result<Arc<dyn Layer>, OpenError> {
    let served = match (&image.encryption, image.file.to_str().and_then(nbd::Address::parse)) {
        (Some(Encryption::Server { command }), _) => {
            Some(nbd::Nbd::start(command, &image.file, image.read_only))
        }
        (_, Some(address)) => Some(address.and_then(|address| nbd::Nbd::connect(&address, image.read_only))),
        _ => None,
    };
    let below: Arc<dyn Layer> = match served {
        Some(_) if image.snapshot => {
            let what =
                "snapshot=on works on files, not on what a server has (nbdkit --filter=cow does it there)";
            return Err(OpenError::Impossible { file: image.file.clone(), what });
        }
        Some(served) => Arc::new(served?),
        None => open_file(image)?,
    };
    match &image.encryption {
        Some(Encryption::Sectors { method, key }) => {
            let opened = key.read().and_then(|key| encrypted::Encrypted::open(below, method, &key));
            let layer = opened.map_err(|source| OpenError::Encrypted { file: image.file.clone(), source })?;
            Ok(Arc::new(layer))
        }
        Some(Encryption::Server { .. }) | None => Ok(below),
    }
}

/// The image without what it is encrypted with.
fn open_file(image: &Image) -> Result<Arc<dyn Layer>, OpenError> {
    let writable = !image.read_only && !image.snapshot;
    let file = host::File::open(&image.file, writable)?;
    let looks = file.looks_like()?;
    let said = image.format.or(Format::by_name(&image.file));
    let format = match said {
        Some(Format::Qcow2) if looks != Format::Qcow2 => {
            return Err(OpenError::NotQcow2 { file: image.file.clone() });
        }
        Some(format) => format,
        None if looks == Format::Qcow2 && writable => {
            return Err(OpenError::Unsaid { file: image.file.clone() });
        }
        None => {
            if looks == Format::Qcow2 {
                tracing::warn!(
                    "{}: taken for qcow2 by its contents, without what it may be backed by (format=qcow2 says so)",
                    image.file.display()
                );
            }
            looks
        }
    };
    if image.snapshot {
        return Ok(Arc::new(qcow2::Qcow2::overlay(file, format, said.is_some())?));
    }
    Ok(match format {
        Format::Raw => Arc::new(rawfile::Raw::new(file)),
        Format::Qcow2 => Arc::new(qcow2::Qcow2::open(file, said.is_some())?),
    })
}

/// Checks that `bytes` from `first` on are whole sectors of a layer with so many, and gives the first byte's offset.
fn within(sectors: u64, first: Sector, bytes: u64) -> Result<u64, DiskError> {
    let count = bytes.div_ceil(SECTOR_BYTES);
    if !bytes.is_multiple_of(SECTOR_BYTES) || count > sectors || first.0 > sectors - count {
        return Err(DiskError::Range);
    }
    Ok(first.byte())
}
