//! A virtio device on PCI: the modern interface of VIRTIO 1.2, 4.1, in one base address.
//!
//! A [`Transport`] is a PCI function, what is behind its base address, and a device of the machine. It has the registers, and when the
//! driver is ready lends the rings to the device's threads (see [`crate::device`]). Doorbells only wake those.
//!
//! Threads and lock order: behind one mutex, taken by vCPUs and by the machine; then the signals' and the interrupts' locks. The
//! device's threads never take the mutex. A driver's reset doesn't wait for the threads either: until they have ended the status
//! reads as before (4.1.4.3.1 has drivers wait for zero), and whoever reads it notices. The machine does wait.
//!
//! Left out: legacy and transitional interfaces, packed rings, resets of single rings, notification data, rings that are given
//! up when the function may not master the bus.

mod life;
mod registers;
mod spec;
#[cfg(test)]
mod tests;

use crate::device::{Device, Start};
use crate::interrupt::Signals;
use crate::queue::Queue;
use crate::threads::Threads;
use chipset::pci::{Decode, Endpoint, Identity, Interrupts, PciFunction};
use chipset::{At, BusDevice, BusFault, Line, MsiSink, WindowId};
use memory::GuestMemory;
use registers::Registers;
use spec::{capability, common, feature};
use std::sync::Arc;
use workers::{OnPanic, Staff};

/// Bytes of a transport's base address, which also is its alignment.
pub const BAR_BYTES: u32 = spec::BAR_BYTES;

const WINDOW: WindowId = WindowId(0);

/// What a transport is connected to.
pub struct Wiring {
    /// The device's name in saved machines.
    pub name: String,
    /// Where rings and buffers are.
    pub memory: GuestMemory,
    /// Tells the memory bus where the function is.
    pub decode: Decode,
    /// INTA#.
    pub line: Line,
    /// Takes MSI-X messages.
    pub messages: Arc<dyn MsiSink>,
    /// Where the base address is at power-up: a multiple of [`BAR_BYTES`].
    pub address: u32,
    /// Who does the device's work.
    pub staff: Staff,
    /// Is told when one of the device's threads panics.
    pub on_panic: OnPanic,
}

/// How far the device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No threads.
    Idle,
    /// The device's threads have the rings.
    Running,
    /// The driver has reset the device, whose threads have not all ended.
    Stopping,
}

/// A virtio device on PCI.
pub struct Transport {
    // Fixed configuration.
    name: String,
    sizes: Vec<u16>,
    /// Where the capability is that reaches the base address through configuration space (4.1.4.9).
    window: u8,
    staff: Staff,
    // Wiring.
    memory: GuestMemory,
    signals: Arc<Signals>,
    interrupts: Arc<Interrupts>,
    on_panic: OnPanic,
    // Runtime.
    device: Box<dyn Device>,
    threads: Threads,
    phase: Phase,
    quiesced: bool,
    // Guest-visible state, with the signals' and the device's.
    endpoint: Endpoint,
    registers: Registers,
}

