//! The built binary on a terminal with kernels of a few instructions: however it ends, the terminal is as it was.

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// For one thing to happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes to COM1 whenever the transmitter is free: `1: mov edx, 3fdh; in al, dx; test al, 20h; jz 1b; mov edx, 3f8h;
/// mov al, 'x'; out dx, al; jmp 1b`.
const CHATTY: &[u8] = b"\xba\xfd\x03\0\0\xec\xa8\x20\x74\xf6\xba\xf8\x03\0\0\xb0x\xee\xeb\xec";
/// Never looks at its input: `1: hlt; jmp 1b`.
const DEAF: &[u8] = b"\xf4\xeb\xfd";

struct Terminal {
    child: Child,
    /// The end where a person would sit.
    person: File,
    /// The other end, for its settings.
    line: OwnedFd,
    _folder: tempfile::TempDir,
}

impl Terminal {
    /// Starts a kernel and waits until it has the terminal.
    fn start(code: &[u8]) -> Terminal {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        let (magic, flags, base) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32);
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let header = [magic, flags, checksum, base, base, 0, 0, base + 32];
        let header = header.iter().flat_map(|word| word.to_le_bytes());
        fs::write(&kernel, header.chain(code.iter().copied()).collect::<Vec<u8>>()).unwrap();
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(ptsname(&person, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ombra"));
        command.args(["run", "--kernel"]).arg(&kernel);
        command.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let terminal = Terminal { child, person: File::from(person), line, _folder: folder };
        let start = Instant::now();
        while terminal.modes().contains(LocalModes::ICANON) {
            assert!(start.elapsed() < PATIENCE, "never raw");
            thread::sleep(Duration::from_millis(5));
        }
        terminal
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.line).unwrap().local_modes
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How the process ended, after which the terminal must be as it was.
    #[track_caller]
    fn end(mut self) -> ExitStatus {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                let _ = self.child.kill();
                panic!("it doesn't end");
            }
            thread::sleep(Duration::from_millis(10));
        };
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(self.modes().contains(cooked), "the terminal stays raw");
        status
    }
}

#[test]
fn a_terminal_that_nobody_reads_comes_back() {
    let terminal = Terminal::start(CHATTY);
    // The terminal's buffers and ours fill; the writer is stuck.
    thread::sleep(Duration::from_secs(1));
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.end().code(), Some(128 + 15));
}

#[test]
fn the_way_out_is_open_though_the_guest_reads_nothing() {
    let mut terminal = Terminal::start(DEAF);
    let mut screen = terminal.person.try_clone().unwrap();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(1..) = screen.read(&mut piece) {}
    });
    terminal.person.write_all(&[b'p'; 300_000]).unwrap();
    terminal.person.write_all(b"\x01x").unwrap();
    assert_eq!(terminal.end().code(), Some(0));
}

#[test]
fn signals_that_end_the_process_at_once_leave_the_terminal_in_order() {
    for signal in [Signal::ABORT, Signal::BUS, Signal::USR1] {
        let terminal = Terminal::start(DEAF);
        terminal.signal(signal);
        assert_eq!(terminal.end().signal(), Some(signal.as_raw()));
    }
}
