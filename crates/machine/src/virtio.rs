//! Virtio devices: from configuration to functions on PCI.
//!
//! [`attach`] makes every device that the configuration asks for, and [`plug`] does what is the same for all kinds.

use crate::MachineError;
use crate::board::{self, Slot};
use crate::ending::Ending;
use control::{DiskConfig, DiskEncryption, DiskFormat, KeySource, NetBackend, NetConfig};
use crypt::Method;
use crypt::plugin::Plugin;
use crypt::secret::Source;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use virtio::block::Block;
use virtio::device::Device;
use virtio::net::Net;
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
    for (number, net) in config.nets.iter().enumerate() {
        let backend = ::net::open(net)?;
        plug(slot, Box::new(Net::new(mac(net, number), backend)))?;
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

/// A disk, opened.
fn block(config: &DiskConfig, cpus: u32) -> Result<Block, MachineError> {
    let layer = disk::open(&image(config)?)?;
    let rings = u16::try_from(cpus).unwrap_or(MOST_RINGS).min(MOST_RINGS);
    let name = config.file.display().to_string();
    Ok(Block::new(layer, name, config.serial.as_deref().unwrap_or_default(), rings))
}

/// What a disk's configuration means to `disk`.
///
/// # Errors
/// A cipher that isn't known.
pub fn image(config: &DiskConfig) -> Result<disk::Image, MachineError> {
    Ok(disk::Image {
        file: config.file.clone(),
        format: config.format.map(|format| match format {
            DiskFormat::Raw => disk::Format::Raw,
            DiskFormat::Qcow2 => disk::Format::Qcow2,
        }),
        read_only: config.read_only,
        snapshot: config.snapshot,
        encryption: config.encryption.as_ref().map(|how| encryption(config, how)).transpose()?,
    })
}

/// How a disk is encrypted, in the words of the crates that do it.
fn encryption(config: &DiskConfig, how: &DiskEncryption) -> Result<disk::Encryption, MachineError> {
    let source = |key: &KeySource| match key {
        KeySource::File(path) => Source::File(path.clone()),
        KeySource::Inherited(number) => Source::Inherited(*number),
    };
    let (method, key) = match how {
        DiskEncryption::Luks { key } => (Method::Luks, key),
        DiskEncryption::Plain { cipher, key } => {
            let refused = |source| disk::OpenError::Encrypted { file: config.file.clone(), source };
            (Method::Plain(cipher.parse().map_err(refused)?), key)
        }
        DiskEncryption::Plugin { path, options, key } => {
            (Method::Plugin(Plugin { path: path.clone(), options: options.clone() }), key)
        }
        DiskEncryption::Server { command } => {
            return Ok(disk::Encryption::Server { command: command.clone() });
        }
    };
    Ok(disk::Encryption::Sectors { method, key: source(key) })
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
