//! What one vCPU sees of the machine: [`engine::Platform`].
//!
//! Used by the vCPU's thread only, from within [`engine::Vcpu::run`]. Holds no lock of its own; takes one device's lock at a
//! time.

use crate::msr::Msrs;
use chipset::apic::{ApicEvent, Lapics};
use chipset::bus::Shared;
use chipset::{Bus, Creditor};
use engine::{Access, Event, GpFault, Platform, VcpuId, Window};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use x86::Gpa;
use x86::address::PAGE_SIZE;

/// One vCPU's way to buses, local APIC and MSRs.
pub(crate) struct Board {
    /// I/O ports.
    pub(crate) ports: Arc<Bus>,
    /// Guest-physical addresses that aren't RAM.
    pub(crate) memory: Arc<Bus>,
    /// All local APICs.
    pub(crate) lapics: Arc<Lapics>,
    /// Timers that may owe ticks, each with the flag that says so.
    pub(crate) creditors: Vec<(Arc<AtomicBool>, Shared<dyn Creditor>)>,
}

impl Board {
    /// A vCPU has taken an interrupt: who owes another one may raise it now.
    fn interrupt_taken(&self) {
        for (owes, creditor) in &self.creditors {
            if owes.load(Ordering::Acquire) {
                creditor.lock().unwrap_or_else(PoisonError::into_inner).interrupt_taken();
            }
        }
    }
}

/// The platform of one vCPU.
pub(crate) struct VcpuPlatform {
    id: u32,
    board: Arc<Board>,
    msrs: Msrs,
}

impl VcpuPlatform {
    pub(crate) fn new(id: VcpuId, board: Arc<Board>, msrs: Msrs) -> Self {
        Self { id: id.0, board, msrs }
    }

    /// The MSRs' power-up values.
    pub(crate) fn reset(&mut self) {
        self.msrs.reset();
    }
}

impl Platform for VcpuPlatform {
    fn mmio(&mut self, at: Gpa, access: Access<'_>) {
        // Each vCPU's own local APIC lies over whatever the bus has there.
        let own = self.board.lapics.mmio_base(self.id).filter(|base| at.page().0 == *base);
        let len = match &access {
            Access::Read(data) => data.len(),
            Access::Write(data) => data.len(),
        };
        if own.is_some() && at.offset() + len as u64 <= PAGE_SIZE {
            match access {
                Access::Read(data) => self.board.lapics.read_mmio(self.id, at.offset(), data),
                Access::Write(data) => self.board.lapics.write_mmio(self.id, at.offset(), data),
            }
            return;
        }
        match access {
            Access::Read(data) => self.board.memory.read(at.0, data),
            Access::Write(data) => self.board.memory.write(at.0, data),
        }
    }

    fn pio(&mut self, port: u16, access: Access<'_>) {
        match access {
            Access::Read(data) => self.board.ports.read(port.into(), data),
            Access::Write(data) => self.board.ports.write(port.into(), data),
        }
    }

    fn rdmsr(&mut self, msr: u32) -> Result<u64, GpFault> {
        if Lapics::owns_msr(msr) {
            return self.board.lapics.rdmsr(self.id, msr).map_err(|_| GpFault);
        }
        self.msrs.read(msr)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault> {
        if Lapics::owns_msr(msr) {
            return self.board.lapics.wrmsr(self.id, msr, value).map_err(|_| GpFault);
        }
        if msr == x86::msr::TSC_ADJUST {
            self.board.lapics.set_tsc_offset(self.id, value);
            return Ok(());
        }
        self.msrs.write(msr, value)
    }

    fn cr8(&mut self) -> u8 {
        self.board.lapics.cr8(self.id)
    }

    fn set_cr8(&mut self, priority: u8) {
        self.board.lapics.set_cr8(self.id, priority);
    }

    fn take_event(&mut self, window: Window) -> Option<Event> {
        let event = self.board.lapics.take_event(self.id, window.nmi, window.interrupt)?;
        Some(match event {
            ApicEvent::Init => Event::Init,
            ApicEvent::Startup(vector) => Event::Startup(vector),
            ApicEvent::Nmi => Event::Nmi,
            ApicEvent::Interrupt(vector) => {
                self.board.interrupt_taken();
                Event::Interrupt(vector)
            }
        })
    }

    fn has_event(&mut self) -> bool {
        self.board.lapics.has_event(self.id)
    }

    fn apic_enabled(&mut self) -> bool {
        self.board.lapics.is_enabled(self.id)
    }
}
