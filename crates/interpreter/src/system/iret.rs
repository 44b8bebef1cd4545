//! IRET in all its forms (SDM 2A IRET).

use super::segments::{gp, selector_fault};
use super::stack::Stack;
use super::tasks::{Nesting, Switch};
use crate::cpu::{Cpu, Step, Stop, special};
use crate::op::Op;
use engine::Platform;
use iced_x86::Mnemonic;
use x86::control::cr4;
use x86::descriptor::{Attributes, Selector};
use x86::state::{Segment, seg};
use x86::{Exception, Rflags, Vector};

/// Flags that any IRET or POPF may load.
const COMMON: Rflags = Rflags::ARITHMETIC.union(Rflags::TF).union(Rflags::DF).union(Rflags::NT);

/// IRET, IRETD, IRETQ.
pub(super) fn iret(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    // NMIs are unblocked even if the instruction faults (SDM 3A 6.7.1).
    if std::mem::take(&mut cpu.state.nmi_blocked) {
        cpu.special |= special::RECHECK;
    }
    let size = match op.instruction().mnemonic() {
        Mnemonic::Iret => 2,
        Mnemonic::Iretd => 4,
        _ => 8,
    };
    if cpu.virtual_8086() {
        cpu.iret_virtual_8086(size, io)?;
    } else if !cpu.protected {
        cpu.iret_real(size, io)?;
    } else if cpu.state.rflags.contains(Rflags::NT) {
        if cpu.long_mode {
            return Err(Exception::GP0.into());
        }
        return cpu.iret_nested(op, io);
    } else {
        cpu.iret_protected(size, io)?;
    }
    cpu.after_iret();
    Ok(())
}

impl Cpu {
    /// IRET may open the window for interrupts.
    fn after_iret(&mut self) {
        self.update_mode();
        self.special |= special::RECHECK;
    }

    /// Loads the flags in `mask` from an image.
    pub(super) fn load_flags(&mut self, image: u64, mask: Rflags) {
        let old = self.rflags();
        let image = Rflags::from_bits_truncate(image);
        self.set_rflags((old - mask) | (image & mask));
        if self.state.rflags.contains(Rflags::IF) {
            self.special |= special::RECHECK;
        }
    }

    fn iret_real(&mut self, size: u64, io: &mut dyn Platform) -> Step {
        let mut stack = self.current_stack(0);
        let mut frame = [0; 3];
        self.pop_frame(&mut stack, &mut frame, size, io)?;
        let [ip, cs, flags] = frame;
        if ip > u64::from(self.state.segments[seg::CS].limit) {
            return Err(Exception::GP0.into());
        }
        self.regs[4] = stack.merge(self.regs[4]);
        self.rip = ip;
        self.state.segments[seg::CS] = self.real_segment(seg::CS, cs as u16);
        let mut mask = COMMON | Rflags::IF | Rflags::IOPL;
        if size == 4 {
            mask |= Rflags::RF | Rflags::AC | Rflags::ID;
        } else {
            self.state.rflags.remove(Rflags::RF);
        }
        self.load_flags(flags, mask);
        Ok(())
    }

    /// In virtual-8086 mode (SDM 3B 20.2.7): with IOPL 3, or, 16 bits wide, with CR4.VME.
    fn iret_virtual_8086(&mut self, size: u64, io: &mut dyn Platform) -> Step {
        let extended = self.state.rflags.iopl() < 3;
        if extended && (self.state.cr4 & cr4::VME == 0 || size != 2) {
            return Err(Exception::GP0.into());
        }
        let mut stack = self.current_stack(0);
        let mut frame = [0; 3];
        self.pop_frame(&mut stack, &mut frame, size, io)?;
        let [ip, cs, flags] = frame;
        if ip > 0xffff {
            return Err(Exception::GP0.into());
        }
        let image = Rflags::from_bits_truncate(flags);
        let pending = self.state.rflags.contains(Rflags::VIP);
        if extended && (image.contains(Rflags::TF) || image.contains(Rflags::IF) && pending) {
            return Err(Exception::GP0.into());
        }
        self.regs[4] = stack.merge(self.regs[4]);
        self.rip = ip;
        self.state.segments[seg::CS] = self.real_segment(seg::CS, cs as u16);
        if extended {
            self.state.rflags.set(Rflags::VIF, image.contains(Rflags::IF));
            self.state.rflags.remove(Rflags::RF);
            self.load_flags(flags, COMMON);
            return Ok(());
        }
        let mut mask = COMMON | Rflags::IF;
        if size == 4 {
            mask |= Rflags::RF | Rflags::AC | Rflags::ID;
        } else {
            self.state.rflags.remove(Rflags::RF);
        }
        self.load_flags(flags, mask);
        Ok(())
    }

    /// Back to the task that the TSS's link field names (SDM 3A 7.4).
    fn iret_nested(&mut self, op: &Op, io: &mut dyn Platform) -> Step {
        let link = Selector(self.read_system(self.state.tr.base, 2, io)? as u16);
        self.rip = self.next_rip(op);
        let flags = self.rflags() - Rflags::NT;
        let switch = Switch { selector: link, nesting: Nesting::Return, code: None, ext: 0, flags };
        let begun = self.switch_to_tss(switch, io)?;
        self.after_iret();
        match begun {
            Some(exception) => self.begin_task_with(exception, io),
            None => Ok(()),
        }
    }

