//! The board: which devices a machine has and how each is wired.
//!
//! Every kind of device has one [`Attach`] that builds it from a [`Slot`] and puts it on its buses; [`KINDS`] lists them, and
//! [`build`] only loops. Interrupt controllers come first, because every line ends in them.
//!
//! Called by the machine once. Afterwards the buses are immutable and shared by all vCPUs; resetting calls the devices in
//! the order in which they were attached.

use crate::MachineError;
use crate::acpi::{BoardFacts, COM_PORTS};
use crate::clock::TscClock;
use crate::ending::{Control, Ending};
use crate::events::{AlarmHandle, Events};
use crate::gsi::Gsi;
use crate::pci::PciSlots;
use crate::platform::Board;
use crate::serial;
use crate::streams::{Output, Streams, Writer};
use crate::windows::Windows;
use crate::{disks, virtio};
use chipset::apic::{Attention, IOAPIC_BASE, IOAPIC_PINS, IOAPIC_SIZE, IoApic, Lapics, Processor};
use chipset::bus::Shared;
use chipset::hpet::{Hpet, LegacyRoute, PIT_PIN, RTC_PIN};
use chipset::i8042::I8042;
use chipset::mux::Mux;
use chipset::pic::Pic;
use chipset::pit::Pit;
use chipset::pm::Pm;
use chipset::power::{PowerRequest, PowerSink};
use chipset::rtc::{MemorySize, Rtc};
use chipset::testdev::{
    DEBUG_EXIT_PORTS, DebugExit, FW_CFG_PORTS, FwCfg, TEST_DEVICE_MMIO, TEST_DEVICE_PORTS, TestDevice,
};
use chipset::{
    Alarm, Bus, BusDevice, Clock, Creditor, Device, Line, LineSink, WindowId, hpet, i8042, pci, pic, pit, pm,
    rtc,
};
use control::MachineConfig;
use engine::Kicker;
use enlightenments::{Host, Hub, Interface, hyperv};
use memory::GuestMemory;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use workers::OnPanic;

/// ISA interrupts, as every PC has them; serial ports' are in [`COM_PORTS`].
mod irq {
    pub(super) const TIMER: u8 = 0;
    pub(super) const KEYBOARD: u8 = 1;
    pub(super) const RTC: u8 = 8;
    pub(super) const SCI: u8 = 9;
}

/// The I/O APIC's inputs that the HPET's comparators may be routed to: those that nobody else has.
const HPET_PINS: RangeInclusive<u8> = 20..=23;

/// The local APICs' input that the PIC drives.
const LINT0: u8 = 0;

/// What the board is built from.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a MachineConfig,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) clock: &'a Arc<TscClock>,
    pub(crate) events: &'a Events,
    pub(crate) control: &'a Arc<Control>,
    pub(crate) kickers: &'a [Kicker],
    pub(crate) physical_bits: u8,
}

/// The finished board.
pub(crate) struct Chips {
    /// What vCPUs reach.
    pub(crate) board: Arc<Board>,
    devices: Vec<Shared<dyn Device>>,
    /// The serial ports' ways out.
    pub(crate) outputs: Vec<Output>,
    pub(crate) writers: Vec<Writer>,
    /// Who owns which interrupt line.
    pub(crate) mux: Arc<Mux>,
    /// The interface for guests.
    pub(crate) host: Arc<Host>,
    /// Known to the local APICs only weakly.
    _pic: Arc<Pic>,
}

impl Chips {
    /// Everything back to power-up.
    pub(crate) fn reset(&self) {
        for device in &self.devices {
            device.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }

    /// No more alarms and interrupts, for good.
    pub(crate) fn quiesce(&self) {
        for device in &self.devices {
            device.lock().unwrap_or_else(PoisonError::into_inner).quiesce();
        }
    }
}

/// What firmware tables say about the board.
pub(crate) fn facts(config: &MachineConfig) -> BoardFacts {
    let mut serial = [None; 4];
    for ((fact, port), place) in serial.iter_mut().zip(&config.serial).zip(COM_PORTS) {
        *fact = port.as_ref().map(|_| place);
    }
    BoardFacts {
        serial,
        pm_base: *pm::PORTS[0].0.start() as u16,
        s5_sleep_type: pm::S5_SLEEP_TYPE,
        sci: irq::SCI,
        hpet: Some(*hpet::MMIO[0].0.start() as u32),
        hpet_id: hpet::BLOCK_ID,
        ecam: Some(*pci::MMIO[0].0.start() as u32),
        pci_window: *pci::MEMORY.start() as u32,
        pci_window_last: *pci::MEMORY.end() as u32,
        ..BoardFacts::pc(config.cpus)
    }
}

/// What a device is built with, and where it goes.
pub(crate) struct Slot<'a> {
    pub(crate) parts: &'a Parts<'a>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) power: Arc<dyn PowerSink>,
    host: Arc<Host>,
    /// One wire an interrupt, shared by those who drive it.
    wires: Vec<Line>,
    /// In front of IRQ 0 and 8, because the HPET can take them over.
    legacy: Arc<LegacyRoute>,
    /// Where devices plug in.
    pub(crate) pci: PciSlots,
    pub(crate) streams: Streams,
    ports: Bus,
    memory: Bus,
    devices: Vec<Shared<dyn Device>>,
    creditors: Vec<(Arc<AtomicBool>, Shared<dyn Creditor>)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) writers: Vec<Writer>,
}

