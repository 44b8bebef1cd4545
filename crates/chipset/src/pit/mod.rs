//! The 8254 interval timer and the speaker port 0x61 that gates its third channel.
//!
//! Source: Intel 82C54 data sheet (order 231244). Nothing ticks: counts and outputs are computed from the [`Clock`] when somebody
//! looks, and the alarm rings when channel 0's output rises. [`Pit::on_alarm`] is what the alarm calls; calling it too early or too
//! late does no harm. Channel 0 drives a line (IRQ 0), channel 2's output is seen in port 0x61.
//!
//! If the host stalls for many periods the guest gets their ticks one after the other ([`crate::owed`]), up to a second's, and the
//! next ones in phase; if the guest doesn't take them it gets one. Interrupts from the alarm are at least 100 µs apart, so that
//! a hostile divisor can't occupy the machine, and ticks that come faster merge.
//!
//! Left out: sound. In mode 3 the line is low only for a moment at the end of each period, not for half of it.

mod channel;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::owed::{Creditor, Flag, Owed};
use crate::{
    Alarm, At, BusDevice, BusFault, Clock, Device, Edge, Line, Nanos, RestoreError, Saved, WindowId,
};
use channel::Channel;

/// The input clock of all channels in Hz.
pub const HZ: u64 = 1_193_182;
/// Counters and control word.
pub const COUNTERS: WindowId = WindowId(0);
/// The speaker port.
pub const SPEAKER: WindowId = WindowId(1);
/// Where a PC has them.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 2] = [(0x40..=0x43, COUNTERS), (0x61..=0x61, SPEAKER)];

/// Ticks between interrupts, at least (100 µs).
const MIN_INTERVAL: u64 = HZ / 10_000;
/// Ticks in which the memory refresh bit of port 0x61 stays the same (15 µs).
const REFRESH: u64 = 18;

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct State {
    channels: [Channel; 3],
    /// Port 0x61, bits 0..=3.
    speaker: u8,
    /// The tick at which channel 0's output rises next.
    due: Option<u64>,
    /// The tick of the last interrupt.
    last_edge: u64,
    /// Interrupts of channel 0 that the host kept from the guest.
    owed: Owed,
}

impl State {
    fn new() -> Self {
        let mut state = Self::default();
        state.channels[0].set_gate(true, 0);
        state.channels[1].set_gate(true, 0);
        state
    }
}

/// The timer chip.
pub struct Pit {
    // Wiring.
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    irq: Line,
    owes: Flag,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl Pit {
    /// A timer with no channel programmed. `irq` is channel 0's output.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, alarm: Alarm, irq: Line) -> Self {
        Self { clock, alarm, irq, owes: Flag::default(), quiesced: false, state: State::new() }
    }

    /// To be called when the alarm rings.
    pub fn on_alarm(&mut self) {
        let now = self.tick();
        self.settle(now);
        self.arm(now);
    }

    fn tick(&self) -> u64 {
        self.clock.now().to_ticks(HZ)
    }

    /// Takes over what happened until `now`; says whether channel 0's output rose.
    fn settle(&mut self, now: u64) -> bool {
        for channel in &mut self.state.channels {
            channel.settle(now);
        }
        let Some(due) = self.state.due.filter(|due| *due <= now && !self.quiesced) else { return false };
        let period = self.state.channels[0].period().filter(|period| *period >= MIN_INTERVAL);
        let ticks = period.map_or(1, |period| (now - due) / period + 1);
        self.state.due = None;
        self.state.last_edge = now;
        let last = if period.is_some() { self.irq.last_edge() } else { Edge::Gone };
        if self.state.owed.fall_due(ticks, period.map_or(0, |period| HZ / period), last) {
            self.raise();
        }
        true
    }

    fn raise(&self) {
        self.irq.set(false);
        self.irq.set(true);
    }

    /// Sets line and alarm for what comes.
    fn arm(&mut self, now: u64) {
        if self.quiesced {
            return;
        }
        self.owes.set(self.state.owed.any());
        self.irq.set(self.state.channels[0].rests_high(now));
        self.state.due = self.state.channels[0].next_rise(now);
        let at = self.state.due.map(|due| due.max(self.state.last_edge.saturating_add(MIN_INTERVAL)));
        self.alarm.set(at.map(|at| Nanos::from_ticks(at, HZ)));
    }

    fn read_speaker(&self, now: u64) -> u8 {
        let refresh = ((now / REFRESH) & 1) as u8;
        let out = u8::from(self.state.channels[2].out(now));
        self.state.speaker | refresh << 4 | out << 5
    }

    fn control(&mut self, value: u8, now: u64) {
        match value >> 6 {
            3 => {
                for (n, channel) in self.state.channels.iter_mut().enumerate() {
                    if value & 2 << n == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        channel.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
            n => {
                let channel = &mut self.state.channels[usize::from(n)];
                if value & 0x30 == 0 {
                    channel.latch_count(now);
                } else {
                    channel.program(value);
                    if n == 0 {
                        self.state.due = None;
                        self.state.owed = Owed::default();
                    }
                }
            }
        }
    }
}

impl Creditor for Pit {
    fn owes(&self) -> Arc<AtomicBool> {
        self.owes.share()
    }

    fn interrupt_taken(&mut self) {
        if !self.quiesced && self.state.owed.collect(|| self.irq.last_edge()) {
            self.raise();
        }
        self.owes.set(self.state.owed.any());
    }
}

impl BusDevice for Pit {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        let now = self.tick();
        let rose = self.settle(now);
        bytewise::read(at, data, |offset| match (at.window, offset) {
            (COUNTERS, 0..=2) => self.state.channels[offset as usize].read(now),
            (SPEAKER, 0) => self.read_speaker(now),
            _ => 0xff,
        });
        if rose {
            self.arm(now);
        }
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        let now = self.tick();
        self.settle(now);
        bytewise::write(at, data, |offset, value| match (at.window, offset) {
            (COUNTERS, 0..=2) => self.state.channels[offset as usize].write(value, now),
            (COUNTERS, 3) => self.control(value, now),
            (SPEAKER, 0) => {
                self.state.speaker = value & 0x0f;
                self.state.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => {}
        });
        self.arm(now);
        Ok(())
    }
}

impl Device for Pit {
    fn name(&self) -> &str {
        "pit"
    }
    fn reset(&mut self) {
        self.state = State::new();
        self.owes.set(false);
        self.irq.set(false);
        self.alarm.set(None);
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
        self.alarm.set(None);
    }
    fn resume(&mut self) {
        self.quiesced = false;
        self.on_alarm();
    }
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("pit", saved)?;
        if !state.channels.iter().all(Channel::is_possible) {
            return Err(RestoreError::Impossible { device: "pit", what: "no such mode or count" });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
