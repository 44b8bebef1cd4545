//! The test device for bare-metal kernels written for QEMU: it makes routes to interrupt sources, raises them, and makes connections that
//! send back what they get.
//!
//! One 32-bit write: source, vCPU, command and connection, 8 bits each, from the lowest on. Routes are made and ended by the kernel for
//! order's sake; here each source can be raised at any time.

use super::partition::{Connection, Partition};
use chipset::{At, BusDevice, BusFault, WindowId};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Where test kernels look for it.
pub const TEST_DEVICE_PORTS: [(RangeInclusive<u64>, WindowId); 1] = [(0x3000..=0x3003, WindowId(0))];

const RAISE: u8 = 3;
const CONNECT_MESSAGES: u8 = 4;
const DISCONNECT_MESSAGES: u8 = 5;
const CONNECT_EVENTS: u8 = 6;
const DISCONNECT_EVENTS: u8 = 7;

/// The device.
pub struct TestDevice(Arc<Partition>);

impl TestDevice {
    /// For the vCPUs of a partition.
    #[must_use]
    pub fn new(partition: Arc<Partition>) -> Self {
        Self(partition)
    }
}

impl BusDevice for TestDevice {
    fn read(&mut self, _: At, data: &mut [u8]) -> Result<(), BusFault> {
        data.fill(0xff);
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        let (0, [source, cpu, command, connection]) = (at.offset, data) else { return Ok(()) };
        let (source, cpu, number) = (usize::from(*source), u32::from(*cpu), u32::from(*connection));
        match *command {
            RAISE => {
                self.0.raise(cpu, source);
            }
            CONNECT_MESSAGES if source < 16 => self.0.connect(number, Connection::Echo(cpu, source)),
            CONNECT_EVENTS if source < 16 => self.0.connect(number, Connection::Event(cpu, source)),
            DISCONNECT_MESSAGES => self.0.disconnect(number, false),
            DISCONNECT_EVENTS => self.0.disconnect(number, true),
            _ => {}
        }
        Ok(())
    }
}
