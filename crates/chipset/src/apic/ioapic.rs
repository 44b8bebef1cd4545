//! The I/O APIC (82093AA data sheet; version 0x20, which has the EOI register of later chipsets).
//!
//! Devices reach it through lines, from any thread; vCPUs through the memory bus; local APICs tell it of EOIs. It sends MSIs.
//!
//! Lock order: its own lock is taken by whoever comes, and held while it sends, so that messages leave in the order of the changes
//! that caused them; local APICs are locked below it and call back (`eoi`) only with no lock held.
//!
//! A level that no local APIC takes is offered again at the next write of an entry, EOI, or rise of the input.
//!
//! Polarity bits are kept but have no effect: a line here says asserted or not, and boards differ only in how that is
//! wired. Delivery status always reads idle.

use super::EoiSink;
use super::spec::{io, mode};
use crate::bus::{At, BusDevice, BusFault};
use crate::device::{self, Device, RestoreError, Saved};
use crate::line::{Edge, LineSink, Msi, MsiSink};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the (first) I/O APIC is.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Bytes of its window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Inputs.
pub const IOAPIC_PINS: u8 = 24;

const NAME: &str = "ioapic";
const PINS: usize = IOAPIC_PINS as usize;

// Offsets in the window.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Guest-visible state, and the level of the inputs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct State {
    id: u8,
    select: u8,
    table: [u64; PINS],
    levels: u32,
    /// Edges to be sent that came while quiesced.
    edges: u32,
}

impl State {
    fn power_up(levels: u32) -> Self {
        Self { id: 0, select: 0, table: [io::MASKED; PINS], levels, edges: 0 }
    }
}

struct Chip {
    // Wiring.
    out: Arc<dyn MsiSink>,
    // Runtime.
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

/// An I/O APIC with [`IOAPIC_PINS`] inputs. Put an `Arc` of it behind the bus, 4 KiB at [`IOAPIC_BASE`].
pub struct IoApic {
    chip: Mutex<Chip>,
}

impl IoApic {
    /// After power-up: everything masked.
    #[must_use]
    pub fn new(out: Arc<dyn MsiSink>) -> Self {
        Self { chip: Mutex::new(Chip { out, quiesced: false, state: State::power_up(0) }) }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads at an offset of the window. Registers are 32 bits wide; the rest reads zero.
    pub fn read_mmio(&self, offset: u64, data: &mut [u8]) {
        let chip = self.lock();
        let value = match offset & !3 {
            SELECT => chip.state.select.into(),
            WINDOW => chip.read(chip.state.select),
            _ => 0,
        };
        for (byte, place) in data.iter_mut().zip(offset as usize & 3..) {
            *byte = value.to_le_bytes().get(place).copied().unwrap_or(0);
        }
    }

    /// Writes at an offset of the window. Narrow writes are zero-extended, wide ones cut.
    pub fn write_mmio(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        let mut chip = self.lock();
        match offset {
            SELECT => chip.state.select = value as u8,
            WINDOW => {
                let select = chip.state.select;
                chip.write(select, value);
            }
            EOI => chip.eoi(value as u8),
            _ => {}
        }
    }

    /// Power-up state. Inputs keep their level: lowering them is up to who drives them.
    pub fn reset(&self) {
        let mut chip = self.lock();
        chip.state = State::power_up(chip.state.levels);
    }

    /// Sends nothing until [`IoApic::resume`], but remembers.
    pub fn quiesce(&self) {
        self.lock().quiesced = true;
    }

    /// Goes on: sends what levels ask for.
    pub fn resume(&self) {
        let mut chip = self.lock();
        chip.quiesced = false;
        let edges = std::mem::take(&mut chip.state.edges);
        for pin in 0..PINS {
            if edges >> pin & 1 != 0 {
                chip.send(chip.state.table[pin]);
            }
            chip.evaluate_level(pin);
        }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> Saved {
        device::encode(&self.lock().state)
    }

    /// Takes over what [`IoApic::save`] gave.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed then.
    pub fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = device::decode(NAME, saved)?;
        let reserved = !(io::WRITABLE | io::REMOTE_IRR);
        if state.id > 15
            || (state.levels | state.edges) >> PINS != 0
            || state.table.iter().any(|entry| entry & reserved != 0)
        {
            return Err(RestoreError::Impossible { device: NAME, what: "reserved bits are set" });
        }
        self.lock().state = state;
        Ok(())
    }
}

impl Chip {
    fn read(&self, register: u8) -> u32 {
        match register {
            io::ID | io::ARBITRATION => u32::from(self.state.id) << 24,
            io::VERSION => io::VERSION_VALUE,
            _ => {
                let Some(index) = register.checked_sub(io::TABLE) else { return 0 };
                let entry = self.state.table.get(usize::from(index >> 1)).copied().unwrap_or(0);
                (entry >> (u32::from(index & 1) * 32)) as u32
            }
        }
    }

