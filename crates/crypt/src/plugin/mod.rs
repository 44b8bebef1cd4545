//! Encryption by plug-ins: libraries ([`library`], `include/ombra_crypt.h`) and processes ([`process`], [`protocol`]). `docs/encryption.md`
//! documents both.
//!
//! Both are asked the same things: to open a disk, to make the start of a new one, to encrypt and decrypt sectors. A file that ends in `.so` is a
//! library, a socket is a process that waits there, and anything else is a program that is started.

mod library;
mod process;
pub mod protocol;
mod raw;

use crate::{CryptError, Header, Secret, Store, Technique, Volume, shown};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

/// What a plug-in sees of a disk at first.
const HEADER: u64 = 4096;
/// What it may see, and what a header that it makes may have, in bytes.
pub(crate) const MOST_HEADER: u64 = 64 << 20;
/// Bytes of its options.
const MOST_OPTIONS: usize = 4096;

/// A plug-in and what it is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plugin {
    /// A library, a program or a socket.
    pub path: PathBuf,
    /// Text of the user's.
    pub options: String,
}

/// What a plug-in says of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Where the first sector is.
    pub offset: u64,
    /// Bytes of all sectors; 0 up to the end.
    pub bytes: u64,
    /// What is encrypted at once.
    pub sector_bytes: u32,
    /// Opening: it wants to see so much. Making: the header has so much.
    pub header_bytes: u32,
}

/// A disk as a plug-in is told of it.
struct Disk<'a> {
    bytes: u64,
    header: &'a [u8],
    key: &'a [u8],
    options: &'a str,
}

/// A plug-in of either kind, not yet told of a disk.
trait Opener {
    /// Tells it of a disk. The technique is of use only where the answer wants no more of the header.
    fn open(&mut self, disk: &Disk<'_>) -> Result<(Answer, Option<Arc<dyn Technique>>), CryptError>;
    /// Has it make the start of a disk.
    fn create(&mut self, disk: &Disk<'_>) -> Result<(Answer, Vec<u8>), CryptError>;
}

impl Plugin {
    fn problem(&self, reason: impl Into<String>) -> CryptError {
        CryptError::Plugin { plugin: shown(&self.path), reason: reason.into() }
    }

    fn opener(&self) -> Result<Box<dyn Opener>, CryptError> {
        if self.options.len() > MOST_OPTIONS || self.options.contains('\0') {
            return Err(self.problem("its options are too long, or no text"));
        }
        let kind = fs::metadata(&self.path)
            .map_err(|error| self.problem(format!("it can't be used: {error}")))?
            .file_type();
        let library = self.path.extension().is_some_and(|ending| ending == "so");
        Ok(if kind.is_socket() {
            Box::new(process::Connection::to_socket(self)?)
        } else if library {
            Box::new(library::Library::load(self)?)
        } else {
            Box::new(process::Connection::to_program(self)?)
        })
    }
}

/// Opens a disk.
pub(crate) fn open(store: &dyn Store, plugin: &Plugin, key: &Secret) -> Result<Volume, CryptError> {
    let mut opener = plugin.opener()?;
    let mut seen = HEADER.min(store.len());
    loop {
        let mut header = vec![0; seen as usize];
        store.read(0, &mut header)?;
        let disk = Disk { bytes: store.len(), header: &header, key, options: &plugin.options };
        let (answer, technique) = opener.open(&disk)?;
        let wanted = u64::from(answer.header_bytes);
        if wanted > seen {
            if wanted > MOST_HEADER.min(store.len()) {
                return Err(plugin.problem(format!("it wants to see {wanted} bytes of a header")));
            }
            seen = wanted;
            continue;
        }
        let technique = technique.ok_or_else(|| plugin.problem("it has opened nothing"))?;
        let bytes = Some(answer.bytes).filter(|bytes| *bytes != 0);
        return Volume::new(technique, store.len(), answer.offset, bytes, answer.sector_bytes)
            .map_err(|error| plugin.problem(format!("what it says of the disk is impossible: {error}")));
    }
}

/// Makes the start of a disk.
pub(crate) fn create(plugin: &Plugin, bytes: u64, key: &Secret) -> Result<Header, CryptError> {
    let disk = Disk { bytes, header: &[], key, options: &plugin.options };
    let (answer, header) = plugin.opener()?.create(&disk)?;
    if !answer.offset.is_multiple_of(crate::SECTOR_BYTES) || answer.offset > MOST_HEADER {
        return Err(plugin.problem("the data can't begin where it says"));
    }
    if header.len() as u64 > answer.offset {
        return Err(plugin.problem("its header reaches into the data"));
    }
    let pieces = if header.is_empty() { Vec::new() } else { vec![(0, header)] };
    Ok(Header { pieces, offset: answer.offset })
}
