//! Changes of privilege for an engine that makes them itself: what SYSCALL and SYSRET load, what an IRET has loaded, and how to say
//! afterwards where code is now. Called through [`Core`], on the vCPU's thread.

use crate::core::Core;
use crate::system::fast_segments;
use engine::Platform;
use x86::control::efer;
use x86::descriptor::Selector;
use x86::state::{Segment, seg};

/// CS and SS.
pub type CodeAndStack = (Segment, Segment);

/// What SYSCALL and the 64-bit SYSRET do in 64-bit mode as long as their MSRs stand (SDM 2B SYSCALL, SYSRET).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FastCalls {
    /// Where SYSCALL goes.
    pub target: u64,
    /// The flags that it clears.
    pub mask: u64,
    /// What it loads.
    pub enter: CodeAndStack,
    /// What SYSRET loads.
    pub leave: CodeAndStack,
}

impl Core {
    /// `None` where SYSCALL and SYSRET fault, or code isn't 64-bit code.
    #[must_use]
    pub fn fast_calls(&self) -> Option<FastCalls> {
        let cpu = &self.vcpu.cpu;
        let state = &cpu.state;
        if state.efer & efer::SCE == 0 || !cpu.in_64_bit_mode() {
            return None;
        }
        let (enter, leave) = fast_segments(state.star);
        Some(FastCalls { target: state.lstar, mask: state.sfmask, enter, leave })
    }

    /// CS and SS.
    #[must_use]
    pub fn code_and_stack(&self) -> CodeAndStack {
        let segments = &self.vcpu.cpu.state.segments;
        (segments[seg::CS], segments[seg::SS])
    }

    /// CS and SS as another engine has loaded them, and with CS the privilege level.
    pub fn set_code_and_stack(&mut self, (code, stack): CodeAndStack) {
        let cpu = &mut self.vcpu.cpu;
        let cpl = code.selector.rpl();
        if (cpu.state.segments[seg::CS], cpu.state.segments[seg::SS], cpu.state.cpl) != (code, stack, cpl) {
            cpu.state.segments[seg::CS] = code;
            cpu.state.segments[seg::SS] = stack;
            cpu.state.cpl = cpl;
            cpu.update_mode();
        }
    }

    /// The privilege level alone, for walks on behalf of code that has changed it; [`Core::set_code_and_stack`] follows.
    pub fn set_privilege(&mut self, cpl: u8) {
        let cpu = &mut self.vcpu.cpu;
        cpu.state.cpl = cpl;
        cpu.select_tlb();
    }

    /// Where in the GDT the descriptor of a selector lies, a linear address, and what it is. `None`: it isn't there, or lies on two
    /// pages.
    pub fn descriptor_of(&mut self, selector: Selector, io: &mut dyn Platform) -> Option<(u64, u64)> {
        let cpu = &mut self.vcpu.cpu;
        let offset = u64::from(selector.0 & !7);
        let in_gdt = selector.0 & 4 == 0 && offset != 0 && offset + 7 <= u64::from(cpu.state.gdtr.limit);
        let at = cpu.state.gdtr.base.wrapping_add(offset);
        if !in_gdt || at & 0xfff > 0xff8 {
            return None;
        }
        let cr2 = cpu.state.cr2;
        let raw = cpu.read_system(at, 8, io);
        cpu.state.cr2 = cr2;
        raw.ok().map(|raw| (at, raw))
    }

    /// Whether a return to user code leaves DS, ES, FS and GS alone: none of them is for an inner level (SDM 2A IRET).
    #[must_use]
    pub fn keeps_data_segments(&self) -> bool {
        [seg::ES, seg::DS, seg::FS, seg::GS].into_iter().all(|slot| {
            let attributes = self.vcpu.cpu.state.segments[slot].attributes;
            !attributes.is_present() || attributes.is_conforming() || attributes.dpl() == 3
        })
    }
}
