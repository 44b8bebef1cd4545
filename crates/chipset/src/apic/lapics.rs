//! All local APICs of a machine: how vCPUs, devices and each other reach them, and the routing of messages between them.
//!
//! Locks: see the module above. Beside each chip's lock there is a copy of what senders and the asking vCPU need (`Cell`), kept
//! in atomics and written under the lock, so that routing and the usual "nothing there" take no lock.

use super::lapic::{Action, ApicCounts, Lapic, State};
use super::spec::{base, icr, mode, reg};
use super::{ApicEvent, Attention, EoiSink, ExtIntSource, MsrFault};
use crate::clock::{Alarm, Clock};
use crate::device::{self, Device, RestoreError, Saved};
use crate::line::{Edge, LineSink, Msi, MsiSink};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use x86::msr;

const NAME: &str = "lapics";

/// What a local APIC needs of its vCPU's surroundings.
pub struct Processor {
    /// Gets the vCPU to ask for events.
    pub attention: Arc<dyn Attention>,
    /// Leads to [`Lapics::timer_alarm`].
    pub alarm: Alarm,
}

/// Bits of `Cell::pins`.
mod pins {
    pub(super) const LISTENS: [u8; 2] = [1, 2];
    pub(super) const PASSES_INTR: u8 = 4;
}

/// Bits of `Cell::route` above the logical id.
mod route {
    pub(super) const ENABLED: u64 = 1 << 32;
    pub(super) const X2APIC: u64 = 1 << 33;
    pub(super) const FLAT: u64 = 1 << 34;
    pub(super) const SOFTWARE_ENABLED: u64 = 1 << 35;
}

struct Cell {
    chip: Mutex<Lapic>,
    attention: Arc<dyn Attention>,
    /// IA32_APIC_BASE.
    base: AtomicU64,
    /// How messages find it.
    route: AtomicU64,
    /// Its processor priority, for lowest-priority delivery.
    priority: AtomicU8,
    /// Whether the vCPU would find something, INTR apart.
    event: AtomicBool,
    /// Which LINT pins matter, and how.
    pins: AtomicU8,
    /// The vCPU has looked at what is pending and couldn't take it; nothing has come since.
    refused: AtomicBool,
    /// The guest may end an interrupt without telling.
    lazy: AtomicBool,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, Lapic> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom a message is for.
#[derive(Clone, Copy)]
struct Destination {
    id: u32,
    logical: bool,
    /// A 32-bit destination, from an APIC in x2APIC mode.
    wide: bool,
}

impl Destination {
    /// SDM 3A 10.11.1.
    const fn of(msi: Msi) -> Self {
        Self { id: (msi.address >> 12) as u32 & 0xff, logical: msi.address & 4 != 0, wide: false }
    }

    const fn is_broadcast(self) -> bool {
        self.id == if self.wide { 0xffff_ffff } else { 0xff }
    }

