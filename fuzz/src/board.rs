//! What disk controllers under test are connected to: a disk in memory, and interrupts that lead nowhere.

use chipset::{LineSink, Msi, MsiSink};
use disk::{DiskError, Layer, LayerInfo, SECTOR_BYTES, Sector};
use std::sync::Mutex;

/// Sectors of the disk.
const SECTORS: u64 = 16;

/// A disk in memory, whose last sector is bad.
pub(crate) struct Sectors(Mutex<Vec<u8>>);

impl Sectors {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(vec![0; (SECTORS * SECTOR_BYTES) as usize]))
    }

    fn at(first: Sector, bytes: u64) -> Result<std::ops::Range<usize>, DiskError> {
        assert!(bytes.is_multiple_of(SECTOR_BYTES), "front ends ask for whole sectors only");
        let end = first.0.checked_add(bytes / SECTOR_BYTES).filter(|end| *end <= SECTORS);
        assert!(end.is_some(), "and for those that are there");
        if end == Some(SECTORS) {
            return Err(DiskError::ReadOnly);
        }
        let at = first.byte() as usize;
        Ok(at..at + bytes as usize)
    }
}

impl Layer for Sectors {
    fn info(&self) -> LayerInfo {
        LayerInfo { sectors: SECTORS, read_only: false }
    }
    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        let range = Self::at(first, into.len() as u64)?;
        into.copy_from_slice(&self.0.lock().expect("no panic before")[range]);
        Ok(())
    }
    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        let range = Self::at(first, from.len() as u64)?;
        self.0.lock().expect("no panic before")[range].copy_from_slice(from);
        Ok(())
    }
    fn zero(&self, first: Sector, count: u64, _: bool) -> Result<(), DiskError> {
        let range = Self::at(first, count * SECTOR_BYTES)?;
        self.0.lock().expect("no panic before")[range].fill(0);
        Ok(())
    }
    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError> {
        Self::at(first, count * SECTOR_BYTES).map(|_| ())
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Takes interrupts.
pub(crate) struct Nothing;

impl LineSink for Nothing {
    fn set_pin(&self, _: u8, _: bool) {}
}

impl MsiSink for Nothing {
    fn send(&self, msi: Msi) -> bool {
        msi.data & 1 != 0
    }
}