/// Addresses of one device and the windows they are.
type Places<'a> = &'a [(RangeInclusive<u64>, WindowId)];

impl Slot<'_> {
    /// A line into interrupt `number`, 0..24.
    pub(crate) fn line(&self, number: u8) -> Line {
        self.wires[usize::from(number)].share()
    }

    pub(crate) fn alarm(&self) -> Arc<AlarmHandle> {
        self.parts.events.alarm()
    }

    /// Puts a device on the I/O ports.
    pub(crate) fn on_ports<D: BusDevice + 'static>(
        &mut self,
        device: &Arc<Mutex<D>>,
        places: Places<'_>,
    ) -> Result<(), MachineError> {
        claim(&mut self.ports, device, places)
    }

    /// Puts a device into the guest-physical address space.
    pub(crate) fn on_memory<D: BusDevice + 'static>(
        &mut self,
        device: &Arc<Mutex<D>>,
        places: Places<'_>,
    ) -> Result<(), MachineError> {
        claim(&mut self.memory, device, places)
    }

    /// What a device's thread calls when it panics: the machine ends.
    pub(crate) fn on_panic(&self) -> OnPanic {
        let control = Arc::clone(self.parts.control);
        Arc::new(move |what| control.end(Ending::Failed(MachineError::Panicked { what })))
    }

    /// Takes part in the machine's resets from now on.
    pub(crate) fn keep<D: Device + 'static>(&mut self, device: &Arc<Mutex<D>>) {
        let device: Shared<dyn Device> = device.clone();
        self.devices.push(device);
    }

    /// Hears of interrupts that are taken from now on.
    fn credit<D: Creditor + 'static>(&mut self, device: &Arc<Mutex<D>>) {
        let owes = device.lock().unwrap_or_else(PoisonError::into_inner).owes();
        self.creditors.push((owes, device.clone()));
    }
}

fn claim<D: BusDevice + 'static>(
    bus: &mut Bus,
    device: &Arc<Mutex<D>>,
    places: Places<'_>,
) -> Result<(), MachineError> {
    for (range, window) in places {
        let device: Shared<dyn BusDevice> = device.clone();
        bus.claim(range.clone(), *window, device)
            .map_err(|overlap| MachineError::Config(overlap.to_string()))?;
    }
    Ok(())
}

