//! Hardware task switches (SDM 3A chapter 7): by JMP, CALL, IRET, interrupts and exceptions, 16- and 32-bit TSSs.
//!
//! Not in long mode. Both TSSs are translated before anything is written, so a page fault leaves the old task running. Faults
//! after that belong to the new task: the functions here then give `Ok(Some(exception))`. Only what a switch changes is
//! written: other vCPUs may be changing the rest of a TSS or its descriptor.

use super::segments::{gp, selector_fault};
use super::stack::Stack;
use super::tables::BUSY;
use crate::access::{NO_SEGMENT, Place};
use crate::cpu::{Cpu, Step, Stop, special};
use crate::walk::{Actor, Intent};
use engine::Platform;
use x86::control::{cr0, cr4, dr6};
use x86::descriptor::{Attributes, RawDescriptor, Selector, system};
use x86::state::{Segment, seg};
use x86::{Exception, Rflags, Vector};

/// Who may come back to whom (SDM 3A table 7-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Nesting {
    /// JMP: the old task ends.
    Jump,
    /// CALL, interrupt, exception: the old task waits.
    Nested,
    /// IRET: back to the waiting task.
    Return,
}

/// A task switch to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch {
    /// Selector of the TSS (or, for a task gate, of what the gate names).
    pub(super) selector: Selector,
    pub(super) nesting: Nesting,
    /// Error code to push on the new task's stack.
    pub(super) code: Option<u32>,
    /// EXT bit of error codes.
    pub(super) ext: u32,
    /// Flags to save in the old TSS.
    pub(super) flags: Rflags,
}

/// Offsets in a TSS (SDM 3A figures 7-2, 7-10).
struct Layout {
    /// Bytes that a TSS must have at least.
    bytes: u64,
    width: u64,
    cr3: Option<usize>,
    ip: usize,
    flags: usize,
    gpr: usize,
    /// ES, CS, SS, DS and, 32-bit, FS and GS.
    selectors: usize,
    selector_count: usize,
    ldt: usize,
}

const LAYOUT16: Layout = Layout {
    bytes: 44,
    width: 2,
    cr3: None,
    ip: 14,
    flags: 16,
    gpr: 18,
    selectors: 34,
    selector_count: 4,
    ldt: 42,
};
const LAYOUT32: Layout = Layout {
    bytes: 104,
    width: 4,
    cr3: Some(28),
    ip: 32,
    flags: 36,
    gpr: 40,
    selectors: 72,
    selector_count: 6,
    ldt: 96,
};

fn layout(attributes: Attributes) -> &'static Layout {
    if attributes.kind() & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
}

fn field(image: &[u8; 104], at: usize, width: u64) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width as usize].copy_from_slice(&image[at..at + width as usize]);
    u64::from_le_bytes(bytes)
}

/// Where the old task's registers go: EIP, EFLAGS and the general registers lie side by side, the segment registers apart.
struct Saved {
    registers: Place,
    selectors: [Option<Place>; 6],
}

fn set_field(image: &mut [u8; 104], at: usize, width: u64, value: u64) {
    image[at..at + width as usize].copy_from_slice(&value.to_le_bytes()[..width as usize]);
}

impl Cpu {
    /// A task switch through a task gate, which has been checked itself (SDM 3A 7.3).
    pub(super) fn switch_through_gate(
        &mut self,
        switch: Switch,
        io: &mut dyn Platform,
    ) -> Result<Option<Exception>, Stop> {
        let selector = switch.selector;
        if selector.is_null() || selector.is_local() {
            return Err(selector_fault(Vector::GeneralProtection, selector, switch.ext));
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, switch.ext, io)?;
        let attributes = descriptor.raw.attributes();
        if attributes.is_code_or_data() || !matches!(attributes.kind(), system::TSS16 | system::TSS) {
            return Err(selector_fault(Vector::GeneralProtection, selector, switch.ext));
        }
        self.switch_to_tss(switch, io)
    }

    /// A task switch straight to a TSS by CALL or JMP, whose privilege rules are those of data (SDM 3A 7.3).
    pub(super) fn switch_directly(
        &mut self,
        switch: Switch,
        raw: RawDescriptor,
        io: &mut dyn Platform,
    ) -> Result<Option<Exception>, Stop> {
        let attributes = raw.attributes();
        let selector = switch.selector;
        if selector.is_local() || attributes.dpl() < self.cpl() || attributes.dpl() < selector.rpl() {
            return Err(gp(selector));
        }
        if !matches!(attributes.kind(), system::TSS16 | system::TSS) {
            return Err(gp(selector));
        }
        self.switch_to_tss(switch, io)
    }

