//! SYSCALL, SYSRET and IRETQ of 64-bit code: the stubs in `stubs::privilege` do it all.

use super::{Emitted, Emitter, Flow, NotEmitted};
use crate::asm::*;
use crate::context::field;
use iced_x86::{Code, Instruction};

impl Emitter<'_> {
    /// ```text
    /// syscall
    ///   lea rcx,[rip]                            where to leave from
    ///   mov gs:[argument],rcx
    ///   mov r11,0x1002                           the next instruction
    ///   jmp syscall
    /// sysretq
    ///   lea rcx,[rip]
    ///   mov gs:[argument],rcx
    ///   jmp sysret
    /// ```
    pub(super) fn privilege(&mut self, instruction: &Instruction) -> Emitted {
        let mode = self.request.mode;
        if !mode.long || !self.request.features.crossing {
            return Err(NotEmitted);
        }
        let stubs = self.request.stubs.privilege;
        let stub = match instruction.code() {
            Code::Syscall if mode.user => stubs.syscall,
            Code::Sysretq if !mode.user => stubs.sysret,
            Code::Iretq if !mode.user => stubs.iret[usize::from(mode.counted)],
            _ => return Err(NotEmitted),
        };
        self.asm.lea_here(RCX);
        self.asm.store_gs(field!(argument), RCX);
        if stub == stubs.syscall {
            self.asm.mov_guest(R11, instruction.next_ip(), Depends::Address);
        }
        self.asm.jump(stub);
        Ok(Flow::End)
    }
}
