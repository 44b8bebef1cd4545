//! Devices that bare-metal test kernels written for QEMU expect. Only there with `--test-devices`.
//!
//! [`DebugExit`] ends the machine with a status, [`FwCfg`] tells memory size and CPU count, [`TestDevice`] has latches, RAM that is
//! accessed as MMIO, and interrupt lines on a string. Their behaviour is a fact of QEMU 7.2, as far as the kernels use it.
//!
//! Left out: fw_cfg files and DMA.

mod fw_cfg;
mod pc;

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bytewise;
use crate::{At, BusDevice, BusFault, Device, PowerRequest, PowerSink, RestoreError, Saved, WindowId};
pub use fw_cfg::{FW_CFG_PORTS, FwCfg, SELECTOR_AND_DATA};
pub use pc::{FLUSH, INTERRUPTS, LATCH, LATCH_BYTES, RAM, TEST_DEVICE_MMIO, TEST_DEVICE_PORTS, TestDevice};

/// The exit register.
pub const EXIT: WindowId = WindowId(0);
/// Where kernels expect it.
pub const DEBUG_EXIT_PORTS: [(RangeInclusive<u64>, WindowId); 1] = [(0xf4..=0xf7, EXIT)];

/// isa-debug-exit: a write of `code` ends the machine with status `code << 1 | 1`.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// The device.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power }
    }
}

impl BusDevice for DebugExit {
    fn read(&mut self, _at: At, data: &mut [u8]) -> Result<(), BusFault> {
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, _at: At, data: &[u8]) -> Result<(), BusFault> {
        // A host's exit status has eight bits.
        let code = bytewise::value(data) as u8;
        self.power.request(PowerRequest::Exit(code << 1 | 1));
        Ok(())
    }
}

impl Device for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
    }
    fn reset(&mut self) {}
    fn quiesce(&mut self) {}
    fn resume(&mut self) {}
    fn save(&self) -> Saved {
        crate::device::encode(&())
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        crate::device::decode("debug-exit", saved)
    }
}

#[cfg(test)]
mod tests;
