//! The reference CPU engine: decode, walk page tables, execute one instruction.
//!
//! Runs every mode of the architecture (real, virtual-8086, protected, compatibility, long) and every instruction that the
//! machine's CPUID offers. Other engines are judged by it and fall back on it; it knows none of them. It is written to
//! be right first, but a Linux kernel has to boot on it in seconds, so decoded code is cached in blocks.
//!
//! | module | what |
//! |---|---|
//! | `vcpu` | the engine contract |
//! | `core` | what a faster engine needs of this one |
//! | `run` | the main loop: events, blocks, careful single steps |
//! | `decode`, `blocks`, `op` | bytes to blocks of ops, their cache, the form of an op |
//! | `cpu` | registers and what follows from them |
//! | `access`, `tlb`, `walk` | memory: segments, TLB, page walks |
//! | `privilege` | changes of privilege that another engine makes |
//! | `probe` | walks that leave no trace |
//! | `flags`, `width` | lazy arithmetic flags, operand widths |
//! | `integer`, `string` | integer instructions by family |
//! | `system` | control registers, segments, gates, tasks, exceptions, MSRs, CPUID |
//! | `vector`, `native` | x87, MMX, SSE, AVX, AVX-512: the instruction itself, run on the host against a bounce buffer |
//!
//! Threads: a vCPU belongs to one thread at a time. The only lock is the one for `LOCK`ed accesses that cross a page
//! (`access.rs`), a leaf.

mod access;
mod blocks;
mod core;
mod cpu;
mod decode;
mod flags;
mod integer;
mod length;
pub mod native;
mod op;
mod privilege;
mod probe;
mod run;
mod string;
mod system;
mod tlb;
mod vcpu;
mod vector;
mod walk;
mod width;

pub use crate::core::{CodeMode, Core, Mapping, Outcome};
pub use privilege::{CodeAndStack, FastCalls};
pub use probe::{Probed, Prober, Viewer};
pub use tlb::Dropped;
pub use vcpu::{Interpreter, MAX_VCPUS};
