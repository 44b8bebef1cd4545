//! The controller as a PCI function: registers, doorbells, and its life.
//!
//! Threads and lock order: behind one mutex, taken by vCPUs and by the machine; then the locks of [`crate::shared`]. The threads never
//! take the mutex. A driver that disables the controller doesn't wait for them either: until they have ended, CSTS.RDY stays
//! (3.1.5: the driver waits for it), and whoever reads it notices. The machine does wait.

use crate::queue::{CompletionQueue, SubmissionQueue, Voice};
use crate::shared::{Event, Names, SavedQueues, Shared, shutdown};
use crate::spec::{self, cc, csts, register};
use crate::worker::Server;
use crate::{CLASS, DEVICE, MOST_QUEUES, SUBSYSTEM, VENDOR};
use chipset::device::{decode, encode};
use chipset::pci::{Decode, Endpoint, EndpointState, Identity, Interrupts, PciFunction};
use chipset::{At, BusDevice, BusFault, Device, Line, MsiSink, RestoreError, Saved, WindowId};
use disk::{Layer, Requests};
use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use workers::{Crew, OnPanic, Staff};

const WINDOW: WindowId = WindowId(0);

/// What a controller is connected to.
pub struct Wiring {
    /// Its name in saved machines.
    pub name: String,
    /// Its number in the machine, by which its disk is told from others.
    pub number: u8,
    /// Where queues and data are.
    pub memory: GuestMemory,
    /// Tells the memory bus where the function is.
    pub decode: Decode,
    /// INTA#.
    pub line: Line,
    /// Takes MSI-X messages.
    pub messages: Arc<dyn MsiSink>,
    /// Where the base address is at power-up: a multiple of [`BAR_BYTES`](crate::BAR_BYTES).
    pub address: u32,
    /// Who does the work.
    pub staff: Staff,
    /// Is told when one of the threads panics.
    pub on_panic: OnPanic,
}

/// How far the controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No threads.
    Idle,
    /// The threads serve the queues.
    Running,
    /// The driver has disabled the controller, whose threads have not all ended.
    Stopping,
}

/// What the driver has written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Registers {
    cc: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
}

/// An NVM Express controller on PCI.
pub struct Nvme {
    // Fixed configuration.
    name: String,
    staff: Staff,
    // Wiring.
    interrupts: Arc<Interrupts>,
    on_panic: OnPanic,
    // Runtime.
    crew: Crew<Server>,
    phase: Phase,
    quiesced: bool,
    /// CC, for the admin queue's thread.
    cc: Arc<AtomicU32>,
    // Guest-visible state, with what is shared.
    endpoint: Endpoint,
    registers: Registers,
    shared: Arc<Shared>,
}

