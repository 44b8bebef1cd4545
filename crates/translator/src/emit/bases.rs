//! RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE. The bases are words of the context.

use super::{Emitted, Emitter, Flow, NotEmitted, host, number};
use crate::asm::*;
use crate::context::{field, gpr, segment_base};
use iced_x86::{Instruction, Mnemonic};
use x86::state::seg;

impl Emitter<'_> {
    /// ```text
    /// rdfsbase rax
    ///   mov rcx,gs:[can_base]
    ///   jrcxz ...                                CR4.FSGSBASE is clear: the reference
    ///   mov rax,gs:[segment_base.4]
    /// wrgsbase rax
    ///   mov rcx,gs:[can_base]
    ///   jrcxz ...
    ///   mov r11,rax
    ///   mov ecx,0x10
    ///   shlx r11,r11,rcx
    ///   sarx r11,r11,rcx
    ///   not r11
    ///   lea rcx,[r11+rax+1]                      zero if it is canonical
    ///   jrcxz ...
    ///   call interpret
    ///   mov gs:[segment_base.5],rax
    /// ```
    pub(super) fn segment_bases(&mut self, instruction: &Instruction) -> Emitted {
        let (slot, write) = match instruction.mnemonic() {
            Mnemonic::Rdfsbase => (seg::FS, false),
            Mnemonic::Rdgsbase => (seg::GS, false),
            Mnemonic::Wrfsbase => (seg::FS, true),
            Mnemonic::Wrgsbase => (seg::GS, true),
            _ => return Err(NotEmitted),
        };
        if !self.request.mode.long {
            return Err(NotEmitted);
        }
        self.window = None;
        let index = number(instruction.op0_register());
        let wide = instruction.op0_register().size() == 8;
        self.asm.load_gs(RCX, field!(can_base));
        let forbidden = self.asm.jrcxz();
        self.leave_from(forbidden);
        if !write {
            let into = host(index).unwrap_or(R11);
            if wide {
                self.asm.load_gs(into, segment_base(slot));
            } else {
                self.asm.load_gs32(into, segment_base(slot));
            }
            if host(index).is_none() {
                self.asm.store_gs(gpr(index), into);
            }
            return Ok(Flow::Next);
        }
        if wide {
            let value = self.read_guest(index, R11);
            if value != R11 {
                self.asm.mov(R11, value);
            }
            self.asm.mov_immediate(RCX, 16);
            self.asm.shlx(R11, R11, RCX);
            self.asm.sarx(R11, R11, RCX);
            self.asm.not(R11);
            let value = self.read_guest(index, RCX);
            self.asm.lea(RCX, Mem::At { base: Some(R11), index: Some((value, 1)), disp: 1 });
            let canonical = self.asm.jrcxz();
            self.asm.call(self.request.stubs.interpret);
            self.must_reach(canonical);
        }
        let value = self.read_guest(index, R11);
        if wide {
            self.asm.store_gs(segment_base(slot), value);
        } else {
            self.asm.mov32(R11, value);
            self.asm.store_gs(segment_base(slot), R11);
        }
        Ok(Flow::Next)
    }
}
