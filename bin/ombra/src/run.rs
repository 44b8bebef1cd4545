//! `ombra run`: from flags to a machine, and from how the machine ended to an exit status.
//!
//! The main thread runs the machine. A thread takes signals, one forwards stdin; both stop the machine through [`Stopper`].
//! Three plans: a bare kernel with COM1 as `--serial` says; a shell in an initramfs of ours; a command in one.

use crate::cli::{Engine as EngineChoice, Feature, Run, Serial};
use crate::confine::Confined;
use crate::disks::Disk;
use crate::guest::{Control, Forward, Lines, Log};
use crate::initramfs::{self, Contents, Mode};
use crate::modules::{Kernel, Module};
use crate::shares::{self, Folders};
use crate::wires::Wires;
use crate::{find, network, stats, terminal};
use anyhow::{Context, Result};
use control::{BootConfig, DiskBus, Initramfs, MachineConfig, NetConfig};
use engine::{Engine, EngineError, Setup};
use interpreter::Interpreter;
use machine::{Machine, Outcome};
use signal_hook::consts::{
    SIGABRT, SIGALRM, SIGBUS, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSYS, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
    SIGXCPU,
};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use translator::{Dump, Translator};

/// Ombra's own failures.
pub(crate) const FAILED: u8 = 125;
/// Ctrl-A X while a command runs, which then has no status: as if interrupted.
const QUIT: u8 = 128 + SIGINT as u8;
/// Signals that end the run in the ordinary way.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
/// Signals that end the process at once, but for the terminal.
const DEADLY: [i32; 7] = [SIGABRT, SIGALRM, SIGBUS, SIGSYS, SIGUSR1, SIGUSR2, SIGXCPU];
/// How long a machine may take to stop before the process goes anyway.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Runs a guest and says with which status to end.
///
/// # Errors
/// Ombra's own failures.
pub(crate) fn run(flags: &Run) -> Result<u8> {
    let interactive = terminal::is_interactive();
    let mode = plan(flags, interactive);
    let kernel = match &flags.kernel {
        Some(kernel) => kernel.clone(),
        None => find::kernel()?,
    };
    let nets = network::cards(&flags.net, &flags.publish).map_err(anyhow::Error::msg)?;
    let log = Log::default();
    let control = Control::default();
    let modules = Kernel::of(&kernel);
    let wires = Wires::plan(flags, mode, &modules);
    let folders = Folders::plan(flags, mode, &modules)?;
    if !folders.shares.is_empty() {
        shares::raise_limit();
    }
    let (streams, inputs) = wires.connect(flags, &log, &control)?;
    let config = MachineConfig {
        memory: flags.memory.0,
        cpus: flags.cpus,
        la57: flags.la57,
        mwait: flags.mwait,
        mitigations: flags.mitigations.into(),
        enlightenments: flags.enlightenments.into(),
        parts: parts(flags),
        boot: BootConfig {
            cmdline: cmdline(flags, mode, &kernel),
            initramfs: initramfs(flags, mode, &modules, &nets, &folders)?,
            kernel,
        },
        serial: wires.serial(flags),
        // A command's guest that panics reboots, and that is its end.
        no_reboot: flags.no_reboot || mode.is_some(),
        disks: folders
            .disk
            .into_iter()
            .map(Ok)
            .chain(flags.disk.iter().map(Disk::config))
            .collect::<Result<_>>()?,
        nets,
        shares: folders.shares,
        ports: wires.ports(),
        entropy: true,
        test_devices: flags.test_devices,
    };
    tracing::info!(kernel = %config.boot.kernel.display(), cmdline = config.boot.cmdline, "booting");
    let options = translation(flags)?;
    let stats = stats::Stats::new(flags.stats.as_deref())?;
    let confined = Confined::files(flags.sandbox, machine::needs(&config)?)?;
    let mut machine = Machine::new(config, streams, |setup| make_engine(flags, &options, setup))?;
    if let Some(stats) = &stats {
        stats.listen(&mut machine);
    }
    let stopper = Stopper { handle: machine.handle(), reason: Arc::default() };
    let console = flags.serial == Serial::Stdio;
    let raw = if interactive && console {
        Some(terminal::Raw::enter().context("the terminal can't be made raw")?)
    } else {
        None
    };
    stopper.watch_signals(inputs.init.clone())?;
    if let Some(port) = inputs.stdin {
        let keys = raw.is_some();
        let init = inputs.init.filter(|_| mode != Some(Mode::Shell)).map(|lines| (control.clone(), lines));
        let console = inputs.console;
        let stopper = stopper.clone();
        thread::Builder::new()
            .name("ombra-stdin".to_owned())
            .spawn(move || {
                let forwarded =
                    Forward { port, console, init, keys }.run(io::stdin(), || stopper.stop(Reason::Quit));
                if let Err(error) = forwarded {
                    tracing::warn!("the guest gets no input: the host refuses a thread: {error}");
                }
            })
            .context("the host refuses a thread")?;
    }
    confined.calls()?;
    let outcome = machine.run();
    drop(raw);
    if let Some(stats) = stats {
        stats.print()?;
    }
    Ok(match status(flags, mode, outcome.context("the machine failed")?, &stopper, &control) {
        Ok(status) => status,
        Err(problem) => {
            let tail = if has_log(flags, mode) { log.tail() } else { String::new() };
            // Not `eprintln`, which panics where stderr is closed.
            let _ = writeln!(io::stderr(), "{tail}ombra: {problem}");
            FAILED
        }
    })
}

