//! MOVS, STOS, LODS, SCAS and CMPS.
//!
//! One element at a time: the host's own instruction at the host's addresses, since it knows what DF is and which
//! flags to set. With a repeat prefix a stub does it ([`crate::stubs::string`]).

use super::{Emitted, Emitter, Flow, NotEmitted};
use crate::asm::*;
use crate::context::field;
use crate::emit::host;
use crate::stubs::string::{Operation, Repeated, native};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::state::{gpr, seg};

impl Emitter<'_> {
    pub(super) fn string(&mut self, instruction: &Instruction) -> Emitted {
        self.window = None;
        let (operation, size) = operation(instruction).ok_or(NotEmitted)?;
        let narrow = self.has_narrow_addresses(instruction)?;
        self.can_use_segments(instruction, operation)?;
        if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
            let unequal = instruction.has_repne_prefix();
            self.repeated(Repeated { operation, size, unequal, narrow });
        } else {
            // Rare, and not worth an address computation of its own.
            if narrow == self.request.mode.long {
                return Err(NotEmitted);
            }
            // Both elements may cross pages, and there is one place for bytes that do.
            if operation == Operation::Cmps && size != Size::B1 {
                return Err(NotEmitted);
            }
            self.element(operation, size);
        }
        Ok(Flow::Next)
    }

    /// Whether addresses have 32 bits; else they have 64.
    fn has_narrow_addresses(&self, instruction: &Instruction) -> Result<bool, NotEmitted> {
        let mut narrow = false;
        for n in 0..instruction.op_count() {
            match instruction.op_kind(n) {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return Err(NotEmitted),
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => narrow = true,
                _ => {}
            }
        }
        Ok(narrow)
    }

    /// Segments without checks and with base 0 are all that is emitted.
    fn can_use_segments(&self, instruction: &Instruction, operation: Operation) -> Result<(), NotEmitted> {
        let mode = self.request.mode;
        let flat = |slot: usize| mode.long || mode.flat >> slot & 1 != 0;
        let source = match instruction.memory_segment() {
            Register::FS | Register::GS => return Err(NotEmitted),
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            _ => seg::DS,
        };
        if operation.reads_source() && !flat(source) || operation.has_target() && !flat(seg::ES) {
            return Err(NotEmitted);
        }
        Ok(())
    }

    /// ```text
    /// nop                     mov r9d, r9d
    /// call stub               call stub
    /// ```
    fn repeated(&mut self, repeated: Repeated) {
        // The stub may come back to the call, so there is something before it whose address belongs to the instruction.
        if repeated.narrow {
            // The count is zero-extended even if nothing happens.
            let count = host(gpr::RCX).expect("RCX has a host register");
            self.asm.mov32(count, count);
        } else {
            self.asm.raw(&[0x90]);
        }
        self.asm.call(repeated.stub(self.request.stubs));
    }

    /// MOVS, for instance:
    /// ```text
    /// (look-up of rsi)
    /// mov  gs:[held], rcx
    /// movzx ecx, byte ptr [rsi + rcx]     may fault, while nothing has changed
    /// (look-up of rdi)
    /// movzx r11d, byte ptr [rdi + rcx]
    /// lea  rdi, [rdi + rcx]
    /// mov  r11, gs:[held]
    /// lea  rsi, [rsi + r11]
    /// movs
    /// not  rcx
    /// lea  rdi, [rdi + rcx + 1]
    /// not  r11
    /// lea  rsi, [rsi + r11 + 1]
    /// ```
    fn element(&mut self, operation: Operation, size: Size) {
        let narrow = !self.request.mode.long;
        let bytes = 1 << size as u32;
        // In the order in which faults are reported.
        let (first, second) = match operation {
            Operation::Movs => (Some(gpr::RSI), gpr::RDI),
            Operation::Cmps => (Some(gpr::RDI), gpr::RSI),
            Operation::Lods => (None, gpr::RSI),
            Operation::Stos | Operation::Scas => (None, gpr::RDI),
        };
        // Addresses that aren't canonical have entries as others have, and the host faults on them: while nothing has changed.
        if let Some(first) = first {
            let address = self.register_address(first);
            let from = self.look_up(address, bytes, false);
            self.asm.store_gs(field!(held), RCX);
            self.asm.load_zero_extended(Size::B1, RCX, from);
        }
        let address = self.register_address(second);
        let to = self.look_up(address, bytes, operation.writes_target());
        self.asm.load_zero_extended(Size::B1, R11, to);
        let own = |index| host(index).expect("RSI and RDI have host registers");
        let there = |emitter: &mut Self, index, delta| {
            if narrow {
                emitter.asm.mov32(own(index), own(index));
            }
            emitter.asm.lea(own(index), Mem::sum(own(index), delta));
        };
        there(self, second, RCX);
        if let Some(first) = first {
            self.asm.load_gs(R11, field!(held));
            there(self, first, R11);
        }
        native(&mut self.asm, operation, size);
        let back = |emitter: &mut Self, index, delta| {
            emitter.asm.not(delta);
            let back = Mem::At { base: Some(own(index)), index: Some((delta, 1)), disp: 1 };
            if narrow { emitter.asm.lea32(own(index), back) } else { emitter.asm.lea(own(index), back) }
        };
        back(self, second, RCX);
        if let Some(first) = first {
            back(self, first, R11);
        }
    }
}

/// What the instruction does, and the size of an element; `None` for INS and OUTS.
fn operation(instruction: &Instruction) -> Option<(Operation, Size)> {
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb => (Operation::Movs, Size::B1),
        Mnemonic::Movsw => (Operation::Movs, Size::B2),
        Mnemonic::Movsd => (Operation::Movs, Size::B4),
        Mnemonic::Movsq => (Operation::Movs, Size::B8),
        Mnemonic::Stosb => (Operation::Stos, Size::B1),
        Mnemonic::Stosw => (Operation::Stos, Size::B2),
        Mnemonic::Stosd => (Operation::Stos, Size::B4),
        Mnemonic::Stosq => (Operation::Stos, Size::B8),
        Mnemonic::Lodsb => (Operation::Lods, Size::B1),
        Mnemonic::Lodsw => (Operation::Lods, Size::B2),
        Mnemonic::Lodsd => (Operation::Lods, Size::B4),
        Mnemonic::Lodsq => (Operation::Lods, Size::B8),
        Mnemonic::Scasb => (Operation::Scas, Size::B1),
        Mnemonic::Scasw => (Operation::Scas, Size::B2),
        Mnemonic::Scasd => (Operation::Scas, Size::B4),
        Mnemonic::Scasq => (Operation::Scas, Size::B8),
        Mnemonic::Cmpsb => (Operation::Cmps, Size::B1),
        Mnemonic::Cmpsw => (Operation::Cmps, Size::B2),
        Mnemonic::Cmpsd => (Operation::Cmps, Size::B4),
        Mnemonic::Cmpsq => (Operation::Cmps, Size::B8),
        _ => return None,
    })
}
