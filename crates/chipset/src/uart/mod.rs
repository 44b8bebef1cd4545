//! A 16550A serial port.
//!
//! Source: National PC16550D data sheet. vm-superio's `Serial` doesn't fit: it ignores the FIFO control register (no switching off,
//! clearing, trigger levels or timeout identification), has a 64-byte FIFO and neither overrun nor modem status interrupts, and its state
//! can't be restored in full; so this is our own.
//!
//! Transmission takes no time: what is written to the holding register is out at once, through a [`ByteSink`] on the vCPU's thread.
//! The "holding register empty" interrupt behaves as if it had just become empty. Only when the sink says that it has no room is
//! the transmitter busy, until [`Uart::output_room`]; what is sent meanwhile goes to the sink all the same.
//!
//! Input is given by [`Uart::receive`], which takes what the FIFO has room for and a burst more that is still *on the cable*. When
//! the guest has emptied the FIFO and has seen that it is empty, the next bytes come from there at once, on the guest's own
//! thread: waking the feeder for sixteen bytes would take longer than reading them. When it took less than it was given and the guest
//! has read all, [`InputRoom::room`] is called (with the chip's lock held: it takes a note). The pause after a burst is what lets a
//! driver with flow control take its buffers away before they are full. Input below the trigger level is reported as a character
//! timeout at once, since the sender has nothing more to say at that moment.
//!
//! The sender waits for a receiver: nothing arrives before the guest either enables the "received" interrupt or polls the line
//! status for input, so what was sent while a guest boots reaches who opens the port. A driver that opens it clears the FIFO and
//! reads the holding register first, to be rid of noise; there is none here. For the same reason what comes from the cable goes
//! back there when FIFOs are switched on or off, or cleared by a guest that doesn't receive. A guest that does, and clears, means it.
//!
//! The sender minds RTS once the guest has shown that it uses it, by lowering RTS while DTR stays: that is a driver with flow control
//! whose buffers are full. Drivers that never raise RTS, or hang up, get their input all the same.
//!
//! Left out: baud rate and framing (stored, no effect), breaks and line errors but overrun, gating of the interrupt by OUT2 (which
//! small kernels forget), the THR's FIFO (always empty).

mod spec;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{At, BusDevice, BusFault, Device, Line, RestoreError, Saved, WindowId};
use spec::{
    CLEAR_RECEIVER, DLAB, Enable, FIFO, FIFO_ENABLE, FIFOS_ON, LineStatus, ModemControl, ModemStatus,
};

/// The eight registers.
pub const REGISTERS: WindowId = WindowId(0);
/// The first serial port of a PC, whose interrupt is IRQ 4.
pub const COM1: [(RangeInclusive<u64>, WindowId); 1] = [(0x3f8..=0x3ff, REGISTERS)];
/// The second one, IRQ 3.
pub const COM2: [(RangeInclusive<u64>, WindowId); 1] = [(0x2f8..=0x2ff, REGISTERS)];

/// Where sent bytes go. Called with the chip's lock held, on the thread of the vCPU that sends, so it should not block for long.
pub trait ByteSink: Send {
    /// Takes all of `bytes`; what it can't deliver is its own affair.
    fn write(&mut self, bytes: &[u8]);
    /// Whether the next bytes are welcome. After `false`, somebody calls [`Uart::output_room`] when they are.
    fn has_room(&mut self) -> bool {
        true
    }
}

/// Whoever feeds [`Uart::receive`].
pub trait InputRoom: Send + Sync {
    /// There is room again after a `receive` that took less than it was given. Called with the chip's lock held.
    fn room(&self);
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    enable: Enable,
    line_control: u8,
    modem_control: ModemControl,
    modem_status: ModemStatus,
    scratch: u8,
    divisor: [u8; 2],
    fifos: bool,
    /// Bytes at which a "received" interrupt comes: 1, 4, 8 or 14.
    trigger: u8,
    received: VecDeque<u8>,
    /// Sent, but not yet received: at most [`BURST`] and what went back.
    cable: VecDeque<u8>,
    overrun: bool,
    /// Some of `received` came over the loop.
    looped_back: bool,
    /// The guest asked the sender to wait.
    held_off: bool,
    /// Times that the guest has looked for input without the interrupt: up to [`POLLS`], where it counts as a receiver.
    polls: u8,
    /// The last access was a read of the line status.
    saw_status: bool,
    /// The "transmitter empty" interrupt waits to be seen.
    empty_pending: bool,
}

