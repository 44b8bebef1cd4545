//! What one vCPU sees of the machine: [`engine::Platform`].
//!
//! Used by the vCPU's thread only, from within [`engine::Vcpu::run`]. Holds no lock of its own; takes one device's lock at a
//! time.

use crate::msr::Msrs;
use crate::windows::Windows;
use chipset::apic::{ApicCounts, ApicEvent, Lapics};
use chipset::bus::Shared;
use chipset::{Bus, Creditor};
use engine::{Access, Counters, Event, GpFault, Hypercall, HypercallOutcome, Platform, VcpuId, Window};
use enlightenments::Paravirt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use x86::Gpa;
use x86::address::PAGE_SIZE;

/// The EOI register's offset in a local APIC's page.
const EOI_REGISTER: u64 = 0xb0;

/// One vCPU's way to buses, local APIC and MSRs.
pub(crate) struct Board {
    /// I/O ports.
    pub(crate) ports: Arc<Bus>,
    /// Guest-physical addresses that aren't RAM.
    pub(crate) memory: Arc<Bus>,
    /// All local APICs.
    pub(crate) lapics: Arc<Lapics>,
    /// Who wants to know when a vCPU can take an event.
    pub(crate) windows: Arc<Windows>,
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
    paravirt: Box<dyn Paravirt>,
}

impl VcpuPlatform {
    pub(crate) fn new(id: VcpuId, board: Arc<Board>, msrs: Msrs, paravirt: Box<dyn Paravirt>) -> Self {
        Self { id: id.0, board, msrs, paravirt }
    }

    /// The MSRs' power-up values.
    pub(crate) fn reset(&mut self) {
        self.msrs.reset();
        self.paravirt.reset();
    }

    /// The vCPU's thread goes to sleep because the guest has halted.
    pub(crate) fn sleeps(&mut self) {
        self.paravirt.sleeps();
    }

    /// It is awake again.
    pub(crate) fn wakes(&mut self) {
        self.paravirt.wakes();
    }

    /// What has been counted of the vCPU's interrupts and of its interface.
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::new();
        let ApicCounts { delivered, eoi_explicit, eoi_lazy, eoi_auto, eoi_selective } =
            self.board.lapics.counts(self.id);
        for (name, value) in [
            ("delivered", delivered),
            ("eoi_explicit", eoi_explicit),
            ("eoi_lazy", eoi_lazy),
            ("eoi_auto", eoi_auto),
            ("eoi_selective", eoi_selective),
        ] {
            counters.add("interrupts", name, value);
        }
        counters.add("interrupts", "window_reports", self.board.windows.reported(self.id));
        self.paravirt.counters(&mut counters);
        counters
    }

    /// Finds out whether the guest has ended an interrupt without telling, before anything depends on it.
    fn settle_lazy_eoi(&self) {
        if self.board.lapics.is_lazy(self.id)
            && let Some(flag) = self.paravirt.eoi_flag()
        {
            self.board.lapics.settle_lazy(self.id, flag.take());
        }
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
            self.settle_lazy_eoi();
            match access {
                Access::Read(data) => self.board.lapics.read_mmio(self.id, at.offset(), data),
                Access::Write(data) => self.board.lapics.write_mmio(self.id, at.offset(), data),
            }
            if at.offset() == EOI_REGISTER {
                self.paravirt.end_told();
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
            self.settle_lazy_eoi();
            return self.board.lapics.rdmsr(self.id, msr).map_err(|_| GpFault);
        }
        if self.paravirt.owns_msr(msr) {
            self.settle_lazy_eoi();
            return self.paravirt.rdmsr(msr);
        }
        self.msrs.read(msr)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GpFault> {
        if Lapics::owns_msr(msr) {
            // Nothing that an unsettled end of an interrupt could change depends on a deadline.
            if msr != x86::msr::TSC_DEADLINE {
                self.settle_lazy_eoi();
            }
            let written = self.board.lapics.wrmsr(self.id, msr, value).map_err(|_| GpFault);
            if msr == x86::msr::X2APIC_FIRST + (EOI_REGISTER >> 4) as u32 {
                self.paravirt.end_told();
            }
            return written;
        }
        if msr == x86::msr::TSC_ADJUST {
            self.board.lapics.set_tsc_offset(self.id, value);
            self.paravirt.tsc_moved(value);
            return Ok(());
        }
        if self.paravirt.owns_msr(msr) {
            self.settle_lazy_eoi();
            return self.paravirt.wrmsr(msr, value);
        }
        self.msrs.write(msr, value)
    }

    fn hypercall(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        self.settle_lazy_eoi();
        self.paravirt.hypercall(call)
    }

    fn cr8(&mut self) -> u8 {
        self.board.lapics.cr8(self.id)
    }

    fn set_cr8(&mut self, priority: u8) {
        self.board.lapics.set_cr8(self.id, priority);
    }

    fn take_event(&mut self, window: Window) -> Option<Event> {
        self.board.windows.look(self.id, window);
        if let Some(event) = self.paravirt.event(window) {
            return Some(event);
        }
        // Whether the guest has ended the one before only matters where there is another.
        if window.interrupt && self.board.lapics.is_lazy(self.id) && self.board.lapics.is_pending(self.id) {
            self.settle_lazy_eoi();
        }
        let event = self.board.lapics.take_event(self.id, window.nmi, window.interrupt)?;
        self.paravirt.event_taken();
        Some(match event {
            ApicEvent::Init => Event::Init,
            ApicEvent::Startup(vector) => Event::Startup(vector),
            ApicEvent::Nmi => Event::Nmi,
            ApicEvent::Interrupt(vector) => {
                self.board.interrupt_taken();
                if let Some(flag) = self.paravirt.eoi_flag()
                    && self.paravirt.may_end_untold()
                    && self.board.lapics.arm_lazy(self.id)
                {
                    flag.set();
                }
                Event::Interrupt(vector)
            }
        })
    }

    fn has_event(&mut self) -> bool {
        self.board.lapics.is_pending(self.id)
    }

    fn apic_enabled(&mut self) -> bool {
        self.board.lapics.is_enabled(self.id)
    }
}
