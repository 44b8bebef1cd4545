//! The translator: runs guest code as the host's own.
//!
//! Guest code is x86 and so is the host: nearly every instruction is re-emitted as it is, with other registers and with memory
//! operands that go through linear tables (`shadow`). Arithmetic, flags, x87 and vector instructions are the host's own. What has no
//! emitter is executed by the reference engine, one instruction at a time, so the translator is always complete.
//!
//! | module | what |
//! |---|---|
//! | `vcpu` | the run loop |
//! | `cache` | translated blocks, links, look-ups, invalidation |
//! | `emit` | from guest instructions to host code |
//! | `stubs` | ways in and out, what translated code calls |
//! | `context` | what translated code and Rust share |
//! | `asm` | a small assembler |
//! | `listing` | translations as text |
//! | `counts` | what is counted, for people |
//! | `watched` | whether an event may be waiting for IF |
//! | `xstate` | vector registers while Rust runs |
//! | `raw` | code memory, the call into it, signals |
//!
//! docs/translator.md explains the design. Called by `bin/ombra` through [`engine::Engine`].
//!
//! Threads: a vCPU belongs to one thread at a time and has a code cache of its own. No locks.

mod asm;
mod cache;
mod context;
mod counts;
mod emit;
mod listing;
mod raw;
mod stubs;
mod vcpu;
mod watched;
mod xstate;

pub use listing::Dump;

use engine::{Caps, Engine, EngineError, Setup, Vcpu, VcpuId};

/// How to translate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of code memory for each vCPU.
    pub code_cache: usize,
    /// Code is translated when it is met for this many times, 1..=255; before that it is interpreted.
    pub hot: u8,
    /// Counts which instructions are left to the reference engine. Costs a little where that happens.
    pub count_fallbacks: bool,
    /// Prints some translations when they are made.
    pub dump: Option<Dump>,
    /// What of the host not to use, whether it has it or not.
    pub without: Without,
}

/// Host features to do without. For tests of what happens on hosts that lack them.
#[derive(Clone, Copy, Default, Debug)]
pub struct Without {
    /// BMI2: nothing can be translated.
    pub bmi2: bool,
    /// WRGSBASE in user code: GS is set by a system call.
    pub fsgsbase: bool,
    /// AVX-512: instructions on its registers are the reference's.
    pub avx512: bool,
    /// AVX, and with it AVX-512.
    pub avx: bool,
    /// XSAVE: no instruction on vector or x87 registers is emitted.
    pub xsave: bool,
}

impl Without {
    /// Nothing is left out.
    pub const NOTHING: Self = Self { bmi2: false, fsgsbase: false, avx512: false, avx: false, xsave: false };
}

impl Default for Options {
    fn default() -> Self {
        Self { code_cache: 64 << 20, hot: 8, count_fallbacks: false, dump: None, without: Without::NOTHING }
    }
}

/// Least bytes of code memory.
pub const MIN_CODE_CACHE: usize = 256 << 10;

/// Whether the host has BMI2, without which nothing is translated.
#[must_use]
pub fn has_bmi2() -> bool {
    std::arch::is_x86_feature_detected!("bmi2")
}

/// Whether user code may set GS; where it may not, each entry into translated code costs a system call.
#[must_use]
pub fn has_fsgsbase() -> bool {
    raw::enter::has_fsgsbase()
}

/// The translating engine.
pub struct Translator {
    setup: Setup,
    options: Options,
}

impl Translator {
    /// An engine for one machine.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] where the host lacks what translated code needs.
    pub fn new(setup: Setup, options: Options) -> Result<Self, EngineError> {
        if options.without.bmi2 || !has_bmi2() {
            return Err(EngineError::Unsupported("BMI2"));
        }
        let options =
            Options { code_cache: options.code_cache.max(MIN_CODE_CACHE).next_multiple_of(4096), ..options };
        Ok(Self { setup, options })
    }
}

impl Engine for Translator {
    fn caps(&self) -> Caps {
        Caps { name: "translator", exact_budget: true, max_vcpus: interpreter::MAX_VCPUS }
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(vcpu::TranslatedVcpu::new(id, self.setup.clone(), &self.options)?))
    }
}
