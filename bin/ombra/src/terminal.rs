//! The terminal: raw mode that is undone when the process ends, the escape keys, messages that survive raw mode.
//!
//! `run` takes a [`Raw`] for as long as the guest has the terminal. Besides its drop, the panic hook calls [`restore`], and
//! the signal thread, for signals that others send and for SIGBUS. One lock, a leaf: the saved settings.
//!
//! Left out: SIGKILL, and what the process does to itself without a panic (SIGSEGV, SIGILL, SIGFPE, abort). Handlers for those
//! would have to run in the thread that failed, and installing them is unsafe; a shell sets its terminal right by itself.

use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Write};
use std::io::{stdin, stdout};
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

/// The settings to go back to while the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether a person sits at both ends: only then the guest gets the keys as they are struck, Ctrl-C among them.
pub(crate) fn is_interactive() -> bool {
    isatty(stdin()) && isatty(stdout())
}

/// Rows and columns, where stdout is a terminal that knows them.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Raw mode, as long as it lives.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Makes the terminal raw.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn enter() -> io::Result<Raw> {
        let before = tcgetattr(stdin())?;
        *saved() = Some(before);
        enforce();
        Ok(Raw(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn saved() -> std::sync::MutexGuard<'static, Option<Termios>> {
    // Settings are replaced whole: a panic in between leaves nothing half done.
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the terminal raw again if it should be: a shell that stopped and continued us has set it as it likes.
pub(crate) fn enforce() {
    if let Some(before) = saved().as_ref() {
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(stdin(), OptionalActions::Now, &raw);
    }
}

/// Gives the terminal back, if it was taken. Waits for nobody: not for a terminal that nobody reads or that is stopped, nor
/// for a thread that is stuck in writing to it.
pub(crate) fn restore() {
    // Not in the condition, which would hold the lock to the end.
    let before = saved().take();
    let Some(before) = before else { return };
    // Not after all output is through.
    let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    let stdout = stdout();
    let mut poll = [PollFd::new(&stdout, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0) {
        // Guests switch line wrap off and the cursor invisible, and end without undoing it. Past the standard library's
        // lock, which a writer that is stuck holds.
        let _ = rustix::io::write(&stdout, b"\x1b[?7h\x1b[?25h");
    }
}

/// stderr, with the carriage returns that a raw terminal needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if saved().is_none() {
            return io::stderr().write(bytes);
        }
        let mut text = Vec::with_capacity(bytes.len() + 8);
        for &byte in bytes {
            if byte == b'\n' {
                text.push(b'\r');
            }
            text.push(byte);
        }
        io::stderr().write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Messages {
    type Writer = Messages;

    fn make_writer(&'a self) -> Messages {
        Messages
    }
}

/// What the keys struck mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    /// For the guest.
    Guest(u8),
    /// Ctrl-A X.
    Quit,
    /// Ctrl-A H.
    Help,
}

/// Finds the escape sequences in what is typed.
#[derive(Default, Debug)]
pub(crate) struct Keys {
    escaped: bool,
}

const CTRL_A: u8 = 1;

impl Keys {
    /// What the next byte means; `None` where it takes another one to tell, or means nothing.
    pub(crate) fn key(&mut self, byte: u8) -> Option<Key> {
        if !self.escaped {
            self.escaped = byte == CTRL_A;
            return (!self.escaped).then_some(Key::Guest(byte));
        }
        self.escaped = false;
        match byte {
            b'x' | b'X' => Some(Key::Quit),
            b'h' | b'H' | b'?' => Some(Key::Help),
            CTRL_A | b'a' | b'A' => Some(Key::Guest(CTRL_A)),
            _ => None,
        }
    }
}

/// The answer to Ctrl-A H.
pub(crate) const HELP: &str = "\nombra: Ctrl-A X quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H shows this\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        bytes.iter().filter_map(|&byte| keys.key(byte)).collect()
    }

    #[test]
    fn ordinary_keys_and_control_c_go_to_the_guest() {
        assert_eq!(keys(b"x\x03"), [Key::Guest(b'x'), Key::Guest(3)]);
    }

    #[test]
    fn control_a_is_an_escape() {
        assert_eq!(keys(b"\x01x"), [Key::Quit]);
        assert_eq!(keys(b"\x01h"), [Key::Help]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01zx"), [Key::Guest(b'x')]);
    }
}
