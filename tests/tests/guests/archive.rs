//! An initramfs of busybox and a script.

use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::NamedTempFile;

/// An archive whose init is a busybox shell that runs `script`, with `/proc` to mount and a console.
pub(crate) fn initramfs(busybox: &Path, script: &str) -> NamedTempFile {
    let init = format!("#!/bin/busybox sh\n{script}\n");
    let mut bytes = Vec::new();
    for (name, mode, device, contents) in [
        ("bin", 0o40755, (0, 0), Vec::new()),
        ("dev", 0o40755, (0, 0), Vec::new()),
        ("proc", 0o40755, (0, 0), Vec::new()),
        ("dev/console", 0o20600, (5, 1), Vec::new()),
        ("bin/busybox", 0o100_755, (0, 0), fs::read(busybox).expect("busybox")),
        ("init", 0o100_755, (0, 0), init.into_bytes()),
    ] {
        let entry = cpio::newc::Builder::new(name).mode(mode).ino(bytes.len() as u32);
        let entry = entry.rdev_major(device.0).rdev_minor(device.1);
        let mut writer = entry.write(&mut bytes, contents.len() as u32);
        writer.write_all(&contents).expect("memory");
        writer.finish().expect("memory");
    }
    let bytes = cpio::newc::trailer(bytes).expect("memory");
    let file = NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("a file");
    file
}
