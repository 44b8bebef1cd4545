//! The four synthetic timers of a vCPU (TLFS 12.3). Times are in units of 100 ns of machine time.
//!
//! An expired timer sends a message to its source, or in direct mode requests a vector. A message that its slot has no room for waits in
//! its timer, one at a time, and goes when the guest has freed the slot.

use super::spec::{Status, slot, stimer};
use super::synic::{Message, Synic};
use chipset::Nanos;
use chipset::apic::Lapics;
use engine::GpFault;

/// A periodic timer goes off no more often, or a guest could keep the machine busy with nothing else: 20 us.
const SHORTEST_PERIOD: u64 = 200;
/// Nanoseconds in a unit.
const UNIT: u64 = 100;

/// Machine time in units.
pub(super) fn units(at: Nanos) -> u64 {
    at.0 / UNIT
}

#[derive(Clone, Copy, Default)]
struct Timer {
    config: u64,
    count: u64,
    /// When it expires, if it runs.
    due: Option<u64>,
    /// It expired then, and its message hasn't been sent.
    unsent: Option<u64>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Timers([Timer; stimer::COUNT]);

impl Timer {
    fn start(&mut self, now: u64) {
        self.due = if self.config & stimer::ENABLED == 0 || self.count == 0 {
            None
        } else if self.config & stimer::PERIODIC != 0 {
            Some(now.saturating_add(self.count.max(SHORTEST_PERIOD)))
        } else {
            Some(self.count)
        };
    }

    fn source(&self) -> usize {
        (self.config >> 16 & 0xf) as usize
    }
}

impl Timers {
    pub(super) fn config(&self, number: usize) -> u64 {
        self.0[number].config
    }

    pub(super) fn count(&self, number: usize) -> u64 {
        self.0[number].count
    }

    pub(super) fn set_config(&mut self, number: usize, value: u64, now: u64) -> Result<(), GpFault> {
        if value & stimer::RESERVED != 0 {
            return Err(GpFault);
        }
        let timer = &mut self.0[number];
        timer.config = value;
        // Source 0 is the hypervisor's own; a timer needs another, or a vector that there is.
        let direct = value & stimer::DIRECT != 0;
        if direct && value >> 4 & 0xff < 16 || !direct && timer.source() == 0 {
            timer.config &= !stimer::ENABLED;
        }
        timer.unsent = None;
        timer.start(now);
        Ok(())
    }

    pub(super) fn set_count(&mut self, number: usize, value: u64, now: u64) {
        let timer = &mut self.0[number];
        timer.count = value;
        if value == 0 {
            timer.config &= !stimer::ENABLED;
        } else if timer.config & stimer::AUTO_ENABLE != 0 {
            timer.config |= stimer::ENABLED;
        }
        timer.unsent = None;
        timer.start(now);
    }

    /// When the next one expires.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.0.iter().filter_map(|timer| timer.due).min().map(|due| Nanos(due.saturating_mul(UNIT)))
    }
}

impl Synic {
    /// Has timers expire that are due, and sends what they couldn't send before.
    pub(super) fn run_timers(&mut self, lapics: &Lapics, now: u64) {
        for number in 0..stimer::COUNT {
            let timer = &mut self.timers.0[number];
            if let Some(due) = timer.due.filter(|due| *due <= now) {
                self.counts.timers += 1;
                timer.due = None;
                if timer.config & stimer::PERIODIC != 0 {
                    // What was missed is lost, the phase is kept.
                    let period = timer.count.max(SHORTEST_PERIOD);
                    let missed = (now - due) / period;
                    timer.due = Some(due.saturating_add((missed + 1).saturating_mul(period)));
                } else {
                    timer.config &= !stimer::ENABLED;
                }
                if timer.config & stimer::DIRECT != 0 {
                    let vector = (timer.config >> 4) as u8;
                    lapics.request(self.cpu(), vector);
                } else {
                    timer.unsent.get_or_insert(due);
                }
            }
            if let Some(expired) = self.timers.0[number].unsent {
                self.send(lapics, number, expired, now);
            }
        }
    }

    fn send(&mut self, lapics: &Lapics, number: usize, expired: u64, now: u64) {
        let mut payload = Vec::with_capacity(24);
        payload.extend((number as u64).to_le_bytes());
        payload.extend(expired.to_le_bytes());
        payload.extend(now.to_le_bytes());
        let source = self.timers.0[number].source();
        let message = Message { kind: slot::TIMER_EXPIRED, sender: 0, payload };
        // One that has to wait does so in the timer, which would only send the same again.
        if self.post_if_free(lapics, source, message) == Status::Success {
            self.timers.0[number].unsent = None;
        }
    }

    /// Whether a timer's message waits for its slot.
    pub(super) fn has_unsent(&self) -> bool {
        self.timers.0.iter().any(|timer| timer.unsent.is_some())
    }
}
