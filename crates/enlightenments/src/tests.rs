//! Both interfaces under guests that write anything anywhere, and what flushes promise.

use crate::{Host, Hub, Interface, Paravirt, hyperv};
use chipset::apic::{Attention, Lapics, Processor};
use chipset::{Alarm, AlarmSink, At, BusDevice, Clock, Nanos, PowerRequest, PowerSink, WindowId};
use control::Parts;
use engine::{Event, Hypercall, HypercallOutcome, Kicker, VcpuId, Window};
use memory::{GuestMemory, Layout, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use x86::Gpa;
use x86::state::gpr;

const CPUS: u32 = 3;
const RAM: u64 = 1 << 20;
const OPEN: Window = Window { nmi: true, interrupt: true, halted: true };

#[derive(Default)]
struct Time(AtomicU64);
impl Clock for Time {
    fn now(&self) -> Nanos {
        Nanos(self.0.load(Ordering::Relaxed))
    }
    fn tsc_hz(&self) -> u64 {
        2_000_000_000
    }
    fn tsc_at(&self, at: Nanos) -> u64 {
        at.to_ticks(self.tsc_hz())
    }
    fn when_tsc(&self, tsc: u64) -> Nanos {
        Nanos::from_ticks(tsc, self.tsc_hz())
    }
    fn wall_seconds(&self) -> u64 {
        0
    }
}

struct Silent;
impl AlarmSink for Silent {
    fn set(&self, _: Option<Nanos>) {}
}
impl Attention for Silent {
    fn kick(&self) {}
}
impl PowerSink for Silent {
    fn request(&self, _: PowerRequest) {}
}

struct Machine {
    memory: GuestMemory,
    lapics: Arc<Lapics>,
    time: Arc<Time>,
    host: Host,
    vcpus: Vec<Box<dyn Paravirt>>,
}

impl Machine {
    fn new(interface: Interface) -> Self {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM }]).expect("sound");
        let memory = GuestMemory::new(layout).expect("the host has 1 MiB");
        let time = Arc::new(Time::default());
        let alarm = || -> Alarm { Arc::new(Silent) };
        let processors = (0..CPUS).map(|_| Processor { attention: Arc::new(Silent), alarm: alarm() });
        let lapics = Arc::new(Lapics::new(time.clone(), 40, processors.collect()));
        lapics.virtual_wire(0);
        let vcpus = (0..CPUS).map(|_| (Kicker::new(), alarm())).collect();
        let hub = Hub::new(memory.clone(), time.clone(), Arc::clone(&lapics), Arc::new(Silent), vcpus);
        let host = Host::new(interface, Parts::all(), hub);
        let vcpus = (0..CPUS).map(|id| host.vcpu(VcpuId(id))).collect();
        Self { memory, lapics, time, host, vcpus }
    }

    fn call(&mut self, cpu: usize, registers: &mut [u64; 16], long: bool) -> HypercallOutcome {
        let call = Hypercall { registers, long, cpl: 0, protected: true };
        self.vcpus[cpu].hypercall(call)
    }

    /// All vCPUs but one do what they have to.
    fn drain(&mut self, but: usize) {
        for (cpu, vcpu) in self.vcpus.iter_mut().enumerate() {
            while cpu != but && vcpu.event(OPEN).is_some() {}
        }
    }

    /// The guest says who it is and where its page of calls is.
    fn introduce(&mut self) {
        self.vcpus[0].wrmsr(0x4000_0000, 1).expect("an identity");
        self.vcpus[0].wrmsr(0x4000_0001, 0xf000 | 1).expect("a page");
    }
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// What registers of such interfaces may have: addresses in and at the ends of RAM, with low bits, or anything.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.below(16),
            2 => (RAM - 0x1000) | self.below(0x1000),
            3 => RAM | 1,
            4 => self.below(1 << 20),
            5 => 1 << self.below(64),
            _ => self.below(RAM >> 12) << 12 | self.below(8),
        }
    }
}

