//! The x86 architecture as data.
//!
//! Registers, control bits, MSR numbers, descriptors, page-table formats, exceptions and CPUID tables, in the
//! terms of the Intel 64 and IA-32 Architectures Software Developer's Manual ("SDM"). Nothing here runs guest
//! code, touches guest memory or knows a device; every other crate of Ombra may use it.
//!
//! Threads: plain data, no locks.

pub mod address;
pub mod control;
pub mod cpuid;
pub mod descriptor;
mod dump;
pub mod exception;
pub mod flags;
pub mod msr;
pub mod paging;
pub mod state;

pub use address::{Gpa, Gva};
pub use exception::{Exception, Vector};
pub use flags::Rflags;
pub use state::CpuState;
