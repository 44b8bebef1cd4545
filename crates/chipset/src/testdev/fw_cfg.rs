//! fw_cfg: a selector port, and a data port that gives the selected item byte by byte.

use std::ops::RangeInclusive;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{At, BusDevice, BusFault, Device, RestoreError, Saved, WindowId};

/// The selector (a word at 0) and the data (bytes at 1).
pub const SELECTOR_AND_DATA: WindowId = WindowId(0);
/// Where kernels expect them.
pub const FW_CFG_PORTS: [(RangeInclusive<u64>, WindowId); 1] = [(0x510..=0x511, SELECTOR_AND_DATA)];

#[derive(Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
struct State {
    selector: u16,
    position: u32,
}

/// The configuration that firmware would read.
pub struct FwCfg {
    // Configuration.
    ram: u64,
    cpus: u16,
    // Guest-visible state.
    state: State,
}

impl FwCfg {
    /// Tells `ram` bytes of memory and `cpus` CPUs.
    #[must_use]
    pub fn new(ram: u64, cpus: u16) -> Self {
        Self { ram, cpus, state: State::default() }
    }

    /// Item `selector`, little-endian; beyond its length everything is zero, as are items that aren't there.
    fn item(&self, selector: u16) -> u64 {
        match selector {
            0x00 => u64::from(u32::from_le_bytes(*b"QEMU")),
            // The interface: plain ports, no DMA.
            0x01 => 1,
            0x03 => self.ram,
            0x05 | 0x0f => u64::from(self.cpus),
            _ => 0,
        }
    }

    fn next(&mut self) -> u8 {
        let position = self.state.position;
        self.state.position = position.saturating_add(1);
        self.item(self.state.selector).to_le_bytes().get(position as usize).copied().unwrap_or(0)
    }

    fn select(&mut self, selector: u16) {
        self.state = State { selector, position: 0 };
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        if at.offset != 1 {
            return Err(BusFault);
        }
        data.fill_with(|| self.next());
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        if at.offset != 0 {
            return Err(BusFault);
        }
        self.select(bytewise::value(data) as u16);
        Ok(())
    }
}

impl Device for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }
    fn reset(&mut self) {
        self.state = State::default();
    }
    fn quiesce(&mut self) {}
    fn resume(&mut self) {}
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        self.state = decode("fw-cfg", saved)?;
        Ok(())
    }
}
