//! Segment registers: descriptors and their checks, MOV, PUSH, POP, LDS and its kin, LAR, LSL, VERR, VERW, ARPL
//! (SDM 3A chapters 3 and 5).
//!
//! The loaders here give the new register and commit nothing but the descriptor's accessed bit; callers commit when all else
//! is known to succeed.

use crate::access::{NO_SEGMENT, Place};
use crate::cpu::{CodeSize, Cpu, Step, Stop};
use crate::op::{Op, segment_slot};
use crate::walk::{Actor, Intent};
use engine::Platform;
use iced_x86::Register;
use x86::descriptor::{Attributes, RawDescriptor, Selector, system};
use x86::state::{Segment, seg};
use x86::{Exception, Vector};

/// A descriptor and where it lies (its linear address).
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) raw: RawDescriptor,
    pub(super) at: u64,
}

/// A fault with a selector as its error code. `ext` is the EXT bit, 0 or 1 (SDM 3A 6.13).
pub(super) fn selector_fault(vector: Vector, selector: Selector, ext: u32) -> Stop {
    Exception::with_code(vector, selector.error_code() | ext).into()
}

/// `#GP` with a selector as its error code.
pub(super) fn gp(selector: Selector) -> Stop {
    selector_fault(Vector::GeneralProtection, selector, 0)
}

impl Cpu {
    /// Linear address of a descriptor of `bytes` bytes; `vector` where it is outside of its table.
    fn descriptor_address(
        &self,
        selector: Selector,
        bytes: u64,
        vector: Vector,
        ext: u32,
    ) -> Result<u64, Stop> {
        let (base, limit) = if selector.is_local() {
            let ldtr = &self.state.ldtr;
            if !ldtr.attributes.is_present() {
                return Err(selector_fault(vector, selector, ext));
            }
            (ldtr.base, u64::from(ldtr.limit))
        } else {
            (self.state.gdtr.base, u64::from(self.state.gdtr.limit))
        };
        if selector.offset() + bytes - 1 > limit {
            return Err(selector_fault(vector, selector, ext));
        }
        let at = base.wrapping_add(selector.offset());
        Ok(if self.long_mode { at } else { at & 0xffff_ffff })
    }

    /// Reads the descriptor that a selector names; `vector` where it is outside of its table.
    pub(super) fn descriptor(
        &mut self,
        selector: Selector,
        vector: Vector,
        ext: u32,
        io: &mut dyn Platform,
    ) -> Result<Descriptor, Stop> {
        let at = self.descriptor_address(selector, 8, vector, ext)?;
        let raw = RawDescriptor(self.read_system(at, 8, io)?);
        Ok(Descriptor { raw, at })
    }

    /// The second half of a 16-byte system descriptor (SDM 3A figure 7-4).
    pub(super) fn descriptor_high(
        &mut self,
        selector: Selector,
        vector: Vector,
        ext: u32,
        io: &mut dyn Platform,
    ) -> Result<u64, Stop> {
        let at = self.descriptor_address(selector, 16, vector, ext)?;
        self.read_system(at.wrapping_add(8), 8, io)
    }

    /// Translates the byte of a descriptor that has its type, to be changed by [`Cpu::modify`]: another vCPU may be changing
    /// the same descriptor, so bits are set and cleared one by one and atomically (SDM 3A 8.1.2.1).
    pub(super) fn type_byte(&mut self, descriptor: u64, io: &mut dyn Platform) -> Result<Place, Stop> {
        let at = descriptor.wrapping_add(5);
        self.place_linear(NO_SEGMENT, at, 1, Intent::Write, Actor::Implicit, io)
    }

