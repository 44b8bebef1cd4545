//! Programs that write code while they run: Debian's LuaJIT and Node compute what is known from elsewhere.

use crate::Test;
use crate::archive::with_files;
use crate::kernels::healthy;
use crate::process::{Ended, Guests, run_for};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Node starts with some thousand million instructions.
const PATIENCE: Duration = Duration::from_secs(900);

pub(crate) const TESTS: &[Test] = &[
    ("luajit_computes_as_it_should", &["cloud/vmlinuz", "rootfs-jit.cpio"], luajit),
    ("node_computes_as_it_should", &["cloud/vmlinuz", "rootfs-node.cpio"], node),
];

fn luajit(guests: &Guests) {
    let ended = load(guests, "rootfs-jit.cpio", "load.lua", "luajit /load.lua");
    let wanted = [
        "primes 9592",
        "queens 92",
        "fibonacci 17711",
        "crc32 cbf43926",
        "collatz 6171",
        "basel 3.141593",
        "sorted yes",
        "shapes 1085000",
        "regenerated 25050000",
        "compiled true",
        "status 0",
    ];
    prints(&ended, &wanted);
}

fn node(guests: &Guests) {
    let ended = load(guests, "rootfs-node.cpio", "load.js", "node --trace-opt /load.js");
    let wanted = [
        "primes 9592",
        "queens 92",
        "fibonacci 17711",
        "collatz 6171",
        "changing 70000",
        "power 3168729087",
        "caught 1000",
        "matched 1500",
        "webassembly 10000",
        "status 0",
    ];
    prints(&ended, &wanted);
    assert!(ended.text().contains("completed optimizing"), "it compiled nothing: {}", ended.text());
}

/// Boots to `command` with `program` in the root.
fn load(guests: &Guests, rootfs: &str, program: &str, command: &str) -> Ended {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/jit");
    let script = |name: &str| fs::read(folder.join(name)).expect("a script");
    let initramfs = with_files(
        &guests.file(rootfs),
        &[
            ("init", script("init.sh")),
            (program, script(program)),
            ("command", format!("{command}\n").into_bytes()),
        ],
    );
    let mut ombra = guests.ombra();
    ombra.arg("--kernel").arg(guests.file("cloud/vmlinuz")).arg("--initramfs").arg(initramfs.path());
    ombra.args(["--memory", "1G", "--no-reboot", "--cmdline", "console=ttyS0 no_timer_check panic=-1"]);
    run_for(&mut ombra, None, PATIENCE)
}

/// The lines that don't come from the kernel or from tracing are `wanted`.
#[track_caller]
fn prints(ended: &Ended, wanted: &[&str]) {
    let text = ended.text();
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.starts_with('[')).collect();
    assert_eq!(lines, wanted, "{text}\n{}", ended.stderr);
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}