    fn iret_protected(&mut self, size: u64, io: &mut dyn Platform) -> Step {
        let mut stack = self.current_stack(0);
        let mut frame = [0; 3];
        self.pop_frame(&mut stack, &mut frame, size, io)?;
        let [rip, cs, image] = frame;
        let own = self.cpl();
        if size == 4 && own == 0 && !self.long_mode && image & Rflags::VM.bits() != 0 {
            return self.iret_to_virtual_8086(stack, frame, io);
        }
        let selector = Selector(cs as u16);
        let code = self.return_code_segment(selector, io)?;
        let cpl = selector.rpl();
        let to_64 = self.long_mode && code.attributes.is_long();
        let mut outer = None;
        if cpl > own || self.in_64_bit_mode() {
            let mut frame = [0; 2];
            self.pop_frame(&mut stack, &mut frame, size, io)?;
            let segment = self.return_stack_segment(Selector(frame[1] as u16), cpl, to_64, io)?;
            outer = Some((frame[0], segment));
        }
        self.check_target(&code, rip, 0)?;
        // Everything is checked.
        let mut mask = COMMON;
        if size != 2 {
            mask |= Rflags::RF | Rflags::AC | Rflags::ID;
        }
        if own <= self.state.rflags.iopl() {
            mask |= Rflags::IF;
        }
        if own == 0 {
            mask |= Rflags::IOPL;
            if size != 2 {
                mask |= Rflags::VIF | Rflags::VIP;
            }
        }
        let image_rf = size != 2 && image & Rflags::RF.bits() != 0;
        self.commit_return(code, rip, stack, outer);
        self.load_flags(image, mask);
        self.state.rflags.set(Rflags::RF, image_rf);
        Ok(())
    }

    /// IRET from ring 0 to virtual-8086 mode (SDM 3B 20.2.5).
    fn iret_to_virtual_8086(&mut self, mut stack: Stack, frame: [u64; 3], io: &mut dyn Platform) -> Step {
        let mut rest = [0; 6];
        self.pop_frame(&mut stack, &mut rest, 4, io)?;
        let [ip, cs, image] = frame;
        let [sp, ss, es, ds, fs, gs] = rest;
        if ip > 0xffff {
            return Err(Exception::GP0.into());
        }
        self.state.cpl = 3;
        for (slot, selector) in
            [(seg::CS, cs), (seg::SS, ss), (seg::ES, es), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)]
        {
            self.state.segments[slot] = virtual_segment(selector as u16);
        }
        self.regs[4] = sp & 0xffff_ffff;
        self.rip = ip;
        self.load_flags(image, Rflags::all() - Rflags::ONE);
        Ok(())
    }

    /// The code segment that IRET and RETF go to, checked; its selector's RPL is the new CPL.
    pub(super) fn return_code_segment(
        &mut self,
        selector: Selector,
        io: &mut dyn Platform,
    ) -> Result<Segment, Stop> {
        if selector.is_null() {
            return Err(Exception::GP0.into());
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, 0, io)?;
        let attributes = descriptor.raw.attributes();
        let privilege_bad = selector.rpl() < self.cpl()
            || if attributes.is_conforming() {
                attributes.dpl() > selector.rpl()
            } else {
                attributes.dpl() != selector.rpl()
            };
        let width_bad = self.long_mode && attributes.is_long() && attributes.is_big();
        if !attributes.is_code() || privilege_bad || width_bad {
            return Err(gp(selector));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
        }
        Ok(Segment::from_descriptor(selector, self.mark_accessed(descriptor, io)?))
    }

    /// The stack segment that goes with a return to privilege `cpl`.
    pub(super) fn return_stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        to_64: bool,
        io: &mut dyn Platform,
    ) -> Result<Segment, Stop> {
        self.stack_segment(selector, cpl, to_64, Vector::GeneralProtection, 0, io)
    }

    /// Puts a far return in force: CS, RIP, and either the popped stack or, for an outer return, the one given.
    pub(super) fn commit_return(
        &mut self,
        code: Segment,
        rip: u64,
        stack: Stack,
        outer: Option<(u64, Segment)>,
    ) {
        let own = self.cpl();
        self.regs[4] = stack.merge(self.regs[4]);
        self.state.cpl = code.selector.rpl();
        self.state.segments[seg::CS] = code;
        self.rip = rip;
        if let Some((pointer, segment)) = outer {
            self.state.segments[seg::SS] = segment;
            let to_64 = self.long_mode && code.attributes.is_long();
            let mask = if to_64 { u64::MAX } else { Stack::mask_of(&segment) };
            self.regs[4] =
                if mask == 0xffff { self.regs[4] & !mask | pointer & mask } else { pointer & mask };
        }
        if self.state.cpl > own {
            self.drop_inner_segments();
        }
        self.update_mode();
    }
}

/// A segment register in virtual-8086 mode (SDM 3B 20.2.1).
pub(super) fn virtual_segment(selector: u16) -> Segment {
    Segment::real_mode(selector, Attributes(0xf3))
}
