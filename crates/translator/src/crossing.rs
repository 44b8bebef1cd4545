//! What translated code may do of SYSCALL, SYSRET and IRETQ (`stubs::privilege`): the Rust side.
//!
//! A pair of CS and SS has a number while translated code runs. SYSCALL's and SYSRET's follow from STAR. Those that IRETQ loads are
//! learned from the reference: what it has loaded is remembered with the descriptors that it came from, which translated
//! code compares with what the GDT holds then.
//!
//! Called by the run loop on the vCPU's thread; no locks.

use crate::context::{Context, returns};
use crate::emit::Mode;
use engine::Platform;
use interpreter::{CodeAndStack, Core, FastCalls};
use x86::Rflags;
use x86::control::cr4;
use x86::state::TableRegister;

/// Numbers of pairs: SYSCALL's, SYSRET's, the first of IRETQ's.
pub(crate) const SYSCALL: u64 = 1;
pub(crate) const SYSRET: u64 = 2;
const RETURNS: u64 = 3;

/// One pair that IRETQ may load, with its descriptors: where they lie, a linear address, and what they are.
#[derive(Clone, Copy)]
struct Return {
    pair: CodeAndStack,
    code: (u64, u64),
    stack: (u64, u64),
}

#[derive(Default)]
pub(crate) struct Crossing {
    fast: Option<FastCalls>,
    returns: [Option<Return>; returns::COUNT],
    /// The one to be replaced next.
    oldest: usize,
    /// The GDT that they came from.
    gdtr: Option<TableRegister>,
}

impl Crossing {
    /// What never changes.
    pub(crate) fn begin(context: &mut Context) {
        let plain = Rflags::ARITHMETIC | Rflags::DF | Rflags::IF | Rflags::ONE | Rflags::RF | Rflags::VM;
        context.careful_flags = (Rflags::all() - plain).bits();
        context.returns = [[returns::NOTHING; returns::WORDS]; returns::COUNT];
    }

    /// Says in the context what code of `mode` may do. `ready`: whether the tables of targets, the supervisor's and the user's, are
    /// those of its kind.
    pub(crate) fn prepare(&mut self, core: &Core, mode: Mode, ready: [bool; 2], context: &mut Context) {
        context.user = mode.user.into();
        context.loaded = 0;
        context.user_stack = context.stack_starts[1];
        context.stack_start = context.stack_starts[usize::from(mode.user)];
        let state = core.state();
        let inwards = mode.long && ready[0] && context.views[1] != 0;
        // User code that may not read the TSC is the reference's.
        let outwards = mode.long && ready[1] && context.views[0] != 0 && state.cr4 & cr4::TSD == 0;
        let fast = if mode.long { core.fast_calls() } else { self.fast };
        if fast != self.fast {
            self.fast = fast;
            if let Some(FastCalls { target, mask, enter, leave }) = fast {
                context.syscall_target = target;
                context.syscall_keeps = !mask;
                context.syscall_selectors = selectors(enter);
                context.sysret_selectors = selectors(leave);
            }
        }
        if self.gdtr != Some(state.gdtr) {
            self.gdtr = Some(state.gdtr);
            self.returns = Default::default();
            self.publish(context);
        }
        context.can_syscall = u64::from(inwards && fast.is_some());
        context.can_sysret = u64::from(outwards && fast.is_some());
        context.can_return = u64::from(mode.long && !state.nmi_blocked);
        context.can_base = u64::from(state.cr4 & cr4::FSGSBASE != 0);
        context.can_return_out = u64::from(outwards && core.keeps_data_segments());
    }

    /// The pair that translated code has loaded.
    pub(crate) fn loaded(&self, number: u64) -> Option<CodeAndStack> {
        match number {
            SYSCALL => self.fast.map(|fast| fast.enter),
            SYSRET => self.fast.map(|fast| fast.leave),
            _ => {
                let index = number.checked_sub(RETURNS)? as usize;
                self.returns.get(index).copied().flatten().map(|known| known.pair)
            }
        }
    }

    /// The addresses of the descriptors that IRETQ looks at.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = u64> {
        self.returns.into_iter().flatten().flat_map(|known| [known.code.0, known.stack.0])
    }

    /// The reference has executed an IRETQ: remembers what it has loaded, if that was for 64-bit code.
    pub(crate) fn learn(&mut self, core: &mut Core, context: &mut Context, io: &mut dyn Platform) {
        let pair = core.code_and_stack();
        let known =
            |known: &Option<Return>| known.is_some_and(|known| selectors(known.pair) == selectors(pair));
        let whole_levels = matches!(pair.0.selector.rpl(), 0 | 3);
        if self.gdtr != Some(core.state().gdtr) || !pair.0.attributes.is_long() || !whole_levels {
            return;
        }
        let Some(code) = core.descriptor_of(pair.0.selector, io) else { return };
        let stack = if pair.1.selector.is_null() {
            // There is no descriptor to look at.
            code
        } else {
            let Some(stack) = core.descriptor_of(pair.1.selector, io) else { return };
            stack
        };
        let index = self.returns.iter().position(known).unwrap_or_else(|| {
            let index = self.oldest;
            self.oldest = (index + 1) % returns::COUNT;
            index
        });
        self.returns[index] = Some(Return { pair, code, stack });
        self.publish(context);
    }

    fn publish(&self, context: &mut Context) {
        for (index, known) in self.returns.iter().enumerate() {
            let words = &mut context.returns[index];
            let Some(Return { pair, code, stack }) = *known else {
                words[returns::SELECTORS] = returns::NOTHING;
                continue;
            };
            let [code_selector, stack_selector] = selectors(pair);
            words[returns::SELECTORS] = stack_selector << 16 | code_selector;
            (words[returns::CODE_AT], words[returns::CODE]) = code;
            (words[returns::STACK_AT], words[returns::STACK]) = stack;
            words[returns::USER] = u64::from(pair.0.selector.rpl() == 3);
            words[returns::LOADED] = RETURNS + index as u64;
        }
    }
}

fn selectors((code, stack): CodeAndStack) -> [u64; 2] {
    [code.selector.0.into(), stack.selector.0.into()]
}
