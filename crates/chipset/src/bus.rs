//! A bus: address ranges and the devices behind them.
//!
//! One type serves port I/O and memory-mapped I/O; the machine has one of each. Ranges are claimed while the machine is
//! wired; looking one up takes no lock but the device's own. What nobody claims reads all ones and swallows writes, as
//! an ISA or PCI bus does.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

/// Which of its windows a device is accessed through: the number it was claimed with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WindowId(pub u8);

/// A place within a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct At {
    /// The window, for devices that have several.
    pub window: WindowId,
    /// Offset of the first byte in the window.
    pub offset: u64,
}

/// A device can't answer this access (a size or place that it doesn't have). The bus logs it; the guest reads all ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such register or access size")]
pub struct BusFault;

/// What a bus needs of a device. `data` is 1, 2, 4 or 8 bytes and never leaves the window.
pub trait BusDevice: Send {
    /// Fills `data` from the device.
    ///
    /// # Errors
    /// [`BusFault`]: the guest reads all ones.
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault>;
    /// Gives `data` to the device.
    ///
    /// # Errors
    /// [`BusFault`]: the write is dropped.
    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault>;
}

/// A device as buses and machines share it.
pub type Shared<T> = Arc<Mutex<T>>;

struct Window {
    range: RangeInclusive<u64>,
    id: WindowId,
    device: Shared<dyn BusDevice>,
}

/// Two devices claim the same address.
#[derive(Debug, thiserror::Error)]
#[error("addresses {:#x}..={:#x} are already claimed", .0.start(), .0.end())]
pub struct Overlap(pub RangeInclusive<u64>);

/// Address ranges and the devices behind them.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, disjoint.
    windows: Vec<Window>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` behind a range of addresses.
    ///
    /// # Errors
    /// [`Overlap`] where part of the range is taken.
    pub fn claim(
        &mut self,
        range: RangeInclusive<u64>,
        id: WindowId,
        device: Shared<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let place = self.windows.partition_point(|window| window.range.end() < range.start());
        if self.windows.get(place).is_some_and(|next| next.range.start() <= range.end()) {
            return Err(Overlap(range));
        }
        self.windows.insert(place, Window { range, id, device });
        Ok(())
    }

    fn window(&self, address: u64) -> Option<&Window> {
        let place = self.windows.partition_point(|window| *window.range.end() < address);
        self.windows.get(place).filter(|window| window.range.contains(&address))
    }

    /// Reads. An access that runs over the end of a window is split into bytes, each going where it belongs.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let Some(window) = self.window(address) else {
            return self.read_split(address, data);
        };
        let last = address.saturating_add(data.len() as u64 - 1);
        if last > *window.range.end() {
            return self.read_split(address, data);
        }
        let at = At { window: window.id, offset: address - window.range.start() };
        let mut device = window.device.lock().unwrap_or_else(PoisonError::into_inner);
        if device.read(at, data).is_err() {
            tracing::debug!(address, len = data.len(), "read that the device doesn't have");
            data.fill(0xff);
        }
    }

    fn read_split(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if data.len() > 1 {
            for (byte, address) in data.iter_mut().zip(address..) {
                if self.window(address).is_some() {
                    self.read(address, std::slice::from_mut(byte));
                }
            }
        } else {
            tracing::trace!(address, "read that nobody claims");
        }
    }

    /// Writes. An access that runs over the end of a window is split into bytes, each going where it belongs.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some(window) = self.window(address) else {
            return self.write_split(address, data);
        };
        let last = address.saturating_add(data.len() as u64 - 1);
        if last > *window.range.end() {
            return self.write_split(address, data);
        }
        let at = At { window: window.id, offset: address - window.range.start() };
        let mut device = window.device.lock().unwrap_or_else(PoisonError::into_inner);
        if device.write(at, data).is_err() {
            tracing::debug!(address, len = data.len(), "write that the device doesn't have");
        }
    }

    fn write_split(&self, address: u64, data: &[u8]) {
        if data.len() > 1 {
            for (byte, address) in data.iter().zip(address..) {
                if self.window(address).is_some() {
                    self.write(address, std::slice::from_ref(byte));
                }
            }
        } else {
            tracing::trace!(address, "write that nobody claims");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Latch([u8; 4]);

    impl BusDevice for Latch {
        fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
            let from = at.offset as usize;
            data.copy_from_slice(self.0.get(from..from + data.len()).ok_or(BusFault)?);
            Ok(())
        }
        fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
            let from = at.offset as usize;
            self.0.get_mut(from..from + data.len()).ok_or(BusFault)?.copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn unclaimed_addresses_read_all_ones() {
        let mut data = [0; 4];
        Bus::new().read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn an_access_over_the_edge_is_split_into_bytes() {
        let mut bus = Bus::new();
        bus.claim(0x10..=0x13, WindowId(0), Arc::new(Mutex::new(Latch::default()))).expect("free");
        bus.write(0x12, &[1, 2, 3, 4]);
        let mut data = [0; 4];
        bus.read(0x0e, &mut data);
        assert_eq!(data, [0xff, 0xff, 0, 0]);
        bus.read(0x12, &mut data);
        assert_eq!(data, [1, 2, 0xff, 0xff]);
    }

    #[test]
    fn overlapping_claims_are_refused() {
        let mut bus = Bus::new();
        let latch: Shared<dyn BusDevice> = Arc::new(Mutex::new(Latch::default()));
        bus.claim(0x10..=0x13, WindowId(0), latch.clone()).expect("free");
        bus.claim(0x20..=0x2f, WindowId(0), latch.clone()).expect("free");
        assert!(bus.claim(0x13..=0x14, WindowId(0), latch.clone()).is_err());
        assert!(bus.claim(0x00..=0x10, WindowId(0), latch.clone()).is_err());
        bus.claim(0x14..=0x1f, WindowId(0), latch).expect("free");
    }
}
