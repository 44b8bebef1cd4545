//! What can go wrong with images.

use crypt::CryptError;
use std::io;
use std::path::PathBuf;

/// A request that has failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host's file.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// Beyond the last sector, or not whole sectors.
    #[error("no such sectors")]
    Range,
    /// It is not to be written.
    #[error("the disk is read-only")]
    ReadOnly,
}

/// An image that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refuses.
    #[error("can't open {}", .file.display())]
    Host {
        /// The file.
        file: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe, a terminal.
    #[error("{} is neither a file nor a block device", .file.display())]
    Kind {
        /// What isn't one.
        file: PathBuf,
    },
    /// Somebody else has it open.
    #[error("{} is in use by another process{}", .file.display(),
        if *.writable { "; readonly=on or snapshot=on can share it with readers" } else { " that writes it" })]
    Locked {
        /// The file.
        file: PathBuf,
        /// It was to be written.
        writable: bool,
    },
    /// There isn't a single sector.
    #[error("{} is empty: a disk has at least 512 bytes", .file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A format that nobody has said.
    #[error(
        "{} looks like a qcow2 image, which may also be a trick of the guest that wrote it: say format=qcow2, or format=raw",
        .file.display()
    )]
    Unsaid {
        /// The file.
        file: PathBuf,
    },
    /// A qcow2 image that isn't one.
    #[error("{} is no qcow2 image", .file.display())]
    NotQcow2 {
        /// The file.
        file: PathBuf,
    },
    /// The image is damaged, or needs what isn't there.
    #[error("can't use {} as a qcow2 image", .file.display())]
    Qcow2 {
        /// The file.
        file: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An encrypted disk that can't be opened.
    #[error("can't open {} as an encrypted disk", .file.display())]
    Encrypted {
        /// The file.
        file: PathBuf,
        /// The reason.
        #[source]
        source: CryptError,
    },
    /// A server of disks that can't be used.
    #[error("can't use {at}")]
    Nbd {
        /// Its address or command.
        at: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An image that can't be made.
    #[error("can't make {}", .file.display())]
    Create {
        /// The file.
        file: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// What doesn't go together.
    #[error("{}: {what}", .file.display())]
    Impossible {
        /// The file.
        file: PathBuf,
        /// What.
        what: &'static str,
    },
    /// No temporary file for what the guest writes.
    #[error("can't make a temporary file for what is written to {} (TMPDIR says where)", .file.display())]
    Overlay {
        /// The image below.
        file: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}
