//! Bare-metal guests of our own (`guests/bare`), in the manner of test kernels written for QEMU's PC, in this process.
//!
//! Built here with gcc and GNU ld, which Rust's linker needs anyway; where they are missing, or can't make 32-bit code, all are
//! reported as ignored. Each trial is one machine with one engine: a group of checks by the command line, and a number of vCPUs. What the guest
//! printed is shown where it fails.

use conformance::{ENGINES, Make};
use control::{BootConfig, Enlightenments, Initramfs, MachineConfig, SerialConfig};
use libtest_mimic::{Arguments, Failed, Trial};
use machine::{EventWindow, Handle, Machine, Outcome, Route, Stream, Streams};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A guest that takes longer hangs. Machines that run other tests at the same time are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Groups of the 64-bit image, with the numbers of vCPUs they are run on.
const GROUPS: &[(&str, &[u32])] = &[
    ("boot", &[1, 2, 4]),
    ("ports", &[1]),
    ("acpi", &[1]),
    ("reset", &[1]),
    ("sieve", &[1]),
    ("times", &[1, 2]),
    ("apic", &[1, 2]),
    ("nmi", &[1, 2]),
    ("timer", &[1]),
    ("smp", &[1, 2, 3, 4]),
    ("ioapic", &[1, 4]),
    ("events", &[1, 2]),
    ("code", &[1, 2, 4]),
    ("litmus", &[2, 4]),
    ("shoot", &[2, 4]),
    ("poke", &[2, 4]),
    ("msr", &[1]),
    ("tsc", &[1]),
    ("debug", &[1]),
    ("mmio", &[1]),
    ("access", &[1]),
    ("smap", &[1]),
    ("pku", &[1]),
    ("umip", &[1]),
    ("pcid", &[1]),
    ("syscall", &[1]),
    ("xsave", &[1]),
    ("memory", &[1]),
    ("plain", &[1]),
    ("kvm", &[1, 2]),
    ("hyperv", &[1, 2]),
    ("synic", &[1, 2]),
    ("timers", &[1]),
];

/// The interface for guests that a group of checks is about.
fn interface(group: &str) -> Enlightenments {
    match group {
        "kvm" => Enlightenments::Kvm,
        "hyperv" | "synic" | "timers" => Enlightenments::HyperV,
        _ => Enlightenments::None,
    }
}

/// Status of a guest that found its host CPU lacking something.
const SKIPPED: u8 = 77;

const SOURCES: &[&str] = &[
    "start64.S",
    "lib.c",
    "boot.c",
    "apic.c",
    "code.c",
    "cpu.c",
    "litmus.c",
    "shoot.c",
    "kvm.c",
    "hyperv.c",
    "synic.c",
];
const FLAGS64: &[&str] = &[
    "-m64",
    "-O1",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-strict-aliasing",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let images = match Images::build() {
        Ok(images) => Some(Arc::new(images)),
        Err(why) => {
            eprintln!("skipped: the bare-metal guests can't be built: {why}");
            None
        }
    };
    libtest_mimic::run(&arguments, trials(images.as_ref())).exit_code()
}

fn trials(images: Option<&Arc<Images>>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: String, run: Run, what: String, cpus: u32| {
        for &(engine, make) in ENGINES {
            let (able, what) = (images.cloned(), what.clone());
            let trial = Trial::test(format!("{engine}::{name}"), move || match able {
                Some(images) => run(&Bench { images, make }, &what, cpus),
                None => Err("not built".into()),
            });
            trials.push(trial.with_ignored_flag(images.is_none()));
        }
    };
    for (group, counts) in GROUPS {
        for cpus in *counts {
            add(format!("{group} on {cpus}"), passes, (*group).to_owned(), *cpus);
        }
    }
    for code in [0, 1, 38, 63] {
        add(format!("exit code {code}"), exits, code.to_string(), 1);
    }
    add("real mode".into(), real_mode, String::new(), 1);
    // The group that takes longest.
    add("event windows during nmi".into(), windows, "nmi".to_owned(), 2);
    for group in ["ioapic", "synic"] {
        add(format!("other lines' reroutes during {group}"), reroutes, group.to_owned(), 1);
    }
    add("tasks of 32 bits".into(), tasks, String::new(), 1);
    add("address fields".into(), address_fields, String::new(), 1);
    trials
}

