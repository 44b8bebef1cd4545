//! Virtio devices: from configuration to functions on PCI.
//!
//! [`attach`] makes the devices that the configuration asks for, but for disks ([`crate::disks`]), and [`plug`] does what is the same
//! for all kinds.

use crate::MachineError;
use crate::board::{self, Slot};
use crate::console;
use ::share::Share;
use control::{NetBackend, NetConfig, ShareConfig};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use virtio::Staff;
use virtio::device::Device;
use virtio::fs::{FileSystem, TAG_BYTES};
use virtio::net::Net;
use virtio::pci::{BAR_BYTES, Transport, Wiring};
use virtio::rng::Rng;

/// All virtio devices.
pub(crate) fn attach(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let config = slot.parts.config;
    for (number, net) in config.nets.iter().enumerate() {
        let backend = ::net::open(net)?;
        plug(slot, Box::new(Net::new(mac(net, number), backend)))?;
    }
    for config in &config.shares {
        plug(slot, Box::new(file_system(config)?))?;
    }
    if !config.ports.is_empty() {
        let console = console::console(slot)?;
        plug(slot, Box::new(console))?;
    }
    if slot.parts.config.entropy {
        plug(slot, Box::new(Rng))?;
    }
    Ok(())
}

/// A card's address: the one that was asked for; else, on a network of the guest's own, always the same, and elsewhere one
/// that nobody else is likely to have.
fn mac(config: &NetConfig, number: usize) -> [u8; 6] {
    config.mac.unwrap_or_else(|| match config.backend {
        NetBackend::User(_) => [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        NetBackend::Socket(_) | NetBackend::Tap(_) => {
            let [a, b, c, ..] = RandomState::new().hash_one(number).to_le_bytes();
            [0x52, 0x54, 0, a, b, c]
        }
    })
}

/// How long a guest believes what it has been told of names and attributes, where others may change them.
const BELIEVE: Duration = Duration::from_secs(1);
/// The same, where nothing changes.
const BELIEVE_STILL: Duration = Duration::from_secs(24 * 3600);

/// A folder, opened.
fn file_system(config: &ShareConfig) -> Result<FileSystem, MachineError> {
    if config.tag.is_empty() || config.tag.len() > TAG_BYTES {
        return Err(MachineError::Config(format!(
            "a folder's tag has 1 to {TAG_BYTES} bytes, not `{}`",
            config.tag
        )));
    }
    let share = Share::open(&share::Options {
        folder: config.folder.clone(),
        read_only: config.read_only,
        believe: if config.is_still { BELIEVE_STILL } else { BELIEVE },
        is_still: config.is_still,
    })?;
    Ok(FileSystem::new(config.tag.clone(), share))
}

/// Puts one device on PCI.
pub(crate) fn plug(slot: &mut Slot<'_>, device: Box<dyn Device>) -> Result<(), MachineError> {
    let number = slot.pci.number()?;
    let decode = slot.pci.decoder().add();
    let wiring = Wiring {
        name: format!("virtio-{} {number:02x}.0", device.name()),
        memory: slot.parts.memory.clone(),
        decode: decode.clone(),
        line: slot.line(board::facts(slot.parts.config).pci_interrupt(number, 0)),
        messages: slot.pci.messages(),
        address: slot.pci.place(BAR_BYTES),
        staff: Staff::Threads,
        on_panic: slot.on_panic(),
    };
    let transport = Arc::new(Mutex::new(Transport::new(device, wiring)));
    decode.reaches(&transport);
    slot.pci.plug(number, transport.clone())?;
    slot.keep(&transport);
    Ok(())
}
