//! The MC146818 real-time clock and its 128 bytes of CMOS memory.
//!
//! Source: Motorola MC146818A data sheet; CMOS bytes as PC firmware leaves them. The time is the machine's wall clock plus an
//! offset that the guest changes by setting the clock. Seconds begin at whole seconds of guest time, so that update-in-progress,
//! the change of the time and the update interrupt belong together; the wall clock only says which second it is.
//!
//! [`Rtc::on_alarm`] is what the alarm calls. The alarm is set only while an enabled interrupt waits for a flag to be set, so a guest that doesn't
//! read register C isn't interrupted again, nor by a burst.
//!
//! Left out: daylight saving, the divider's reset and test modes, square wave, NMI masking (port 0x70 bit 7 is ignored).

mod date;

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{Alarm, At, BusDevice, BusFault, Clock, Device, Line, Nanos, RestoreError, Saved, WindowId};
use date::Date;

/// Index and data port.
pub const CMOS: WindowId = WindowId(0);
/// Where a PC has them.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 1] = [(0x70..=0x71, CMOS)];
/// The register that holds the century, for the FADT.
pub const CENTURY: u8 = 0x32;

const SECOND: u64 = 1_000_000_000;
/// How long update-in-progress is seen before the time changes: 244 µs of warning and 1984 µs of update.
const UPDATE: u64 = 2_228_000;
const DAY: u64 = 86_400;

// Registers.
const A: usize = 0x0a;
const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
// Flags of register C, and their enables in register B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE_ENDED: u8 = 0x10;
const SOURCES: u8 = PERIODIC | ALARM | UPDATE_ENDED;
// Register B.
const SET: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// An alarm register from here on matches everything.
const DONT_CARE: u8 = 0xc0;

/// Guest memory as CMOS tells it to old software.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemorySize {
    /// Bytes of RAM from 0 up to below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB.
    pub above_4g: u64,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    /// 128 bytes. Time registers are refreshed when they are looked at.
    cmos: Vec<u8>,
    index: u8,
    /// Guest time minus wall time in seconds.
    offset: i64,
    /// A second of guest time, and the wall clock's in it.
    anchor: (u64, u64),
    /// The last second whose flags were set.
    seen: u64,
    /// The last period whose flag was set.
    seen_period: u64,
}

