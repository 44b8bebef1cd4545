//! The ways to the host: named ports of a virtio console, or serial ports where the kernel has no driver for one.
//!
//! Threads: one that obeys the host's lines. Locks are leaves.

use crate::raw;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long ports may take to appear once their driver is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// The command's streams and the lines of control.
pub(crate) struct Link {
    pub(crate) input: File,
    pub(crate) output: File,
    pub(crate) errors: File,
    pub(crate) control: File,
    /// They are serial ports, which have no end of file, and hold bytes for a while.
    pub(crate) is_serial: bool,
}

/// What the host has said.
#[derive(Default)]
pub(crate) struct Heard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Stdin has so many bytes in all.
    total: Option<u64>,
    /// The host has all that was sent.
    bye: bool,
}

impl Heard {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `given` has reached what the host says there is.
    pub(crate) fn wait_for_end(&self, given: &AtomicU64) {
        let mut state = self.state.lock().unwrap();
        while state.total.is_none_or(|total| given.load(Ordering::SeqCst) < total) {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// What [`Heard::wait_for_end`] waits for may have changed.
    pub(crate) fn look(&self) {
        self.change(|_| ());
    }

    fn wait_for_bye(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.bye {
            state = self.changed.wait(state).unwrap();
        }
    }
}

fn serial(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Serial ports pass bytes as they are, and the host waits while nobody reads.
fn plain(path: &str) -> Option<File> {
    let made = serial(path).and_then(|port| {
        raw::make_raw(&port)?;
        raw::control_flow(&port)?;
        Ok(port)
    });
    made.map_err(|error| eprintln!("ombra init: {path}: {error}")).ok()
}

/// The console's port of this name, if it is there yet.
fn port(name: &str) -> Option<String> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let found = fs::read_to_string(port.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| format!("/dev/{}", port.file_name().to_string_lossy()))
    })
}

/// Whether the kernel has a driver that has found a virtio console.
fn has_console() -> bool {
    fs::read_dir("/sys/bus/virtio/drivers/virtio_console").is_ok_and(|mut entries| {
        entries
            .any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("virtio")))
    })
}

impl Link {
    /// The ways that this kernel has. `None`, with words on the console: none.
    pub(crate) fn open() -> Option<Link> {
        if has_console()
            && let Some(link) = Self::ports()
        {
            return Some(link);
        }
        let data = plain("/dev/ttyS1")?;
        let input = data.try_clone().ok()?;
        let (errors, control) = (plain("/dev/ttyS2")?, plain("/dev/ttyS3")?);
        Some(Link { input, output: data, errors, control, is_serial: true })
    }

    /// Linux hears of ports one after the other, on a thread of its own.
    fn ports() -> Option<Link> {
        let start = Instant::now();
        let names = ["ombra.in", "ombra.out", "ombra.err", "ombra.control"];
        loop {
            let found: Vec<_> = names.iter().filter_map(|name| port(name)).collect();
            if let [input, output, errors, control] = &found[..] {
                let opened = (File::open(input), serial(output), serial(errors), serial(control));
                let (Ok(input), Ok(output), Ok(errors), Ok(control)) = opened else {
                    eprintln!("ombra init: the console's ports can't be opened");
                    return None;
                };
                return Some(Link { input, output, errors, control, is_serial: false });
            }
            if start.elapsed() > PATIENCE {
                eprintln!("ombra init: of the console's ports there are only {found:?}");
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Only lines of control, for a shell on the console.
    pub(crate) fn control() -> Option<File> {
        plain("/dev/ttyS3")
    }
}

/// Obeys the host's lines, on a thread of its own.
pub(crate) fn listen(control: &File, terminal: Option<File>) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let Ok(control) = control.try_clone() else { return heard };
    let hears = Arc::clone(&heard);
    thread::spawn(move || {
        for line in BufReader::new(control).lines() {
            let Ok(line) = line else { return };
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["eof", total] => hears.change(|state| state.total = total.parse().ok()),
                ["size", rows, columns] => {
                    if let (Ok(rows), Ok(columns), Some(terminal)) =
                        (rows.parse(), columns.parse(), &terminal)
                    {
                        raw::set_size(terminal, rows, columns);
                    }
                }
                ["bye"] => hears.change(|state| state.bye = true),
                _ => {}
            }
        }
    });
    heard
}

/// Writes a line and waits until it has left a serial port.
pub(crate) fn tell(mut to: &File, line: &str) {
    let _ = to.write_all(line.as_bytes());
    raw::drain(to);
}

/// The last line, with the bytes that went to stdout and stderr; the host answers when it has them all.
pub(crate) fn report(link: &Link, heard: &Heard, status: i32, sent: [u64; 2]) {
    let [output, errors] = sent;
    tell(&link.control, &format!("exit {status} {output} {errors}\n"));
    if !link.is_serial {
        heard.wait_for_bye();
    }
}
