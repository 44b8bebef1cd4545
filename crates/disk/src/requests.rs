//! A guest's requests, done on a [`Layer`]: what all front ends (virtio-blk, NVMe) have in common.
//!
//! A front end knows where a request's bytes are and how it ends; here it is checked, its bytes go through a buffer in pieces, and
//! what the host refuses is said on stderr, once for each kind of failure.
//!
//! Threads: any number, each with a [`Buffer`] of its own. Locks: one for what has been said, a leaf.

use crate::{DiskError, Layer, LayerInfo, SECTOR_BYTES, Sector};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are moved at once.
const PIECE: usize = 256 << 10;

/// Why a request has failed. `E` is the front end's: its bytes can't be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed<E> {
    /// Not whole sectors, or beyond the last one.
    Range,
    /// The disk is not to be written.
    ReadOnly,
    /// The host has no room for it, which has been said.
    Full,
    /// The host has refused, which has been said.
    Host,
    /// What moves the bytes.
    Guest(E),
}

/// Room for the bytes of one thread's requests; grows to what is needed, up to a bound.
#[derive(Default, Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    fn piece(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

/// A disk, as its front end uses it.
pub struct Requests {
    layer: Arc<dyn Layer>,
    /// For messages.
    name: String,
    /// Failures that have been told.
    told: Mutex<Vec<(&'static str, ErrorKind)>>,
}

impl Requests {
    /// Requests to `layer`, which messages call `name`.
    #[must_use]
    pub fn new(layer: Arc<dyn Layer>, name: String) -> Self {
        Self { layer, name, told: Mutex::default() }
    }

    /// What the disk is like.
    #[must_use]
    pub fn info(&self) -> LayerInfo {
        self.layer.info()
    }

    /// One line for each kind of failure; a guest that tries again and again fills no log.
    fn judge<E>(&self, doing: &'static str, done: Result<(), DiskError>) -> Result<(), Failed<E>> {
        let error = match done {
            Ok(()) => return Ok(()),
            Err(DiskError::Range) => return Err(Failed::Range),
            Err(DiskError::ReadOnly) => return Err(Failed::ReadOnly),
            Err(DiskError::Host(error)) => error,
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.contains(&(doing, error.kind())) {
            told.push((doing, error.kind()));
            tracing::error!("{}: {doing} failed, the guest sees an I/O error: {error}", self.name);
        }
        Err(if error.kind() == ErrorKind::StorageFull { Failed::Full } else { Failed::Host })
    }

    /// Whether so many bytes from a sector on are sectors of the disk.
    fn check<E>(&self, first: Sector, bytes: u64) -> Result<(), Failed<E>> {
        let sectors = self.layer.info().sectors;
        let fits = bytes.is_multiple_of(SECTOR_BYTES)
            && first.0.checked_add(bytes / SECTOR_BYTES).is_some_and(|end| end <= sectors);
        if fits { Ok(()) } else { Err(Failed::Range) }
    }

    /// Reads `bytes` from `first` on, giving them to `give` in order.
    ///
    /// # Errors
    /// [`Failed`]; some of the bytes may have been given.
    pub fn read<E>(
        &self,
        buffer: &mut Buffer,
        first: Sector,
        bytes: u64,
        mut give: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Failed<E>> {
        self.check(first, bytes)?;
        self.in_pieces(buffer, first, bytes, |sector, piece| {
            self.judge("reading", self.layer.read(sector, piece))?;
            give(piece).map_err(Failed::Guest)
        })
    }

    /// Writes `bytes` from `first` on, which `take` fills in order.
    ///
    /// # Errors
    /// [`Failed`]; some of the bytes may have been written.
    pub fn write<E>(
        &self,
        buffer: &mut Buffer,
        first: Sector,
        bytes: u64,
        mut take: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), Failed<E>> {
        self.check(first, bytes)?;
        self.in_pieces(buffer, first, bytes, |sector, piece| {
            take(piece).map_err(Failed::Guest)?;
            self.judge("writing", self.layer.write(sector, piece))
        })
    }

    fn in_pieces<E>(
        &self,
        buffer: &mut Buffer,
        mut first: Sector,
        bytes: u64,
        mut each: impl FnMut(Sector, &mut [u8]) -> Result<(), Failed<E>>,
    ) -> Result<(), Failed<E>> {
        let mut left = bytes;
        while left > 0 {
            let len = left.min(PIECE as u64);
            each(first, buffer.piece(len as usize))?;
            first.0 += len / SECTOR_BYTES;
            left -= len;
        }
        Ok(())
    }

    /// Returns when all that has been written is on stable storage.
    ///
    /// # Errors
    /// [`Failed::Full`] or [`Failed::Host`].
    pub fn flush<E>(&self) -> Result<(), Failed<E>> {
        self.judge("flushing", self.layer.flush())
    }

    /// `count` sectors may have any contents from now on.
    ///
    /// # Errors
    /// [`Failed`], but for [`Failed::Guest`].
    pub fn discard<E>(&self, first: Sector, count: u64) -> Result<(), Failed<E>> {
        self.check(first, count.saturating_mul(SECTOR_BYTES))?;
        self.judge("discarding", self.layer.discard(first, count))
    }

    /// Makes `count` sectors read as zeros. `unmap`: they need no space any more.
    ///
    /// # Errors
    /// [`Failed`], but for [`Failed::Guest`].
    pub fn zero<E>(&self, first: Sector, count: u64, unmap: bool) -> Result<(), Failed<E>> {
        self.check(first, count.saturating_mul(SECTOR_BYTES))?;
        self.judge("zeroing", self.layer.zero(first, count, unmap))
    }
}
