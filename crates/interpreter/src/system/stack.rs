//! Frames on a stack that may not be the current one: what gates, IRET, far calls and returns push and pop.
//!
//! A frame is written whole or not at all: every slot is checked and translated before the first is written.

use crate::access::{NO_SEGMENT, Place};
use crate::cpu::{CodeSize, Cpu, Stop};
use crate::walk::{Actor, Intent};
use engine::Platform;
use x86::descriptor::Selector;
use x86::state::{Segment, seg};
use x86::{Exception, Vector};

/// Most slots in a frame: 31 parameters of a call gate, and SS, ESP, CS and EIP.
const MOST: usize = 36;

/// A stack: where it is, how wide its pointer, and what its faults say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub(super) segment: Segment,
    pub(super) pointer: u64,
    /// All ones as wide as the stack pointer.
    pub(super) mask: u64,
    /// Error code of `#SS`.
    pub(super) code: u32,
    /// Privilege of the accesses.
    pub(super) cpl: u8,
}

impl Stack {
    /// The width of a stack pointer in a segment, outside 64-bit mode.
    pub(super) fn mask_of(segment: &Segment) -> u64 {
        if segment.attributes.is_big() { 0xffff_ffff } else { 0xffff }
    }

    fn fault(&self) -> Stop {
        Exception::with_code(Vector::StackFault, self.code).into()
    }

    /// Linear address of a slot, after the segment's limit check.
    fn linear(&self, offset: u64, size: u64) -> Result<u64, Stop> {
        if self.mask == u64::MAX {
            return Ok(offset);
        }
        let limit = u64::from(self.segment.limit);
        let last = offset + size - 1;
        let within = if self.segment.attributes.is_expand_down() {
            let top = if self.segment.attributes.is_big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if within { Ok(self.segment.base.wrapping_add(offset) & 0xffff_ffff) } else { Err(self.fault()) }
    }

    /// The full stack pointer register after it has moved to `self.pointer`: bits beyond the mask stay as they were.
    pub(super) fn merge(&self, register: u64) -> u64 {
        register & !self.mask | self.pointer & self.mask
    }
}

impl Cpu {
    /// The stack in use.
    pub(super) fn current_stack(&self, code: u32) -> Stack {
        Stack {
            segment: self.state.segments[seg::SS],
            pointer: self.regs[4],
            mask: self.stack_mask,
            code,
            cpl: self.cpl(),
        }
    }

    /// Does something at another privilege level, as far as memory is concerned.
    fn at_privilege<T>(
        &mut self,
        cpl: u8,
        act: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let own = self.state.cpl;
        if own == cpl {
            return act(self);
        }
        self.state.cpl = cpl;
        self.select_tlb();
        let result = act(self);
        self.state.cpl = own;
        self.select_tlb();
        result
    }

    fn stack_place(
        &mut self,
        stack: &Stack,
        offset: u64,
        size: u64,
        intent: Intent,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        let address = stack.linear(offset, size)?;
        let cached = if intent == Intent::Write {
            self.tlb.write(address, size)
        } else {
            self.tlb.read(address, size)
        };
        if let Some(ram) = cached {
            return Ok(Place::in_ram(ram));
        }
        self.place_linear(NO_SEGMENT, address, size, intent, Actor::Explicit, io).map_err(|stop| match stop {
            // Not canonical: a stack fault here.
            Stop::Fault(exception) if exception.vector == Vector::GeneralProtection => stack.fault(),
            other => other,
        })
    }

    /// Pushes `values`, first to last, in slots of `size` bytes; moves the stack's pointer.
    pub(super) fn push_frame(
        &mut self,
        stack: &mut Stack,
        values: &[u64],
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<(), Stop> {
        let mut moved = *stack;
        self.at_privilege(stack.cpl, |cpu| {
            let mut places: [Option<Place>; MOST] = [None; MOST];
            let mut pointer = moved.pointer & moved.mask;
            for (place, _) in places.iter_mut().zip(values) {
                pointer = pointer.wrapping_sub(size) & moved.mask;
                *place = Some(cpu.stack_place(&moved, pointer, size, Intent::Write, io)?);
            }
            for (place, value) in places.iter().flatten().zip(values) {
                cpu.store(place, size, *value, io);
            }
            moved.pointer = pointer;
            Ok(())
        })?;
        *stack = moved;
        Ok(())
    }

    /// Pops `into.len()` slots of `size` bytes; moves the stack's pointer.
    pub(super) fn pop_frame(
        &mut self,
        stack: &mut Stack,
        into: &mut [u64],
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<(), Stop> {
        let mut moved = *stack;
        self.at_privilege(stack.cpl, |cpu| {
            let mut pointer = moved.pointer & moved.mask;
            for value in into.iter_mut() {
                let place = cpu.stack_place(&moved, pointer, size, Intent::Read, io)?;
                *value = cpu.load(&place, size, io);
                pointer = pointer.wrapping_add(size) & moved.mask;
            }
            moved.pointer = pointer;
            Ok(())
        })?;
        *stack = moved;
        Ok(())
    }

    /// SS and ESP for privilege level `dpl` from a 16- or 32-bit TSS (SDM 3A 7.2.1), checked.
    pub(super) fn inner_stack(&mut self, dpl: u8, ext: u32, io: &mut dyn Platform) -> Result<Stack, Stop> {
        use x86::descriptor::system::{TSS16, TSS16_BUSY};
        let tr = self.state.tr;
        let small = matches!(tr.attributes.kind(), TSS16 | TSS16_BUSY);
        let level = u64::from(dpl);
        let (at, width) = if small { (level * 4 + 2, 2) } else { (level * 8 + 4, 4) };
        if at + width + 1 > u64::from(tr.limit) {
            return Err(super::segments::selector_fault(Vector::InvalidTss, tr.selector, ext));
        }
        let pointer = self.read_system(tr.base.wrapping_add(at), width, io)?;
        let selector = Selector(self.read_system(tr.base.wrapping_add(at + width), 2, io)? as u16);
        let segment = self.stack_segment(selector, dpl, false, Vector::InvalidTss, ext, io)?;
        Ok(Stack {
            segment,
            pointer,
            mask: Stack::mask_of(&segment),
            code: selector.error_code() | ext,
            cpl: dpl,
        })
    }

    /// RSP number `index` of a 64-bit TSS: 0..=2 for a privilege level, 4..=10 for IST 1..=7 (SDM 3A figure 7-11).
    pub(super) fn long_tss_stack(
        &mut self,
        index: u64,
        ext: u32,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop> {
        let tr = self.state.tr;
        let at = 4 + index * 8;
        if at + 7 > u64::from(tr.limit) {
            return Err(super::segments::selector_fault(Vector::InvalidTss, tr.selector, ext));
        }
        self.read_system(tr.base.wrapping_add(at), 8, io)
    }

    /// Whether an offset may be executed in a code segment: within its limit, or canonical in 64-bit code.
    pub(super) fn check_target(&self, code: &Segment, rip: u64, ext: u32) -> Result<(), Stop> {
        let good = if self.long_mode && code.attributes.is_long() {
            self.is_canonical(rip)
        } else {
            rip <= u64::from(code.limit)
        };
        if good { Ok(()) } else { Err(Exception::with_code(Vector::GeneralProtection, ext).into()) }
    }

    /// Whether 64-bit code runs.
    pub(crate) fn in_64_bit_mode(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }
}