/// A trial: of what, with the group, on so many vCPUs.
type Run = fn(&Bench, &str, u32) -> Result<(), Failed>;

/// What trials run images with.
struct Bench {
    images: Arc<Images>,
    make: Make,
}

/// The built images, in a folder that goes with them.
struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    fn build() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/bare");
        let out = |name: &str| folder.path().join(name);
        let mut objects = Vec::new();
        for source in SOURCES {
            let object = out(&format!("{source}.o"));
            tool(
                Command::new("gcc").args(FLAGS64).arg("-c").arg(sources.join(source)).arg("-o").arg(&object),
            )?;
            objects.push(object);
        }
        let link = |emulation: &str, script: &str, objects: &[PathBuf], to: &Path| {
            let mut linker = Command::new("ld");
            linker.args([
                "-m",
                emulation,
                "-nostdlib",
                "-z",
                "noexecstack",
                "-z",
                "max-page-size=4096",
                "-T",
            ]);
            tool(linker.arg(sources.join(script)).args(objects).arg("-o").arg(to))
        };
        link("elf_x86_64", "flat.ld", &objects, &out("flat64"))?;
        // The shape of test kernels: 64-bit code in a 32-bit file.
        tool(Command::new("objcopy").args(["-O", "elf32-i386"]).args([out("flat64"), out("flat")]))?;
        for (source, script, to) in
            [("real.S", "real.ld", "real"), ("task.S", "flat.ld", "task"), ("raw.S", "raw.ld", "raw32")]
        {
            let object = out(&format!("{source}.o"));
            tool(Command::new("gcc").args(["-m32", "-c"]).arg(sources.join(source)).arg("-o").arg(&object))?;
            link("elf_i386", script, &[object], &out(to))?;
        }
        tool(Command::new("objcopy").args(["-O", "binary"]).args([out("raw32"), out("raw")]))?;
        Ok(Self { folder })
    }
}

impl Bench {
    /// Runs an image to its end: how it ended, and what it printed.
    fn run(
        &self,
        image: &str,
        cmdline: &str,
        cpus: u32,
        module: Option<&str>,
    ) -> Result<(Outcome, String), Failed> {
        self.run_beside(image, cmdline, cpus, module, |_, _| Ok(()))
    }

