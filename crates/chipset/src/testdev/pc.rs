//! pc-testdev: a latch, RAM behind MMIO, interrupt lines driven by port writes.

use std::ops::RangeInclusive;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{At, BusDevice, BusFault, Device, Line, RestoreError, Saved, WindowId};

/// The latch, reached by any size at any byte.
pub const LATCH: WindowId = WindowId(0);
/// Dropping a page of the host's, which is nothing to the guest.
pub const FLUSH: WindowId = WindowId(1);
/// The same latch, byte by byte.
pub const LATCH_BYTES: WindowId = WindowId(2);
/// A port for each interrupt line.
pub const INTERRUPTS: WindowId = WindowId(3);
/// RAM that is accessed as MMIO.
pub const RAM: WindowId = WindowId(4);

/// Interrupt lines.
const LINES: usize = 24;
/// Where kernels expect the ports.
pub const TEST_DEVICE_PORTS: [(RangeInclusive<u64>, WindowId); 4] =
    [(0xe0..=0xe3, LATCH), (0xe4..=0xe7, FLUSH), (0xe8..=0xeb, LATCH_BYTES), (0x2000..=0x2017, INTERRUPTS)];
/// Where kernels expect the RAM.
pub const TEST_DEVICE_MMIO: [(RangeInclusive<u64>, WindowId); 1] = [(0xff00_0000..=0xff00_ffff, RAM)];
const RAM_SIZE: usize = 0x1_0000;

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    latch: [u8; 4],
    /// Levels of the interrupt lines, a bit each.
    levels: u32,
    ram: Vec<u8>,
}

impl State {
    fn new() -> Self {
        Self { latch: [0; 4], levels: 0, ram: vec![0; RAM_SIZE] }
    }
}

/// The test device.
pub struct TestDevice {
    // Wiring.
    /// Line n is interrupt n.
    lines: Vec<Line>,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl TestDevice {
    /// `lines[n]` is driven by port 0x2000 + n; up to 24 are used.
    #[must_use]
    pub fn new(mut lines: Vec<Line>) -> Self {
        lines.truncate(LINES);
        Self { lines, quiesced: false, state: State::new() }
    }

    fn sync(&self) {
        if !self.quiesced {
            for (n, line) in self.lines.iter().enumerate() {
                line.set(self.state.levels >> n & 1 != 0);
            }
        }
    }

    fn storage(&mut self, window: WindowId) -> Option<&mut [u8]> {
        match window {
            LATCH | LATCH_BYTES => Some(&mut self.state.latch),
            RAM => Some(&mut self.state.ram),
            _ => None,
        }
    }
}

fn part(at: At, len: usize) -> Result<std::ops::Range<usize>, BusFault> {
    let from = usize::try_from(at.offset).map_err(|_| BusFault)?;
    Ok(from..from.checked_add(len).ok_or(BusFault)?)
}

impl BusDevice for TestDevice {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        let part = part(at, data.len())?;
        let storage = self.storage(at.window).ok_or(BusFault)?;
        data.copy_from_slice(storage.get(part).ok_or(BusFault)?);
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        match at.window {
            FLUSH => {}
            INTERRUPTS => {
                // A write of any size is for the line of its first port.
                let bit = 1_u32.checked_shl(at.offset as u32).ok_or(BusFault)?;
                let high = bytewise::value(data) != 0;
                self.state.levels = if high { self.state.levels | bit } else { self.state.levels & !bit };
                self.sync();
            }
            window => {
                let part = part(at, data.len())?;
                let storage = self.storage(window).ok_or(BusFault)?;
                storage.get_mut(part).ok_or(BusFault)?.copy_from_slice(data);
            }
        }
        Ok(())
    }
}

impl Device for TestDevice {
    fn name(&self) -> &str {
        "pc-testdev"
    }
    fn reset(&mut self) {
        self.state = State::new();
        for line in &self.lines {
            line.set(false);
        }
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
    }
    fn resume(&mut self) {
        self.quiesced = false;
        self.sync();
    }
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("pc-testdev", saved)?;
        if state.ram.len() != RAM_SIZE {
            return Err(RestoreError::Impossible { device: "pc-testdev", what: "RAM of another size" });
        }
        self.state = state;
        Ok(())
    }
}