fn any_msr(interface: Interface, random: &mut Random) -> u32 {
    let base = if interface == Interface::Kvm { 0x4b56_4d00 } else { 0x4000_0000 };
    let offset = match random.below(6) {
        0 => random.below(0x200),
        1 => 0x80 + random.below(5),
        2 => 0x90 + random.below(16),
        3 => 0xb0 + random.below(8),
        4 => 0x70 + random.below(4),
        _ => random.below(0x24),
    };
    base + offset as u32
}

/// Everything at random; nothing may panic, and every call ends once the others have done what they have to.
fn torment(interface: Interface, steps: u32, seed: u64) {
    const GUEST_IDLE: u32 = 0x4000_00f0;
    let mut random = Random(seed);
    let mut machine = Machine::new(interface);
    if interface == Interface::HyperV {
        machine.introduce();
    }
    for _ in 0..steps {
        let cpu = random.below(CPUS.into()) as usize;
        match random.below(12) {
            0..=3 => {
                let (msr, value) = (any_msr(interface, &mut random), random.value());
                if machine.vcpus[cpu].owns_msr(msr) {
                    let _ = machine.vcpus[cpu].wrmsr(msr, value);
                }
            }
            4 => {
                let msr = any_msr(interface, &mut random);
                // It would sleep.
                if msr != GUEST_IDLE {
                    let _ = machine.vcpus[cpu].rdmsr(msr);
                }
            }
            5..=7 => {
                let mut registers: [u64; 16] = std::array::from_fn(|_| random.value());
                // Calls that give the CPU away come seldom: on a busy host each takes a while.
                let codes = [2, 3, 0xb, 0x13, 0x14, 0x15, 0x5c, 0x5d, random.below(0x100)];
                let code = codes[random.below(9) as usize];
                let (header, count, start) = (random.below(3), random.below(40), random.below(3));
                registers[gpr::RCX] = code | random.below(2) << 16 | header << 17 | count << 32 | start << 48;
                registers[gpr::RDX] = random.below(RAM >> 3) << 3;
                registers[gpr::RAX] = [5, 9, 10, registers[gpr::RAX]][random.below(4) as usize];
                let long = random.below(4) != 0;
                let mut tries = 0;
                while machine.call(cpu, &mut registers, long) == HypercallOutcome::Again {
                    tries += 1;
                    assert!(tries < 1000, "a call that doesn't end: {registers:x?}");
                    machine.drain(cpu);
                }
            }
            8 => {
                let at = random.below(RAM - 64);
                let bytes: Vec<u8> = (0..64).map(|_| random.below(4) as u8).collect();
                machine.memory.write(Gpa(at), &bytes).expect("RAM");
            }
            9 => {
                let _ = machine.vcpus[cpu].event(OPEN);
                if machine.lapics.take_event(cpu as u32, true, true).is_some() {
                    machine.vcpus[cpu].event_taken();
                    let vcpu = &machine.vcpus[cpu];
                    if vcpu.may_end_untold() && machine.lapics.arm_lazy(cpu as u32) {
                        let flag = vcpu.eoi_flag();
                        flag.inspect(|flag| flag.set());
                        machine.lapics.settle_lazy(cpu as u32, flag.is_some_and(|flag| flag.take()));
                    }
                }
                machine.vcpus[cpu].end_told();
            }
            10 => {
                machine.time.0.fetch_add(random.below(10_000_000), Ordering::Relaxed);
                machine.host.timer_alarm(cpu as u32);
                machine.vcpus[cpu].sleeps();
                machine.vcpus[cpu].wakes();
            }
            _ => {
                if let Some(partition) = machine.host.partition() {
                    let mut device = hyperv::TestDevice::new(Arc::clone(partition));
                    let command = (random.next() as u32 & 0x0307_030f).to_le_bytes();
                    device.write(At { window: WindowId(0), offset: 0 }, &command).expect("takes anything");
                }
                if random.below(200) == 0 {
                    machine.vcpus[cpu].reset();
                    if interface == Interface::HyperV {
                        machine.introduce();
                    }
                }
            }
        }
    }
}

#[test]
fn kvms_interface_takes_anything() {
    torment(Interface::Kvm, 30_000, 0x1234_5678_9abc_def1);
}