/// One kind of device: builds it and wires it.
pub(crate) type Attach = fn(&mut Slot<'_>) -> Result<(), MachineError>;

/// All kinds, in the order in which they are attached and reset.
const KINDS: &[Attach] = &[
    attach_pit,
    attach_rtc,
    attach_pm,
    attach_i8042,
    attach_hpet,
    attach_pci,
    serial::attach,
    disks::attach,
    virtio::attach,
    attach_test_devices,
];

fn attach_pit(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let alarm = slot.alarm();
    let pit = Pit::new(Arc::clone(&slot.clock), alarm.clone(), Line::new(slot.legacy.clone(), PIT_PIN));
    let pit = Arc::new(Mutex::new(pit));
    alarm.calls(&pit, Pit::on_alarm);
    slot.on_ports(&pit, &pit::PORTS)?;
    slot.credit(&pit);
    slot.keep(&pit);
    Ok(())
}

fn attach_rtc(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let ram = |index: usize| slot.parts.memory.layout().regions().get(index).map_or(0, |region| region.len);
    let memory = MemorySize { below_4g: ram(0), above_4g: ram(1) };
    let alarm = slot.alarm();
    let rtc =
        Rtc::new(Arc::clone(&slot.clock), alarm.clone(), Line::new(slot.legacy.clone(), RTC_PIN), memory);
    let rtc = Arc::new(Mutex::new(rtc));
    alarm.calls(&rtc, Rtc::on_alarm);
    slot.on_ports(&rtc, &rtc::PORTS)?;
    slot.keep(&rtc);
    Ok(())
}

fn attach_pm(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let alarm = slot.alarm();
    let pm = Pm::new(Arc::clone(&slot.clock), alarm.clone(), slot.line(irq::SCI), Arc::clone(&slot.power));
    let pm = Arc::new(Mutex::new(pm));
    alarm.calls(&pm, Pm::on_alarm);
    slot.on_ports(&pm, &pm::PORTS)?;
    slot.keep(&pm);
    Ok(())
}

fn attach_i8042(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let i8042 = Arc::new(Mutex::new(I8042::new(slot.line(irq::KEYBOARD), Arc::clone(&slot.power))));
    slot.on_ports(&i8042, &i8042::PORTS)?;
    slot.keep(&i8042);
    Ok(())
}

fn attach_hpet(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let alarm = slot.alarm();
    let lines: Vec<_> = HPET_PINS.map(|pin| (pin, slot.line(pin))).collect();
    let hpet = Hpet::new(Arc::clone(&slot.clock), alarm.clone(), Arc::clone(&slot.legacy), &lines);
    let hpet = Arc::new(Mutex::new(hpet));
    alarm.calls(&hpet, Hpet::on_alarm);
    slot.on_memory(&hpet, &hpet::MMIO)?;
    slot.credit(&hpet);
    slot.keep(&hpet);
    Ok(())
}

fn attach_pci(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    let host = slot.pci.host();
    slot.on_ports(&host, &pci::PORTS)?;
    slot.on_memory(&host, &pci::MMIO)?;
    slot.memory
        .claim_routed(pci::MEMORY, slot.pci.decoder())
        .map_err(|overlap| MachineError::Config(overlap.to_string()))?;
    slot.keep(&host);
    Ok(())
}

/// What bare-metal test kernels expect, where the configuration asks for it.
fn attach_test_devices(slot: &mut Slot<'_>) -> Result<(), MachineError> {
    if !slot.parts.config.test_devices {
        return Ok(());
    }
    let exit = Arc::new(Mutex::new(DebugExit::new(Arc::clone(&slot.power))));
    slot.on_ports(&exit, &DEBUG_EXIT_PORTS)?;
    slot.keep(&exit);
    let cpus = u16::try_from(slot.parts.config.cpus).unwrap_or(u16::MAX);
    let fw_cfg = Arc::new(Mutex::new(FwCfg::new(slot.parts.config.memory, cpus)));
    slot.on_ports(&fw_cfg, &FW_CFG_PORTS)?;
    slot.keep(&fw_cfg);
    let lines = (0..IOAPIC_PINS).map(|pin| slot.line(pin)).collect();
    let device = Arc::new(Mutex::new(TestDevice::new(lines)));
    slot.on_ports(&device, &TEST_DEVICE_PORTS)?;
    slot.on_memory(&device, &TEST_DEVICE_MMIO)?;
    slot.keep(&device);
    if let Some(partition) = slot.host.partition() {
        let device = Arc::new(Mutex::new(hyperv::TestDevice::new(Arc::clone(partition))));
        slot.on_ports(&device, &hyperv::TEST_DEVICE_PORTS)?;
    }
    Ok(())
}

/// What the board asks for, as the run's ending.
struct Power(Arc<Control>);

impl PowerSink for Power {
    fn request(&self, request: PowerRequest) {
        self.0.end(match request {
            PowerRequest::PowerOff => Ending::PowerOff,
            PowerRequest::Reset => Ending::Reset,
            PowerRequest::Exit(status) => Ending::TestExit(status),
        });
    }
}

/// A kicker, as interrupt controllers know it.
struct Kick(Kicker);

impl Attention for Kick {
    fn kick(&self) {
        self.0.kick();
    }
}

/// The machine's side of the interface for guests, with an alarm for the timers of each vCPU.
fn attach_host(parts: &Parts<'_>, lapics: &Arc<Lapics>, power: &Arc<dyn PowerSink>) -> Arc<Host> {
    let alarms: Vec<_> = parts.kickers.iter().map(|_| parts.events.alarm()).collect();
    let vcpus = parts
        .kickers
        .iter()
        .zip(&alarms)
        .map(|(kicker, alarm)| -> (Kicker, Alarm) { (kicker.clone(), alarm.clone()) });
    let clock: Arc<dyn Clock> = parts.clock.clone();
    let hub = Hub::new(parts.memory.clone(), clock, Arc::clone(lapics), Arc::clone(power), vcpus.collect());
    let interface = Interface::of(parts.config.enlightenments);
    let host = Arc::new(Host::new(interface, parts.config.parts, hub));
    for (cpu, alarm) in (0..).zip(&alarms) {
        let host = Arc::downgrade(&host);
        // The timers look at the time themselves, so a call that is out of date does nothing.
        alarm.calls_with(move |_| {
            if let Some(host) = host.upgrade() {
                host.timer_alarm(cpu);
            }
        });
    }
    host
}

/// Builds all devices.
///
/// # Errors
/// [`MachineError`], for serial files and what the host refuses.
pub(crate) fn build(parts: &Parts<'_>, streams: Streams) -> Result<Chips, MachineError> {
    let clock: Arc<dyn Clock> = parts.clock.clone();
    let alarms: Vec<_> = parts.kickers.iter().map(|_| parts.events.alarm()).collect();
    let processors = parts
        .kickers
        .iter()
        .zip(&alarms)
        .map(|(kicker, alarm)| Processor { attention: Arc::new(Kick(kicker.clone())), alarm: alarm.clone() });
    let lapics = Arc::new(Lapics::new(Arc::clone(&clock), parts.physical_bits, processors.collect()));
    for (cpu, alarm) in (0..).zip(&alarms) {
        let lapics = Arc::downgrade(&lapics);
        // The APIC looks at the time itself, so a call that is out of date does nothing.
        alarm.calls_with(move |_| {
            if let Some(lapics) = lapics.upgrade() {
                lapics.timer_alarm(cpu);
            }
        });
    }
    let power: Arc<dyn PowerSink> = Arc::new(Power(Arc::clone(parts.control)));
    let host = attach_host(parts, &lapics, &power);
    let ioapic = Arc::new(IoApic::new(lapics.clone()));
    let pic = Pic::new(Line::new(lapics.clone(), LINT0));
    let pic_output = Arc::new(pic.clone());
    let weak: std::sync::Weak<Pic> = Arc::downgrade(&pic_output);
    lapics.connect_pic(weak);
    let weak: std::sync::Weak<IoApic> = Arc::downgrade(&ioapic);
    lapics.connect_eoi(weak);
    let gsi: Arc<dyn LineSink> = Arc::new(Gsi::new(pic_output.clone(), ioapic.clone()));
    let mux = Arc::new(Mux::new(gsi, usize::from(IOAPIC_PINS)));
    let wires: Vec<Line> = (0..IOAPIC_PINS).map(|pin| Line::new(mux.clone(), pin)).collect();
    let mut slot = Slot {
        parts,
        clock,
        pci: PciSlots::new(Arc::clone(&power), lapics.clone()),
        power,
        host: Arc::clone(&host),
        legacy: LegacyRoute::new(
            wires[usize::from(irq::TIMER)].share(),
            wires[usize::from(irq::RTC)].share(),
        ),
        wires,
        streams,
        ports: Bus::new(),
        memory: Bus::new(),
        devices: Vec::new(),
        creditors: Vec::new(),
        outputs: Vec::new(),
        writers: Vec::new(),
    };

    let pic = Arc::new(Mutex::new(pic));
    slot.on_ports(&pic, &pic::PORTS)?;
    let ioapic = Arc::new(Mutex::new(ioapic));
    slot.on_memory(&ioapic, &[(IOAPIC_BASE..=IOAPIC_BASE + IOAPIC_SIZE - 1, WindowId(0))])?;
    for attach in KINDS {
        attach(&mut slot)?;
    }
    // Controllers after the devices, whose resets lower lines.
    slot.keep(&pic);
    slot.keep(&ioapic);
    slot.keep(&Arc::new(Mutex::new(Arc::clone(&lapics))));
    let board = Board {
        ports: Arc::new(slot.ports),
        memory: Arc::new(slot.memory),
        lapics,
        windows: Arc::new(Windows::new(parts.kickers)),
        creditors: slot.creditors,
    };
    Ok(Chips {
        board: Arc::new(board),
        devices: slot.devices,
        outputs: slot.outputs,
        writers: slot.writers,
        mux,
        host,
        _pic: pic_output,
    })
}