    /// As [`Bench::run`], while `beside` does something with the machine, from a thread of its own, until its flag is set.
    fn run_beside(
        &self,
        image: &str,
        cmdline: &str,
        cpus: u32,
        module: Option<&str>,
        beside: impl FnOnce(&Handle, &AtomicBool) -> Result<(), String> + Send,
    ) -> Result<(Outcome, String), Failed> {
        let printed = Printed::default();
        let mut streams = Streams::default();
        streams.serial[0] = Some(Stream { output: Box::new(printed.clone()), input: None });
        let config = MachineConfig {
            memory: 128 << 20,
            cpus,
            la57: false,
            mwait: false,
            mitigations: control::Mitigations::Off,
            enlightenments: interface(cmdline),
            parts: control::Parts::all(),
            boot: BootConfig {
                kernel: self.images.folder.path().join(image),
                initramfs: module.map(|text| Initramfs::Bytes(text.into())),
                cmdline: cmdline.to_owned(),
            },
            serial: [Some(SerialConfig::Stream), None, None, None],
            no_reboot: false,
            disks: Vec::new(),
            nets: Vec::new(),
            shares: Vec::new(),
            ports: Vec::new(),
            entropy: false,
            test_devices: true,
        };
        let machine = Machine::new(config, streams, |setup| Ok((self.make)(setup)?.into()))?;
        let handle = machine.handle();
        let (ended, late) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if late.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                handle.stop();
            }
        });
        let (over, handle) = (AtomicBool::new(false), machine.handle());
        let (outcome, done) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| beside(&handle, &over));
            let outcome = machine.run();
            over.store(true, Ordering::Release);
            (outcome, beside.join())
        });
        done.map_err(|_| "what went on beside panicked")??;
        drop(ended);
        watch.join().map_err(|_| "the watch panicked")?;
        let text = printed.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((outcome?, String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Runs a tool; its last words if it fails.
fn tool(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn expect(outcome: &Outcome, printed: &str, status: u8) -> Result<(), Failed> {
    match outcome {
        Outcome::TestExit(got) if *got == status => Ok(()),
        Outcome::Stopped => Err(format!("it hangs; it printed:\n{printed}").into()),
        other => Err(format!("{other:?} instead of status {status}; it printed:\n{printed}").into()),
    }
}

/// A group of the 64-bit image passes all its checks.
fn passes(bench: &Bench, group: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run("flat", group, cpus, Some("NR_CPUS=1\nBOOTLOADER=x\n"))?;
    if matches!(outcome, Outcome::TestExit(SKIPPED)) {
        eprintln!("skipped: {group}: {}", printed.trim());
        return Ok(());
    }
    expect(&outcome, &printed, 1)?;
    if printed.contains("PASS: ") { Ok(()) } else { Err(format!("it checked nothing: {printed}").into()) }
}

/// The exit port's code comes out as a process's status.
fn exits(bench: &Bench, code: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run("flat", &format!("exit {code}"), cpus, None)?;
    expect(&outcome, &printed, code.parse::<u8>()? << 1 | 1)
}

/// A group passes while somebody asks again and again to be told when vCPUs can take events, and takes half of it back: each request
/// is either reported once or taken back.
fn windows(bench: &Bench, group: &str, cpus: u32) -> Result<(), Failed> {
    let tried = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&tried);
    let (outcome, printed) = bench.run_beside("flat", group, cpus, None, move |machine, over| {
        while !over.load(Ordering::Acquire) {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let kind = if number & 1 == 0 { EventWindow::Interrupt } else { EventWindow::Nmi };
            let (reported, heard) = std::sync::mpsc::channel();
            let cpu = (number >> 1) as u32 % cpus;
            let report = move || {
                // Nobody hears what comes too late.
                let _ = reported.send(());
            };
            let request = machine.request_window(cpu, kind, report).ok_or("no such vCPU")?;
            if number & 4 == 0 {
                // A vCPU whose window stays shut answers never.
                let _ = heard.recv_timeout(Duration::from_millis(2));
            }
            let taken_back = request.cancel();
            // Taken back, its report is gone, and with it the sender.
            let late = heard.recv_timeout(Duration::from_secs(30));
            if taken_back && late != Err(std::sync::mpsc::RecvTimeoutError::Disconnected) {
                return Err("it was reported though it had been taken back".to_owned());
            }
            if late == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return Err("it was neither reported nor taken back".to_owned());
            }
        }
        Ok(())
    })?;
    expect(&outcome, &printed, 1)?;
    if tried.load(Ordering::Relaxed) > 10 { Ok(()) } else { Err("hardly anything was asked for".into()) }
}

/// A group passes while lines that it doesn't use change their owners all the time.
fn reroutes(bench: &Bench, group: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run_beside("flat", group, cpus, None, |machine, over| {
        let lines = machine.lines();
        while !over.load(Ordering::Acquire) {
            for line in [3, 5, 7, 20, 23] {
                for route in [Route::Vmm, Route::Both, Route::Guest] {
                    lines.set_route(line, route);
                }
            }
        }
        let changed = lines.line(3).ok_or("line 3 is gone")?;
        if changed.reroutes > 2 { Ok(()) } else { Err(format!("{changed:?}")) }
    })?;
    expect(&outcome, &printed, 1)
}

fn real_mode(bench: &Bench, _: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run("real", "", cpus, None)?;
    expect(&outcome, &printed, 1)
}

fn tasks(bench: &Bench, _: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run("task", "", cpus, None)?;
    expect(&outcome, &printed, 1)
}

/// The image's code for "all as it should be" is 5.
fn address_fields(bench: &Bench, _: &str, cpus: u32) -> Result<(), Failed> {
    let (outcome, printed) = bench.run("raw", "", cpus, None)?;
    expect(&outcome, &printed, 11)
}
