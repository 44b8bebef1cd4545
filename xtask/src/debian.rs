//! `cargo xtask rootfs debian`: a Debian as people install it, on a disk, for tests: systemd, a network by DHCP, sshd, fio, iperf3.
//!
//! Made by mmdebstrap with the host's apt sources; root needs nothing more, other users user namespaces and fakeroot.
//! `cache/guests/debian/` has `disk.qcow2` (one ext4 file system without partitions), the kernel and initramfs of that Debian,
//! `vmlinuz` and `initrd.img`, and `ssh_key`, which lets its owner in as root. A changed recipe is made anew.

use crate::guests;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name, as `cargo xtask rootfs` has it.
pub(crate) const NAME: &str = "debian";
/// The release.
const SUITE: &str = "bookworm";
/// Beside the smallest Debian.
const PACKAGES: &[&str] = &[
    "dbus",
    "e2fsprogs",
    "fio",
    "initramfs-tools",
    "iperf3",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "systemd-sysv",
    "udev",
    "zstd",
];
/// The disk.
const SIZE: &str = "2G";
/// Files of ours: where they go, and what is in them.
const FILES: &[(&str, &str)] = &[
    ("etc/fstab", "LABEL=debian / ext4 errors=remount-ro 0 1\n"),
    ("etc/hostname", "debian\n"),
    ("etc/systemd/network/20-wired.network", "[Match]\nName=en*\n\n[Network]\nDHCP=yes\n"),
];
/// What it is made with, and the packages that have that.
const TOOLS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("qemu-img", "qemu-utils"),
    ("ssh-keygen", "openssh-client"),
    ("tar", "tar"),
];

/// The disk; makes it where it isn't there yet.
///
/// # Errors
/// A tool that isn't there, or what one of them says.
pub(crate) fn disk(root: &Path) -> Result<PathBuf> {
    let folder = guests::cache(root).join("guests").join(NAME);
    let disk = folder.join("disk.qcow2");
    // Written last: what it describes is whole.
    let stamp = folder.join("recipe");
    let wanted = format!("{SUITE} {SIZE}\n{PACKAGES:?}\n{FILES:?}\n");
    if disk.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(disk);
    }
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!("a Debian is made with tools that aren't there: apt install {}", missing.join(" "));
    }
    println!("rootfs: making a Debian of {} and more", PACKAGES.join(", "));
    fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    let _ = fs::remove_file(&stamp);
    let work = folder.join("work");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("can't remove {}", work.display()))?;
    }
    fs::create_dir(&work).with_context(|| format!("can't create {}", work.display()))?;
    let made = make(&folder, &work);
    let _ = fs::remove_dir_all(&work);
    made?;
    fs::write(&stamp, wanted)?;
    Ok(disk)
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let everywhere = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    everywhere.into_iter().any(|folder| folder.join(tool).is_file())
}

fn make(folder: &Path, work: &Path) -> Result<()> {
    let key = folder.join("ssh_key");
    if !key.exists() {
        crate::run(
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f"]).arg(&key),
        )?;
    }
    let overlay = work.join("files");
    for (path, contents) in FILES {
        put(&overlay, path, contents.as_bytes(), 0o644)?;
    }
    let public = fs::read(key.with_extension("pub")).context("ssh-keygen has written no public key")?;
    put(&overlay, "root/.ssh/authorized_keys", &public, 0o600)?;
    fs::set_permissions(overlay.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;
    let boot = work.join("boot");
    fs::create_dir(&boot)?;
    let archive = work.join("root.tar");
    crate::run(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--quiet"])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(format!("--customize-hook=sync-in {} /", overlay.display()))
            .arg(r#"--customize-hook=chown -R 0:0 "$1/root" "$1/etc/fstab" "$1/etc/hostname" "$1/etc/systemd/network""#)
            .arg(r#"--customize-hook=chroot "$1" systemctl enable systemd-networkd"#)
            .arg(format!("--customize-hook=sync-out /boot {}", boot.display()))
            .arg(SUITE)
            .arg(&archive),
    )?;
    for entry in fs::read_dir(&boot)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (start, to) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
            if name.starts_with(start) {
                fs::copy(&path, folder.join(to))?;
            }
        }
    }
    image(folder, work, &archive)
}

/// Writes a file below a folder.
fn put(folder: &Path, path: &str, contents: &[u8], mode: u32) -> Result<()> {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
    fs::write(&path, contents).with_context(|| format!("can't write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A file system of the archive, and an image of that.
fn image(folder: &Path, work: &Path, archive: &Path) -> Result<()> {
    let script = format!(
        "set -e; PATH=$PATH:/sbin:/usr/sbin; mkdir tree; tar -C tree -xpf \"$0\"; truncate -s {SIZE} raw
         mke2fs -q -t ext4 -L debian -d tree raw; rm -rf tree
         qemu-img convert -f raw -O qcow2 raw part"
    );
    // Owners are those of the archive, which only root can have, or believe to have.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let mut command = if is_root { Command::new("sh") } else { Command::new("fakeroot") };
    if !is_root {
        command.arg("sh");
    }
    crate::run(command.arg("-c").arg(script).arg(archive).current_dir(work))
        .context("can't make the file system (without root it takes fakeroot)")?;
    fs::rename(work.join("part"), folder.join("disk.qcow2"))?;
    Ok(())
}
