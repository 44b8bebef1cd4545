//! `ombra doctor`: what this host offers, in a page of text.
//!
//! KVM counts as there only if it runs guest code: hosts exist whose `/dev/kvm` opens, answers every question and then runs
//! nothing. The probe runs in a process of its own (`ombra kvm-probe`), because such a KVM may also hang.

mod raw;

use anyhow::{Result, bail};
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the probe may take; it needs a millisecond.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Prints the page.
///
/// # Errors
/// stdout can't be written.
pub(crate) fn run() -> Result<()> {
    let page = page();
    io::stdout().write_all(page.as_bytes())?;
    Ok(())
}

/// Runs guest code under KVM; says nothing where that works.
///
/// # Errors
/// It doesn't; the message says how far it came.
pub(crate) fn probe() -> Result<()> {
    raw::run_guest_code()
}

fn page() -> String {
    let mut page = String::new();
    let mut row = |name: &str, value: String| {
        // Long values go on below their beginning.
        let mut lines = wrap(&value, 84).into_iter();
        page.push_str(&format!("{name:<14} {}\n", lines.next().unwrap_or_default()));
        for line in lines {
            page.push_str(&format!("{:<14} {line}\n", ""));
        }
    };
    row("ombra", env!("CARGO_PKG_VERSION").to_owned());
    row("engines", engines());
    row("translator", translator());
    row("kernel", read("/proc/sys/kernel/osrelease"));
    row("cpu", cpu_model());
    row("cores", cores());
    row("features", offered());
    row("kvm", kvm());
    row("memory", memory());
    row("overcommit", overcommit());
    row("huge pages", read("/sys/kernel/mm/transparent_hugepage/enabled"));
    row("map limit", format!("{} mappings a process", read("/proc/sys/vm/max_map_count")));
    row("address space", limit(Resource::As, 1 << 20, "MiB"));
    row("open files", limit(Resource::Nofile, 1, ""));
    row("processes", limit(Resource::Nproc, 1, ""));
    row("clock", format!("{} (tsc is the one that costs nothing)", read(CLOCK)));
    row(
        "guest kernel",
        crate::find::kernel().map_or_else(|error| error.to_string(), |path| path.display().to_string()),
    );
    row(
        "guest busybox",
        crate::find::busybox()
            .map_or_else(|error| error.to_string(), |bytes| format!("found, {} KiB", bytes.len() >> 10)),
    );
    page
}

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn cores() -> String {
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!("{usable} usable by this process; load {load}")
}

/// The engines, the one that `--engine auto` takes first.
fn engines() -> String {
    if translator::has_bmi2() {
        "translator (auto), interpreter".to_owned()
    } else {
        "interpreter (auto); no translator, since the CPU lacks BMI2".to_owned()
    }
}

/// What the translator wants of the host, and what its lack costs.
fn translator() -> String {
    let has = |name: &str, there: bool, lack: &str| {
        if there { format!("{name}: yes") } else { format!("{name}: no, {lack}") }
    };
    let xsave = std::arch::is_x86_feature_detected!("xsave");
    let views = translator::views();
    [
        has("BMI2", translator::has_bmi2(), "so it can't be used"),
        has("FSGSBASE", translator::has_fsgsbase(), "so each entry costs a system call"),
        has("XSAVE", xsave, "so vector instructions are interpreted"),
        match views {
            Ok(()) => "address space: enough".to_owned(),
            Err(error) => format!("address space: too little ({error}), so all is interpreted"),
        },
    ]
    .join("; ")
}

/// What guests of this host are offered, by the name that Linux gives it.
fn offered() -> String {
    let options = machine::cpuid::Options {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        la57: false,
        mwait: false,
        mitigations: machine::cpuid::Mitigations::Off,
    };
    machine::cpuid::offered_features(&machine::cpuid::build(&machine::cpuid::host, options)).join(" ")
}

fn kvm() -> String {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            "no /dev/kvm (Ombra doesn't need it)".to_owned()
        }
        Err(error) => format!("/dev/kvm can't be opened: {error} (Ombra doesn't need it)"),
        Ok(_) => match probe_in_a_process() {
            Ok(()) => "runs guest code (no engine of this version uses it yet)".to_owned(),
            Err(error) => {
                format!("/dev/kvm opens but does not run guest code: {error:#} (Ombra doesn't need it)")
            }
        },
    }
}

fn probe_in_a_process() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("kvm-probe")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let end = Instant::now() + PROBE_PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            if status.success() {
                return Ok(());
            }
            let said = said.trim();
            let said = said.strip_prefix("ombra: ").unwrap_or(said);
            if said.is_empty() {
                bail!("the probe ended with {status}");
            }
            bail!("{said}");
        }
        if Instant::now() > end {
            // Not waited for: it may hang in the kernel for good.
            let _ = child.kill();
            bail!("the probe hangs");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn memory() -> String {
    let info = read("/proc/meminfo");
    let mib = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
    };
    let show = |name: &str| mib(name).map_or_else(|| "unknown".to_owned(), |mib| format!("{mib} MiB"));
    let mut text =
        format!("{} of {} available, {} of swap", show("MemAvailable"), show("MemTotal"), show("SwapTotal"));
    // A container's own limit counts where it is lower; version 2 of cgroups, then version 1.
    for path in ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"] {
        if let Ok(bytes) = read(path).parse::<u64>()
            && bytes < 1 << 50
        {
            text.push_str(&format!("; this control group: {} MiB", bytes >> 20));
            break;
        }
    }
    text
}

fn overcommit() -> String {
    match read("/proc/sys/vm/overcommit_memory").as_str() {
        "0" => "heuristic: guests larger than the host start, memory is taken as it is touched".to_owned(),
        "1" => "always: guests larger than the host start, memory is taken as it is touched".to_owned(),
        "2" => "never: a guest's memory must fit into what the host can commit".to_owned(),
        other => other.to_owned(),
    }
}

fn limit(resource: Resource, unit: u64, name: &str) -> String {
    getrlimit(resource)
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| format!("{} {name}", limit / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_wrapped_between_words() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("longer-than-that x", 5), ["longer-than-that", "x"]);
    }

    #[test]
    fn the_engines_and_what_they_want_are_named() {
        assert!(engines().contains("interpreter"), "{}", engines());
        for word in ["BMI2", "FSGSBASE", "XSAVE", "address space"] {
            assert!(translator().contains(word), "{}", translator());
        }
    }

    #[test]
    fn the_features_of_this_host_are_named() {
        assert!(offered().contains("sse2"), "{}", offered());
    }
}
