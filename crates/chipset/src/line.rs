//! Wires: interrupt lines and message-signalled interrupts.
//!
//! A device holds a [`Line`] and only says high or low. Controllers are the sinks. Several devices may share a line: it is high
//! while any of them says so.

use std::sync::{Arc, Mutex, PoisonError};

/// What has become of the edge that a line carried last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// A processor has taken it, or it was masked: another edge is an interrupt of its own.
    Gone,
    /// It waits for a processor that hasn't looked since it came, because the host runs something else.
    Unseen,
    /// It waits for a processor that knows of it and can't take it now: IF is clear, or something more urgent is in service. Another edge
    /// would be lost, as on hardware.
    Held,
}

impl Edge {
    /// Of an edge that went two ways: what waits counts more than what doesn't.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::Gone { other } else { self }
    }
}

/// What a line ends in: an interrupt controller, or something that fans out to several.
pub trait LineSink: Send + Sync {
    /// The level of input `pin` is now `high`. Called only on changes, in order.
    fn set_pin(&self, pin: u8, high: bool);
    /// The level of input `pin` is this, without an edge: only a level-triggered input takes notice. For lines whose owner changes.
    /// Sinks of which no input is edge-triggered needn't tell the two apart.
    fn place_pin(&self, pin: u8, high: bool) {
        self.set_pin(pin, high);
    }
    /// What has become of `pin`'s last edge. For timers, whose ticks must not get lost because the host is busy.
    fn last_edge(&self, _pin: u8) -> Edge {
        Edge::Gone
    }
}

struct Wire {
    sink: Arc<dyn LineSink>,
    pin: u8,
    /// How many of the sharing devices hold it high. Held while the sink is told, so that the sink sees changes in order.
    high: Mutex<u32>,
}

/// One device's end of an interrupt line. Dropping it lowers it.
pub struct Line {
    wire: Arc<Wire>,
    high: Mutex<bool>,
}

impl Line {
    /// A line into input `pin` of `sink`, low.
    #[must_use]
    pub fn new(sink: Arc<dyn LineSink>, pin: u8) -> Self {
        Self { wire: Arc::new(Wire { sink, pin, high: Mutex::new(0) }), high: Mutex::new(false) }
    }

    /// Another device's end of the same line, low.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { wire: Arc::clone(&self.wire), high: Mutex::new(false) }
    }

    /// Sets this end's level.
    pub fn set(&self, high: bool) {
        let mut mine = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        if *mine == high {
            return;
        }
        *mine = high;
        let mut holders = self.wire.high.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *holders;
        *holders = if high { before + 1 } else { before - 1 };
        if (before == 0) != (*holders == 0) {
            self.wire.sink.set_pin(self.wire.pin, high);
        }
    }

    /// What has become of the last edge.
    #[must_use]
    pub fn last_edge(&self) -> Edge {
        self.wire.sink.last_edge(self.wire.pin)
    }

    /// High and at once low again: an edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (SDM 3A 10.11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Msi {
    /// 0xFEExxxxx.
    pub address: u64,
    /// Vector, delivery mode, level and trigger bits.
    pub data: u32,
}

/// What takes MSIs: the local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers one. `false` if nobody took it: there is no such processor, or its local APIC is off. A sender that waits for an
    /// EOI would wait in vain then.
    fn send(&self, msi: Msi) -> bool;
    /// What has become of such a message, sent before. Of several alike, one is meant: they merge.
    fn last_edge(&self, _msi: Msi) -> Edge {
        Edge::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u8, bool)>>);

    impl LineSink for Log {
        fn set_pin(&self, pin: u8, high: bool) {
            self.0.lock().expect("not poisoned").push((pin, high));
        }
    }

    #[test]
    fn shared_line_stays_high_until_every_device_lowers_it() {
        let log = Arc::new(Log::default());
        let a = Line::new(log.clone(), 5);
        let b = a.share();
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*log.0.lock().expect("not poisoned"), [(5, true)]);
        drop(b);
        assert_eq!(*log.0.lock().expect("not poisoned"), [(5, true), (5, false)]);
    }

    #[test]
    fn setting_the_same_level_again_says_nothing() {
        let log = Arc::new(Log::default());
        let line = Line::new(log.clone(), 1);
        line.set(false);
        line.set(true);
        line.set(true);
        assert_eq!(*log.0.lock().expect("not poisoned"), [(1, true)]);
    }
}
