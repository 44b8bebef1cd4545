//! Initramfs: busybox and a script, or more files for one that `cargo xtask rootfs` made.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Name, mode, device number and contents.
type Entry<'a> = (&'a str, u32, (u32, u32), Vec<u8>);

/// An archive whose init is a busybox shell that runs `script`, with `/proc` to mount and a console.
pub(crate) fn initramfs(busybox: &Path, script: &str) -> NamedTempFile {
    let init = format!("#!/bin/busybox sh\n{script}\n");
    let file = NamedTempFile::new().expect("a file");
    write(
        file.as_file(),
        &[
            ("bin", 0o40755, (0, 0), Vec::new()),
            ("dev", 0o40755, (0, 0), Vec::new()),
            ("proc", 0o40755, (0, 0), Vec::new()),
            ("dev/console", 0o20600, (5, 1), Vec::new()),
            ("bin/busybox", 0o100_755, (0, 0), fs::read(busybox).expect("busybox")),
            ("init", 0o100_755, (0, 0), init.into_bytes()),
        ],
    );
    file
}

/// The archive `from` and executable files in its root. The kernel unpacks archives that follow one another.
pub(crate) fn with_files(from: &Path, files: &[(&str, Vec<u8>)]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    fs::copy(from, file.path()).expect("an archive");
    let entries: Vec<_> =
        files.iter().map(|(name, contents)| (*name, 0o100_755, (0, 0), contents.clone())).collect();
    let out = fs::File::options().append(true).open(file.path()).expect("a file");
    write(&out, &entries);
    file
}

fn write(out: &fs::File, entries: &[Entry<'_>]) {
    let mut out = BufWriter::new(out);
    for (inode, (name, mode, device, contents)) in entries.iter().enumerate() {
        let entry = cpio::newc::Builder::new(name).mode(*mode).ino(inode as u32);
        let entry = entry.rdev_major(device.0).rdev_minor(device.1);
        let mut writer = entry.write(&mut out, contents.len() as u32);
        writer.write_all(contents).expect("a file");
        writer.finish().expect("a file");
    }
    cpio::newc::trailer(&mut out).expect("a file");
    out.flush().expect("a file");
}
