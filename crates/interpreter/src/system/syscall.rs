//! Fast system calls and the bases that go with them: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, RDFSBASE and its kin
//! (SDM 3A 5.8.7, 5.8.8). Where Intel's and AMD's CPUs differ, the guest's CPUID vendor decides.

use crate::cpu::{Cpu, Step};
use crate::op::Op;
use engine::Platform;
use iced_x86::Mnemonic;
use x86::control::{cr4, efer};
use x86::descriptor::{Attributes, Selector};
use x86::state::{Segment, seg};
use x86::{Exception, Rflags};

/// Flat code of a privilege level: present, readable, accessed, granular.
fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
    let width = if long { 1 << 13 } else { 1 << 14 };
    Segment {
        base: 0,
        limit: u32::MAX,
        attributes: Attributes(0x809b | u16::from(dpl) << 5 | width),
        selector: Selector(selector),
    }
}

/// A flat stack of a privilege level.
fn flat_stack(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        attributes: Attributes(0xc093 | u16::from(dpl) << 5),
        selector: Selector(selector),
    }
}

/// CS and SS as SYSCALL and the 64-bit SYSRET load them.
pub(crate) fn fast_segments(star: u64) -> ((Segment, Segment), (Segment, Segment)) {
    let (enter, leave) = ((star >> 32) as u16 & !3, (star >> 48) as u16);
    (
        (flat_code(enter, 0, true), flat_stack(enter.wrapping_add(8), 0)),
        (flat_code(leave.wrapping_add(16) | 3, 3, true), flat_stack(leave.wrapping_add(8) | 3, 3)),
    )
}

/// Flags that SYSRET loads: all but RF, VM and those reserved (SDM 2B SYSRET).
const SYSRET_FLAGS: u64 = 0x003c_7fd7;

impl Cpu {
    fn enter_flat(&mut self, code: Segment, stack: Segment, cpl: u8, rip: u64) {
        self.state.segments[seg::CS] = code;
        self.state.segments[seg::SS] = stack;
        self.state.cpl = cpl;
        self.rip = rip;
        self.update_mode();
    }
}

/// SYSCALL.
pub(super) fn syscall(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let state = &cpu.state;
    if state.efer & efer::SCE == 0 || !cpu.protected || cpu.is_intel() && !cpu.in_64_bit_mode() {
        return Err(Exception::UD.into());
    }
    let next = cpu.next_rip(op);
    let selector = (cpu.state.star >> 32) as u16 & !3;
    let stack = flat_stack(selector.wrapping_add(8), 0);
    if !cpu.long_mode {
        // AMD's legacy form.
        cpu.regs[1] = next;
        cpu.state.rflags.remove(Rflags::IF | Rflags::VM | Rflags::RF);
        let target = cpu.state.star & 0xffff_ffff;
        cpu.enter_flat(flat_code(selector, 0, false), stack, 0, target);
        return Ok(());
    }
    let target = if cpu.in_64_bit_mode() { cpu.state.lstar } else { cpu.state.cstar };
    let flags = cpu.rflags() - Rflags::RF;
    cpu.regs[1] = next;
    cpu.regs[11] = flags.bits();
    let kept = Rflags::from_bits_truncate(flags.bits() & !cpu.state.sfmask);
    cpu.set_rflags(kept);
    cpu.enter_flat(flat_code(selector, 0, true), stack, 0, target);
    Ok(())
}

/// SYSRET.
pub(super) fn sysret(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    let state = &cpu.state;
    if state.efer & efer::SCE == 0 || !cpu.protected || cpu.is_intel() && !cpu.in_64_bit_mode() {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let to_64 = op.instruction().mnemonic() == Mnemonic::Sysretq;
    let base = (cpu.state.star >> 48) as u16;
    let rip = if to_64 { cpu.regs[1] } else { cpu.regs[1] & 0xffff_ffff };
    // AMD's CPUs let the fetch fault, in user mode.
    if to_64 && cpu.is_intel() && !cpu.is_canonical(rip) {
        return Err(Exception::GP0.into());
    }
    if cpu.long_mode {
        let flags = Rflags::from_bits_truncate(cpu.regs[11] & SYSRET_FLAGS);
        cpu.set_rflags(flags);
    } else {
        cpu.state.rflags.insert(Rflags::IF);
    }
    let code = flat_code(if to_64 { base.wrapping_add(16) } else { base } | 3, 3, to_64);
    cpu.enter_flat(code, flat_stack(base.wrapping_add(8) | 3, 3), 3, rip);
    cpu.special |= crate::cpu::special::RECHECK;
    Ok(())
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    if !cpu.is_intel() && cpu.long_mode {
        return Err(Exception::UD.into());
    }
    let selector = cpu.state.sysenter_cs as u16 & !3;
    if !cpu.protected && !cpu.virtual_8086() || selector == 0 {
        return Err(Exception::GP0.into());
    }
    cpu.state.rflags.remove(Rflags::VM | Rflags::IF | Rflags::RF);
    let long = cpu.long_mode;
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[4] = cpu.state.sysenter_esp & mask;
    let rip = cpu.state.sysenter_eip & mask;
    cpu.enter_flat(flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0), 0, rip);
    Ok(())
}

/// SYSEXIT.
pub(super) fn sysexit(cpu: &mut Cpu, op: &Op, _: &mut dyn Platform) -> Step {
    if !cpu.is_intel() && cpu.long_mode {
        return Err(Exception::UD.into());
    }
    let selector = cpu.state.sysenter_cs as u16 & !3;
    if !cpu.protected || selector == 0 || cpu.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let to_64 = op.instruction().mnemonic() == Mnemonic::Sysexitq;
    let (rip, pointer) = (cpu.regs[2], cpu.regs[1]);
    let (code, stack) = if to_64 {
        if !cpu.is_canonical(rip) || !cpu.is_canonical(pointer) {
            return Err(Exception::GP0.into());
        }
        (selector.wrapping_add(32), selector.wrapping_add(40))
    } else {
        (selector.wrapping_add(16), selector.wrapping_add(24))
    };
    let mask = if to_64 { u64::MAX } else { 0xffff_ffff };
    cpu.regs[4] = pointer & mask;
    cpu.enter_flat(flat_code(code | 3, 3, to_64), flat_stack(stack | 3, 3), 3, rip & mask);
    Ok(())
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    if !cpu.in_64_bit_mode() {
        return Err(Exception::UD.into());
    }
    cpu.require_cpl0()?;
    let base = &mut cpu.state.segments[seg::GS].base;
    std::mem::swap(base, &mut cpu.state.kernel_gs_base);
    cpu.segment_base[seg::GS] = *base;
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub(super) fn segment_bases(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    if !cpu.in_64_bit_mode() || cpu.state.cr4 & cr4::FSGSBASE == 0 {
        return Err(Exception::UD.into());
    }
    let mnemonic = op.instruction().mnemonic();
    let slot = if matches!(mnemonic, Mnemonic::Rdfsbase | Mnemonic::Wrfsbase) { seg::FS } else { seg::GS };
    if matches!(mnemonic, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = cpu.state.segments[slot].base;
        return cpu.set_operand(op, 0, base, io);
    }
    let base = cpu.operand(op, 0, io)?;
    if !cpu.is_canonical(base) {
        return Err(Exception::GP0.into());
    }
    cpu.set_base(slot, base);
    Ok(())
}

impl Cpu {
    /// Sets the base of FS or GS.
    pub(super) fn set_base(&mut self, slot: usize, base: u64) {
        self.state.segments[slot].base = base;
        self.update_mode();
    }
}
