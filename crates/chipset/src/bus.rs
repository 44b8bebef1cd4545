//! A bus: address ranges and the devices behind them.
//!
//! One type serves port I/O and memory-mapped I/O; the machine has one of each. Ranges are claimed while the machine is
//! wired; looking one up takes no lock but the device's own. What nobody claims reads all ones and swallows writes, as
//! an ISA or PCI bus does. A range may lead to a [`Router`] instead, behind which devices move while the guest runs.

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

/// Where an address leads at this moment.
pub struct Route {
    /// The addresses that lead to the same window.
    pub range: RangeInclusive<u64>,
    /// The device's window.
    pub id: WindowId,
    /// The device.
    pub device: Shared<dyn BusDevice>,
}

/// Devices whose addresses the guest chooses. Asked on every access, with no lock held.
pub trait Router: Send + Sync {
    /// Where `address` leads, if anywhere.
    fn route(&self, address: u64) -> Option<Route>;
}

enum Behind {
    Device { id: WindowId, device: Shared<dyn BusDevice> },
    Router(Arc<dyn Router>),
}

struct Window {
    range: RangeInclusive<u64>,
    behind: Behind,
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
        self.insert(range, Behind::Device { id, device })
    }

    /// Puts whatever `router` has there behind a range of addresses.
    ///
    /// # Errors
    /// [`Overlap`] where part of the range is taken.
    pub fn claim_routed(
        &mut self,
        range: RangeInclusive<u64>,
        router: Arc<dyn Router>,
    ) -> Result<(), Overlap> {
        self.insert(range, Behind::Router(router))
    }

    fn insert(&mut self, range: RangeInclusive<u64>, behind: Behind) -> Result<(), Overlap> {
        let place = self.windows.partition_point(|window| window.range.end() < range.start());
        if self.windows.get(place).is_some_and(|next| next.range.start() <= range.end()) {
            return Err(Overlap(range));
        }
        self.windows.insert(place, Window { range, behind });
        Ok(())
    }

    /// Gives the device behind `len` bytes at `address` to `access`; `None` if no window has all of them.
    fn with<R>(
        &self,
        address: u64,
        len: usize,
        access: impl FnOnce(&mut dyn BusDevice, At) -> R,
    ) -> Option<R> {
        let place = self.windows.partition_point(|window| *window.range.end() < address);
        let window = self.windows.get(place).filter(|window| window.range.contains(&address))?;
        let last = address.saturating_add(len as u64 - 1);
        let reach = |range: &RangeInclusive<u64>, id, device: &Shared<dyn BusDevice>| {
            if last > *range.end() {
                return None;
            }
            let at = At { window: id, offset: address - range.start() };
            Some(access(&mut *device.lock().unwrap_or_else(PoisonError::into_inner), at))
        };
        match &window.behind {
            Behind::Device { id, device } => reach(&window.range, *id, device),
            Behind::Router(router) => {
                let route = router.route(address)?;
                reach(&route.range, route.id, &route.device)
            }
        }
    }

    /// Reads. An access that runs over the end of a window is split into bytes, each going where it belongs.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let answered = self.with(address, data.len(), |device, at| device.read(at, data));
        match answered {
            Some(Ok(())) => return,
            Some(Err(BusFault)) => {
                tracing::debug!(address, len = data.len(), "read that the device doesn't have");
            }
            None if data.len() > 1 => {
                for (byte, address) in data.iter_mut().zip(address..) {
                    self.read(address, std::slice::from_mut(byte));
                }
                return;
            }
            None => tracing::trace!(address, "read that nobody claims"),
        }
        data.fill(0xff);
    }

    /// Writes. An access that runs over the end of a window is split into bytes, each going where it belongs.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.with(address, data.len(), |device, at| device.write(at, data)) {
            Some(Ok(())) => {}
            Some(Err(BusFault)) => {
                tracing::debug!(address, len = data.len(), "write that the device doesn't have");
            }
            None if data.len() > 1 => {
                for (byte, address) in data.iter().zip(address..) {
                    self.write(address, std::slice::from_ref(byte));
                }
            }
            None => tracing::trace!(address, "write that nobody claims"),
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
