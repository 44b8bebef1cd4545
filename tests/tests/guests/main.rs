//! Real guests, started with the release binary: Debian's kernels, a command's status, a terminal, memtest86+.
//!
//! `cargo xtask test` builds the binary, fetches the guests and says where both are (`OMBRA_BIN`, `OMBRA_CACHE`). A test
//! whose guest isn't there is reported as ignored, after a line that says what is missing; with `OMBRA_NO_SKIP=1` it
//! fails. `OMBRA_LONG=1` adds what takes minutes. Each guest gets one core's time, so the tests may run side by side.
//!
//! Each test is run on the translator, and some ([`INTERPRETED`]) on the interpreter as well. `cargo test -p conformance --test guests -- PART_OF_A_NAME` runs some of them.

mod archive;
mod commands;
mod debian;
mod disks;
mod encrypted;
mod enlightenments;
mod folders;
mod jits;
mod kernels;
mod lifecycle;
mod losses;
mod network;
mod patching;
mod peers;
mod process;
mod stress;
mod terminals;

use libtest_mimic::{Arguments, Trial};
use process::Guests;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One test: its name, the files below `cache/guests` that it needs, what it does.
type Test = (&'static str, &'static [&'static str], fn(&Guests));

/// The engines that the binary offers, as `--engine` has them.
const ENGINES: &[&str] = &["translator", "interpreter"];

/// What the reference engine, which takes several times as long, is run with too. `OMBRA_LONG=1` adds all the others: tests of
/// machine and command line, to which the engine makes no difference, and long programs.
const INTERPRETED: &[&str] = &[
    "the_rt_kernel_boots_to_init_and_powers_off",
    "the_i386_kernel_boots_to_init_and_powers_off",
    "the_cloud_kernel_boots_to_init_and_powers_off",
    "the_cloud_kernel_boots_on_two_and_four_vcpus",
    "a_command_gives_its_own_status",
    "five_level_paging_is_there_when_asked_for",
    "linux_idles_by_mwait_where_it_is_offered",
    "a_kernel_may_change_its_code",
    "a_kernel_finds_kvms_interface_and_uses_it",
    "a_kernel_finds_hyperv_and_uses_it",
];

/// Tests that take minutes and show little that another doesn't: run with `OMBRA_LONG=1`.
const LONG: &[&str] = &[
    "memtest86_of_32_bits_runs_its_first_pass",
    "a_kernel_may_change_its_code_twenty_times",
    "node_computes_as_it_should",
    "the_cloud_kernel_boots_on_eight_vcpus",
    "the_cloud_kernel_boots_on_sixty_four_vcpus",
    "all_stressors_pass_on_two_vcpus",
    "all_stressors_pass_on_four_vcpus",
    "all_stressors_pass_on_eight_vcpus",
    "a_kernel_may_change_its_code_while_four_vcpus_run_it",
    "a_parallel_make_builds_what_it_should_on_two_four_and_eight_vcpus",
    "a_kernel_finds_kvms_interface_on_eight_vcpus",
    "a_kernel_finds_hyperv_on_eight_vcpus",
    "what_was_synced_survives_twenty_kills",
    "debian_boots_from_virtio_with_its_own_initramfs_takes_ssh_and_ends_clean",
    "a_gigabyte_passes_both_ways_unchanged",
];

/// What most tests need.
const CLOUD: &[&str] = &["cloud/vmlinuz", "busybox"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let strict = std::env::var_os("OMBRA_NO_SKIP").is_some_and(|value| value == "1");
    let cache = std::env::var_os("OMBRA_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache"), PathBuf::from);
    let long = std::env::var_os("OMBRA_LONG").is_some_and(|value| value == "1");
    let binary = std::env::var_os("OMBRA_BIN").map(PathBuf::from).filter(|path| path.is_file());
    let folder = cache.join("guests");
    let tests = [
        kernels::TESTS,
        commands::TESTS,
        lifecycle::TESTS,
        network::TESTS,
        peers::TESTS,
        terminals::TESTS,
        patching::TESTS,
        jits::TESTS,
        disks::TESTS,
        losses::TESTS,
        encrypted::TESTS,
        stress::TESTS,
        enlightenments::TESTS,
        debian::TESTS,
        folders::TESTS,
    ];
    let mut trials = Vec::new();
    for &(name, files, test) in tests.into_iter().flatten() {
        let missing = match &binary {
            None => Some("OMBRA_BIN names no binary; `cargo xtask test` builds and names it".to_owned()),
            Some(_) => files
                .iter()
                .map(|file| folder.join(file))
                .find(|path| !path.exists())
                .map(|path| format!("there is no {}; {}", path.display(), source(&path))),
        };
        if let (Some(missing), false) = (&missing, arguments.list) {
            eprintln!("SKIPPED {name}: {missing}");
        }
        let too_long = LONG.contains(&name) && !long;
        if too_long && !arguments.list {
            eprintln!("SKIPPED {name}: it takes minutes; OMBRA_LONG=1 runs it");
        }
        let ignored = too_long || missing.is_some() && !strict;
        for &engine in ENGINES {
            let missing = missing.clone();
            let guests =
                Guests { binary: binary.clone().unwrap_or_default(), folder: folder.clone(), engine };
            let left_out = engine == "interpreter" && !INTERPRETED.contains(&name) && !long;
            let ignored = ignored || left_out;
            let run = move || match missing {
                Some(missing) => Err(missing.into()),
                None => {
                    test(&guests);
                    Ok(())
                }
            };
            trials.push(Trial::test(format!("{engine}::{name}"), run).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What makes a missing file.
fn source(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if path.parent().is_some_and(|folder| folder.ends_with("guests/debian")) {
        return "`cargo xtask rootfs debian` makes it".to_owned();
    }
    match name.strip_prefix("rootfs-") {
        Some(name) => format!("`cargo xtask rootfs {name}` makes it"),
        None => "`cargo xtask guests` fetches it".to_owned(),
    }
}