impl Nvme {
    /// A controller whose namespace is `layer`, with `queues` pairs of I/O queues (1 to [`MOST_QUEUES`]), after power-up. `name` is for
    /// messages; of `serial`, which the guest can read, 20 characters count.
    #[must_use]
    pub fn new(layer: Arc<dyn Layer>, name: String, serial: &str, queues: u16, wiring: Wiring) -> Self {
        let queues = queues.clamp(1, MOST_QUEUES);
        let interrupts = Interrupts::new(queues + 1, wiring.line, wiring.messages);
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            class: CLASS,
            revision: 1,
            subsystem: (VENDOR, SUBSYSTEM),
        };
        let mut endpoint = Endpoint::new(identity, wiring.decode, Arc::clone(&interrupts));
        endpoint.bar(spec::BAR, spec::BAR_BYTES, WINDOW, wiring.address);
        endpoint.messages(spec::BAR, spec::TABLE, spec::PENDING);
        let serial = if serial.is_empty() { format!("ombra-{}", wiring.number) } else { serial.to_owned() };
        let names = Names { serial, number: wiring.number };
        let voice = Voice::new(Arc::clone(&interrupts));
        let disk = Requests::new(layer, name);
        Self {
            name: wiring.name,
            staff: wiring.staff,
            interrupts,
            on_panic: wiring.on_panic,
            crew: Crew::default(),
            phase: Phase::Idle,
            quiesced: false,
            cc: Arc::default(),
            endpoint,
            registers: Registers::default(),
            shared: Arc::new(Shared::new(disk, wiring.memory, voice, names, queues)),
        }
    }

    fn is_enabled(&self) -> bool {
        self.registers.cc & cc::ENABLE != 0
    }

    /// The driver has enabled the controller (7.6.1): the admin queues come to be.
    fn enable(&mut self) {
        let Registers { cc, aqa, asq, acq } = self.registers;
        let (submissions, completions) = ((aqa & 0xfff) + 1, (aqa >> 16 & 0xfff) + 1);
        if cc & cc::FIXED != 0 || submissions < 2 || completions < 2 {
            self.shared.fail("the driver wants what isn't offered");
            return;
        }
        self.shared.set_completion(0, Some(CompletionQueue::new(acq, completions, Some(0))));
        let queue = SubmissionQueue { base: asq, size: submissions, head: 0, completions: 0 };
        self.shared.set_submission(0, Some(queue));
        self.start();
    }

    fn start(&mut self) {
        if self.phase != Phase::Idle || self.quiesced || self.shared.has_failed() {
            return;
        }
        self.phase = Phase::Running;
        let server = |number| Server {
            shared: Arc::clone(&self.shared),
            number,
            buffer: Default::default(),
            pace: Default::default(),
            cc: Arc::clone(&self.cc),
        };
        let servers = (0..=self.shared.queues()).map(server).collect();
        match Crew::start(self.staff, "nvme", servers, &self.on_panic) {
            Ok(crew) => self.crew = crew,
            Err(error) => {
                tracing::warn!("{} can't work: the host refuses a thread: {error}", self.name);
                self.shared.fail("there are no threads");
            }
        }
    }

    /// Ends the threads and waits for them.
    fn stop(&mut self) {
        let _ = self.crew.stop();
        self.phase = Phase::Idle;
    }

    /// The driver has disabled the controller (7.3.2).
    fn disable(&mut self) {
        if self.phase == Phase::Running {
            self.crew.ask_to_stop();
            self.phase = Phase::Stopping;
        }
        self.try_finish_reset();
    }

    fn try_finish_reset(&mut self) {
        if self.phase == Phase::Stopping && !self.crew.have_ended() {
            return;
        }
        self.stop();
        self.shared.reset();
        // The driver may have been quicker.
        if self.is_enabled() {
            self.enable();
        }
    }

    fn status(&mut self) -> u32 {
        if self.phase == Phase::Stopping {
            self.try_finish_reset();
        }
        let failed = self.shared.has_failed();
        let ready = self.phase == Phase::Stopping || self.is_enabled() && !failed;
        let shutdown = match self.shared.shutdown.load(Ordering::Acquire) {
            shutdown::NONE => 0,
            shutdown::GOES_ON => csts::SHUTDOWN_GOES_ON,
            _ => csts::SHUTDOWN_DONE,
        };
        let flag = |set: bool, bits: u32| if set { bits } else { 0 };
        flag(ready, csts::READY) | flag(failed, csts::FATAL) | shutdown
    }

    fn write_cc(&mut self, value: u32) {
        let before = self.registers.cc;
        let value = value & cc::WRITABLE;
        self.registers.cc = value;
        self.cc.store(value, Ordering::Release);
        match (before & cc::ENABLE != 0, value & cc::ENABLE != 0) {
            (false, true) if self.phase == Phase::Idle => self.enable(),
            (true, false) => self.disable(),
            _ => {}
        }
        // Asked for (3.1.5, SHN).
        if value & cc::SHUTDOWN != 0 && before & cc::SHUTDOWN == 0 {
            let runs = self.phase == Phase::Running && !self.shared.has_failed();
            let state = if runs { shutdown::GOES_ON } else { shutdown::DONE };
            self.shared.shutdown.store(state, Ordering::Release);
            self.crew.ring(0);
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let Registers { cc, aqa, asq, acq } = self.registers;
        match offset {
            register::CAP => spec::CAPABILITIES as u32,
            register::CAP_HIGH => (spec::CAPABILITIES >> 32) as u32,
            register::VS => spec::VERSION,
            register::INTMS | register::INTMC => self.shared.voice.with_pins(|pins| pins.masked),
            register::CC => cc,
            register::CSTS => self.status(),
            register::AQA => aqa,
            register::ASQ => asq as u32,
            register::ASQ_HIGH => (asq >> 32) as u32,
            register::ACQ => acq as u32,
            register::ACQ_HIGH => (acq >> 32) as u32,
            // Doorbells read as zero may be read (3.1.24), as do reserved registers.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let low = |whole: u64| whole & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |whole: u64| whole & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            register::INTMS => self.shared.voice.with_pins(|pins| pins.masked |= value),
            register::INTMC => self.shared.voice.with_pins(|pins| pins.masked &= !value),
            register::CC => self.write_cc(value),
            register::AQA => self.registers.aqa = value & 0x0fff_0fff,
            register::ASQ => self.registers.asq = low(self.registers.asq),
            register::ASQ_HIGH => self.registers.asq = high(self.registers.asq),
            register::ACQ => self.registers.acq = low(self.registers.acq),
            register::ACQ_HIGH => self.registers.acq = high(self.registers.acq),
            register::DOORBELLS.. => self.ring((offset - register::DOORBELLS) / 4, value),
            _ => {}
        }
    }

    /// The doorbell at place `place`: tails are even, heads odd.
    fn ring(&mut self, place: u64, value: u32) {
        // While the machine is stopped they are kept for later.
        if self.phase == Phase::Stopping || !self.is_enabled() {
            return;
        }
        let queue = u16::try_from(place / 2).unwrap_or(u16::MAX);
        let value = value & 0xffff;
        let wrong = if place.is_multiple_of(2) { self.tail(queue, value) } else { self.head(queue, value) };
        if let Err(event) = wrong {
            self.shared.note_event(event);
            self.crew.ring(0);
        }
    }

    fn tail(&mut self, queue: u16, value: u32) -> Result<(), Event> {
        let bell = self.shared.bells.get(usize::from(queue));
        let (bell, size) = bell
            .map(|bell| (bell, bell.size.load(Ordering::Acquire)))
            .filter(|(_, size)| *size > 0)
            .ok_or(Event::DoorbellRegister)?;
        if value >= size {
            return Err(Event::DoorbellValue);
        }
        bell.tail.store(value, Ordering::Release);
        self.crew.ring(queue.into());
        Ok(())
    }

    fn head(&mut self, number: u16, value: u32) -> Result<(), Event> {
        let voice = &self.shared.voice;
        let moved = self.shared.with_completion(number, |queue| {
            let possible = queue.seen(value);
            if possible {
                voice.heard(number);
                voice.tell(number, queue);
            }
            possible.then(|| std::mem::take(&mut queue.starves))
        });
        let starved = moved.ok_or(Event::DoorbellRegister)?.ok_or(Event::DoorbellValue)?;
        if starved {
            // Whichever submission queue it was that found no room.
            for queue in 0..=self.shared.queues() {
                self.crew.ring(queue.into());
            }
        }
        Ok(())
    }
}

