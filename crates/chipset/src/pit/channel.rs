//! One channel of the 8254: a count as a function of time. Times are absolute ticks of the input clock.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Counting {
    /// Programmed, but not started.
    #[default]
    Idle,
    /// Stopped by the gate, after so many ticks.
    Held(u64),
    /// The count was loaded at this tick (which may be the next one: a count is loaded by the clock pulse after the write).
    Since(u64),
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Channel {
    /// 0..=5.
    mode: u8,
    bcd: bool,
    /// 1: low byte, 2: high byte, 3: low then high.
    access: u8,
    gate: bool,
    /// The count register as written.
    written: u16,
    /// A count was written since the control word.
    ready: bool,
    /// The count that is counted down, 1..
    count: u32,
    counting: Counting,
    /// In modes 2 and 3, a new count that takes over at this tick.
    next: Option<(u64, u32)>,
    /// The first byte of a count of two.
    low: Option<u8>,
    /// The next byte to read is the high one.
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Channel {
    pub(super) fn is_possible(&self) -> bool {
        let times = match self.counting {
            Counting::Idle => true,
            Counting::Held(ticks) | Counting::Since(ticks) => ticks < 1 << 62,
        };
        let next = self.next.is_none_or(|(at, count)| at < 1 << 62 && count > 0 && count <= 1 << 16);
        self.mode <= 5
            && self.access <= 3
            && times
            && next
            && (self.counting == Counting::Idle || self.count > 0)
            && self.count <= 1 << 16
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 1 << 16 }
    }

    /// The count register as a number; 0 stands for the largest. Counts below 2 are illegal in modes 2 and 3.
    fn decoded(&self) -> u32 {
        let number = if self.bcd {
            (0..4).rev().fold(0, |number, digit| number * 10 + u32::from(self.written >> (4 * digit) & 15))
        } else {
            u32::from(self.written)
        };
        let number = if number == 0 { self.modulus() } else { number };
        if self.repeats() { number.max(2) } else { number }
    }

    fn repeats(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn elapsed(&self, now: u64) -> u64 {
        match self.counting {
            Counting::Idle => 0,
            Counting::Held(ticks) => ticks,
            Counting::Since(start) => now.saturating_sub(start),
        }
    }

    /// Lets a waiting count take over.
    pub(super) fn settle(&mut self, now: u64) {
        if let Some((at, count)) = self.next
            && at <= now
        {
            self.next = None;
            self.count = count;
            self.counting = Counting::Since(at);
        }
    }

    /// The output.
    pub(super) fn out(&self, now: u64) -> bool {
        let elapsed = self.elapsed(now);
        let count = u64::from(self.count);
        let running = matches!(self.counting, Counting::Since(_));
        match self.mode {
            0 => self.counting != Counting::Idle && elapsed >= count,
            1 => !running || elapsed >= count,
            2 => !running || elapsed % count != count - 1,
            3 => !running || elapsed % count < count.div_ceil(2),
            _ => !running || elapsed != count,
        }
    }

    /// The level between edges: modes 2..=5 only dip for a moment.
    pub(super) fn rests_high(&self, now: u64) -> bool {
        self.access != 0 && (self.mode >= 2 || self.out(now))
    }

    /// The first tick after `now` at which the output rises.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let Counting::Since(start) = self.counting else { return None };
        let count = u64::from(self.count);
        let at = match self.mode {
            0 | 1 => start.checked_add(count)?,
            2 | 3 => start.checked_add((self.elapsed(now) / count + 1).checked_mul(count)?)?,
            _ => start.checked_add(count + 1)?,
        };
        (at > now).then_some(at)
    }

    /// The period, in the modes that have one.
    pub(super) fn period(&self) -> Option<u64> {
        self.repeats().then(|| u64::from(self.count.max(1)))
    }

    fn value(&self, now: u64) -> u16 {
        let modulus = i64::from(self.modulus());
        let count = i64::from(self.count);
        let elapsed = self.elapsed(now);
        let number = match (self.counting, self.mode) {
            (Counting::Idle, _) => i64::from(self.decoded()),
            (_, 2) => count - (elapsed % u64::from(self.count)) as i64,
            (_, 3) => {
                // Counts down by two, twice a period.
                let position = (elapsed % u64::from(self.count)) as i64;
                let half = (count + 1) / 2;
                (count & !1) - 2 * if position < half { position } else { position - half }
            }
            _ => count - (elapsed % u64::from(self.modulus())) as i64,
        };
        let number = number.rem_euclid(modulus) as u16;
        if !self.bcd {
            return number;
        }
        (0..4).fold(0, |bcd, digit| bcd | (number / 10_u16.pow(digit) % 10) << (4 * digit))
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    pub(super) fn latch_status(&mut self, now: u64) {
        if self.status.is_none() {
            let null = self.next.is_some()
                || match self.counting {
                    Counting::Idle => true,
                    Counting::Held(_) => false,
                    Counting::Since(start) => now < start,
                };
            self.status = Some(
                u8::from(self.out(now)) << 7
                    | u8::from(null) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let byte = match self.access {
            2 => high,
            3 if self.high_next => high,
            _ => low,
        };
        self.high_next = self.access == 3 && !self.high_next;
        if !self.high_next {
            self.latched = None;
        }
        byte
    }

    /// A control word that isn't a latch command.
    pub(super) fn program(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: control & 1 != 0,
            access: control >> 4 & 3,
            gate: self.gate,
            written: self.written,
            ..Self::default()
        };
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        let value = u16::from(value);
        match (self.access, self.low.take()) {
            (1, _) => self.written = value,
            (2, _) => self.written = value << 8,
            (3, Some(low)) => self.written = value << 8 | u16::from(low),
            (3, None) => {
                self.low = Some(value as u8);
                if self.mode == 0 {
                    // The first byte stops the count (data sheet, mode 0), and the output goes low.
                    self.counting = Counting::Idle;
                }
                return;
            }
            _ => return,
        }
        self.ready = true;
        let count = self.decoded();
        match (self.mode, self.counting) {
            (1 | 5, _) => {}
            (2 | 3, Counting::Since(start)) if start <= now => {
                let period = u64::from(self.count);
                let boundary = start + (self.elapsed(now) / period + 1) * period;
                self.next = Some((boundary, count));
            }
            _ => self.load(now),
        }
    }

    fn load(&mut self, now: u64) {
        self.count = self.decoded();
        self.next = None;
        self.counting = if self.gate || matches!(self.mode, 1 | 5) {
            Counting::Since(now + 1)
        } else {
            Counting::Held(0)
        };
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if std::mem::replace(&mut self.gate, gate) == gate || !self.ready {
            return;
        }
        match (self.mode, gate, self.counting) {
            (1 | 2 | 3 | 5, true, _) => self.load(now),
            (_, true, Counting::Held(ticks)) => self.counting = Counting::Since(now.saturating_sub(ticks)),
            (0 | 4, false, Counting::Since(_)) => self.counting = Counting::Held(self.elapsed(now)),
            (2 | 3, false, Counting::Since(_)) => {
                self.counting = Counting::Held(0);
                if let Some((_, count)) = self.next.take() {
                    self.count = count;
                }
            }
            _ => {}
        }
    }
}
