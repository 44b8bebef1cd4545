//! Debug registers and breakpoints (SDM 3B 17.2, 17.3).
//!
//! Instruction breakpoints are faults and are asked about before an instruction; data and I/O breakpoints are traps: their hits
//! gather in [`Cpu::debug_hits`] and go to DR6 when the trap is taken.

use crate::cpu::{Cpu, Step, special};
use crate::op::Op;
use crate::walk::Intent;
use engine::Platform;
use iced_x86::Register;
use x86::Exception;
use x86::Vector;
use x86::control::{cr4, dr6, dr7};

/// DR6 bits that software may set; the rest read as ones or zeros (SDM 3B figure 17-1).
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bits that software may set.
const DR7_WRITABLE: u64 = 0xffff_2bff;

/// What a breakpoint waits for: DR7.R/W.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Execute,
    Write,
    Io,
    ReadWrite,
}

impl Cpu {
    /// The enabled breakpoints of which `matches` is true, as bits of DR6. It gets the kind, the address and the length.
    fn breakpoints(&self, matches: impl Fn(Kind, u64, u64) -> bool) -> u64 {
        let control = self.state.dr7;
        let mut hits = 0;
        for (number, &address) in self.state.dr.iter().enumerate() {
            if control >> (2 * number) & 3 == 0 {
                continue;
            }
            let kind = match control >> (16 + 4 * number) & 3 {
                0 => Kind::Execute,
                1 => Kind::Write,
                2 => Kind::Io,
                _ => Kind::ReadWrite,
            };
            let length = match control >> (18 + 4 * number) & 3 {
                0 => 1,
                1 => 2,
                2 => 8,
                _ => 4,
            };
            if matches(kind, address, length) {
                hits |= 1 << number;
            }
        }
        hits
    }

    /// Instruction breakpoints at a linear address, as bits of DR6.
    pub(crate) fn instruction_breakpoints(&self, address: u64) -> u64 {
        let address = if self.long_mode { address } else { address & 0xffff_ffff };
        self.breakpoints(|kind, at, _| kind == Kind::Execute && at == address)
    }

    /// Notes data breakpoints that an access hits.
    pub(crate) fn watch_data(&mut self, address: u64, size: u64, intent: Intent) {
        let hits = self.breakpoints(|kind, at, length| {
            let wanted = kind == Kind::ReadWrite || kind == Kind::Write && intent == Intent::Write;
            wanted && overlap(at, length, address, size)
        });
        self.note_hits(hits);
    }

    /// Notes I/O breakpoints that a port access hits; they exist with CR4.DE (SDM 3B 17.2.4).
    pub(crate) fn watch_io(&mut self, port: u16, size: u64) {
        if self.special & special::BREAKPOINTS == 0 || self.state.cr4 & cr4::DE == 0 {
            return;
        }
        let hits =
            self.breakpoints(|kind, at, length| kind == Kind::Io && overlap(at, length, port.into(), size));
        self.note_hits(hits);
    }

    fn note_hits(&mut self, hits: u64) {
        if hits != 0 {
            self.debug_hits |= hits;
            self.special |= special::DEBUG_PENDING;
        }
    }
}

/// Whether a breakpoint of `length` bytes, whose address is taken as aligned, meets an access.
fn overlap(at: u64, length: u64, address: u64, size: u64) -> bool {
    let start = at & !(length - 1);
    start < address.wrapping_add(size) && address < start.wrapping_add(length)
}

impl Cpu {
    /// The number of a debug register, after the checks that reading and writing share.
    fn debug_register(&mut self, register: Register) -> Result<usize, crate::cpu::Stop> {
        let number = register.number();
        let number = match number {
            4 | 5 if self.state.cr4 & cr4::DE != 0 => return Err(Exception::UD.into()),
            // Without CR4.DE they are other names of DR6 and DR7.
            4 | 5 => number + 2,
            0..=7 => number,
            _ => return Err(Exception::UD.into()),
        };
        self.require_cpl0()?;
        if self.state.dr7 & dr7::GD != 0 {
            // General detect: a fault before the access (SDM 3B 17.3.1.3).
            self.state.dr6 |= dr6::BD;
            return Err(Exception::new(Vector::Debug).into());
        }
        Ok(number)
    }
}

/// MOV to a debug register.
pub(super) fn mov_to_debug(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let number = cpu.debug_register(op.instruction().op0_register())?;
    let value = cpu.operand(op, 1, io)?;
    match number {
        0..=3 => cpu.state.dr[number] = value,
        6 | 7 if value >> 32 != 0 => return Err(Exception::GP0.into()),
        6 => cpu.state.dr6 = value & DR6_WRITABLE | dr6::RESET,
        _ => {
            cpu.state.dr7 = value & DR7_WRITABLE | dr7::RESET;
            cpu.update_mode();
        }
    }
    Ok(())
}

/// MOV from a debug register.
pub(super) fn mov_from_debug(cpu: &mut Cpu, op: &Op, io: &mut dyn Platform) -> Step {
    let number = cpu.debug_register(op.instruction().op1_register())?;
    let value = match number {
        0..=3 => cpu.state.dr[number],
        6 => cpu.state.dr6,
        _ => cpu.state.dr7,
    };
    cpu.set_operand(op, 0, value, io)
}
