//! Encrypted disks: the guest doesn't notice, the host's file shows nothing, and what fails is an I/O error.

use crate::Test;
use crate::process::{Ended, Guests, run, run_and};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub(crate) const TESTS: &[Test] = &[
    ("a_guest_finds_its_files_again_on_an_encrypted_disk", DISKS, again),
    ("several_techniques_serve_several_disks_at_once", DISKS, several),
    ("a_plug_in_that_is_killed_is_an_io_error", DISKS, killed),
    ("images_are_made_converted_and_described", &[], images),
];

const DISKS: &[&str] = &["cloud/vmlinuz", "cloud/modules", "busybox"];
const CANARY: &str = "yellow, feathery and in clear text";

/// `ombra disk`, which has to succeed; what it says.
fn ombra_disk(guests: &Guests, folder: &TempDir, words: &[&str]) -> String {
    let output = Command::new(&guests.binary).arg("disk").args(words).current_dir(folder.path()).output();
    let output = output.expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn guest(guests: &Guests, folder: &TempDir, disks: &[&str], script: &str) -> Ended {
    let mut command = guests.ombra();
    command.current_dir(folder.path());
    for disk in disks {
        command.args(["--disk", disk]);
    }
    run(command.args(["--", "sh", "-ec", script]), None)
}

#[track_caller]
fn succeeded(ended: &Ended) {
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{}", ended.text());
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("key"), "open sesame").expect("written");
    fs::write(folder.path().join("raw.key"), [7; 64]).expect("written");
    folder
}

