//! Virtio devices: from configuration to functions on PCI.
//!
//! [`attach`] makes every device that the configuration asks for, and [`plug`] does what is the same for all kinds.

use crate::MachineError;
use crate::board::{self, Slot};
use crate::ending::Ending;
use std::sync::{Arc, Mutex};
use virtio::device::Device;
use virtio::pci::{BAR_BYTES, Transport, Wiring};
use virtio::rng::Rng;
use virtio::{OnPanic, Staff};

/// All virtio devices.
pub(crate) fn attach(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    if slot.parts.config.entropy {
        plug(slot, Box::new(Rng))?;
    }
    Ok(())
}

/// Puts one device on PCI.
fn plug(slot: &mut Slot<'_>, device: Box<dyn Device>) -> Result<(), MachineError> {
    let number = slot.pci.number()?;
    let control = Arc::clone(slot.parts.control);
    let on_panic: OnPanic = Arc::new(move |what| {
        control.end(Ending::Failed(MachineError::Panicked { what }));
    });
    let decode = slot.pci.decoder().add();
    let wiring = Wiring {
        name: format!("virtio-{} {number:02x}.0", device.name()),
        memory: slot.parts.memory.clone(),
        decode: decode.clone(),
        line: slot.line(board::facts(slot.parts.config).pci_interrupt(number, 0)),
        messages: slot.pci.messages(),
        address: slot.pci.place(BAR_BYTES),
        staff: Staff::Threads,
        on_panic,
    };
    let transport = Arc::new(Mutex::new(Transport::new(device, wiring)));
    decode.reaches(&transport);
    slot.pci.plug(number, transport.clone())?;
    slot.keep(&transport);
    Ok(())
}
