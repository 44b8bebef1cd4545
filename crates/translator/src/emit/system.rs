//! System instructions that need nothing but what the context holds, and bit strings in memory.
//!
//! IF and AC are words of their own in the context. Setting IF may let an event in: unless the context says that none can be
//! waiting (`calm`), the reference executes the instruction.

use super::{Address, Emitted, Emitter, Flow, NotEmitted, Request, host, number};
use crate::asm::*;
use crate::context::{Context, field, gpr, gs, segment_base};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;
use x86::Rflags;
use x86::state::seg;

/// The displacement of element `index` of a context field that is an array of words.
const fn element(offset: usize, index: usize) -> i32 {
    gs(offset + 8 * index)
}

const IF: i32 = Rflags::IF.bits() as i32;
const AC: i32 = Rflags::AC.bits() as i32;

impl Emitter<'_> {
    /// ```text
    /// cli
    ///   mov qword ptr gs:[interrupt_flag],0
    /// sti
    ///   mov rcx,gs:[calm]
    ///   jrcxz ...                                an event may be waiting: the reference
    ///   mov qword ptr gs:[interrupt_flag],0x200
    ///   mov qword ptr gs:[after_sti],0x1001
    /// stac
    ///   mov rcx,gs:[views.2]
    ///   jrcxz ...                                no such view yet: the reference
    ///   mov qword ptr gs:[alignment_flag],0x40000
    ///   wrgsbase rcx
    /// swapgs
    ///   mov rcx,gs:[segment_base.5]
    ///   mov r11,gs:[kernel_gs_base]
    ///   mov gs:[segment_base.5],r11
    ///   mov gs:[kernel_gs_base],rcx
    /// ```
    pub(super) fn system(&mut self, instruction: &Instruction) -> Emitted {
        let mode = self.request.mode;
        match instruction.mnemonic() {
            Mnemonic::Cli if !mode.user => {
                self.asm.store_immediate(Size::B8, Mem::Gs(field!(interrupt_flag)), 0);
            }
            Mnemonic::Sti if !mode.user => {
                let next = self.wrap(instruction.next_ip());
                self.unless_calm();
                self.window = None;
                // Where IF was clear, an event that comes now has to wait for one more instruction (SDM 2B STI).
                self.asm.load_gs(RCX, field!(interrupt_flag));
                self.asm.mov_guest(R11, next, Depends::Address);
                let was_clear = self.asm.jrcxz();
                self.asm.mov_immediate(R11, crate::context::NOWHERE);
                self.must_reach(was_clear);
                self.asm.store_gs(field!(after_sti), R11);
                self.asm.store_immediate(Size::B8, Mem::Gs(field!(interrupt_flag)), IF);
            }
            Mnemonic::Stac | Mnemonic::Clac if !mode.user && self.request.features.view_switch => {
                let open = instruction.mnemonic() == Mnemonic::Stac;
                self.asm.load_gs(RCX, element(offset_of!(Context, views), if open { 2 } else { 1 }));
                let missing = self.asm.jrcxz();
                self.leave_from(missing);
                self.asm.store_immediate(
                    Size::B8,
                    Mem::Gs(field!(alignment_flag)),
                    if open { AC } else { 0 },
                );
                self.asm.wrgsbase(RCX);
            }
            Mnemonic::Swapgs if !mode.user && mode.long => {
                self.window = None;
                self.asm.load_gs(RCX, segment_base(seg::GS));
                self.asm.load_gs(R11, field!(kernel_gs_base));
                self.asm.store_gs(segment_base(seg::GS), R11);
                self.asm.store_gs(field!(kernel_gs_base), RCX);
            }
            Mnemonic::Rdtsc => self.read_tsc(),
            Mnemonic::Rdtscp if self.request.features.rdtscp => {
                self.read_tsc();
                let rcx = host(1).expect("RCX has a host register");
                self.asm.load_gs32(rcx, field!(tsc_aux));
            }
            Mnemonic::Mov if instruction.op0_register() == Register::CR3 => {
                return self.load_root(instruction);
            }
            Mnemonic::Mov => return self.move_system(instruction),
            Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
                return self.segment_bases(instruction);
            }
            Mnemonic::Invlpg => return self.drop_address(instruction),
            _ => return Err(NotEmitted),
        }
        Ok(Flow::Next)
    }

    /// Leaves the instruction to the reference unless no event can be waiting.
    fn unless_calm(&mut self) {
        self.asm.load_gs(RCX, field!(calm));
        let stop = self.asm.jrcxz();
        self.leave_from(stop);
    }

    /// ```text
    /// rdtsc
    ///   rdtsc
    ///   rorx rdx,rdx,0x20
    ///   mov rcx,gs:[tsc_offset]
    ///   lea rax,[rax+rdx]
    ///   lea rax,[rax+rcx]
    ///   rorx rdx,rax,0x20
    ///   mov edx,edx
    ///   mov eax,eax
    /// ```
    fn read_tsc(&mut self) {
        self.asm.raw(&[0x0f, 0x31]);
        self.asm.rorx(RDX, RDX, 32);
        self.asm.load_gs(RCX, field!(tsc_offset));
        self.asm.lea(RAX, Mem::sum(RAX, RDX));
        self.asm.lea(RAX, Mem::sum(RAX, RCX));
        self.asm.rorx(RDX, RAX, 32);
        self.asm.mov32(RDX, RDX);
        self.asm.mov32(RAX, RAX);
    }

    /// ```text
    /// mov cr3,rax
    ///   mov r11,rax
    ///   mov qword ptr gs:[fill_bytes],0          the code's cell
    ///   call load_root
    /// ```
    fn load_root(&mut self, instruction: &Instruction) -> Emitted {
        let Request { mode, cell, second_cell, stubs, .. } = *self.request;
        if mode.user || second_cell.is_some() {
            return Err(NotEmitted);
        }
        self.window = None;
        let value = self.read_guest(number(instruction.op1_register()), R11);
        if mode.long {
            if value != R11 {
                self.asm.mov(R11, value);
            }
        } else {
            self.asm.mov32(R11, value);
        }
        self.asm.store_immediate(Size::B8, Mem::Gs(field!(fill_bytes)), cell as i32);
        self.asm.call(stubs.load_root);
        Ok(Flow::Next)
    }

    /// ```text
    /// invlpg [rdi+8]
    ///   lea r11,[rdi+8]
    ///   mov qword ptr gs:[fill_bytes],0          the code's cell
    ///   call drop_address
    /// ```
    fn drop_address(&mut self, instruction: &Instruction) -> Emitted {
        let Request { mode, cell, second_cell, stubs, .. } = *self.request;
        if mode.user || second_cell.is_some() {
            return Err(NotEmitted);
        }
        self.can_address(instruction)?;
        self.window = None;
        let address = self.address(instruction, 0);
        address.to_r11(&mut self.asm);
        self.asm.store_immediate(Size::B8, Mem::Gs(field!(fill_bytes)), cell as i32);
        self.asm.call(stubs.drop_address);
        Ok(Flow::Next)
    }

    /// MOV from a segment or control register.
    fn move_system(&mut self, instruction: &Instruction) -> Emitted {
        if instruction.op_count() != 2
            || instruction.op0_kind() != OpKind::Register
            || instruction.op1_kind() != OpKind::Register
        {
            return Err(NotEmitted);
        }
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        if !to.is_gpr() {
            return Err(NotEmitted);
        }
        let disp = if from.is_segment_register() {
            element(offset_of!(Context, selectors), from as usize - Register::ES as usize)
        } else if from.is_cr() && !self.request.mode.user {
            match from {
                Register::CR0 => element(offset_of!(Context, control), 0),
                Register::CR2 => element(offset_of!(Context, control), 2),
                Register::CR3 => element(offset_of!(Context, control), 3),
                Register::CR4 => element(offset_of!(Context, control), 4),
                _ => return Err(NotEmitted),
            }
        } else {
            return Err(NotEmitted);
        };
        if to.size() == 2 {
            self.asm.load_gs(RCX, disp);
            match host(number(to)) {
                Some(own) => self.asm.mov16(own, RCX),
                None => self.asm.store(Size::B2, Mem::Gs(gpr(number(to))), RCX),
            }
            return Ok(Flow::Next);
        }
        let load = |asm: &mut Asm, reg| {
            if self.request.mode.long { asm.load_gs(reg, disp) } else { asm.load_gs32(reg, disp) }
        };
        match host(number(to)) {
            Some(own) => load(&mut self.asm, own),
            None => {
                load(&mut self.asm, RCX);
                self.asm.store_gs(gpr(number(to)), RCX);
            }
        }
        Ok(Flow::Next)
    }

    /// ```text
    /// pushfq
    ///   ...                                      look-up for writing
    ///   lea r11,[r15+rcx-8]
    ///   mov gs:[held],r11
    ///   pushfq
    ///   pop r11
    ///   mov rcx,gs:[system_flags]
    ///   lea r11,[r11+rcx-0x202]                  without the host's IF and bit 1
    ///   mov rcx,gs:[interrupt_flag]
    ///   lea r11,[r11+rcx]
    ///   mov rcx,gs:[alignment_flag]
    ///   lea r11,[r11+rcx]
    ///   mov rcx,gs:[held]
    ///   mov [rcx],r11
    ///   lea r15,[r15-8]
    /// ```
    pub(super) fn push_flags(&mut self) -> Emitted {
        let (slot, size) = (self.slot(), self.slot_size());
        let to = self.stack_access(-slot, true);
        self.window = None;
        self.asm.lea(R11, to);
        self.asm.store_gs(field!(held), R11);
        // The host's IF is always set; bit 1 is in both.
        self.asm.raw(&[0x9c]); // pushfq
        self.asm.pop(R11);
        for part in [field!(system_flags), field!(interrupt_flag), field!(alignment_flag)] {
            self.asm.load_gs(RCX, part);
            let less = if part == field!(system_flags) { -(IF + 2) } else { 0 };
            self.asm.lea(R11, Mem::At { base: Some(R11), index: Some((RCX, 1)), disp: less });
        }
        self.asm.load_gs(RCX, field!(held));
        self.asm.store(size, Mem::near(RCX, 0), R11);
        self.move_stack(-slot);
        Ok(Flow::Next)
    }

    /// POPF at CPL 0 that changes nothing but arithmetic flags, DF and IF.
    pub(super) fn pop_flags(&mut self) -> Emitted {
        let (slot, size) = (self.slot(), self.slot_size());
        let from = self.stack_access(0, false);
        self.window = None;
        self.asm.load(size, RCX, from);
        self.asm.store_gs(field!(held), RCX);
        // Do the other flags stay?
        self.asm.load_gs(R11, field!(system_flags));
        self.asm.load_gs(RCX, field!(alignment_flag));
        self.asm.lea(R11, Mem::sum(R11, RCX));
        self.asm.pext(R11, R11, field!(popf_mask));
        self.asm.load_gs(RCX, field!(held));
        self.asm.pext(RCX, RCX, field!(popf_mask));
        self.asm.not(R11);
        self.asm.lea(RCX, Mem::At { base: Some(RCX), index: Some((R11, 1)), disp: 1 });
        let same = self.asm.jrcxz();
        self.asm.call(self.request.stubs.interpret);
        self.must_reach(same);
        // Does IF let something in?
        self.asm.load_gs(R11, field!(held));
        self.asm.pext(RCX, R11, field!(interrupt_mask));
        let closed = self.asm.jrcxz();
        self.unless_calm();
        self.must_reach(closed);
        self.asm.pext(RCX, R11, field!(interrupt_mask));
        self.asm.rorx(RCX, RCX, 64 - 9);
        self.asm.store_gs(field!(interrupt_flag), RCX);
        self.move_stack(slot);
        // From here on nothing leaves. and r11d, the arithmetic flags and DF
        let mask = (Rflags::ARITHMETIC | Rflags::DF).bits() as u32;
        self.asm.raw(&[0x41, 0x81, 0xe3]);
        self.asm.raw(&mask.to_le_bytes());
        self.asm.push(R11);
        self.asm.raw(&[0x9d]); // popfq
        Ok(Flow::Next)
    }

    /// ```text
    /// bt [rdi],eax
    ///   mov gs:[held],rdi
    ///   movsxd r11,eax
    ///   mov ecx,5
    ///   sarx r11,r11,rcx                         the operand that the bit is in
    ///   mov rcx,gs:[held]
    ///   lea r11,[rcx+r11*4]
    ///   ...                                      look-up of r11
    ///   lea r11,[r11+rcx]
    ///   pext rcx,rax,gs:[bit_masks.0]            the bit in it
    ///   bt [r11],ecx
    /// ```
    ///
    /// BT, BTS, BTR, BTC of a bit string in memory: the operand's own word is found first.
    pub(super) fn bit_string(&mut self, instruction: &Instruction) -> Emitted {
        let bit = instruction.op1_register();
        let bytes = bit.size() as u32;
        if bytes < 4 {
            return Err(NotEmitted);
        }
        self.can_address(instruction)?;
        if instruction.memory_base().size() == 4 && self.request.mode.long {
            // The word's address would have to be cut to 32 bits.
            return Err(NotEmitted);
        }
        let mut own = *instruction;
        own.set_segment_prefix(Register::None);
        own.set_memory_base(Register::R11);
        own.set_memory_index(Register::None);
        own.set_memory_index_scale(1);
        own.set_memory_displacement64(0);
        own.set_memory_displ_size(0);
        own.set_op1_register(if bytes == 8 { Register::RCX } else { Register::ECX });
        let code = self.encode(&own)?;
        let write = instruction.mnemonic() != Mnemonic::Bt;
        self.window = None;
        let address = self.address(instruction, 0);
        address.to_r11(&mut self.asm);
        self.asm.store_gs(field!(held), R11);
        let number_of = self.read_guest(number(bit), R11);
        if bytes == 8 {
            self.asm.mov(R11, number_of);
        } else {
            self.asm.sign_extend(R11, number_of);
        }
        self.asm.mov_immediate(RCX, if bytes == 8 { 6 } else { 5 });
        self.asm.sarx(R11, R11, RCX);
        self.asm.load_gs(RCX, field!(held));
        let word = Mem::At { base: Some(RCX), index: Some((R11, bytes as u8)), disp: 0 };
        if self.request.mode.long {
            self.asm.lea(R11, word);
        } else {
            self.asm.lea32(R11, word);
        }
        let word = self.look_up(Address::in_r11(), bytes, write);
        self.asm.lea(R11, word);
        let number_of = self.read_guest(number(bit), RCX);
        self.asm.pext(RCX, number_of, element(offset_of!(Context, bit_masks), usize::from(bytes == 8)));
        self.asm.raw(&code);
        Ok(Flow::Next)
    }
}
