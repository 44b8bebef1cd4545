//! The host's half of the agreement with `guests/init`: the kernel's log, the control lines, stdin's way into the guest.
//!
//! COM1 carries the kernel's messages, COM2 the command's stdin and stdout, COM3 its stderr, COM4 lines of control (see the
//! head of `guests/init/src/main.rs`). The machine's writer threads call [`LogWriter`] and [`ControlWriter`]; a thread of
//! [`Forward::run`] reads stdin. Locks are leaves.

use crate::terminal::{HELP, Key, Keys, Messages};
use machine::Input;
use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Kernel messages that are kept, in bytes. A boot writes about 30 KiB.
const LOG_LIMIT: usize = 256 << 10;
/// Lines of the log that are shown when a guest fails.
const TAIL: usize = 30;
/// Pieces of typed input, of at most 4 KiB each, that wait for the guest.
const PIECES: usize = 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last of what the kernel said.
#[derive(Clone, Default, Debug)]
pub(crate) struct Log(Arc<Mutex<VecDeque<u8>>>);

impl Log {
    /// The last lines, each with a newline.
    pub(crate) fn tail(&self) -> String {
        let bytes: Vec<u8> = lock(&self.0).iter().copied().filter(|&byte| byte != b'\r').collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].iter().flat_map(|line| [line, "\n"]).collect()
    }
}

/// Fills a [`Log`].
#[derive(Debug)]
pub(crate) struct LogWriter {
    pub(crate) log: Log,
    /// Messages are shown as they come, too.
    pub(crate) show: bool,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = lock(&self.log.0);
        log.extend(bytes);
        let excess = log.len().saturating_sub(LOG_LIMIT);
        log.drain(..excess);
        drop(log);
        if self.show {
            let text: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != b'\r').collect();
            // stderr that is closed loses messages, not the guest.
            let _ = Messages.write_all(&text);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default, Debug)]
struct Told {
    ready: bool,
    status: Option<u8>,
}

/// What the guest's init has told.
#[derive(Clone, Default, Debug)]
pub(crate) struct Control(Arc<(Mutex<Told>, Condvar)>);

impl Control {
    /// The command's exit status, once it has ended.
    pub(crate) fn status(&self) -> Option<u8> {
        lock(&self.0.0).status
    }

    /// Waits until the guest takes input. Bytes sent earlier are lost when its kernel sets up the port.
    fn wait_until_ready(&self) {
        let mut told = lock(&self.0.0);
        while !told.ready {
            told = self.0.1.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn line(&self, line: &str) {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ready"] => {
                lock(&self.0.0).ready = true;
                self.0.1.notify_all();
            }
            // More than 255 a status can't be; the guest says nonsense then, and gets its low byte as a shell would give.
            ["exit", status] => {
                lock(&self.0.0).status = status.parse::<i32>().ok().map(|status| (status & 0xff) as u8);
            }
            _ => {}
        }
    }
}

/// Reads the guest's control lines.
#[derive(Debug)]
pub(crate) struct ControlWriter {
    pub(crate) control: Control,
    /// An unfinished line.
    line: Vec<u8>,
}

impl ControlWriter {
    pub(crate) fn new(control: Control) -> ControlWriter {
        ControlWriter { control, line: Vec::new() }
    }
}

impl Write for ControlWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                self.control.line(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            } else if self.line.len() < 256 {
                // No line of the agreement is longer; a guest that sends one fills no memory.
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial port's input that a thread of ours fills through a pipe.
#[derive(Debug)]
pub(crate) struct Piped(pub(crate) PipeReader);

impl Input for Piped {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, guest: &mut Vec<u8>) -> io::Result<bool> {
        // A pipe that polls readable gives at once what it has.
        let mut buffer = [0; 4096];
        let count = self.0.read(&mut buffer)?;
        guest.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }
}

/// What is done with stdin.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The port's input.
    pub(crate) port: PipeWriter,
    /// Where the guest's init listens, which is then waited for and told of the end.
    pub(crate) init: Option<(Control, Arc<Mutex<PipeWriter>>)>,
    /// Look for escape keys.
    pub(crate) keys: bool,
}

