//! Machine configuration and control-socket types. Plain data: nothing here opens a file or starts anything.
//!
//! The command line fills a [`MachineConfig`], `machine` builds from it.

mod console;
mod disk;
mod enlightenments;
mod net;
mod share;

pub use console::PortConfig;
pub use disk::{DiskBus, DiskConfig, DiskEncryption, DiskFormat, KeySource};
pub use enlightenments::{Enlightenments, Parts};
pub use net::{Forward, NetBackend, NetConfig, Protocol, UserNet};
pub use share::ShareConfig;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that decides what a machine is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MachineConfig {
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// CPUID offers 5-level paging (57-bit linear addresses), which guests then switch on.
    pub la57: bool,
    /// CPUID offers MONITOR and MWAIT, with which guests then idle.
    pub mwait: bool,
    /// What the guest is told of the leaks that CPUs have.
    pub mitigations: Mitigations,
    /// The interface for guests that know they are guests.
    pub enlightenments: Enlightenments,
    /// What of it is offered.
    pub parts: Parts,
    /// What to boot.
    pub boot: BootConfig,
    /// COM1 to COM4; `None` where there is no port.
    pub serial: [Option<SerialConfig>; 4],
    /// A guest reboot ends the run instead of resetting the machine.
    pub no_reboot: bool,
    /// Disks, in the order in which the guest finds them; 16 at most.
    pub disks: Vec<DiskConfig>,
    /// Network cards (virtio-net), in the order in which the guest finds them.
    pub nets: Vec<NetConfig>,
    /// Folders of the host's (virtio-fs).
    pub shares: Vec<ShareConfig>,
    /// Ports of a virtio console; no console where there are none.
    pub ports: Vec<PortConfig>,
    /// An entropy source (virtio-rng) that gives the guest the host's random bytes.
    pub entropy: bool,
    /// The devices that bare-metal test kernels written for QEMU expect.
    pub test_devices: bool,
}

/// What the guest is told of the leaks that CPUs have, by which it decides what to do against them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Mitigations {
    /// The CPU has none of them: the guest does nothing that would only cost time here.
    #[default]
    Off,
    /// What the host's CPUID says: the guest does what it would do on the host.
    Guest,
}

/// What to boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BootConfig {
    /// A bzImage, an ELF kernel (PVH or 64-bit entry) or a multiboot image; told apart by its contents.
    pub kernel: PathBuf,
    /// Initial RAM disk, or the modules of a multiboot kernel.
    pub initramfs: Option<Initramfs>,
    /// Kernel command line, or the arguments of a multiboot kernel (without its name).
    pub cmdline: String,
}

/// An initial RAM disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Initramfs {
    /// A file of the host. For multiboot kernels: a comma-separated list of modules, each `FILE[ ARGUMENTS]`.
    File(PathBuf),
    /// Built in memory.
    Bytes(Vec<u8>),
}

/// Where a serial port leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SerialConfig {
    /// Output is dropped, no input comes.
    Null,
    /// Output goes to a file, no input comes.
    File(PathBuf),
    /// To an in-process byte stream that the caller supplies (the terminal, a log).
    Stream,
}
