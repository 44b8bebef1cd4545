//! The host's half of the agreement with `guests/init`: the kernel's log, the control lines, stdin's way into the guest.
//!
//! COM1 carries the kernel's messages. The command's stdin, stdout, stderr and lines of control have ports of a virtio console each;
//! for kernels without a driver for that there are COM2 (stdin and stdout), COM3 and COM4 (see the head of
//! `guests/init/src/main.rs`). The machine's writer threads call [`LogWriter`] and [`ControlWriter`]; a thread of
//! [`Forward::run`] reads stdin. Locks are leaves.

use crate::terminal::{self, HELP, Key, Keys, Messages};
use machine::Input;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Kernel messages that are kept, in bytes. A boot writes about 30 KiB.
const LOG_LIMIT: usize = 256 << 10;
/// Lines of the log that are shown when a guest fails.
const TAIL: usize = 30;
/// Bytes that are passed on at once.
const PIECE: usize = 64 << 10;
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

/// How the guest's init reaches us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Serial ports.
    Serial,
    /// Ports of a virtio console.
    Console,
}

/// Stdout and stderr, in this order.
pub(crate) type Both = [u64; 2];

#[derive(Default, Debug)]
struct Told {
    ready: Option<Way>,
    status: Option<u8>,
    /// Bytes that the guest has sent in all, at its end.
    sent: Option<Both>,
    /// Bytes that we have written.
    written: Both,
    /// Where to say that the guest may switch itself off.
    bye: Option<PipeWriter>,
}

impl Told {
    /// More than 255 a status can't be; the guest says nonsense then, and gets its low byte as a shell would give.
    fn exit(&mut self, status: &str) {
        self.status = status.parse::<i32>().ok().map(|status| (status & 0xff) as u8);
    }

    /// Lets the guest go when everything is here.
    fn part(&mut self) {
        if self.sent.is_some_and(|sent| sent.iter().zip(&self.written).all(|(sent, here)| sent <= here))
            && let Some(mut bye) = self.bye.take()
        {
            // A guest that is gone needs no permission.
            let _ = bye.write_all(b"bye\n");
        }
    }
}

/// What the guest's init has told.
#[derive(Clone, Default, Debug)]
pub(crate) struct Control(Arc<(Mutex<Told>, Condvar)>);

impl Control {
    /// The command's exit status, once it has ended.
    pub(crate) fn status(&self) -> Option<u8> {
        lock(&self.0.0).status
    }

