//! The machine's life with an engine whose vCPUs follow a script.

use super::*;
use crate::streams::{Input, Stream};
use control::{BootConfig, SerialConfig};
use engine::{Access, Caps, Counters, Kicker, Platform};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

type Step = Box<dyn FnMut(&mut Scripted, &mut dyn Platform) -> Exit + Send>;

/// A vCPU that does one step of its script a run, and then halts for good.
struct Scripted {
    state: CpuState,
    kicker: Kicker,
    memory: GuestMemory,
    script: VecDeque<Step>,
}

impl Vcpu for Scripted {
    fn run(&mut self, _: Budget, platform: &mut dyn Platform) -> Result<Exit, EngineError> {
        if self.kicker.take() {
            return Ok(Exit::Kicked);
        }
        if self.state.activity == Activity::WaitForStartup {
            return Ok(Exit::Halted);
        }
        let Some(mut step) = self.script.pop_front() else { return Ok(Exit::Halted) };
        Ok(step(self, platform))
    }
    fn state(&mut self, _: Groups) -> Result<&mut CpuState, EngineError> {
        Ok(&mut self.state)
    }
    fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }
    fn instructions(&self) -> u64 {
        0
    }
    fn counters(&self) -> Counters {
        let mut counters = Counters::new();
        counters.add("script", "steps_left", self.script.len() as u64);
        counters
    }
}

struct Script {
    memory: GuestMemory,
    steps: Mutex<VecDeque<Step>>,
}

impl Engine for Script {
    fn caps(&self) -> Caps {
        Caps { name: "script", exact_budget: false, max_vcpus: 4 }
    }
    fn create_vcpu(&self, id: VcpuId) -> Result<Box<dyn Vcpu>, EngineError> {
        let steps = if id.0 == 0 {
            std::mem::take(&mut *self.steps.lock().expect("not poisoned"))
        } else {
            VecDeque::new()
        };
        let memory = self.memory.clone();
        Ok(Box::new(Scripted { state: CpuState::default(), kicker: Kicker::new(), memory, script: steps }))
    }
}

/// A multiboot image that is only a header with its addresses, at 1 MiB.
fn kernel() -> tempfile::NamedTempFile {
    let (magic, flags, base) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum, base, base, 0, 0, base + 32, 0xf4f4_f4f4];
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for word in words {
        file.write_all(&word.to_le_bytes()).expect("room for 36 bytes");
    }
    file
}

fn config(kernel: &tempfile::NamedTempFile) -> MachineConfig {
    MachineConfig {
        memory: 8 << 20,
        cpus: 2,
        la57: false,
        mwait: false,
        mitigations: control::Mitigations::Off,
        enlightenments: control::Enlightenments::None,
        parts: control::Parts::all(),
        boot: BootConfig { kernel: kernel.path().to_owned(), initramfs: None, cmdline: String::new() },
        serial: [Some(SerialConfig::Stream), None, None, None],
        no_reboot: false,
        disks: Vec::new(),
        nets: Vec::new(),
        shares: Vec::new(),
        ports: Vec::new(),
        entropy: false,
        test_devices: true,
    }
}

fn machine(config: MachineConfig, io: Streams, steps: Vec<Step>) -> Result<Machine, MachineError> {
    Machine::new(config, io, |setup| {
        Ok(Arc::new(Script { memory: setup.memory, steps: Mutex::new(steps.into()) }))
    })
}

fn out(port: u16, data: &'static [u8]) -> Step {
    Box::new(move |_, platform| {
        platform.pio(port, Access::Write(data));
        Exit::Kicked
    })
}

/// S5 by the PM1a control register.
fn power_off() -> Step {
    out(0x604, &[0, 0x20])
}

/// The keyboard controller's reset line.
fn reset() -> Step {
    out(0x64, &[0xfe])
}

fn run(change: impl FnOnce(&mut MachineConfig), steps: Vec<Step>) -> Result<Outcome, MachineError> {
    let kernel = kernel();
    let mut config = config(&kernel);
    change(&mut config);
    machine(config, Streams::default(), steps)?.run()
}