    /// SDM 3A 10.6.2, 10.12.9, 10.12.10.
    fn names(self, number: usize, cell: &Cell) -> bool {
        let route = cell.route.load(Ordering::Acquire);
        if route & route::ENABLED == 0 {
            return false;
        }
        if self.is_broadcast() {
            return true;
        }
        if !self.logical {
            return self.id as usize == number;
        }
        let logical_id = route as u32;
        if route & route::X2APIC != 0 {
            return self.id >> 16 == logical_id >> 16 && self.id & logical_id & 0xffff != 0;
        }
        let logical_id = logical_id >> 24;
        if self.id > 0xff {
            false
        } else if route & route::FLAT != 0 {
            self.id & logical_id != 0
        } else {
            let all_clusters = self.id >> 4 == 0xf;
            (all_clusters || self.id >> 4 == logical_id >> 4) && self.id & logical_id & 0xf != 0
        }
    }
}

#[derive(Clone, Copy)]
struct Message {
    delivery: u32,
    vector: u8,
    level: bool,
}

/// The local APICs of a machine, one a vCPU; the vCPU's number is the APIC's id.
///
/// Pins, as a [`LineSink`]: 0 is LINT0 (INTR from the PIC) and 1 is LINT1 (NMI), each wired to all local APICs.
///
/// Methods take the vCPU's number and panic if the machine has no such vCPU.
pub struct Lapics {
    clock: Arc<dyn Clock>,
    cells: Box<[Cell]>,
    /// Levels of LINT0 and LINT1.
    levels: [AtomicBool; 2],
    pic: OnceLock<Weak<dyn ExtIntSource>>,
    eoi: OnceLock<Weak<dyn EoiSink>>,
    /// Where the search for the lowest priority starts next.
    rotor: AtomicUsize,
}

impl Lapics {
    /// APICs as after power-up: vCPU 0 is the boot processor, the others wait for a start-up IPI. `physical_bits` is the
    /// width of guest-physical addresses (MAXPHYADDR).
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, physical_bits: u8, processors: Vec<Processor>) -> Self {
        let cells = (0..).zip(processors).map(|(id, processor)| Cell {
            chip: Mutex::new(Lapic::new(id, physical_bits, Arc::clone(&clock), processor.alarm)),
            attention: processor.attention,
            base: AtomicU64::new(0),
            route: AtomicU64::new(0),
            priority: AtomicU8::new(0),
            event: AtomicBool::new(false),
            pins: AtomicU8::new(0),
            refused: AtomicBool::new(false),
            lazy: AtomicBool::new(false),
        });
        let lapics = Self {
            cells: cells.collect(),
            clock,
            levels: [AtomicBool::new(false), AtomicBool::new(false)],
            pic: OnceLock::new(),
            eoi: OnceLock::new(),
            rotor: AtomicUsize::new(0),
        };
        for cell in &lapics.cells {
            lapics.publish(cell, &mut cell.lock());
        }
        lapics
    }

    /// Says who answers acknowledge cycles for INTR. Once; later calls have no effect.
    pub fn connect_pic(&self, pic: Weak<dyn ExtIntSource>) {
        let _ = self.pic.set(pic);
    }

    /// Says who hears of level-triggered EOIs. Once; later calls have no effect.
    pub fn connect_eoi(&self, sink: Weak<dyn EoiSink>) {
        let _ = self.eoi.set(sink);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cells.len()
    }

    fn cell(&self, cpu: u32) -> &Cell {
        &self.cells[cpu as usize]
    }

    /// Works on a chip under its lock, then publishes what others need and gets the vCPU's attention if it has to know.
    fn with<R>(&self, cell: &Cell, work: impl FnOnce(&mut Lapic) -> R) -> R {
        let mut chip = cell.lock();
        let result = work(&mut chip);
        let kick = self.publish(cell, &mut chip);
        drop(chip);
        if kick {
            cell.attention.kick();
        }
        result
    }

    /// Copies to the atomics; true if the vCPU must be told.
    fn publish(&self, cell: &Cell, chip: &mut Lapic) -> bool {
        cell.base.store(chip.state.base, Ordering::Relaxed);
        let flag = |is, bit| if is { bit } else { 0 };
        let route = u64::from(chip.logical_id())
            | flag(chip.is_enabled(), route::ENABLED)
            | flag(chip.is_x2apic(), route::X2APIC)
            | flag(chip.state.dfr >> 28 == 0xf, route::FLAT)
            | flag(chip.is_software_enabled(), route::SOFTWARE_ENABLED);
        cell.route.store(route, Ordering::Release);
        cell.priority.store(chip.ppr(), Ordering::Relaxed);
        cell.lazy.store(chip.state.lazy, Ordering::Relaxed);

        let old = cell.pins.load(Ordering::Relaxed);
        let listens = |pin| if chip.listens(pin) { pins::LISTENS[pin] } else { 0 };
        let new = listens(0) | listens(1) | if chip.passes_intr() { pins::PASSES_INTR } else { 0 };
        if new != old {
            // Sequentially consistent against `set_pin`: either it sees these, or this sees the new level.
            cell.pins.store(new, Ordering::SeqCst);
            for pin in 0..2 {
                if new & !old & pins::LISTENS[pin] != 0 {
                    chip.resume_pin(pin, self.levels[pin].load(Ordering::SeqCst));
                }
            }
        }

        let before = cell.event.load(Ordering::Relaxed);
        let event = chip.has_event();
        if event != before {
            cell.event.store(event, Ordering::Release);
        }
        let intr = new & pins::PASSES_INTR != 0 && self.levels[0].load(Ordering::SeqCst);
        let attend = std::mem::take(&mut chip.attend);
        let news = attend || new & !old & pins::PASSES_INTR != 0;
        !chip.quiesced && (event && (attend || !before) || intr && news)
    }

