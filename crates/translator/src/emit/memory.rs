//! The memory operand: its linear address, the check that it doesn't cross a page, the look-up in the view.

use super::{Emitter, Island, NotEmitted, host, number};
use crate::asm::*;
use crate::context::{cross_mask, field, gs, segment_base};
use iced_x86::{Instruction, Register};
use shadow::SHARED_BYTES;
use x86::state::seg;

/// A linear address in a host register.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) reg: Reg,
    /// Its value, where it is known.
    known: Option<u64>,
}

impl Emitter<'_> {
    /// Whether the operand's form and segment can be emitted. To be asked before anything is written.
    pub(super) fn can_address(&self, instruction: &Instruction) -> Result<(), NotEmitted> {
        let mode = self.request.mode;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if index.is_vector_register() || base.size() == 2 || index.size() == 2 {
            return Err(NotEmitted);
        }
        if base == Register::None && index == Register::None && instruction.memory_displ_size() == 2 {
            return Err(NotEmitted);
        }
        let slot = match instruction.memory_segment() {
            _ if mode.long => return Ok(()),
            Register::FS => seg::FS,
            Register::GS => seg::GS,
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            _ => seg::DS,
        };
        if mode.flat >> slot & 1 != 0 { Ok(()) } else { Err(NotEmitted) }
    }

    /// Emits the computation of the operand's linear address. Uses R11 and RCX. `pushed`: bytes to add where the base is RSP.
    pub(super) fn address(&mut self, instruction: &Instruction, pushed: i32) -> Address {
        let base_slot = match instruction.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        let address = self.offset(instruction, pushed);
        let Some(slot) = base_slot else { return address };
        self.asm.load_gs(RCX, segment_base(slot));
        let sum = Mem::sum(RCX, address.reg);
        if self.request.mode.long {
            self.asm.lea(R11, sum);
        } else {
            self.asm.lea32(R11, sum);
        }
        Address { reg: R11, known: None }
    }

    /// Emits the computation of the operand's offset in its segment.
    fn offset(&mut self, instruction: &Instruction, pushed: i32) -> Address {
        let long = self.request.mode.long;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = instruction.memory_displacement64();
        if base == Register::None && index == Register::None || matches!(base, Register::RIP | Register::EIP)
        {
            // Iced has added RIP already.
            // Iced gives a lone displacement 8 bytes where the address size is 64.
            let narrow = !long
                || base == Register::EIP
                || base == Register::None && instruction.memory_displ_size() == 4;
            let value = if narrow { displacement & 0xffff_ffff } else { displacement };
            self.asm.mov_immediate(R11, value);
            return Address { reg: R11, known: Some(value) };
        }
        let mem = self.register_operand(instruction, pushed);
        let narrow = !long || base.size() == 4 || base == Register::None && index.size() == 4;
        if narrow {
            self.asm.lea32(R11, mem);
            return Address { reg: R11, known: None };
        }
        if let Mem::At { base: Some(reg), index: None, disp: 0 } = mem {
            return Address { reg, known: None };
        }
        self.asm.lea(R11, mem);
        Address { reg: R11, known: None }
    }

    /// The operand's registers and displacement in host registers, for LEA. Loads into R11 and RCX what has no host register.
    pub(super) fn register_operand(&mut self, instruction: &Instruction, pushed: i32) -> Mem {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let mut disp = instruction.memory_displacement64() as i32;
        if base.full_register() == Register::RSP {
            disp = disp.wrapping_add(pushed);
        }
        let base = (base != Register::None).then(|| self.read_guest(number(base), R11));
        let index = (index != Register::None)
            .then(|| (self.read_guest(number(index), RCX), instruction.memory_index_scale() as u8));
        Mem::At { base, index, disp }
    }

    /// ```text
    /// mov eax,[rdi]
    ///   +002b  lea rcx,[rdi+3]                   may it cross a page?
    ///   +002f  pext rcx,rcx,gs:[cross_masks.1]
    ///   +003a  jrcxz +005a
    ///   +003c  pext rcx,rdi,gs:[page_mask]       the page's entry
    ///   +0047  mov rcx,gs:[rcx*8+read_table]
    ///   +0050  jrcxz +0075
    ///   +0052  mov eax,[rdi+rcx]                 the access, by who called this
    ///   ...
    ///   +005a  mov r11,rdi
    ///   +005d  mov qword ptr gs:[cross_size],4
    ///   +006a  call cross_read
    ///   +006f  jrcxz +0073
    ///   +0071  jmp +0052                         RCX leads to the bytes
    ///   +0073  jmp +003c                         they don't cross
    ///   +0075  mov r11,rdi
    ///   +0078  call fill_read
    ///   +007d  jmp +003c
    /// ```
    ///
    /// Emits checks and look-up for an access of `bytes` at `address`. Afterwards RCX is what has to be added to the address. R10
    /// is kept.
    pub(super) fn look_up(&mut self, address: Address, bytes: u32, write: bool) {
        let Address { reg, known } = address;
        self.make_room();
        let may_cross = match known {
            Some(value) => value & 0xfff > 0x1000 - u64::from(bytes),
            None => bytes > 1,
        };
        let mut crossing = None;
        if may_cross {
            // Not zero where the last byte isn't among the first ones of a page.
            self.asm.lea(RCX, Mem::near(reg, bytes as i32 - 1));
            self.asm.pext(RCX, RCX, cross_mask(bytes.next_power_of_two()));
            let from = self.asm.jrcxz();
            crossing = Some((from, self.asm.len()));
        }
        let back = self.asm.len();
        self.asm.pext(RCX, reg, field!(page_mask));
        let stub = if write {
            self.asm.not(RCX);
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, -(SHARED_BYTES as i32)));
            let exponent = bytes.next_power_of_two().trailing_zeros() as usize;
            self.request.stubs.store[exponent]
        } else {
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, 0));
            self.request.stubs.fill_read
        };
        let from_fill = self.asm.jrcxz();
        let after = self.asm.len();
        let guest = self.guest;
        // After a store's stub RCX is what the entry would be, though there may be none.
        let back = if write { after } else { back };
        if let Some((from, back)) = crossing {
            let stubs = self.request.stubs;
            let stub =
                if self.request.mode.long { stubs.cross[usize::from(write)] } else { stubs.cross_narrow };
            self.islands.push(Island {
                from,
                address: reg,
                stub,
                back,
                crossing: Some((bytes, after)),
                guest,
            });
        }
        self.islands.push(Island { from: from_fill, address: reg, stub, back, crossing: None, guest });
    }

    /// The address of the stack's top plus `disp`, in R11 or in the register itself.
    pub(super) fn stack_address(&mut self, disp: i32) -> Address {
        let rsp = host(4).expect("RSP has a host register");
        if !self.request.mode.long {
            self.asm.lea32(R11, Mem::near(rsp, disp));
        } else if disp != 0 {
            self.asm.lea(R11, Mem::near(rsp, disp));
        } else {
            return Address { reg: rsp, known: None };
        }
        Address { reg: R11, known: None }
    }

    /// An address that has been computed.
    pub(super) fn computed(&self, reg: Reg) -> Address {
        Address { reg, known: None }
    }

    /// An address that is in a guest register.
    pub(super) fn register_address(&mut self, index: usize) -> Address {
        if !self.request.mode.long {
            let reg = self.read_guest(index, R11);
            self.asm.mov32(R11, reg);
            return Address { reg: R11, known: None };
        }
        let reg = self.read_guest(index, R11);
        Address { reg, known: None }
    }
}

const _: () = assert!(gs(SHARED_BYTES) == 0);