    fn write(&mut self, register: u8, value: u32) {
        if register == io::ID {
            self.state.id = (value >> 24) as u8 & 0xf;
        }
        let Some(index) = register.checked_sub(io::TABLE) else { return };
        let pin = usize::from(index >> 1);
        let Some(entry) = self.state.table.get_mut(pin) else { return };
        let (mask, value) = if index & 1 == 0 {
            (io::WRITABLE & 0xffff_ffff, u64::from(value))
        } else {
            (io::WRITABLE & !0xffff_ffff, u64::from(value) << 32)
        };
        *entry = *entry & !mask | value & mask;
        // Turning an entry to edge and back is how drivers for chips without the EOI register clear remote IRR.
        if *entry & io::LEVEL == 0 {
            *entry &= !io::REMOTE_IRR;
        }
        // All, because a level that nobody took before may be welcome now.
        for pin in 0..PINS {
            self.evaluate_level(pin);
        }
    }

    /// Whether the entry acts on levels: NMI, INIT and ExtINT are edges whatever the trigger bit says.
    fn is_level(entry: u64) -> bool {
        entry & io::LEVEL != 0 && matches!(mode::of(entry as u32), mode::FIXED | mode::LOWEST)
    }

    fn set_pin(&mut self, pin: usize, high: bool) {
        let before = self.state.levels >> pin & 1 != 0;
        self.state.levels = self.state.levels & !(1 << pin) | u32::from(high) << pin;
        let entry = self.state.table[pin];
        if Self::is_level(entry) {
            self.evaluate_level(pin);
        } else if high && !before && entry & io::MASKED == 0 {
            // An edge while masked is gone.
            if self.quiesced {
                self.state.edges |= 1 << pin;
            } else {
                self.send(entry);
            }
        }
    }

    /// The level without an edge.
    fn place_pin(&mut self, pin: usize, high: bool) {
        self.state.levels = self.state.levels & !(1 << pin) | u32::from(high) << pin;
        self.evaluate_level(pin);
    }

    fn evaluate_level(&mut self, pin: usize) {
        let entry = self.state.table[pin];
        let idle = entry & (io::MASKED | io::REMOTE_IRR) == 0;
        if Self::is_level(entry) && idle && self.state.levels >> pin & 1 != 0 && !self.quiesced {
            // No EOI would come for a message that nobody took, and the input would be dead for good.
            if self.send(entry) {
                self.state.table[pin] |= io::REMOTE_IRR;
            }
        }
    }

    fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            if self.state.table[pin] & io::REMOTE_IRR != 0 && self.state.table[pin] as u8 == vector {
                self.state.table[pin] &= !io::REMOTE_IRR;
                self.evaluate_level(pin);
            }
        }
    }

    fn message(entry: u64) -> Msi {
        let logical = entry & io::LOGICAL != 0;
        let level = if Self::is_level(entry) { 1 << 15 } else { 0 };
        Msi {
            address: super::LAPIC_BASE | entry >> 56 << 12 | u64::from(logical) << 2,
            data: entry as u32 & 0x7ff | 1 << 14 | level,
        }
    }

    fn send(&self, entry: u64) -> bool {
        self.out.send(Self::message(entry))
    }

    fn last_edge(&self, pin: usize) -> Edge {
        let entry = self.state.table[pin];
        if entry & io::MASKED != 0 || Self::is_level(entry) {
            return Edge::Gone;
        }
        self.out.last_edge(Self::message(entry))
    }
}

impl LineSink for IoApic {
    fn set_pin(&self, pin: u8, high: bool) {
        if pin < IOAPIC_PINS {
            self.lock().set_pin(pin.into(), high);
        }
    }

    fn place_pin(&self, pin: u8, high: bool) {
        if pin < IOAPIC_PINS {
            self.lock().place_pin(pin.into(), high);
        }
    }

    fn last_edge(&self, pin: u8) -> Edge {
        if pin < IOAPIC_PINS { self.lock().last_edge(pin.into()) } else { Edge::Gone }
    }
}

impl EoiSink for IoApic {
    fn eoi(&self, vector: u8) {
        self.lock().eoi(vector);
    }
}

impl BusDevice for Arc<IoApic> {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        self.read_mmio(at.offset, data);
        Ok(())
    }
    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        self.write_mmio(at.offset, data);
        Ok(())
    }
}

impl Device for Arc<IoApic> {
    fn name(&self) -> &str {
        NAME
    }
    fn reset(&mut self) {
        IoApic::reset(self);
    }
    fn quiesce(&mut self) {
        IoApic::quiesce(self);
    }
    fn resume(&mut self) {
        IoApic::resume(self);
    }
    fn save(&self) -> Saved {
        IoApic::save(self)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        IoApic::restore(self, saved)
    }
}