/// Bytes that may be on the cable. Reading them takes a driver in a guest about a millisecond, and drivers have buffers for
/// several times as many.
const BURST: usize = 1024;

/// Reads of the line status that directly follow another, before that is taken for a search for input. Who only sends reads it once
/// before each byte.
const POLLS: u8 = 16;

/// What the other end of the cable says: it is there and ready.
const CONNECTED: ModemStatus = ModemStatus::CTS.union(ModemStatus::DSR).union(ModemStatus::DCD);

impl State {
    fn new() -> Self {
        Self {
            enable: Enable::empty(),
            line_control: 0,
            modem_control: ModemControl::empty(),
            modem_status: CONNECTED,
            scratch: 0,
            divisor: [12, 0],
            fifos: false,
            trigger: 1,
            received: VecDeque::new(),
            cable: VecDeque::new(),
            overrun: false,
            looped_back: false,
            held_off: false,
            polls: 0,
            saw_status: false,
            empty_pending: false,
        }
    }

    fn capacity(&self) -> usize {
        if self.fifos { FIFO } else { 1 }
    }

    /// The most urgent interrupt (data sheet, table 5).
    fn interrupt(&self) -> u8 {
        let waiting = self.received.len();
        if self.enable.contains(Enable::LINE_STATUS) && self.overrun {
            spec::LINE_STATUS
        } else if self.enable.contains(Enable::RECEIVED) && waiting >= usize::from(self.trigger) {
            spec::RECEIVED
        } else if self.enable.contains(Enable::RECEIVED) && waiting > 0 {
            spec::TIMEOUT
        } else if self.enable.contains(Enable::TRANSMITTER_EMPTY) && self.empty_pending {
            spec::TRANSMITTER_EMPTY
        } else if self.enable.contains(Enable::MODEM_STATUS)
            && self.modem_status.intersects(ModemStatus::CHANGES)
        {
            spec::MODEM_STATUS
        } else {
            spec::NONE
        }
    }

    fn set_modem_levels(&mut self, levels: ModemStatus) {
        let old = self.modem_status;
        let moved = old.symmetric_difference(levels) & ModemStatus::LEVELS;
        let mut changes = ModemStatus::from_bits_retain((moved.bits() >> 4) & !ModemStatus::RI_ENDED.bits());
        // The ring indicator reports only its end.
        changes.set(ModemStatus::RI_ENDED, moved.contains(ModemStatus::RI) && old.contains(ModemStatus::RI));
        self.modem_status = levels | old & ModemStatus::CHANGES | changes;
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_control;
        self.modem_control = ModemControl::from_bits_truncate(value);
        // In loopback the pins say nothing.
        if !self.modem_control.contains(ModemControl::LOOPBACK) {
            let is_off = self.modem_control & (ModemControl::DTR | ModemControl::RTS) == ModemControl::DTR;
            let was_on = before & (ModemControl::DTR | ModemControl::RTS | ModemControl::LOOPBACK)
                == ModemControl::DTR | ModemControl::RTS;
            self.held_off = is_off && (self.held_off || was_on);
        }
        let levels = if self.modem_control.contains(ModemControl::LOOPBACK) {
            [
                (ModemControl::RTS, ModemStatus::CTS),
                (ModemControl::DTR, ModemStatus::DSR),
                (ModemControl::OUT1, ModemStatus::RI),
                (ModemControl::OUT2, ModemStatus::DCD),
            ]
            .into_iter()
            .filter(|(output, _)| self.modem_control.contains(*output))
            .fold(ModemStatus::empty(), |levels, (_, input)| levels | input)
        } else {
            CONNECTED
        };
        self.set_modem_levels(levels);
    }

