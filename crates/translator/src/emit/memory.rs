//! The memory operand: its linear address, the check that it doesn't cross a page, the look-up in the view.

use super::{ACCESS_ROOM, Access, Emitter, Holes, Island, NotEmitted, Rare, host, number};
use crate::asm::*;
use crate::context::{cross_mask, field, gs, segment_base};
use iced_x86::{Instruction, Register};
use shadow::SHARED_BYTES;
use x86::state::seg;

/// A linear address, as an instruction computes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// Registers and displacement. None of the registers is RCX, and R11 is only there alone.
    At { base: Option<Reg>, index: Option<(Reg, u8)>, disp: i32 },
    /// A constant.
    Known(u64),
}

impl Address {
    /// The address in `reg`.
    pub(super) const fn of(reg: Reg) -> Self {
        Self::At { base: Some(reg), index: None, disp: 0 }
    }

    /// The address in R11.
    pub(super) const fn in_r11() -> Self {
        Self::of(R11)
    }

    /// Whether it occupies R11.
    pub(super) fn uses_r11(self) -> bool {
        self == Self::in_r11()
    }

    /// Loads it into R11.
    pub(super) fn to_r11(self, asm: &mut Asm) {
        match self {
            Self::Known(value) => asm.mov_guest(R11, value, Depends::Address),
            _ if self.uses_r11() => {}
            Self::At { base: Some(base), index: None, disp: 0 } => asm.mov(R11, base),
            Self::At { base, index, disp } => asm.lea(R11, Mem::At { base, index, disp }),
        }
    }

    /// The operand for it where RCX has what must be added.
    fn operand(self, asm: &mut Asm) -> Mem {
        match self {
            Self::Known(value) => match i32::try_from(value as i64) {
                Ok(disp) => Mem::near(RCX, disp),
                Err(_) => {
                    asm.mov_guest(R11, value, Depends::Address);
                    Mem::sum(R11, RCX)
                }
            },
            Self::At { base: Some(base), index: None, disp } => {
                Mem::At { base: Some(base), index: Some((RCX, 1)), disp }
            }
            Self::At { base: Some(base), index, disp } => {
                asm.lea(RCX, Mem::sum(RCX, base));
                Mem::At { base: Some(RCX), index, disp }
            }
            Self::At { base: None, index, disp } => Mem::At { base: Some(RCX), index, disp },
        }
    }
}

