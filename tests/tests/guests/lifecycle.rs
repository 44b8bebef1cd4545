//! Reset, power-off, triple fault, and where the console goes.

use crate::archive::initramfs;
use crate::process::{Ended, Guests, PATIENCE, run, run_for};
use crate::{CLOUD, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_guest_that_reboots_boots_again", CLOUD, |guests| {
        let ended = reboot(guests, &[], Some(("init-starts", 2)));
        assert_eq!(ended.text().matches("init-starts").count(), 2, "{}", ended.text());
    }),
    ("a_reboot_ends_the_run_where_that_is_asked_for", CLOUD, |guests| {
        let ended = reboot(guests, &["--no-reboot"], None);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert_eq!(ended.text().matches("init-starts").count(), 1, "{}", ended.text());
    }),
    ("a_triple_fault_ends_with_125_and_the_vcpus_state", CLOUD, triple_fault),
    ("the_console_goes_to_a_file", CLOUD, file),
];

/// A guest that resets as soon as it is up.
fn reboot(guests: &Guests, flags: &[&str], until: Option<(&str, usize)>) -> Ended {
    let initramfs = initramfs(&guests.file("busybox"), "echo init-starts\n/bin/busybox reboot -f");
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file("cloud/vmlinuz")).arg("--initramfs").arg(initramfs.path());
    run_for(command.args(["--cmdline", "console=ttyS0 no_timer_check quiet"]).args(flags), until, PATIENCE)
}

fn triple_fault(guests: &Guests) {
    // Linux's own way to force a reset by a triple fault.
    let ended = run(guests.ombra().args(["--cmdline", "reboot=t", "--", "reboot", "-f"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("", Some(125)), "{}", ended.stderr);
    for part in ["triple fault on vCPU 0", "rip ", "cr3 ", "idt base 0000000000000000"] {
        assert!(ended.stderr.contains(part), "no `{part}` in {}", ended.stderr);
    }
}

fn file(guests: &Guests) {
    let initramfs = initramfs(&guests.file("busybox"), "echo init-starts\n/bin/busybox poweroff -f");
    let serial = tempfile::NamedTempFile::new().expect("a file");
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file("cloud/vmlinuz")).arg("--initramfs").arg(initramfs.path());
    let ended = run(command.arg(format!("--serial=file:{}", serial.path().display())), None);
    assert_eq!((ended.text().as_str(), ended.stderr.as_str(), ended.status), ("", "", Some(0)));
    let log = std::fs::read_to_string(serial.path()).expect("text");
    assert!(log.contains("Linux version") && log.contains("init-starts"), "{log}");
}