    /// Sets the accessed bit of a code or data descriptor (SDM 3A 3.4.5.1) and gives the descriptor as it is then.
    pub(super) fn mark_accessed(
        &mut self,
        descriptor: Descriptor,
        io: &mut dyn Platform,
    ) -> Result<RawDescriptor, Stop> {
        const ACCESSED: u64 = 1 << 40;
        if descriptor.raw.0 & ACCESSED == 0 {
            let place = self.type_byte(descriptor.at, io)?;
            self.modify::<u8>(&place, true, io, |byte| byte | 1);
        }
        Ok(RawDescriptor(descriptor.raw.0 | ACCESSED))
    }

    /// What real mode and virtual-8086 mode make of a selector (SDM 3B 20.1.1). Real mode keeps limit and attributes.
    pub(super) fn real_segment(&self, slot: usize, selector: u16) -> Segment {
        let old = self.state.segments[slot];
        let limit = if self.virtual_8086() { 0xffff } else { old.limit };
        Segment { base: u64::from(selector) << 4, limit, selector: Selector(selector), ..old }
    }

    /// The register that loading `selector` into a data or stack segment register would give, in any mode.
    pub(super) fn segment_for(
        &mut self,
        slot: usize,
        selector: u16,
        io: &mut dyn Platform,
    ) -> Result<Segment, Stop> {
        if !self.protected {
            return Ok(self.real_segment(slot, selector));
        }
        let selector = Selector(selector);
        if slot == seg::SS {
            let flat = self.code_size == CodeSize::Bits64;
            return self.stack_segment(selector, self.cpl(), flat, Vector::GeneralProtection, 0, io);
        }
        self.data_segment(selector, self.cpl(), Vector::GeneralProtection, 0, io)
    }

    /// A segment for DS, ES, FS or GS, checked at privilege `cpl`; `vector` is `#GP`, or `#TS` in a task switch.
    pub(super) fn data_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        vector: Vector,
        ext: u32,
        io: &mut dyn Platform,
    ) -> Result<Segment, Stop> {
        if selector.is_null() {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let descriptor = self.descriptor(selector, vector, ext, io)?;
        let attributes = descriptor.raw.attributes();
        let hidden =
            !attributes.is_conforming() && (selector.rpl() > attributes.dpl() || cpl > attributes.dpl());
        if !attributes.is_code_or_data() || !attributes.is_readable() || hidden {
            return Err(selector_fault(vector, selector, ext));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector, ext));
        }
        Ok(Segment::from_descriptor(selector, self.mark_accessed(descriptor, io)?))
    }

    /// A segment for SS at privilege `cpl`. `flat`: code will run in 64-bit mode, where SS may be null unless `cpl` is 3.
    pub(super) fn stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        flat: bool,
        vector: Vector,
        ext: u32,
        io: &mut dyn Platform,
    ) -> Result<Segment, Stop> {
        if selector.is_null() {
            if flat && cpl != 3 && selector.rpl() == cpl {
                return Ok(null_stack(selector));
            }
            return Err(Exception::with_code(vector, ext).into());
        }
        let descriptor = self.descriptor(selector, vector, ext, io)?;
        let attributes = descriptor.raw.attributes();
        if selector.rpl() != cpl || !attributes.is_writable() || attributes.dpl() != cpl {
            return Err(selector_fault(vector, selector, ext));
        }
        if !attributes.is_present() {
            return Err(selector_fault(Vector::StackFault, selector, ext));
        }
        Ok(Segment::from_descriptor(selector, self.mark_accessed(descriptor, io)?))
    }

    /// Puts a register in force.
    pub(super) fn set_segment(&mut self, slot: usize, segment: Segment) {
        self.state.segments[slot] = segment;
        self.update_mode();
    }

    /// Makes data segments null that the outer privilege level may not use (SDM 2A IRET, RETURN-TO-OUTER-PRIVILEGE-LEVEL).
    /// Bases stay: 64-bit code finds its FS and GS there under null selectors.
    pub(super) fn drop_inner_segments(&mut self) {
        let cpl = self.cpl();
        for slot in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.state.segments[slot];
            let attributes = segment.attributes;
            if attributes.is_present() && !attributes.is_conforming() && attributes.dpl() < cpl {
                *segment = Segment { base: segment.base, ..Segment::default() };
            }
        }
    }
}

