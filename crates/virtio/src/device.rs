//! What a kind of virtio device has to be: [`Device`], and the [`Work`] that it gives to threads.
//!
//! The transport owns rings, registers, interrupts and threads. A device says what it offers, and when the driver is ready
//! turns its rings into jobs, each of which gets a thread of its own (`ombra-NAME-N`). A thread calls [`Work::run`] with its
//! rings when a doorbell has rung or something else that the work waits for has happened, and never otherwise.
//!
//! A device may be started and stopped any number of times: by the driver's resets, and while the machine is saved. What its
//! works share with it, and with each other, is in `Arc`s of its own.

use crate::interrupt::Signals;
use crate::queue::{Broken, Queue};
use chipset::{RestoreError, Saved};
use std::sync::Arc;
pub use workers::{Next, Wakes};

/// Device types (VIRTIO 1.2, 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// Network card.
    Net = 1,
    /// Disk.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket.
    Socket = 19,
    /// File system.
    FileSystem = 26,
}

impl Kind {
    /// PCI's class, subclass and programming interface. Drivers go by the device ID; this is for people.
    pub(crate) const fn pci_class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Block | Self::FileSystem => 0x01_80_00,
            Self::Console => 0x07_80_00,
            Self::Entropy | Self::Balloon | Self::Socket => 0xff_00_00,
        }
    }
}

/// One device, apart from how the guest reaches it. Everything but its works runs on vCPU threads, with the transport locked, and must
/// not wait for anything.
pub trait Device: Send {
    /// Its name in messages and of its threads: short, and one word.
    fn name(&self) -> &'static str;
    /// Its type.
    fn kind(&self) -> Kind;
    /// The feature bits of its type that it offers (0 to 23, and 50 to 63). Those of rings and transport aren't its business.
    fn features(&self) -> u64;
    /// The most entries of each of its rings, powers of two up to 32768.
    fn queues(&self) -> Vec<u16>;
    /// Fills `data` from its configuration space. What lies beyond the space is zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes to its configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready. Shares out all of the rings that it has set up; one that isn't given to a job is never served.
    fn start(&mut self, start: Start) -> Vec<Job>;
    /// Its works have been dropped. What the driver has set up is forgotten, unless [`Device::start`] goes on with it later.
    fn stop(&mut self);
    /// What of its own state the guest can see, besides rings and registers.
    fn save(&self) -> Saved;
    /// Takes over such a state.
    ///
    /// # Errors
    /// [`RestoreError`]; the device is unchanged then.
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;
}

/// What a device starts with.
#[derive(Debug)]
pub struct Start {
    /// The feature bits that both sides have agreed on.
    pub features: u64,
    /// The rings that the driver has set up, in order of their [index](Queue::index). There may be fewer than the device has.
    pub queues: Vec<Queue>,
    /// Tells the driver of changes.
    pub signals: Arc<Signals>,
}

/// The work of one thread.
pub struct Job {
    /// The rings whose doorbells wake it, as [`Work::run`] gets them.
    pub queues: Vec<Queue>,
    /// What it does.
    pub work: Box<dyn Work>,
}

/// Serves rings, on a thread of its own.
pub trait Work: Send {
    /// Does what there is to do: called at the start, and whenever it has been woken, perhaps for nothing. Should return within a
    /// moment, since resets wait for it.
    ///
    /// # Errors
    /// [`Broken`]: the driver has broken a ring. The device asks for a reset, and this isn't called again.
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken>;
    /// What wakes it besides doorbells.
    fn wakes(&self) -> Wakes<'_>;
}
