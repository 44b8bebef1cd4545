//! qcow2 images, by the crate `imago`; and overlays, which are temporary qcow2 images.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`. Internal snapshots and encryption are not imago's, nor ours; an image that needs
//! something unknown is refused. Images may be backed by raw and qcow2 images, in chains; those are opened here, through [`Chain`], so
//! that they are locked like all others and only real files are opened.
//!
//! A flush writes imago's cached tables, then has the host write its caches (`fdatasync`) of the image.
//!
//! Locks: an `RwLock` around the image, since discarding changes mappings that requests in flight hold; everything else shares.

pub(crate) mod header;

use crate::{DiskError, Format, Layer, LayerInfo, OpenError, SECTOR_BYTES, Sector, host, within};
use imago::file::File;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::{Qcow2 as Image, Qcow2CreateBuilder, Qcow2OpenBuilder};
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, StorageOpenOptions,
};
use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The longest chain of images.
pub(crate) const LONGEST_CHAIN: usize = 64;

/// A qcow2 image and what it is backed by.
pub struct Qcow2 {
    image: RwLock<FormatAccess<File>>,
    info: LayerInfo,
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Qcow2 {
    /// Opens an image; `trusted`: what it is backed by, too.
    pub(crate) fn open(file: host::File, trusted: bool) -> Result<Self, OpenError> {
        let read_only = !file.writable;
        let path = file.path.clone();
        let image = access(file, trusted).map_err(|source| OpenError::Qcow2 { file: path, source })?;
        Ok(Self::new(image, read_only))
    }

    /// An image whose changes are lost when this is dropped.
    pub(crate) fn overlay(base: host::File, format: Format, trusted: bool) -> Result<Self, OpenError> {
        let path = base.path.clone();
        let base = match format {
            Format::Qcow2 => access(base, trusted),
            Format::Raw => storage(base).and_then(|file| Raw::open_image(file, false)).map(FormatAccess::new),
        };
        let base = base.map_err(|source| OpenError::Qcow2 { file: path.clone(), source })?;
        let size = base.size();
        let make = || -> io::Result<FormatAccess<File>> {
            // It has no name, and so nothing is left of it, however this process ends.
            let file = File::try_from(tempfile::tempfile()?)?;
            let image = Qcow2CreateBuilder::<File>::new(file)
                .size(size)
                .create_open(DenyImplicitOpenGate::default(), |file| {
                    Ok(Qcow2OpenBuilder::new(file).backing(Some(base)).write(true))
                })?;
            Ok(FormatAccess::new(image))
        };
        let image = make().map_err(|source| OpenError::Overlay { file: path, source })?;
        Ok(Self::new(image, false))
    }

    fn new(image: FormatAccess<File>, read_only: bool) -> Self {
        let info = LayerInfo { sectors: image.size() / SECTOR_BYTES, read_only };
        Self { image: RwLock::new(image), info }
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self, first: Sector, bytes: u64) -> Result<u64, DiskError> {
        if self.info.read_only {
            return Err(DiskError::ReadOnly);
        }
        within(self.info.sectors, first, bytes)
    }
}

/// An open file as imago knows it. The name is for what an image names relative to it.
fn storage(file: host::File) -> io::Result<File> {
    let options = StorageOpenOptions::new().filename(&file.path).write(file.writable);
    File::from_open_file(file.file, options)
}

fn access(file: host::File, trusted: bool) -> io::Result<FormatAccess<File>> {
    let writable = file.writable;
    if header::Header::read(&file.file)?.encryption != 0 {
        return Err(io::Error::other(
            "it is encrypted in qcow2's own way, which is not supported (a qcow2 image with LUKS in it is)",
        ));
    }
    let builder = Image::<File>::builder(storage(file)?).write(writable);
    let image = if trusted {
        builder.open(Chain { left: LONGEST_CHAIN })?
    } else {
        builder.open(DenyImplicitOpenGate::default()).map_err(|error| {
            io::Error::new(error.kind(), format!("{error} (format=qcow2 opens what it is backed by)"))
        })?
    };
    Ok(FormatAccess::new(image))
}

/// Opens what an image is backed by.
struct Chain {
    /// How much longer it may get.
    left: usize,
}

impl ImplicitOpenGate<File> for Chain {
    fn open_format<F: FormatDriverBuilder<File>>(&mut self, builder: F) -> io::Result<FormatAccess<File>> {
        if !matches!(F::FORMAT, imago::format::Format::Raw | imago::format::Format::Qcow2) {
            return Err(io::Error::other("images can be backed by raw and qcow2 images only"));
        }
        let left =
            self.left.checked_sub(1).ok_or_else(|| io::Error::other("the chain of images is too long"))?;
        Ok(FormatAccess::new(builder.open(Chain { left })?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        let path = options.get_filename().unwrap_or(Path::new("")).to_owned();
        let file = host::File::open(&path, options.get_writable()).map_err(|error| match error {
            OpenError::Host { source, .. } => source,
            other => io::Error::other(other.to_string()),
        })?;
        storage(file)
    }
}

impl Layer for Qcow2 {
    fn info(&self) -> LayerInfo {
        self.info
    }

    fn read(&self, first: Sector, into: &mut [u8]) -> Result<(), DiskError> {
        let at = within(self.info.sectors, first, into.len() as u64)?;
        Ok(self.shared().read(into, at)?)
    }

    fn write(&self, first: Sector, from: &[u8]) -> Result<(), DiskError> {
        let at = self.writable(first, from.len() as u64)?;
        Ok(self.shared().write(from, at)?)
    }

    fn zero(&self, first: Sector, count: u64, unmap: bool) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        if unmap {
            let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
            return Ok(image.discard_to_zero(at, bytes)?);
        }
        Ok(self.shared().write_zeroes(at, bytes)?)
    }

    fn discard(&self, first: Sector, count: u64) -> Result<(), DiskError> {
        let bytes = count.checked_mul(SECTOR_BYTES).ok_or(DiskError::Range)?;
        let at = self.writable(first, bytes)?;
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        match image.discard_to_any(at, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => Ok(result?),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.info.read_only {
            return Ok(());
        }
        let image = self.shared();
        image.flush()?;
        Ok(image.sync()?)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!("a qcow2 image could not be written to its end: {error}");
        }
    }
}
