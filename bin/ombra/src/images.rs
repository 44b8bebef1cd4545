//! `ombra disk`: makes images, converts them, says what they are. The work is `disk`'s and `crypt`'s.
//!
//! Progress goes to stderr, and only where that is a terminal.

use crate::cli::{Bytes, ConvertDisk, CreateDisk, DiskCommand, InfoDisk, MakeDisk};
use crate::disks::{Disk, Encryption, How, Key};
use crate::keys;
use anyhow::{Context, Result, bail};
use control::{DiskConfig, KeySource};
use crypt::luks::{self, Version};
use crypt::plugin::Plugin;
use crypt::secret::Source;
use crypt::{Creation, Secret};
use disk::make::{self, New};
use disk::{Format, Image, Layer, SECTOR_BYTES};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Runs one of the commands.
///
/// # Errors
/// What is wrong, in one line.
pub(crate) fn run(command: &DiskCommand) -> Result<()> {
    match command {
        DiskCommand::Create(flags) => create(flags),
        DiskCommand::Convert(flags) => convert(flags),
        DiskCommand::Info(flags) => info(flags),
    }
}

fn create(flags: &CreateDisk) -> Result<()> {
    let backing = match &flags.backing {
        Some(backing) => Some(backing_of(backing)?),
        None => None,
    };
    let bytes = match (flags.size, &flags.backing, &backing) {
        (Some(Bytes(bytes)), ..) => bytes,
        (None, Some(_), Some((path, format))) => {
            let beside = beside(flags.disk.file(), path);
            let image = Image { format: Some(*format), read_only: true, ..Image::new(beside) };
            disk::open(&image)?.info().sectors * SECTOR_BYTES
        }
        _ => bail!("a new image needs a SIZE, such as 10G, or --backing"),
    };
    let made = Target::new(&flags.disk, &flags.make)?;
    made.make(bytes, backing)?;
    Ok(())
}

/// A backing file's name is relative to the image's folder.
fn beside(image: &Path, backing: &Path) -> PathBuf {
    image.parent().map_or_else(|| backing.to_owned(), |folder| folder.join(backing))
}

/// `--backing FILE[,format=..]`.
fn backing_of(disk: &Disk) -> Result<(PathBuf, Format)> {
    if disk.encryption().is_some() {
        bail!(
            "--backing takes a file and its format: an image over an encrypted one needs encrypt= when it is used"
        );
    }
    let file = disk.file().to_owned();
    let format = disk.format().or_else(|| Format::by_name(&file)).unwrap_or(Format::Raw);
    Ok((file, format))
}

/// What is to be made, with its key.
struct Target {
    file: PathBuf,
    format: Format,
    encryption: Option<(Creation, Secret)>,
    old: bool,
    replace: bool,
}

impl Target {
    fn new(disk: &Disk, flags: &MakeDisk) -> Result<Self> {
        let file = disk.file().to_owned();
        let format = disk.format().or_else(|| Format::by_name(&file)).unwrap_or(Format::Raw);
        if flags.qcow2_version == 2 && format != Format::Qcow2 {
            bail!("--qcow2-version is for qcow2 images");
        }
        let encryption = match disk.encryption() {
            None if flags.cipher.is_some() || flags.sector_size.is_some() || flags.iter_time.is_some() => {
                bail!("--cipher, --sector-size and --iter-time are for encrypted disks: say encrypt=");
            }
            None => None,
            Some(encryption) => {
                let creation = creation(encryption, flags)?;
                let source = match &encryption.key {
                    Some(Key::At(source)) => source.clone(),
                    Some(Key::Prompt) | None => keys::ask_new(&file)?,
                };
                Some((creation, self::source(&source).read()?))
            }
        };
        Ok(Self { file, format, encryption, old: flags.qcow2_version == 2, replace: flags.force })
    }

    fn make(&self, bytes: u64, backing: Option<(PathBuf, Format)>) -> Result<Arc<dyn Layer>> {
        let new = New {
            file: self.file.clone(),
            format: self.format,
            bytes,
            old: self.old,
            backing,
            encryption: self.encryption.as_ref().map(|(creation, _)| creation.clone()),
            replace: self.replace,
        };
        Ok(make::create(&new, self.encryption.as_ref().map(|(_, key)| key))?)
    }
}

fn source(key: &KeySource) -> Source {
    match key {
        KeySource::File(path) => Source::File(path.clone()),
        KeySource::Inherited(number) => Source::Inherited(*number),
    }
}

