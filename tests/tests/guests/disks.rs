//! Disks: what a guest writes is on the host, in the image that was named and nowhere else.

use crate::Test;
use crate::process::{Ended, Guests, run};
use disk::{Format, Image, Sector};
use imago::file::File as Storage;
use imago::qcow2::Qcow2CreateBuilder;
use imago::{FormatCreateBuilder, Storage as _, StorageCreateOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub(crate) const TESTS: &[Test] = &[
    ("what_a_guest_writes_to_a_raw_disk_is_in_the_file", DISKS, raw),
    ("a_file_system_on_qcow2_is_whole_after_the_guest_was_killed", DISKS, killed),
    ("a_qcow2_disk_shows_what_it_is_backed_by_and_leaves_it_alone", DISKS, backed),
    ("a_snapshot_takes_writes_and_forgets_them", DISKS, snapshot),
    ("a_disk_has_a_ring_for_each_vcpu_and_works_without_messages", DISKS, interrupts),
    ("a_disk_behind_nvme_works_with_and_without_messages", DISKS, nvme),
    ("sixteen_disks_on_both_buses_are_found_in_order", DISKS, sixteen),
    ("discarded_blocks_take_no_space", DISKS, discard),
    ("an_error_of_the_host_is_one_of_the_guest_and_a_line", DISKS, error),
    ("the_hosts_random_bytes_reach_the_guest", DISKS, random),
];

/// The modules come from the kernel's own folder.
pub(crate) const DISKS: &[&str] = &["cloud/vmlinuz", "cloud/modules", "busybox"];

const MIB: u64 = 1 << 20;

/// Numbered lines: what `seq` writes, up to a length.
fn numbers(len: usize) -> Vec<u8> {
    (1..).flat_map(|number: u64| format!("{number}\n").into_bytes()).take(len).collect()
}

pub(crate) fn raw_file(folder: &TempDir, name: &str, len: u64) -> PathBuf {
    let path = folder.path().join(name);
    fs::File::create(&path).and_then(|file| file.set_len(len)).expect("a file");
    path
}

pub(crate) fn qcow2_file(folder: &TempDir, name: &str, len: u64, backing: Option<&str>) -> PathBuf {
    let path = folder.path().join(name);
    let storage = Storage::create_open(StorageCreateOptions::new().filename(&path)).expect("a file");
    let mut builder = Qcow2CreateBuilder::<Storage>::new(storage).size(len);
    if let Some(backing) = backing {
        builder = builder.backing(backing.to_owned(), "raw".to_owned());
    }
    builder.create().expect("an image");
    path
}

/// QEMU's own opinion of an image, where its tool is there.
pub(crate) fn check(path: &Path) {
    match Command::new("qemu-img").arg("check").arg(path).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("SKIPPED qemu-img check of {}: {error}", path.display()),
    }
}

/// A script in a guest with disks.
fn guest(guests: &Guests, flags: &[&str], disks: &[String], script: &str) -> Ended {
    let mut command = guests.ombra();
    command.args(flags);
    for disk in disks {
        command.arg("--disk").arg(disk);
    }
    run(command.args(["--", "sh", "-ec", script]), None)
}

#[track_caller]
fn succeeded(ended: &Ended) {
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{}", ended.text());
}

pub(crate) fn disk(path: &Path) -> String {
    path.display().to_string()
}

fn raw(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 16 * MIB);
    let script = "cat /sys/block/vda/serial; echo; cat /sys/block/vda/size
        seq 1 1000000 | dd of=/dev/vda bs=64k seek=48 count=32 iflag=fullblock conv=fsync 2>/dev/null
        dd if=/dev/vda bs=1M skip=3 count=2 2>/dev/null | head -c 20";
    let ended = guest(guests, &[], &[format!("{},serial=ombra-1", disk(&path))], script);
    succeeded(&ended);
    assert_eq!(ended.text(), "ombra-1\n32768\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10");
    let bytes = fs::read(&path).expect("read");
    assert_eq!(bytes.len() as u64, 16 * MIB);
    assert!(bytes[3 << 20..5 << 20] == numbers(2 << 20), "the pattern is where it was written");
    assert!(bytes[..3 << 20].iter().chain(&bytes[5 << 20..]).all(|byte| *byte == 0), "and nowhere else");
}