impl Forward {
    /// Reads `stdin` to its end, for the guest. Calls `quit` at Ctrl-A X.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn run(self, stdin: impl Read, quit: impl Fn()) -> io::Result<()> {
        if self.keys { self.keys(stdin, quit) } else { self.bytes(stdin) }
    }

    /// Without keys to watch for, reading waits for the guest, and whoever writes to us with it.
    fn bytes(mut self, mut stdin: impl Read) -> io::Result<()> {
        self.wait();
        let mut sent = 0;
        let mut buffer = [0; 4096];
        while let Some(count) = read(&mut stdin, &mut buffer) {
            // The machine is gone: so is who would read.
            if self.port.write_all(&buffer[..count]).is_err() {
                return Ok(());
            }
            sent += count as u64;
        }
        self.tell_the_end(sent);
        Ok(())
    }

    /// Reading may not wait for the guest, which may never come up or stop reading: the way out is among the keys. So another
    /// thread writes them.
    fn keys(self, mut stdin: impl Read, quit: impl Fn()) -> io::Result<()> {
        let (sender, pieces) = sync_channel(PIECES);
        let writer =
            thread::Builder::new().name("ombra-keys".to_owned()).spawn(move || self.write(&pieces))?;
        let mut keys = Keys::default();
        let mut buffer = [0; 4096];
        while let Some(count) = read(&mut stdin, &mut buffer) {
            let mut bytes = Vec::with_capacity(count);
            for &byte in &buffer[..count] {
                match keys.key(byte) {
                    Some(Key::Guest(byte)) => bytes.push(byte),
                    Some(Key::Quit) => quit(),
                    Some(Key::Help) => {
                        let _ = Messages.write_all(HELP.as_bytes());
                    }
                    None => {}
                }
            }
            if !bytes.is_empty() {
                // More than a guest lets wait is lost, as with any terminal.
                let _ = sender.try_send(bytes);
            }
        }
        drop(sender);
        // A panic has been reported by its own message.
        let _ = writer.join();
        Ok(())
    }

    fn write(mut self, pieces: &Receiver<Vec<u8>>) {
        self.wait();
        let mut sent = 0;
        for piece in pieces {
            if self.port.write_all(&piece).is_err() {
                return;
            }
            sent += piece.len() as u64;
        }
        self.tell_the_end(sent);
    }

    fn wait(&self) {
        if let Some((control, _)) = &self.init {
            control.wait_until_ready();
        }
    }

    fn tell_the_end(&self, sent: u64) {
        if let Some((_, lines)) = &self.init {
            let _ = lock(lines).write_all(format!("eof {sent}\n").as_bytes());
        }
    }
}

/// The next bytes; `None` at the end, and where there is nothing to read from.
fn read(from: &mut impl Read, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_lines_may_come_in_pieces() {
        let control = Control::default();
        let mut writer = ControlWriter::new(control.clone());
        writer.write_all(b"rea").unwrap();
        writer.write_all(b"dy\nexit ").unwrap();
        assert_eq!(control.status(), None);
        writer.write_all(b"143\n").unwrap();
        control.wait_until_ready();
        assert_eq!(control.status(), Some(143));
    }

    #[test]
    fn a_guest_that_sends_nonsense_has_no_status() {
        let control = Control::default();
        let mut writer = ControlWriter::new(control.clone());
        writer.write_all(&[b'x'; 100_000]).unwrap();
        writer.write_all(b"\nexit\nexit seven\nexit 1 2\n\xff\xfe\n").unwrap();
        assert_eq!(control.status(), None);
        assert!(writer.line.len() <= 256);
    }

    #[test]
    fn the_log_keeps_its_end() {
        let log = Log::default();
        let mut writer = LogWriter { log: log.clone(), show: false };
        for number in 0..100_000 {
            writeln!(writer, "line {number}\r").unwrap();
        }
        let tail = log.tail();
        assert_eq!(tail.lines().count(), TAIL);
        assert_eq!(tail.lines().last(), Some("line 99999"));
    }

    /// Input to forward, with the guest's end of the pipe and its init's words.
    fn typed() -> (Forward, PipeReader, Control) {
        let (guest, port) = io::pipe().unwrap();
        let (_, lines) = io::pipe().unwrap();
        let control = Control::default();
        let init = Some((control.clone(), Arc::new(Mutex::new(lines))));
        (Forward { port, init, keys: true }, guest, control)
    }

    #[test]
    fn keys_typed_before_the_guest_is_ready_wait_for_it() {
        let (forward, mut guest, control) = typed();
        forward.run(&b"early\x01x late"[..], || control.line("ready")).unwrap();
        let mut got = String::new();
        guest.read_to_string(&mut got).unwrap();
        assert_eq!(got, "early late");
    }

    #[test]
    fn the_escape_is_seen_though_the_guest_reads_nothing() {
        let (forward, guest, control) = typed();
        control.line("ready");
        let pasted = [vec![b'p'; 8 << 20], b"\x01x".to_vec()].concat();
        let guest = Mutex::new(Some(guest));
        forward.run(&pasted[..], || drop(lock(&guest).take())).unwrap();
        assert!(lock(&guest).is_none(), "Ctrl-A X was not seen");
    }
}
