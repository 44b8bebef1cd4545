//! An NVM Express controller with one namespace, on PCI: a disk that kernels find without modules.
//!
//! Source: NVM Express Base Specification 1.4, whose sections and figures are cited everywhere here.
//!
//! | module | what |
//! |---|---|
//! | [`Nvme`] (`controller`) | registers, doorbells, life |
//! | `queue` | queues in guest memory, and interrupts |
//! | `prp` | where a command's data is |
//! | `worker` | what the threads do |
//! | `admin`, `identify`, `features`, `log` | admin commands, and what they tell |
//! | `io` | commands of the NVM command set, over [`disk::Requests`] |
//! | `shared` | what registers and threads share; lock order |
//! | `spec` | registers, opcodes, status codes |
//!
//! `machine` makes one and wires it like any chip. vCPUs only store doorbells and wake threads.
//!
//! # Hostile drivers
//! Whatever is wrong with a command is its completion's status. A queue that isn't RAM is a fatal status (CSTS.CFS) that waits for a
//! reset. Neither is printed by default.
//!
//! # Left out
//! Everything that is optional but dataset management and write zeroes: metadata and protection, several namespaces,
//! scatter-gather lists, memory buffers of the controller, compare, reservations, firmware, sanitize, power states, and
//! interrupt coalescing, which takes a value and makes nothing of it.

mod admin;
mod controller;
mod features;
mod identify;
mod io;
mod log;
mod prp;
mod queue;
mod shared;
mod spec;
#[cfg(test)]
mod tests;
mod worker;

pub use controller::{Nvme, Wiring};

/// Bytes of a controller's base address, which also is its alignment.
pub const BAR_BYTES: u32 = spec::BAR_BYTES;
/// Pairs of I/O queues at most.
pub const MOST_QUEUES: u16 = 16;

/// PCI's IDs. No driver goes by them, but by the class; the vendor is that of virtio devices, whose IDs end before this one.
pub(crate) const VENDOR: u16 = 0x1af4;
pub(crate) const DEVICE: u16 = 0x10f0;
pub(crate) const SUBSYSTEM: u16 = 0x1100;
/// Mass storage, non-volatile memory, NVM Express I/O controller (2.1.5).
pub(crate) const CLASS: u32 = 0x01_08_02;