impl Transport {
    /// `device` on PCI, after power-up.
    ///
    /// # Panics
    /// A mistake of the device's: more than 511 rings, or sizes that aren't powers of two.
    #[must_use]
    pub fn new(device: Box<dyn Device>, wiring: Wiring) -> Self {
        let sizes = device.queues();
        assert!(sizes.len() <= spec::MOST_QUEUES, "{} rings are too many", sizes.len());
        assert!(
            sizes.iter().all(|size| size.is_power_of_two() && *size <= 1 << 15),
            "sizes are powers of two"
        );
        let interrupts = Interrupts::new(sizes.len() as u16 + 1, wiring.line, wiring.messages);
        let kind = device.kind();
        let identity = Identity {
            vendor: spec::VENDOR,
            device: spec::FIRST_DEVICE + kind as u16,
            class: kind.pci_class(),
            revision: spec::REVISION,
            subsystem: (spec::VENDOR, spec::SUBSYSTEM),
        };
        let mut endpoint = Endpoint::new(identity, wiring.decode, Arc::clone(&interrupts));
        endpoint.bar(spec::BAR, BAR_BYTES, WINDOW, wiring.address);
        let parts = [
            (capability::COMMON, spec::COMMON, spec::COMMON_BYTES),
            (capability::ISR, spec::ISR, 1),
            (capability::DEVICE, spec::DEVICE, spec::DEVICE_BYTES),
            (capability::NOTIFY, spec::NOTIFY, spec::NOTIFY_BYTES),
        ];
        for (kind, at, len) in parts {
            let mut body = part(kind, at, len);
            if kind == capability::NOTIFY {
                body.extend(spec::DOORBELL_BYTES.to_le_bytes());
                body[0] += 4;
            }
            endpoint.capability(spec::CAPABILITY, &body, &[]);
        }
        // Base address, offset, length and the data can be written.
        let mut body = part(capability::PCI, 0, 0);
        body.extend([0; 4]);
        body[0] += 4;
        let mut writable = [0xff; 18];
        writable[..6].copy_from_slice(&[0, 0, 0xff, 0, 0, 0]);
        let window = endpoint.capability(spec::CAPABILITY, &body, &writable);
        endpoint.messages(spec::BAR, spec::TABLE, spec::PENDING);
        Self {
            name: wiring.name,
            registers: Registers::new(&sizes),
            window,
            staff: wiring.staff,
            memory: wiring.memory,
            signals: Signals::new(Arc::clone(&interrupts), sizes.len()),
            interrupts,
            on_panic: wiring.on_panic,
            device,
            threads: Threads::default(),
            phase: Phase::Idle,
            quiesced: false,
            endpoint,
            sizes,
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::INDIRECT | feature::EVENT_IDX | feature::VERSION_1
    }

    /// The driver is ready: rings go to the device's threads.
    fn start(&mut self) {
        if self.phase != Phase::Idle || self.quiesced || self.signals.needs_reset() {
            return;
        }
        let event_idx = self.registers.has(feature::EVENT_IDX);
        let queues: Result<Vec<_>, _> = (0..)
            .zip(&self.registers.queues)
            .filter(|(_, queue)| queue.enabled)
            .map(|(index, queue)| Queue::new(index, &queue.ring, event_idx, &self.memory, &self.signals))
            .collect();
        let queues = match queues {
            Ok(queues) => queues,
            Err(why) => {
                tracing::info!("{}: {why}; it waits for a reset", self.name);
                self.signals.need_reset();
                return;
            }
        };
        let signals = Arc::clone(&self.signals);
        let jobs = self.device.start(Start { features: self.registers.features, queues, signals });
        self.phase = Phase::Running;
        match Threads::start(self.staff, self.device.name(), jobs, &self.signals, &self.on_panic) {
            Ok(threads) => self.threads = threads,
            Err(error) => {
                tracing::warn!("{} can't work: the host refuses a thread: {error}", self.name);
                self.signals.need_reset();
            }
        }
    }

    /// Ends the threads and waits for them. How far the rings are is kept.
    fn stop(&mut self) {
        if self.phase == Phase::Idle {
            return;
        }
        for queue in self.threads.stop() {
            if let Some(registers) = self.registers.queues.get_mut(usize::from(queue.index())) {
                registers.ring = queue.save();
            }
        }
        self.device.stop();
        self.phase = Phase::Idle;
    }

    /// The driver's reset.
    fn begin_reset(&mut self) {
        if self.phase == Phase::Running {
            self.threads.ask_to_stop();
            self.phase = Phase::Stopping;
        }
        self.try_finish_reset();
    }

    fn try_finish_reset(&mut self) {
        if self.phase == Phase::Stopping && !self.threads.have_ended() {
            return;
        }
        self.stop();
        self.registers = Registers::new(&self.sizes);
        self.signals.reset();
    }

    fn read_common(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusFault> {
        let value = match (offset, data.len()) {
            (common::STATUS, 1) => {
                if self.phase == Phase::Stopping {
                    self.try_finish_reset();
                }
                let needs_reset = if self.signals.needs_reset() { spec::status::NEEDS_RESET } else { 0 };
                u64::from(self.registers.status | needs_reset)
            }
            (common::GENERATION, 1) => self.signals.generation().into(),
            (common::CONFIG_VECTOR, 2) => self.signals.config_vector().into(),
            (common::QUEUE_VECTOR, 2) => self.signals.queue_vector(self.registers.queue_select).into(),
            (offset, len) => {
                let offered = self.offered();
                self.registers.read(offset, len, offered).ok_or(BusFault)?
            }
        };
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        Ok(())
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) -> Result<(), BusFault> {
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len()).ok_or(BusFault)?.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        if self.phase == Phase::Stopping {
            // Nothing may be set up until the status has been seen to be zero.
            return Ok(());
        }
        match (offset, data.len()) {
            (common::STATUS, 1) if value == 0 => self.begin_reset(),
            (common::STATUS, 1) => {
                let was_running = self.registers.is_running();
                let offered = self.offered();
                self.registers.set_status(value as u8, offered);
                if self.registers.is_running() && !was_running {
                    self.start();
                }
            }
            (common::CONFIG_VECTOR, 2) => self.signals.set_config_vector(value as u16),
            (common::QUEUE_VECTOR, 2) => {
                self.signals.set_queue_vector(self.registers.queue_select, value as u16);
            }
            (offset, len) => self.registers.write(offset, len, value, &self.sizes).ok_or(BusFault)?,
        }
        Ok(())
    }

    /// Reads behind the base address. Aligned or not is the register's business.
    fn read_bar(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusFault> {
        let (part, into) = split(offset);
        match part {
            spec::COMMON => self.read_common(into, data)?,
            spec::ISR => {
                data.fill(0);
                if into == 0 {
                    data[0] = self.signals.take_isr();
                }
            }
            spec::DEVICE => {
                data.fill(0);
                self.device.read_config(into, data);
            }
            spec::NOTIFY => data.fill(0),
            spec::TABLE => self.interrupts.read_table(into, data),
            _ => self.interrupts.read_pending(into, data),
        }
        Ok(())
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) -> Result<(), BusFault> {
        let (part, into) = split(offset);
        match part {
            spec::COMMON => self.write_common(into, data)?,
            spec::DEVICE if self.phase != Phase::Stopping => self.device.write_config(into, data),
            spec::NOTIFY if self.phase == Phase::Running => {
                self.threads.ring((into / u64::from(spec::DOORBELL_BYTES)) as u16);
            }
            spec::TABLE => self.interrupts.write_table(into, data),
            _ => {}
        }
        Ok(())
    }

    /// What the window in configuration space points to: offset and length of an access (4.1.4.9).
    fn window_target(&mut self) -> Option<(u64, usize)> {
        let mut fields = [0; 12];
        self.endpoint.read(u16::from(self.window) + 4, &mut fields);
        let word =
            |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let (offset, len) = (word(4), word(8));
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset < BAR_BYTES;
        (fields[0] == spec::BAR && fits).then_some((offset.into(), len as usize))
    }

    /// Whether a configuration access is one to the window's data.
    fn is_window_data(&self, offset: u16, len: usize) -> bool {
        let data = u16::from(self.window) + 16;
        offset < data + 4 && usize::from(offset) + len > usize::from(data)
    }
}

/// A capability's body after ID and pointer: where a part of the base address is (4.1.4).
fn part(kind: u8, at: u32, len: u32) -> Vec<u8> {
    let mut body = vec![16, kind, spec::BAR, 0, 0, 0];
    body.extend(at.to_le_bytes());
    body.extend(len.to_le_bytes());
    body
}

/// The part of the base address that an offset is in, and the offset in there.
fn split(offset: u64) -> (u32, u64) {
    let parts = [spec::PENDING, spec::TABLE, spec::NOTIFY, spec::DEVICE, spec::ISR];
    let part = parts.into_iter().find(|part| offset >= u64::from(*part)).unwrap_or(spec::COMMON);
    (part, offset - u64::from(part))
}

impl BusDevice for Transport {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        self.read_bar(at.offset, data)
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        self.write_bar(at.offset, data)
    }
}

impl PciFunction for Transport {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if self.is_window_data(offset, data.len())
            && let Some((at, len)) = self.window_target()
        {
            let mut value = [0; 4];
            if self.read_bar(at, &mut value[..len]).is_err() {
                value.fill(0xff);
            }
            self.endpoint.write(u16::from(self.window) + 16, &value);
        }
        self.endpoint.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.endpoint.write(offset, data);
        if self.is_window_data(offset, data.len())
            && let Some((at, len)) = self.window_target()
        {
            let mut value = [0; 4];
            self.endpoint.read(u16::from(self.window) + 16, &mut value);
            let _ = self.write_bar(at, &value[..len]);
        }
    }
}
