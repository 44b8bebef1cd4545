//! PUSH, POP and LEAVE. RSP changes last.

use super::{Emitted, Emitter, Flow, NotEmitted, host, number};
use crate::asm::*;
use iced_x86::{Code, Instruction, OpKind, Register};
use x86::state::seg;

impl Emitter<'_> {
    /// Bytes that a push moves.
    pub(super) fn slot(&self) -> i32 {
        if self.request.mode.long { 8 } else { 4 }
    }

    pub(super) fn slot_size(&self) -> Size {
        if self.request.mode.long { Size::B8 } else { Size::B4 }
    }

    /// Whether stack accesses can be emitted at all.
    pub(super) fn has_stack(&self) -> bool {
        self.request.mode.long || self.request.mode.flat >> seg::SS & 1 != 0
    }

    /// RSP += `bytes`.
    pub(super) fn move_stack(&mut self, bytes: i32) {
        let rsp = host(4).expect("RSP has a host register");
        let to = Mem::near(rsp, bytes);
        if self.request.mode.long { self.asm.lea(rsp, to) } else { self.asm.lea32(rsp, to) }
    }

    /// ```text
    /// push rbp
    ///   lea r11,[r15-8]
    ///   ...                                      look-up for writing
    ///   mov [r11+rcx],rbp
    ///   lea r15,[r15-8]
    /// pop r10
    ///   ...                                      look-up of [r15] for reading
    ///   mov r10,[r15+rcx]
    ///   mov gs:[guest.r10],r10
    ///   lea r15,[r15+8]
    /// ```
    pub(super) fn stack(&mut self, instruction: &Instruction) -> Emitted {
        if !self.has_stack() {
            return Err(NotEmitted);
        }
        let (slot, size) = (self.slot(), self.slot_size());
        match instruction.code() {
            Code::Push_r64 | Code::Push_r32 => {
                let guest = number(instruction.op0_register());
                let to = self.stack_access(-slot, true);
                let scratch = if host(guest).is_some() { R11 } else { self.spare(to) };
                let value = self.read_guest(guest, scratch);
                self.asm.store(size, to, value);
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => {
                let value = instruction.immediate(0) as i32;
                let to = self.stack_access(-slot, true);
                self.asm.store_immediate(size, to, value);
            }
            Code::Push_rm64 | Code::Push_rm32 if instruction.op0_kind() == OpKind::Memory => {
                self.can_address(instruction)?;
                self.window = None;
                let from = self.address(instruction, 0);
                self.look_up(from, slot as u32, false);
                self.asm.load(size, R10, Mem::sum(from.reg, RCX));
                let address = self.stack_address(-slot);
                self.look_up(address, slot as u32, true);
                self.asm.store(size, Mem::sum(address.reg, RCX), R10);
            }
            Code::Push_rm64 | Code::Push_rm32 => {
                let guest = number(instruction.op0_register());
                let to = self.stack_access(-slot, true);
                let scratch = if host(guest).is_some() { R11 } else { self.spare(to) };
                let value = self.read_guest(guest, scratch);
                self.asm.store(size, to, value);
            }
            Code::Pop_r64 | Code::Pop_r32 | Code::Pop_rm64 | Code::Pop_rm32
                if instruction.op0_kind() == OpKind::Register =>
            {
                let guest = number(instruction.op0_register());
                let from = self.stack_access(0, false);
                match host(guest) {
                    // The pointer itself: what is popped stays.
                    Some(own) if guest == 4 => {
                        self.asm.load(size, own, from);
                        return Ok(Flow::Next);
                    }
                    Some(own) => self.asm.load(size, own, from),
                    None => {
                        let scratch = self.spare(from);
                        self.asm.load(size, scratch, from);
                        self.write_guest(guest, scratch, true);
                    }
                }
                self.move_stack(slot);
                return Ok(Flow::Next);
            }
            Code::Pop_rm64 | Code::Pop_rm32 => {
                self.can_address(instruction)?;
                self.window = None;
                let top = self.stack_address(0);
                self.look_up(top, slot as u32, false);
                self.asm.load(size, R10, Mem::sum(top.reg, RCX));
                // The address is computed with RSP already moved (SDM 2B POP).
                let to = self.address(instruction, slot);
                self.look_up(to, slot as u32, true);
                self.asm.store(size, Mem::sum(to.reg, RCX), R10);
                self.move_stack(slot);
                return Ok(Flow::Next);
            }
            Code::Leaveq | Code::Leaved => {
                let from = self.frame_access();
                let value = self.spare(from);
                self.asm.load(size, value, from);
                let rsp = host(4).expect("RSP has a host register");
                let frame = Mem::near(RBP, slot);
                if self.request.mode.long {
                    self.asm.lea(rsp, frame);
                } else {
                    self.asm.lea32(rsp, frame);
                }
                self.write_guest(number(Register::RBP), value, true);
                return Ok(Flow::Next);
            }
            Code::Pushfq | Code::Pushfd => return self.push_flags(),
            Code::Popfq | Code::Popfd if !self.request.mode.user => return self.pop_flags(),
            _ => return Err(NotEmitted),
        }
        self.move_stack(-slot);
        Ok(Flow::Next)
    }
}
