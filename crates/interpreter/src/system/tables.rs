//! Descriptor-table and task registers: LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT, STR, and SMSW and LMSW
//! (SDM 3A 2.4, 2.8.1).

use super::segments::{Descriptor, gp, selector_fault};
use crate::cpu::{Cpu, Step};
use crate::op::Op;
use engine::Platform;
use iced_x86::{Mnemonic, OpKind};
use x86::control::{cr0, cr4};
use x86::descriptor::{RawDescriptor, Selector, system};
use x86::state::{Segment, TableRegister};
use x86::{Exception, Vector};

impl Cpu {
    /// `#GP(0)` unless at CPL 0.
    #[inline]
    pub(super) fn require_cpl0(&self) -> Step {
        if self.cpl() == 0 { Ok(()) } else { Err(Exception::GP0.into()) }
    }

    /// `#GP(0)` for what CR4.UMIP denies to user code (SDM 3A 2.5).
    fn require_umip(&self) -> Step {
        let denied = self.state.cr4 & cr4::UMIP != 0 && self.cpl() > 0;
        if denied { Err(Exception::GP0.into()) } else { Ok(()) }
    }
}

/// LGDT, LIDT.
pub(super) fn load_table(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    super::serialize();
    cpu.require_cpl0()?;
    let at = cpu.effective_address(op);
    let limit: u16 = cpu.read(op.segment, at, io)?;
    let at = at.wrapping_add(2) & op.address_mask;
    let base = if cpu.in_64_bit_mode() {
        cpu.read::<u64>(op.segment, at, io)?
    } else {
        let base = u64::from(cpu.read::<u32>(op.segment, at, io)?);
        // With 16-bit operands the base has 24 bits.
        let small =
            matches!(op.instruction().code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16);
        if small { base & 0xff_ffff } else { base }
    };
    if cpu.in_64_bit_mode() && !cpu.is_canonical(base) {
        return Err(Exception::GP0.into());
    }
    let table = TableRegister { base, limit };
    if op.instruction().mnemonic() == Mnemonic::Lgdt {
        cpu.state.gdtr = table;
    } else {
        cpu.state.idtr = table;
    }
    Ok(())
}

/// SGDT, SIDT.
pub(super) fn store_table(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    cpu.require_umip()?;
    let table = if op.instruction().mnemonic() == Mnemonic::Sgdt { cpu.state.gdtr } else { cpu.state.idtr };
    let at = cpu.effective_address(op);
    let size = if cpu.in_64_bit_mode() { 8 } else { 4 };
    let second = at.wrapping_add(2) & op.address_mask;
    let first = cpu.place_for_write(op.segment, at, 2, io)?;
    let second = cpu.place_for_write(op.segment, second, size, io)?;
    cpu.store(&first, 2, table.limit.into(), io);
    cpu.store(&second, size, table.base, io);
    Ok(())
}

/// LLDT.
pub(super) fn lldt(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.protected {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let selector = Selector(cpu.operand(op, 0, io)? as u16);
    if selector.is_null() {
        cpu.state.ldtr = Segment { selector, ..Segment::default() };
        return Ok(());
    }
    if selector.is_local() {
        return Err(gp(selector));
    }
    let (segment, Descriptor { raw, .. }) = cpu.system_segment(selector, io)?;
    if raw.attributes().is_code_or_data() || raw.attributes().kind() != system::LDT {
        return Err(gp(selector));
    }
    if !raw.attributes().is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    cpu.state.ldtr = segment;
    Ok(())
}

/// The busy bit, in a TSS descriptor's byte of type (SDM 3A 7.2.2).
pub(super) const BUSY: u8 = 1 << 1;

/// LTR.
pub(super) fn ltr(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.protected {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let selector = Selector(cpu.operand(op, 0, io)? as u16);
    if selector.is_null() {
        return Err(Exception::GP0.into());
    }
    if selector.is_local() {
        return Err(gp(selector));
    }
    let (mut segment, Descriptor { raw, at }) = cpu.system_segment(selector, io)?;
    let attributes = raw.attributes();
    let available = match attributes.kind() {
        system::TSS => true,
        system::TSS16 => !cpu.long_mode,
        _ => false,
    };
    if attributes.is_code_or_data() || !available {
        return Err(gp(selector));
    }
    if !attributes.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, 0));
    }
    let place = cpu.type_byte(at, io)?;
    // Of two vCPUs that load one TSS at the same time only one may find it available.
    if cpu.modify::<u8>(&place, true, io, |byte| byte | BUSY) & BUSY != 0 {
        return Err(gp(selector));
    }
    segment.attributes = RawDescriptor(raw.0 | u64::from(BUSY) << 40).attributes();
    cpu.state.tr = segment;
    Ok(())
}

impl Cpu {
    /// The register that a GDT system descriptor gives, which has 16 bytes in long mode.
    fn system_segment(
        &mut self,
        selector: Selector,
        io: &mut dyn Platform,
    ) -> Result<(Segment, Descriptor), crate::cpu::Stop> {
        let descriptor = self.descriptor(selector, Vector::GeneralProtection, 0, io)?;
        let mut segment = Segment::from_descriptor(selector, descriptor.raw);
        if self.long_mode {
            let high = self.descriptor_high(selector, Vector::GeneralProtection, 0, io)?;
            segment.base |= high << 32;
            if high >> 40 & 0x1f != 0 || !self.is_canonical(segment.base) {
                return Err(gp(selector));
            }
        }
        Ok((segment, descriptor))
    }
}

/// SLDT, STR, SMSW: 16 bits to memory, the operand's width to a register.
pub(super) fn store_word(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let mnemonic = op.instruction().mnemonic();
    if mnemonic != Mnemonic::Smsw && !cpu.protected {
        return Err(Exception::UD.into());
    }
    cpu.require_umip()?;
    let value = match mnemonic {
        Mnemonic::Sldt => cpu.state.ldtr.selector.0.into(),
        Mnemonic::Str => cpu.state.tr.selector.0.into(),
        _ => cpu.state.cr0,
    };
    if op.instruction().op0_kind() == OpKind::Memory {
        return cpu.write_memory(op, value as u16, io);
    }
    cpu.set_operand(op, 0, value, io)
}

/// LMSW: loads PE, MP, EM and TS; never clears PE (SDM 2A LMSW).
pub(super) fn lmsw(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    cpu.require_cpl0()?;
    const LOADED: u64 = cr0::MP | cr0::EM | cr0::TS;
    let value = cpu.operand(op, 0, io)?;
    let old = cpu.state.cr0;
    cpu.write_cr0(old & !LOADED | value & (LOADED | cr0::PE), io)
}
