//! A whole Debian on a disk, as people have it: systemd up to its last target, network, ssh, and a clean end.

use crate::Test;
use crate::process::{Guests, run_for};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("debian_boots_from_nvme_without_an_initramfs_takes_ssh_and_ends_clean", DEBIAN, nvme),
    ("debian_boots_from_virtio_with_its_own_initramfs_takes_ssh_and_ends_clean", DEBIAN, virtio),
];

/// `cargo xtask rootfs debian` makes them.
const DEBIAN: &[&str] = &["debian/disk.qcow2", "debian/vmlinuz", "debian/initrd.img", "debian/ssh_key"];

/// systemd takes its time where other tests run beside it.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

fn nvme(guests: &Guests) {
    boot(guests, "nvme", "/dev/nvme0n1", false);
}

fn virtio(guests: &Guests) {
    boot(guests, "virtio", "/dev/vda", true);
}

fn tool(name: &str, words: &[&str], path: &Path) -> Output {
    let path_variable = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path_variable}:/usr/sbin:/sbin")).args(words).arg(path);
    command.output().unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn passes(output: &Output) {
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{errors}");
}

/// An image of its own, backed by the Debian in the cache.
fn overlay(guests: &Guests, folder: &Path) -> PathBuf {
    let path = folder.join("disk.qcow2");
    let base = fs::canonicalize(guests.file("debian/disk.qcow2")).expect("it is there");
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base.display().to_string()];
    passes(&tool("qemu-img", &words, &path));
    path
}

/// Runs a command in the guest by ssh, again and again until the guest answers.
fn ssh(guests: &Guests, port: u16, script: &str) -> Output {
    let start = Instant::now();
    // The cache may be readable by others, which ssh refuses in a key.
    let key = tempfile::NamedTempFile::new().expect("a file");
    fs::copy(guests.file("debian/ssh_key"), key.path()).expect("the key");
    fs::set_permissions(key.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("its owner's");
    loop {
        let output = Command::new("ssh")
            .args(["-q", "-p", &port.to_string(), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "ConnectTimeout=60",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .arg("-i")
            .arg(key.path())
            .args(["root@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()
            .expect("ssh");
        // 255 is ssh's own failure.
        if output.status.code() != Some(255) {
            return output;
        }
        assert!(start.elapsed() < LONG_PATIENCE, "{}", String::from_utf8_lossy(&output.stderr));
        thread::sleep(Duration::from_millis(500));
    }
}

fn boot(guests: &Guests, bus: &str, device: &str, has_initramfs: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let image = overlay(guests, folder.path());
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.local_addr().expect("an address").port()
    };
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file("debian/vmlinuz"));
    if has_initramfs {
        command.arg("--initramfs").arg(guests.file("debian/initrd.img"));
    }
    let disk = format!("{},bus={bus}", image.display());
    let cmdline = format!("console=ttyS0 no_timer_check root={device} ro quiet systemd.show_status=0");
    command.args(["--memory", "1G", "--cmdline", &cmdline, "--disk", &disk, "-p", &format!("{port}:22")]);
    let console = thread::spawn(move || run_for(&mut command, None, LONG_PATIENCE));
    let script = "systemctl is-system-running --wait; systemctl is-active multi-user.target
        findmnt -no SOURCE,FSTYPE /; ip -4 -o address show scope global | grep -c 10.0.2.15
        head -c 50M /dev/urandom > /root/data; sha256sum < /root/data > /root/sum; sync; sha256sum < /root/data | cmp - /root/sum
        systemctl poweroff";
    let output = ssh(guests, port, script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended = console.join().expect("it ran");
    let all = format!("{text}\n{}\n{}", ended.text(), ended.stderr);
    assert_eq!(text, format!("running\nactive\n{device} ext4\n1\n"), "{all}");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "it powers off: {all}");
    passes(&tool("qemu-img", &["check", "-q"], &image));
    let raw = folder.path().join("raw");
    let words = ["convert", "-f", "qcow2", "-O", "raw", &image.display().to_string()];
    passes(&tool("qemu-img", &words, &raw));
    passes(&tool("e2fsck", &["-f", "-n"], &raw));
}
