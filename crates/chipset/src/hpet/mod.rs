//! The high precision event timer: one block, three 64-bit comparators, all of them periodic or one-shot.
//!
//! Source: IA-PC HPET specification 1.0a. The counter runs at 100 MHz and is computed from the [`Clock`]; the alarm rings for
//! the first comparator that interrupts. [`Hpet::on_alarm`] is what it calls.
//!
//! Periods that the host made the guest miss give their interrupts one after the other ([`crate::owed`]), up to a second's, and the
//! phase is kept; interrupts from the alarm are at least 100 µs apart, and what would come faster merges.
//! In legacy replacement mode comparators 0 and 1 take the place of PIT and RTC: all four go through a [`LegacyRoute`].
//!
//! Left out: message-signalled (FSB) delivery.

mod legacy;
mod spec;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::owed::{Creditor, Flag, Owed};
use crate::{
    Alarm, At, BusDevice, BusFault, Clock, Device, Edge, Line, Nanos, RestoreError, Saved, WindowId,
};
pub use legacy::{LegacyRoute, PIT_PIN, RTC_PIN};
use spec::{Config, General};

/// The register block.
pub const REGISTERS: WindowId = WindowId(0);
/// Where a PC has it.
pub const MMIO: [(RangeInclusive<u64>, WindowId); 1] = [(0xfed0_0000..=0xfed0_03ff, REGISTERS)];
/// Comparators.
pub const TIMERS: usize = 3;
/// Nanoseconds a tick.
pub const TICK_NANOS: u64 = 10;
/// The first register's low half, which the ACPI table repeats.
pub const BLOCK_ID: u32 = spec::CAPABILITIES as u32;

/// Nanoseconds between interrupts from the alarm, at least.
const MIN_INTERVAL: u64 = 100_000;

#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Timer {
    config: Config,
    comparator: u64,
    period: u64,
    /// The count (64 bits, never wrapping) at which it matches next.
    due: Option<u64>,
    /// Interrupts that the host kept from the guest.
    owed: Owed,
}

impl Timer {
    fn mask(&self) -> u64 {
        if self.config.contains(Config::FORCED_32) { 0xffff_ffff } else { u64::MAX }
    }

    /// Computes the next match when the counter shows `count`.
    fn arm(&mut self, count: u64) {
        self.due = count.checked_add(self.comparator.wrapping_sub(count) & self.mask());
    }

    /// Takes matches at or before `count` over; says how many there were.
    fn settle(&mut self, count: u64) -> u64 {
        let Some(due) = self.due.filter(|due| *due <= count) else { return 0 };
        if self.config.contains(Config::PERIODIC) && self.period != 0 {
            let periods = ((count - due) / self.period).saturating_add(1);
            let passed = self.period.checked_mul(periods);
            self.due = passed.and_then(|passed| due.checked_add(passed));
            self.comparator = self.comparator.wrapping_add(self.period.wrapping_mul(periods)) & self.mask();
            periods
        } else {
            // A one-shot matches again when the counter comes round, which 64 bits don't.
            let rounds = ((count - due) >> 32) + 1;
            let again = rounds.checked_shl(32).and_then(|passed| due.checked_add(passed));
            self.due = again.filter(|_| self.config.contains(Config::FORCED_32));
            1
        }
    }

    /// The period, where each of its interrupts counts: not if they come faster than alarms ring.
    fn countable(&self) -> Option<u64> {
        let long = self.period >= MIN_INTERVAL / TICK_NANOS;
        (long && self.config.contains(Config::PERIODIC)).then_some(self.period)
    }

    fn interrupts(&self) -> bool {
        self.config.contains(Config::INTERRUPT)
    }
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    general: General,
    /// Level-triggered timers whose interrupt isn't acknowledged.
    status: u8,
    /// The counter at `base`.
    count: u64,
    /// While it runs: when it showed `count`.
    base: Nanos,
    timers: [Timer; TIMERS],
    last_alarm: Nanos,
}

impl State {
    fn new() -> Self {
        let timer = Timer {
            config: Config::empty(),
            comparator: u64::MAX,
            period: 0,
            due: None,
            owed: Owed::default(),
        };
        Self {
            general: General::empty(),
            status: 0,
            count: 0,
            base: Nanos(0),
            timers: [timer; TIMERS],
            last_alarm: Nanos(0),
        }
    }

    fn running(&self) -> bool {
        self.general.contains(General::ENABLE)
    }

    fn count_at(&self, now: Nanos) -> u64 {
        if !self.running() {
            return self.count;
        }
        self.count.wrapping_add(now.0.saturating_sub(self.base.0) / TICK_NANOS)
    }

    fn legacy(&self) -> bool {
        self.general.contains(General::LEGACY)
    }
}

