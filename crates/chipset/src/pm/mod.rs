//! ACPI power management: the PM1a event and control blocks, the PM timer, and the two old ways to reset a PC.
//!
//! Source: ACPI 6.5, 4.8 (fixed hardware). The FADT gives no SMI command port, so SCI_EN is always set. The timer is 32 bits
//! wide (`TMR_VAL_EXT`) and computed from the [`Clock`]; an alarm is only set while the guest wants its overflow interrupt.
//! The SCI is level-triggered. S5 is the only sleep state; its SLP_TYP is 0, which kernels written for QEMU hard-code.
//! Port 0xCF9 lies within the PCI configuration ports and is answered by [`crate::pci`], which owns a [`ResetControl`].
//!
//! Left out: GPE blocks, sleep button, S1 to S4, the RTC's wake-up alarm.

mod spec;

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{
    Alarm, At, BusDevice, BusFault, Clock, Device, Line, Nanos, PowerRequest, PowerSink, RestoreError, Saved,
    WindowId,
};
use spec::{Control, Event};

/// PM1a event block: status and enable, two bytes each.
pub const EVENT: WindowId = WindowId(0);
/// PM1a control block, two bytes.
pub const CONTROL: WindowId = WindowId(1);
/// The PM timer, four bytes.
pub const TIMER: WindowId = WindowId(2);
/// Port 0x92: A20 and fast reset.
pub const PORT_92: WindowId = WindowId(3);
/// Where the machine's tables say they are.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 4] =
    [(0x600..=0x603, EVENT), (0x604..=0x605, CONTROL), (0x608..=0x60b, TIMER), (0x92..=0x92, PORT_92)];

/// The reset register that the FADT names.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5.
pub const S5_SLEEP_TYPE: u8 = 0;
/// The PM timer's frequency in Hz.
pub const TIMER_HZ: u64 = 3_579_545;

/// The reset control register at port 0xCF9 (ICH9 data sheet, 13.7.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ResetControl(u8);

impl ResetControl {
    /// The register; the reset bit itself reads 0.
    #[must_use]
    pub fn read(self) -> u8 {
        self.0
    }

    /// Writes it; a set bit 2 resets, whichever kind bits 1 and 3 choose.
    pub fn write(&mut self, value: u8, power: &dyn PowerSink) {
        self.0 = value & 0x0a;
        if value & 0x04 != 0 {
            power.request(PowerRequest::Reset);
        }
    }
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    status: Event,
    enable: Event,
    control: Control,
    /// How often the timer's top bit had changed when it was last looked at.
    half_turns: u64,
    /// Port 0x92.
    port_92: u8,
}

impl State {
    fn new(half_turns: u64) -> Self {
        Self {
            status: Event::empty(),
            enable: Event::empty(),
            control: Control::SCI_EN,
            half_turns,
            port_92: A20,
        }
    }
}

/// Port 0x92's A20 gate. The machine doesn't wrap addresses; the bit is only kept.
const A20: u8 = 0x02;
/// Port 0x92's fast reset.
const FAST_RESET: u8 = 0x01;

/// The power management block.
pub struct Pm {
    // Wiring.
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    sci: Line,
    power: Arc<dyn PowerSink>,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl Pm {
    /// A block with nothing enabled. `sci` is the ACPI interrupt.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, alarm: Alarm, sci: Line, power: Arc<dyn PowerSink>) -> Self {
        let mut pm = Self { clock, alarm, sci, power, quiesced: false, state: State::new(0) };
        pm.state.half_turns = pm.half_turns();
        pm
    }

    /// To be called when the alarm rings.
    pub fn on_alarm(&mut self) {
        self.sync();
    }

    /// The user pressed the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.state.status |= Event::POWER_BUTTON;
        self.sync();
    }

    fn ticks(&self) -> u64 {
        self.clock.now().to_ticks(TIMER_HZ)
    }

    fn half_turns(&self) -> u64 {
        self.ticks() >> 31
    }

    /// Brings status, line and alarm up to date.
    fn sync(&mut self) {
        let half_turns = self.half_turns();
        if half_turns != self.state.half_turns {
            self.state.half_turns = half_turns;
            self.state.status |= Event::TIMER;
        }
        if self.quiesced {
            return;
        }
        let pending = self.state.status & self.state.enable & Event::INTERRUPTS;
        self.sci.set(!pending.is_empty());
        let wanted = self.state.enable.contains(Event::TIMER) && !self.state.status.contains(Event::TIMER);
        self.alarm.set(wanted.then(|| Nanos::from_ticks((half_turns + 1) << 31, TIMER_HZ)));
    }

    fn write_control(&mut self, value: u16) {
        let written = Control::from_bits_retain(value);
        self.state.control = written & Control::KEPT | Control::SCI_EN;
        if written.contains(Control::SLP_EN) && written.sleep_type() == S5_SLEEP_TYPE {
            self.power.request(PowerRequest::PowerOff);
        }
    }

    fn write_event(&mut self, offset: u64, value: u8) {
        let bits = Event::from_bits_truncate(u16::from(value) << (8 * (offset & 1)));
        if offset < 2 {
            self.state.status &= !bits;
        } else {
            let kept = Event::from_bits_truncate(0xff << (8 * (!offset & 1)));
            self.state.enable = self.state.enable & kept | bits;
        }
    }

    fn write_port_92(&mut self, value: u8) {
        let rising = value & !self.state.port_92 & FAST_RESET != 0;
        self.state.port_92 = value & (A20 | FAST_RESET);
        if rising {
            self.power.request(PowerRequest::Reset);
        }
    }
}

