//! Buses, wires and the chips of a PC. No threads, no files.
//!
//! A chip is a value with registers. It is reached through a [`Bus`], speaks through [`Line`]s and MSIs, reads the time
//! from a [`Clock`] and asks to be woken through an [`Alarm`]; the machine supplies those and does all wiring.
//!
//! Threads and lock order: each chip sits behind its own mutex, taken by whoever reaches it (a vCPU through the bus, the
//! machine's event loop through an alarm). A chip may raise a line while it is locked, so: **device lock before
//! interrupt-controller lock**, and a controller never calls back into a device with its lock held. Kickers
//! and alarms are leaves.

pub mod apic;
pub mod bus;
mod bytewise;
pub mod clock;
pub mod device;
pub mod hpet;
pub mod i8042;
pub mod line;
pub mod mux;
mod owed;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod power;
pub mod rtc;
pub mod testdev;
#[cfg(test)]
mod testkit;
pub mod uart;

pub use bus::{At, Bus, BusDevice, BusFault, WindowId};
pub use clock::{Alarm, AlarmSink, Clock, Nanos};
pub use device::{Device, RestoreError, Saved};
pub use line::{Edge, Line, LineSink, Msi, MsiSink};
pub use owed::Creditor;
pub use power::{PowerRequest, PowerSink};
