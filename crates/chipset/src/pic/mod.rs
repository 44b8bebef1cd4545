//! The two cascaded 8259A interrupt controllers of a PC, with the edge/level registers (ELCR) of later chipsets.
//!
//! Source: Intel 8259A data sheet (order 231468); ELCR as in the PIIX and ICH data sheets.
//!
//! [`Pic`] is a handle: the bus, the wires and the vCPUs each hold a clone. One mutex guards both chips; INTR is told with it held,
//! so the order is device, PIC, whatever INTR ends in. Whoever calls [`Pic::acknowledge`] must not hold the lock of what INTR ends in.
//!
//! Left out: MCS-80 mode, buffered mode, other cascade wirings (the second chip hangs on input 2, whatever ICW3 says). An edge
//! stays latched if its line falls before it is acknowledged, as in every virtual PC, because wires may be pulsed.

mod chip;

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::apic::ExtIntSource;
use crate::bytewise;
use crate::device::{decode, encode};
use crate::{At, BusDevice, BusFault, Device, Edge, Line, LineSink, RestoreError, Saved, WindowId};
use chip::{CASCADE, Chip};

/// The first chip's ports.
pub const MASTER: WindowId = WindowId(0);
/// The second chip's ports.
pub const SLAVE: WindowId = WindowId(1);
/// The edge/level control registers.
pub const ELCR: WindowId = WindowId(2);
/// Where a PC has them.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 3] =
    [(0x20..=0x21, MASTER), (0xa0..=0xa1, SLAVE), (0x4d0..=0x4d1, ELCR)];

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct State {
    master: Chip,
    slave: Chip,
}

impl State {
    fn new() -> Self {
        Self { master: Chip::new(true), slave: Chip::new(false) }
    }

    /// The second chip's output is the first one's input 2.
    fn cascade(&mut self) {
        let pending = self.slave.request().is_some();
        self.master.set_pin(CASCADE, pending);
    }
}

struct Inner {
    // Wiring.
    intr: Line,
    // Guest-visible state.
    state: Mutex<State>,
}

/// Both chips. Clones are handles to the same two.
#[derive(Clone)]
pub struct Pic(Arc<Inner>);

impl Pic {
    /// Uninitialized chips with everything masked; `intr` is their output.
    #[must_use]
    pub fn new(intr: Line) -> Self {
        Self(Arc::new(Inner { intr, state: Mutex::new(State::new()) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, state: &mut State) {
        state.cascade();
        self.0.intr.set(state.master.request().is_some());
    }

    /// Whether INTR is high.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.state().master.request().is_some()
    }

    /// The processor's INTA cycles: the vector of the most urgent request, which is now in service. With no request (it was
    /// withdrawn or masked meanwhile) it is the spurious one, input 7's, and nothing is in service.
    #[must_use]
    pub fn acknowledge(&self) -> u8 {
        let mut state = self.state();
        state.cascade();
        let vector = match state.master.request() {
            None => state.master.vector(7),
            Some(CASCADE) => {
                state.master.take(CASCADE);
                match state.slave.request() {
                    None => state.slave.vector(7),
                    Some(input) => {
                        state.slave.take(input);
                        state.slave.vector(input)
                    }
                }
            }
            Some(input) => {
                state.master.take(input);
                state.master.vector(input)
            }
        };
        // INTR falls with the acknowledge even if more is waiting, so that whoever looks for edges sees the next one.
        self.0.intr.set(false);
        self.sync(&mut state);
        vector
    }
}

impl LineSink for Pic {
    /// Inputs 0..=15, numbered as ISA interrupts; 2 is the cascade and can't be driven.
    fn set_pin(&self, pin: u8, high: bool) {
        let mut state = self.state();
        match pin {
            CASCADE => return,
            0..=7 => state.master.set_pin(pin, high),
            8..=15 => state.slave.set_pin(pin - 8, high),
            _ => return,
        }
        self.sync(&mut state);
    }

    fn place_pin(&self, pin: u8, high: bool) {
        let mut state = self.state();
        match pin {
            CASCADE => return,
            0..=7 => state.master.place_pin(pin, high),
            8..=15 => state.slave.place_pin(pin - 8, high),
            _ => return,
        }
        self.sync(&mut state);
    }

    fn last_edge(&self, pin: u8) -> Edge {
        let state = self.state();
        let (waits, first) = match pin {
            CASCADE => return Edge::Gone,
            0..=7 => (state.master.has_edge(pin), state.master.request() == Some(pin)),
            8..=15 => (
                state.slave.has_edge(pin - 8),
                state.master.request() == Some(CASCADE) && state.slave.request() == Some(pin - 8),
            ),
            _ => return Edge::Gone,
        };
        match (waits, first) {
            (false, _) => Edge::Gone,
            // Whoever INTR asks; nobody if it leads nowhere.
            (true, true) => self.0.intr.last_edge(),
            (true, false) => Edge::Held,
        }
    }
}

impl ExtIntSource for Pic {
    fn is_pending(&self) -> bool {
        self.pending()
    }
    fn acknowledge(&self) -> u8 {
        Self::acknowledge(self)
    }
}

impl BusDevice for Pic {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        let mut state = self.state();
        bytewise::read(at, data, |offset| match (at.window, offset) {
            (MASTER, _) => {
                state.cascade();
                state.master.read(offset)
            }
            (SLAVE, _) => state.slave.read(offset),
            (ELCR, 0) => state.master.elcr(),
            (ELCR, 1) => state.slave.elcr(),
            _ => 0xff,
        });
        self.sync(&mut state);
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        let mut state = self.state();
        bytewise::write(at, data, |offset, value| match (at.window, offset) {
            (MASTER, _) => state.master.write(offset, value),
            (SLAVE, _) => state.slave.write(offset, value),
            (ELCR, 0) => state.master.set_elcr(value),
            (ELCR, 1) => state.slave.set_elcr(value),
            _ => {}
        });
        self.sync(&mut state);
        Ok(())
    }
}

impl Device for Pic {
    fn name(&self) -> &str {
        "pic"
    }
    fn reset(&mut self) {
        let mut state = self.state();
        // The devices' lines are where they are; only the chips forget.
        state.master.reset();
        state.slave.reset();
        self.sync(&mut state);
    }
    fn quiesce(&mut self) {}
    fn resume(&mut self) {
        let mut state = self.state();
        self.sync(&mut state);
    }
    fn save(&self) -> Saved {
        encode(&*self.state())
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("pic", saved)?;
        if !state.master.is_possible() || !state.slave.is_possible() {
            return Err(RestoreError::Impossible { device: "pic", what: "no such priority or vector" });
        }
        *self.state() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
