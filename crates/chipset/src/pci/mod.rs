//! PCI bus 0: configuration mechanism 1 (ports 0xCF8 and 0xCFC) and the memory-mapped window (ECAM) onto the same registers.
//!
//! Source: PCI Local Bus 3.0, 3.2.2.3 and chapter 6; PCI Express base, 7.2.2. Device 0 is a host bridge and device 31 an ISA
//! bridge, with the IDs of a Q35 and an ICH9, so that systems which look for a PC find one. Everything else plugs in as a
//! [`PciFunction`], mostly built on an [`Endpoint`]; the memory that its base addresses decode is reached through the [`Decoder`]. What
//! isn't there reads all ones.
//!
//! Port 0xCF9 lies within the address register's bytes and is the reset control register of [`crate::pm`]. Lock order: this, then the function.
//!
//! Left out: other buses, base addresses for the bridges, interrupt routing registers.

mod config;
mod decode;
mod endpoint;
mod interrupts;

use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError};

use crate::bus::Shared;
use crate::bytewise;
use crate::device::{decode, encode};
use crate::pm::ResetControl;
use crate::{At, BusDevice, BusFault, Device, PowerSink, RestoreError, Saved, WindowId};
pub use config::ConfigSpace;
pub use decode::{Decode, Decoder};
pub use endpoint::{Endpoint, EndpointState, Identity};
pub use interrupts::{InterruptState, Interrupts, MOST_VECTORS};

/// The address and data ports.
pub const MECHANISM_1: WindowId = WindowId(0);
/// The memory-mapped window.
pub const ECAM: WindowId = WindowId(1);
/// Where a PC has the ports.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 1] = [(0xcf8..=0xcff, MECHANISM_1)];
/// A place for the memory-mapped window, 1 MiB for each of 256 buses (all but the first of which are empty).
pub const MMIO: [(RangeInclusive<u64>, WindowId); 1] = [(0xe000_0000..=0xefff_ffff, ECAM)];

/// Where base addresses lie: below 4 GiB, above RAM and below the memory-mapped window of [`MMIO`].
pub const MEMORY: RangeInclusive<u64> = 0xc000_0000..=0xdfff_ffff;

/// One function's configuration registers. `data` is 1, 2 or 4 bytes (or 8 through ECAM), aligned to its size.
pub trait PciFunction: Send {
    /// Fills `data` from the register at `offset` (0..4096).
    fn read_config(&mut self, offset: u16, data: &mut [u8]);
    /// Writes `data` to the register at `offset` (0..4096).
    fn write_config(&mut self, offset: u16, data: &[u8]);
}

/// A function's place on bus 0: device number times 8 plus function number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct DevFn(pub u8);

impl DevFn {
    /// Function `function` (0..8) of device `device` (0..32).
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Self {
        Self(device << 3 | function & 7)
    }
}

/// Where the host bridge is.
pub const HOST_BRIDGE: DevFn = DevFn::new(0, 0);
/// Where the ISA bridge is.
pub const ISA_BRIDGE: DevFn = DevFn::new(31, 0);

/// The place on the bus is taken.
#[derive(Debug, thiserror::Error)]
#[error("PCI device {}.{} is already there", .0.0 >> 3, .0.0 & 7)]
pub struct Taken(pub DevFn);

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    /// The address register.
    address: u32,
    reset: ResetControl,
    host_bridge: ConfigSpace,
    isa_bridge: ConfigSpace,
}

impl State {
    fn new() -> Self {
        Self {
            address: 0,
            reset: ResetControl::default(),
            // Intel Q35 memory controller hub; ICH9 LPC interface, multi-function as in the original.
            host_bridge: ConfigSpace::new(0x8086, 0x29c0, 0x06_00_00, 2, 0x00),
            isa_bridge: ConfigSpace::new(0x8086, 0x2918, 0x06_01_00, 2, 0x80),
        }
    }
}

/// The bus and its host bridge.
pub struct PciHost {
    // Wiring.
    functions: Vec<(DevFn, Shared<dyn PciFunction>)>,
    power: Arc<dyn PowerSink>,
    // Guest-visible state.
    state: State,
}

const ADDRESS_ENABLE: u32 = 1 << 31;

