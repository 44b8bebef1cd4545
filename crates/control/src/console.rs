//! A port of the guest's virtio console. Plain data.

use serde::{Deserialize, Serialize};

/// A port, which leads to an in-process byte stream that the caller supplies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortConfig {
    /// What programs in the guest find it by.
    pub name: String,
    /// It is a console of the guest's (`hvc0`), not a device for programs.
    pub is_console: bool,
}
