//! Builds the initramfs of guests that run a command or a shell: our init, busybox, and what the init is to do.
//!
//! The archive is cpio's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed: inflating it
//! would cost the guest more than reading it. What the files below `/ombra` mean is said in `guests/init`.

use crate::modules::Module;
use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::{self, Write};

/// The init, built by build.rs.
pub(crate) const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// What the guest's init runs, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// A command on raw streams.
    Command,
    /// A command on a terminal.
    Terminal,
    /// A shell on the console.
    Shell,
}

/// What goes into the initramfs.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) mode: Mode,
    /// The command and its arguments.
    pub(crate) arguments: &'a [String],
    /// `NAME=value`.
    pub(crate) environment: &'a [String],
    /// Rows and columns of the terminal.
    pub(crate) size: Option<(u16, u16)>,
    pub(crate) busybox: &'a [u8],
    /// Kernel modules, in the order in which they are to be loaded.
    pub(crate) modules: &'a [Module],
    /// What to mount; may be empty.
    pub(crate) folders: &'a str,
    /// Where the command starts.
    pub(crate) directory: &'a str,
    /// What to do with network cards; may be empty.
    pub(crate) network: &'a str,
}

/// The archive.
///
/// # Errors
/// A file of 4 GiB or more: the format can't hold it.
pub(crate) fn build(contents: &Contents<'_>) -> io::Result<Vec<u8>> {
    let mode = match contents.mode {
        Mode::Command => "command",
        Mode::Terminal => "terminal",
        Mode::Shell => "shell",
    };
    let size = contents.size.map(|(rows, columns)| format!("{rows} {columns}")).unwrap_or_default();
    let mut archive = Archive { bytes: Vec::new(), inode: 0 };
    for folder in
        ["bin", "dev", "etc", "ombra", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "var"]
    {
        archive.folder(folder)?;
    }
    // Before init mounts a devtmpfs, its own messages need somewhere to go.
    archive.console()?;
    archive.file("init", 0o755, INIT)?;
    archive.file("bin/busybox", 0o755, contents.busybox)?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")?;
    archive.file("ombra/mode", 0o644, mode.as_bytes())?;
    archive.file("ombra/arguments", 0o644, &list(contents.arguments))?;
    archive.file("ombra/environment", 0o644, &list(contents.environment))?;
    archive.file("ombra/size", 0o644, size.as_bytes())?;
    archive.file("ombra/folders", 0o644, contents.folders.as_bytes())?;
    archive.file("ombra/directory", 0o644, contents.directory.as_bytes())?;
    if !contents.network.is_empty() {
        archive.file("ombra/network", 0o644, contents.network.as_bytes())?;
        archive.file("etc/resolv.conf", 0o644, b"")?;
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
    }
    if !contents.modules.is_empty() {
        archive.folder("ombra/modules")?;
    }
    for (number, module) in contents.modules.iter().enumerate() {
        archive.file(&format!("ombra/modules/{number:03}-{}", module.name), 0o644, &module.bytes)?;
    }
    trailer(archive.bytes)
}

/// A NUL after each.
fn list(strings: &[String]) -> Vec<u8> {
    strings.iter().flat_map(|string| string.bytes().chain([0])).collect()
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, entry: Builder, contents: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let mut writer = entry.ino(self.inode).write(&mut self.bytes, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }

    fn folder(&mut self, name: &str) -> io::Result<()> {
        self.add(Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[])
    }

    fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.add(Builder::new(name).mode(mode).set_mode_file_type(ModeFileType::Regular), contents)
    }

    fn console(&mut self) -> io::Result<()> {
        let entry = Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
        self.add(entry.rdev_major(5).rdev_minor(1), &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn unpacked(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut rest = archive;
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let name = reader.entry().name().to_owned();
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            files.insert(name, contents);
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_archive_tells_init_what_to_run() {
        let arguments = ["sh", "-c", "exit 7"].map(str::to_owned);
        let archive = build(&Contents {
            mode: Mode::Command,
            arguments: &arguments,
            environment: &["TERM=dumb".to_owned()],
            size: Some((24, 80)),
            busybox: b"busybox",
            folders: "mount a /mnt/a\n",
            directory: "/tmp",
            network: "eth0 dhcp\n",
            modules: &[Module { name: "virtio".to_owned(), bytes: b"ELF".to_vec() }],
        })
        .unwrap();
        let files = unpacked(&archive);
        assert_eq!(files["ombra/arguments"], b"sh\0-c\0exit 7\0");
        assert_eq!(files["ombra/environment"], b"TERM=dumb\0");
        assert_eq!(files["ombra/mode"], b"command");
        assert_eq!(files["ombra/size"], b"24 80");
        assert_eq!(files["bin/busybox"], b"busybox");
        assert_eq!(files["ombra/modules/000-virtio"], b"ELF");
        assert_eq!(files["ombra/network"], b"eth0 dhcp\n");
        assert_eq!(files["ombra/folders"], b"mount a /mnt/a\n");
        assert_eq!(files["ombra/directory"], b"/tmp");
        assert_eq!(files["init"], INIT);
    }

    #[test]
    fn init_is_a_static_program() {
        assert_eq!(&INIT[..4], b"\x7fELF");
    }
}