impl Emitter<'_> {
    /// The memory operand of an instruction, checked and looked up.
    pub(super) fn access(&mut self, instruction: &Instruction, bytes: u32, write: bool) -> Mem {
        if let Some(windowed) = self.choose_window(instruction, bytes, write) {
            return self.enter_window(windowed);
        }
        let address = self.address(instruction, 0);
        self.look_up(address, bytes, write)
    }

    /// The stack slot at `disp` from the top, checked and looked up.
    pub(super) fn stack_access(&mut self, disp: i32, write: bool) -> Mem {
        if self.has_windows()
            && let Some(windowed) = self.choose(4, disp, 8, write)
        {
            return self.enter_window(windowed);
        }
        let address = self.stack_address(disp);
        self.look_up(address, self.slot() as u32, write)
    }

    /// The slot that RBP points to, looked up for reading.
    pub(super) fn frame_access(&mut self) -> Mem {
        let address = self.register_address(5);
        self.look_up(address, self.slot() as u32, false)
    }

    /// A register that is free beside an operand, and the operand.
    pub(super) fn spare(&mut self, operand: Mem) -> (Reg, Mem) {
        if !operand.uses(RCX) {
            return (RCX, operand);
        }
        self.window = None;
        if !operand.uses(R11) {
            return (R11, operand);
        }
        self.asm.lea(RCX, operand);
        (R11, Mem::near(RCX, 0))
    }
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

    /// Whether [`Self::address`] will give R11.
    pub(super) fn address_needs_r11(&self, instruction: &Instruction) -> bool {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if matches!(instruction.memory_segment(), Register::FS | Register::GS) {
            return true;
        }
        if let Some(value) = self.constant(instruction) {
            return i32::try_from(value as i64).is_err();
        }
        let homeless = |register: Register| register != Register::None && host(number(register)).is_none();
        let narrow = !self.request.mode.long || base.size() == 4 || index.size() == 4;
        let far = instruction.memory_displacement64() as i32 > i32::MAX - 4096;
        narrow || far || homeless(base) || homeless(index)
    }

    /// The operand's offset in its segment, where it doesn't depend on registers.
    fn constant(&self, instruction: &Instruction) -> Option<u64> {
        let long = self.request.mode.long;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = instruction.memory_displacement64();
        // Iced has added RIP already.
        if index != Register::None || !matches!(base, Register::None | Register::RIP | Register::EIP) {
            return None;
        }
        // Iced gives a lone displacement 8 bytes where the address size is 64.
        let narrow =
            !long || base == Register::EIP || base == Register::None && instruction.memory_displ_size() == 4;
        Some(if narrow { displacement & 0xffff_ffff } else { displacement })
    }

    /// Emits the computation of the operand's linear address. Uses R11 (then the window is gone) and RCX. `pushed`: bytes to add where
    /// the base is RSP.
    pub(super) fn address(&mut self, instruction: &Instruction, pushed: i32) -> Address {
        let long = self.request.mode.long;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let base_slot = match instruction.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        if self.address_needs_r11(instruction) {
            self.window = None;
        }
        let constant = self.constant(instruction);
        if constant.is_some() && base_slot.is_some() == (base != Register::None) {
            // An absolute address, which stays where the code moves, or one in a segment, which doesn't.
            self.asm.pin();
        }
        if let (Some(value), None) = (constant, base_slot) {
            return Address::Known(value);
        }
        let narrow = !long || base.size() == 4 || base == Register::None && index.size() == 4;
        let Some(slot) = base_slot else {
            if !self.address_needs_r11(instruction) {
                let Mem::At { base, index, disp } = self.register_operand(instruction, pushed, R11) else {
                    unreachable!("registers and a displacement")
                };
                return Address::At { base, index, disp };
            }
            let mem = self.register_operand(instruction, pushed, R11);
            if narrow {
                self.asm.lea32(R11, mem);
            } else if mem != Mem::near(R11, 0) {
                self.asm.lea(R11, mem);
            }
            return Address::in_r11();
        };
        let offset = match constant {
            Some(value) => match i32::try_from(value as i64) {
                Ok(disp) => Mem::At { base: Some(R11), index: None, disp },
                Err(_) => {
                    self.asm.pin();
                    self.asm.mov_immediate(RCX, value);
                    Mem::sum(R11, RCX)
                }
            },
            None => {
                let mem = self.register_operand(instruction, pushed, RCX);
                match mem {
                    Mem::At { base: Some(base), index: None, disp } if !narrow => {
                        Mem::At { base: Some(R11), index: Some((base, 1)), disp }
                    }
                    _ => {
                        if narrow {
                            self.asm.lea32(RCX, mem);
                        } else {
                            self.asm.lea(RCX, mem);
                        }
                        Mem::sum(R11, RCX)
                    }
                }
            }
        };
        self.asm.load_gs(R11, segment_base(slot));
        if long {
            self.asm.lea(R11, offset);
        } else {
            self.asm.lea32(R11, offset);
        }
        Address::in_r11()
    }

    /// The operand's registers and displacement in host registers, for LEA. Loads into `scratch` (R11 or RCX) what has no
    /// host register, and into both where two haven't.
    pub(super) fn register_operand(&mut self, instruction: &Instruction, pushed: i32, scratch: Reg) -> Mem {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let mut disp = instruction.memory_displacement64() as i32;
        if base.full_register() == Register::RSP {
            disp = disp.wrapping_add(pushed);
        }
        let base = (base != Register::None).then(|| self.read_guest(number(base), scratch));
        let other = if base == Some(RCX) { R11 } else { RCX };
        if base == Some(RCX) && index != Register::None && host(number(index)).is_none() {
            self.window = None;
        }
        let index = (index != Register::None)
            .then(|| (self.read_guest(number(index), other), instruction.memory_index_scale() as u8));
        Mem::At { base, index, disp }
    }

    /// ```text
    /// mov eax,[rdi]
    ///   lea rcx,[rdi+3]                          may it cross a page?
    ///   pext rcx,rcx,gs:[cross_masks.1]
    ///   jrcxz (step)
    ///   pext rcx,rdi,gs:[page_mask]              back: the page's entry
    ///   mov rcx,gs:[rcx*8+read_table]
    ///   jrcxz (step)
    ///   mov eax,[rdi+rcx]                        after: the access, by who called this
    ///   ...
    ///   mov r11,rdi                              the island that the step leads to
    ///   mov qword ptr gs:[cross_size],4
    ///   call read
    ///   jrcxz +2
    ///   jmp (after)                              RCX leads to the bytes
    ///   jmp (back)                               they don't cross
    /// ```
    ///
    /// Emits checks and look-up for an access of `bytes` at `address`, and gives the operand for it: RCX is in it, and R11 where
    /// the address is. A window in R11 is kept otherwise.
    pub(super) fn look_up(&mut self, address: Address, bytes: u32, write: bool) -> Mem {
        self.make_room(ACCESS_ROOM);
        let keeps = self.window.is_some();
        let may_cross = match address {
            Address::Known(value) => value & 0xfff > 0x1000 - u64::from(bytes),
            Address::At { .. } => bytes > 1,
        };
        let step = self.step_in_reach(if may_cross { 60 } else { 30 });
        let mut from = Holes::new();
        let mut jump = |emitter: &mut Self| match step {
            Some(step) => {
                if !emitter.asm.jrcxz_back(step - 1) {
                    emitter.broken = true;
                }
            }
            None => from.push(emitter.asm.jrcxz()),
        };
        if may_cross {
            // Not zero where the last byte isn't among the first ones of a page.
            match address {
                Address::Known(value) => {
                    self.asm.mov_guest(RCX, value.wrapping_add(u64::from(bytes) - 1), Depends::Address);
                }
                Address::At { base, index, disp } => {
                    self.asm.lea(RCX, Mem::At { base, index, disp: disp + bytes as i32 - 1 });
                }
            }
            self.asm.pext(RCX, RCX, cross_mask(bytes.next_power_of_two()));
            jump(self);
        }
        let back = self.asm.len();
        self.page(address);
        if write {
            self.asm.not(RCX);
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, -(SHARED_BYTES as i32)));
        } else {
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, 0));
        }
        jump(self);
        let after = self.asm.len();
        let narrow = usize::from(!self.request.mode.long);
        let exponent = bytes.next_power_of_two().trailing_zeros() as usize;
        let stubs = self.request.stubs;
        let stub = match (may_cross, write) {
            (true, false) => stubs.read[narrow],
            (true, true) => stubs.write[narrow][exponent],
            (false, false) => stubs.fill_read,
            (false, true) => stubs.store[exponent],
        };
        let rare = Rare::Access(Access {
            address,
            keeps,
            stub,
            bytes: may_cross.then_some(bytes),
            back,
            after: (may_cross || write).then_some(after),
        });
        match step {
            Some(step) => self.far.push((step, Island { from, guest: self.guest, rare })),
            None => self.island(from, rare),
        }
        address.operand(&mut self.asm)
    }

    /// RCX: the page of an address.
    pub(super) fn page(&mut self, address: Address) {
        match address {
            Address::Known(value) => self.asm.mov_guest(RCX, value >> 12 & PAGE_NUMBERS, Depends::Page),
            Address::At { base: Some(reg), index: None, disp: 0 } => {
                self.asm.pext(RCX, reg, field!(page_mask));
            }
            Address::At { base, index, disp } => {
                self.asm.lea(RCX, Mem::At { base, index, disp });
                self.asm.pext(RCX, RCX, field!(page_mask));
            }
        }
    }

    /// The address of the stack's top plus `disp`.
    pub(super) fn stack_address(&mut self, disp: i32) -> Address {
        let rsp = host(4).expect("RSP has a host register");
        if self.request.mode.long {
            return Address::At { base: Some(rsp), index: None, disp };
        }
        self.window = None;
        self.asm.lea32(R11, Mem::near(rsp, disp));
        Address::in_r11()
    }

    /// The address that is in a guest register.
    pub(super) fn register_address(&mut self, index: usize) -> Address {
        let reg = self.read_guest(index, R11);
        if !self.request.mode.long {
            self.asm.mov32(R11, reg);
        } else if reg != R11 {
            return Address::of(reg);
        }
        self.window = None;
        Address::in_r11()
    }
}

const _: () = assert!(gs(SHARED_BYTES) == 0);
