//! What a machine of a configuration needs of the host, so that the rest can be forbidden. Every field is looked at: who adds one says here what it
//! needs.

use crate::disks::image;
use crate::{MachineError, boot};
use control::{
    BootConfig, DiskConfig, DiskEncryption, Initramfs, KeySource, MachineConfig, NetBackend, SerialConfig,
};
use sandbox::{Needs, Sockets};
use std::path::PathBuf;

/// What a machine needs from before it is made until it is gone. Reads the headers of disk images, which name others.
///
/// # Errors
/// A disk's cipher isn't known.
pub fn needs(config: &MachineConfig) -> Result<Needs, MachineError> {
    let MachineConfig {
        memory: _,
        cpus: _,
        la57: _,
        mwait: _,
        mitigations: _,
        enlightenments: _,
        parts: _,
        boot,
        serial,
        no_reboot: _,
        disks,
        nets,
        shares,
        ports: _,
        entropy: _,
        test_devices: _,
    } = config;
    let mut needs = sandbox::own();
    needs.add(of_boot(boot));
    for port in serial.iter().flatten() {
        match port {
            SerialConfig::File(path) => needs.make.push(path.clone()),
            SerialConfig::Null | SerialConfig::Stream => {}
        }
    }
    for disk in disks {
        needs.add(of_disk(disk)?);
    }
    for net in nets {
        needs.add(match &net.backend {
            NetBackend::User(_) => Needs { sockets: Sockets::Internet, ..sandbox::resolvers() },
            NetBackend::Socket(_) => {
                // Connecting to a socket opens no file.
                Needs { sockets: Sockets::Unix, ..Needs::default() }
            }
            NetBackend::Tap(_) => Needs { write: vec!["/dev/net/tun".into()], ..Needs::default() },
        });
    }
    for share in shares {
        // A file is opened by its descriptor's name, and what is mounted where is looked at once.
        let own = ["/proc/self", "/dev/null"].map(PathBuf::from);
        let mut of_share = Needs { read: own.to_vec(), manages_files: true, ..Needs::default() };
        let folders = if share.read_only { &mut of_share.read } else { &mut of_share.write };
        folders.push(share.folder.clone());
        needs.add(of_share);
    }
    Ok(needs)
}

/// The kernel is read again at each reset.
fn of_boot(boot: &BootConfig) -> Needs {
    let BootConfig { kernel, initramfs, cmdline: _ } = boot;
    let mut read = vec![kernel.clone()];
    if let Some(Initramfs::File(files)) = initramfs {
        read.push(files.clone());
        read.extend(boot::modules(files));
    }
    Needs { read, ..Needs::default() }
}

fn of_disk(disk: &DiskConfig) -> Result<Needs, MachineError> {
    let DiskConfig { file: _, format: _, read_only: _, snapshot, encryption, serial: _, bus: _ } = disk;
    let mut needs = Needs::default();
    let found = disk::files(&image(disk)?);
    needs.read.extend(found.read);
    needs.write.extend(found.write);
    if let Some(address) = found.server {
        needs.sockets = if address.is_local() { Sockets::Unix } else { Sockets::Internet };
        needs.add(sandbox::resolvers());
        // What the C library finds a host's address with.
        needs.read.extend(
            ["/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"].map(PathBuf::from),
        );
    }
    if *snapshot {
        needs.write.push(std::env::temp_dir());
    }
    let key = match encryption {
        None => None,
        Some(DiskEncryption::Luks { key } | DiskEncryption::Plain { cipher: _, key }) => Some(key),
        Some(DiskEncryption::Plugin { path: _, options: _, key }) => {
            needs.programs = true;
            Some(key)
        }
        Some(DiskEncryption::Server { command: _ }) => {
            needs.programs = true;
            None
        }
    };
    match key {
        Some(KeySource::File(path)) => needs.read.push(path.clone()),
        Some(KeySource::Inherited(_)) | None => {}
    }
    Ok(needs)
}
