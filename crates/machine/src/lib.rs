//! A machine: from configuration to devices to a running guest.
//!
//! | module | what |
//! |---|---|
//! | [`boot`], [`acpi`] | kernel files and boot protocols; firmware tables |
//! | [`clock`] | the one clock: guest time on the host's TSC |
//! | [`cpuid`], [`msr`] | what the guest is told of its CPU; the machine-side MSRs |
//! | `events` | the event loop: alarms and host file descriptors |
//! | `streams`, `serial` | the host's side of serial ports; how the two meet |
//! | `board`, `gsi` | the devices as a list, and how each is wired |
//! | `pci`, `disks`, `virtio`, `console` | what plugs into PCI |
//! | `platform` | what a vCPU sees of all that |
//! | `windows` | being told when a vCPU can take an event |
//! | `report` | what a run has counted |
//! | `ending`, `vm` | how a run ends; the machine's life |
//! | `raw` | RDTSC, the one `unsafe` block |
//!
//! The command line makes a [`Machine`] from a [`MachineConfig`](control::MachineConfig), [`Streams`] and an engine, and calls
//! [`Machine::run`], which blocks until the guest powers off, fails or is stopped through a [`Handle`].
//!
//! # Threads
//!
//! One a vCPU (`ombra-vcpu0`...), living from a start of the guest to its next reset; `ombra-events` for timers and serial
//! input; a writer for each serial port that leads somewhere (`ombra-com1`...); those of virtio devices (`ombra-rng-0`...),
//! while their drivers have them running; and the caller's, which waits. Nobody
//! polls: a machine whose vCPUs halt sleeps in system calls.
//!
//! # Lock order
//!
//! Device, then interrupt controller (PIC or I/O APIC, then local APIC), then one of the leaves: an alarm's lock, an
//! output queue's, `ending`'s, a kicker's. The event loop holds none of its own locks when it calls a device.
//!
//! # Unsafe code
//!
//! None, except that `raw` reads the host's TSC: `_rdtsc` has no safe form in the standard library, and everything that measures guest
//! time stands on it.

pub mod acpi;
mod board;
pub mod boot;
pub mod clock;
mod console;
pub mod cpuid;
mod disks;
mod ending;
mod events;
mod gsi;
pub mod msr;
mod needs;
mod pci;
mod platform;
mod raw;
mod report;
mod serial;
mod streams;
mod virtio;
mod vm;
mod windows;

pub use chipset::mux::{LineState, Mux, Route};
pub use disks::image;
pub use needs::needs;
pub use report::Report;
pub use streams::{Input, QUEUE_LIMIT, Stream, Streams};
pub use vm::{Handle, Machine, Outcome};
pub use windows::{EventWindow, WindowRequest};

use std::path::PathBuf;

/// Why a machine can't be made, or can't go on. One line each; causes are in the source.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration can't be.
    #[error("{0}")]
    Config(String),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The kernel, its initial RAM disk or its command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// A disk's image.
    #[error(transparent)]
    Disk(#[from] disk::OpenError),
    /// A shared folder.
    #[error(transparent)]
    Share(#[from] share::ShareError),
    /// A network.
    #[error(transparent)]
    Net(#[from] net::NetError),
    /// The CPU engine.
    #[error("the CPU engine failed")]
    Engine(#[from] engine::EngineError),
    /// A serial port's file.
    #[error("can't write the file for COM{port}, {}", .file.display())]
    SerialFile {
        /// The port, from 1.
        port: usize,
        /// The file.
        file: PathBuf,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The guest's output can't be delivered.
    #[error("can't write the output of {port}")]
    Output {
        /// The port: COM1 to COM4, or a console's by its name.
        port: String,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The host refuses a thread or a file descriptor.
    #[error("the host refused {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
    /// A bug of Ombra's.
    #[error("internal error: {what} panicked (see the message above)")]
    Panicked {
        /// Whose thread it was.
        what: &'static str,
    },
}
