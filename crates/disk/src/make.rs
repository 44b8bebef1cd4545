//! New images, copies of images, and what an image says of itself. Called by `ombra disk`.

use crate::encrypted::Encrypted;
use crate::qcow2::header::Header;
use crate::{DiskError, Format, Image, Layer, OpenError, SECTOR_BYTES, Sector, host, open, open_file};
use crypt::{Creation, Method, Secret, luks};
use imago::file::File as Storage;
use imago::qcow2::Qcow2CreateBuilder;
use imago::{FormatCreateBuilder, StorageOpenOptions};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read at once, and the pieces in which zeros are looked for.
const CHUNK: usize = 1 << 20;
const PIECE: usize = 64 << 10;
/// The largest image.
const MOST: u64 = 1 << 56;

/// An image to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct New {
    /// Its name.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
    /// What the guest is to have, in bytes: whole sectors.
    pub bytes: u64,
    /// Version 2 of qcow2, for old readers, instead of 3.
    pub old: bool,
    /// For qcow2: the image that is to show through, and its format.
    pub backing: Option<(PathBuf, Format)>,
    /// How it is encrypted.
    pub encryption: Option<Creation>,
    /// A file that is there already goes.
    pub replace: bool,
}

impl New {
    fn failed(&self, source: io::Error) -> OpenError {
        OpenError::Create { file: self.file.clone(), source }
    }

    fn impossible(&self, what: &'static str) -> OpenError {
        OpenError::Impossible { file: self.file.clone(), what }
    }

    fn check(&self) -> Result<(), OpenError> {
        if self.bytes == 0 || !self.bytes.is_multiple_of(SECTOR_BYTES) || self.bytes > MOST {
            return Err(self.impossible("an image has a multiple of 512 bytes"));
        }
        if self.backing.is_some() && self.format != Format::Qcow2 {
            return Err(self.impossible("only qcow2 images can be backed by others"));
        }
        if self.backing.is_some() && self.encryption.is_some() {
            return Err(self.impossible(
                "an image over an encrypted one is encrypted with it, and needs no encryption of its own",
            ));
        }
        Ok(())
    }
}

/// Makes an image and opens it. `key` opens it where it is encrypted; its sectors then have any contents. Where this fails, no new file is
/// left.
///
/// # Errors
/// [`OpenError`]; the file is there already.
pub fn create(new: &New, key: Option<&Secret>) -> Result<Arc<dyn Layer>, OpenError> {
    new.check()?;
    let encrypted = |source| OpenError::Encrypted { file: new.file.clone(), source };
    let header = match (&new.encryption, key) {
        (Some(creation), Some(key)) => Some(crypt::create(creation, new.bytes, key).map_err(encrypted)?),
        (Some(_), None) => return Err(new.impossible("an encrypted image needs a key")),
        (None, _) => None,
    };
    let offset = header.as_ref().map_or(0, |header| header.offset);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(!new.replace)
        .create(true)
        .truncate(false)
        .open(&new.file)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => new.impossible("it is there already (--force replaces it)"),
            _ => new.failed(error),
        })?;
    let made = || -> Result<Arc<dyn Layer>, OpenError> {
        fill(new, file, new.bytes + offset)?;
        let image = Image { format: Some(new.format), ..Image::new(&new.file) };
        let below = open(&image)?;
        let (Some(header), Some(creation), Some(key)) = (&header, &new.encryption, key) else {
            return Ok(below);
        };
        for (at, piece) in &header.pieces {
            let mut sectors = piece.clone();
            sectors.resize(piece.len().next_multiple_of(SECTOR_BYTES as usize), 0);
            below
                .write(Sector(at / SECTOR_BYTES), &sectors)
                .map_err(|error| new.failed(host_error(error)))?;
        }
        let method = match creation {
            Creation::Plain(spec) => Method::Plain(*spec),
            Creation::Luks(_) => Method::Luks,
            Creation::Plugin(plugin) => Method::Plugin(plugin.clone()),
        };
        Ok(Arc::new(Encrypted::open(below, &method, key).map_err(encrypted)?))
    };
    let made = made();
    if made.is_err() && !new.replace {
        let _ = std::fs::remove_file(&new.file);
    }
    made
}

