//! What is left of a disk when Ombra is killed, or when the host has no more room: everything that the guest had flushed.

use crate::Test;
use crate::disks::{DISKS, check, disk, qcow2_file, raw_file};
use crate::process::{Guests, PATIENCE, run, run_for};
use disk::{Format, Image, SECTOR_BYTES, Sector};
use std::path::Path;
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    ("what_was_synced_survives_three_kills", DISKS, three),
    ("what_was_synced_survives_twenty_kills", DISKS, twenty),
    ("a_host_without_room_is_an_error_and_what_was_flushed_stays", DISKS, full),
];

const MIB: u64 = 1 << 20;
const RECORD: usize = 4096;
/// Places for records, which are used in turn; the load is behind them.
const PLACES: u64 = 1024;

fn three(guests: &Guests) {
    kill(guests, Format::Raw, 3);
    kill(guests, Format::Qcow2, 3);
}

fn twenty(guests: &Guests) {
    kill(guests, Format::Raw, 20);
    kill(guests, Format::Qcow2, 20);
}

/// A record's bytes: its number, again and again.
fn record(number: u64) -> Vec<u8> {
    format!("record {number}\n").bytes().cycle().take(RECORD).collect()
}

/// Kills Ombra `times` times while its guest writes numbered records, each synced and then told, beside a load of other writes.
fn kill(guests: &Guests, format: Format, times: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = match format {
        Format::Raw => raw_file(&folder, "disk", 32 * MIB),
        Format::Qcow2 => qcow2_file(&folder, "disk.qcow2", 32 * MIB, None),
    };
    let script = format!(
        "disk=$0 n=$1
        (while true; do dd if=/dev/urandom of=$disk bs=64k seek=64 count=256 conv=notrunc; done) 2>/dev/null &
        while true; do
            yes \"record $n\" | head -c {RECORD} | dd of=$disk bs={RECORD} seek=$((n % {PLACES})) conv=notrunc,fsync 2>/dev/null
            echo \"<$n>\"; n=$((n + 1))
        done"
    );
    let mut next = 1;
    for time in 0..times {
        let (bus, device) = if time % 2 == 0 { ("nvme", "/dev/nvme0n1") } else { ("virtio", "/dev/vda") };
        let mut command = guests.ombra();
        command.arg("--disk").arg(format!("{},bus={bus}", disk(&path)));
        command.args(["--", "sh", "-c", &script, device, &next.to_string()]);
        // At another moment each time.
        let last = next + 2 + time * 7 % 11;
        let ended = run(&mut command, Some(&format!("<{last}>")));
        let told = ended.text().lines().rev().find_map(number);
        let told = told.unwrap_or_else(|| panic!("nothing was synced: {}", ended.stderr));
        assert!(told >= last && ended.status.is_none(), "it was killed: {}{}", ended.text(), ended.stderr);
        next = told + 1;
        has_records(&path, format, next);
    }
}

/// What a line of the guest says has been synced.
fn number(line: &str) -> Option<u64> {
    line.strip_prefix('<')?.strip_suffix('>')?.parse().ok()
}

/// Whether all records before `next` are where they belong.
fn has_records(path: &Path, format: Format, next: u64) {
    let image = Image { format: Some(format), read_only: true, ..Image::new(path) };
    let layer = disk::open(&image).expect("the image is sound");
    for number in next.saturating_sub(PLACES).max(1)..next {
        let mut bytes = vec![0; RECORD];
        let first = Sector(number % PLACES * RECORD as u64 / SECTOR_BYTES);
        layer.read(first, &mut bytes).expect("it is there");
        assert!(bytes == record(number), "record {number} of {next} is lost");
    }
    drop(layer);
    if format == Format::Qcow2 {
        check(path);
    }
}

/// The image lies on a file system of a few MiB, in a mount namespace of the test's own.
fn full(guests: &Guests) {
    let can = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a full file system: mounting one isn't allowed here");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (bus, device) in [("virtio", "/dev/vda"), ("nvme", "/dev/nvme0n1")] {
        let inside = format!(
            "dd if=/dev/zero bs=1M count=2 2>/dev/null | tr '\\0' x | dd of={device} bs=1M conv=fsync 2>/dev/null && echo flushed
            dd if=/dev/urandom of={device} bs=1M seek=2 count=16 conv=fsync 2>/dev/null || echo full
            echo 3 > /proc/sys/vm/drop_caches; head -c 2097152 {device} | tr -d x | wc -c"
        );
        let ombra = guests.ombra();
        let mut command = Command::new("unshare");
        let outside =
            "mount -t tmpfs -o size=8m none \"$0\" && truncate -s 32M \"$0/disk\" && \"$@\"; code=$?
            head -c 2097152 \"$0/disk\" | tr -d x | wc -c; exit $code";
        command.args(["-rm", "sh", "-c", outside]).arg(folder.path()).arg(ombra.get_program());
        command.args(ombra.get_args());
        for (name, value) in ombra.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.arg("--disk").arg(format!("{}/disk,bus={bus}", folder.path().display()));
        command.args(["--", "sh", "-c", &inside]);
        let ended = run_for(&mut command, None, PATIENCE);
        assert_eq!(ended.text(), "flushed\nfull\n0\n0\n", "{}", ended.stderr);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let said = ended.stderr.lines().filter(|line| line.contains("writing failed")).count();
        assert!(said == 1 && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    }
}