    // The vCPU's side.

    /// Whether there is anything for the vCPU, were all its windows open. Takes no lock.
    #[must_use]
    pub fn is_pending(&self, cpu: u32) -> bool {
        let cell = self.cell(cpu);
        cell.event.load(Ordering::Acquire) || self.intr_reaches(cell)
    }

    fn intr_reaches(&self, cell: &Cell) -> bool {
        cell.pins.load(Ordering::SeqCst) & pins::PASSES_INTR != 0 && self.levels[0].load(Ordering::SeqCst)
    }

    /// The event that the vCPU now takes, if there is one that its windows admit: INIT before start-up before NMI before INTR
    /// from the PIC before the APIC's own interrupts (SDM 3A 6.9, 10.8). Interrupts are acknowledged by this.
    ///
    /// A boot processor (IA32_APIC_BASE.BSP) that takes [`ApicEvent::Init`] starts over at the reset vector, others wait.
    pub fn take_event(&self, cpu: u32, nmi_window: bool, interrupt_window: bool) -> Option<ApicEvent> {
        let cell = self.cell(cpu);
        let taken = self.take_from(cpu, nmi_window, interrupt_window);
        cell.refused.store(taken.is_none(), Ordering::Relaxed);
        taken
    }

    fn take_from(&self, cpu: u32, nmi_window: bool, interrupt_window: bool) -> Option<ApicEvent> {
        let cell = self.cell(cpu);
        let intr = interrupt_window && self.intr_reaches(cell);
        if cell.event.load(Ordering::Acquire) {
            if let Some(urgent) = self.with(cell, |chip| chip.take_urgent(nmi_window)) {
                return Some(urgent);
            }
            if !intr {
                return if interrupt_window { self.take_own(cpu) } else { None };
            }
        }
        if !intr {
            return None;
        }
        // No lock from here on: the PIC lowers its line within, which comes back to `set_pin`.
        if let Some(pic) = self.pic.get().and_then(Weak::upgrade).filter(|pic| pic.is_pending()) {
            let vector = pic.acknowledge();
            self.with(cell, |chip| {
                chip.state.extint = false;
                // The APIC's own may have been kept waiting.
                chip.attend = true;
            });
            return Some(ApicEvent::Interrupt(vector));
        }
        if cell.event.load(Ordering::Acquire) { self.take_own(cpu) } else { None }
    }

    /// The APIC's own interrupt.
    fn take_own(&self, cpu: u32) -> Option<ApicEvent> {
        let (vector, action) = self.with(self.cell(cpu), Lapic::take_interrupt)?;
        self.act(cpu, action, false);
        Some(ApicEvent::Interrupt(vector))
    }

    // Ends of interrupts beside the EOI register. For who offers them to guests; all but `is_lazy` on the vCPU's thread.

    /// Lets the guest end the interrupt that has just been taken without telling (a flag in a page that it shares), if nothing
    /// else is requested and nobody has to hear of the end. True: it may, and [`Lapics::settle_lazy`] has to follow before anything
    /// looks at the APIC's state, and before the next interrupt is taken.
    #[must_use]
    pub fn arm_lazy(&self, cpu: u32) -> bool {
        self.with(self.cell(cpu), Lapic::arm_lazy)
    }

