//! Memory as instructions reach it: segment, linear address, TLB or walk, RAM or bus.
//!
//! Every path is exact for accesses that cross a page: both halves are translated before either is touched, so a fault leaves
//! nothing half done. The fast path is a TLB hit within one page; all else is in the `#[cold]` functions below it.

use crate::cpu::{CodeSize, Cpu, FAST_READ, FAST_WRITE, Step, Stop};
use crate::op::Op;
use crate::tlb::Fill;
use crate::walk::{Actor, Intent};
use crate::width::Width;
use engine::{Access as Bus, Platform};
use memory::{RamOffset, Written};
use std::sync::{Mutex, PoisonError};
use x86::address::PAGE_SIZE;
use x86::control::cr4;
use x86::state::seg;
use x86::{Exception, Gpa, Vector};

/// Serializes `LOCK`ed accesses that cross into a page that doesn't follow in RAM, which can't be one host instruction, against
/// each other. A `LOCK`ed access to part of the same bytes that doesn't cross the page is not excluded.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Where one page's part of an access lands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Ram(RamOffset),
    Bus(Gpa),
}

/// A translated operand: checked for everything, ready to be read and written without a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    first: Target,
    /// The part on the next page, and how many bytes are on the first.
    second: Option<(Target, u16)>,
}

impl Place {
    /// An operand that lies in one page of RAM.
    pub(crate) fn in_ram(at: RamOffset) -> Self {
        Self { first: Target::Ram(at), second: None }
    }

    /// Its first byte in RAM, where one host instruction can reach all of it: on one page, or on two that follow each other in
    /// RAM.
    fn as_one(&self) -> Option<RamOffset> {
        match *self {
            Self { first: Target::Ram(at), second: None } => Some(at),
            Self { first: Target::Ram(at), second: Some((Target::Ram(second), on_first)) }
                if at.0 + u64::from(on_first) == second.0 =>
            {
                Some(at)
            }
            _ => None,
        }
    }

    /// Where in RAM its first byte lies.
    pub(crate) fn ram(&self) -> Option<RamOffset> {
        match self.first {
            Target::Ram(at) => Some(at),
            Target::Bus(_) => None,
        }
    }
}

impl Cpu {
    /// Effective address of the op's memory operand: the offset in its segment.
    #[inline(always)]
    pub(crate) fn effective_address(&self, op: &Op) -> u64 {
        let base = self.regs[usize::from(op.base & 31)];
        let index = self.regs[usize::from(op.index & 31)] << (op.scale & 3);
        base.wrapping_add(index).wrapping_add(op.disp) & op.address_mask
    }

    /// Linear address of `size` bytes at `offset` in segment register `segment`, after the segment's checks.
    #[inline(always)]
    pub(crate) fn linear(&self, segment: u8, offset: u64, size: u64, write: bool) -> Result<u64, Stop> {
        let slot = usize::from(segment & 7);
        if self.segment_fast[slot] & (if write { FAST_WRITE } else { FAST_READ }) != 0 {
            return Ok(self.segment_base[slot].wrapping_add(offset));
        }
        self.linear_checked(segment, offset, size, write)
    }

    /// Limit and type checks of a segment that isn't flat (SDM 3A 5.3, 5.4). Never used in 64-bit mode.
    #[cold]
    fn linear_checked(&self, segment: u8, offset: u64, size: u64, write: bool) -> Result<u64, Stop> {
        let register = &self.state.segments[usize::from(segment) % 6];
        let attributes = register.attributes;
        let fault = Err(Stop::Fault(segment_fault(segment)));
        if self.protected {
            if !attributes.is_present() || attributes.0 == 0 {
                return fault;
            }
            if write && !attributes.is_writable() || !write && !attributes.is_readable() {
                return fault;
            }
        }
        let last = offset.wrapping_add(size - 1);
        let limit = u64::from(register.limit);
        let within = if attributes.is_expand_down() {
            let top = if attributes.is_big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            last <= limit && last >= offset
        };
        if within { Ok(register.base.wrapping_add(offset) & 0xffff_ffff) } else { fault }
    }

