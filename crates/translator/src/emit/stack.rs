//! PUSH, POP and LEAVE. RSP changes last.

use super::{Emitted, Emitter, Flow, NotEmitted, host, number};
use crate::asm::*;
use crate::context::field;
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

    /// Stores a guest register.
    fn store_guest(&mut self, size: Size, to: Mem, guest: usize) {
        let (value, to) = match host(guest) {
            Some(own) => (own, to),
            None => self.spare(to),
        };
        let value = self.read_guest(guest, value);
        self.asm.store(size, to, value);
    }

    /// Stores what is in `value` to the operand that `look_up` gives, which may use all scratch registers.
    fn store_held(&mut self, size: Size, value: Reg, look_up: impl FnOnce(&mut Self) -> Mem) {
        self.window = None;
        self.asm.store_gs(field!(pushed), value);
        let to = look_up(self);
        let (value, to) = self.spare(to);
        self.asm.load_gs(value, field!(pushed));
        self.asm.store(size, to, value);
    }

    /// ```text
    /// push rbp
    ///   ...                                      look-up of [r15-8] for writing
    ///   mov [r15+rcx-8],rbp
    ///   lea r15,[r15-8]
    /// pop r11
    ///   ...                                      look-up of [r15] for reading
    ///   mov rcx,[r15+rcx]
    ///   mov gs:[guest.r11],rcx
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
                self.store_guest(size, to, guest);
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pushd_imm8 | Code::Pushd_imm32 => {
                let value = instruction.immediate(0) as i32;
                let to = self.stack_access(-slot, true);
                self.asm.store_immediate(size, to, value);
            }
            Code::Push_rm64 | Code::Push_rm32 if instruction.op0_kind() == OpKind::Memory => {
                self.can_address(instruction)?;
                let from = self.access(instruction, slot as u32, false);
                self.asm.load(size, RCX, from);
                self.store_held(size, RCX, |emitter| {
                    let address = emitter.stack_address(-slot);
                    emitter.look_up(address, slot as u32, true)
                });
            }
            Code::Push_rm64 | Code::Push_rm32 => {
                let guest = number(instruction.op0_register());
                let to = self.stack_access(-slot, true);
                self.store_guest(size, to, guest);
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
                        self.asm.load(size, RCX, from);
                        self.write_guest(guest, RCX, true);
                    }
                }
                self.move_stack(slot);
                return Ok(Flow::Next);
            }
            Code::Pop_rm64 | Code::Pop_rm32 => {
                self.can_address(instruction)?;
                let from = self.stack_access(0, false);
                self.asm.load(size, RCX, from);
                self.store_held(size, RCX, |emitter| {
                    // The address is computed with RSP already moved (SDM 2B POP).
                    let address = emitter.address(instruction, slot);
                    emitter.look_up(address, slot as u32, true)
                });
                self.move_stack(slot);
                return Ok(Flow::Next);
            }
            Code::Leaveq | Code::Leaved => {
                let from = self.frame_access();
                self.asm.load(size, RCX, from);
                let rsp = host(4).expect("RSP has a host register");
                let frame = Mem::near(RBP, slot);
                if self.request.mode.long {
                    self.asm.lea(rsp, frame);
                } else {
                    self.asm.lea32(rsp, frame);
                }
                self.write_guest(number(Register::RBP), RCX, true);
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