    /// Whether [`Lapics::arm_lazy`] has said yes and nobody has settled it. Takes no lock.
    #[must_use]
    pub fn is_lazy(&self, cpu: u32) -> bool {
        self.cell(cpu).lazy.load(Ordering::Relaxed)
    }

    /// Says whether the guest has `ended` the interrupt; if not, it has to tell again.
    pub fn settle_lazy(&self, cpu: u32, ended: bool) {
        let action = self.with(self.cell(cpu), |chip| chip.settle_lazy(ended));
        self.act(cpu, action, false);
    }

    /// As a write of the EOI register.
    pub fn eoi(&self, cpu: u32) {
        let action = self.with(self.cell(cpu), Lapic::eoi);
        self.act(cpu, action, false);
    }

    /// The interrupt command register as xAPICs have it: the destination in bits 63:56.
    #[must_use]
    pub fn icr(&self, cpu: u32) -> u64 {
        self.with(self.cell(cpu), |chip| {
            u64::from(chip.read_mmio(reg::ICR_HIGH)) << 32 | u64::from(chip.read_mmio(reg::ICR))
        })
    }

    /// Writes it, and sends what it says.
    pub fn set_icr(&self, cpu: u32, value: u64) {
        let action = self.with(self.cell(cpu), |chip| {
            chip.write_mmio(reg::ICR_HIGH, (value >> 32) as u32);
            chip.write_mmio(reg::ICR, value as u32)
        });
        self.act(cpu, action, false);
    }

    /// The task priority, all 8 bits.
    #[must_use]
    pub fn tpr(&self, cpu: u32) -> u8 {
        self.cell(cpu).lock().state.tpr
    }

    /// Sets the task priority.
    pub fn set_tpr(&self, cpu: u32, priority: u8) {
        self.with(self.cell(cpu), |chip| chip.set_tpr(priority));
    }

    /// Ends the named vector, in whatever order it was taken. Nothing happens if it isn't in service.
    pub fn eoi_of(&self, cpu: u32, vector: u8) {
        let action = self.with(self.cell(cpu), |chip| chip.eoi_of(vector));
        self.act(cpu, action, false);
    }

    /// From now on the vector ends as it is taken (`on`), or as others do.
    pub fn set_auto_eoi(&self, cpu: u32, vector: u8, on: bool) {
        self.with(self.cell(cpu), |chip| chip.set_auto_eoi(vector, on));
    }

    /// Requests the vector of one vCPU's APIC, as an edge. `false` if there is no such vCPU or its APIC takes none.
    pub fn request(&self, cpu: u32, vector: u8) -> bool {
        let message = Message { delivery: mode::FIXED, vector, level: false };
        (cpu as usize) < self.cells.len() && self.hand_over(cpu as usize, message)
    }

    /// Sends a non-maskable interrupt to one vCPU; `false` if there is none.
    pub fn request_nmi(&self, cpu: u32) -> bool {
        let message = Message { delivery: mode::NMI, vector: 0, level: false };
        (cpu as usize) < self.cells.len() && self.hand_over(cpu as usize, message)
    }

    /// What one APIC has counted.
    #[must_use]
    pub fn counts(&self, cpu: u32) -> ApicCounts {
        self.cell(cpu).lock().counts
    }

    /// Where the vCPU's APIC is mapped: a page's guest-physical address, or `None` if it is disabled or in x2APIC mode. Takes no lock.
    #[must_use]
    pub fn mmio_base(&self, cpu: u32) -> Option<u64> {
        let value = self.cell(cpu).base.load(Ordering::Relaxed);
        (value & (base::EN | base::EXTD) == base::EN).then_some(value & base::ADDRESS)
    }

    /// IA32_APIC_BASE.EN. Takes no lock.
    #[must_use]
    pub fn is_enabled(&self, cpu: u32) -> bool {
        self.cell(cpu).base.load(Ordering::Relaxed) & base::EN != 0
    }