fn creation(encryption: &Encryption, flags: &MakeDisk) -> Result<Creation> {
    let spec = |text: &str| text.parse().map_err(anyhow::Error::new);
    Ok(match &encryption.how {
        How::Luks(version) => {
            let version = if *version == Some(1) { Version::One } else { Version::Two };
            let mut creation = luks::Creation::new(version);
            if let Some(cipher) = &flags.cipher {
                creation.spec = spec(cipher)?;
            }
            if let Some(bytes) = flags.sector_size {
                if !bytes.is_power_of_two() || !(512..=4096).contains(&bytes) {
                    bail!("--sector-size is 512, 1024, 2048 or 4096");
                }
                creation.sector_bytes = bytes;
            }
            if let Some(time) = flags.iter_time {
                creation.effort = Duration::from_millis(time);
                // Short times are for tests and small machines; a pass over much memory takes long.
                creation.memory =
                    creation.memory.map(|memory| memory.min((time as u32).saturating_mul(256).max(64)));
            }
            Creation::Luks(creation)
        }
        _ if flags.sector_size.is_some() || flags.iter_time.is_some() => {
            bail!("--sector-size and --iter-time are for LUKS");
        }
        How::Plain(_) if flags.cipher.is_some() => bail!("encrypt= names the cipher already"),
        How::Plain(cipher) => Creation::Plain(spec(cipher)?),
        How::Plugin(path) => {
            Creation::Plugin(Plugin { path: path.clone(), options: encryption.plugin_options.clone() })
        }
        How::Server(_) => bail!("a server makes its images itself"),
    })
}

fn convert(flags: &ConvertDisk) -> Result<()> {
    let from = open(&flags.from)?;
    let target = Target::new(&flags.to, &flags.make)?;
    let bytes = from.info().sectors * SECTOR_BYTES;
    let to = target.make(bytes, None)?;
    // What is new is zero, unless it is encrypted, or was there before.
    let sparse = target.encryption.is_none() && !is_device(&target.file);
    let bar = if flags.quiet { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let copied = make::copy(&*from, &*to, sparse, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    if copied.is_err() && !is_device(&target.file) {
        // Half an image is worse than none.
        let _ = std::fs::remove_file(&target.file);
    }
    copied.with_context(|| {
        format!("{} can't be copied to {}", flags.from.file().display(), target.file.display())
    })
}

/// An image that is only read.
fn open(disk: &Disk) -> Result<Arc<dyn Layer>> {
    let config = DiskConfig { read_only: true, ..disk.config()? };
    Ok(disk::open(&machine::image(&config)?)?)
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device())
}

fn info(flags: &InfoDisk) -> Result<()> {
    let file = flags.disk.file();
    let said = flags.disk.format().or_else(|| Format::by_name(file));
    let is_file = file.to_str().is_none_or(|text| disk::nbd::Address::parse(text).is_none());
    let mut text = format!("file:       {}\n", file.display());
    if is_file {
        text += &described(&make::describe(file, said)?);
    }
    // Whether the key opens it is worth knowing, too.
    if flags.disk.encryption().is_some() || !is_file {
        let layer = open(&flags.disk)?;
        text += &format!("guest sees: {}\n", size(layer.info().sectors * SECTOR_BYTES));
    }
    io::stdout().write_all(text.as_bytes()).context("nobody reads this")
}

fn described(found: &make::Description) -> String {
    let mut text = format!("format:     {}\n", found.format);
    text += &format!("size:       {}\n", size(found.bytes));
    text += &format!("on disk:    {}\n", size(found.allocated));
    if let Some(qcow2) = &found.qcow2 {
        text +=
            &format!("qcow2:      version {}, clusters of {}\n", qcow2.version, size(qcow2.cluster_bytes));
        if let Some(backing) = &qcow2.backing {
            let format = qcow2.backing_format.as_deref().unwrap_or("a format that it doesn't say");
            text += &format!("backed by:  {backing} ({format})\n");
        }
    }
    if let Some(luks) = &found.luks {
        text += &format!(
            "encryption: LUKS{}, {}, {} bits, sectors of {} bytes, data from {} on\n",
            luks.version,
            luks.cipher,
            luks.key_bits,
            luks.sector_bytes,
            size(luks.offset)
        );
        text += &format!("uuid:       {}\n", luks.uuid);
        for slot in &luks.slots {
            text += &format!("key slot:   {slot}\n");
        }
    }
    text
}

/// Bytes, and about how many that is.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| bytes >> shift != 0) else {
        return format!("{bytes} bytes");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    let tenth = if tenths % 10 == 0 { String::new() } else { format!(".{}", tenths % 10) };
    format!("{}{tenth} {unit} ({bytes} bytes)", tenths / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_and_readable() {
        assert_eq!(size(511), "511 bytes");
        assert_eq!(size(4096), "4 KiB (4096 bytes)");
        assert_eq!(size(1_610_612_736), "1.5 GiB (1610612736 bytes)");
        assert_eq!(size(u64::MAX), "16777215.9 TiB (18446744073709551615 bytes)");
    }
}
