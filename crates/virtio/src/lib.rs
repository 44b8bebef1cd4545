//! Virtio 1.2: devices that know they are virtual, on PCI.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | what a kind of device has to be, and what it may rely on: **start here to write one** |
//! | `queue`, `request` | a ring and what comes out of it, over `virtio-queue` |
//! | `interrupt` | how a device tells its driver something |
//! | `threads` | who does the devices' work, over `workers` |
//! | [`pci`] | the transport: registers, features, life |
//! | [`block`] | disks |
//! | [`net`] | network card |
//! | [`fs`] | folders of the host's |
//! | [`console`] | streams of bytes by name |
//! | [`rng`] | entropy; the least device there can be |
//!
//! `machine` makes a device, puts it on PCI by a [`pci::Transport`], and wires that like any chip.
//!
//! # Guest memory
//! Rings are `virtio-queue`'s and reach memory through `memory::Dma`, whose stores are noticed as all others. Buffers are copied
//! by `memory` itself: [`Request`] has no slices of guest memory to give.
//!
//! # Hostile drivers
//! A ring that can't be (indices, loops, tables out of RAM) sets the device's NEEDS_RESET, and its threads wait for the reset. A
//! request that is wrong in itself is the device's to fail. Neither panics, and neither is printed by default: a guest
//! could do it for ever.
//!
//! # Threads and lock order
//! vCPUs come through the transport's mutex; device threads never take it. Transport, signals, interrupts, lines and
//! local APICs: each may be held while the next is taken.

pub mod block;
pub mod console;
pub mod device;
pub mod fs;
mod interrupt;
pub mod net;
pub mod pci;
mod queue;
mod request;
pub mod rng;
#[cfg(test)]
mod testkit;
mod threads;

pub use interrupt::Signals;
pub use queue::{Broken, Queue};
pub use request::Request;
pub use workers::{OnPanic, Staff};