/// What a part of the base address is, and the offset in there.
enum Part {
    Registers,
    Table(u64),
    Pending(u64),
}

fn part(offset: u64) -> Part {
    let (table, pending) = (u64::from(spec::TABLE), u64::from(spec::PENDING));
    if offset >= pending {
        Part::Pending(offset - pending)
    } else if offset >= table {
        Part::Table(offset - table)
    } else {
        Part::Registers
    }
}

/// Registers are dwords, two of which may be accessed at once (3.1).
fn is_whole(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

impl BusDevice for Nvme {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        match part(at.offset) {
            Part::Table(offset) => self.interrupts.read_table(offset, data),
            Part::Pending(offset) => self.interrupts.read_pending(offset, data),
            Part::Registers => {
                // Narrower reads are nobody's, and harmless.
                let first = at.offset & !3;
                let words = [
                    self.read_register(first),
                    if data.len() > 4 { self.read_register(first + 4) } else { 0 },
                ];
                let bytes = words.map(u32::to_le_bytes).concat();
                let skip = (at.offset - first) as usize;
                data.copy_from_slice(bytes.get(skip..skip + data.len()).ok_or(BusFault)?);
            }
        }
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        match part(at.offset) {
            Part::Table(offset) => self.interrupts.write_table(offset, data),
            Part::Pending(_) => {}
            Part::Registers => {
                if !is_whole(at.offset, data.len()) {
                    return Err(BusFault);
                }
                for (word, offset) in data.chunks_exact(4).zip((at.offset..).step_by(4)) {
                    self.write_register(offset, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
                }
            }
        }
        Ok(())
    }
}

impl PciFunction for Nvme {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.endpoint.write(offset, data);
    }
}

/// Guest-visible state.
#[derive(Serialize, Deserialize)]
struct State {
    endpoint: EndpointState,
    registers: Registers,
    queues: SavedQueues,
}

impl Device for Nvme {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&mut self) {
        self.stop();
        self.registers = Registers::default();
        self.cc.store(0, Ordering::Release);
        self.shared.reset();
        self.endpoint.reset();
    }

    fn quiesce(&mut self) {
        let resetting = self.phase == Phase::Stopping;
        self.quiesced = true;
        self.stop();
        if resetting {
            self.try_finish_reset();
        }
    }

    fn resume(&mut self) {
        self.quiesced = false;
        if self.is_enabled() {
            self.start();
        }
    }

    fn save(&self) -> Saved {
        encode(&State {
            endpoint: self.endpoint.save(),
            registers: self.registers,
            queues: self.shared.save(),
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("nvme", saved)?;
        let impossible = |what| RestoreError::Impossible { device: "nvme", what };
        if !self.shared.is_possible(&state.queues) {
            return Err(impossible("queues of another controller"));
        }
        if !self.endpoint.restore(&state.endpoint) {
            return Err(impossible("configuration space of another device"));
        }
        self.stop();
        self.registers = state.registers;
        self.cc.store(self.registers.cc, Ordering::Release);
        self.shared.restore(state.queues);
        Ok(())
    }
}
