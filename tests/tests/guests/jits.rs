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
    ("luajit_computes_as_it_should_with_little_code_memory", &["cloud/vmlinuz", "rootfs-jit.cpio"], little),
    ("node_computes_as_it_should", &["cloud/vmlinuz", "rootfs-node.cpio"], node),
];

const LUAJIT: &[&str] = &[
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

fn luajit(guests: &Guests) {
    prints(&load(guests, "rootfs-jit.cpio", "load.lua", "luajit /load.lua", &[]), LUAJIT);
}

/// A boot alone translates some ten times as much as there is room for: everything is evicted again and again.
fn little(guests: &Guests) {
    let stats = tempfile::NamedTempFile::new().expect("a file");
    let flag = format!("--stats={}", stats.path().display());
    let ended =
        load(guests, "rootfs-jit.cpio", "load.lua", "luajit /load.lua", &["--code-cache", "1M", &flag]);
    prints(&ended, LUAJIT);
    if guests.engine == "translator" {
        let stats = fs::read_to_string(stats.path()).expect("the counts");
        let evictions = stats.split_once("\"evictions\":").and_then(|(_, rest)| {
            rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
        });
        assert!(evictions.is_some_and(|evictions| evictions > 50), "{evictions:?} evictions: {stats}");
    }
}

fn node(guests: &Guests) {
    let ended = load(guests, "rootfs-node.cpio", "load.js", "node --trace-opt /load.js", &[]);
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
fn load(guests: &Guests, rootfs: &str, program: &str, command: &str, flags: &[&str]) -> Ended {
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
    ombra.args(flags);
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
