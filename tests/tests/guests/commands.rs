//! A command in a guest: its status, its streams, and nothing else on them.

use crate::process::{Guests, run};
use crate::{CLOUD, Test};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("a_command_gives_its_own_status", CLOUD, status),
    ("a_command_that_says_nothing_is_silent", CLOUD, silence),
    ("a_command_that_is_not_there_gives_127", CLOUD, not_there),
    ("a_command_reads_stdin_to_its_end", CLOUD, stdin),
    ("a_command_that_reads_late_loses_no_input", CLOUD, late),
    ("all_bytes_pass_both_ways_unchanged", CLOUD, bytes),
    ("a_kernel_without_a_console_driver_has_serial_ports_for_the_streams", CLOUD, serial),
    ("a_gigabyte_passes_both_ways_unchanged", CLOUD, gigabyte),
    ("a_guest_that_fails_shows_its_log_where_it_was_kept_back", CLOUD, fails),
    ("five_level_paging_is_there_when_asked_for", CLOUD, la57),
    ("linux_idles_by_mwait_where_it_is_offered", CLOUD, mwait),
    ("kernel_messages_are_shown_on_stderr_when_asked_for", CLOUD, verbose),
    ("linux_finds_nothing_to_mitigate_at_a_cost", CLOUD, mitigations),
    ("what_was_counted_is_written_at_the_end", CLOUD, stats),
    ("a_reader_of_stdout_that_goes_away_ends_the_run_with_one_line", CLOUD, reader_goes),
];

fn status(guests: &Guests) {
    let ended = run(guests.ombra().args(["--", "sh", "-c", "echo out; echo err >&2; exit 7"]), None);
    assert_eq!((ended.text().as_str(), ended.stderr.as_str(), ended.status), ("out\n", "err\n", Some(7)));
}