/// SS holding a null selector, as 64-bit mode leaves it after a change of privilege.
pub(super) fn null_stack(selector: Selector) -> Segment {
    Segment { selector, attributes: Attributes(0), ..Segment::default() }
}

/// MOV to a segment register (SDM 2B MOV).
pub(super) fn mov_to_segment(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let register = op.instruction().op0_register();
    if register == Register::CS {
        return Err(Exception::UD.into());
    }
    let slot = usize::from(segment_slot(register));
    let selector = cpu.operand(op, 1, io)? as u16;
    let segment = cpu.segment_for(slot, selector, io)?;
    if slot == seg::SS {
        cpu.state.mov_ss_shadow = true;
    }
    cpu.set_segment(slot, segment);
    Ok(())
}

/// MOV from a segment register: 16 bits to memory, zero-extended to a wider register.
pub(super) fn mov_from_segment(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let slot = usize::from(segment_slot(op.instruction().op1_register()));
    let selector = cpu.state.segments[slot].selector.0;
    cpu.set_operand(op, 0, selector.into(), io)
}

/// PUSH of a segment register. With 32-bit operands recent Intel CPUs write only the selector (SDM 2B PUSH).
pub(super) fn push_segment(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let slot = usize::from(segment_slot(op.instruction().op0_register()));
    let selector = cpu.state.segments[slot].selector.0;
    match op.instruction().stack_pointer_increment() {
        -2 => cpu.push(selector, io),
        -4 if cpu.is_intel() => {
            let mask = cpu.stack_mask;
            let old = cpu.regs[4];
            let new = old.wrapping_sub(4) & mask;
            cpu.write(seg::SS as u8, new, selector, io)?;
            cpu.regs[4] = old & !mask | new;
            Ok(())
        }
        -4 => cpu.push(u32::from(selector), io),
        _ => cpu.push(u64::from(selector), io),
    }
}

