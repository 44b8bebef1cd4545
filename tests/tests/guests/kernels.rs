//! Unchanged kernels boot: Debian's for clouds, for real time and for i386; memtest86+ on bare metal.

use crate::archive::initramfs;
use crate::process::{Guests, run, run_for};
use crate::{CLOUD, Test};
use std::time::Duration;

/// memtest86+ tests 64 MiB with some ten thousand million instructions.
const MEMTEST_PATIENCE: Duration = Duration::from_secs(1800);

pub(crate) const TESTS: &[Test] = &[
    ("memtest86_of_32_bits_runs_its_first_pass", &["memtest86+ia32.bin"], |guests| {
        memtest(guests, "memtest86+ia32.bin");
    }),
    ("memtest86_of_64_bits_runs_its_first_pass", &["memtest86+x64.bin"], |guests| {
        memtest(guests, "memtest86+x64.bin");
    }),
    ("the_rt_kernel_boots_to_init_and_powers_off", &["rt/vmlinuz", "busybox"], |guests| {
        boots(guests, "rt/vmlinuz", "busybox", "x86_64");
    }),
    ("the_i386_kernel_boots_to_init_and_powers_off", &["686-pae/vmlinuz", "busybox-i386"], |guests| {
        boots(guests, "686-pae/vmlinuz", "busybox-i386", "i686");
    }),
    ("the_cloud_kernel_boots_to_init_and_powers_off", CLOUD, |guests| {
        boots(guests, "cloud/vmlinuz", "busybox", "x86_64");
    }),
    ("the_cloud_kernel_boots_on_two_and_four_vcpus", CLOUD, several_vcpus),
    ("a_guest_may_have_more_memory_than_the_host", CLOUD, much_memory),
    ("the_guests_clock_is_the_tsc_and_keeps_time", CLOUD, clock),
];

fn boots(guests: &Guests, kernel: &str, busybox: &str, machine: &str) {
    let script = "echo init-runs on $(/bin/busybox uname -m)\n/bin/busybox poweroff -f";
    let initramfs = initramfs(&guests.file(busybox), script);
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file(kernel)).arg("--initramfs").arg(initramfs.path());
    // The kernel looks whether its timer works, which it does however busy the host is.
    let ended = run(command.args(["--cmdline", "console=ttyS0 panic=-1", "--no-reboot"]), None);
    let text = ended.text();
    assert!(text.contains(&format!("init-runs on {machine}")), "{text}\n{}", ended.stderr);
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

/// Nothing in the kernel's log that a sound machine doesn't cause.
#[track_caller]
pub(crate) fn healthy(log: &str) {
    for symptom in [
        "WARNING:",
        "BUG:",
        "Oops",
        "Call Trace",
        "lockup",
        "detected stalls",
        "unstable",
        "ACPI Error",
        "ACPI BIOS Error",
        "Firmware Bug",
        "Firmware Warn",
        "nobody cared",
        "MP-BIOS bug",
        "timed out",
    ] {
        assert!(!log.contains(symptom), "the log has `{symptom}`: {log}");
    }
}

fn several_vcpus(guests: &Guests) {
    for cpus in ["2", "4"] {
        let mut command = guests.ombra();
        let ended = run(command.args(["--cpus", cpus, "--", "sh", "-c", "nproc; dmesg"]), None);
        let text = ended.text();
        assert_eq!(text.lines().next(), Some(cpus), "{text}\n{}", ended.stderr);
        healthy(&text);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    }
}

fn much_memory(guests: &Guests) {
    let mut command = guests.ombra();
    let script = "grep MemTotal /proc/meminfo";
    let ended = run(command.args(["--memory", "64G", "--", "sh", "-c", script]), None);
    let text = ended.text();
    let kib: u64 = text.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    assert!(kib > 60 << 20, "{text}\n{}", ended.stderr);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

fn clock(guests: &Guests) {
    let script = "echo clock-begin; sleep 2; echo clock-end; \
                  cat /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg";
    let ended = run(guests.ombra().args(["--", "sh", "-c", script]), None);
    let text = ended.text();
    let slept = ended.when("clock-end") - ended.when("clock-begin");
    // A loaded host may be late, never early; what the serial port takes is far below a tenth.
    assert!(slept >= Duration::from_millis(1900) && slept < Duration::from_secs(10), "{slept:?}");
    assert!(text.contains("\ntsc\n"), "another clock: {text}");
    assert!(text.contains("clocksource: Switched to clocksource tsc\n"), "{text}");
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

fn memtest(guests: &Guests, image: &str) {
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file(image));
    command.args(["--memory", "64M", "--cmdline", "console=ttyS0,115200"]);
    let ended = run_for(&mut command, Some(("Pass:  1", 1)), MEMTEST_PATIENCE);
    let text = ended.text();
    assert!(text.contains("Memtest86+"), "{image}: {}", ended.stderr);
    assert!(text.contains("Pass:  1"), "{image}: no first pass: {text}");
    let errors = text.match_indices("Errors: ").map(|(at, mark)| text[at + mark.len()..].trim_start());
    assert!(errors.clone().count() > 0, "{image}: {text}");
    assert!(errors.into_iter().all(|count| count.starts_with('0')), "{image}: memory errors: {text}");
}
