//! The local APIC's timer (SDM 3A 10.5.4): divided down counter or TSC deadline, derived from the clock without ticking.
//!
//! Used by the local APIC, under its lock.

use crate::clock::{Clock, Nanos};
use serde::{Deserialize, Serialize};

/// What the timer counts before the divider, in Hz. Equals CPUID 0x15's crystal where that leaf is offered. One tick a nanosecond
/// keeps arithmetic exact; the code below relies on it.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// A periodic timer isn't served more often than this, or a guest could keep the machine busy with nothing else. What falls in
/// between is lost, as ticks are that find their vector still pending.
const SHORTEST_PERIOD: u64 = 20_000;

/// LVT bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub(super) const fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// Guest-visible state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Timer {
    pub(super) initial: u32,
    /// Divide configuration register.
    pub(super) divide: u32,
    /// When the count reaches zero; `None` when stopped.
    deadline: Option<Nanos>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    tsc_deadline: u64,
    /// What this vCPU's TSC is ahead of the machine's.
    pub(super) tsc_offset: u64,
}

impl Timer {
    /// log2 of the divisor. 0b111 divides by one (SDM 3A figure 10-10).
    const fn shift(&self) -> u32 {
        ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7
    }

    const fn period(&self) -> u64 {
        (self.initial as u64) << self.shift()
    }

    /// What is left after INIT.
    pub(super) fn after_init(&self) -> Self {
        Self { tsc_offset: self.tsc_offset, ..Self::default() }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.divide & !0xb == 0
    }

    fn stop(&mut self) {
        self.deadline = None;
        self.tsc_deadline = 0;
    }

    pub(super) fn set_initial(&mut self, mode: Mode, value: u32, now: Nanos) {
        // SDM 3A 10.5.4.1: ignored in TSC-deadline mode.
        if mode == Mode::TscDeadline {
            return;
        }
        self.initial = value;
        self.deadline = (value != 0).then(|| Nanos(now.0.saturating_add(self.period())));
    }

    pub(super) fn current(&self, mode: Mode, now: Nanos) -> u32 {
        let Some(deadline) = self.deadline.filter(|_| mode.counts()) else { return 0 };
        let mut left = deadline.0.saturating_sub(now.0);
        let period = self.period();
        // A period below the shortest has its deadline several periods ahead.
        if left > period && period != 0 && mode == Mode::Periodic {
            left = (left - 1) % period + 1;
        }
        left.div_ceil(1 << self.shift()).min(u64::from(self.initial)) as u32
    }

    pub(super) fn set_divide(&mut self, mode: Mode, value: u32, now: Nanos) {
        let count = self.current(mode, now);
        self.divide = value & 0xb;
        if self.deadline.is_some() {
            self.deadline = Some(Nanos(now.0.saturating_add(u64::from(count) << self.shift())));
        }
    }

    pub(super) fn change_mode(&mut self, from: Mode, to: Mode) {
        // SDM 3A 10.5.4.1: going to or from TSC-deadline mode disarms; one-shot and periodic share the running count.
        if from != to && !(from.counts() && to.counts()) {
            self.stop();
        }
    }

    pub(super) fn tsc_deadline(&self, mode: Mode) -> u64 {
        if mode == Mode::TscDeadline { self.tsc_deadline } else { 0 }
    }

    pub(super) fn set_tsc_deadline(&mut self, mode: Mode, value: u64) {
        if mode == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// Brings the state up to `now`; true if the timer went off.
    pub(super) fn catch_up(&mut self, mode: Mode, clock: &dyn Clock, now: Nanos) -> bool {
        match mode {
            Mode::TscDeadline => {
                let tsc = clock.tsc_at(now).wrapping_add(self.tsc_offset);
                let due = self.tsc_deadline != 0 && tsc >= self.tsc_deadline;
                if due {
                    self.tsc_deadline = 0;
                }
                due
            }
            Mode::OneShot | Mode::Periodic => {
                let Some(deadline) = self.deadline.filter(|at| *at <= now) else { return false };
                let period = self.period();
                self.deadline = (mode == Mode::Periodic && period != 0).then(|| {
                    let past = now.0 - deadline.0;
                    let skip =
                        if period < SHORTEST_PERIOD { past.saturating_add(SHORTEST_PERIOD) } else { past };
                    let periods = (skip / period).saturating_add(1);
                    Nanos(deadline.0.saturating_add(periods.saturating_mul(period)))
                });
                true
            }
            Mode::Reserved => false,
        }
    }

    /// When [`Timer::catch_up`] is next due; nothing is due now.
    pub(super) fn due(&self, mode: Mode, clock: &dyn Clock) -> Option<Nanos> {
        match mode {
            Mode::TscDeadline if self.tsc_deadline != 0 => {
                // By way of the distance: with an offset, a far deadline could wrap into the machine's past, and the alarm would
                // go off without end.
                let machine = clock.tsc_at(clock.now());
                let left = self.tsc_deadline.saturating_sub(machine.wrapping_add(self.tsc_offset));
                Some(clock.when_tsc(machine.saturating_add(left)))
            }
            Mode::OneShot | Mode::Periodic => self.deadline,
            _ => None,
        }
    }
}
