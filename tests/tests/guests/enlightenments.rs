//! Debian's kernel and the interfaces for guests that know they are guests: what it finds, and what it uses.

use crate::kernels::healthy;
use crate::process::{Guests, run};
use crate::{CLOUD, Test};
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("a_kernel_finds_kvms_interface_and_uses_it", CLOUD, kvm),
    ("a_kernel_finds_kvms_interface_on_eight_vcpus", CLOUD, |guests| {
        kvm_on(guests, 8);
    }),
    ("a_kernel_finds_hyperv_and_uses_it", CLOUD, |guests| {
        for cpus in [1, 2] {
            hyperv_on(guests, cpus);
        }
    }),
    ("a_kernel_finds_hyperv_on_eight_vcpus", CLOUD, |guests| {
        hyperv_on(guests, 8);
    }),
    ("without_an_interface_a_kernel_finds_none", CLOUD, none),
    ("a_part_of_the_interface_can_be_left_out", CLOUD, parts),
];

const SCRIPT: &str = "nproc; cd /sys/devices/system/clocksource/clocksource0; cat available_clocksource; \
                      cat current_clocksource; cat ../../clockevents/clockevent0/current_device; \
                      cat /proc/interrupts; dmesg";

/// What a guest printed, and what was counted.
struct Seen {
    text: String,
    counters: serde_json::Value,
}

impl Seen {
    fn count(&self, group: &str, name: &str) -> u64 {
        self.counters["counters"][group][name].as_u64().unwrap_or_else(|| panic!("no {group} {name}"))
    }
}

fn look(guests: &Guests, cpus: u32, flags: &[&str]) -> Seen {
    let stats = tempfile::NamedTempFile::new().expect("a file");
    let mut command = guests.ombra();
    command.args(["--cpus", &cpus.to_string(), &stats_flag(stats.path())]).args(flags);
    let ended = run(command.args(["--", "sh", "-c", SCRIPT]), None);
    let text = ended.text();
    assert_eq!(ended.status, Some(0), "{text}\n{}", ended.stderr);
    assert_eq!(text.lines().next(), Some(cpus.to_string().as_str()), "{text}");
    // Linux calls the TSC so on Hyper-V where it isn't told otherwise.
    healthy(&text.replace("Marking TSC unstable due to running on Hyper-V", ""));
    let counters = std::fs::read_to_string(stats.path()).expect("text");
    Seen { text, counters: serde_json::from_str(&counters).expect("JSON") }
}

fn stats_flag(path: &Path) -> String {
    format!("--stats={}", path.display())
}

/// The interrupts that the guest says it has had on all its vCPUs.
fn interrupts(text: &str, cpus: usize) -> u64 {
    let rows = text.lines().filter_map(|line| line.trim_start().split_once(':'));
    let rows = rows.filter(|(name, rest)| {
        let numbered = name.parse::<u32>().is_ok() && rest.contains("IO-APIC");
        numbered || ["LOC", "RES", "CAL", "TLB", "IWI", "HVS"].contains(name)
    });
    let counts = rows.flat_map(|(_, rest)| rest.split_whitespace().take(cpus));
    counts.map(|count| count.parse::<u64>().expect("a number")).sum()
}

fn kvm(guests: &Guests) {
    for cpus in [1, 2] {
        kvm_on(guests, cpus);
    }
}