    /// IA32_APIC_BASE.BSP. Takes no lock.
    #[must_use]
    pub fn is_bsp(&self, cpu: u32) -> bool {
        self.cell(cpu).base.load(Ordering::Relaxed) & base::BSP != 0
    }

    /// Reads at `offset` (0..=0xfff) of the page. Each register is the first 4 of 16 bytes; the rest reads zero.
    pub fn read_mmio(&self, cpu: u32, offset: u64, data: &mut [u8]) {
        let value = self.with(self.cell(cpu), |chip| chip.read_mmio((offset >> 4) as u8)).to_le_bytes();
        for (byte, place) in data.iter_mut().zip(offset as usize & 0xf..) {
            *byte = value.get(place).copied().unwrap_or(0);
        }
    }

    /// Writes at `offset` (0..=0xfff) of the page. Only aligned writes of 4 bytes count (SDM 3A 10.4.1); of wider ones, the first 4.
    pub fn write_mmio(&self, cpu: u32, offset: u64, data: &[u8]) {
        let Some(bytes) = data.first_chunk::<4>().filter(|_| offset & 0xf == 0) else {
            tracing::debug!(cpu, offset, len = data.len(), "odd write to a local APIC");
            return;
        };
        let value = u32::from_le_bytes(*bytes);
        let action = self.with(self.cell(cpu), |chip| chip.write_mmio((offset >> 4) as u8, value));
        self.act(cpu, action, false);
    }