impl BusDevice for Pm {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        self.sync();
        let register = match at.window {
            EVENT => u64::from(self.state.status.bits()) | u64::from(self.state.enable.bits()) << 16,
            CONTROL => u64::from(self.state.control.bits()),
            TIMER => self.ticks() & 0xffff_ffff,
            PORT_92 => u64::from(self.state.port_92),
            _ => return Err(BusFault),
        };
        bytewise::fill(data, register.checked_shr(8 * at.offset as u32).unwrap_or(0));
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        self.sync();
        match (at.window, at.offset, data) {
            (EVENT, _, _) => bytewise::write(at, data, |offset, value| self.write_event(offset, value)),
            (CONTROL, 0, [low]) => {
                let high = self.state.control.bits() & 0xff00;
                self.write_control(high | u16::from(*low));
            }
            (CONTROL, 0, _) => self.write_control(bytewise::value(data) as u16),
            (CONTROL, 1, [high]) => {
                let low = self.state.control.bits() & 0x00ff;
                self.write_control(low | u16::from(*high) << 8);
            }
            // The timer is read-only.
            (TIMER, _, _) => {}
            (PORT_92, 0, [value]) => self.write_port_92(*value),
            _ => return Err(BusFault),
        }
        self.sync();
        Ok(())
    }
}

impl Device for Pm {
    fn name(&self) -> &str {
        "pm"
    }
    fn reset(&mut self) {
        self.state = State::new(self.half_turns());
        self.sci.set(false);
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
        self.state = decode("pm", saved)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{TestAlarm, TestClock, TestPower, Wires, acts, hammer, inb, inl, outb};

    struct Bench {
        clock: Arc<TestClock>,
        alarm: Arc<TestAlarm>,
        wires: Arc<Wires>,
        power: Arc<TestPower>,
        pm: Pm,
    }

    fn bench() -> Bench {
        let (clock, alarm, wires, power) =
            (TestClock::new(), TestAlarm::new(), Wires::new(), TestPower::new());
        let pm = Pm::new(clock.clone(), alarm.clone(), wires.line(9), power.clone());
        Bench { clock, alarm, wires, power, pm }
    }

    fn outw(pm: &mut Pm, window: WindowId, offset: u64, value: u16) {
        pm.write(At { window, offset }, &value.to_le_bytes()).expect("the register exists");
    }

    #[test]
    fn the_timer_runs_at_its_frequency_and_wraps_at_32_bits() {
        let mut b = bench();
        b.clock.set(1_000_000_000);
        assert_eq!(inl(&mut b.pm, TIMER, 0), 3_579_545);
        b.clock.set(Nanos::from_ticks((1 << 32) + 5, TIMER_HZ).0);
        assert_eq!(inl(&mut b.pm, TIMER, 0), 5);
    }

    #[test]
    fn the_timer_interrupts_when_its_top_bit_changes() {
        let mut b = bench();
        outw(&mut b.pm, EVENT, 2, 1);
        b.clock.set(b.alarm.at().expect("the alarm is set"));
        b.pm.on_alarm();
        assert_eq!(inl(&mut b.pm, TIMER, 0), 1 << 31);
        assert!(b.wires.high(9));
        assert_eq!(inl(&mut b.pm, EVENT, 0), 0x0001_0001);
        outw(&mut b.pm, EVENT, 0, 1);
        assert!(!b.wires.high(9));
        assert!(b.alarm.at().is_some());
    }

    #[test]
    fn s5_powers_off_and_other_sleeps_do_nothing() {
        let mut b = bench();
        outw(&mut b.pm, CONTROL, 0, 0x2000 | 5 << 10);
        assert_eq!(b.power.requests(), []);
        outw(&mut b.pm, CONTROL, 0, 0x2000);
        assert_eq!(b.power.requests(), [PowerRequest::PowerOff]);
        assert_eq!(inb(&mut b.pm, CONTROL, 0) & 1, 1, "ACPI is always enabled");
        assert_eq!(inb(&mut b.pm, CONTROL, 1) & 0x20, 0, "SLP_EN reads 0");
    }

    #[test]
    fn the_power_button_raises_the_sci_if_it_is_enabled() {
        let mut b = bench();
        b.pm.press_power_button();
        assert!(!b.wires.high(9));
        outb(&mut b.pm, EVENT, 3, 1);
        assert!(b.wires.high(9));
        outb(&mut b.pm, EVENT, 1, 1);
        assert!(!b.wires.high(9));
    }

    #[test]
    fn port_92_resets_on_the_rising_bit_and_keeps_a20() {
        let mut b = bench();
        assert_eq!(inb(&mut b.pm, PORT_92, 0), 2);
        outb(&mut b.pm, PORT_92, 0, 0);
        assert_eq!(inb(&mut b.pm, PORT_92, 0), 0);
        outb(&mut b.pm, PORT_92, 0, 3);
        outb(&mut b.pm, PORT_92, 0, 3);
        assert_eq!(b.power.requests(), [PowerRequest::Reset]);
    }

    #[test]
    fn the_reset_register_resets_with_every_value_in_use() {
        let power = TestPower::new();
        let mut control = ResetControl::default();
        control.write(0x02, &*power);
        assert_eq!(power.requests(), []);
        for value in [0x06, 0x0e, 0x04] {
            control.write(value, &*power);
        }
        assert_eq!(power.requests(), [PowerRequest::Reset; 3]);
    }

    proptest! {
        #[test]
        fn no_register_access_panics(acts in acts()) {
            let mut b = bench();
            hammer(&mut b.pm, &PORTS, &acts, &b.clock, Pm::on_alarm);
            let saved = b.pm.save();
            b.pm.restore(&saved).expect("its own format");
        }
    }
}
