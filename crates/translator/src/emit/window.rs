//! Windows: one look-up for several accesses.
//!
//! Instructions of a block that reach memory through the same base register and constant displacements nearly always mean the same
//! page. At the first of them the emitter looks ahead how far they reach (the *window*), checks once that the whole of it
//! lies in one page, looks that page up, and keeps what has to be added to addresses in R11. The others then
//! are single instructions again. Where a window does cross pages, or its page has no entry for writes, the block is left for a
//! translation that looks up every access by itself ([`Mode::single`](super::Mode)). A window ends where its base changes by
//! something other than a constant, where R11 is needed, or with the block; a window for reads ends at a write, so that no D bit
//! is set before its time.

use super::{ACCESS_ROOM, Access, Address, Emitter, Holes, LinkSite, Rare, host, number};
use crate::asm::*;
use crate::context::cross_mask;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register};
use shadow::SHARED_BYTES;
use smallvec::smallvec;

/// A range of addresses around a base register that is known to lie in one page whose look-up is in R11.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    /// Guest register.
    base: usize,
    /// The range, relative to the base as it was when the window was entered.
    low: i32,
    high: i32,
    /// How much has been added to the base since.
    shift: i32,
    /// Writes are allowed.
    write: bool,
}

/// How an access is to be made through a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windowed {
    window: Window,
    /// It has to be looked up first.
    new: bool,
    /// The operand's displacement.
    pub(super) disp: i32,
}

impl Windowed {
    /// The host register of the base.
    pub(super) fn reg(&self) -> Reg {
        host(self.window.base).expect("a window's base has a host register")
    }
}

/// Links that a block may have before it gets no more windows; the cache has numbers for a few more.
const WINDOW_LINKS: usize = 8;
/// Widest window in bytes.
const WIDEST: i32 = 128;

/// What windows have to know of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    /// It accesses its memory operand; whether it writes there.
    explicit: Option<bool>,
    /// Bit n: it writes to general register n.
    writes: u16,
}