    /// The switch itself. RIP is what the old task will resume at.
    pub(super) fn switch_to_tss(
        &mut self,
        switch: Switch,
        io: &mut dyn Platform,
    ) -> Result<Option<Exception>, Stop> {
        let Switch { selector, nesting, ext, .. } = switch;
        let returning = nesting == Nesting::Return;
        let vector = if returning { Vector::InvalidTss } else { Vector::GeneralProtection };
        if selector.is_local() {
            return Err(selector_fault(vector, selector, ext));
        }
        let descriptor = self.descriptor(selector, vector, ext, io)?;
        let attributes = descriptor.raw.attributes();
        if returning
            && (attributes.is_code_or_data()
                || !matches!(attributes.kind(), system::TSS16_BUSY | system::TSS_BUSY))
        {
            return Err(selector_fault(Vector::InvalidTss, selector, ext));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
        }
        let new = layout(attributes);
        if u64::from(descriptor.raw.limit()) < new.bytes - 1 {
            return Err(selector_fault(Vector::InvalidTss, selector, ext));
        }
        let old_tr = self.state.tr;
        let old = layout(old_tr.attributes);
        if u64::from(old_tr.limit) < old.bytes - 1 {
            return Err(selector_fault(Vector::InvalidTss, old_tr.selector, ext));
        }

        // Translate all that will be touched.
        let nested = nesting == Nesting::Nested;
        let new_place = self.system_place(descriptor.raw.base(), new.bytes, Intent::Read, io)?;
        let link =
            if nested { Some(self.system_place(descriptor.raw.base(), 2, Intent::Write, io)?) } else { None };
        let saved = self.saved_place(old_tr.base, old, io)?;
        let new_busy = if returning { None } else { Some(self.type_byte(descriptor.at, io)?) };
        let old_busy = if nested {
            None
        } else {
            let at = self.state.gdtr.base.wrapping_add(old_tr.selector.offset());
            Some(self.type_byte(at, io)?)
        };

        let mut image = [0; 104];
        self.load_bytes(&new_place, &mut image[..new.bytes as usize], io);
        let new_cr3 = new.cr3.filter(|_| self.paging()).map(|at| field(&image, at, 4));
        let pae = self.state.cr4 & cr4::PAE != 0;
        let new_pdptes = match new_cr3 {
            Some(cr3) if pae => {
                let Some(pdptes) = self.read_pdptes(cr3, io) else {
                    return Err(selector_fault(Vector::GeneralProtection, Selector(0), ext));
                };
                Some(pdptes)
            }
            _ => None,
        };

        // Another vCPU may have taken the task since its descriptor was read.
        if let Some(place) = &new_busy
            && self.modify::<u8>(place, true, io, |byte| byte | BUSY) & BUSY != 0
        {
            return Err(selector_fault(vector, selector, ext));
        }
        // From here on it happens. The old task is free for others only when all of it is saved.
        self.save_task(&saved, old, switch.flags, io);
        if let Some(place) = &old_busy {
            self.modify::<u8>(place, true, io, |byte| byte & !BUSY);
        }
        if let Some(place) = &link {
            self.store(place, 2, old_tr.selector.0.into(), io);
        }
        let busy = RawDescriptor(descriptor.raw.0 | u64::from(BUSY) << 40);
        self.state.tr = Segment::from_descriptor(selector, busy);
        self.state.cr0 |= cr0::TS;
        if let Some(cr3) = new_cr3 {
            self.state.cr3 = cr3;
            if let Some(pdptes) = new_pdptes {
                self.state.pdptes = pdptes;
            }
            self.tlb.flush();
        }
        // Local breakpoints belong to the task (SDM 3B 17.2.4).
        self.state.dr7 &= !0x155;
        match self.load_task(&image, new, &switch, io) {
            Ok(()) => {
                self.update_mode();
                Ok(None)
            }
            Err(Stop::Fault(exception)) => {
                self.update_mode();
                Ok(Some(exception))
            }
            Err(other) => Err(other),
        }
    }

    fn system_place(
        &mut self,
        address: u64,
        size: u64,
        intent: Intent,
        io: &mut dyn Platform,
    ) -> Result<Place, Stop> {
        self.place_linear(NO_SEGMENT, address, size, intent, Actor::Implicit, io)
    }

    /// Translates what [`Cpu::save_task`] writes of the TSS at `base`.
    fn saved_place(&mut self, base: u64, layout: &Layout, io: &mut dyn Platform) -> Result<Saved, Stop> {
        let at = |offset: usize| base.wrapping_add(offset as u64) & 0xffff_ffff;
        let bytes = (layout.selectors - layout.ip) as u64;
        let registers = self.system_place(at(layout.ip), bytes, Intent::Write, io)?;
        let mut selectors = [None; 6];
        for (slot, place) in selectors.iter_mut().enumerate().take(layout.selector_count) {
            let offset = layout.selectors + slot * layout.width as usize;
            *place = Some(self.system_place(at(offset), 2, Intent::Write, io)?);
        }
        Ok(Saved { registers, selectors })
    }

