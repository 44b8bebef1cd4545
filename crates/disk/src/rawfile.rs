//! Raw images: a file's or block device's bytes as they are.
//!
//! Zeros and discards are holes where the host's file system has them, and otherwise zeros that are written, or nothing. Bytes
//! after the last whole sector are left alone.

use crate::{DiskError, Layer, LayerInfo, SECTOR_BYTES, Sector, host, within};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::os::unix::fs::FileExt;

/// Zeros that are written at once.
const ZEROS: usize = 64 << 10;

/// A raw image.
#[derive(Debug)]
pub struct Raw {
    file: host::File,
    sectors: u64,
}

impl Raw {
    pub(crate) fn new(file: host::File) -> Self {
        let sectors = file.len / SECTOR_BYTES;
        let rest = file.len % SECTOR_BYTES;
        if rest != 0 {
            tracing::warn!(
                "{}: the last {rest} bytes are no whole sector and are left out",
                file.path.display()
            );
        }
        Self { file, sectors }
    }

    /// The offset of sectors that are to be written.
    fn writable(&self, first: Sector, bytes: u64) -> Result<u64, DiskError> {
        if !self.file.writable {
            return Err(DiskError::ReadOnly);
        }
        within(self.sectors, first, bytes)
    }

    /// Asks the file system. `false`: it doesn't have that.
    fn allocate(&self, how: FallocateFlags, at: u64, bytes: u64) -> Result<bool, DiskError> {
        loop {
            match fallocate(&self.file.file, how | FallocateFlags::KEEP_SIZE, at, bytes) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => return Ok(false),
                Err(error) => return Err(DiskError::Host(error.into())),
            }
        }
    }
}

impl Layer for Raw {
    fn info(&self) -> LayerInfo {
        LayerInfo { sectors: self.sectors, read_only: !self.file.writable }
    }

    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        let at = within(self.sectors, first, into.len() as u64)?;
        Ok(self.file.file.read_exact_at(into, at)?)
    }

    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        let at = self.writable(first, from.len() as u64)?;
        Ok(self.file.file.write_all_at(from, at)?)
    }

    fn zero(&self, first: Sector, count: u64, unmap: bool) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        if bytes == 0
            || unmap && self.allocate(FallocateFlags::PUNCH_HOLE, at, bytes)?
            || self.allocate(FallocateFlags::ZERO_RANGE, at, bytes)?
        {
            return Ok(());
        }
        let zeros = [0; ZEROS];
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(ZEROS as u64);
            self.file.file.write_all_at(&zeros[..len as usize], at + done)?;
            done += len;
        }
        Ok(())
    }

    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        if bytes > 0 {
            self.allocate(FallocateFlags::PUNCH_HOLE, at, bytes)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.file.writable {
            self.file.file.sync_data()?;
        }
        Ok(())
    }
}
