//! The chips, wired as a PC wires them, with a clock that the input sets.
//!
//! Threads: one, though chips want shared wiring.

use crate::Input;
use chipset::apic::{
    Attention, EoiSink, ExtIntSource, IOAPIC_BASE, IOAPIC_SIZE, IoApic, LAPIC_BASE, Lapics, Processor,
};
use chipset::bus::Shared;
use chipset::hpet::{self, Hpet, LegacyRoute, PIT_PIN, RTC_PIN};
use chipset::i8042::{self, I8042};
use chipset::pci::{self, PciHost};
use chipset::pic::{self, Pic};
use chipset::pit::{self, Pit};
use chipset::pm::{self, Pm};
use chipset::rtc::{self, MemorySize, Rtc};
use chipset::testdev::{
    DEBUG_EXIT_PORTS, DebugExit, FW_CFG_PORTS, FwCfg, TEST_DEVICE_MMIO, TEST_DEVICE_PORTS, TestDevice,
};
use chipset::uart::{self, ByteSink, InputRoom, Uart};
use chipset::{
    AlarmSink, Bus, BusDevice, Clock, Device, Line, LineSink, Msi, MsiSink, Nanos, PowerRequest, PowerSink,
    WindowId,
};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Processors of the board.
pub(super) const CPUS: u32 = 3;
/// Interrupt lines of the board; 0 to 15 lead to the PIC too.
const LINES: u8 = 24;
/// As often as this an alarm may ring at one moment: a chip may need a few calls to catch up, but not without end.
const RINGS: u32 = 64;

/// Time as the input sets it; the TSC runs at 2 GHz.
#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
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
        1_709_164_790 + self.now().0 / 1_000_000_000
    }
}

#[derive(Default)]
struct TestAlarm(Mutex<Option<Nanos>>);

impl AlarmSink for TestAlarm {
    fn set(&self, at: Option<Nanos>) {
        *self.0.lock().expect("no panic before") = at;
    }
}

impl TestAlarm {
    fn take_due(&self, now: Nanos) -> bool {
        self.0.lock().expect("no panic before").take_if(|at| *at <= now).is_some()
    }
}

/// Both interrupt controllers, as every line of a PC sees them: IRQ 0 is the I/O APIC's pin 2.
struct Fan {
    pic: Pic,
    ioapic: Arc<IoApic>,
}

impl LineSink for Fan {
    fn set_pin(&self, pin: u8, high: bool) {
        if pin < 16 {
            self.pic.set_pin(pin, high);
        }
        self.ioapic.set_pin(if pin == 0 { 2 } else { pin }, high);
    }
}

/// The PIC as the local APICs know it.
struct PicOutput(Pic);

impl ExtIntSource for PicOutput {
    fn is_pending(&self) -> bool {
        self.0.pending()
    }
    fn acknowledge(&self) -> u8 {
        self.0.acknowledge()
    }
}

/// Takes whatever a chip says to the outside.
struct Nothing;

impl Attention for Nothing {
    fn kick(&self) {}
}

impl PowerSink for Nothing {
    fn request(&self, _request: PowerRequest) {}
}

impl ByteSink for Nothing {
    fn write(&mut self, _bytes: &[u8]) {}
}

impl InputRoom for Nothing {
    fn room(&self) {}
}

/// Calls a chip when its alarm rings.
type Ring = (Arc<TestAlarm>, Box<dyn Fn()>);

pub(super) struct Board {
    clock: Arc<TestClock>,
    alarms: Vec<Ring>,
    pub(super) ports: Bus,
    pub(super) memory: Bus,
    /// What is on the two buses: whether on `memory`, and where.
    pub(super) windows: Vec<(bool, RangeInclusive<u64>)>,
    pub(super) devices: Vec<Shared<dyn Device>>,
    /// The first so many of them; the rest, one with 64 KiB of RAM, takes milliseconds to save.
    pub(super) quick_devices: usize,
    pub(super) lines: Vec<Line>,
    pub(super) lapics: Arc<Lapics>,
    pub(super) pic: Pic,
    pub(super) pm: Shared<Pm>,
    pub(super) uart: Shared<Uart>,
    /// The local APICs only know it weakly.
    _pic_output: Arc<PicOutput>,
}