fn shows(path: &Path) -> bool {
    let bytes = fs::read(path).expect("read");
    bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

fn again(guests: &Guests) {
    let folder = folder();
    let disk = "disk.qcow2,encrypt=luks2,key-file=key";
    ombra_disk(guests, &folder, &["create", disk, "32M", "--iter-time", "20"]);
    let script = format!(
        "mkdir -p /mnt; mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt
        for i in $(seq 1 50); do echo '{CANARY}' $i > /mnt/$i; done; seq 1 200000 > /mnt/numbers
        sha256sum /mnt/numbers; umount /mnt"
    );
    let first = guest(guests, &folder, &[disk], &script);
    succeeded(&first);
    assert!(!shows(&folder.path().join("disk.qcow2")));
    // What is written to a snapshot is ciphertext as well, and forgotten.
    let forgotten = format!("{disk},snapshot=on");
    succeeded(&guest(
        guests,
        &folder,
        &[&forgotten],
        "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; rm /mnt/numbers; umount /mnt",
    ));
    let script =
        "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; sha256sum /mnt/numbers; cat /mnt/50; umount /mnt";
    let second = guest(guests, &folder, &[disk], script);
    succeeded(&second);
    assert_eq!(second.text(), format!("{}{CANARY} 50\n", first.text()));
    fs::write(folder.path().join("key"), "open barley").expect("written");
    let wrong = guest(guests, &folder, &[disk], "true");
    assert_eq!(wrong.status, Some(125));
    assert!(wrong.stderr.contains("disk.qcow2") && wrong.stderr.contains("wrong"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("barley"));
}

/// The example of a plug-in that is a process, where there is a compiler.
fn plug_in(folder: &TempDir) -> bool {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/crypt/examples/process.c");
    match Command::new("cc").arg(example).arg("-o").arg(folder.path().join("plug-in")).status() {
        Ok(status) => {
            assert!(status.success(), "the example compiles");
            true
        }
        Err(error) => {
            eprintln!("SKIPPED plug-ins: no C compiler: {error}");
            false
        }
    }
}

fn several(guests: &Guests) {
    let folder = folder();
    let mut disks = vec![
        "one,encrypt=luks1,key-file=key",
        "two,encrypt=luks2,key-file=key",
        "three,encrypt=xts,key-file=raw.key",
        "four",
    ];
    if plug_in(&folder) {
        disks.push("five,encrypt=plugin:plug-in,key-file=key");
    }
    for disk in &disks {
        let mut words = vec!["create", disk, "4M"];
        if disk.contains("luks") {
            words.extend(["--iter-time", "20"]);
        }
        ombra_disk(guests, &folder, &words);
    }
    let script = format!(
        "for disk in /dev/vd?; do cat /sys/block/${{disk#/dev/}}/size; yes '{CANARY}' | head -c 4194304 > $disk; done
        sync; echo 3 > /proc/sys/vm/drop_caches; cat /dev/vd? | sha256sum"
    );
    let ended = guest(guests, &folder, &disks, &script);
    succeeded(&ended);
    let text = ended.text();
    let (sizes, sum) = text.trim_end().rsplit_once('\n').expect("lines");
    assert!(sizes.lines().count() == disks.len() && sizes.lines().all(|size| size == "8192"), "{text}");
    for disk in &disks {
        let name = disk.split(',').next().expect("a name");
        assert_eq!(shows(&folder.path().join(name)), name == "four", "{name}");
    }
    let again = guest(guests, &folder, &disks, "cat /dev/vd? | sha256sum");
    assert_eq!(again.text().trim_end(), sum);
}

/// The plug-in of a guest that writes is killed in the middle.
fn killed(guests: &Guests) {
    let folder = folder();
    if !plug_in(&folder) {
        return;
    }
    let disk = "disk,encrypt=plugin:./plug-in,key-file=key";
    ombra_disk(guests, &folder, &["create", disk, "16M"]);
    let mut command = guests.ombra();
    command.current_dir(folder.path()).args(["--disk", disk]);
    let script = "seq 1 100000 | dd of=/dev/vda bs=4k conv=fsync 2>/dev/null && echo written
        while dd if=/dev/zero of=/dev/vda bs=64k seek=32 count=32 conv=fsync 2>/dev/null; do true; done
        echo failed; dd if=/dev/vda of=/dev/null bs=4k skip=2000 count=1 2>/dev/null || echo unreadable; echo alive";
    command.args(["--", "sh", "-c", script]);
    let plug_in: PathBuf = folder.path().join("plug-in").canonicalize().expect("there");
    let ended = run_and(&mut command, "written", || {
        let mut killed = 0;
        for process in fs::read_dir("/proc").expect("processes").flatten() {
            if fs::read_link(process.path().join("exe")).is_ok_and(|exe| exe == plug_in) {
                let status = Command::new("kill").arg("-KILL").arg(process.file_name()).status();
                killed += i32::from(status.is_ok_and(|status| status.success()));
            }
        }
        assert_eq!(killed, 1, "one plug-in was killed");
    });
    assert_eq!(ended.text(), "written\nfailed\nunreadable\nalive\n", "{}", ended.stderr);
    assert_eq!(ended.status, Some(0));
    assert!(ended.stderr.contains("disk") && ended.stderr.contains("plug-in"), "{}", ended.stderr);
    assert!(ended.stderr.lines().count() <= 3, "{}", ended.stderr);
    // What was flushed before is there.
    let start = guest_reads(guests, &folder, disk);
    assert!(start.starts_with("1\n2\n3\n4\n5\n6\n7\n8\n9\n"), "{start}");
}

fn guest_reads(guests: &Guests, folder: &TempDir, disk: &str) -> String {
    let ended = guest(guests, folder, &[disk], "head -c 1000 /dev/vda");
    succeeded(&ended);
    ended.text()
}

/// Needs no guest: what the command line makes and says.
fn images(guests: &Guests) {
    let folder = folder();
    let file = |name: &str| folder.path().join(name);
    let text = "some text\n".repeat(100_000);
    let mut bytes = text.into_bytes();
    bytes.resize(1 << 20, 0);
    fs::write(file("raw"), bytes).expect("written");
    ombra_disk(guests, &folder, &["convert", "raw", "a.qcow2"]);
    ombra_disk(guests, &folder, &["convert", "a.qcow2", "b,encrypt=luks1,key-file=key", "--iter-time", "20"]);
    ombra_disk(
        guests,
        &folder,
        &["convert", "b,encrypt=luks,key-file=key", "c.qcow2", "--qcow2-version", "2"],
    );
    ombra_disk(guests, &folder, &["convert", "c.qcow2", "back"]);
    assert!(fs::read(file("raw")).expect("read") == fs::read(file("back")).expect("read"));
    ombra_disk(guests, &folder, &["create", "top.qcow2", "--backing", "a.qcow2"]);
    let info = ombra_disk(guests, &folder, &["info", "top.qcow2"]);
    assert!(info.contains("1 MiB (1048576 bytes)") && info.contains("a.qcow2 (qcow2)"), "{info}");
    let info = ombra_disk(guests, &folder, &["info", "b,encrypt=luks,key-file=key"]);
    for part in
        ["LUKS1", "aes-xts-plain64", "512 bits", "key slot:   0: pbkdf2", "guest sees: 1 MiB (1048576 bytes)"]
    {
        assert!(info.contains(part), "{part}: {info}");
    }
    for (words, part) in [
        (vec!["create", "raw", "1M"], "there already"),
        (vec!["create", "new"], "SIZE"),
        (vec!["create", "new,encrypt=xts,key-file=key", "1M"], "64 bytes"),
        (vec!["create", "new", "1M", "--cipher", "aes-xts-plain64"], "encrypt="),
        (vec!["info", "nothing"], "can't open nothing"),
        (vec!["convert", "b,encrypt=luks,key-file=raw.key", "new"], "wrong"),
    ] {
        let output =
            Command::new(&guests.binary).arg("disk").args(&words).current_dir(folder.path()).output();
        let output = output.expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && errors.lines().count() == 1 && errors.contains(part),
            "{words:?}: {errors}"
        );
        assert!(!file("new").exists(), "{words:?} leaves nothing");
    }
}