/// Written and synced, then Ombra is killed in the middle of more.
fn killed(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = qcow2_file(&folder, "disk.qcow2", 64 * MIB, None);
    let script = "mkdir -p /mnt; mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt
        seq 1 300000 > /mnt/numbers; sync; echo synced
        while true; do seq 1 100000 > /mnt/more; done";
    let mut command = guests.ombra();
    command.arg("--disk").arg(&path).args(["--", "sh", "-ec", script]);
    let ended = run(&mut command, Some("synced"));
    assert!(ended.text().contains("synced"), "{}{}", ended.text(), ended.stderr);
    let script = "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; cat /mnt/numbers; umount /mnt";
    let ended = guest(guests, &[], &[disk(&path)], script);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let expected = (1..=300_000).flat_map(|number: u64| format!("{number}\n").into_bytes());
    assert!(ended.stdout.iter().copied().eq(expected), "{} bytes", ended.stdout.len());
    check(&path);
}

fn backed(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = raw_file(&folder, "base", 8 * MIB);
    fs::write(&base, numbers(8 << 20)).expect("written");
    let path = qcow2_file(&folder, "disk.qcow2", 8 * MIB, Some("base"));
    let script = "head -c 10 /dev/vda; echo changed | dd of=/dev/vda bs=4k seek=100 conv=fsync 2>/dev/null
        dd if=/dev/vda bs=4k skip=100 count=1 2>/dev/null | head -c 8";
    let ended = guest(guests, &[], &[disk(&path)], script);
    succeeded(&ended);
    assert_eq!(ended.text(), "1\n2\n3\n4\n5\nchanged\n");
    assert!(fs::read(&base).expect("read") == numbers(8 << 20), "the backing file is as it was");
    let image = Image { format: Some(Format::Qcow2), read_only: true, ..Image::new(&path) };
    let layer = disk::open(&image).expect("opened");
    let mut bytes = vec![0; 8 << 20];
    layer.read(Sector(0), &mut bytes).expect("read");
    let mut expected = numbers(8 << 20);
    expected[400 << 10..][..8].copy_from_slice(b"changed\n");
    assert!(bytes == expected);
    drop(layer);
    check(&path);
}

fn snapshot(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 8 * MIB);
    fs::write(&path, numbers(8 << 20)).expect("written");
    let script = "head -c 4 /dev/vda; dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null
        tr -d '\\0' < /dev/vda | wc -c";
    let ended = guest(guests, &[], &[format!("{},snapshot=on", disk(&path))], script);
    succeeded(&ended);
    assert_eq!(ended.text(), "1\n2\n0\n");
    assert!(fs::read(&path).expect("read") == numbers(8 << 20));
    let script = "cat /sys/block/vda/ro; ! echo x 2>/dev/null > /dev/vda && echo refused";
    let ended = guest(guests, &[], &[format!("{},readonly=on", disk(&path))], script);
    assert_eq!(ended.text(), "1\nrefused\n", "{}", ended.stderr);
}

fn interrupts(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 16 * MIB);
    fs::write(&path, numbers(16 << 20)).expect("written");
    let script = "ls /sys/block/vda/mq | wc -l; grep -c MSI.*virtio0 /proc/interrupts || true
        taskset 1 dd if=/dev/vda bs=4k count=1000 2>/dev/null | cmp - /dev/vda 2>/dev/null || true
        (taskset 1 sha256sum /dev/vda & taskset 2 sha256sum /dev/vda; wait) | uniq | wc -l";
    for (more, messages) in [("", "3"), ("pci=nomsi", "0")] {
        let mut flags = vec!["--cpus", "2"];
        if !more.is_empty() {
            flags.extend(["--cmdline", more]);
        }
        let ended = guest(guests, &flags, &[disk(&path)], script);
        succeeded(&ended);
        assert_eq!(ended.text(), format!("2\n{messages}\n1\n"), "{more}");
    }
}

fn nvme(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 16 * MIB);
    let flag = format!("{},bus=nvme,serial=ombra-1", disk(&path));
    let script = "cat /sys/class/nvme/nvme0/serial; ls /sys/block/nvme0n1/mq | wc -l
        grep -c MSI.*nvme0q /proc/interrupts || true
        seq 1 1000000 | dd of=/dev/nvme0n1 bs=64k seek=48 count=32 iflag=fullblock conv=fsync 2>/dev/null
        echo 3 > /proc/sys/vm/drop_caches
        (taskset 1 sha256sum /dev/nvme0n1 & taskset 2 sha256sum /dev/nvme0n1; wait) | uniq | wc -l
        dd if=/dev/nvme0n1 bs=1M skip=3 count=2 2>/dev/null | head -c 20";
    // Without messages Linux makes one pair of queues.
    for (more, queues) in [("", "2\n3"), ("pci=nomsi", "1\n0")] {
        let mut flags = vec!["--cpus", "2"];
        if !more.is_empty() {
            flags.extend(["--cmdline", more]);
        }
        let ended = guest(guests, &flags, std::slice::from_ref(&flag), script);
        succeeded(&ended);
        let expected = format!("ombra-1             \n{queues}\n1\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10");
        assert_eq!(ended.text(), expected, "{more}");
        let bytes = fs::read(&path).expect("read");
        assert!(bytes[3 << 20..5 << 20] == numbers(2 << 20), "the pattern is where it was written");
        assert!(bytes[..3 << 20].iter().chain(&bytes[5 << 20..]).all(|byte| *byte == 0), "and nowhere else");
    }
}

