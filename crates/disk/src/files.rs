//! Which files of the host an image needs, before any is opened for use. Called by who forbids all others.
//!
//! Reads the headers of qcow2 images, which name the images that they are backed by. What can't be read is left out: opening says why.

use crate::qcow2::LONGEST_CHAIN;
use crate::qcow2::header::Header;
use crate::{Encryption, Format, Image, nbd};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What an image needs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Files {
    /// Files that are only read.
    pub read: Vec<PathBuf>,
    /// Files that are read and written.
    pub write: Vec<PathBuf>,
    /// The server that has it.
    pub server: Option<nbd::Address>,
}

/// What an image needs, but for keys and programs.
#[must_use]
pub fn files(image: &Image) -> Files {
    let mut files = Files::default();
    if matches!(image.encryption, Some(Encryption::Server { .. })) {
        return files;
    }
    if let Some(address) = image.file.to_str().and_then(nbd::Address::parse) {
        files.server = address.ok();
        return files;
    }
    if image.read_only || image.snapshot {
        files.read.push(image.file.clone());
    } else {
        files.write.push(image.file.clone());
    }
    if image.format.or(Format::by_name(&image.file)) == Some(Format::Qcow2) {
        files.read.extend(backing(&image.file));
    }
    files
}

/// All images that one is backed by.
fn backing(image: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut image = image.to_owned();
    while found.len() < LONGEST_CHAIN {
        let Some(Header { backing: Some(name), .. }) = header_of(&image) else { break };
        let folder = image.parent().unwrap_or(Path::new(""));
        image = folder.join(name);
        found.push(image.clone());
    }
    found
}

fn header_of(image: &Path) -> Option<Header> {
    // A pipe would wait for its other end.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file: File = OpenOptions::new().read(true).custom_flags(nonblock).open(image).ok()?;
    file.metadata().ok()?.is_file().then(|| Header::read(&file).ok())?
}
