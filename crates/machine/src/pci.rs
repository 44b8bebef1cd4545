//! PCI's slots: who gets which device number, interrupt and addresses, as firmware would decide.
//!
//! Devices take their numbers in the order in which they are attached, from 1 on; each has one function. Guests may move base
//! addresses, and Linux mostly leaves them where they are.

use crate::MachineError;
use chipset::bus::Shared;
use chipset::pci::{Decoder, DevFn, MEMORY, PciFunction, PciHost};
use chipset::{MsiSink, PowerSink};
use std::sync::{Arc, Mutex, PoisonError};

/// The last device number that isn't a bridge's.
const LAST: u8 = 30;

/// PCI bus 0, while it is filled.
pub(crate) struct PciSlots {
    host: Shared<PciHost>,
    decoder: Arc<Decoder>,
    messages: Arc<dyn MsiSink>,
    next: u8,
    /// The first free address.
    free: u64,
}

impl PciSlots {
    pub(crate) fn new(power: Arc<dyn PowerSink>, messages: Arc<dyn MsiSink>) -> Self {
        Self {
            host: Arc::new(Mutex::new(PciHost::new(power))),
            decoder: Decoder::new(),
            messages,
            next: 1,
            free: *MEMORY.start(),
        }
    }

    pub(crate) fn host(&self) -> Shared<PciHost> {
        Arc::clone(&self.host)
    }

    pub(crate) fn decoder(&self) -> Arc<Decoder> {
        Arc::clone(&self.decoder)
    }

    /// Where messages go.
    pub(crate) fn messages(&self) -> Arc<dyn MsiSink> {
        Arc::clone(&self.messages)
    }

    /// The next free device number, if there is one.
    ///
    /// # Errors
    /// [`MachineError::Config`]: all are taken.
    pub(crate) fn number(&mut self) -> Result<u8, MachineError> {
        if self.next > LAST {
            return Err(MachineError::Config(format!("PCI has room for {LAST} devices")));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// A place for a base address of `size` bytes, a power of two.
    pub(crate) fn place(&mut self, size: u32) -> u32 {
        let at = self.free.next_multiple_of(size.into());
        self.free = at + u64::from(size);
        at as u32
    }

    /// Plugs a function in as device `number`.
    ///
    /// # Errors
    /// [`MachineError::Config`]: the number is taken.
    pub(crate) fn plug(&self, number: u8, function: Shared<dyn PciFunction>) -> Result<(), MachineError> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        host.plug(DevFn::new(number, 0), function).map_err(|taken| MachineError::Config(taken.to_string()))
    }
}
