//! The keyboard controller, with a keyboard that is there but is never typed on, and no mouse.
//!
//! Source: the IBM PS/2 technical reference (controller and keyboard commands). It exists so that operating systems that look
//! for it find it at once, and for the reset pulse (command 0xFE), which is the oldest way to reboot a PC.
//!
//! Left out: key presses (and so scan code translation but of the keyboard's ID), the mouse, passwords, A20 (a latch in the output
//! port; addresses never wrap).

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::bytewise;
use crate::device::{decode, encode};
use crate::{At, BusDevice, BusFault, Device, Line, PowerRequest, PowerSink, RestoreError, Saved, WindowId};

/// The data port.
pub const DATA: WindowId = WindowId(0);
/// The status and command port.
pub const COMMAND: WindowId = WindowId(1);
/// Where a PC has them.
pub const PORTS: [(RangeInclusive<u64>, WindowId); 2] = [(0x60..=0x60, DATA), (0x64..=0x64, COMMAND)];

// Status register.
const OUTPUT_FULL: u8 = 0x01;
const LAST_WAS_COMMAND: u8 = 0x08;
const UNLOCKED: u8 = 0x10;
const FROM_MOUSE: u8 = 0x20;
// Command byte.
const KEYBOARD_INTERRUPT: u8 = 0x01;
const SYSTEM: u8 = 0x04;
const KEYBOARD_OFF: u8 = 0x10;
const MOUSE_OFF: u8 = 0x20;
const TRANSLATE: u8 = 0x40;
// Output port.
const NOT_RESET: u8 = 0x01;
const A20: u8 = 0x02;
// Keyboard answers.
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const TEST_PASSED: u8 = 0xaa;
/// Answers that the keyboard keeps while it is switched off; a real one has 16 bytes.
const KEYBOARD_ROOM: usize = 16;

/// What the next byte at the data port belongs to.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Expect {
    Keyboard,
    /// The keyboard's command, of which this is the parameter.
    KeyboardParameter(u8),
    /// A byte of the controller's RAM; 0 is the command byte.
    Ram(u8),
    OutputPort,
    /// To be shown as if it came from there.
    Echo,
    Mouse,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    /// The controller's RAM; the first is the command byte.
    ram: [u8; 32],
    expect: Expect,
    last_was_command: bool,
    output_port: u8,
    /// The byte at the data port, and whether it is the keyboard's.
    output: Option<(u8, bool)>,
    /// Whether the byte at the data port came over the mouse's port.
    from_mouse: bool,
    /// What the data port last gave.
    last: u8,
    /// Answers of the keyboard that wait for the data port.
    keyboard: VecDeque<u8>,
    scan_codes: u8,
    last_sent: u8,
}

impl State {
    fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = KEYBOARD_INTERRUPT | SYSTEM | MOUSE_OFF | TRANSLATE;
        Self {
            ram,
            expect: Expect::Keyboard,
            last_was_command: false,
            output_port: NOT_RESET | A20,
            output: None,
            from_mouse: false,
            last: 0,
            keyboard: VecDeque::new(),
            scan_codes: 2,
            last_sent: 0,
        }
    }
}

/// The keyboard controller.
pub struct I8042 {
    // Wiring.
    irq: Line,
    power: Arc<dyn PowerSink>,
    quiesced: bool,
    // Guest-visible state.
    state: State,
}

impl I8042 {
    /// As firmware leaves it: tested, keyboard on. `irq` is IRQ 1.
    #[must_use]
    pub fn new(irq: Line, power: Arc<dyn PowerSink>) -> Self {
        Self { irq, power, quiesced: false, state: State::new() }
    }

    fn command_byte(&self) -> u8 {
        self.state.ram[0]
    }

    /// Fills the data port if it is empty, and derives the interrupt.
    fn sync(&mut self) {
        if self.state.output.is_none() && self.command_byte() & KEYBOARD_OFF == 0 {
            self.state.output = self.state.keyboard.pop_front().map(|byte| (byte, true));
            self.state.from_mouse = false;
        }
        if self.quiesced {
            return;
        }
        let enabled = self.command_byte() & KEYBOARD_INTERRUPT != 0;
        self.irq.set(enabled && self.state.output.is_some() && !self.state.from_mouse);
    }

    /// The controller answers; an unread byte of the keyboard goes back to its queue.
    fn answer(&mut self, byte: u8, from_mouse: bool) {
        if let Some((unread, true)) = self.state.output.take() {
            self.state.keyboard.push_front(unread);
        }
        self.state.output = Some((byte, false));
        self.state.from_mouse = from_mouse;
    }

    fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.state.keyboard.len() < KEYBOARD_ROOM {
                self.state.keyboard.push_back(*byte);
            }
            self.state.last_sent = *byte;
        }
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.state.output.take() {
            self.state.last = byte;
            // The line falls between two bytes: each is an edge.
            if !self.quiesced {
                self.irq.set(false);
            }
        }
        self.sync();
        self.state.last
    }

    fn status(&self) -> u8 {
        let mut status = UNLOCKED | self.command_byte() & SYSTEM;
        if self.state.output.is_some() {
            status |= OUTPUT_FULL;
            if self.state.from_mouse {
                status |= FROM_MOUSE;
            }
        }
        if self.state.last_was_command {
            status |= LAST_WAS_COMMAND;
        }
        status
    }

    fn set_output_port(&mut self, value: u8) {
        self.state.output_port = value & (NOT_RESET | A20);
        if value & NOT_RESET == 0 {
            self.power.request(PowerRequest::Reset);
        }
    }

    fn command(&mut self, command: u8) {
        self.state.last_was_command = true;
        self.state.expect = Expect::Keyboard;
        match command {
            0x20..=0x3f => self.answer(self.state.ram[usize::from(command & 0x1f)], false),
            0x60..=0x7f => self.state.expect = Expect::Ram(command & 0x1f),
            0xa7 => self.state.ram[0] |= MOUSE_OFF,
            0xa8 => self.state.ram[0] &= !MOUSE_OFF,
            // Mouse port: the clock line is stuck low.
            0xa9 => self.answer(0x01, false),
            0xaa => {
                self.state.ram[0] |= SYSTEM;
                self.answer(0x55, false);
            }
            0xab => self.answer(0, false),
            0xad => self.state.ram[0] |= KEYBOARD_OFF,
            0xae => self.state.ram[0] &= !KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => self.answer(0x80, false),
            0xd0 => {
                let full = u8::from(self.state.output.is_some()) << 4;
                self.answer(self.state.output_port | full, false);
            }
            0xd1 => self.state.expect = Expect::OutputPort,
            // With no mouse port, its loopback comes back as the keyboard's: that is how systems see at once that there is none.
            0xd2 | 0xd3 => self.state.expect = Expect::Echo,
            0xd4 => self.state.expect = Expect::Mouse,
            0xf0..=0xff if command & 1 == 0 => self.power.request(PowerRequest::Reset),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.state.last_was_command = false;
        match std::mem::replace(&mut self.state.expect, Expect::Keyboard) {
            Expect::Keyboard => self.keyboard_command(value),
            Expect::KeyboardParameter(command) => self.keyboard_parameter(command, value),
            Expect::Ram(index) => self.state.ram[usize::from(index & 0x1f)] = value,
            Expect::OutputPort => self.set_output_port(value),
            Expect::Echo => self.answer(value, false),
            // Nobody there: the controller reports a timeout as a resend request from the mouse.
            Expect::Mouse => self.answer(RESEND, true),
        }
    }

    fn keyboard_command(&mut self, command: u8) {
        // Talking to the keyboard switches it on.
        self.state.ram[0] &= !KEYBOARD_OFF;
        match command {
            0xed | 0xf0 | 0xf3 => {
                self.state.expect = Expect::KeyboardParameter(command);
                self.send(&[ACK]);
            }
            0xee => self.send(&[0xee]),
            0xf2 => {
                let second = self.translated(0x83);
                self.send(&[ACK, 0xab, second]);
            }
            0xf4 => self.send(&[ACK]),
            0xf5 | 0xf6 => {
                self.state.scan_codes = 2;
                self.send(&[ACK]);
            }
            0xfe => self.send(&[self.state.last_sent]),
            0xff => {
                self.state.scan_codes = 2;
                self.state.keyboard.clear();
                self.send(&[ACK, TEST_PASSED]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    fn keyboard_parameter(&mut self, command: u8, value: u8) {
        match (command, value) {
            (0xf0, 0) => {
                let set = self.translated(self.state.scan_codes);
                self.send(&[ACK, set]);
            }
            (0xf0, 1..=3) => {
                self.state.scan_codes = value;
                self.send(&[ACK]);
            }
            (0xf0, _) => self.send(&[RESEND]),
            _ => self.send(&[ACK]),
        }
    }

    /// What the controller's translation makes of the few bytes here that look like scan codes.
    fn translated(&self, byte: u8) -> u8 {
        if self.command_byte() & TRANSLATE == 0 {
            return byte;
        }
        match byte {
            0x01 => 0x43,
            0x02 | 0x83 => 0x41,
            0x03 => 0x3f,
            other => other,
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, at: At, data: &mut [u8]) -> Result<(), BusFault> {
        bytewise::read(at, data, |offset| match (at.window, offset) {
            (DATA, 0) => self.read_data(),
            (COMMAND, 0) => self.status(),
            _ => 0xff,
        });
        Ok(())
    }

    fn write(&mut self, at: At, data: &[u8]) -> Result<(), BusFault> {
        bytewise::write(at, data, |offset, value| match (at.window, offset) {
            (DATA, 0) => self.write_data(value),
            (COMMAND, 0) => self.command(value),
            _ => {}
        });
        self.sync();
        Ok(())
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }
    fn reset(&mut self) {
        self.state = State::new();
        self.irq.set(false);
    }
    fn quiesce(&mut self) {
        self.quiesced = true;
    }
    fn resume(&mut self) {
        self.quiesced = false;
        self.sync();
    }
    fn save(&self) -> Saved {
        encode(&self.state)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = decode("i8042", saved)?;
        // One more than it holds: a byte can come back from the data port.
        if state.keyboard.len() > KEYBOARD_ROOM + 1 {
            return Err(RestoreError::Impossible { device: "i8042", what: "the keyboard has no such room" });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{TestClock, TestPower, Wires, acts, hammer, inb, outb};

    fn bench() -> (I8042, Arc<Wires>, Arc<TestPower>) {
        let (wires, power) = (Wires::new(), TestPower::new());
        (I8042::new(wires.line(1), power.clone()), wires, power)
    }

    fn drain(chip: &mut I8042) -> Vec<u8> {
        let mut bytes = Vec::new();
        while inb(chip, COMMAND, 0) & OUTPUT_FULL != 0 {
            bytes.push(inb(chip, DATA, 0));
        }
        bytes
    }

    #[test]
    fn the_self_test_passes_and_ports_report() {
        let (mut chip, _, _) = bench();
        for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 1)] {
            outb(&mut chip, COMMAND, 0, command);
            assert_eq!(drain(&mut chip), [answer]);
        }
    }

    #[test]
    fn the_keyboard_answers_and_each_byte_is_an_edge() {
        let (mut chip, wires, _) = bench();
        outb(&mut chip, DATA, 0, 0xff);
        assert_eq!(drain(&mut chip), [ACK, TEST_PASSED]);
        assert_eq!(wires.edges(1), 2);
        assert!(!wires.high(1));
        outb(&mut chip, DATA, 0, 0xf2);
        assert_eq!(drain(&mut chip), [ACK, 0xab, 0x41]);
        outb(&mut chip, DATA, 0, 0xed);
        outb(&mut chip, DATA, 0, 7);
        assert_eq!(drain(&mut chip), [ACK, ACK]);
        outb(&mut chip, DATA, 0, 0x12);
        assert_eq!(drain(&mut chip), [RESEND]);
    }

    #[test]
    fn a_keyboard_that_is_off_holds_its_answers_back() {
        let (mut chip, wires, _) = bench();
        outb(&mut chip, DATA, 0, 0xee);
        outb(&mut chip, COMMAND, 0, 0xad);
        outb(&mut chip, COMMAND, 0, 0x20);
        let command_byte = inb(&mut chip, DATA, 0);
        assert_eq!(command_byte & KEYBOARD_OFF, KEYBOARD_OFF);
        assert_eq!(drain(&mut chip), []);
        assert!(!wires.high(1));
        outb(&mut chip, COMMAND, 0, 0xae);
        assert_eq!(drain(&mut chip), [0xee]);
    }

    #[test]
    fn there_is_no_mouse() {
        let (mut chip, wires, _) = bench();
        outb(&mut chip, COMMAND, 0, 0xd3);
        outb(&mut chip, DATA, 0, 0x5a);
        assert_eq!(inb(&mut chip, COMMAND, 0) & FROM_MOUSE, 0);
        drain(&mut chip);
        let edges = wires.edges(1);
        outb(&mut chip, COMMAND, 0, 0xd4);
        outb(&mut chip, DATA, 0, 0xff);
        assert_eq!(inb(&mut chip, COMMAND, 0) & FROM_MOUSE, FROM_MOUSE);
        assert_eq!(drain(&mut chip), [RESEND]);
        assert_eq!(wires.edges(1), edges);
    }

    #[test]
    fn the_pulse_and_the_output_port_reset() {
        let (mut chip, _, power) = bench();
        outb(&mut chip, COMMAND, 0, 0xff);
        assert_eq!(power.requests(), [], "a pulse of no line");
        outb(&mut chip, COMMAND, 0, 0xfe);
        outb(&mut chip, COMMAND, 0, 0xd1);
        outb(&mut chip, DATA, 0, 0xdf);
        outb(&mut chip, COMMAND, 0, 0xd1);
        outb(&mut chip, DATA, 0, 0xde);
        assert_eq!(power.requests(), [PowerRequest::Reset; 2]);
    }

    proptest! {
        #[test]
        fn no_register_access_panics(acts in acts()) {
            let (mut chip, _, _) = bench();
            hammer(&mut chip, &PORTS, &acts, &TestClock::new(), |_| {});
            let saved = chip.save();
            chip.restore(&saved).expect("what can be reached can be restored");
        }
    }
}