    /// Waits until the guest takes input, and says on which way. Bytes sent earlier are lost when its kernel sets up the port.
    fn wait_until_ready(&self) -> Way {
        let mut told = lock(&self.0.0);
        loop {
            if let Some(way) = told.ready {
                return way;
            }
            told = self.0.1.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Where to tell the guest that it may switch itself off.
    pub(crate) fn parts_by(&self, lines: PipeWriter) {
        lock(&self.0.0).bye = Some(lines);
    }

    fn written(&self, stream: usize, bytes: usize) {
        let mut told = lock(&self.0.0);
        told.written[stream] += bytes as u64;
        told.part();
    }

    fn line(&self, line: &str) {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["ready", way] => {
                lock(&self.0.0).ready = Some(if *way == "ports" { Way::Console } else { Way::Serial });
                self.0.1.notify_all();
            }
            ["exit", status] => lock(&self.0.0).exit(status),
            ["exit", status, output, errors] => {
                let mut told = lock(&self.0.0);
                told.exit(status);
                if let (Ok(output), Ok(errors)) = (output.parse(), errors.parse()) {
                    told.sent = Some([output, errors]);
                    told.part();
                }
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

/// Output of ours that counts what the guest's init wants to be sure of.
pub(crate) struct Counted {
    pub(crate) to: File,
    pub(crate) control: Control,
    /// Which of [`Both`].
    pub(crate) stream: usize,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.control.written(self.stream, count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Lines for the guest's init, on the way that it has taken.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) serial: PipeWriter,
    pub(crate) console: Option<PipeWriter>,
    pub(crate) control: Control,
}

impl Lines {
    /// The terminal's size; the guest reads it by itself when it starts, and hears of changes when it is ready.
    pub(crate) fn size(&mut self) {
        let (Some((rows, columns)), Some(way)) = (terminal::size(), lock(&self.control.0.0).ready) else {
            return;
        };
        self.tell(way, &format!("size {rows} {columns}\n"));
    }

    fn tell(&mut self, way: Way, line: &str) {
        let to = match (way, &mut self.console) {
            (Way::Console, Some(console)) => console,
            _ => &mut self.serial,
        };
        // A guest that is gone has no use for it.
        let _ = to.write_all(line.as_bytes());
    }
}

/// A port's input that a thread of ours fills through a pipe.
#[derive(Debug)]
pub(crate) struct Piped(pub(crate) PipeReader);

impl Input for Piped {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, guest: &mut Vec<u8>) -> io::Result<bool> {
        // A pipe that polls readable gives at once what it has.
        let start = guest.len();
        guest.resize(start + PIECE, 0);
        let count = self.0.read(&mut guest[start..]);
        guest.truncate(start + *count.as_ref().unwrap_or(&0));
        Ok(count? > 0)
    }
}

/// What is done with stdin.
#[derive(Debug)]
pub(crate) struct Forward {
    /// A serial port's input.
    pub(crate) port: PipeWriter,
    /// The same for a console's port, which is taken where the guest says so.
    pub(crate) console: Option<PipeWriter>,
    /// Where the guest's init listens, which is then waited for and told of the end.
    pub(crate) init: Option<(Control, Arc<Mutex<Lines>>)>,
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
        let mut buffer = vec![0; PIECE];
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

    fn wait(&mut self) {
        let Some((control, lines)) = &self.init else { return };
        let way = control.wait_until_ready();
        // It may have changed since the guest was told.
        lock(lines).size();
        if let Some(console) = self.console.take()
            && way == Way::Console
        {
            self.port = console;
            // Its end is the guest's.
            self.init = None;
        }
    }

    fn tell_the_end(&self, sent: u64) {
        if let Some((_, lines)) = &self.init {
            lock(lines).tell(Way::Serial, &format!("eof {sent}\n"));
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
        writer.write_all(b"dy serial\nexit ").unwrap();
        assert_eq!(control.status(), None);
        writer.write_all(b"143\n").unwrap();
        assert_eq!(control.wait_until_ready(), Way::Serial);
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

    #[test]
    fn the_guest_may_go_when_all_its_bytes_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::default();
        let (mut guest, lines) = io::pipe().unwrap();
        control.parts_by(lines);
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let mut output = Counted { to: file("out"), control: control.clone(), stream: 0 };
        let mut errors = Counted { to: file("err"), control: control.clone(), stream: 1 };
        output.write_all(b"12345").unwrap();
        control.line("exit 3 5 2");
        errors.write_all(b"1").unwrap();
        assert!(lock(&control.0.0).bye.is_some(), "a byte is missing");
        errors.write_all(b"2").unwrap();
        assert_eq!(control.status(), Some(3));
        let mut words = String::new();
        guest.read_to_string(&mut words).unwrap();
        assert_eq!(words, "bye\n");
    }

    /// Input to forward, with the guest's end of the pipe and its init's words.
    fn typed() -> (Forward, PipeReader, Control) {
        let (guest, port) = io::pipe().unwrap();
        let (_, serial) = io::pipe().unwrap();
        let control = Control::default();
        let lines = Lines { serial, console: None, control: control.clone() };
        let init = Some((control.clone(), Arc::new(Mutex::new(lines))));
        (Forward { port, console: None, init, keys: true }, guest, control)
    }

    #[test]
    fn keys_typed_before_the_guest_is_ready_wait_for_it() {
        let (forward, mut guest, control) = typed();
        forward.run(&b"early\x01x late"[..], || control.line("ready serial")).unwrap();
        let mut got = String::new();
        guest.read_to_string(&mut got).unwrap();
        assert_eq!(got, "early late");
    }

    #[test]
    fn the_escape_is_seen_though_the_guest_reads_nothing() {
        let (forward, guest, control) = typed();
        control.line("ready serial");
        let pasted = [vec![b'p'; 8 << 20], b"\x01x".to_vec()].concat();
        let guest = Mutex::new(Some(guest));
        forward.run(&pasted[..], || drop(lock(&guest).take())).unwrap();
        assert!(lock(&guest).is_none(), "Ctrl-A X was not seen");
    }
}