    /// Whether [`Lapics::rdmsr`] and [`Lapics::wrmsr`] are who answers for this MSR.
    #[must_use]
    pub fn owns_msr(number: u32) -> bool {
        matches!(number, msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST)
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// No such register, or one that can't be read; x2APIC registers outside x2APIC mode.
    pub fn rdmsr(&self, cpu: u32, number: u32) -> Result<u64, MsrFault> {
        let cell = self.cell(cpu);
        match number {
            msr::APIC_BASE => Ok(cell.base.load(Ordering::Relaxed)),
            msr::TSC_DEADLINE => Ok(self.with(cell, Lapic::tsc_deadline)),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => self.with(cell, |chip| {
                if chip.is_x2apic() { chip.read_msr((number & 0xff) as u8) } else { Err(MsrFault) }
            }),
            _ => Err(MsrFault),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// No such register, a read-only one, reserved bits, or an illegal change of mode; nothing has changed then.
    pub fn wrmsr(&self, cpu: u32, number: u32, value: u64) -> Result<(), MsrFault> {
        let cell = self.cell(cpu);
        match number {
            msr::APIC_BASE => self.with(cell, |chip| chip.set_base(value)),
            msr::TSC_DEADLINE => {
                self.with(cell, |chip| chip.set_tsc_deadline(value));
                Ok(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let action = self.with(cell, |chip| {
                    if chip.is_x2apic() {
                        chip.write_msr((number & 0xff) as u8, value)
                    } else {
                        Err(MsrFault)
                    }
                })?;
                self.act(cpu, action, true);
                Ok(())
            }
            _ => Err(MsrFault),
        }
    }

    /// CR8: TPR bits 7:4 (SDM 3A 10.8.6.1).
    #[must_use]
    pub fn cr8(&self, cpu: u32) -> u8 {
        self.cell(cpu).lock().state.tpr >> 4
    }

    /// Sets CR8; only bits 3:0 count.
    pub fn set_cr8(&self, cpu: u32, priority: u8) {
        self.with(self.cell(cpu), |chip| chip.set_tpr(priority << 4));
    }

    /// Tells by how much the vCPU's TSC is ahead of the machine's, wrapping, for TSC deadlines.
    pub fn set_tsc_offset(&self, cpu: u32, offset: u64) {
        self.with(self.cell(cpu), |chip| chip.set_tsc_offset(offset));
    }

    /// The alarm of the vCPU's timer went off.
    pub fn timer_alarm(&self, cpu: u32) {
        self.with(self.cell(cpu), Lapic::on_alarm);
    }

    /// Sets vCPU `cpu`'s APIC up as firmware leaves it on the boot processor (virtual wire mode): enabled, LINT0 takes INTR,
    /// LINT1 is NMI. For kernels that are started without firmware.
    pub fn virtual_wire(&self, cpu: u32) {
        self.with(self.cell(cpu), Lapic::virtual_wire);
    }

    // Messages.

    fn act(&self, cpu: u32, action: Action, wide: bool) {
        match action {
            Action::None => {}
            Action::Eoi(vector) => {
                if let Some(sink) = self.eoi.get().and_then(Weak::upgrade) {
                    sink.eoi(vector);
                }
            }
            Action::Ipi(command) => self.send_ipi(cpu, command, wide),
        }
    }

    /// SDM 3A 10.6.1. Level-triggered IPIs aren't a thing but for INIT's de-assert.
    fn send_ipi(&self, cpu: u32, command: u64, wide: bool) {
        let message = Message { delivery: mode::of(command as u32), vector: command as u8, level: false };
        let is_deassert = command & (icr::ASSERT | icr::LEVEL) == icr::LEVEL;
        if message.delivery == mode::SMI
            || message.delivery == mode::INIT && is_deassert
            || !matches!(message.delivery, mode::FIXED..=mode::STARTUP)
        {
            return;
        }
        // A processor can't start itself over by shorthand.
        let self_allowed = !matches!(message.delivery, mode::INIT | mode::STARTUP);
        let own = cpu as usize;
        let is_enabled = |cell: &Cell| cell.route.load(Ordering::Acquire) & route::ENABLED != 0;
        // IPIs are edges: nobody needs to know who took them.
        let _taken = match command >> 18 & 3 {
            0 => {
                let id = if wide { (command >> 32) as u32 } else { (command >> 56) as u32 };
                self.deliver(Destination { id, logical: command & icr::LOGICAL != 0, wide }, message)
            }
            1 => self_allowed && self.hand_over(own, message),
            2 => self.deliver_to(message, |number, cell| (self_allowed || number != own) && is_enabled(cell)),
            _ => self.deliver_to(message, |number, cell| number != own && is_enabled(cell)),
        };
    }

    /// Says whether anybody took it; so do the following.
    fn deliver(&self, destination: Destination, message: Message) -> bool {
        if destination.logical || destination.is_broadcast() {
            return self.deliver_to(message, |number, cell| destination.names(number, cell));
        }
        let number = destination.id as usize;
        self.cells.get(number).is_some_and(|cell| destination.names(number, cell))
            && self.hand_over(number, message)
    }

    fn deliver_to(&self, message: Message, is_target: impl Fn(usize, &Cell) -> bool) -> bool {
        if message.delivery == mode::LOWEST {
            // SDM 3A 10.6.2.4; those with the same priority take turns.
            let start = self.rotor.fetch_add(1, Ordering::Relaxed);
            let count = self.cells.len();
            let lowest = (0..count)
                .map(|step| (start % count + step) % count)
                .filter(|number| {
                    let cell = &self.cells[*number];
                    cell.route.load(Ordering::Acquire) & route::SOFTWARE_ENABLED != 0
                        && is_target(*number, cell)
                })
                .min_by_key(|number| self.cells[*number].priority.load(Ordering::Relaxed) >> 4);
            return lowest.is_some_and(|number| self.hand_over(number, message));
        }
        let mut taken = false;
        for (number, cell) in self.cells.iter().enumerate() {
            if is_target(number, cell) {
                taken |= self.hand_over(number, message);
            }
        }
        taken
    }

    fn hand_over(&self, number: usize, message: Message) -> bool {
        self.cells[number].refused.store(false, Ordering::Relaxed);
        self.with(&self.cells[number], |chip| chip.accept(message.delivery, message.vector, message.level))
    }

    // The machine's side.

    /// Power-up state for all.
    pub fn reset(&self) {
        for cell in &self.cells {
            self.with(cell, Lapic::reset);
        }
    }

    /// Clears all alarms and stays silent until [`Lapics::resume`]; messages are still accepted.
    pub fn quiesce(&self) {
        for cell in &self.cells {
            self.with(cell, Lapic::quiesce);
        }
    }

    /// Goes on: alarms are set, vCPUs told of what is pending.
    pub fn resume(&self) {
        for cell in &self.cells {
            self.with(cell, Lapic::resume);
        }
    }

    /// All APICs' states.
    #[must_use]
    pub fn save(&self) -> Saved {
        let states: Vec<State> = self.cells.iter().map(|cell| cell.lock().state.clone()).collect();
        device::encode(&states)
    }

    /// Takes over what [`Lapics::save`] gave for as many vCPUs. Levels of the pins are the wires' to restore.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed then.
    pub fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let states: Vec<State> = device::decode(NAME, saved)?;
        if states.len() != self.cells.len() {
            return Err(RestoreError::Impossible { device: NAME, what: "another number of vCPUs" });
        }
        if !states.iter().all(State::is_possible) {
            return Err(RestoreError::Impossible { device: NAME, what: "reserved bits are set" });
        }
        for (cell, state) in self.cells.iter().zip(states) {
            self.with(cell, |chip| chip.state = state);
        }
        Ok(())
    }

    /// Guest time, as the APICs see it.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl MsiSink for Lapics {
    /// SDM 3A 10.11: address bits 19:12 are the destination, 3 the redirection hint, 2 logical mode.
    fn send(&self, msi: Msi) -> bool {
        let delivery = mode::of(msi.data);
        let destination = Destination::of(msi);
        let redirect = msi.address & 8 != 0 && destination.logical && delivery == mode::FIXED;
        let message = Message {
            delivery: if redirect { mode::LOWEST } else { delivery },
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
        };
        // Start-up comes by IPI only.
        if matches!(delivery, mode::SMI | mode::STARTUP) {
            return false;
        }
        self.deliver(destination, message)
    }

    fn last_edge(&self, msi: Msi) -> Edge {
        let destination = Destination::of(msi);
        let named = (0..).zip(&self.cells).filter(|(number, cell)| destination.names(*number, cell));
        let edges = named.map(|(_, cell)| {
            let refused = cell.refused.load(Ordering::Relaxed);
            cell.lock().last_edge(mode::of(msi.data), msi.data as u8, refused)
        });
        edges.fold(Edge::Gone, Edge::or)
    }
}

impl LineSink for Lapics {
    fn set_pin(&self, pin: u8, high: bool) {
        let number = usize::from(pin);
        let Some(level) = self.levels.get(number) else { return };
        level.store(high, Ordering::SeqCst);
        for cell in &self.cells {
            let flags = cell.pins.load(Ordering::SeqCst);
            if high {
                cell.refused.store(false, Ordering::Relaxed);
            }
            if flags & pins::LISTENS[number] != 0 {
                self.with(cell, |chip| chip.set_pin(number, level.load(Ordering::SeqCst)));
            }
            if number == 0 && high && flags & pins::PASSES_INTR != 0 {
                cell.attention.kick();
            }
        }
    }

    fn last_edge(&self, pin: u8) -> Edge {
        if pin != 0 {
            return Edge::Gone;
        }
        let edges = self.cells.iter().map(|cell| cell.lock().last_intr(cell.refused.load(Ordering::Relaxed)));
        edges.fold(Edge::Gone, Edge::or)
    }
}

impl Device for Arc<Lapics> {
    fn name(&self) -> &str {
        NAME
    }
    fn reset(&mut self) {
        Lapics::reset(self);
    }
    fn quiesce(&mut self) {
        Lapics::quiesce(self);
    }
    fn resume(&mut self) {
        Lapics::resume(self);
    }
    fn save(&self) -> Saved {
        Lapics::save(self)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        Lapics::restore(self, saved)
    }
}