/// POP of a segment register (SDM 2B POP).
pub(super) fn pop_segment(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let slot = usize::from(segment_slot(op.instruction().op0_register()));
    let bytes = op.instruction().stack_pointer_increment().unsigned_abs().into();
    let selector: u16 = cpu.peek(0, io)?;
    let segment = cpu.segment_for(slot, selector, io)?;
    cpu.release_stack(bytes);
    if slot == seg::SS {
        cpu.state.mov_ss_shadow = true;
    }
    cpu.set_segment(slot, segment);
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: a far pointer from memory.
pub(super) fn load_far_pointer(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    use iced_x86::Mnemonic;
    let instruction = op.instruction();
    let slot = match instruction.mnemonic() {
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        _ => seg::SS,
    };
    let register = instruction.op0_register();
    let (offset, selector) = cpu.far_pointer(op, register.size() as u64, io)?;
    let segment = cpu.segment_for(slot, selector, io)?;
    cpu.write_register(register, offset);
    cpu.set_segment(slot, segment);
    Ok(())
}

impl Cpu {
    /// Reads the op's memory operand as a far pointer whose offset has `size` bytes.
    pub(super) fn far_pointer(
        &mut self,
        op: &Op,
        size: u64,
        io: &mut dyn Platform,
    ) -> Result<(u64, u16), Stop> {
        let at = self.effective_address(op);
        let offset = match size {
            2 => self.read::<u16>(op.segment, at, io)?.into(),
            4 => self.read::<u32>(op.segment, at, io)?.into(),
            _ => self.read::<u64>(op.segment, at, io)?,
        };
        let selector = self.read::<u16>(op.segment, at.wrapping_add(size) & op.address_mask, io)?;
        Ok((offset, selector))
    }

    /// Sets ZF and leaves the other flags alone.
    fn set_zf(&mut self, zf: bool) {
        let mut flags = self.flags.to_rflags();
        flags.set(x86::Rflags::ZF, zf);
        self.flags = crate::flags::Flags::from_rflags(flags);
    }

    /// The descriptor a selector names, if there is one; only page faults are faults.
    fn visible_descriptor(
        &mut self,
        selector: Selector,
        io: &mut dyn Platform,
    ) -> Result<Option<Descriptor>, Stop> {
        if selector.is_null() {
            return Ok(None);
        }
        match self.descriptor_address(selector, 8, Vector::GeneralProtection, 0) {
            Ok(at) => Ok(Some(Descriptor { raw: RawDescriptor(self.read_system(at, 8, io)?), at })),
            Err(_) => Ok(None),
        }
    }
}

/// LAR and LSL: they look at a descriptor if privilege lets them and say in ZF whether it did (SDM 2A LAR, LSL).
pub(super) fn lar_lsl(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    use iced_x86::Mnemonic;
    if !cpu.protected {
        return Err(Exception::UD.into());
    }
    let lar = op.instruction().mnemonic() == Mnemonic::Lar;
    let selector = Selector(cpu.operand(op, 1, io)? as u16);
    let mut found = cpu.visible_descriptor(selector, io)?;
    if let Some(descriptor) = found {
        let attributes = descriptor.raw.attributes();
        let kind_ok = attributes.is_code_or_data()
            || match attributes.kind() {
                system::TSS16 | system::TSS16_BUSY => !cpu.long_mode,
                system::LDT | system::TSS | system::TSS_BUSY => true,
                system::CALL_GATE16 | system::TASK_GATE => lar && !cpu.long_mode,
                system::CALL_GATE => lar,
                _ => false,
            };
        let hidden = !attributes.is_conforming()
            && (selector.rpl() > attributes.dpl() || cpu.cpl() > attributes.dpl());
        if !kind_ok || hidden {
            found = None;
        }
    }
    if let Some(descriptor) = found {
        let value = if lar { descriptor.raw.0 >> 32 & 0x00ff_ff00 } else { descriptor.raw.limit().into() };
        cpu.set_operand(op, 0, value, io)?;
    }
    cpu.set_zf(found.is_some());
    Ok(())
}

/// VERR and VERW.
pub(super) fn verify(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.protected {
        return Err(Exception::UD.into());
    }
    let write = op.instruction().mnemonic() == iced_x86::Mnemonic::Verw;
    let selector = Selector(cpu.operand(op, 0, io)? as u16);
    let allowed = cpu.visible_descriptor(selector, io)?.is_some_and(|descriptor| {
        let attributes = descriptor.raw.attributes();
        let hidden = !attributes.is_conforming()
            && (selector.rpl() > attributes.dpl() || cpu.cpl() > attributes.dpl());
        let kind_ok = if write { attributes.is_writable() } else { attributes.is_readable() };
        attributes.is_code_or_data() && kind_ok && !hidden
    });
    cpu.set_zf(allowed);
    Ok(())
}

/// ARPL (SDM 2A ARPL).
pub(super) fn arpl(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.protected {
        return Err(Exception::UD.into());
    }
    let source = cpu.operand(op, 1, io)? & 3;
    if op.instruction().op0_kind() == iced_x86::OpKind::Memory {
        let place = cpu.memory_place::<u16>(op, io)?;
        let old = cpu.load(&place, 2, io);
        let lower = old & 3 < source;
        if lower {
            cpu.store(&place, 2, old & !3 | source, io);
        }
        cpu.set_zf(lower);
        return Ok(());
    }
    let old = cpu.operand(op, 0, io)? & 0xffff;
    let lower = old & 3 < source;
    if lower {
        // Only 16 bits are written, whatever the register's name.
        let register = op.instruction().op0_register();
        let (index, _) = crate::cpu::register_slot(register);
        cpu.set_reg(index, 0, (old & !3 | source) as u16);
    }
    cpu.set_zf(lower);
    Ok(())
}
