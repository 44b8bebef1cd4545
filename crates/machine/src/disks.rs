//! Disks: from configuration to an image that is open and a controller on PCI.

use crate::MachineError;
use crate::board::{self, Slot};
use crate::virtio::plug;
use ::virtio::block::Block;
use control::{DiskBus, DiskConfig, DiskEncryption, DiskFormat, KeySource};
use crypt::Method;
use crypt::plugin::Plugin;
use crypt::secret::Source;
use disk::Layer;
use nvme::{BAR_BYTES, MOST_QUEUES, Nvme, Wiring};
use std::sync::{Arc, Mutex};
use workers::Staff;

/// Disks of one machine.
const MOST_DISKS: usize = 16;

/// All disks.
pub(crate) fn attach(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let config = slot.parts.config;
    if config.disks.len() > MOST_DISKS {
        let count = config.disks.len();
        return Err(MachineError::Config(format!(
            "{count} disks are too many: a machine has {MOST_DISKS} at most"
        )));
    }
    // One a vCPU, each of which costs a thread.
    let queues = u16::try_from(config.cpus).unwrap_or(MOST_QUEUES).min(MOST_QUEUES);
    for config in &config.disks {
        let layer = disk::open(&image(config)?)?;
        let name = config.file.display().to_string();
        let serial = config.serial.as_deref().unwrap_or_default();
        match config.bus {
            DiskBus::Virtio => plug(slot, Box::new(Block::new(layer, name, serial, queues)))?,
            DiskBus::Nvme => controller(slot, layer, name, serial, queues)?,
        }
    }
    Ok(())
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

/// An NVM Express controller.
fn controller(
    slot: &mut Slot<'_>,
    layer: Arc<dyn Layer>,
    name: String,
    serial: &str,
    queues: u16,
) -> Result<(), MachineError> {
    let number = slot.pci.number()?;
    let decode = slot.pci.decoder().add();
    let wiring = Wiring {
        name: format!("nvme {number:02x}.0"),
        number,
        memory: slot.parts.memory.clone(),
        decode: decode.clone(),
        line: slot.line(board::facts(slot.parts.config).pci_interrupt(number, 0)),
        messages: slot.pci.messages(),
        address: slot.pci.place(BAR_BYTES),
        staff: Staff::Threads,
        on_panic: slot.on_panic(),
    };
    let controller = Arc::new(Mutex::new(Nvme::new(layer, name, serial, queues, wiring)));
    decode.reaches(&controller);
    slot.pci.plug(number, controller.clone())?;
    slot.keep(&controller);
    Ok(())
}