impl Emitter<'_> {
    pub(super) fn has_windows(&self) -> bool {
        let mode = self.request.mode;
        mode.long && !mode.counted && !mode.single
    }

    /// The base and displacement of an operand that a window could serve.
    fn window_operand(&self, instruction: &Instruction) -> Option<(usize, i32)> {
        let base = instruction.memory_base();
        let fits = self.has_windows()
            && base.is_gpr64()
            && instruction.memory_index() == Register::None
            && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
        (fits && host(number(base)).is_some())
            .then(|| (number(base), instruction.memory_displacement64() as i32))
    }

    /// Decides whether an operand's access goes through a window. Writes nothing.
    pub(super) fn choose_window(
        &mut self,
        instruction: &Instruction,
        bytes: u32,
        write: bool,
    ) -> Option<Windowed> {
        let (base, disp) = self.window_operand(instruction)?;
        self.choose(base, disp, bytes as i32, write)
    }

    pub(super) fn choose(&mut self, base: usize, disp: i32, bytes: i32, write: bool) -> Option<Windowed> {
        if disp.checked_abs()? > 1 << 24 {
            return None;
        }
        if let Some(window) = self.window
            && window.base == base
            && (window.write || !write)
            && disp + window.shift >= window.low
            && disp + window.shift + bytes <= window.high
        {
            return Some(Windowed { window, new: false, disp });
        }
        if self.links.len() >= WINDOW_LINKS {
            return None;
        }
        let mut window = Window { base, low: disp, high: disp + bytes, shift: 0, write };
        let uses = self.look_ahead(&mut window, true);
        if uses == 0 {
            return None;
        }
        // Another one may have more to do.
        if let Some(mut old) = self.window
            && self.look_ahead(&mut old, false) >= uses
        {
            return None;
        }
        window.shift = 0;
        Some(Windowed { window, new: true, disp })
    }

    /// How many of the following accesses a window serves, or would if it were wider (`widen`).
    fn look_ahead(&mut self, window: &mut Window, widen: bool) -> usize {
        let mut uses = 0;
        for at in self.at + 1..self.list.len() {
            for (disp, bytes, write) in self.accesses(at, window.base).into_iter().flatten() {
                if write && !window.write {
                    return uses;
                }
                let low = (disp + window.shift).min(window.low);
                let high = (disp + window.shift + bytes).max(window.high);
                if (low, high) == (window.low, window.high) {
                    uses += 1;
                } else if widen && high - low <= WIDEST {
                    (window.low, window.high) = (low, high);
                    uses += 1;
                }
            }
            match self.base_change(at, window.base) {
                Some(change) if (window.shift + change).abs() < 1 << 16 => window.shift += change,
                _ => return uses,
            }
        }
        uses
    }

    /// What an instruction accesses through a base: displacement, bytes, whether it writes.
    fn accesses(&mut self, at: usize, base: usize) -> [Option<(i32, i32, bool)>; 2] {
        let mut found = [None; 2];
        let facts = self.facts(at);
        let instruction = &self.list[at];
        if let Some(write) = facts.explicit
            && let Some((of, disp)) = self.window_operand(instruction)
            && of == base
            && disp.unsigned_abs() < 1 << 24
        {
            let bytes = instruction.memory_size().size() as i32;
            if (1..=64).contains(&bytes) {
                found[0] = Some((disp, bytes, write));
            }
        }
        if base == 4 && instruction.is_stack_instruction() {
            let moved = instruction.stack_pointer_increment();
            if moved == -8 {
                found[1] = Some((-8, 8, true));
            } else if moved >= 8 {
                found[1] = Some((0, 8, false));
            }
        }
        found
    }

    /// What an instruction adds to a register; `None` where that isn't a constant.
    fn base_change(&mut self, at: usize, base: usize) -> Option<i32> {
        let writes = self.facts(at).writes;
        let instruction = &self.list[at];
        if instruction.is_jcc_short_or_near() && !self.request.mode.counted {
            // The block goes on if it isn't taken.
            return Some(0);
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let to_base = instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_gpr64()
            && number(instruction.op0_register()) == base;
        match instruction.mnemonic() {
            Mnemonic::Push | Mnemonic::Pop if base == 4 && !to_base => {
                let moved = instruction.stack_pointer_increment();
                return (moved.abs() == 8).then_some(moved);
            }
            Mnemonic::Push if base == 4 => return Some(-8),
            Mnemonic::Add | Mnemonic::Sub
                if to_base
                    && matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64) =>
            {
                let value = instruction.immediate(1) as i32;
                let change =
                    if instruction.mnemonic() == Mnemonic::Add { value } else { value.checked_neg()? };
                return (-4096..=4096).contains(&change).then_some(change);
            }
            _ => {}
        }
        (writes >> base & 1 == 0).then_some(0)
    }

    /// What an instruction of the block does, found out once.
    fn facts(&mut self, at: usize) -> Facts {
        if let Some(Some(facts)) = self.facts.get(at) {
            return *facts;
        }
        let instruction = &self.list[at];
        let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        let info = self.desk.info.info(instruction);
        let memory =
            info.used_memory().first().filter(|_| has_memory && instruction.mnemonic() != Mnemonic::Lea);
        let explicit = memory
            .filter(|memory| memory.access() != OpAccess::NoMemAccess)
            .map(|memory| !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead));
        let reads = |access| matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        let written =
            info.used_registers().iter().filter(|used| used.register().is_gpr() && !reads(used.access()));
        let writes = written.fold(0, |all, used| all | 1 << number(used.register()));
        let facts = Facts { explicit, writes };
        self.facts.resize(self.list.len(), None);
        self.facts[at] = Some(facts);
        facts
    }

    /// After an instruction: keeps the window's account of its base.
    pub(super) fn track(&mut self) {
        if let Some(mut window) = self.window {
            self.window = self.base_change(self.at, window.base).and_then(|change| {
                window.shift += change;
                // Far away it is of no use any more.
                (window.shift.abs() < 1 << 16).then_some(window)
            });
        }
    }

    /// Looks a new window up, and gives the operand. RCX is free afterwards.
    pub(super) fn enter_window(&mut self, windowed: Windowed) -> Mem {
        let Windowed { window, new, disp } = windowed;
        let base = windowed.reg();
        let operand = Mem::At { base: Some(base), index: Some((R11, 1)), disp };
        if !new {
            return operand;
        }
        self.make_room(ACCESS_ROOM);
        let link = self.links.len();
        let target = self.request.rip.wrapping_add(u64::from(self.guest));
        self.links.push(LinkSite { jump: 0, stub: 0, target, single: true });
        let address = Address::At { base: Some(base), index: None, disp };
        let wide = (window.high - window.low) as u32;
        self.asm.lea(RCX, Mem::near(base, window.high - 1));
        self.asm.pext(RCX, RCX, cross_mask(wide.next_power_of_two().max(2)));
        let mut leave: Holes = smallvec![self.asm.jrcxz()];
        let back = self.asm.len();
        self.page(address);
        if window.write {
            self.asm.not(RCX);
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, -(SHARED_BYTES as i32)));
            // A page without an entry for writes may allow some of them.
            leave.push(self.asm.jrcxz());
            self.island(leave, Rare::Link(link));
        } else {
            self.island(leave, Rare::Link(link));
            self.asm.load(Size::B8, RCX, Mem::GsTable(RCX, 0));
            let missing = self.asm.jrcxz();
            let stub = self.request.stubs.fill_read;
            let access = Access { address, keeps: false, stub, bytes: None, back, after: None };
            self.island(smallvec![missing], Rare::Access(access));
        }
        self.asm.mov(R11, RCX);
        self.window = Some(window);
        operand
    }
}