/// Whether the kernel's messages were kept back, and are to be shown where the guest fails.
fn has_log(flags: &Run, mode: Option<Mode>) -> bool {
    mode.is_some_and(|mode| mode != Mode::Shell) && !flags.verbose
}

/// What runs in an initramfs of ours; `None` for a kernel that brings its own, or none.
fn plan(flags: &Run, interactive: bool) -> Option<Mode> {
    if !flags.command.is_empty() {
        Some(if interactive { Mode::Terminal } else { Mode::Command })
    } else if flags.kernel.is_none() && flags.initramfs.is_none() {
        Some(Mode::Shell)
    } else {
        None
    }
}

fn cmdline(flags: &Run, mode: Option<Mode>, kernel: &Path) -> String {
    let given = flags.cmdline.join(" ");
    // Linux counts the timer's interrupts during 70 ms of TSC to see whether they arrive. On a host with more to do than
    // processors a vCPU may get too little of that time to count enough; under other monitors Linux leaves it out by itself.
    let ours = match mode {
        // A panic is the end. Four serial ports are Debian's default, but not everybody's.
        Some(Mode::Command | Mode::Terminal) => "console=ttyS0 no_timer_check panic=-1 8250.nr_uarts=4",
        Some(Mode::Shell) => "console=ttyS0 no_timer_check 8250.nr_uarts=4",
        None if !flags.cmdline.is_empty() || !find::takes_linux_arguments(kernel) => "",
        None => "console=ttyS0 no_timer_check",
    };
    let clock = if ours.is_empty() { String::new() } else { tsc_frequency() };
    [ours, &clock, &given].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Tells Linux the TSC's frequency where it doesn't read it from CPUID, which it does only on Intel's CPUs. It would count TSC ticks
/// during some of the PIT's, and a busy host may make that come out several times wrong.
fn tsc_frequency() -> String {
    let told = machine::cpuid::vendor(machine::cpuid::host(0, 0)) == machine::cpuid::Vendor::Intel;
    if told { String::new() } else { format!("tsc_early_khz={}", machine::clock::host_tsc_hz() / 1000) }
}

fn initramfs(
    flags: &Run,
    mode: Option<Mode>,
    kernel: &Kernel,
    nets: &[NetConfig],
    folders: &Folders,
) -> Result<Option<Initramfs>> {
    let Some(mode) = mode else { return Ok(flags.initramfs.clone().map(Initramfs::File)) };
    let shell = ["sh".to_owned(), "-l".to_owned()];
    let modules = modules(flags, mode, kernel, nets, folders)?;
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let mut environment = vec![format!("TERM={term}"), "PS1=ombra:\\w# ".to_owned()];
    for text in &flags.env {
        environment.extend(shares::variable(text)?);
    }
    let directory = folders.directory.as_deref().map(|path| path.to_string_lossy()).unwrap_or_default();
    let archive = initramfs::build(&Contents {
        mode,
        arguments: if mode == Mode::Shell { &shell } else { &flags.command },
        environment: &environment,
        size: terminal::size(),
        busybox: &find::busybox()?,
        modules: &modules,
        folders: &folders.instructions,
        directory: &directory,
        network: &network::instructions(nets),
    })
    .context("can't build the guest's initramfs")?;
    Ok(Some(Initramfs::Bytes(archive)))
}

/// The kernel modules that the guest needs for what the flags give it, and those that are asked for.
fn modules(
    flags: &Run,
    mode: Mode,
    kernel: &Kernel,
    nets: &[NetConfig],
    folders: &Folders,
) -> Result<Vec<Module>> {
    let mut names: Vec<&str> = folders.modules.clone();
    // Without it there are the serial ports.
    if mode != Mode::Shell && kernel.has("virtio_console") {
        names.push("virtio_console");
    }
    let has = |bus| flags.disk.iter().any(|disk| disk.bus() == bus);
    if has(DiskBus::Virtio) || folders.disk.is_some() {
        names.push("virtio_blk");
    }
    if !nets.is_empty() {
        names.push("virtio_net");
        // DHCP's client needs it.
        names.push("af_packet");
    }
    if !names.is_empty() {
        names.insert(0, "virtio_pci");
    }
    if has(DiskBus::Nvme) {
        names.push("nvme");
    }
    kernel.find(&names, &flags.module)
}

/// The exit status, or why there is none.
fn status(
    flags: &Run,
    mode: Option<Mode>,
    outcome: Outcome,
    stopper: &Stopper,
    control: &Control,
) -> Result<u8, String> {
    let has_command = mode.is_some_and(|mode| mode != Mode::Shell);
    match outcome {
        Outcome::Stopped => Ok(match stopper.reason() {
            Some(Reason::Signal(signal)) => 128 + signal,
            Some(Reason::Quit) | None if has_command => QUIT,
            Some(Reason::Quit) | None => 0,
        }),
        Outcome::TestExit(code) => Ok(code),
        Outcome::Shutdown { vcpu, state } => Err(format!("triple fault on vCPU {vcpu}; its state:\n{state}")),
        Outcome::PowerOff | Outcome::Reset if has_command => control.status().ok_or_else(|| {
            let command = flags.command.join(" ");
            let log = if has_log(flags, mode) { "; above is the end of its kernel's log" } else { "" };
            format!("the guest ended before `{command}` did{log}")
        }),
        Outcome::PowerOff | Outcome::Reset => Ok(0),
    }
}

/// Why we stopped the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    Signal(u8),
    Quit,
}

