//! Many vCPUs that all work at once: Debian's kernel on up to 64 of them, what it finds of their topology, what those that have
//! nothing to do cost, and stress-ng, hackbench and a parallel make on several. `guests/stress/init.sh` runs the latter.

use crate::archive::with_files;
use crate::kernels::healthy;
use crate::process::{Guests, run, run_for};
use crate::{CLOUD, Test};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const STRESS: &[&str] = &["cloud/vmlinuz", "rootfs-stress.cpio"];
const MAKE: &[&str] = &["cloud/vmlinuz", "rootfs-make.cpio"];

pub(crate) const TESTS: &[Test] = &[
    ("the_cloud_kernel_boots_on_eight_vcpus", CLOUD, |guests| boots(guests, 8)),
    ("the_cloud_kernel_boots_on_sixteen_vcpus", CLOUD, |guests| boots(guests, 16)),
    ("the_cloud_kernel_boots_on_sixty_four_vcpus", CLOUD, |guests| boots(guests, 64)),
    ("vcpus_that_wait_cost_no_time", CLOUD, idle),
    ("processes_on_four_vcpus_do_what_they_should", STRESS, |guests| {
        stress(guests, STRESS, 4, 1, "fork mprotect hackbench");
    }),
    ("all_stressors_pass_on_two_vcpus", STRESS, |guests| stress(guests, STRESS, 2, 5, ALL)),
    ("all_stressors_pass_on_four_vcpus", STRESS, |guests| stress(guests, STRESS, 4, 5, ALL)),
    ("all_stressors_pass_on_eight_vcpus", STRESS, |guests| stress(guests, STRESS, 8, 5, ALL)),
    ("a_kernel_may_change_its_code_while_four_vcpus_run_it", STRESS, |guests| {
        stress(guests, STRESS, 4, 5, "changes");
    }),
    ("a_parallel_make_builds_what_it_should_on_two_four_and_eight_vcpus", MAKE, |guests| {
        [2, 4, 8].into_iter().for_each(|cpus| stress(guests, MAKE, cpus, 1, "make"));
    }),
];

const ALL: &str = "fork vm mmap mprotect mremap futex switch context hackbench";

/// Boots, runs one process on each vCPU, and looks at what Linux has made of the topology: one package, cores of one thread.
fn boots(guests: &Guests, cpus: usize) {
    let script = "nproc
        for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh -c 'echo ran' & done; wait
        cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -n | uniq -d
        for name in physical_package_id thread_siblings_list core_siblings_list; do
            cat /sys/devices/system/cpu/cpu*/topology/$name | sort -u | wc -l
        done
        dmesg";
    let mut command = guests.ombra();
    let ended = run(command.args(["--cpus", &cpus.to_string(), "--", "sh", "-c", script]), None);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().take(cpus + 4).collect();
    let mut wanted = vec![cpus.to_string()];
    wanted.extend(vec!["ran".to_owned(); cpus]);
    wanted.extend(["1".to_owned(), cpus.to_string(), "1".to_owned()]);
    assert_eq!(lines, wanted, "{text}\n{}", ended.stderr);
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

/// Processor time that a process has used, all its threads together, in hundredths of a second (proc(5)).
fn cpu_time(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; utime and stime are the 14th and 15th field.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// While a guest on sixteen vCPUs sleeps, its process uses hardly any time.
fn idle(guests: &Guests) {
    const SLEEP: u64 = 8;
    let mut command = guests.ombra();
    command.args(["--cpus", "16", "--", "sh", "-c"]);
    command.arg(format!("sleep 2; echo begin; sleep {SLEEP}; echo end; sleep 1"));
    let child = std::cell::Cell::new((None, None));
    let ended = crate::process::run_watched(&mut command, |process, stdout| {
        let (mut begin, mut end) = child.get();
        let has = |mark: &[u8]| stdout.windows(mark.len()).any(|window| window == mark);
        if begin.is_none() && has(b"begin\n") {
            begin = cpu_time(process);
        }
        if end.is_none() && has(b"end\n") {
            end = cpu_time(process);
        }
        child.set((begin, end));
    });
    let (Some(begin), Some(end)) = child.get() else {
        panic!("no times: {}\n{}", ended.text(), ended.stderr);
    };
    // Sixteen busy vCPUs would take 800 at least on one core. Timers of the kernel's own come some ten times a second.
    assert!(end - begin < 20 * SLEEP, "{} hundredths of a second in {SLEEP} s", end - begin);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}

/// `files`: the kernel and the archive. Runs the parts of the script, each stressor for so many seconds.
fn stress(guests: &Guests, files: &[&str], cpus: usize, seconds: u32, parts: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/stress/init.sh");
    let initramfs = with_files(
        &guests.file(files[1]),
        &[
            ("init", fs::read(script).expect("a script")),
            ("parts", format!("{parts}\n").into_bytes()),
            ("seconds", format!("{seconds}\n").into_bytes()),
        ],
    );
    let mut command: Command = guests.ombra();
    command.arg("--kernel").arg(guests.file(files[0])).arg("--initramfs").arg(initramfs.path());
    command.args(["--memory", "2G", "--cpus", &cpus.to_string(), "--no-reboot", "--cmdline"]);
    command.arg("console=ttyS0 no_timer_check quiet panic=-1");
    let ended = run_for(&mut command, None, Duration::from_secs(1800));
    let text = ended.text();
    assert!(!text.contains("not ok"), "{text}");
    assert!(text.contains("stress-done"), "it ended early: {text}\n{}", ended.stderr);
    let wanted = parts.split(' ').count() + usize::from(parts.contains("hackbench"));
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), wanted, "{text}");
    healthy(&text);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
}