#[test]
fn hypervs_interface_takes_anything() {
    torment(Interface::HyperV, 30_000, 0x0fed_cba9_8765_4321);
}

#[test]
fn a_flush_is_over_when_all_whom_it_names_have_flushed_or_sleep() {
    let mut machine = Machine::new(Interface::HyperV);
    machine.introduce();
    // All address spaces, vCPUs 1 and 2.
    for (word, value) in [0u64, 2, 0b110].into_iter().enumerate() {
        machine.memory.write(Gpa(0x1000 + 8 * word as u64), &value.to_le_bytes()).expect("RAM");
    }
    let mut registers = [0; 16];
    (registers[gpr::RCX], registers[gpr::RDX]) = (2, 0x1000);
    for _ in 0..3 {
        assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Again);
    }
    assert!(matches!(machine.vcpus[1].event(OPEN), Some(Event::Flush(_))));
    assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Again, "vCPU 2 hasn't");
    machine.vcpus[2].sleeps();
    assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Done, "it sleeps");
    assert_eq!(registers[gpr::RAX], 0);
    machine.vcpus[2].wakes();
    assert!(matches!(machine.vcpus[2].event(OPEN), Some(Event::Flush(_))), "before it runs on");
    assert_eq!(machine.vcpus[0].event(OPEN), None, "nobody named this one");
}

#[test]
fn a_flush_that_an_interrupt_came_into_begins_anew() {
    let mut machine = Machine::new(Interface::HyperV);
    machine.introduce();
    for (word, value) in [0u64, 3, 0].into_iter().enumerate() {
        machine.memory.write(Gpa(0x1000 + 8 * word as u64), &value.to_le_bytes()).expect("RAM");
    }
    let mut registers = [0; 16];
    (registers[gpr::RCX], registers[gpr::RDX]) = (2, 0x1000);
    assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Again);
    machine.drain(0);
    machine.vcpus[0].event_taken();
    assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Again, "asked again");
    machine.drain(0);
    assert_eq!(machine.call(0, &mut registers, true), HypercallOutcome::Done);
    assert!(matches!(machine.vcpus[0].event(OPEN), Some(Event::Flush(_))), "it flushes too");
}

#[test]
fn without_an_interface_there_is_nothing() {
    let mut machine = Machine::new(Interface::None);
    assert_eq!(machine.call(0, &mut [0; 16], true), HypercallOutcome::Undefined);
    assert!(!machine.vcpus[0].owns_msr(0x4000_0000) && machine.vcpus[0].rdmsr(0x4b56_4d01).is_err());
    assert!(machine.host.partition().is_none());
}

#[test]
fn parts_that_are_left_out_are_not_there() {
    for (interface, part, msr) in [
        (Interface::Kvm, Parts::CLOCK, 0x4b56_4d01),
        (Interface::Kvm, Parts::EOI, 0x4b56_4d04),
        (Interface::HyperV, Parts::CLOCK, 0x4000_0020),
        (Interface::HyperV, Parts::SYNIC, 0x4000_0080),
        (Interface::HyperV, Parts::SYNIC, 0x4000_00b0),
        (Interface::HyperV, Parts::EOI, 0x4000_0073),
        (Interface::HyperV, Parts::SPIN, 0x4000_00f0),
    ] {
        let machine = Machine::new(interface);
        let hub = || {
            Arc::new(Hub::new(
                machine.memory.clone(),
                machine.time.clone(),
                Arc::clone(&machine.lapics),
                Arc::new(Silent),
                vec![(Kicker::new(), Arc::new(Silent))],
            ))
        };
        let make = |parts| -> Box<dyn Paravirt> {
            if interface == Interface::Kvm {
                return Box::new(crate::kvm::Kvm::new(VcpuId(0), hub(), parts));
            }
            Box::new(hyperv::Hyperv::new(VcpuId(0), Arc::new(hyperv::Partition::new(hub())), parts))
        };
        assert!(make(Parts::all()).rdmsr(msr).is_ok(), "{msr:#x}");
        assert!(make(Parts::all() - part).rdmsr(msr).is_err(), "{msr:#x}");
    }
}