impl PciHost {
    /// A bus with only its bridges.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { functions: Vec::new(), power, state: State::new() }
    }

    /// Plugs a function in.
    ///
    /// # Errors
    /// [`Taken`].
    pub fn plug(&mut self, place: DevFn, function: Shared<dyn PciFunction>) -> Result<(), Taken> {
        if matches!(place, HOST_BRIDGE | ISA_BRIDGE) || self.functions.iter().any(|(at, _)| *at == place) {
            return Err(Taken(place));
        }
        self.functions.push((place, function));
        Ok(())
    }

    fn with<R>(&mut self, place: DevFn, access: impl FnOnce(&mut dyn PciFunction) -> R) -> Option<R> {
        match place {
            HOST_BRIDGE => Some(access(&mut self.state.host_bridge)),
            ISA_BRIDGE => Some(access(&mut self.state.isa_bridge)),
            _ => {
                let (_, function) = self.functions.iter().find(|(at, _)| *at == place)?;
                Some(access(&mut *function.lock().unwrap_or_else(PoisonError::into_inner)))
            }
        }
    }

    fn read_config(&mut self, place: DevFn, offset: u16, data: &mut [u8]) {
        if self.with(place, |function| function.read_config(offset, data)).is_none() {
            data.fill(0xff);
        }
    }

    fn write_config(&mut self, place: DevFn, offset: u16, data: &[u8]) {
        if self.with(place, |function| function.write_config(offset, data)).is_none() {
            tracing::trace!(place = place.0, offset, "write to a PCI function that isn't there");
        }
    }

    /// What the data port's byte `byte` stands for, if the address register names something on this bus.
    fn selected(&self, byte: u64) -> Option<(DevFn, u16)> {
        let address = self.state.address;
        let bus = address >> 16 & 0xff;
        (address & ADDRESS_ENABLE != 0 && bus == 0)
            .then_some((DevFn((address >> 8) as u8), (address & 0xfc) as u16 | byte as u16))
    }

    fn ecam(offset: u64) -> Option<(DevFn, u16)> {
        (offset >> 20 == 0).then_some((DevFn((offset >> 12) as u8), (offset & 0xfff) as u16))
    }

    fn target(&self, at: At) -> Option<(DevFn, u16)> {
        if at.window == ECAM { Self::ecam(at.offset) } else { self.selected(at.offset - 4) }
    }
}

/// The address register is reached by whole dwords only; narrower accesses there are other ports.
const ADDRESS: std::ops::Range<u64> = 0..4;

fn aligned(at: At, data: &[u8]) -> Result<(), BusFault> {
    let len = data.len() as u64;
    if len.is_power_of_two() && at.offset.is_multiple_of(len) { Ok(()) } else { Err(BusFault) }
}

impl BusDevice for PciHost {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        if at.window == MECHANISM_1 && ADDRESS.contains(&at.offset) {
            match (at.offset, data.len()) {
                (0, 4) => bytewise::fill(data, self.state.address.into()),
                (1, 1) => data[0] = self.state.reset.read(),
                _ => return Err(BusFault),
            }
            return Ok(());
        }
        aligned(at, data)?;
        let (place, offset) = self.target(at).ok_or(BusFault)?;
        self.read_config(place, offset, data);
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        if at.window == MECHANISM_1 && ADDRESS.contains(&at.offset) {
            match (at.offset, data) {
                // Bits 0 and 1 and the reserved ones read 0.
                (0, [_, _, _, _]) => self.state.address = bytewise::value(data) as u32 & 0x80ff_fffc,
                (1, [value]) => self.state.reset.write(*value, &*self.power),
                _ => return Err(BusFault),
            }
            return Ok(());
        }
        aligned(at, data)?;
        let (place, offset) = self.target(at).ok_or(BusFault)?;
        self.write_config(place, offset, data);
        Ok(())
    }
}

impl Device for PciHost {
    fn name(&self) -> &str {
        "pci"
    }
    /// The bridges forget; plugged functions are devices of their own.
    fn reset(&mut self) {
        self.state = State::new();
    }
    fn quiesce(&mut self) {}
    fn resume(&mut self) {}
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("pci", saved)?;
        if !state.host_bridge.is_possible() || !state.isa_bridge.is_possible() {
            return Err(RestoreError::Impossible {
                device: "pci",
                what: "configuration space of another size",
            });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