impl Board {
    pub(super) fn new() -> Self {
        let clock = Arc::new(TestClock::default());
        let mut alarms: Vec<Ring> = Vec::new();
        let processors = (0..CPUS).map(|_| Arc::new(TestAlarm::default())).collect::<Vec<_>>();
        let wired = processors
            .iter()
            .map(|alarm| Processor { attention: Arc::new(Nothing), alarm: alarm.clone() })
            .collect();
        let lapics = Arc::new(Lapics::new(clock.clone(), 40, wired));
        for (cpu, alarm) in (0..).zip(processors) {
            let lapics = lapics.clone();
            alarms.push((alarm, Box::new(move || lapics.timer_alarm(cpu))));
        }
        let ioapic = Arc::new(IoApic::new(lapics.clone()));
        let pic = Pic::new(Line::new(lapics.clone(), 0));
        let pic_output = Arc::new(PicOutput(pic.clone()));
        let source: Arc<dyn ExtIntSource> = pic_output.clone();
        lapics.connect_pic(Arc::downgrade(&source));
        let eoi: Arc<dyn EoiSink> = ioapic.clone();
        lapics.connect_eoi(Arc::downgrade(&eoi));
        let fan: Arc<dyn LineSink> = Arc::new(Fan { pic: pic.clone(), ioapic: ioapic.clone() });
        let wires: Vec<Line> = (0..LINES).map(|pin| Line::new(fan.clone(), pin)).collect();
        let share = |pin: u8| wires[usize::from(pin)].share();
        let alarm = || Arc::new(TestAlarm::default());

        let legacy = LegacyRoute::new(share(0), share(8));
        let (pit_alarm, rtc_alarm, pm_alarm, hpet_alarm) = (alarm(), alarm(), alarm(), alarm());
        let old = |pin| Line::new(legacy.clone(), pin);
        let pit = shared(Pit::new(clock.clone(), pit_alarm.clone(), old(PIT_PIN)));
        let memory = MemorySize { below_4g: 1 << 30, above_4g: 1 << 32 };
        let rtc = shared(Rtc::new(clock.clone(), rtc_alarm.clone(), old(RTC_PIN), memory));
        let pm = shared(Pm::new(clock.clone(), pm_alarm.clone(), share(9), Arc::new(Nothing)));
        let routes: Vec<(u8, Line)> = (20..24).map(|pin| (pin, share(pin))).collect();
        let hpet = shared(Hpet::new(clock.clone(), hpet_alarm.clone(), legacy, &routes));
        let uart = shared(Uart::new(share(4), Box::new(Nothing), Some(Arc::new(Nothing))));
        alarms.push(ring(pit_alarm, &pit, Pit::on_alarm));
        alarms.push(ring(rtc_alarm, &rtc, Rtc::on_alarm));
        alarms.push(ring(pm_alarm, &pm, Pm::on_alarm));
        alarms.push(ring(hpet_alarm, &hpet, Hpet::on_alarm));

        let mut board = Self {
            clock,
            alarms,
            ports: Bus::new(),
            memory: Bus::new(),
            windows: Vec::new(),
            devices: Vec::new(),
            quick_devices: 0,
            lines: (0..LINES).map(share).collect(),
            lapics: lapics.clone(),
            pic: pic.clone(),
            pm: pm.clone(),
            uart: uart.clone(),
            _pic_output: pic_output,
        };
        board.attach(&pit, &pit::PORTS, &[]);
        board.attach(&rtc, &rtc::PORTS, &[]);
        board.attach(&pm, &pm::PORTS, &[]);
        board.attach(&hpet, &[], &hpet::MMIO);
        board.attach(&uart, &uart::COM1, &[]);
        board.attach(&shared(I8042::new(share(1), Arc::new(Nothing))), &i8042::PORTS, &[]);
        board.attach(&shared(PciHost::new(Arc::new(Nothing))), &pci::PORTS, &pci::MMIO);
        board.attach(&shared(pic), &pic::PORTS, &[]);
        let ioapic_range = IOAPIC_BASE..=IOAPIC_BASE + IOAPIC_SIZE - 1;
        board.attach(&shared(ioapic), &[], &[(ioapic_range, WindowId(0))]);
        board.attach(&shared(DebugExit::new(Arc::new(Nothing))), &DEBUG_EXIT_PORTS, &[]);
        board.attach(&shared(FwCfg::new(1 << 30, 2)), &FW_CFG_PORTS, &[]);
        board.devices.push(shared(lapics));
        board.quick_devices = board.devices.len();
        let test_lines = (0..LINES).map(share).collect();
        board.attach(&shared(TestDevice::new(test_lines)), &TEST_DEVICE_PORTS, &TEST_DEVICE_MMIO);
        board
    }

    fn attach<D: BusDevice + Device + 'static>(
        &mut self,
        device: &Shared<D>,
        ports: &[(RangeInclusive<u64>, WindowId)],
        memory: &[(RangeInclusive<u64>, WindowId)],
    ) {
        for (is_memory, places) in [(false, ports), (true, memory)] {
            let bus = if is_memory { &mut self.memory } else { &mut self.ports };
            for (range, window) in places {
                bus.claim(range.clone(), *window, device.clone()).expect("places of a PC are disjoint");
                self.windows.push((is_memory, range.clone()));
            }
        }
        self.devices.push(device.clone());
    }

    /// Lets time go by, at most to the end of what 64 bits of nanoseconds hold.
    pub(super) fn advance(&self, nanos: u64) {
        self.clock.0.store(self.clock.now().0.saturating_add(nanos), Ordering::Relaxed);
    }

    /// Calls every chip whose alarm is due.
    pub(super) fn ring(&self) {
        let now = self.clock.now();
        for (which, (alarm, call)) in self.alarms.iter().enumerate() {
            let mut rings = 0;
            while alarm.take_due(now) {
                call();
                rings += 1;
                // At the end of time every moment is now.
                assert!(rings < RINGS || now.0 == u64::MAX, "alarm {which} rings without end at {now:?}");
                if rings == RINGS {
                    break;
                }
            }
        }
    }

    /// A message-signalled interrupt, as a PCI device or the I/O APIC sends it.
    pub(super) fn send_msi(&self, input: &mut Input<'_>) {
        let address = LAPIC_BASE | u64::from(input.u32() & 0xf_ffff);
        self.lapics.send(Msi { address, data: input.u32() });
    }
}

fn shared<D>(device: D) -> Shared<D> {
    Arc::new(Mutex::new(device))
}

fn ring<D: 'static>(alarm: Arc<TestAlarm>, device: &Shared<D>, call: fn(&mut D)) -> Ring {
    let device = device.clone();
    (alarm, Box::new(move || call(&mut device.lock().expect("no panic before"))))
}
