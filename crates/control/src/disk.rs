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
    /// What the guest sees as its serial number, of up to 20 bytes.
    pub serial: Option<String>,
}

/// How an image's bytes are arranged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DiskFormat {
    /// As they are.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
}
