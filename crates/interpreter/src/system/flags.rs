//! Instructions on the system flags: CLI, STI, PUSHF, POPF (SDM 2A, 2B; virtual interrupts: 3B 20.3, 20.4).

use crate::cpu::{Cpu, Step, special};
use crate::op::Op;
use engine::Platform;
use iced_x86::Mnemonic;
use x86::control::cr4;
use x86::{Exception, Rflags};

/// Who answers CLI and STI.
enum Authority {
    /// IF itself.
    Real,
    /// VIF, by CR4.VME or CR4.PVI.
    Virtual,
    Denied,
}

impl Cpu {
    fn interrupt_authority(&self) -> Authority {
        let iopl = self.state.rflags.iopl();
        if self.virtual_8086() {
            return match iopl {
                3 => Authority::Real,
                _ if self.state.cr4 & cr4::VME != 0 => Authority::Virtual,
                _ => Authority::Denied,
            };
        }
        if !self.protected || self.cpl() <= iopl {
            return Authority::Real;
        }
        if self.cpl() == 3 && self.state.cr4 & cr4::PVI != 0 { Authority::Virtual } else { Authority::Denied }
    }
}

/// CLI.
pub(super) fn cli(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    match cpu.interrupt_authority() {
        Authority::Real => cpu.state.rflags.remove(Rflags::IF),
        Authority::Virtual => cpu.state.rflags.remove(Rflags::VIF),
        Authority::Denied => return Err(Exception::GP0.into()),
    }
    Ok(())
}

/// STI: interrupts are held back for one more instruction if they were off.
pub(super) fn sti(cpu: &mut Cpu, _: &Op, _: &mut dyn Platform) -> Step {
    match cpu.interrupt_authority() {
        Authority::Real => {
            if !cpu.state.rflags.contains(Rflags::IF) {
                cpu.state.rflags.insert(Rflags::IF);
                cpu.state.sti_shadow = true;
                cpu.special |= special::SHADOW;
            }
        }
        Authority::Virtual if !cpu.state.rflags.contains(Rflags::VIP) => cpu.state.rflags.insert(Rflags::VIF),
        _ => return Err(Exception::GP0.into()),
    }
    Ok(())
}

fn operand_bytes(op: &Op) -> u64 {
    match op.instruction().mnemonic() {
        Mnemonic::Pushf | Mnemonic::Popf => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd => 4,
        _ => 8,
    }
}

/// PUSHF, PUSHFD, PUSHFQ.
pub(super) fn pushf(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let size = operand_bytes(op);
    // VM and RF are never seen.
    let mut flags = cpu.rflags() - Rflags::VM - Rflags::RF;
    if cpu.virtual_8086() && cpu.state.rflags.iopl() < 3 {
        if cpu.state.cr4 & cr4::VME == 0 || size != 2 {
            return Err(Exception::GP0.into());
        }
        flags.set(Rflags::IF, cpu.state.rflags.contains(Rflags::VIF));
        flags |= Rflags::IOPL;
    }
    match size {
        2 => cpu.push(flags.bits() as u16, io),
        4 => cpu.push(flags.bits() as u32, io),
        _ => cpu.push(flags.bits(), io),
    }
}

/// POPF, POPFD, POPFQ (SDM 2B POPF, table 4-16).
pub(super) fn popf(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let size = operand_bytes(op);
    let iopl = cpu.state.rflags.iopl();
    let extended = cpu.virtual_8086() && iopl < 3;
    if extended && (cpu.state.cr4 & cr4::VME == 0 || size != 2) {
        return Err(Exception::GP0.into());
    }
    let image = match size {
        2 => cpu.peek::<u16>(0, io)?.into(),
        4 => cpu.peek::<u32>(0, io)?.into(),
        _ => cpu.peek::<u64>(0, io)?,
    };
    let flags = Rflags::from_bits_truncate(image);
    let mut mask = Rflags::ARITHMETIC | Rflags::TF | Rflags::DF | Rflags::NT;
    if extended {
        let pending = cpu.state.rflags.contains(Rflags::VIP);
        if flags.contains(Rflags::TF) || flags.contains(Rflags::IF) && pending {
            return Err(Exception::GP0.into());
        }
        cpu.state.rflags.set(Rflags::VIF, flags.contains(Rflags::IF));
    } else {
        if size != 2 {
            mask |= Rflags::AC | Rflags::ID;
        }
        let real = !cpu.protected && !cpu.virtual_8086();
        if real || cpu.protected && cpu.cpl() == 0 {
            mask |= Rflags::IF | Rflags::IOPL;
        } else if cpu.virtual_8086() || cpu.cpl() <= iopl {
            mask |= Rflags::IF;
        }
    }
    cpu.release_stack(size);
    // RF is cleared, whatever the image says, except by the 16-bit form.
    if size != 2 {
        cpu.state.rflags.remove(Rflags::RF);
    }
    cpu.load_flags(image, mask);
    Ok(())
}