/// The clock chip.
pub struct Rtc {
    // Wiring.
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    irq: Line,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl Rtc {
    /// A running clock, in BCD and 24 hours, no interrupts. `irq` is IRQ 8.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, alarm: Alarm, irq: Line, memory: MemorySize) -> Self {
        let now = clock.now().0 / SECOND;
        let mut state = State {
            cmos: vec![0; 128],
            index: 0,
            offset: 0,
            anchor: (now, clock.wall_seconds()),
            seen: now,
            seen_period: 0,
        };
        state.cmos[A] = 0x26;
        state.cmos[B] = HOURS_24;
        state.cmos[D] = 0x80;
        let kib = |bytes: u64, most: u64| (bytes / 1024).min(most) as u16;
        let base = kib(memory.below_4g, 640);
        let extended = kib(memory.below_4g.saturating_sub(1 << 20), 0xffff);
        let above_16m = (memory.below_4g.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        for (at, value) in [(0x15, base), (0x17, extended), (0x30, extended), (0x34, above_16m)] {
            state.cmos[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let above_4g = (memory.above_4g >> 16).min(0xff_ffff) as u32;
        state.cmos[0x5b..0x5e].copy_from_slice(&above_4g.to_le_bytes()[..3]);
        Self { clock, alarm, irq, quiesced: false, state }
    }

    /// To be called when the alarm rings.
    pub fn on_alarm(&mut self) {
        self.sync();
    }

    /// Seconds since 1970 on the guest's clock in second `at` of guest time.
    fn seconds(&self, at: u64) -> i64 {
        let (second, wall) = self.state.anchor;
        let wall = wall as i64;
        wall.wrapping_add(at.wrapping_sub(second) as i64).wrapping_add(self.state.offset)
    }

    /// Follows the wall clock if it was set; a difference of one is only where in the second we look.
    fn anchor(&mut self, at: u64) {
        let (second, wall) = self.state.anchor;
        let expected = wall.wrapping_add(at.wrapping_sub(second));
        let actual = self.clock.wall_seconds();
        let wall = if actual.abs_diff(expected) <= 1 { expected } else { actual };
        self.state.anchor = (at, wall);
    }

    fn frozen(&self) -> bool {
        self.state.cmos[B] & SET != 0
    }

    /// The periodic interrupt's rate in Hz.
    fn rate(&self) -> Option<u64> {
        match self.state.cmos[A] & 0x0f {
            0 => None,
            // With the usual 32,768 Hz crystal the two fastest choices give slow rates (data sheet, table 5).
            select @ 1..=2 => Some(512 >> select),
            select => Some(0x8000 >> (select - 1)),
        }
    }

    /// Brings flags, line and alarm up to date.
    fn sync(&mut self) {
        let now = self.clock.now();
        let second = now.0 / SECOND;
        if second != self.state.seen {
            self.anchor(second);
            let passed = second.saturating_sub(self.state.seen).min(DAY);
            if !self.frozen() {
                self.state.cmos[C] |= UPDATE_ENDED;
                if (0..passed).any(|back| self.alarm_matches(second - back)) {
                    self.state.cmos[C] |= ALARM;
                }
            }
            self.state.seen = second;
        }
        if let Some(rate) = self.rate() {
            let period = now.to_ticks(rate);
            if period != self.state.seen_period {
                self.state.cmos[C] |= PERIODIC;
                self.state.seen_period = period;
            }
        }
        let (b, c) = (self.state.cmos[B], self.state.cmos[C] & SOURCES);
        let high = b & c & SOURCES != 0;
        self.state.cmos[C] = c | u8::from(high) << 7;
        if self.quiesced {
            return;
        }
        self.irq.set(high);
        let awaited = b & !c & SOURCES;
        let mut at = None;
        if awaited & PERIODIC != 0
            && let Some(rate) = self.rate()
        {
            at = Some(Nanos::from_ticks(self.state.seen_period.saturating_add(1), rate));
        }
        if awaited & (ALARM | UPDATE_ENDED) != 0 && !self.frozen() {
            let next = Nanos((second + 1).saturating_mul(SECOND));
            at = Some(at.map_or(next, |at: Nanos| at.min(next)));
        }
        self.alarm.set(at);
    }

    fn alarm_matches(&self, second: u64) -> bool {
        let date = Date::from_seconds(self.seconds(second));
        [(1, date.second), (3, date.minute), (5, date.hour)].into_iter().all(|(register, value)| {
            let alarm = self.state.cmos[register];
            let shown = if register == 5 { self.show_hour(value) } else { self.show(value) };
            alarm >= DONT_CARE || alarm == shown
        })
    }

    fn show(&self, value: u8) -> u8 {
        if self.state.cmos[B] & BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn show_hour(&self, hour: u8) -> u8 {
        if self.state.cmos[B] & HOURS_24 != 0 {
            return self.show(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.show(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn parse(&self, shown: u8) -> u8 {
        if self.state.cmos[B] & BINARY != 0 { shown } else { (shown >> 4) * 10 + (shown & 0x0f) }
    }

    fn parse_hour(&self, shown: u8) -> u8 {
        if self.state.cmos[B] & HOURS_24 != 0 {
            return self.parse(shown);
        }
        self.parse(shown & 0x7f) % 12 + if shown & 0x80 != 0 { 12 } else { 0 }
    }

    /// Puts the time into the registers, unless the guest is setting them.
    fn refresh(&mut self) {
        if self.frozen() {
            return;
        }
        let date = Date::from_seconds(self.seconds(self.state.seen));
        let shown = [
            (0, self.show(date.second)),
            (2, self.show(date.minute)),
            (4, self.show_hour(date.hour)),
            (6, self.show(date.weekday)),
            (7, self.show(date.day)),
            (8, self.show(date.month)),
            (9, self.show((date.year % 100) as u8)),
            (usize::from(CENTURY), self.show((date.year / 100 % 100) as u8)),
        ];
        for (register, value) in shown {
            self.state.cmos[register] = value;
        }
    }

    /// Takes the time from the registers.
    fn take_time(&mut self) {
        let parsed = |register: usize| self.parse(self.state.cmos[register]);
        let date = Date {
            second: parsed(0),
            minute: parsed(2),
            hour: self.parse_hour(self.state.cmos[4]),
            weekday: 1,
            day: parsed(7),
            month: parsed(8),
            year: u16::from(parsed(usize::from(CENTURY))) * 100 + u16::from(parsed(9)),
        };
        let shown = self.seconds(self.state.seen);
        self.state.offset = self.state.offset.wrapping_add(date.to_seconds().wrapping_sub(shown));
    }

    fn read_data(&mut self) -> u8 {
        self.sync();
        match usize::from(self.state.index) {
            A => {
                let updating = !self.frozen() && self.clock.now().0 % SECOND >= SECOND - UPDATE;
                self.state.cmos[A] & 0x7f | u8::from(updating) << 7
            }
            C => {
                let flags = std::mem::take(&mut self.state.cmos[C]);
                self.sync();
                flags
            }
            register => {
                self.refresh();
                self.state.cmos[register]
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        self.sync();
        match usize::from(self.state.index) {
            A => {
                self.state.cmos[A] = value & 0x7f;
                let now = self.clock.now();
                self.state.seen_period = self.rate().map_or(0, |rate| now.to_ticks(rate));
            }
            B => {
                self.refresh();
                let was_frozen = self.frozen();
                // Setting the time ends the update interrupt (data sheet, SET).
                let value = if value & SET != 0 { value & !UPDATE_ENDED } else { value };
                self.state.cmos[B] = value;
                if was_frozen && !self.frozen() {
                    self.take_time();
                }
            }
            C | D => {}
            register @ (0 | 2 | 4 | 6..=9 | 0x32) => {
                self.refresh();
                self.state.cmos[register] = value;
                if !self.frozen() && register != 6 {
                    self.take_time();
                }
            }
            register => self.state.cmos[register] = value,
        }
        self.sync();
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        bytewise::read(at, data, |offset| if offset == 1 { self.read_data() } else { 0xff });
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        bytewise::write(at, data, |offset, value| match offset {
            0 => self.state.index = value & 0x7f,
            _ => self.write_data(value),
        });
        Ok(())
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }
    /// The battery keeps time and memory; only interrupts are switched off.
    fn reset(&mut self) {
        self.state.cmos[B] &= !SOURCES;
        self.state.cmos[C] = 0;
        self.state.index = 0;
        self.irq.set(false);
        self.alarm.set(None);
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
        self.alarm.set(None);
    }
    fn resume(&mut self) {
        self.quiesced = false;
        self.sync();
    }
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("rtc", saved)?;
        if state.cmos.len() != 128 || state.index >= 128 {
            return Err(RestoreError::Impossible { device: "rtc", what: "CMOS isn't 128 bytes" });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