/// The timer block.
pub struct Hpet {
    // Configuration.
    /// The I/O APIC inputs that a comparator may be routed to, a bit each.
    routes: u32,
    // Wiring.
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    legacy: Arc<LegacyRoute>,
    /// Each comparator's ends of the lines in `routes`.
    lines: [Vec<(u8, Line)>; TIMERS],
    owes: Flag,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl Hpet {
    /// A stopped block. `lines` are the I/O APIC inputs (0..=31) that comparators may be routed to.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, alarm: Alarm, legacy: Arc<LegacyRoute>, lines: &[(u8, Line)]) -> Self {
        let routes = lines.iter().fold(0, |routes, (pin, _)| routes | 1_u32 << (pin & 31));
        let lines =
            [(); TIMERS].map(|()| lines.iter().map(|(pin, line)| (*pin & 31, line.share())).collect());
        Self {
            routes,
            clock,
            alarm,
            legacy,
            lines,
            owes: Flag::default(),
            quiesced: false,
            state: State::new(),
        }
    }

    /// To be called when the alarm rings.
    pub fn on_alarm(&mut self) {
        let now = self.clock.now();
        self.state.last_alarm = now;
        self.settle(now);
        self.arm(now);
    }

    /// Lets matches until `now` happen.
    fn settle(&mut self, now: Nanos) {
        if self.quiesced || !self.state.running() {
            return;
        }
        let count = self.state.count_at(now);
        for n in 0..TIMERS {
            let matches = self.state.timers[n].settle(count);
            if matches == 0 {
                continue;
            }
            let timer = self.state.timers[n];
            if timer.config.contains(Config::LEVEL) {
                self.state.status |= 1 << n;
            } else if timer.interrupts() {
                let period = timer.countable();
                let (ticks, last) =
                    if period.is_some() { (matches, self.last_edge(n)) } else { (1, Edge::Gone) };
                let a_second = period.map_or(0, |period| 1_000_000_000 / TICK_NANOS / period);
                if self.state.timers[n].owed.fall_due(ticks, a_second, last) {
                    self.pulse(n);
                }
            }
        }
    }

    fn pulse(&self, n: usize) {
        self.drive(n, true);
        self.drive(n, false);
    }

    /// What has become of comparator `n`'s last edge.
    fn last_edge(&self, n: usize) -> Edge {
        if self.state.legacy() && n < 2 {
            return self.legacy.last_edge_of(n);
        }
        let route = self.state.timers[n].config.route();
        let line = self.lines[n].iter().find(|(pin, _)| *pin == route);
        line.map_or(Edge::Gone, |(_, line)| line.last_edge())
    }

    fn tell_owed(&self) {
        self.owes.set(self.state.timers.iter().any(|timer| timer.owed.any()));
    }

    /// Sets the wire that comparator `n` is routed to, and leaves its others low.
    fn drive(&self, n: usize, high: bool) {
        let legacy = self.state.legacy() && n < 2;
        if n < 2 {
            self.legacy.set_comparator(n, high && legacy);
        }
        let route = self.state.timers[n].config.route();
        for (pin, line) in &self.lines[n] {
            line.set(high && !legacy && *pin == route);
        }
    }

    /// Sets lines and alarm for what comes.
    fn arm(&mut self, now: Nanos) {
        if self.quiesced {
            return;
        }
        self.tell_owed();
        self.legacy.set_replaced(self.state.legacy());
        for n in 0..TIMERS {
            let timer = self.state.timers[n];
            let level = timer.config.contains(Config::LEVEL) && self.state.status & 1 << n != 0;
            self.drive(n, level && timer.interrupts() && self.state.running());
        }
        let count = self.state.count_at(now);
        let first = self.state.timers.iter().filter(|timer| timer.interrupts()).filter_map(|timer| timer.due);
        let at = first.min().filter(|_| self.state.running()).map(|due| {
            // In whole ticks from the base, so that rounding doesn't wake us too early.
            let since = now.0.saturating_sub(self.state.base.0) / TICK_NANOS;
            let ticks = since.saturating_add(due.saturating_sub(count));
            let at = self.state.base.0.saturating_add(ticks.saturating_mul(TICK_NANOS));
            Nanos(at.max(self.state.last_alarm.0.saturating_add(MIN_INTERVAL)))
        });
        self.alarm.set(at);
    }

    fn arm_timers(&mut self, now: Nanos) {
        let count = self.state.count_at(now);
        for timer in &mut self.state.timers {
            timer.arm(count);
        }
    }

