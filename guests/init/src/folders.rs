//! Folders of the host's, and the root: from the first lines of `/ombra/folders` to a root with everything in it.
//!
//! A root of the host's is read-only below a throw-away overlay in memory; a root on a disk is one that the host throws away.

use crate::{BUSYBOX, raw};
use std::fs;
use std::io;
use std::os::unix::fs::{chroot, symlink};
use std::path::Path;
use std::process::Command;

const LOWER: &str = "/ombra/lower";
const OVER: &str = "/ombra/over";
const NEW: &str = "/ombra/new";
/// Where busybox is below a root that isn't ours.
pub(crate) const TOOLS: &str = "/run/ombra/bin";

/// Mounts what the lines say. Whether there is a root other than the initramfs now; its name is then `/`.
pub(crate) fn mount(lines: &str) -> io::Result<bool> {
    let mut root = None;
    for line in lines.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["root", "share", tag] => {
                overlay(tag).map_err(|error| named("the root", &error))?;
                root = Some(NEW);
            }
            ["root", "disk"] => {
                disk()?;
                root = Some(NEW);
            }
            ["mount", tag, path, ref more @ ..] => {
                let at = format!("{}{path}", root.unwrap_or_default());
                fs::create_dir_all(&at)?;
                raw::mount_at("virtiofs", tag, &at, if more == ["ro"] { raw::READ_ONLY } else { 0 }, "")
                    .map_err(|error| named(path, &error))?;
            }
            _ => return Err(io::Error::other(format!("no way to mount: {line}"))),
        }
    }
    if root.is_some() {
        switch()?;
    }
    Ok(root.is_some())
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what} can't be mounted: {error}"))
}

fn overlay(tag: &str) -> io::Result<()> {
    for folder in [LOWER, OVER, NEW] {
        fs::create_dir_all(folder)?;
    }
    raw::mount_at("virtiofs", tag, LOWER, raw::READ_ONLY, "")?;
    raw::mount_at("tmpfs", "tmpfs", OVER, 0, "mode=755")?;
    for folder in ["upper", "work"] {
        fs::create_dir(format!("{OVER}/{folder}"))?;
    }
    let options = format!("lowerdir={LOWER},upperdir={OVER}/upper,workdir={OVER}/work");
    raw::mount_at("overlay", "overlay", NEW, 0, &options)
}

/// The first disk, or the first part of it that is a file system.
fn disk() -> io::Result<()> {
    fs::create_dir_all(NEW)?;
    let kinds = fs::read_to_string("/proc/filesystems")?;
    let kinds: Vec<&str> =
        kinds.lines().filter(|line| !line.starts_with("nodev")).map(|line| line.trim()).collect();
    let mut disks: Vec<_> = fs::read_dir("/dev")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().starts_with("/dev/vda"))
        .collect();
    disks.sort();
    for disk in &disks {
        for kind in &kinds {
            if raw::mount_at(kind, &disk.to_string_lossy(), NEW, 0, "").is_ok() {
                if Path::new(NEW).join("bin").exists() || Path::new(NEW).join("usr").exists() {
                    return Ok(());
                }
                raw::unmount(NEW);
            }
        }
    }
    Err(io::Error::other(format!(
        "none of {disks:?} has a root file system of a kind that the kernel knows ({})",
        kinds.join(" ")
    )))
}

/// Makes the new root `/`, with what is mounted here already.
fn switch() -> io::Result<()> {
    for from in ["/proc", "/sys", "/dev", "/run"] {
        let to = format!("{NEW}{from}");
        fs::create_dir_all(&to)?;
        raw::mount_at("", from, &to, raw::MOVE, "")?;
    }
    // A network was set up with files of ours.
    if let Ok(resolvers) = fs::read("/etc/resolv.conf") {
        let to = format!("{NEW}/etc/resolv.conf");
        // Perhaps a link into what isn't here.
        let _ = fs::remove_file(&to);
        fs::write(to, resolvers)?;
    }
    let tools = format!("{NEW}{TOOLS}");
    fs::create_dir_all(&tools)?;
    fs::copy(BUSYBOX, format!("{tools}/busybox"))?;
    std::env::set_current_dir(NEW)?;
    raw::mount_at("", ".", "/", raw::MOVE, "")?;
    chroot(".")?;
    std::env::set_current_dir("/")?;
    // For commands that the root hasn't got.
    let _ = Command::new(format!("{TOOLS}/busybox")).args(["--install", "-s", TOOLS]).status();
    if !Path::new("/bin/sh").exists() {
        let _ = symlink(format!("{TOOLS}/busybox"), "/bin/sh");
    }
    Ok(())
}