    /// Writes the running task's registers into its TSS. CR3, LDT, the link and the inner stacks are not written.
    fn save_task(&mut self, places: &Saved, layout: &Layout, flags: Rflags, io: &mut dyn Platform) {
        let mut image = [0; 104];
        let width = layout.width;
        set_field(&mut image, layout.ip, width, self.rip);
        set_field(&mut image, layout.flags, width, flags.bits());
        for index in 0..8 {
            set_field(&mut image, layout.gpr + index * width as usize, width, self.regs[index]);
        }
        self.store_bytes(&places.registers, &image[layout.ip..layout.selectors], io);
        for (slot, place) in places.selectors.iter().enumerate() {
            if let Some(place) = place {
                self.store(place, 2, self.state.segments[slot].selector.0.into(), io);
            }
        }
    }

    /// Loads a task's registers. What fails here is the new task's fault (SDM 3A 7.3, steps 11 to 14).
    fn load_task(
        &mut self,
        image: &[u8; 104],
        layout: &Layout,
        switch: &Switch,
        io: &mut dyn Platform,
    ) -> Step {
        let width = layout.width;
        let high = if width == 2 { 0xffff_0000 } else { 0 };
        self.rip = field(image, layout.ip, width);
        for index in 0..8 {
            // A 16-bit TSS leaves the upper halves set (as Intel's CPUs do; the manual doesn't say).
            self.regs[index] = field(image, layout.gpr + index * width as usize, width) | high;
        }
        let mut flags = Rflags::from_bits_truncate(field(image, layout.flags, width));
        if switch.nesting == Nesting::Nested {
            flags |= Rflags::NT;
        }
        // All selectors first, with nothing behind them: they are visible if a descriptor is bad.
        let mut selectors = [Selector(0); 6];
        for (slot, selector) in selectors.iter_mut().enumerate().take(layout.selector_count) {
            *selector = Selector(field(image, layout.selectors + slot * width as usize, 2) as u16);
        }
        for (segment, selector) in self.state.segments.iter_mut().zip(selectors) {
            *segment = Segment { selector, ..Segment::default() };
        }
        let ldt = Selector(field(image, layout.ldt, 2) as u16);
        self.state.ldtr = Segment { selector: ldt, ..Segment::default() };
        let virtual_8086 = flags.contains(Rflags::VM);
        self.state.cpl = if virtual_8086 { 3 } else { selectors[seg::CS].rpl() };
        self.set_rflags(flags);

        self.load_task_ldt(ldt, switch.ext, io)?;
        if virtual_8086 {
            for (segment, selector) in self.state.segments.iter_mut().zip(selectors) {
                *segment = super::iret::virtual_segment(selector.0);
            }
            self.update_mode();
        } else {
            self.load_task_segments(&selectors, switch.ext, io)?;
        }
        let code = self.state.segments[seg::CS];
        self.check_target(&code, self.rip, switch.ext)?;
        if let Some(code) = switch.code {
            let size = if width == 2 { 2 } else { 4 };
            let mut stack: Stack = self.current_stack(switch.ext);
            self.push_frame(&mut stack, &[code.into()], size, io)?;
            self.regs[4] = stack.merge(self.regs[4]);
        }
        // The T bit: a debug trap before the new task's first instruction (SDM 3B 17.3.1.5).
        if layout.width == 4 && image[100] & 1 != 0 {
            self.state.dr6 |= dr6::BT;
            self.special |= special::DEBUG_PENDING;
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: Selector, ext: u32, io: &mut dyn Platform) -> Step {
        if selector.is_null() {
            return Ok(());
        }
        let bad = selector_fault(Vector::InvalidTss, selector, ext);
        if selector.is_local() {
            return Err(bad);
        }
        let descriptor = self.descriptor(selector, Vector::InvalidTss, ext, io)?;
        let attributes = descriptor.raw.attributes();
        if attributes.is_code_or_data() || attributes.kind() != system::LDT || !attributes.is_present() {
            return Err(bad);
        }
        self.state.ldtr = Segment::from_descriptor(selector, descriptor.raw);
        Ok(())
    }

    fn load_task_segments(&mut self, selectors: &[Selector; 6], ext: u32, io: &mut dyn Platform) -> Step {
        let cpl = self.cpl();
        let selector = selectors[seg::CS];
        if selector.is_null() {
            return Err(Exception::with_code(Vector::InvalidTss, ext).into());
        }
        let descriptor = self.descriptor(selector, Vector::InvalidTss, ext, io)?;
        let attributes = descriptor.raw.attributes();
        let privilege_good =
            if attributes.is_conforming() { attributes.dpl() <= cpl } else { attributes.dpl() == cpl };
        if !attributes.is_code() || !privilege_good {
            return Err(selector_fault(Vector::InvalidTss, selector, ext));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
        }
        let code = Segment::from_descriptor(selector, self.mark_accessed(descriptor, io)?);
        self.set_segment(seg::CS, code);
        let stack = self.stack_segment(selectors[seg::SS], cpl, false, Vector::InvalidTss, ext, io)?;
        self.set_segment(seg::SS, stack);
        for slot in [seg::DS, seg::ES, seg::FS, seg::GS] {
            let segment = self.data_segment(selectors[slot], cpl, Vector::InvalidTss, ext, io)?;
            self.set_segment(slot, segment);
        }
        Ok(())
    }
}