    fn set_fifo_control(&mut self, value: u8) {
        let enable = value & FIFO_ENABLE != 0;
        // Switching them on or off clears them; without the enable bit the others aren't looked at.
        let switched = enable != self.fifos;
        if switched || enable && value & CLEAR_RECEIVER != 0 {
            if self.looped_back || self.enable.contains(Enable::RECEIVED) && !switched {
                self.received.clear();
            }
            self.received.append(&mut self.cable);
            std::mem::swap(&mut self.received, &mut self.cable);
        }
        self.fifos = enable;
        self.trigger = if enable { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    fn line_status(&mut self, busy: bool) -> u8 {
        let mut status = LineStatus::empty();
        status.set(LineStatus::HOLDING_EMPTY | LineStatus::TRANSMITTER_EMPTY, !busy);
        status.set(LineStatus::DATA_READY, !self.received.is_empty());
        status.set(LineStatus::OVERRUN, std::mem::take(&mut self.overrun));
        status.bits()
    }

    /// Whether input may come over the cable.
    fn listens(&self) -> bool {
        let receives = self.enable.contains(Enable::RECEIVED) || self.polls == POLLS;
        receives && !self.modem_control.contains(ModemControl::LOOPBACK) && !self.held_off
    }

    /// Notes an access, to find out whether the guest polls for input. A busy transmitter may be what it looks for.
    fn note_access(&mut self, is_status: bool, busy: bool) {
        if is_status && self.saw_status && !busy {
            self.polls = (self.polls + 1).min(POLLS);
        }
        self.saw_status = is_status;
    }

    /// What is on the cable arrives, as far as there is room.
    fn take_from_cable(&mut self) {
        let room = if self.listens() { self.capacity().saturating_sub(self.received.len()) } else { 0 };
        let count = room.min(self.cable.len());
        self.received.extend(self.cable.drain(..count));
    }

    /// A byte arrives over the loop.
    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
            self.looped_back = true;
        } else {
            self.overrun = true;
        }
    }
}

