//! The fan-out of interrupt lines: where a PC's lines go to both interrupt controllers.
//!
//! Pins of [`Gsi`] are ISA's IRQ 0-15 and, above, inputs of the I/O APIC only. IRQ 0 (the timer) is wired to the I/O APIC's input
//! 2, because input 0 is taken by the PIC's own output on a real board; IRQ 2 is the cascade and goes nowhere. The MADT says so.
//!
//! Threads and lock order: called with a device's lock held, takes one controller's lock after the other.

use chipset::apic::IOAPIC_PINS;
use chipset::{Edge, LineSink};
use std::sync::Arc;

/// Lines of the PIC pair.
const ISA_LINES: u8 = 16;
const TIMER: u8 = 0;
const CASCADE: u8 = 2;
/// The I/O APIC's input for the timer.
const TIMER_INPUT: u8 = 2;

/// Both interrupt controllers as one.
pub(crate) struct Gsi {
    pic: Arc<dyn LineSink>,
    ioapic: Arc<dyn LineSink>,
}

impl Gsi {
    pub(crate) fn new(pic: Arc<dyn LineSink>, ioapic: Arc<dyn LineSink>) -> Self {
        Self { pic, ioapic }
    }

    fn ioapic_input(pin: u8) -> u8 {
        if pin == TIMER { TIMER_INPUT } else { pin }
    }
}

impl LineSink for Gsi {
    fn set_pin(&self, pin: u8, high: bool) {
        if pin == CASCADE {
            return;
        }
        if pin < ISA_LINES {
            self.pic.set_pin(pin, high);
        }
        let input = Self::ioapic_input(pin);
        if input < IOAPIC_PINS {
            self.ioapic.set_pin(input, high);
        }
    }

    fn place_pin(&self, pin: u8, high: bool) {
        if pin == CASCADE {
            return;
        }
        if pin < ISA_LINES {
            self.pic.place_pin(pin, high);
        }
        let input = Self::ioapic_input(pin);
        if input < IOAPIC_PINS {
            self.ioapic.place_pin(input, high);
        }
    }

    fn last_edge(&self, pin: u8) -> Edge {
        if pin == CASCADE {
            return Edge::Gone;
        }
        let pic = if pin < ISA_LINES { self.pic.last_edge(pin) } else { Edge::Gone };
        pic.or(self.ioapic.last_edge(Self::ioapic_input(pin)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<u8>>);

    impl LineSink for Log {
        fn set_pin(&self, pin: u8, _: bool) {
            self.0.lock().expect("not poisoned").push(pin);
        }
    }

    #[test]
    fn the_timer_reaches_input_2_and_lines_above_15_only_the_ioapic() {
        let (pic, ioapic) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let gsi = Gsi::new(pic.clone(), ioapic.clone());
        for pin in [0, 2, 4, 15, 16, 23, 24, 255] {
            gsi.set_pin(pin, true);
        }
        assert_eq!(*pic.0.lock().expect("not poisoned"), [0, 4, 15]);
        assert_eq!(*ioapic.0.lock().expect("not poisoned"), [2, 4, 15, 16, 23]);
    }
}
