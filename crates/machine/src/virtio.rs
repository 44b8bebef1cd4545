//! Virtio devices: from configuration to functions on PCI.
//!
//! [`attach`] makes every device that the configuration asks for, and [`plug`] does what is the same for all kinds.

use crate::MachineError;
use crate::board::{self, Slot};
use crate::ending::Ending;
use control::{DiskConfig, DiskFormat};
use std::sync::{Arc, Mutex};
use virtio::block::Block;
use virtio::device::Device;
use virtio::pci::{BAR_BYTES, Transport, Wiring};
use virtio::rng::Rng;
use virtio::{OnPanic, Staff};

/// Disks of one machine.
const MOST_DISKS: usize = 16;
/// Rings of one disk, each of which costs a thread.
const MOST_RINGS: u16 = 16;

/// All virtio devices.
pub(crate) fn attach(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let config = slot.parts.config;
    if config.disks.len() > MOST_DISKS {
        let count = config.disks.len();
        return Err(MachineError::Config(format!(
            "{count} disks are too many: a machine has {MOST_DISKS} at most"
        )));
    }
    for disk in &config.disks {
        plug(slot, Box::new(block(disk, config.cpus)?))?;
    }
    if slot.parts.config.entropy {
        plug(slot, Box::new(Rng))?;
    }
    Ok(())
}

/// A disk, opened.
fn block(config: &DiskConfig, cpus: u32) -> Result<Block, MachineError> {
    let layer = disk::open(&disk::Image {
        file: config.file.clone(),
        format: config.format.map(|format| match format {
            DiskFormat::Raw => disk::Format::Raw,
            DiskFormat::Qcow2 => disk::Format::Qcow2,
        }),
        read_only: config.read_only,
        snapshot: config.snapshot,
    })?;
    let rings = u16::try_from(cpus).unwrap_or(MOST_RINGS).min(MOST_RINGS);
    let name = config.file.display().to_string();
    Ok(Block::new(layer, name, config.serial.as_deref().unwrap_or_default(), rings))
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