/// Stops the machine from other threads and remembers why.
#[derive(Clone)]
struct Stopper {
    handle: machine::Handle,
    reason: Arc<Mutex<Option<Reason>>>,
}

impl Stopper {
    fn reason(&self) -> Option<Reason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason counts.
    fn stop(&self, reason: Reason) {
        let first = {
            let mut before = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            let first = before.is_none();
            before.get_or_insert(reason);
            first
        };
        self.handle.stop();
        if !first {
            return;
        }
        // Whatever holds the machine up, the terminal comes back. A host that refuses the thread leaves that to the machine.
        let _ = thread::Builder::new().name("ombra-exit".to_owned()).spawn(move || {
            thread::sleep(STOP_PATIENCE);
            terminal::restore();
            std::process::exit(match reason {
                Reason::Signal(signal) => i32::from(128 + signal),
                Reason::Quit => i32::from(QUIT),
            });
        });
    }

    fn watch_signals(&self, init: Option<Arc<Mutex<Lines>>>) -> Result<()> {
        let mut signals = Signals::new(ENDING.iter().chain(&DEADLY).chain(&[SIGWINCH, SIGCONT]))
            .context("signals can't be watched")?;
        let stopper = self.clone();
        thread::Builder::new()
            .name("ombra-signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    match signal {
                        SIGCONT => terminal::enforce(),
                        SIGWINCH => {
                            if let Some(init) = &init {
                                init.lock().unwrap_or_else(PoisonError::into_inner).size();
                            }
                        }
                        signal if DEADLY.contains(&signal) => {
                            terminal::restore();
                            let _ = signal_hook::low_level::emulate_default_handler(signal);
                        }
                        signal => stopper.stop(Reason::Signal(signal as u8)),
                    }
                }
            })
            .context("the host refuses a thread")?;
        Ok(())
    }
}

/// What of the interface for guests is offered.
fn parts(flags: &Run) -> control::Parts {
    let mut parts = control::Parts::all();
    for feature in &flags.feature {
        if let Feature::Part(part, on) = *feature {
            parts.set(part, on);
        }
    }
    parts
}

/// How to translate.
fn translation(flags: &Run) -> Result<translator::Options> {
    let mut options = translator::Options {
        count_fallbacks: flags.stats.is_some(),
        dump: (!flags.dump_translation.is_empty()).then(|| Dump {
            addresses: flags.dump_translation.clone(),
            // A closed stderr loses the text, not the guest.
            to: Arc::new(|text| drop(terminal::Messages.write_all(text.as_bytes()))),
        }),
        ..translator::Options::default()
    };
    for feature in &flags.feature {
        match *feature {
            Feature::Spaces(on) => options.keep_spaces = on,
            Feature::Check(on) => options.check_entries = on,
            Feature::Chaos(on) => options.chaos = on,
            Feature::Part(..) => {}
        }
    }
    if let Some(memory) = flags.shadow_memory {
        options.shadow_memory = memory.share(flags.cpus).map_err(anyhow::Error::msg)?;
    }
    if let Some(cache) = flags.code_cache {
        options.code_cache = cache.share(flags.cpus).map_err(anyhow::Error::msg)?;
    }
    Ok(options)
}

/// The engine that was asked for; the best that this host can do, where none was.
fn make_engine(
    flags: &Run,
    options: &translator::Options,
    setup: Setup,
) -> Result<Arc<dyn Engine>, EngineError> {
    let translator = |setup| Translator::new(setup, options.clone());
    match flags.engine {
        EngineChoice::Translator => Ok(Arc::new(translator(setup)?)),
        EngineChoice::Auto => match translator(setup.clone()) {
            Ok(engine) => Ok(Arc::new(engine)),
            Err(error) => {
                tracing::warn!(%error, "this host can't translate; interpreting");
                Ok(Arc::new(Interpreter::new(setup)?))
            }
        },
        EngineChoice::Interpreter => Ok(Arc::new(Interpreter::new(setup)?)),
    }
}
