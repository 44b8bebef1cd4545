//! The translator: runs guest code as the host's own.
//!
//! Guest code is x86 and so is the host: nearly every instruction is re-emitted as it is, with other registers and with memory
//! operands that go through linear tables (`shadow`). Arithmetic, flags, x87 and vector instructions are the host's own. What has no
//! emitter is executed by the reference engine, one instruction at a time, so the translator is always complete.
//!
//! | module | what |
//! |---|---|
//! | `vcpu` | the run loop |
//! | `cells` | which pages of code are known to be mapped where they were |
//! | `spaces` | address spaces that are kept when the guest leaves them |
//! | `chaos` | what may happen at any time, for tests |
//! | `checker` | whether what views hold is what walks give, for tests |
//! | `cache` | translated blocks, links, look-ups, invalidation |
//! | `changing` | which pages of code change all the time |
//! | `heat` | when code is worth a translation, and when marks are in the way |
//! | `emit` | from guest instructions to host code |
//! | `stubs` | ways in and out, what translated code calls |
//! | `context` | what translated code and Rust share |
//! | `asm` | a small assembler |
//! | `listing` | translations as text |
//! | `counts` | what is counted, for people |
//! | `crossing` | which changes of privilege translated code makes |
//! | `watched` | whether an event may be waiting for IF |
//! | `xstate` | vector registers while Rust runs |
//! | `raw` | code memory, the call into it, signals |
//!
//! docs/translator.md explains the design. Called by `bin/ombra` through [`engine::Engine`].
//!
//! Threads: a vCPU belongs to one thread at a time and has a code cache of its own. No locks.

mod asm;
mod cache;
mod cells;
mod changing;
mod chaos;
mod checker;
mod context;
mod counts;
mod crossing;
mod emit;
mod heat;
mod listing;
mod raw;
mod spaces;
mod stubs;
mod vcpu;
mod watched;
mod xstate;

pub use listing::Dump;

use checker::Checker;
use engine::{Caps, Engine, EngineError, Setup, Vcpu, VcpuId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How to translate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of code memory for each vCPU.
    pub code_cache: usize,
    /// Code of the kernel is translated when it is met for this many times, 1..=255, code of the user after half as many; before that it is
    /// interpreted.
    pub hot: u8,
    /// Writes to the code of a page that kill translations, in a short time, before translations of it look at their source by
    /// themselves. 0: all do, which is slow and for tests.
    pub rewrites: u8,
    /// Counts which instructions are left to the reference engine. Costs a little where that happens.
    pub count_fallbacks: bool,
    /// Prints some translations when they are made.
    pub dump: Option<Dump>,
    /// Address spaces are kept when the guest leaves them. Without it a load of CR3 drops what isn't global, which is right and slow.
    pub keep_spaces: bool,
    /// Bytes of host memory that each vCPU's views may cost. Beyond, what was entered first is given back.
    pub shadow_memory: usize,
    /// Views lose all they hold now and then, at random, and have hardly any memory; address spaces are left and entered again
    /// without need. All of it is allowed at any time. Slow, and for tests.
    pub chaos: bool,
    /// Whenever an address space is entered, what is held of it is compared with the walks it came from and with fresh ones; a
    /// difference ends the process, unless another vCPU may have made it meanwhile. Slow.
    pub check_entries: bool,
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
        Self {
            code_cache: 64 << 20,
            hot: 8,
            rewrites: 4,
            count_fallbacks: false,
            dump: None,
            keep_spaces: true,
            shadow_memory: 256 << 20,
            chaos: false,
            check_entries: false,
            without: Without::NOTHING,
        }
    }
}

/// Least bytes of code memory.
pub const MIN_CODE_CACHE: usize = 256 << 10;

/// Least bytes of host memory for each vCPU's views.
pub const MIN_SHADOW_MEMORY: usize = 1 << 20;

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

/// Whether the host has address space for one vCPU's views.
///
/// # Errors
/// The host's, where it refuses. Then everything is interpreted.
pub fn views() -> std::io::Result<()> {
    let shared = shadow::Shared::new()?;
    let views = [shadow::View::new(&shared)?, shadow::View::new(&shared)?, shadow::View::new(&shared)?];
    drop(views);
    Ok(())
}

/// The translating engine.
pub struct Translator {
    setup: Setup,
    options: Options,
    /// vCPUs made so far.
    vcpus: Arc<AtomicU32>,
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
        let options = Options {
            code_cache: options.code_cache.max(MIN_CODE_CACHE).next_multiple_of(4096),
            shadow_memory: options.shadow_memory.max(MIN_SHADOW_MEMORY),
            ..options
        };
        Ok(Self { setup, options, vcpus: Arc::default() })
    }
}

impl Engine for Translator {
    fn caps(&self) -> Caps {
        Caps { name: "translator", exact_budget: true, max_vcpus: interpreter::MAX_VCPUS }
    }

    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError> {
        let checker = self.options.check_entries.then(|| Checker::new(self.vcpus.clone()));
        let vcpu = vcpu::TranslatedVcpu::new(id, self.setup.clone(), &self.options, checker)?;
        self.vcpus.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(vcpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{GuestMemory, Layout, Region};
    use x86::Gpa;
    use x86::cpuid::Cpuid;

    fn setup() -> Setup {
        let region = Region { start: Gpa(0), len: 1 << 20 };
        let memory = GuestMemory::new(Layout::new(vec![region]).expect("a layout")).expect("memory");
        Setup { memory, cpuid: Cpuid::default(), tsc_offset: 0 }
    }

    #[test]
    fn a_host_without_bmi2_gets_no_translator_and_is_told_why() {
        let without = Without { bmi2: true, ..Without::NOTHING };
        let refused = Translator::new(setup(), Options { without, ..Options::default() });
        assert!(matches!(refused.err(), Some(EngineError::Unsupported("BMI2"))));
    }

    #[test]
    fn code_memory_is_never_less_than_the_least() {
        if !has_bmi2() {
            eprintln!("skipped: this host has no BMI2");
            return;
        }
        let translator = Translator::new(setup(), Options { code_cache: 1, ..Options::default() });
        assert_eq!(translator.expect("an engine").options.code_cache, MIN_CODE_CACHE);
    }

    #[test]
    fn a_vcpu_counts_from_nothing() {
        if !has_bmi2() {
            eprintln!("skipped: this host has no BMI2");
            return;
        }
        let translator = Translator::new(setup(), Options::default()).expect("an engine");
        let counters = translator.create_vcpu(VcpuId(0)).expect("a vCPU").counters();
        for (group, name) in
            [("instructions", "interpreted"), ("blocks", "translated"), ("exits", "poll"), ("tlb", "fills")]
        {
            assert_eq!(counters.value(group, name), Some(0), "{group} {name}");
        }
        assert!(counters.value("blocks", "code_bytes") > Some(0), "the stubs are there");
    }
}
