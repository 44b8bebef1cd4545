//! Hostile input: whatever a guest, a kernel file or a saved machine can do must not make Ombra panic, hang or err.
//!
//! Each module is one target: its `run` takes any bytes, does what they say and asserts what must hold. Two callers:
//! libFuzzer (`targets/`, by `cargo xtask fuzz TARGET`), which searches for bytes that reach new code, and
//! `tests/regression.rs`, which runs the committed seeds and a few thousand random inputs in every test run.
//!
//! The same bytes always do the same: nothing here looks at the host's clock or keeps state between runs.
//!
//! Threads: plain functions.

pub mod answers;
mod board;
pub mod boot_image;
pub mod devices;
pub mod disk_image;
pub mod execute;
mod input;
pub mod luks;
pub mod net;
pub mod nvme;
pub mod virtio;

pub use input::Input;

/// A target: its name, which is also that of its folder under `seeds/`, and what to run.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("answers", answers::run),
    ("boot_image", boot_image::run),
    ("devices", devices::run),
    ("disk_image", disk_image::run),
    ("execute", execute::run),
    ("luks", luks::run),
    ("net", net::run),
    ("nvme", nvme::run),
    ("virtio", virtio::run),
];