fn silence(guests: &Guests) {
    let ended = run(guests.ombra().args(["--", "true"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("", Some(0)), "{}", ended.stderr);
    assert_eq!(ended.stderr, "");
}

/// Linux says of each leak that the CPU isn't affected, but for two that it never believes in: of those the remedies are cheap.
fn mitigations(guests: &Guests) {
    let script = "cd /sys/devices/system/cpu/vulnerabilities && grep . *";
    let ended = run(guests.ombra().args(["--", "sh", "-c", script]), None);
    let text = ended.text();
    assert!(text.contains("meltdown:Not affected"), "{text}{}", ended.stderr);
    for line in text.lines() {
        let cheap = match line.split_once(':') {
            Some(("spectre_v1", _)) => true,
            Some(("spectre_v2", how)) => how.contains("IBRS") && !how.contains("Retpoline"),
            Some(("srbds", how)) => how.contains("No microcode") || how.contains("Not affected"),
            Some((_, how)) => how == "Not affected",
            None => false,
        };
        assert!(cheap, "{line}");
    }
}

fn stats(guests: &Guests) {
    let ended = run(guests.ombra().args(["--stats", "--", "true"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("", Some(0)), "{}", ended.stderr);
    let count = |name: &str| -> u64 {
        let line = ended.stderr.lines().find_map(|line| line.trim_start().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {}", ended.stderr))
            .replace(' ', "")
            .parse()
            .expect("a number")
    };
    assert!(count("interpreted ") > 1000, "{}", ended.stderr);
    assert!(count("beside guest RAM bytes ") > 1 << 20, "{}", ended.stderr);

    let file = tempfile::NamedTempFile::new().expect("a file");
    let flag = format!("--stats={}", file.path().display());
    let ended = run(guests.ombra().args([&flag, "--", "true"]), None);
    assert_eq!((ended.stderr.as_str(), ended.status), ("", Some(0)));
    let text = fs::read_to_string(file.path()).expect("a file");
    assert!(text.starts_with('{') && text.contains("\"interpreted\""), "{text}");
}

fn not_there(guests: &Guests) {
    let ended = run(guests.ombra().args(["--", "no-such-command"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("", Some(127)), "{}", ended.stderr);
    assert!(ended.stderr.contains("no-such-command"), "{}", ended.stderr);
}

fn stdin(guests: &Guests) {
    let mut part = fs::read(guests.file("busybox")).expect("busybox");
    part.truncate(200_000);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), part).expect("a file");
    let sum = Command::new("md5sum").arg(file.path()).output().expect("md5sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
    let mut command = guests.ombra();
    command.stdin(fs::File::open(file.path()).expect("a file"));
    let ended = run(command.args(["--", "md5sum"]), None);
    assert!(ended.text().starts_with(&sum), "{sum} is not {}; {}", ended.text(), ended.stderr);
    assert_eq!(ended.status, Some(0));
}

/// The guest's buffers hold some 200 KB; more must wait with the host.
fn late(guests: &Guests) {
    let mut numbers = 1u32..;
    let all: Vec<u8> =
        numbers.by_ref().take(3 << 17).flat_map(|number| number.wrapping_mul(40_503).to_le_bytes()).collect();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&all).expect("a file");
    let sum = Command::new("md5sum").arg(file.path()).output().expect("md5sum");
    let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
    let input = fs::File::open(file.path()).expect("a file");
    let ended = run(guests.ombra().stdin(input).args(["--", "sh", "-c", "sleep 10; md5sum"]), None);
    assert!(ended.text().starts_with(&sum), "{sum} is not {}; {}", ended.text(), ended.stderr);
    assert_eq!(ended.status, Some(0));
}

fn bytes(guests: &Guests) {
    let all: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&all).expect("a file");
    std::io::Seek::rewind(&mut file).expect("a file");
    let ended = run(guests.ombra().stdin(file).args(["--", "cat"]), None);
    assert!(ended.stdout == all, "{} bytes came back; {}", ended.stdout.len(), ended.stderr);
    assert_eq!((ended.stderr.as_str(), ended.status), ("", Some(0)));
}

fn serial(guests: &Guests) {
    let all: Vec<u8> = (0..=255u8).cycle().take(1 << 16).collect();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&all).expect("a file");
    std::io::Seek::rewind(&mut file).expect("a file");
    // The driver is there, but no port.
    let words =
        ["--no-console", "--", "sh", "-c", "cat; echo err >&2; ls /sys/class/virtio-ports >&2; exit 3"];
    let ended = run(guests.ombra().stdin(file).args(words), None);
    assert!(ended.stdout == all, "{} bytes came back; {}", ended.stdout.len(), ended.stderr);
    assert_eq!((ended.stderr.as_str(), ended.status), ("err\n", Some(3)));
}

/// Sums of what went in, of what the guest saw and of what came out.
fn gigabyte(guests: &Guests) {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let piece: Vec<u8> =
        (0..1u32 << 18).flat_map(|number| number.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    for number in 0..1024u32 {
        file.write_all(&number.to_le_bytes()).expect("room for 1 GiB");
        file.write_all(&piece[4..]).expect("room for 1 GiB");
    }
    let sum = |input: Stdio| {
        let output = Command::new("sha256sum").stdin(input).output().expect("sha256sum");
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
    };
    let open = || fs::File::open(file.path()).expect("a file");
    let mut child = guests.ombra().stdin(open()).args(["--", "cat"]).spawn().expect("the binary starts");
    let out = sum(child.stdout.take().expect("a pipe").into());
    assert!(child.wait().expect("a child").success());
    assert_eq!(out, sum(open().into()));
}

fn verbose(guests: &Guests) {
    let ended = run(guests.ombra().args(["--verbose", "--", "echo", "hello"]), None);
    assert_eq!((ended.text().as_str(), ended.status), ("hello\n", Some(0)), "{}", ended.stderr);
    assert!(ended.stderr.contains("Linux version"), "{}", ended.stderr);
}

fn fails(guests: &Guests) {
    // No init, no other root: the kernel panics, and that is its end.
    for (flags, is_kept) in [(&[][..], true), (&["--verbose"], false)] {
        let ended = run(guests.ombra().args(flags).args(["-a", "rdinit=/none", "--", "true"]), None);
        assert_eq!((ended.text().as_str(), ended.status), ("", Some(125)), "{}", ended.stderr);
        assert!(ended.stderr.contains("Kernel panic"), "{}", ended.stderr);
        assert!(ended.stderr.contains("the guest ended before `true` did"), "{}", ended.stderr);
        assert_eq!(ended.stderr.contains("above is the end"), is_kept, "{}", ended.stderr);
    }
}

fn la57(guests: &Guests) {
    for (flags, status) in [(&["--la57"][..], 0), (&[], 1)] {
        let words = ["--", "sh", "-c", "grep -qw la57 /proc/cpuinfo"];
        let ended = run(guests.ombra().args(flags).args(words), None);
        assert_eq!(ended.status, Some(status), "{}", ended.stderr);
    }
}

/// Two processes on two vCPUs wake each other through a pipe: the waker stores to the line that the other's MWAIT waits for, and
/// sends no interrupt.
fn mwait(guests: &Guests) {
    let script = "dmesg | grep -q 'using mwait in idle threads' || exit 3
        mkfifo /tmp/there /tmp/back; last=$(($(nproc) - 1))
        (while read line; do echo $line; done) </tmp/there >/tmp/back & taskset -p 1 $! >/dev/null
        taskset -p $((1 << last)) $$ >/dev/null; exec 3>/tmp/there 4</tmp/back
        i=0; while [ $i -lt 500 ]; do echo $i >&3; read back <&4; [ $back = $i ] || exit 4; i=$((i + 1)); done
        sleep 0.2; exec 3>&-; wait; echo $i";
    for cpus in ["1", "2"] {
        let ended = run(guests.ombra().args(["--mwait", "-c", cpus, "--", "sh", "-c", script]), None);
        assert_eq!((ended.text().as_str(), ended.status), ("500\n", Some(0)), "{}", ended.stderr);
    }
}

fn reader_goes(guests: &Guests) {
    let mut child = guests.ombra().args(["--", "yes"]).spawn().expect("the binary starts");
    let mut reader = Command::new("head");
    reader.args(["-c", "10"]).stdin(child.stdout.take().expect("piped")).stdout(Stdio::null());
    assert!(reader.status().expect("head").success());
    // It has the pipe's end open as long as it lives.
    drop(reader);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), errors.lines().count()), (Some(125), 1), "{errors}");
    assert!(errors.starts_with("ombra: ") && errors.contains("output"), "{errors}");
}
