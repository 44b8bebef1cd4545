//! Interrupt, trap and task gates: the IDT in protected mode, from virtual-8086 mode, and in long mode
//! (SDM 3A 6.12, 6.14).

use super::deliver::Source;
use super::segments::{null_stack, selector_fault};
use super::stack::Stack;
use super::tasks::{Nesting, Switch};
use crate::cpu::{Cpu, Step, Stop};
use engine::Platform;
use x86::descriptor::{RawDescriptor, Selector, system};
use x86::state::{Segment, seg};
use x86::{Exception, Rflags, Vector};

impl Cpu {
    /// The gate of `vector`, after the checks of limit, type, software privilege and presence; with where it lies.
    fn gate(
        &mut self,
        vector: u8,
        bytes: u64,
        source: Source,
        io: &mut dyn Platform,
    ) -> Result<(RawDescriptor, u64), Stop> {
        // IDT bit and EXT (SDM 3A figure 6-6).
        let code = u32::from(vector) * 8 + 2 + source.ext();
        let bad = || Stop::Fault(Exception::with_code(Vector::GeneralProtection, code));
        let offset = u64::from(vector) * bytes;
        if offset + bytes - 1 > u64::from(self.state.idtr.limit) {
            return Err(bad());
        }
        let at = self.state.idtr.base.wrapping_add(offset);
        let gate = RawDescriptor(self.read_system(at, 8, io)?);
        let attributes = gate.attributes();
        let known = match attributes.kind() {
            system::INTERRUPT_GATE | system::TRAP_GATE => true,
            system::TASK_GATE | system::INTERRUPT_GATE16 | system::TRAP_GATE16 => !self.long_mode,
            _ => false,
        };
        if attributes.is_code_or_data() || !known {
            return Err(bad());
        }
        if source == Source::Software && attributes.dpl() < self.cpl() {
            return Err(bad());
        }
        if !attributes.is_present() {
            return Err(Exception::with_code(Vector::SegmentNotPresent, code).into());
        }
        Ok((gate, at))
    }

    /// The code segment that a gate names, checked against CPL; the register still carries the gate's RPL.
    fn gate_code(&mut self, selector: Selector, ext: u32, io: &mut dyn Platform) -> Result<Segment, Stop> {
        if selector.is_null() {
            return Err(Exception::with_code(Vector::GeneralProtection, ext).into());
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, ext, io)?;
        let attributes = descriptor.raw.attributes();
        let width_bad = self.long_mode && (!attributes.is_long() || attributes.is_big());
        if !attributes.is_code() || attributes.dpl() > self.cpl() || width_bad {
            return Err(selector_fault(Vector::GeneralProtection, selector, ext));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
        }
        Ok(Segment::from_descriptor(selector, self.mark_accessed(descriptor, io)?))
    }

    /// Flags that entering a handler clears (SDM 3A 6.12.1.2, 6.12.1.3).
    fn clear_flags_for_handler(&mut self, gate: RawDescriptor) {
        self.state.rflags.remove(Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM);
        // Interrupt gates have even types.
        if gate.attributes().kind() & 1 == 0 {
            self.state.rflags.remove(Rflags::IF);
        }
    }