fn kvm_on(guests: &Guests, cpus: u32) {
    let seen = look(guests, cpus, &["--enlightenments", "kvm"]);
    let text = &seen.text;
    for line in [
        "Hypervisor detected: KVM",
        "kvm-clock: Using msrs 4b564d01 and 4b564d00",
        "Booting paravirtualized kernel on KVM",
        "Switched to clocksource kvm-clock",
        "Switched to clocksource tsc\n",
        "x2apic enabled",
    ] {
        assert!(text.contains(line), "no `{line}`: {text}");
    }
    for line in
        ["KVM setup pv remote TLB flush", "setup PV sched yield", "PV spinlocks enabled", "setup PV IPIs"]
    {
        // With one vCPU there is nobody to flush, yield and send to.
        assert_eq!(text.contains(line), cpus > 1, "`{line}`: {text}");
    }
    assert!(text.lines().any(|line| line.contains("tsc") && line.contains("kvm-clock")), "{text}");
    // On a busy host interrupts come while others are in service, and their ends have to be told.
    let (told, lazy) = (seen.count("interrupts", "eoi_explicit"), seen.count("interrupts", "eoi_lazy"));
    assert!(3 * lazy > told, "{told} EOIs were told, {lazy} were not");
    // What the guest had counted when it looked, and hardly more: it went on for a moment.
    let delivered = seen.count("interrupts", "delivered");
    let counted = interrupts(text, cpus as usize);
    assert!(
        delivered >= counted && delivered < 2 * counted + 1000,
        "{delivered} delivered, {counted} counted: {text}"
    );
}

fn hyperv_on(guests: &Guests, cpus: u32) {
    let seen = look(guests, cpus, &["--enlightenments", "hyperv"]);
    let text = &seen.text;
    let head: Vec<_> = text.lines().take(4).collect();
    assert_eq!(head[2..], ["hyperv_clocksource_tsc_page", "Hyper-V clockevent"], "{text}");
    for line in [
        "Hypervisor detected: Microsoft Hyper-V",
        "Hyper-V: LAPIC Timer Frequency: 0x3d0900",
        "Hyper-V: Using hypercall for remote TLB flush",
        "Hyper-V: PV spinlocks enabled",
        "Hyper-V: Using IPI hypercalls",
        "Hyper-V: Using enlightened APIC (x2apic mode)",
        "Switched to clocksource hyperv_clocksource_tsc_page",
    ] {
        assert!(text.contains(line), "no `{line}`: {text}");
    }
    // Timers tick by vector; interrupts end untold; what goes to other vCPUs goes by hypercall.
    assert!(
        text.lines().any(|line| line.trim_start().starts_with("HVS:") && !line.contains("HVS:          0"))
    );
    assert!(seen.count("hyperv", "timer_expirations") > 10);
    assert!(seen.count("interrupts", "eoi_lazy") > 10);
    assert_eq!(seen.count("hyperv", "ipis") > 0, cpus > 1, "{}", seen.counters);
    assert_eq!(seen.count("hyperv", "calls_refused"), 0);
    let delivered = seen.count("interrupts", "delivered");
    let counted = interrupts(text, cpus as usize);
    assert!(
        delivered >= counted && delivered < 2 * counted + 1000,
        "{delivered} delivered, {counted} counted: {text}"
    );
}

fn none(guests: &Guests) {
    let seen = look(guests, 1, &["--enlightenments", "none"]);
    assert!(!seen.text.contains("kvm-clock") && !seen.text.contains("Hypervisor detected"), "{}", seen.text);
    // It is on probation for its first second.
    let clock = seen.text.lines().nth(2).unwrap_or_default();
    assert!(clock == "tsc" || clock == "tsc-early", "{}", seen.text);
    assert_eq!(seen.count("interrupts", "eoi_lazy"), 0);
}

fn parts(guests: &Guests) {
    let seen = look(
        guests,
        2,
        &[
            "--enlightenments",
            "kvm",
            "--feature",
            "pv-eoi=off",
            "--feature",
            "pv-clock=off",
            "--feature",
            "pv-steal=off",
        ],
    );
    let text = &seen.text;
    assert!(text.contains("Hypervisor detected: KVM"), "{text}");
    assert!(!text.contains("kvm-clock") && !text.contains("pv remote TLB flush"), "{text}");
    assert!(text.contains("setup PV IPIs"), "{text}");
    assert_eq!(seen.count("interrupts", "eoi_lazy"), 0);
}
