//! I/O ports: IN, OUT, and the permission check that INS and OUTS share (SDM 1 19.5).

use crate::cpu::{Cpu, Step};
use crate::op::Op;
use engine::{Access, Platform};
use iced_x86::{OpKind, Register};
use x86::Exception;
use x86::descriptor::system;

impl Cpu {
    /// `#GP(0)` unless the running code may use `size` ports from `port`: by IOPL, else by the TSS's bitmap.
    pub(crate) fn check_io(&mut self, port: u16, size: u8, io: &mut dyn Platform) -> Step {
        let free = self.protected && self.cpl() <= self.state.rflags.iopl();
        if free || !self.protected && !self.virtual_8086() {
            return Ok(());
        }
        let denied = Err(Exception::GP0.into());
        let tr = self.state.tr;
        let wide = matches!(tr.attributes.kind(), system::TSS | system::TSS_BUSY);
        if !wide || !tr.attributes.is_present() || tr.limit < 103 {
            return denied;
        }
        let map = self.read_system(tr.base.wrapping_add(102), 2, io)?;
        let at = map + u64::from(port / 8);
        // Always two bytes: a port range may cross a byte.
        if at + 1 > u64::from(tr.limit) {
            return denied;
        }
        let bits = self.read_system(tr.base.wrapping_add(at), 2, io)?;
        if bits >> (port % 8) & ((1 << size) - 1) != 0 { denied } else { Ok(()) }
    }
}

fn port_of(cpu: &Cpu, op: &Op, number: u32) -> u16 {
    match op.instruction().op_kind(number) {
        OpKind::Register => cpu.regs[2] as u16,
        _ => u16::from(op.imm as u8),
    }
}

fn size_of(register: Register) -> usize {
    register.size().min(4)
}

/// IN.
pub(super) fn input(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let port = port_of(cpu, op, 1);
    let register = op.instruction().op0_register();
    let size = size_of(register);
    cpu.check_io(port, size as u8, io)?;
    let mut data = [0; 4];
    io.pio(port, Access::Read(&mut data[..size]));
    cpu.write_register(register, u32::from_le_bytes(data).into());
    cpu.watch_io(port, size as u64);
    cpu.look_up();
    Ok(())
}

/// OUT.
pub(super) fn output(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let port = port_of(cpu, op, 0);
    let register = op.instruction().op1_register();
    let size = size_of(register);
    cpu.check_io(port, size as u8, io)?;
    let data = (cpu.read_register(register) as u32).to_le_bytes();
    io.pio(port, Access::Write(&data[..size]));
    cpu.watch_io(port, size as u64);
    cpu.look_up();
    Ok(())
}
