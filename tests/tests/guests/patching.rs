//! A kernel that changes its own code while it runs: Debian's with ftrace, kprobes, static keys, BPF's compiler, modules.
//! `guests/patching/init.sh` does it and checks it.

use crate::Test;
use crate::archive::with_files;
use crate::kernels::healthy;
use crate::process::{Guests, run_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILES: &[&str] = &["cloud/vmlinuz", "cloud/modules", "rootfs-jit.cpio"];
/// Checks that a turn makes.
const CHECKS: usize = 22;

pub(crate) const TESTS: &[Test] = &[
    ("a_kernel_may_change_its_code", FILES, |guests| changes(guests, 1, 1)),
    ("a_kernel_may_change_its_code_on_two_vcpus", FILES, |guests| changes(guests, 1, 2)),
    ("a_kernel_may_change_its_code_twenty_times", FILES, |guests| changes(guests, 20, 1)),
];

fn changes(guests: &Guests, turns: usize, cpus: usize) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/patching");
    let script = |name: &str| fs::read(scripts.join(name)).expect("a script");
    let module = |name: &str| {
        let path = find(&guests.file("cloud/modules"), name).unwrap_or_else(|| panic!("no {name}"));
        fs::read(path).expect("a module")
    };
    let initramfs = with_files(
        &guests.file("rootfs-jit.cpio"),
        &[
            ("init", script("init.sh")),
            ("bpf.lua", script("bpf.lua")),
            ("calls.lua", script("calls.lua")),
            ("turns", format!("{turns}\n").into_bytes()),
            ("dummy.ko", module("dummy.ko")),
            ("brd.ko", module("brd.ko")),
        ],
    );
    let mut command = guests.ombra();
    command.arg("--kernel").arg(guests.file("cloud/vmlinuz")).arg("--initramfs").arg(initramfs.path());
    command.args(["--cpus", &cpus.to_string(), "--no-reboot", "--cmdline"]);
    command.arg("console=ttyS0 no_timer_check quiet panic=-1");
    let patience = Duration::from_secs(300 + 120 * turns as u64);
    let ended = run_for(&mut command, None, patience);
    let text = ended.text();
    assert!(!text.contains("not ok"), "{text}");
    assert!(text.contains("patching-done"), "it ended early: {text}\n{}", ended.stderr);
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), CHECKS * turns, "{text}");
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

/// The file of that name below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    None
}