fn sixteen(guests: &Guests) {
    let folder = tempfile::tempdir().expect("a folder");
    let disks: Vec<String> = (1..=16)
        .map(|number| {
            let file = disk(&raw_file(&folder, &format!("disk{number}"), number * MIB));
            if number % 2 == 0 { format!("{file},bus=nvme") } else { file }
        })
        .collect();
    // Controllers are looked for side by side: their names follow no order, the devices' places do.
    let script = "for disk in a b c d e f g h; do cat /sys/block/vd$disk/size; done
        for slot in 2 4 6 8 a c e 10; do cat /sys/bus/pci/devices/0000:00:0$slot.0/nvme/nvme*/nvme*n1/size 2>/dev/null ||
            cat /sys/bus/pci/devices/0000:00:$slot.0/nvme/nvme*/nvme*n1/size; done";
    let ended = guest(guests, &[], &disks, script);
    succeeded(&ended);
    let sizes: Vec<u64> = ended.text().lines().map(|line| line.parse().expect("a number")).collect();
    let numbers = (1..=16).step_by(2).chain((2..=16).step_by(2));
    assert_eq!(sizes, numbers.map(|number| number * 2048).collect::<Vec<_>>());
}

fn discard(guests: &Guests) {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 8 * MIB);
    let other = raw_file(&folder, "other", 8 * MIB);
    for path in [&path, &other] {
        fs::write(path, numbers(8 << 20)).expect("written");
    }
    let script = "for disk in vda nvme0n1; do
            blkdiscard -o 0 -l 4194304 /dev/$disk; cat /sys/block/$disk/queue/discard_max_bytes
        done; sync";
    let ended = guest(guests, &[], &[disk(&path), format!("{},bus=nvme", disk(&other))], script);
    succeeded(&ended);
    assert_eq!(ended.text(), "1073741824\n2199023255040\n");
    for path in [path, other] {
        let bytes = fs::read(&path).expect("read");
        assert!(bytes[4 << 20..] == numbers(8 << 20)[4 << 20..], "what was not discarded is there");
        // File systems that can't make holes leave the bytes.
        if bytes[0] == 0 {
            assert!(fs::metadata(&path).expect("there").blocks() <= 9 << 10);
        }
    }
}

fn error(guests: &Guests) {
    for (bus, name) in [("virtio", "vda"), ("nvme", "nvme0n1")] {
        cut_short(guests, bus, name);
    }
}

/// A file that becomes shorter.
fn cut_short(guests: &Guests, bus: &str, name: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = raw_file(&folder, "disk", 8 * MIB);
    let mut command = guests.ombra();
    command.arg("--disk").arg(format!("{},bus={bus}", disk(&path)));
    // The host cuts the file when the guest says that it is up.
    let script = "disk=/dev/$0; echo up; until [ -e /gone ]; do
            echo 3 > /proc/sys/vm/drop_caches
            dd if=$disk of=/dev/null bs=4k skip=1024 count=1 2>/dev/null || touch /gone
        done; dd if=$disk of=/dev/null bs=4k count=1 2>/dev/null && echo alive";
    command.args(["--", "sh", "-c", script, name]);
    let cut = path.clone();
    let ended = crate::process::run_and(&mut command, "up", move || {
        fs::OpenOptions::new().write(true).open(&cut).and_then(|file| file.set_len(MIB)).expect("cut");
    });
    assert_eq!((ended.text().as_str(), ended.status), ("up\nalive\n", Some(0)), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains(&disk(&path)) && ended.stderr.contains("reading"), "{}", ended.stderr);
}

fn random(guests: &Guests) {
    let script =
        "cat /sys/class/misc/hw_random/rng_current; dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c
        dd if=/dev/hwrng bs=64 count=1 2>/dev/null | tr -d '\\0' | wc -c";
    let ended = guest(guests, &["--module", "virtio_pci", "--module", "virtio_rng"], &[], script);
    succeeded(&ended);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["virtio_rng.0", "64"]);
    assert!(lines[2].parse::<u32>().expect("a number") > 50, "{text}");
}
