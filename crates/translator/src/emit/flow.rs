//! Jumps, calls and returns, and the links between blocks.
//!
//! A direct jump is a link: it goes to a stub that leaves with the link's number, until the run loop has found the target's
//! translation and patches it. A call pushes the guest's return address on the guest's stack and then *calls* the target's
//! translation, so that the host's return address leads to code that knows which guest address is expected; a return pops the guest's
//! address and *returns*. Where both agree, the host has predicted it all; where they don't, the address is looked up.
//!
//! Loops look up: a jump backwards, and every indirect one, first looks at the kicker's word.

use super::{ACCESS_ROOM, Emitted, Emitter, Flow, LinkSite, NotEmitted, host, number};
use crate::asm::*;
use crate::context::{field, gs, target_hosts, target_tags};
use crate::stubs::ExitReason;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};

impl Emitter<'_> {
    pub(super) fn flow(&mut self, instruction: &Instruction) -> Emitted {
        let long = self.request.mode.long;
        // Operand size 16 cuts RIP; far branches, interrupts and the like are the reference's.
        match instruction.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => {
                let target = self.target(instruction)?;
                self.jump(instruction, target);
            }
            Code::Call_rel32_64 | Code::Call_rel32_32 => {
                let target = self.target(instruction)?;
                if !self.has_stack() {
                    return Err(NotEmitted);
                }
                self.call(instruction, Some(target));
            }
            Code::Retnq | Code::Retnd | Code::Retnq_imm16 | Code::Retnd_imm16 => {
                if !self.has_stack() {
                    return Err(NotEmitted);
                }
                self.return_near(instruction);
            }
            Code::Jmp_rm64 | Code::Jmp_rm32 if long == (instruction.code() == Code::Jmp_rm64) => {
                self.indirect_target(instruction)?;
                self.probe();
                let hosts = gs(target_hosts(self.request.mode.user));
                self.asm.jump_mem(Mem::GsTable(RCX, hosts));
            }
            Code::Call_rm64 | Code::Call_rm32 if long == (instruction.code() == Code::Call_rm64) => {
                if !self.has_stack() {
                    return Err(NotEmitted);
                }
                self.indirect_target(instruction)?;
                self.probe();
                let hosts = gs(target_hosts(self.request.mode.user));
                self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, hosts));
                self.asm.store_gs(field!(target), RCX);
                self.call(instruction, None);
            }
            _ if instruction.flow_control() == FlowControl::ConditionalBranch => {
                return self.conditional(instruction);
            }
            _ => return self.privilege(instruction),
        }
        Ok(Flow::End)
    }

    fn target(&self, instruction: &Instruction) -> Result<u64, NotEmitted> {
        let kind = if self.request.mode.long { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
        if instruction.op0_kind() != kind {
            return Err(NotEmitted);
        }
        if self.request.mode.long {
            let target = instruction.near_branch64();
            // The reference raises #GP.
            if (target as i64) << 16 >> 16 != target as i64 { Err(NotEmitted) } else { Ok(target) }
        } else {
            Ok(u64::from(instruction.near_branch32()))
        }
    }

    /// ```text
    /// je 0x1012
    ///   je (link 0)
    ///   jmp (link 1)
    /// jne 0x1000                                 backwards
    ///   +000a  je +003d
    ///   +000c  mov rcx,gs:[proceed]
    ///   +0015  mov ecx,[rcx]
    ///   +0017  jrcxz +001e                       leaves: somebody wants attention
    ///   +0019  jmp +0066                         link 0
    ///   +001e  mov qword ptr gs:[argument],0
    ///   +002b  mov qword ptr gs:[reason],6
    ///   +0038  jmp exit
    ///   +003d  jmp +0085                         link 1, unless the block goes on
    /// loop 0x1000
    ///   +002b  lea rcx,[r9-1]
    ///   ...                                      looks at the kicker's word
    ///   +003c  lea rcx,[r9-1]
    ///   +0040  mov r9,rcx
    ///   +0043  jrcxz +004a
    ///   +0045  jmp +0054                         link 0
    ///   +004a  jmp +0073                         link 1
    /// ```
    fn conditional(&mut self, instruction: &Instruction) -> Emitted {
        let target = self.target(instruction)?;
        let next = self.wrap(instruction.next_ip());
        let taken = match instruction.mnemonic() {
            Mnemonic::Loop | Mnemonic::Jrcxz | Mnemonic::Jecxz => {
                let counter = host(1).expect("RCX has a host register");
                let wide = match instruction.code() {
                    Code::Jrcxz_rel8_64 | Code::Loop_rel8_64_RCX => true,
                    Code::Jecxz_rel8_64
                    | Code::Jecxz_rel8_32
                    | Code::Loop_rel8_64_ECX
                    | Code::Loop_rel8_32_ECX => false,
                    _ => return Err(NotEmitted),
                };
                let is_loop = instruction.mnemonic() == Mnemonic::Loop;
                let less = Mem::near(counter, if is_loop { -1 } else { 0 });
                if wide {
                    self.asm.lea(RCX, less);
                } else {
                    self.asm.lea32(RCX, less);
                }
                if is_loop && target <= instruction.ip() {
                    // Nothing may have changed when the poll leaves for the instruction itself.
                    self.poll_here();
                    if wide { self.asm.lea(RCX, less) } else { self.asm.lea32(RCX, less) }
                }
                if is_loop {
                    self.asm.mov(counter, RCX);
                }
                let zero = self.asm.jrcxz();
                let (if_zero, otherwise) = if is_loop { (next, target) } else { (target, next) };
                self.link_jump(otherwise);
                self.must_reach(zero);
                self.link_jump(if_zero);
                return Ok(Flow::End);
            }
            _ if instruction.is_jcc_short_or_near() => instruction.condition_code() as u8,
            _ => return Err(NotEmitted),
        };
        // Iced numbers conditions from 1 in encoding order.
        let condition = taken - 1;
        let last = self.at + 1 == self.list.len();
        if target > instruction.ip() {
            self.asm.jump_if(condition, self.asm.here());
            self.link_at(self.asm.len() - 4, target);
        } else {
            self.make_room(ACCESS_ROOM);
            let over = self.asm.jump_if_short(condition ^ 1);
            self.polled_link(target);
            self.must_reach(over);
        }
        if last {
            self.link_jump(next);
            return Ok(Flow::End);
        }
        Ok(Flow::Next)
    }

    /// Leaves with a link's number.
    fn leave_for_link(&mut self, link: usize, reason: ExitReason) {
        let number = self.request.first_link + link as u32;
        self.asm.store_number(Mem::Gs(field!(argument)), number as i32, Depends::Link);
        self.asm.store_immediate(Size::B8, Mem::Gs(field!(reason)), reason as i32);
        self.asm.jump(self.request.stubs.exit);
    }

    fn jump(&mut self, instruction: &Instruction, target: u64) {
        if target <= instruction.ip() {
            self.polled_link(target);
        } else {
            self.link_jump(target);
        }
    }

    /// Looks at the kicker's word, and jumps to the translation of `target` or leaves for it.
    fn polled_link(&mut self, target: u64) {
        self.asm.load_gs(RCX, field!(proceed));
        self.asm.load(Size::B4, RCX, Mem::near(RCX, 0));
        let stop = self.asm.jrcxz();
        let link = self.links.len();
        self.link_jump(target);
        self.must_reach(stop);
        self.leave_for_link(link, ExitReason::Poll);
    }

    /// Looks at the kicker's word; leaves for the reference to execute the running instruction.
    fn poll_here(&mut self) {
        self.asm.load_gs(RCX, field!(proceed));
        self.asm.load(Size::B4, RCX, Mem::near(RCX, 0));
        let stop = self.asm.jrcxz();
        self.leave_from(stop);
    }

    /// A jump to the translation of `target`.
    pub(super) fn link_jump(&mut self, target: u64) {
        self.asm.jump(self.asm.here());
        self.link_at(self.asm.len() - 4, target);
    }

    /// Makes the displacement at `jump` a link.
    fn link_at(&mut self, jump: usize, target: u64) {
        self.late.push((jump, self.links.len()));
        self.links.push(LinkSite { jump: jump as u32, stub: 0, target, single: false });
    }

    /// Writes the links' stubs.
    pub(super) fn finish_links(&mut self) {
        for (jump, link) in std::mem::take(&mut self.late) {
            let at = self.asm.len();
            self.asm.set_relative(jump, at);
            self.links[link].stub = at as u32;
            self.leave_for_link(link, ExitReason::Link);
        }
    }

    /// The target of an indirect branch in R11.
    fn indirect_target(&mut self, instruction: &Instruction) -> Result<(), NotEmitted> {
        let size = if self.request.mode.long { Size::B8 } else { Size::B4 };
        if instruction.op0_kind() == OpKind::Memory {
            self.can_address(instruction)?;
            let from = self.access(instruction, self.slot() as u32, false);
            self.asm.load(size, R11, from);
            self.window = None;
        } else {
            self.window = None;
            let reg = self.read_guest(number(instruction.op0_register()), R11);
            if self.request.mode.long {
                if reg != R11 {
                    self.asm.mov(R11, reg);
                }
            } else {
                self.asm.mov32(R11, reg);
            }
        }
        Ok(())
    }

    /// ```text
    /// jmp rax
    ///   +002b  mov r11,rax
    ///   +002e  mov rcx,gs:[proceed]              from here on
    ///   +0037  mov ecx,[rcx]
    ///   +0039  jrcxz +0055
    ///   +003b  pext rcx,r11,gs:[target_mask]
    ///   +0046  mov rcx,gs:[rcx*8+tags.user]
    ///   +004f  lea rcx,[rcx+r11]
    ///   +0053  jrcxz +005a
    ///   +0055  call interpret                    to here
    ///   +005a  pext rcx,r11,gs:[target_mask]
    ///   +0065  jmp qword ptr gs:[rcx*8+hosts.user]
    /// ```
    ///
    /// Finds the slot of the target in R11 (RCX, then) or leaves the instruction to the reference.
    fn probe(&mut self) {
        self.window = None;
        self.make_room(ACCESS_ROOM);
        self.asm.load_gs(RCX, field!(proceed));
        self.asm.load(Size::B4, RCX, Mem::near(RCX, 0));
        let stop = self.asm.jrcxz();
        self.asm.pext(RCX, R11, field!(target_mask));
        self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, gs(target_tags(self.request.mode.user))));
        self.asm.lea(RCX, Mem::sum(RCX, R11));
        let hit = self.asm.jrcxz();
        self.must_reach(stop);
        self.asm.call(self.request.stubs.interpret);
        self.must_reach(hit);
        self.asm.pext(RCX, R11, field!(target_mask));
    }

    /// ```text
    /// call 0x1105
    ///   ...                                      look-up of [r15-8] for writing
    ///   +0059  mov qword ptr [r15+rcx-8],0x1005
    ///   +0062  lea r15,[r15-8]
    ///   +0066  call +00a5                        link 0
    ///   +006b  lea rcx,[r11-0x1005]              back: from where the guest expects?
    ///   +0072  jrcxz +0079
    ///   +0074  jmp look_up_return.user
    ///   +0079  jmp +00c4                         link 1
    /// ```
    ///
    /// Pushes the return address and calls `target`, or what the context's `target` says.
    fn call(&mut self, instruction: &Instruction, target: Option<u64>) {
        let (slot, size) = (self.slot(), if self.request.mode.long { Size::B8 } else { Size::B4 });
        let next = self.wrap(instruction.next_ip());
        if let Some(target) = target
            && target <= instruction.ip()
        {
            self.poll_here();
        }
        let to = self.stack_access(-slot, true);
        if !self.request.mode.long || i32::try_from(next as i64).is_ok() {
            self.asm.pin();
            self.asm.store_immediate(size, to, next as i32);
        } else {
            let (scratch, to) = self.spare(to);
            self.asm.mov_guest(scratch, next, Depends::Address);
            self.asm.store(size, to, scratch);
        }
        self.move_stack(-slot);
        match target {
            Some(target) => {
                self.asm.call(self.asm.here());
                self.link_at(self.asm.len() - 4, target);
            }
            None => self.asm.call_gs(field!(target)),
        }
        // A return comes here with the guest's return address in R11.
        let negated = next.wrapping_neg();
        if let Ok(negated) = i32::try_from(negated as i64) {
            self.asm.pin();
            self.asm.lea(RCX, Mem::near(R11, negated));
        } else {
            self.asm.mov_guest(RCX, negated, Depends::Negated);
            self.asm.lea(RCX, Mem::sum(RCX, R11));
        }
        let expected = self.asm.jrcxz();
        self.asm.jump(self.request.stubs.look_up_return[usize::from(self.request.mode.user)]);
        self.must_reach(expected);
        self.link_jump(next);
    }

    /// ```text
    /// ret
    ///   ...                                      look-up of [r15] for reading
    ///   +0052  mov r11,[r15+rcx]
    ///   +0056  mov qword ptr gs:[last_return],0x7000
    ///   +0063  lea r15,[r15+8]
    ///   +0067  ret
    /// ```
    fn return_near(&mut self, instruction: &Instruction) {
        let (slot, size) = (self.slot(), if self.request.mode.long { Size::B8 } else { Size::B4 });
        let from = self.stack_access(0, false);
        self.asm.load(size, R11, from);
        self.window = None;
        let here =
            u64::from(self.request.block) << 12 | instruction.ip().wrapping_sub(self.request.rip) & 0xfff;
        self.asm.store_number(Mem::Gs(field!(last_return)), here as i32, Depends::Return);
        let extra = if instruction.op_count() == 1 { instruction.immediate(0) as i32 } else { 0 };
        self.move_stack(slot + extra);
        self.asm.ret();
    }
}