    /// Reads an operand of a segment. Faults are the instruction's.
    #[inline(always)]
    pub(crate) fn read<W: Width>(
        &mut self,
        segment: u8,
        offset: u64,
        io: &mut dyn Platform,
    ) -> Result<W, Stop> {
        let address = self.linear(segment, offset, W::BYTES, false)?;
        if let Some(ram) = self.tlb.read(address, W::BYTES) {
            return Ok(self.memory.load(ram));
        }
        self.read_slow(segment, address, io)
    }

    /// Writes an operand of a segment. Faults are the instruction's.
    #[inline(always)]
    pub(crate) fn write<W: Width>(
        &mut self,
        segment: u8,
        offset: u64,
        value: W,
        io: &mut dyn Platform,
    ) -> Step {
        let address = self.linear(segment, offset, W::BYTES, true)?;
        if let Some(ram) = self.tlb.write(address, W::BYTES) {
            let written = self.memory.store(ram, value);
            self.note_written(written);
            return Ok(());
        }
        self.write_slow(segment, address, value, io)
    }

    /// After a store: if decoded code was hit, the running block ends with this instruction and its successors are looked
    /// up afresh (SDM 3A 8.1.3: a processor sees its own stores to code at once).
    #[inline(always)]
    pub(crate) fn note_written(&mut self, written: Written) {
        if written == Written::Derived {
            self.stop_at = 0;
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow<W: Width>(&mut self, segment: u8, address: u64, io: &mut dyn Platform) -> Result<W, Stop> {
        let place = self.place_linear(segment, address, W::BYTES, Intent::Read, Actor::Explicit, io)?;
        Ok(W::from_u64(self.load(&place, W::BYTES, io)))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<W: Width>(&mut self, segment: u8, address: u64, value: W, io: &mut dyn Platform) -> Step {
        let place = self.place_linear(segment, address, W::BYTES, Intent::Write, Actor::Explicit, io)?;
        self.store(&place, W::BYTES, value.to_u64(), io);
        Ok(())
    }

    /// Translates an operand that will be read and then written (a read-modify-write faults as a write), or one that must be
    /// known to be writable before anything else happens.
    #[inline(always)]
    pub(crate) fn place_for_write(
        &mut self,
        segment: u8,
        offset: u64,
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        let address = self.linear(segment, offset, size, true)?;
        if let Some(ram) = self.tlb.write(address, size) {
            return Ok(Place { first: Target::Ram(ram), second: None });
        }
        self.place_linear(segment, address, size, Intent::Write, Actor::Explicit, io)
    }

    /// Translates an operand that will be read.
    pub(crate) fn place_for_read(
        &mut self,
        segment: u8,
        offset: u64,
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        let address = self.linear(segment, offset, size, false)?;
        self.place_linear(segment, address, size, Intent::Read, Actor::Explicit, io)
    }

    /// Translates `size` bytes (1 to 4096) at a linear address.
    pub(crate) fn place_linear(
        &mut self,
        segment: u8,
        address: u64,
        size: u64,
        intent: Intent,
        actor: Actor,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        let natural = if actor == Actor::Explicit && size.is_power_of_two() && size <= 8 { size } else { 1 };
        self.place_aligned(segment, address, size, natural, intent, actor, io)
    }

    /// As [`Cpu::place_linear`], with the alignment that `#AC` asks for: operands of two, four and eight bytes have to be
    /// multiples of their size, most others needn't be (SDM 3A table 6-7).
    #[expect(clippy::too_many_arguments, reason = "an access is described by all of them")]
    #[inline(never)]
    pub(crate) fn place_aligned(
        &mut self,
        segment: u8,
        address: u64,
        size: u64,
        alignment: u64,
        intent: Intent,
        actor: Actor,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        let address = if self.long_mode { address } else { address & 0xffff_ffff };
        self.check_canonical(segment, address)?;
        if address & (alignment - 1) != 0 {
            self.check_alignment()?;
        }
        self.check_canonical(segment, address.wrapping_add(size - 1))?;
        if actor == Actor::Explicit && self.state.dr7 & x86::control::dr7::ENABLES != 0 {
            self.watch_data(address, size, intent);
        }
        let on_first = PAGE_SIZE - address % PAGE_SIZE;
        let first = self.target(address, intent, actor, io)?;
        if size <= on_first {
            return Ok(Place { first, second: None });
        }
        let mut next = address.wrapping_add(on_first);
        // Compatibility mode's linear addresses have 32 bits too; what is above is 64-bit code's, or the CPU's own.
        if !self.long_mode || (self.code_size != CodeSize::Bits64 && address >> 32 == 0) {
            next &= 0xffff_ffff;
        }
        let second = self.target(next, intent, actor, io)?;
        Ok(Place { first, second: Some((second, on_first as u16)) })
    }

    /// Whether an address is one at all: `#GP` or `#SS` where it isn't canonical.
    pub(crate) fn check_canonical(&self, segment: u8, address: u64) -> Step {
        if self.long_mode && !self.is_canonical(address) {
            Err(Stop::Fault(segment_fault(segment)))
        } else {
            Ok(())
        }
    }

    /// `#AC` where alignment checking is on (SDM 3A 6.15, interrupt 17).
    pub(crate) fn check_alignment(&self) -> Step {
        use x86::Rflags;
        use x86::control::cr0;
        let on =
            self.state.cpl == 3 && self.state.cr0 & cr0::AM != 0 && self.state.rflags.contains(Rflags::AC);
        if on { Err(Exception::with_code(Vector::AlignmentCheck, 0).into()) } else { Ok(()) }
    }

    /// One page's translation, through the walk; fills the TLB.
    fn target(
        &mut self,
        address: u64,
        intent: Intent,
        actor: Actor,
        io: &mut dyn Platform,
    ) -> Result<Target, Stop> {
        let walked = self.walk(address, intent, actor, io)?;
        let Some(page) = self.page_in_ram(walked.gpa) else {
            return Ok(Target::Bus(walked.gpa));
        };
        let fill = Fill {
            page: address & !(PAGE_SIZE - 1),
            ram: page,
            read: walked.may_read,
            write: walked.may_write,
            large: walked.large,
        };
        match actor {
            Actor::Explicit => self.tlb.fill_data(self.tlb.current_set(), fill),
            // The set serves code under SMAP too, so while there is SMAP, pages to which it could apply stay out.
            Actor::Implicit if !walked.user_page || self.state.cr4 & cr4::SMAP == 0 => {
                self.tlb.fill_data(crate::tlb::SUPERVISOR, fill);
            }
            Actor::Implicit => {}
        }
        Ok(Target::Ram(RamOffset(page.0 + walked.gpa.offset())))
    }

    /// Reads a place of up to 8 bytes, zero-extended.
    #[inline]
    pub(crate) fn load(&mut self, place: &Place, size: u64, io: &mut dyn Platform) -> u64 {
        match (place.first, place.second, size) {
            (Target::Ram(at), None, 1) => self.memory.load::<u8>(at).into(),
            (Target::Ram(at), None, 2) => self.memory.load::<u16>(at).into(),
            (Target::Ram(at), None, 4) => self.memory.load::<u32>(at).into(),
            (Target::Ram(at), None, 8) => self.memory.load::<u64>(at),
            _ => {
                let mut data = [0; 8];
                self.load_bytes(place, &mut data[..size as usize], io);
                u64::from_le_bytes(data)
            }
        }
    }

    /// Writes a place of up to 8 bytes.
    #[inline]
    pub(crate) fn store(&mut self, place: &Place, size: u64, value: u64, io: &mut dyn Platform) {
        let written = match (place.first, place.second, size) {
            (Target::Ram(at), None, 1) => self.memory.store(at, value as u8),
            (Target::Ram(at), None, 2) => self.memory.store(at, value as u16),
            (Target::Ram(at), None, 4) => self.memory.store(at, value as u32),
            (Target::Ram(at), None, 8) => self.memory.store(at, value),
            _ => return self.store_bytes(place, &value.to_le_bytes()[..size as usize], io),
        };
        self.note_written(written);
    }

    /// Reads a place of the size it was translated for.
    pub(crate) fn load_bytes(&mut self, place: &Place, into: &mut [u8], io: &mut dyn Platform) {
        let split = place.second.map_or(into.len(), |(_, on_first)| usize::from(on_first));
        let (first, second) = into.split_at_mut(split);
        self.load_part(place.first, first, io);
        if let Some((target, _)) = place.second {
            self.load_part(target, second, io);
        }
    }

    /// Writes a place of the size it was translated for.
    pub(crate) fn store_bytes(&mut self, place: &Place, from: &[u8], io: &mut dyn Platform) {
        let split = place.second.map_or(from.len(), |(_, on_first)| usize::from(on_first));
        let (first, second) = from.split_at(split);
        self.store_part(place.first, first, io);
        if let Some((target, _)) = place.second {
            self.store_part(target, second, io);
        }
    }

    fn load_part(&mut self, target: Target, into: &mut [u8], io: &mut dyn Platform) {
        match target {
            Target::Ram(at) => self.memory.load_bytes(at, into),
            Target::Bus(at) => {
                let mut done = 0;
                while done < into.len() {
                    let size = bus_chunk(at.0 + done as u64, into.len() - done);
                    io.mmio(at + done as u64, Bus::Read(&mut into[done..done + size]));
                    done += size;
                }
                self.look_up();
            }
        }
    }

    fn store_part(&mut self, target: Target, from: &[u8], io: &mut dyn Platform) {
        match target {
            Target::Ram(at) => {
                let written = self.memory.store_bytes(at, from);
                self.note_written(written);
            }
            Target::Bus(at) => {
                let mut done = 0;
                while done < from.len() {
                    let size = bus_chunk(at.0 + done as u64, from.len() - done);
                    io.mmio(at + done as u64, Bus::Write(&from[done..done + size]));
                    done += size;
                }
                self.look_up();
            }
        }
    }

    /// After an access to a device: if that made an event pending, the block ends with this instruction, so that the event is
    /// taken at the very next boundary.
    #[inline]
    pub(crate) fn look_up(&mut self) {
        if self.kicker.is_requested() {
            self.stop_at = 0;
        }
    }

    /// Read-modify-write of a translated place: `change` gets the old value, and its result is stored. With `locked` the
    /// whole is atomic against every other vCPU and device (SDM 3A 8.1.2). Gives the old value.
    #[inline(always)]
    pub(crate) fn modify<W: Width>(
        &mut self,
        place: &Place,
        locked: bool,
        io: &mut dyn Platform,
        mut change: impl FnMut(W) -> W,
    ) -> W {
        if !locked {
            let old = W::from_u64(self.load(place, W::BYTES, io));
            let new = change(old);
            self.store(place, W::BYTES, new.to_u64(), io);
            return old;
        }
        // Translated code does it like this, too: with anything else the two would not exclude each other.
        if let Some(at) = place.as_one() {
            let mut old = self.memory.load::<W>(at);
            loop {
                let (found, written) = self.memory.compare_exchange(at, old, change(old));
                if found == old {
                    self.note_written(written);
                    return old;
                }
                old = found;
            }
        }
        let _exclusive = SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        self.modify(place, false, io, change)
    }

    /// LOCK CMPXCHG16B on a 16-byte aligned place. Gives the old value.
    pub(crate) fn compare_exchange_16(
        &mut self,
        place: &Place,
        expected: u128,
        new: u128,
        io: &mut dyn Platform,
    ) -> u128 {
        if let Place { first: Target::Ram(at), second: None } = *place {
            let (old, written) = self.memory.compare_exchange_16(at, expected, new);
            self.note_written(written);
            return old;
        }
        let mut data = [0; 16];
        self.load_bytes(place, &mut data, io);
        let old = u128::from_le_bytes(data);
        let stored = if old == expected { new } else { old };
        self.store_bytes(place, &stored.to_le_bytes(), io);
        old
    }

    /// Reads up to 8 bytes of a system structure (descriptor table, TSS) at a linear address, as supervisor.
    pub(crate) fn read_system(
        &mut self,
        address: u64,
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop> {
        let place = match self.tlb.read_implicit(address, size) {
            Some(ram) => Place { first: Target::Ram(ram), second: None },
            None => self.place_linear(NO_SEGMENT, address, size, Intent::Read, Actor::Implicit, io)?,
        };
        Ok(self.load(&place, size, io))
    }

    /// The op's memory operand, read.
    #[inline(always)]
    pub(crate) fn read_memory<W: Width>(&mut self, op: &Op, io: &mut dyn Platform) -> Result<W, Stop> {
        let offset = self.effective_address(op);
        self.read(op.segment, offset, io)
    }

    /// The op's memory operand, written.
    #[inline(always)]
    pub(crate) fn write_memory<W: Width>(&mut self, op: &Op, value: W, io: &mut dyn Platform) -> Step {
        let offset = self.effective_address(op);
        self.write(op.segment, offset, value, io)
    }

    /// The op's memory operand, translated for a read-modify-write.
    #[inline(always)]
    pub(crate) fn memory_place<W: Width>(&mut self, op: &Op, io: &mut dyn Platform) -> Result<Place, Stop> {
        let offset = self.effective_address(op);
        self.place_for_write(op.segment, offset, W::BYTES, io)
    }

    /// Pushes, by the stack's address size; RSP changes only if the write succeeds.
    #[inline(always)]
    pub(crate) fn push<W: Width>(&mut self, value: W, io: &mut dyn Platform) -> Step {
        let old = self.regs[4];
        let new = old.wrapping_sub(W::BYTES) & self.stack_mask;
        self.write(seg::SS as u8, new, value, io)?;
        self.regs[4] = old & !self.stack_mask | new;
        Ok(())
    }

    /// Reads the top of the stack without popping it.
    #[inline(always)]
    pub(crate) fn peek<W: Width>(&mut self, depth: u64, io: &mut dyn Platform) -> Result<W, Stop> {
        let at = self.regs[4].wrapping_add(depth) & self.stack_mask;
        self.read(seg::SS as u8, at, io)
    }

    /// Moves RSP up by `bytes`, by the stack's address size.
    #[inline(always)]
    pub(crate) fn release_stack(&mut self, bytes: u64) {
        let old = self.regs[4];
        self.regs[4] = old & !self.stack_mask | old.wrapping_add(bytes) & self.stack_mask;
    }
}

/// For accesses that no segment register is involved in: faults are #GP.
pub(crate) const NO_SEGMENT: u8 = 7;

/// `#SS(0)` for accesses through SS, else `#GP(0)`.
pub(crate) fn segment_fault(segment: u8) -> Exception {
    if usize::from(segment) == seg::SS { Exception::SS0 } else { Exception::GP0 }
}

/// The largest naturally aligned access of 8, 4, 2 or 1 bytes at `address`, or the whole where it is of such a size itself
/// (a misaligned dword stays one access, as on the bus).
fn bus_chunk(address: u64, left: usize) -> usize {
    match left {
        1 | 2 | 4 | 8 => left,
        _ => [8, 4, 2]
            .into_iter()
            .find(|size| address.is_multiple_of(*size as u64) && *size <= left)
            .unwrap_or(1),
    }
}