/// Asks for events, with a spurious kick in mind, until there is one.
fn next_event(platform: &mut dyn Platform) -> Option<engine::Event> {
    let end = Instant::now() + Duration::from_secs(5);
    let window = engine::Window { nmi: true, interrupt: true, halted: false };
    loop {
        let event = platform.take_event(window);
        if event.is_some() || Instant::now() > end {
            return event;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn power_off_ends_the_run() {
    assert!(matches!(run(|_| (), vec![power_off()]), Ok(Outcome::PowerOff)));
}

#[test]
fn the_kernel_is_entered_as_its_protocol_says() {
    let check: Step = Box::new(|vcpu, _| {
        assert_eq!(vcpu.state.rip, 0x10_0020);
        assert_eq!(vcpu.state.gpr[0], 0x2bad_b002);
        Exit::Kicked
    });
    assert!(matches!(run(|_| (), vec![check, power_off()]), Ok(Outcome::PowerOff)));
}

#[test]
fn a_reset_brings_devices_and_kernel_back_and_the_guest_goes_on() {
    let spoil: Step = Box::new(|vcpu, platform| {
        vcpu.memory.write(Gpa(0x10_0020), &[0; 4]).expect("RAM");
        platform.pio(0x3ff, Access::Write(&[0x5a]));
        vcpu.state.rip = 0x1234;
        Exit::Kicked
    });
    let check: Step = Box::new(|vcpu, platform| {
        let mut code = [0; 4];
        vcpu.memory.read(Gpa(0x10_0020), &mut code).expect("RAM");
        assert_eq!(code, [0xf4; 4]);
        assert_eq!(vcpu.state.rip, 0x10_0020);
        let mut scratch = [0xff];
        platform.pio(0x3ff, Access::Read(&mut scratch));
        assert_eq!(scratch, [0]);
        Exit::Kicked
    });
    assert!(matches!(run(|_| (), vec![spoil, reset(), check, power_off()]), Ok(Outcome::PowerOff)));
}

#[test]
fn with_no_reboot_a_reset_ends_the_run() {
    assert!(matches!(run(|config| config.no_reboot = true, vec![reset()]), Ok(Outcome::Reset)));
}

#[test]
fn a_triple_fault_ends_the_run_with_the_registers() {
    let fault: Step = Box::new(|vcpu, _| {
        vcpu.state.rip = 0xdead;
        Exit::Shutdown
    });
    match run(|_| (), vec![fault]) {
        Ok(Outcome::Shutdown { vcpu: 0, state }) => assert_eq!(state.rip, 0xdead),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_debug_exit_port_gives_the_status() {
    assert!(matches!(run(|_| (), vec![out(0xf4, &[3, 0, 0, 0])]), Ok(Outcome::TestExit(7))));
}

#[test]
fn a_handle_stops_a_halted_machine_and_reaches_it_with_an_nmi() {
    let kernel = kernel();
    let (sender, nmi) = mpsc::channel();
    let wait: Step = Box::new(|_, platform| {
        platform.pio(0x21, Access::Write(&[0xff])); // No interrupts from the PIC.
        Exit::Halted
    });
    let take: Step = Box::new(move |_, platform| {
        let _ = sender.send(next_event(platform));
        Exit::Halted
    });
    let machine = machine(config(&kernel), Streams::default(), vec![wait, take]).expect("a machine");
    let handle = machine.handle();
    let running = std::thread::spawn(move || machine.run());
    std::thread::sleep(Duration::from_millis(20));
    handle.inject_nmi();
    assert_eq!(nmi.recv_timeout(Duration::from_secs(5)), Ok(Some(engine::Event::Nmi)));
    handle.stop();
    assert!(matches!(running.join().expect("no panic"), Ok(Outcome::Stopped)));
}

#[test]
fn a_panicking_vcpu_ends_the_run_instead_of_hanging_it() {
    let bug: Step = Box::new(|_, _| panic!("a bug, on purpose"));
    assert!(matches!(run(|_| (), vec![bug]), Err(MachineError::Panicked { .. })));
}

#[test]
fn impossible_configurations_are_refused_with_a_reason() {
    for (memory, says) in [
        (0, "too little"),
        (1024, "too little"),
        ((1 << 20) + 1, "multiple of 4K"),
        (1 << 60, "more than the guest can address"),
    ] {
        let error = run(|config| config.memory = memory, Vec::new()).expect_err("refused");
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = run(|config| config.cpus = 0, Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("at least one"), "{error}");
    let error = run(|config| config.cpus = 5, Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("at most 4"), "{error}");
    let file = SerialConfig::File("/nowhere/at/all".into());
    let error = run(|config| config.serial[0] = Some(file), Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let error = run(|config| config.boot.kernel = "/nowhere/kernel".into(), Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("/nowhere/kernel"), "{error}");
}

#[test]
fn memory_above_3g_continues_at_4g() {
    let layout = layout(5 << 30, 40).expect("sound");
    assert_eq!(layout.regions().len(), 2);
    assert_eq!(layout.regions()[1], Region { start: Gpa(4 << 30), len: 2 << 30 });
    assert!(super::layout((1 << 40) - (1 << 30), 40).is_ok());
    assert!(super::layout(1 << 40, 40).is_err());
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn output(sink: impl Write + Send + 'static, input: Option<Box<dyn Input>>) -> Streams {
    let mut streams = Streams::default();
    streams.serial[0] = Some(Stream { output: Box::new(sink), input });
    streams
}

#[test]
fn all_output_is_written_when_the_run_ends() {
    let kernel = kernel();
    let collected = Collected::default();
    let steps = vec![out(0x3f8, b"h"), out(0x3f8, b"i"), power_off()];
    let machine = machine(config(&kernel), output(collected.clone(), None), steps).expect("a machine");
    assert!(matches!(machine.run(), Ok(Outcome::PowerOff)));
    assert_eq!(*collected.0.lock().expect("not poisoned"), b"hi");
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_that_cannot_be_written_ends_the_run_even_if_the_guest_is_already_off() {
    let kernel = kernel();
    for steps in [vec![out(0x3f8, b"x")], vec![out(0x3f8, b"x"), power_off()]] {
        let machine = machine(config(&kernel), output(Closed, None), steps).expect("a machine");
        assert!(matches!(machine.run(), Err(MachineError::Output { port, .. }) if port == "COM1"));
    }
}

struct Pipe(OwnedFd);

impl Input for Pipe {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn receive(&mut self, guest: &mut Vec<u8>) -> io::Result<bool> {
        let mut bytes = [0; 64];
        let count = rustix::io::read(&self.0, &mut bytes)?;
        guest.extend_from_slice(&bytes[..count]);
        Ok(count > 0)
    }
}

#[test]
fn input_reaches_the_guest_in_order_however_slowly_it_reads() {
    let kernel = kernel();
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let text: Vec<u8> = (0..200).collect();
    writer.write_all(&text).expect("room");
    drop(writer);
    let expected = text.clone();
    let mut got = Vec::new();
    let poll: Step = Box::new(move |vcpu, platform| {
        let end = Instant::now() + Duration::from_secs(10);
        while got.len() < expected.len() && Instant::now() < end {
            let mut status = [0];
            platform.pio(0x3fd, Access::Read(&mut status));
            if status[0] & 1 == 0 {
                std::thread::yield_now();
                continue;
            }
            let mut byte = [0];
            platform.pio(0x3f8, Access::Read(&mut byte));
            got.push(byte[0]);
        }
        vcpu.state.rip = u64::from(got == expected);
        assert_eq!(got, expected);
        Exit::Kicked
    });
    let machine = machine(
        config(&kernel),
        output(Collected::default(), Some(Box::new(Pipe(reader.into())))),
        vec![poll, power_off()],
    )
    .expect("a machine");
    assert!(matches!(machine.run(), Ok(Outcome::PowerOff)));
}

#[test]
fn a_timer_of_the_local_apic_wakes_a_halted_vcpu() {
    let kernel = kernel();
    let (sender, events) = mpsc::channel();
    let arm: Step = Box::new(|_, platform| {
        let apic = |platform: &mut dyn Platform, register: u64, value: u32| {
            platform.mmio(Gpa(0xfee0_0000 + register), Access::Write(&value.to_le_bytes()));
        };
        platform.pio(0x21, Access::Write(&[0xff])); // No interrupts from the PIC.
        apic(platform, 0xf0, 0x1ff);
        apic(platform, 0x3e0, 0b1011); // divide by 1
        apic(platform, 0x320, 0x40); // one-shot, vector 40h
        apic(platform, 0x380, 5_000_000);
        Exit::Halted
    });
    let take: Step = Box::new(move |_, platform| {
        let _ = sender.send(next_event(platform));
        Exit::Halted
    });
    let machine = machine(config(&kernel), Streams::default(), vec![arm, take]).expect("a machine");
    let handle = machine.handle();
    let running = std::thread::spawn(move || machine.run());
    assert_eq!(events.recv_timeout(Duration::from_secs(5)), Ok(Some(engine::Event::Interrupt(0x40))));
    handle.stop();
    assert!(matches!(running.join().expect("no panic"), Ok(Outcome::Stopped)));
}

/// Linux counts on this when it looks whether its timer works.
#[test]
fn ticks_of_a_vcpu_that_the_host_kept_waiting_come_one_after_the_other() {
    let kernel = kernel();
    let (sender, events) = mpsc::channel();
    let start: Step = Box::new(|_, platform| {
        let mut put = |port: u16, value: u8| platform.pio(port, Access::Write(&[value]));
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            put(port, value);
        }
        // 100 Hz, mode 2.
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            put(port, value);
        }
        Exit::Halted
    });
    let stall: Step = Box::new(move |_, platform| {
        let closed = engine::Window { nmi: false, interrupt: false, halted: false };
        let open = engine::Window { nmi: true, interrupt: true, halted: false };
        let count = |platform: &mut dyn Platform| {
            let mut count = 0;
            while let Some(event) = platform.take_event(open) {
                assert_eq!(event, engine::Event::Interrupt(0x20));
                platform.pio(0x20, Access::Write(&[0x20]));
                count += 1;
            }
            let _ = sender.send(count);
        };
        count(platform);
        // Not looking: the host runs something else.
        std::thread::sleep(Duration::from_millis(300));
        count(platform);
        // Looking with interrupts off.
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            assert_eq!(platform.take_event(closed), None);
        }
        count(platform);
        Exit::Halted
    });
    let machine = machine(config(&kernel), Streams::default(), vec![start, stall]).expect("a machine");
    let handle = machine.handle();
    let running = std::thread::spawn(move || machine.run());
    let next = || events.recv_timeout(Duration::from_secs(10)).expect("the script goes on");
    let (_, stalled, masked): (u32, u32, u32) = (next(), next(), next());
    assert!((25..=101).contains(&stalled), "{stalled}");
    // The thread that rings alarms may be late as well, and what is its fault is owed.
    assert!(masked < 15, "{masked} after {stalled}");
    handle.stop();
    assert!(matches!(running.join().expect("no panic"), Ok(Outcome::Stopped)));
}

#[test]
fn what_the_vcpus_have_counted_is_reported_when_the_run_ends() {
    let file = kernel();
    let (report, reports) = mpsc::channel();
    let config = MachineConfig { cpus: 2, ..config(&file) };
    let mut machine = machine(config, Streams::default(), vec![power_off()]).expect("a machine");
    machine.report_to(move |counted| report.send(counted.clone()).expect("someone listens"));
    assert!(matches!(machine.run(), Ok(Outcome::PowerOff)));
    let counted = reports.recv().expect("a report");
    assert_eq!((counted.engine, counted.vcpus), ("script", 2));
    assert_eq!(counted.counters.value("script", "steps_left"), Some(0));
    assert!(counted.beside_ram_bytes.expect("Linux tells") > 0);
}
