//! The interrupt fabric: one multiplex block for each line between devices and interrupt controllers.
//!
//! A block's route says who owns the line: the guest, whose controllers then see it as if the block weren't there; the machine's own
//! side (the VMM), which has a status register of edges, the lines' levels, and a mask; or both, where devices of either share the
//! line. Whatever of it isn't masked asserts one signal.
//!
//! Rerouting loses nothing and doubles nothing. An edge belongs to whoever owned the line when it came: what the guest's controllers
//! have noted stays theirs; what the VMM hasn't taken goes with the line to its new owner. Levels are placed, not raised, at
//! controllers ([`LineSink::place_pin`]), so that only inputs that are level-triggered take notice.
//!
//! Threads and lock order: called with a device's lock and its line's held, takes the block's lock and with it the controllers'. Nobody
//! else's: the signal is told with no lock held.

use crate::line::{Edge, LineSink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Who owns a line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Route {
    /// The guest's interrupt controllers.
    #[default]
    Guest,
    /// The machine's own side.
    Vmm,
    /// Both, for a line that devices of either share.
    Both,
}

impl Route {
    const fn reaches_guest(self) -> bool {
        !matches!(self, Self::Vmm)
    }

    const fn reaches_vmm(self) -> bool {
        !matches!(self, Self::Guest)
    }
}

/// A line as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LineState {
    /// Who owns it.
    pub route: Route,
    /// Whether a device holds it high.
    pub high: bool,
    /// An edge that the VMM hasn't taken.
    pub status: bool,
    /// The VMM doesn't want to be signalled for it.
    pub masked: bool,
    /// How often it has risen.
    pub rises: u64,
    /// How many of these went to the guest's controllers, later ones that went with the line included.
    pub to_guest: u64,
    /// How many went to the VMM's status register. What finds its bit set already merges.
    pub to_vmm: u64,
    /// How often its owner has changed.
    pub reroutes: u64,
}

impl LineState {
    fn asserts(&self) -> bool {
        self.route.reaches_vmm() && !self.masked && (self.status || self.high)
    }
}

/// What is told when the signal to the VMM rises. Called by whoever drives a line or changes a register; must not come back to the block.
pub type Signal = Box<dyn Fn() + Send + Sync>;

/// The blocks of all lines, in front of what fans out to the guest's controllers.
pub struct Mux {
    guest: Arc<dyn LineSink>,
    lines: Box<[Mutex<LineState>]>,
    asserted: AtomicBool,
    signal: OnceLock<Signal>,
}

impl Mux {
    /// Blocks for `lines` lines, at most 256, all of which belong to the guest: inputs of `guest`.
    #[must_use]
    pub fn new(guest: Arc<dyn LineSink>, lines: usize) -> Self {
        let lines = (0..lines).map(|_| Mutex::default()).collect();
        Self { guest, lines, asserted: AtomicBool::new(false), signal: OnceLock::new() }
    }

    /// Says who is told when the signal rises. Once; later calls have no effect.
    pub fn connect(&self, signal: Signal) {
        let _ = self.signal.set(signal);
    }

    /// How many lines there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    fn lock(&self, line: u8) -> Option<MutexGuard<'_, LineState>> {
        self.lines.get(usize::from(line)).map(|line| line.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line as it stands; `None` where there is none.
    #[must_use]
    pub fn line(&self, line: u8) -> Option<LineState> {
        self.lock(line).map(|state| *state)
    }

    /// Whether the signal to the VMM is asserted.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        self.asserted.load(Ordering::Acquire)
    }

    /// Gives a line to somebody else. False: there is no such line.
    pub fn set_route(&self, line: u8, route: Route) -> bool {
        let Some(mut state) = self.lock(line) else { return false };
        let old = std::mem::replace(&mut state.route, route);
        if old != route {
            state.reroutes += 1;
            // An edge that nobody has taken goes with the line; one that goes nowhere else stays.
            let carried = state.status && !route.reaches_vmm();
            state.status &= !carried;
            match (old.reaches_guest(), route.reaches_guest()) {
                (true, false) => self.guest.place_pin(line, false),
                (false, true) if carried => {
                    state.to_guest += 1;
                    self.guest.set_pin(line, true);
                    if !state.high {
                        self.guest.set_pin(line, false);
                    }
                }
                (false, true) => self.guest.place_pin(line, state.high),
                _ => {}
            }
        }
        drop(state);
        self.update();
        true
    }

    /// The VMM's side: takes the edge that a line's status holds. False: it holds none.
    pub fn take_status(&self, line: u8) -> bool {
        let Some(mut state) = self.lock(line) else { return false };
        let taken = std::mem::take(&mut state.status);
        drop(state);
        self.update();
        taken
    }

    /// The VMM's side: whether it wants to be signalled for a line. False: there is no such line.
    pub fn set_masked(&self, line: u8, masked: bool) -> bool {
        let Some(mut state) = self.lock(line) else { return false };
        state.masked = masked;
        drop(state);
        self.update();
        true
    }

    /// The signal follows from the lines. Looked at again after it is set, so that the last look is the newest.
    fn update(&self) {
        loop {
            let asserts =
                (0..self.lines.len()).any(|n| self.lock(n as u8).is_some_and(|line| line.asserts()));
            let before = self.asserted.swap(asserts, Ordering::SeqCst);
            if before == asserts {
                return;
            }
            if asserts && let Some(signal) = self.signal.get() {
                signal();
            }
        }
    }
}

impl LineSink for Mux {
    fn set_pin(&self, pin: u8, high: bool) {
        let Some(mut state) = self.lock(pin) else { return };
        let rises = high && !state.high;
        state.high = high;
        state.rises += u64::from(rises);
        let route = state.route;
        if route.reaches_guest() {
            state.to_guest += u64::from(rises);
            self.guest.set_pin(pin, high);
        }
        if route.reaches_vmm() {
            state.to_vmm += u64::from(rises);
            state.status |= rises;
            drop(state);
            self.update();
        }
    }

    fn place_pin(&self, pin: u8, high: bool) {
        let Some(mut state) = self.lock(pin) else { return };
        state.high = high;
        if state.route.reaches_guest() {
            self.guest.place_pin(pin, high);
        }
    }

    fn last_edge(&self, pin: u8) -> Edge {
        match self.lock(pin) {
            // An edge that the VMM hasn't taken would swallow the next one.
            Some(state) if state.status => Edge::Held,
            Some(state) if state.route.reaches_guest() => self.guest.last_edge(pin),
            _ => Edge::Gone,
        }
    }
}

#[cfg(test)]
mod tests;
