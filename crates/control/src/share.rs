//! A folder of the host's that a guest sees. Plain data.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A shared folder (virtio-fs).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareConfig {
    /// The folder.
    pub folder: PathBuf,
    /// What the guest finds it by, 1 to 36 bytes.
    pub tag: String,
    /// The guest can't change it.
    pub read_only: bool,
    /// Nothing in it changes meanwhile, as far as anybody cares: the guest may keep what it has read.
    pub is_still: bool,
}
