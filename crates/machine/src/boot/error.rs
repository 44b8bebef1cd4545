//! What can be wrong with what a user asked to boot. Each message is one line and names the file or flag.

use memory::MemoryError;
use std::path::PathBuf;

/// Why a machine can't start its guest.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be opened or read.
    #[error("can't read the {what} {file}", file = file.display())]
    Read {
        /// What the file was to be: "kernel", "initial RAM disk", "module".
        what: &'static str,
        /// Its path.
        file: PathBuf,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// A path leads to something that can't be such a file.
    #[error("{file} {problem}; the {what} must be a file", file = file.display())]
    NotAFile {
        /// What the file was to be.
        what: &'static str,
        /// Its path.
        file: PathBuf,
        /// What it is instead.
        problem: &'static str,
    },
    /// A file is larger than can be used.
    #[error("the {what} {file} is larger than {limit} bytes, the most that fits", file = file.display())]
    TooLarge {
        /// What the file was to be.
        what: &'static str,
        /// Its path.
        file: PathBuf,
        /// The most that fits, in bytes.
        limit: u64,
    },
    /// The kernel's contents are wrong or of a kind that Ombra doesn't boot.
    #[error("can't boot {kernel}: {problem}")]
    Image {
        /// The kernel's path.
        kernel: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len} bytes, but {kernel} takes at most {limit} (--cmdline)")]
    CommandLine {
        /// The kernel's path.
        kernel: String,
        /// Bytes given.
        len: u64,
        /// Bytes that the kernel takes.
        limit: u64,
    },
    /// The initial RAM disk or the modules don't fit.
    #[error(
        "the initial RAM disk or modules need {need} bytes, but only {room} are free for them: give more --memory"
    )]
    Initramfs {
        /// Bytes wanted.
        need: u64,
        /// Bytes there are.
        room: u64,
    },
    /// Too little RAM.
    #[error("{have} KiB of memory are too little: {kernel} needs at least {need} KiB (--memory)")]
    Memory {
        /// The kernel's path.
        kernel: String,
        /// What it needs, in KiB.
        need: u64,
        /// What there is below 4 GiB, in KiB.
        have: u64,
    },
    /// Too many vCPUs to list in the firmware tables.
    #[error("firmware tables for {cpus} vCPUs don't fit the BIOS area (--cpus)")]
    Tables {
        /// Number of vCPUs.
        cpus: u32,
    },
    /// A write to guest memory that earlier checks should have refused.
    #[error("boot structures don't fit guest memory")]
    Ram(#[from] MemoryError),
}