    fn register(&self, at: u64, now: Nanos) -> u64 {
        match at {
            0x000 => spec::CAPABILITIES,
            0x010 => self.state.general.bits(),
            0x020 => u64::from(self.state.status),
            0x0f0 => self.state.count_at(now),
            0x100..=0x15f => {
                let timer = &self.state.timers[((at - 0x100) / 0x20) as usize];
                match at & 0x1f {
                    0x00 => timer.config.bits() | spec::TIMER_CAPABILITIES | u64::from(self.routes) << 32,
                    0x08 => timer.comparator,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes those bits of a register that `written` has.
    fn set_register(&mut self, at: u64, value: u64, written: u64, now: Nanos) {
        let merged = |old: u64| old & !written | value & written;
        match at {
            0x010 => {
                let general = General::from_bits_truncate(merged(self.state.general.bits()));
                let count = self.state.count_at(now);
                self.state.general = general;
                self.state.count = count;
                self.state.base = now;
                self.arm_timers(now);
                self.state.timers.iter_mut().for_each(|timer| timer.owed = Owed::default());
            }
            0x020 => self.state.status &= !((value & written) as u8),
            0x0f0 => {
                self.state.count = merged(self.state.count_at(now));
                self.state.base = now;
                self.arm_timers(now);
            }
            0x100..=0x15f => {
                let n = ((at - 0x100) / 0x20) as usize;
                let count = self.state.count_at(now);
                match at & 0x1f {
                    0x00 => self.configure(n, merged(self.state.timers[n].config.bits()), count),
                    0x08 => self.set_comparator(n, value, written, count),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn configure(&mut self, n: usize, value: u64, count: u64) {
        let mut config = Config::from_bits_truncate(value);
        if self.routes >> config.route() & 1 == 0 {
            // A route that can't be doesn't stick (2.3.8); software reads it back to find out.
            config.remove(Config::ROUTE);
        }
        if !config.contains(Config::LEVEL) {
            self.state.status &= !(1 << n);
        }
        let timer = &mut self.state.timers[n];
        timer.config = config;
        timer.owed = Owed::default();
        timer.comparator &= timer.mask();
        timer.period &= timer.mask();
        timer.arm(count);
    }

    fn set_comparator(&mut self, n: usize, value: u64, written: u64, count: u64) {
        let timer = &mut self.state.timers[n];
        let mask = timer.mask();
        let merged = |old: u64| (old & !written | value & written) & mask;
        let periodic = timer.config.contains(Config::PERIODIC);
        if periodic {
            timer.period = merged(timer.period);
        }
        // In periodic mode only a write after "set value" changes where it stands (2.3.9.2.2).
        if !periodic || timer.config.contains(Config::SET_VALUE) {
            timer.comparator = merged(timer.comparator);
            timer.arm(count);
        }
        timer.config.remove(Config::SET_VALUE);
    }
}

impl Creditor for Hpet {
    fn owes(&self) -> Arc<AtomicBool> {
        self.owes.share()
    }

    fn interrupt_taken(&mut self) {
        for n in 0..TIMERS {
            let mut owed = self.state.timers[n].owed;
            if !self.quiesced && self.state.running() && owed.collect(|| self.last_edge(n)) {
                self.pulse(n);
            }
            self.state.timers[n].owed = owed;
        }
        self.tell_owed();
    }
}

impl BusDevice for Hpet {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        if !matches!(data.len(), 4 | 8) || !at.offset.is_multiple_of(data.len() as u64) {
            return Err(BusFault);
        }
        let now = self.clock.now();
        self.settle(now);
        let value = self.register(at.offset & !7, now);
        bytewise::fill(data, value >> (8 * (at.offset & 4)));
        // Reading the counter is what guests do all the time; it moves no wire unless something matched.
        if at.offset & !7 != 0xf0 {
            self.arm(now);
        }
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        if !matches!(data.len(), 4 | 8) || !at.offset.is_multiple_of(data.len() as u64) {
            return Err(BusFault);
        }
        let now = self.clock.now();
        self.settle(now);
        let shift = 8 * (at.offset & 4);
        let written = if data.len() == 8 { u64::MAX } else { 0xffff_ffff << shift };
        self.set_register(at.offset & !7, bytewise::value(data) << shift, written, now);
        self.settle(now);
        self.arm(now);
        Ok(())
    }
}

impl Device for Hpet {
    fn name(&self) -> &str {
        "hpet"
    }
    fn reset(&mut self) {
        self.state = State::new();
        let quiesced = std::mem::replace(&mut self.quiesced, false);
        self.arm(self.clock.now());
        self.quiesced = quiesced;
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
        self.alarm.set(None);
    }
    fn resume(&mut self) {
        self.quiesced = false;
        let now = self.clock.now();
        self.settle(now);
        self.arm(now);
    }
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("hpet", saved)?;
        if state
            .timers
            .iter()
            .any(|timer| self.routes >> timer.config.route() & 1 == 0 && timer.config.route() != 0)
        {
            return Err(RestoreError::Impossible { device: "hpet", what: "no such route" });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
