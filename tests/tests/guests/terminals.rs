//! On a terminal: raw mode, the escape keys, a shell with its size, and the terminal as it was however the run ends.

use crate::process::{Guests, PATIENCE, run, wait};
use crate::{CLOUD, Test};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_shell_on_a_terminal_obeys_and_gives_the_terminal_back", CLOUD, shell),
    ("a_shell_obeys_what_was_piped_into_it_before_it_was_there", CLOUD, piped),
    ("a_command_on_a_terminal_has_its_size_and_its_keys", CLOUD, command),
    ("control_a_x_quits_and_control_a_h_helps", CLOUD, keys),
    ("a_signal_gives_the_terminal_back", CLOUD, signal),
];

/// A terminal, and the binary on it.
struct Terminal {
    child: Child,
    /// The end where a person would sit.
    person: File,
    /// The guest's end, for its settings.
    line: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(guests: &Guests, words: &[&str]) -> Terminal {
        let person =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&person).expect("a terminal");
        unlockpt(&person).expect("a terminal");
        let name = ptsname(&person, Vec::new()).expect("a terminal");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(name, flags, Mode::empty()).expect("a terminal");
        tcsetwinsize(&line, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        let end = || line.try_clone().expect("a descriptor");
        let mut command = guests.ombra();
        command.stdin(end()).stdout(end()).stderr(end()).args(words);
        let child = command.spawn().expect("the binary starts");
        let person = File::from(person);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (person.try_clone().expect("a descriptor"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                to.lock().expect("no panic").extend_from_slice(&piece[..count]);
            }
        });
        Terminal { child, person, line, screen }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.shown().contains(text) {
            assert!(start.elapsed() < PATIENCE, "no `{text}` on the terminal: {}", self.shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn strike(&mut self, keys: &[u8]) {
        self.person.write_all(keys).expect("the terminal takes keys");
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("settings").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[track_caller]
    fn until_raw(&self) {
        let start = Instant::now();
        while !self.is_raw() {
            assert!(start.elapsed() < PATIENCE, "never raw: {}", self.shown());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The status, once the process has ended and the terminal is as it was.
    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        let status = wait(&mut self.child, PATIENCE).code();
        let modes = tcgetattr(&self.line).expect("settings").local_modes;
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(modes.contains(cooked), "the terminal stays raw: {}", self.shown());
        status
    }
}

fn shell(guests: &Guests) {
    let mut terminal = Terminal::start(guests, &[]);
    terminal.expect("ombra:/# ");
    assert!(terminal.is_raw());
    terminal.strike(b"stty size\r");
    terminal.expect("33 99");
    // The guest's terminal makes a signal of it, of which the shell tells: 128 + SIGINT.
    terminal.strike(b"sleep 1000\r");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(Duration::from_millis(500));
    terminal.strike(b"\x03");
    terminal.strike(b"echo status $?\r");
    terminal.expect("status 130");
    let size = Winsize { ws_row: 44, ws_col: 88, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.line, size).expect("a size");
    // The kernel tells only a foreground process group of this; there is none here.
    kill_process(Pid::from_child(&terminal.child), Signal::WINCH).expect("a process of ours");
    std::thread::sleep(Duration::from_millis(500));
    terminal.strike(b"stty size\r");
    terminal.expect("44 88");
    terminal.strike(b"exit\r");
    assert_eq!(terminal.end(), Some(0), "{}", terminal.shown());
}

/// All of it comes while the guest boots; the second command needs more room than a UART's FIFO has.
fn piped(guests: &Guests) {
    let mut input = tempfile::tempfile().expect("a file");
    let long = "x".repeat(300);
    write!(input, "uname -sm\necho {long} | wc -c\npoweroff -f\n").expect("a file");
    std::io::Seek::rewind(&mut input).expect("a file");
    let ended = run(guests.ombra().stdin(input), None);
    let text = ended.text();
    assert!(text.contains("\nLinux x86_64") && text.contains("\n301"), "{text}{}", ended.stderr);
    assert_eq!(ended.status, Some(0), "{text}");
}

fn command(guests: &Guests) {
    let mut terminal = Terminal::start(guests, &["--", "sh", "-c", "tty; stty size; exec sh"]);
    terminal.expect("/dev/pts/0\r\n33 99\r\n");
    terminal.expect("# ");
    terminal.strike(b"sleep 1000\r");
    terminal.expect("sleep 1000\r\n");
    std::thread::sleep(Duration::from_millis(500));
    terminal.strike(b"\x03");
    terminal.strike(b"echo status $?\r");
    terminal.expect("status 130");
    let size = Winsize { ws_row: 44, ws_col: 88, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.line, size).expect("a size");
    kill_process(Pid::from_child(&terminal.child), Signal::WINCH).expect("a process of ours");
    std::thread::sleep(Duration::from_millis(500));
    terminal.strike(b"stty size\r");
    terminal.expect("44 88");
    terminal.strike(b"exit 9\r");
    assert_eq!(terminal.end(), Some(9), "{}", terminal.shown());
}

fn keys(guests: &Guests) {
    let mut terminal = Terminal::start(guests, &[]);
    terminal.until_raw();
    terminal.strike(b"\x01h");
    terminal.expect("Ctrl-A X quits");
    terminal.strike(b"\x01x");
    assert_eq!(terminal.end(), Some(0), "{}", terminal.shown());
}

fn signal(guests: &Guests) {
    let mut terminal = Terminal::start(guests, &["--", "sleep", "1000"]);
    terminal.until_raw();
    kill_process(Pid::from_child(&terminal.child), Signal::TERM).expect("a process of ours");
    assert_eq!(terminal.end(), Some(128 + 15), "{}", terminal.shown());
}