    /// Delivery in long mode (SDM 3A 6.14).
    pub(super) fn deliver_long(
        &mut self,
        vector: u8,
        code: Option<u32>,
        source: Source,
        flags: Rflags,
        io: &mut dyn Platform,
    ) -> Step {
        let ext = source.ext();
        let (gate, at) = self.gate(vector, 16, source, io)?;
        let high = self.read_system(at.wrapping_add(8), 8, io)?;
        let target = gate.gate_offset() | high << 32;
        let mut segment = self.gate_code(gate.gate_selector(), ext, io)?;
        let own = self.cpl();
        let cpl = if segment.attributes.is_conforming() { own } else { segment.attributes.dpl() };
        let ist = u64::from(gate.gate_ist());
        let old_stack = self.regs[4];
        let pointer = if ist != 0 {
            self.long_tss_stack(ist + 3, ext, io)?
        } else if cpl < own {
            self.long_tss_stack(cpl.into(), ext, io)?
        } else {
            old_stack
        };
        self.check_target(&segment, target, ext)?;
        let mut stack =
            Stack { segment: Segment::default(), pointer: pointer & !15, mask: u64::MAX, code: ext, cpl };
        let frame = [
            self.state.segments[seg::SS].selector.0.into(),
            old_stack,
            flags.bits(),
            self.state.segments[seg::CS].selector.0.into(),
            self.rip,
            code.unwrap_or(0).into(),
        ];
        let count = if code.is_some() { 6 } else { 5 };
        self.push_frame(&mut stack, &frame[..count], 8, io)?;

        self.regs[4] = stack.pointer;
        if cpl != own {
            self.state.segments[seg::SS] = null_stack(Selector(cpl.into()));
        }
        segment.selector = segment.selector.with_rpl(cpl);
        self.state.segments[seg::CS] = segment;
        self.state.cpl = cpl;
        self.rip = target;
        self.clear_flags_for_handler(gate);
        Ok(())
    }

    /// Delivery in protected and virtual-8086 mode (SDM 3A 6.12, 3B 20.3.1). `Some` as for a task switch.
    pub(super) fn deliver_protected(
        &mut self,
        vector: u8,
        code: Option<u32>,
        source: Source,
        flags: Rflags,
        io: &mut dyn Platform,
    ) -> Result<Option<Exception>, Stop> {
        let ext = source.ext();
        let (gate, _) = self.gate(vector, 8, source, io)?;
        if gate.attributes().kind() == system::TASK_GATE {
            let switch =
                Switch { selector: gate.gate_selector(), nesting: Nesting::Nested, code, ext, flags };
            return self.switch_through_gate(switch, io);
        }
        let wide = gate.attributes().kind() & 8 != 0;
        let size = if wide { 4 } else { 2 };
        let target = if wide { gate.gate_offset() } else { gate.gate_offset() & 0xffff };
        let selector = gate.gate_selector();
        let mut segment = self.gate_code(selector, ext, io)?;
        let own = self.cpl();
        let cpl = if segment.attributes.is_conforming() { own } else { segment.attributes.dpl() };
        let from_8086 = self.virtual_8086();
        if from_8086 && cpl != 0 {
            return Err(selector_fault(Vector::GeneralProtection, selector, ext));
        }
        let inner = cpl < own;
        let mut stack = if inner { self.inner_stack(cpl, ext, io)? } else { self.current_stack(ext) };
        self.check_target(&segment, target, ext)?;

        let mut frame = [0; 10];
        let mut count = 0;
        let mut add = |value: u64| {
            frame[count] = value;
            count += 1;
        };
        if from_8086 {
            for slot in [seg::GS, seg::FS, seg::DS, seg::ES] {
                add(self.state.segments[slot].selector.0.into());
            }
        }
        if inner {
            add(self.state.segments[seg::SS].selector.0.into());
            add(self.regs[4]);
        }
        add(flags.bits());
        add(self.state.segments[seg::CS].selector.0.into());
        add(self.rip);
        if let Some(code) = code {
            add(code.into());
        }
        self.push_frame(&mut stack, &frame[..count], size, io)?;

        self.regs[4] = stack.merge(self.regs[4]);
        if inner {
            self.state.segments[seg::SS] = stack.segment;
        }
        if from_8086 {
            for slot in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.state.segments[slot] = Segment::default();
            }
        }
        segment.selector = selector.with_rpl(cpl);
        self.state.segments[seg::CS] = segment;
        self.state.cpl = cpl;
        self.rip = target;
        self.clear_flags_for_handler(gate);
        Ok(None)
    }
}
