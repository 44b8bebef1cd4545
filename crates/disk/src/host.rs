//! A file or block device of the host, open and locked.

use crate::{Format, OpenError, SECTOR_BYTES};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// An open image.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) file: fs::File,
    pub(crate) writable: bool,
    /// Bytes.
    pub(crate) len: u64,
}

impl File {
    /// Opens and locks.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Host { file: path.to_owned(), source };
        // A pipe would wait for its other end.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(nonblock)
            .open(path)
            .map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { file: path.to_owned() });
        }
        Self::lock(&file, path, writable)?;
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if len < SECTOR_BYTES {
            return Err(OpenError::Empty { file: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, writable, len })
    }

    /// Locks an open file, which its closing ends.
    pub(crate) fn lock(file: &fs::File, path: &Path, writable: bool) -> Result<(), OpenError> {
        let locked = if writable { file.try_lock() } else { file.try_lock_shared() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Locked { file: path.to_owned(), writable });
            }
            // File systems without locks (some network ones) have none to offer.
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{}: can't be locked: {error}", path.display());
            }
        }
        // QEMU doesn't know flock: it locks single bytes, which a lock on all of them keeps it from, and shows.
        let operation = if writable {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        if let Err(Errno::AGAIN | Errno::ACCESS) = fcntl_lock(file, operation) {
            return Err(OpenError::Locked { file: path.to_owned(), writable });
        }
        Ok(())
    }

    /// The format that the first bytes are of.
    pub(crate) fn looks_like(&self) -> Result<Format, OpenError> {
        let mut magic = [0; 4];
        self.file
            .read_exact_at(&mut magic, 0)
            .map_err(|source: io::Error| OpenError::Host { file: self.path.clone(), source })?;
        Ok(if magic == QCOW2_MAGIC { Format::Qcow2 } else { Format::Raw })
    }
}
