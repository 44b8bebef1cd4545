//! Far CALL, JMP and RET: real mode, code segments, call gates, tasks (SDM 2A CALL, JMP, 2B RET; 3A 5.8).

use super::segments::{Descriptor, gp, null_stack, selector_fault};
use super::stack::Stack;
use super::tasks::{Nesting, Switch};
use crate::cpu::{Cpu, Step, Stop};
use crate::op::Op;
use engine::Platform;
use iced_x86::{Code, OpKind};
use x86::descriptor::{RawDescriptor, Selector, system};
use x86::state::{Segment, seg};
use x86::{Exception, Rflags, Vector};

/// Where a far CALL or JMP wants to go.
#[derive(Clone, Copy)]
struct Far {
    selector: Selector,
    offset: u64,
    /// Operand size in bytes.
    size: u64,
    /// A CALL, which returns here.
    from: Option<u64>,
}

/// Far CALL and JMP, direct and indirect.
pub(super) fn transfer(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let (offset, selector, size) = match instruction.op0_kind() {
        OpKind::FarBranch16 => (instruction.far_branch16().into(), instruction.far_branch_selector(), 2),
        OpKind::FarBranch32 => (instruction.far_branch32().into(), instruction.far_branch_selector(), 4),
        _ => {
            let size = match instruction.code() {
                Code::Call_m1616 | Code::Jmp_m1616 => 2,
                Code::Call_m1632 | Code::Jmp_m1632 => 4,
                _ => 8,
            };
            let (offset, selector) = cpu.far_pointer(op, size, io)?;
            (offset, selector, size)
        }
    };
    let next = cpu.next_rip(op);
    let from = (instruction.is_call_far() || instruction.is_call_far_indirect()).then_some(next);
    let far = Far { selector: Selector(selector), offset, size, from };
    if cpu.protected { cpu.far_protected(far, next, io) } else { cpu.far_real(far, io) }
}

impl Cpu {
    /// In real and virtual-8086 mode.
    fn far_real(&mut self, far: Far, io: &mut dyn Platform) -> Step {
        if far.offset > u64::from(self.state.segments[seg::CS].limit) {
            return Err(Exception::GP0.into());
        }
        self.push_return(far.from, far.size, io)?;
        self.state.segments[seg::CS] = self.real_segment(seg::CS, far.selector.0);
        self.rip = far.offset;
        self.update_mode();
        Ok(())
    }

    /// Pushes CS and the return address, where it is a call, on the current stack.
    fn push_return(&mut self, from: Option<u64>, size: u64, io: &mut dyn Platform) -> Step {
        let Some(rip) = from else { return Ok(()) };
        let mut stack = self.current_stack(0);
        let selector = self.state.segments[seg::CS].selector.0;
        self.push_frame(&mut stack, &[selector.into(), rip], size, io)?;
        self.regs[4] = stack.merge(self.regs[4]);
        Ok(())
    }

    fn far_protected(&mut self, far: Far, next: u64, io: &mut dyn Platform) -> Step {
        let selector = far.selector;
        if selector.is_null() {
            return Err(Exception::GP0.into());
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, 0, io)?;
        let attributes = descriptor.raw.attributes();
        if attributes.is_code_or_data() {
            return self.far_code(far, descriptor, io);
        }
        let privileged_out = attributes.dpl() < self.cpl() || attributes.dpl() < selector.rpl();
        match attributes.kind() {
            system::CALL_GATE => {}
            system::CALL_GATE16 if !self.long_mode => {}
            system::TASK_GATE | system::TSS | system::TSS16 | system::TSS_BUSY | system::TSS16_BUSY
                if !self.long_mode => {}
            _ => return Err(gp(selector)),
        }
        if privileged_out {
            return Err(gp(selector));
        }
        if !attributes.is_present() && !matches!(attributes.kind(), system::TSS_BUSY | system::TSS16_BUSY) {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
        }
        if matches!(attributes.kind(), system::CALL_GATE | system::CALL_GATE16) {
            return self.far_call_gate(far, descriptor.raw, io);
        }
        let nesting = if far.from.is_some() { Nesting::Nested } else { Nesting::Jump };
        // A JMP ends the old task, which is then not nested any more.
        let flags = if far.from.is_some() { self.rflags() } else { self.rflags() - Rflags::NT };
        let switch = Switch { selector, nesting, code: None, ext: 0, flags };
        self.rip = next;
        let begun = if attributes.kind() == system::TASK_GATE {
            self.switch_through_gate(Switch { selector: descriptor.raw.gate_selector(), ..switch }, io)?
        } else {
            self.switch_directly(switch, descriptor.raw, io)?
        };
        match begun {
            Some(exception) => self.begin_task_with(exception, io),
            None => Ok(()),
        }
    }

    /// To a code segment, at the same privilege.
    fn far_code(&mut self, far: Far, descriptor: Descriptor, io: &mut dyn Platform) -> Step {
        let selector = far.selector;
        let attributes = descriptor.raw.attributes();
        let cpl = self.cpl();
        let privilege_bad = if attributes.is_conforming() {
            attributes.dpl() > cpl
        } else {
            selector.rpl() > cpl || attributes.dpl() != cpl
        };
        let width_bad = self.long_mode && attributes.is_long() && attributes.is_big();
        if !attributes.is_code() || privilege_bad || width_bad {
            return Err(gp(selector));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
        }
        let raw = self.mark_accessed(descriptor, io)?;
        let code = Segment::from_descriptor(selector.with_rpl(cpl), raw);
        self.check_target(&code, far.offset, 0)?;
        self.push_return(far.from, far.size, io)?;
        self.rip = far.offset;
        self.set_segment(seg::CS, code);
        Ok(())
    }