/// Gives a file its size and format.
fn fill(new: &New, file: File, bytes: u64) -> Result<(), OpenError> {
    let failed = |error| new.failed(error);
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_block_device() && new.format == Format::Raw {
        let has = host::File::open(&new.file, false)?.len;
        return if has < bytes { Err(new.impossible("the device is too small")) } else { Ok(()) };
    }
    if !kind.is_file() {
        return Err(OpenError::Kind { file: new.file.clone() });
    }
    // In use by somebody: not truncated under them.
    host::File::lock(&file, &new.file, true)?;
    file.set_len(0).map_err(failed)?;
    match new.format {
        Format::Raw => file.set_len(bytes).map_err(failed),
        Format::Qcow2 => {
            let options = StorageOpenOptions::new().filename(&new.file).write(true);
            let storage = Storage::from_open_file(file, options).map_err(failed)?;
            let mut builder = Qcow2CreateBuilder::<Storage>::new(storage).size(bytes);
            if let Some((backing, format)) = &new.backing {
                let name =
                    backing.to_str().ok_or_else(|| new.impossible("its backing file's name is no text"))?;
                builder = builder.backing(name.to_owned(), format.to_string());
            }
            builder.create().map_err(failed)?;
            if new.old { Header::make_old(&new.file).map_err(failed) } else { Ok(()) }
        }
    }
}

fn host_error(error: DiskError) -> io::Error {
    match error {
        DiskError::Host(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// Copies all sectors. `sparse`: those that are zero in `from` are so in `to` already. `progress` is told the bytes that are done.
///
/// # Errors
/// [`DiskError`] of either.
pub fn copy(
    from: &dyn Layer,
    to: &dyn Layer,
    sparse: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<(), DiskError> {
    let bytes = from.info().sectors * SECTOR_BYTES;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < bytes {
        let len = (bytes - done).min(CHUNK as u64) as usize;
        let chunk = &mut buffer[..len];
        from.read(Sector(done / SECTOR_BYTES), chunk)?;
        if sparse {
            for (number, piece) in chunk.chunks(PIECE).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    to.write(Sector((done + (number * PIECE) as u64) / SECTOR_BYTES), piece)?;
                }
            }
        } else {
            to.write(Sector(done / SECTOR_BYTES), chunk)?;
        }
        done += len as u64;
        progress(done);
    }
    to.flush()
}

/// What an image says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// How its bytes are arranged.
    pub format: Format,
    /// What a guest would have without decrypting, in bytes.
    pub bytes: u64,
    /// What it takes on the host, in bytes.
    pub allocated: u64,
    /// A qcow2 image's own.
    pub qcow2: Option<Qcow2Description>,
    /// A LUKS header in it.
    pub luks: Option<luks::Info>,
}

/// What a qcow2 header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qcow2Description {
    /// 2 or 3.
    pub version: u32,
    /// Bytes.
    pub cluster_bytes: u64,
    /// The file that shows through.
    pub backing: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
}

/// Looks at an image, whose format is guessed where nothing says it. Nothing else is opened then.
///
/// # Errors
/// [`OpenError`].
pub fn describe(path: &Path, format: Option<Format>) -> Result<Description, OpenError> {
    let file = host::File::open(path, false)?;
    let looks = file.looks_like()?;
    let format_here = format.unwrap_or(looks);
    let allocated =
        file.file.metadata().map_err(|source| OpenError::Host { file: path.to_owned(), source })?.blocks()
            * 512;
    let failed = |source| OpenError::Qcow2 { file: path.to_owned(), source };
    let header = match format_here {
        Format::Qcow2 => Some(Header::read(&file.file).map_err(failed)?),
        Format::Raw => None,
    };
    let bytes = header.as_ref().map_or(file.len, |header| header.bytes);
    drop(file);
    // An image whose backing may not be opened, or isn't there, tells only what its header says.
    let image = Image { format: Some(format_here), read_only: true, ..Image::new(path) };
    let opened = match &header {
        Some(header) if header.backing.is_some() && format.is_none() => None,
        _ => open_file(&image).ok(),
    };
    let luks = opened.and_then(|layer| crate::encrypted::luks_info(layer).ok());
    let qcow2 = header.map(|header| Qcow2Description {
        version: header.version,
        cluster_bytes: header.cluster_bytes,
        backing: header.backing,
        backing_format: header.backing_format,
    });
    Ok(Description { format: format_here, bytes, allocated, qcow2, luks })
}
