//! A guest's disk: which image of the host's, and how it is used. Plain data.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A file or block device of the host.
    pub file: PathBuf,
    /// Its format; `None` where the name's ending decides, or for images that are only read their contents.
    pub format: Option<DiskFormat>,
    /// The guest can't write to it.
    pub read_only: bool,
    /// What the guest writes is gone when the machine is.
    pub snapshot: bool,
    /// How it is encrypted.
    pub encryption: Option<DiskEncryption>,
    /// What the guest sees as its serial number, of up to 20 bytes.
    pub serial: Option<String>,
    /// What the guest finds it behind.
    #[serde(default)]
    pub bus: DiskBus,
}

/// What a guest finds a disk behind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// An NVM Express controller of its own.
    Nvme,
}

/// How an image's bytes are arranged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DiskFormat {
    /// As they are.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
}

/// How a disk is encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DiskEncryption {
    /// With a LUKS header of either version, which says all but the key.
    Luks {
        /// A passphrase.
        key: KeySource,
    },
    /// Without a header.
    Plain {
        /// In dm-crypt's words, such as `aes-xts-plain64`.
        cipher: String,
        /// The key itself.
        key: KeySource,
    },
    /// By a plug-in.
    Plugin {
        /// A library, a program or a socket.
        path: PathBuf,
        /// Text for it.
        options: String,
        /// For it.
        key: KeySource,
    },
    /// By a command for the shell that opens the file and serves it by NBD on its standard input.
    Server {
        /// The command.
        command: String,
    },
}

/// Where a key is. The key itself is never part of a configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KeySource {
    /// All of a file.
    File(PathBuf),
    /// All that comes from a file descriptor that the process was started with.
    Inherited(i32),
}