    /// Through a call gate that may be used (SDM 3A 5.8.3 to 5.8.5).
    fn far_call_gate(&mut self, far: Far, gate: RawDescriptor, io: &mut dyn Platform) -> Step {
        let selector = gate.gate_selector();
        let wide = gate.attributes().kind() == system::CALL_GATE;
        let mut target = if wide { gate.gate_offset() } else { gate.gate_offset() & 0xffff };
        if self.long_mode {
            let high = self.descriptor_high(far.selector, Vector::GeneralProtection, 0, io)?;
            // The type field of the upper half must be zero (SDM 3A 5.8.3.1).
            if high >> 40 & 0x1f != 0 {
                return Err(gp(far.selector));
            }
            target |= high << 32;
        }
        if selector.is_null() {
            return Err(Exception::GP0.into());
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, 0, io)?;
        let attributes = descriptor.raw.attributes();
        let own = self.cpl();
        let call = far.from.is_some();
        let privilege_bad =
            attributes.dpl() > own || !call && !attributes.is_conforming() && attributes.dpl() != own;
        let width_bad = self.long_mode && (!attributes.is_long() || attributes.is_big());
        if !attributes.is_code() || privilege_bad || width_bad {
            return Err(gp(selector));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
        }
        let raw = self.mark_accessed(descriptor, io)?;
        let cpl = if attributes.is_conforming() { own } else { attributes.dpl() };
        let code = Segment::from_descriptor(selector.with_rpl(cpl), raw);
        let size = if self.long_mode {
            8
        } else if wide {
            4
        } else {
            2
        };
        if !call || cpl == own {
            self.check_target(&code, target, 0)?;
            self.push_return(far.from, size, io)?;
        } else {
            self.enter_inner(far, gate, &code, target, size, io)?;
        }
        self.rip = target;
        self.set_segment(seg::CS, code);
        Ok(())
    }

    /// A call gate to more privilege: the new stack, with the old one's address and the parameters on it.
    fn enter_inner(
        &mut self,
        far: Far,
        gate: RawDescriptor,
        code: &Segment,
        target: u64,
        size: u64,
        io: &mut dyn Platform,
    ) -> Step {
        let cpl = code.selector.rpl();
        let mut frame = [0; 35];
        frame[0] = self.state.segments[seg::SS].selector.0.into();
        frame[1] = self.regs[4];
        let mut count = 2;
        let mut stack = if self.long_mode {
            let pointer = self.long_tss_stack(cpl.into(), 0, io)?;
            Stack { segment: null_stack(Selector(cpl.into())), pointer, mask: u64::MAX, code: 0, cpl }
        } else {
            let inner = self.inner_stack(cpl, 0, io)?;
            let parameters = usize::from(gate.gate_parameters());
            let mut old = self.current_stack(0);
            // On the old stack the last parameter lies lowest; it is pushed last.
            self.pop_frame(&mut old, &mut frame[2..2 + parameters], size, io)?;
            frame[2..2 + parameters].reverse();
            count += parameters;
            inner
        };
        self.check_target(code, target, 0)?;
        frame[count] = self.state.segments[seg::CS].selector.0.into();
        frame[count + 1] = far.from.unwrap_or_default();
        self.push_frame(&mut stack, &frame[..count + 2], size, io)?;
        self.regs[4] = stack.merge(self.regs[4]);
        self.state.segments[seg::SS] = stack.segment;
        self.state.cpl = cpl;
        Ok(())
    }
}

/// Far RET, with or without bytes to release (SDM 2B RET).
pub(super) fn ret(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let instruction = op.instruction();
    let size = match instruction.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let release = if instruction.op_count() > 0 { op.imm & 0xffff } else { 0 };
    let mut stack = cpu.current_stack(0);
    let mut frame = [0; 2];
    cpu.pop_frame(&mut stack, &mut frame, size, io)?;
    let [rip, cs] = frame;
    stack.pointer = stack.pointer.wrapping_add(release);
    if !cpu.protected {
        if rip > u64::from(cpu.state.segments[seg::CS].limit) {
            return Err(Exception::GP0.into());
        }
        cpu.regs[4] = stack.merge(cpu.regs[4]);
        cpu.state.segments[seg::CS] = cpu.real_segment(seg::CS, cs as u16);
        cpu.rip = rip;
        cpu.update_mode();
        return Ok(());
    }
    cpu.ret_protected(rip, Selector(cs as u16), stack, size, release, io)
}

impl Cpu {
    fn ret_protected(
        &mut self,
        rip: u64,
        selector: Selector,
        mut stack: Stack,
        size: u64,
        release: u64,
        io: &mut dyn Platform,
    ) -> Result<(), Stop> {
        let code = self.return_code_segment(selector, io)?;
        let cpl = selector.rpl();
        let mut outer = None;
        if cpl > self.cpl() {
            let mut frame = [0; 2];
            self.pop_frame(&mut stack, &mut frame, size, io)?;
            let to_64 = self.long_mode && code.attributes.is_long();
            let segment = self.return_stack_segment(Selector(frame[1] as u16), cpl, to_64, io)?;
            outer = Some((frame[0].wrapping_add(release), segment));
        }
        self.check_target(&code, rip, 0)?;
        self.commit_return(code, rip, stack, outer);
        Ok(())
    }
}