/// A serial port.
pub struct Uart {
    // Wiring.
    irq: Line,
    output: Box<dyn ByteSink>,
    room: Option<Arc<dyn InputRoom>>,
    /// The feeder was turned away and waits for room.
    turned_away: bool,
    /// The guest has seen that nothing is received since it was so.
    seen_empty: bool,
    /// The sink has no room: the holding register is not empty. Not part of the state: another machine's sink has room.
    busy: bool,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl Uart {
    /// A port after power-up, connected to something that is ready. `room` hears when input can go on.
    #[must_use]
    pub fn new(irq: Line, output: Box<dyn ByteSink>, room: Option<Arc<dyn InputRoom>>) -> Self {
        Self {
            irq,
            output,
            room,
            turned_away: false,
            seen_empty: true,
            busy: false,
            quiesced: false,
            state: State::new(),
        }
    }

    /// Takes input; returns how many bytes there was room for. In loopback there is none: the port doesn't hear the cable. Nor
    /// while the guest holds the sender off, or isn't there to receive.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = if self.state.listens() {
            // With nothing on the cable what has room goes into the FIFO at once.
            let fifo = self.state.capacity().saturating_sub(self.state.received.len());
            (if self.state.cable.is_empty() { fifo } else { 0 })
                + BURST.saturating_sub(self.state.cable.len())
        } else {
            0
        };
        let taken = room.min(bytes.len());
        self.state.cable.extend(&bytes[..taken]);
        self.turned_away |= taken < bytes.len();
        self.state.take_from_cable();
        self.sync();
        taken
    }

    /// The sink has room again: what was sent last is out only now.
    pub fn output_room(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.state.empty_pending = true;
            self.sync();
        }
    }

    /// Derives the line from the state, takes what is on the cable, and calls the feeder back.
    fn sync(&mut self) {
        self.drive();
        if !self.state.listens() || !self.state.received.is_empty() {
            return;
        }
        // Without FIFOs a driver need not look whether there is more.
        if !self.state.cable.is_empty() && (self.seen_empty || !self.state.fifos) {
            self.state.take_from_cable();
            self.drive();
        } else if self.turned_away && self.state.cable.is_empty() {
            self.turned_away = false;
            if let Some(room) = &self.room {
                room.room();
            }
        }
    }

    fn drive(&self) {
        if !self.quiesced {
            self.irq.set(self.state.interrupt() != spec::NONE);
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        // Line status and interrupt identification say so.
        self.seen_empty = self.state.received.is_empty() && (self.seen_empty || matches!(offset, 2 | 5));
        let state = &mut self.state;
        state.note_access(offset == 5, self.busy);
        let divisor = state.line_control & DLAB != 0;
        match offset {
            0 | 1 if divisor => state.divisor[offset as usize],
            0 => {
                let byte = state.received.pop_front();
                state.looped_back &= !state.received.is_empty();
                byte.unwrap_or(0)
            }
            1 => state.enable.bits(),
            2 => {
                let interrupt = state.interrupt();
                if interrupt == spec::TRANSMITTER_EMPTY {
                    state.empty_pending = false;
                }
                interrupt | if state.fifos { FIFOS_ON } else { 0 }
            }
            3 => state.line_control,
            4 => state.modem_control.bits(),
            5 => state.line_status(self.busy),
            6 => {
                let status = state.modem_status;
                state.modem_status.remove(ModemStatus::CHANGES);
                status.bits()
            }
            7 => state.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.state.note_access(false, self.busy);
        let divisor = self.state.line_control & DLAB != 0;
        match offset {
            0 | 1 if divisor => self.state.divisor[offset as usize] = value,
            0 => {
                // It is full and empty again in no time: an interrupt that was pending ends and another begins, which a
                // controller that looks for edges must see.
                self.state.empty_pending = false;
                self.sync();
                if self.state.modem_control.contains(ModemControl::LOOPBACK) {
                    self.state.loop_back(value);
                } else {
                    self.output.write(&[value]);
                    self.busy = !self.output.has_room();
                }
                self.state.empty_pending = !self.busy;
            }
            1 => {
                let before = self.state.enable;
                self.state.enable = Enable::from_bits_truncate(value);
                self.state.polls = 0;
                // Enabling it while the register is empty interrupts at once; drivers count on that to start sending.
                if self.state.enable.contains(Enable::TRANSMITTER_EMPTY)
                    && !before.contains(Enable::TRANSMITTER_EMPTY)
                {
                    self.state.empty_pending = !self.busy;
                }
            }
            2 => self.state.set_fifo_control(value),
            3 => self.state.line_control = value,
            4 => self.state.set_modem_control(value),
            7 => self.state.scratch = value,
            // Line and modem status are read-only.
            _ => {}
        }
        // Who clears the FIFO or listens again waits for an interrupt.
        self.seen_empty |= self.state.received.is_empty();
    }
}

impl BusDevice for Uart {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        bytewise::read(at, data, |offset| self.read_register(offset));
        self.sync();
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        bytewise::write(at, data, |offset, value| self.write_register(offset, value));
        self.sync();
        Ok(())
    }
}

impl Device for Uart {
    fn name(&self) -> &str {
        "uart"
    }
    fn reset(&mut self) {
        self.state = State::new();
        self.irq.set(false);
        self.sync();
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
    }
    fn resume(&mut self) {
        self.quiesced = false;
        self.sync();
    }
    fn save(&self) -> Saved {
        let mut state = self.state.clone();
        state.empty_pending |= self.busy;
        encode(&state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("uart", saved)?;
        if state.received.len() > state.capacity()
            || state.cable.len() > BURST + FIFO
            || state.polls > POLLS
            || !matches!(state.trigger, 1 | 4 | 8 | 14)
        {
            return Err(RestoreError::Impossible { device: "uart", what: "no such FIFO" });
        }
        self.state = state;
        self.busy = !self.output.has_room();
        self.state.empty_pending &= !self.busy;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
