//! A layer whose sectors pass through encryption on their way to the one below: a raw file, a qcow2 image, an overlay. So overlays, and what
//! images are backed by, are ciphertext too.
//!
//! Zeros are written as what they become. Discards do nothing, as with dm-crypt by default: holes would show which sectors are in use.
//!
//! Runs on the callers' threads; each has a buffer for what it writes. Locks: requests share one that writing less than an encrypted sector
//! (where those have more than 512 bytes) has alone, since it reads the sector's rest first.

use crate::{DiskError, Layer, LayerInfo, SECTOR_BYTES, Sector, within};
use crypt::{CryptError, Limits, Method, Secret, Store, Volume};
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

/// Bytes that are encrypted at once.
const PIECE: usize = 256 << 10;

thread_local! {
    /// What is encrypted before it is written.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An encrypted layer.
#[derive(Debug)]
pub struct Encrypted {
    below: Below,
    volume: Volume,
    info: LayerInfo,
    /// See the module's head.
    parts: RwLock<()>,
}

/// The layer below, as the bytes of an encrypted disk.
struct Below(Arc<dyn Layer>);

impl std::fmt::Debug for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.info())
    }
}

impl Store for Below {
    fn len(&self) -> u64 {
        self.0.info().sectors * SECTOR_BYTES
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let first = at / SECTOR_BYTES;
        let before = (at % SECTOR_BYTES) as usize;
        let mut sectors = vec![0; (before + into.len()).next_multiple_of(SECTOR_BYTES as usize)];
        self.0.read(Sector(first), &mut sectors).map_err(|error| match error {
            DiskError::Host(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        into.copy_from_slice(&sectors[before..][..into.len()]);
        Ok(())
    }
}

impl From<CryptError> for DiskError {
    fn from(error: CryptError) -> Self {
        Self::Host(error.into())
    }
}

impl Encrypted {
    /// Opens what is encrypted in `below`.
    ///
    /// # Errors
    /// [`CryptError`].
    pub fn open(below: Arc<dyn Layer>, method: &Method, key: &Secret) -> Result<Self, CryptError> {
        let read_only = below.info().read_only;
        let below = Below(below);
        let volume = crypt::open(&below, method, key, Limits::default())?;
        if let Err(error) = crypt::secret::forbid_dumps() {
            tracing::warn!("core dumps can't be switched off: {error}");
        }
        let info = LayerInfo { sectors: volume.bytes / SECTOR_BYTES, read_only };
        Ok(Self { below, volume, info, parts: RwLock::new(()) })
    }

    /// Sectors in an encrypted one.
    fn unit(&self) -> u64 {
        u64::from(self.volume.sector_bytes) / SECTOR_BYTES
    }

    /// Where a sector is below.
    fn place(&self, sector: u64) -> Sector {
        Sector(sector + self.volume.offset / SECTOR_BYTES)
    }

    /// Whether a range begins and ends with encrypted sectors.
    fn is_whole(&self, first: u64, bytes: usize) -> bool {
        first.is_multiple_of(self.unit())
            && (bytes as u64).is_multiple_of(u64::from(self.volume.sector_bytes))
    }

    /// The encrypted sectors that a range touches: the first sector, and bytes.
    fn around(&self, first: u64, bytes: usize) -> (u64, usize) {
        let start = first - first % self.unit();
        let end = (first + bytes as u64 / SECTOR_BYTES).next_multiple_of(self.unit());
        (start, ((end - start) * SECTOR_BYTES) as usize)
    }

    /// Reads whole encrypted sectors.
    fn fetch(&self, first: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.below.0.read(self.place(first), into)?;
        Ok(self.volume.technique.decrypt(first, into)?)
    }

    /// Writes whole encrypted sectors, which `fill` gives a piece at a time from an offset on.
    fn store(&self, first: u64, bytes: u64, fill: impl Fn(u64, &mut [u8])) -> Result<(), DiskError> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut done = 0;
            while done < bytes {
                let len = (bytes - done).min(PIECE as u64) as usize;
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                let piece = &mut buffer[..len];
                fill(done, piece);
                let sector = first + done / SECTOR_BYTES;
                self.volume.technique.encrypt(sector, piece)?;
                self.below.0.write(self.place(sector), piece)?;
                done += len as u64;
            }
            Ok(())
        })
    }

    fn writable(&self, first: Sector, bytes: u64) -> Result<(), DiskError> {
        if self.info.read_only {
            return Err(DiskError::ReadOnly);
        }
        within(self.info.sectors, first, bytes).map(drop)
    }

    /// Writes any sectors.
    fn put(&self, first: u64, bytes: u64, fill: impl Fn(u64, &mut [u8])) -> Result<(), DiskError> {
        if self.is_whole(first, (bytes % u64::from(self.volume.sector_bytes)) as usize) {
            let _shared = self.parts.read().unwrap_or_else(PoisonError::into_inner);
            return self.store(first, bytes, fill);
        }
        let _alone = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < bytes {
            // Up to the end of a unit, so that pieces after the first are whole but for the last.
            let at = first + done / SECTOR_BYTES;
            let len = (bytes - done).min(PIECE as u64 - at % self.unit() * SECTOR_BYTES) as usize;
            let (start, room) = self.around(at, len);
            let mut sectors = vec![0; room];
            self.fetch(start, &mut sectors)?;
            fill(done, &mut sectors[((at - start) * SECTOR_BYTES) as usize..][..len]);
            self.store(start, room as u64, |from, into| {
                into.copy_from_slice(&sectors[from as usize..][..into.len()]);
            })?;
            done += len as u64;
        }
        Ok(())
    }
}

impl Layer for Encrypted {
    fn info(&self) -> LayerInfo {
        self.info
    }

    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        within(self.info.sectors, first, into.len() as u64)?;
        let _shared = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_whole(first.0, into.len()) {
            return self.fetch(first.0, into);
        }
        let (start, room) = self.around(first.0, into.len());
        let mut sectors = vec![0; room];
        self.fetch(start, &mut sectors)?;
        into.copy_from_slice(&sectors[((first.0 - start) * SECTOR_BYTES) as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        self.writable(first, from.len() as u64)?;
        self.put(first.0, from.len() as u64, |at, into| {
            into.copy_from_slice(&from[at as usize..][..into.len()]);
        })
    }

    fn zero(&self, first: Sector, count: u64, _: bool) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        self.writable(first, bytes)?;
        self.put(first.0, bytes, |_, into| into.fill(0))
    }

    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError> {
        self.writable(first, count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.below.0.flush()
    }
}

/// What a LUKS header in a layer says.
pub(crate) fn luks_info(layer: Arc<dyn Layer>) -> Result<crypt::luks::Info, CryptError> {
    crypt::luks::info(&Below(layer))
}
