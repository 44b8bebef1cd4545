//! The init of guests that `ombra run` builds: prepares a root file system, runs one command or a shell, reports, powers off.
//!
//! bin/ombra's build script compiles this file by calling rustc with a static C library; it is no package of the
//! workspace, so it can have no dependencies, and the four calls into the kernel that std doesn't have are declared in
//! [`raw`]. That is less to go wrong than a second cargo inside of a build script.
//!
//! # Agreement with bin/ombra (`bin/ombra/src/guest.rs`)
//! The initramfs holds `/ombra/mode` (`command`, `terminal` or `shell`), `/ombra/arguments` (NUL after each),
//! `/ombra/environment` (`NAME=value`, NUL after each), `/ombra/size` (`ROWS COLUMNS`), and in `/ombra/modules` the kernel modules to
//! load, in the order of their names; and `/ombra/network`, a line for each network card: `CARD ADDRESS/BITS ROUTER RESOLVER`, or
//! `CARD dhcp`.
//! - `command`: the command's stdin comes from ttyS1 and its stdout goes there; its stderr goes to ttyS2. All raw, through
//!   pipes, so that the command sees what it would see in a shell pipeline.
//! - `terminal`: the command runs on ttyS1 as its controlling terminal.
//! - `shell`: the arguments' command runs on ttyS0, the console, as its controlling terminal.
//!
//! Lines on ttyS3: to the host `exit N` once, as the last thing. From the host `eof N` (stdin ends after N bytes in all) and
//! `size ROWS COLUMNS`.
//!
//! Threads, in mode `command`: one for each stream, one for ttyS3. No locks but stdin's.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

const BUSYBOX: &str = "/bin/busybox";

fn main() {
    if std::process::id() != 1 {
        eprintln!("ombra's init runs only as process 1 of a guest");
        std::process::exit(1);
    }
    mount();
    let _ = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status();
    load_modules();
    network();
    match serial("/dev/ttyS3") {
        Ok(report) => {
            let _ = raw::make_raw(&report);
            let status = run();
            tell(&report, &format!("exit {status}\n"));
        }
        // The host finds no status and says so, with this line among the last of the log.
        Err(error) => eprintln!("ombra init: no /dev/ttyS3: {error}"),
    }
    raw::power_off();
}

/// Without these mounts hardly a program runs; one that fails shows on the console and is left out.
fn mount() {
    for (kind, to) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        let _ = fs::create_dir_all(to);
        if let Err(error) = raw::mount_kind(kind, to) {
            eprintln!("ombra init: can't mount {to}: {error}");
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    let _ = fs::write("/proc/sys/kernel/hostname", "ombra");
}

/// One that can't be loaded shows on the console; what needs it will, too.
fn load_modules() {
    let Ok(folder) = fs::read_dir("/ombra/modules") else { return };
    let mut modules: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        if let Err(error) = File::open(&module).and_then(|file| raw::load_module(&file)) {
            eprintln!("ombra init: can't load {}: {error}", module.display());
        }
        // It lies in memory now, and need not twice.
        let _ = fs::remove_file(&module);
    }
}

/// What busybox's DHCP client calls when something has changed.
const DHCP_SCRIPT: &str = "#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound | renew)
    ip addr flush dev $interface
    ip addr add $ip/${mask:-24} dev $interface
    for it in $router; do ip route replace default via $it dev $interface; done
    for it in $dns; do echo nameserver $it; done >/etc/resolv.conf
    ;;
esac
";

/// Sets the network cards up as `/ombra/network` says. What fails shows on the console.
fn network() {
    let Ok(text) = fs::read_to_string("/ombra/network") else { return };
    let busybox = |words: &[&str]| match Command::new(BUSYBOX).args(words).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            eprintln!("ombra init: `{}`: {why}", words.join(" "));
        }
        Err(error) => eprintln!("ombra init: `{}`: {error}", words.join(" ")),
    };
    busybox(&["ip", "link", "set", "lo", "up"]);
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [card, "dhcp"] => {
                const SCRIPT: &str = "/ombra/dhcp";
                let _ = fs::write(SCRIPT, DHCP_SCRIPT);
                let _ = fs::set_permissions(SCRIPT, Permissions::from_mode(0o755));
                busybox(&["udhcpc", "-q", "-n", "-f", "-t", "5", "-T", "1", "-i", card, "-s", SCRIPT]);
            }
            [card, address, router, resolver] => {
                busybox(&["ip", "link", "set", card, "up"]);
                busybox(&["ip", "addr", "add", address, "dev", card]);
                busybox(&["ip", "route", "add", "default", "via", router]);
                let _ = fs::write("/etc/resolv.conf", format!("nameserver {resolver}\n"));
            }
            _ => eprintln!("ombra init: no way to set a network up: {line}"),
        }
    }
}

/// Runs what the initramfs asks for and returns its status as a shell would.
fn run() -> i32 {
    let arguments = list("/ombra/arguments");
    let mode = fs::read_to_string("/ombra/mode").unwrap_or_default();
    match mode.trim() {
        "command" => streams(&arguments),
        "terminal" => terminal(&arguments, "/dev/ttyS1"),
        _ => terminal(&arguments, "/dev/ttyS0"),
    }
}

/// The strings of a file, each with a NUL after it.
fn list(path: &str) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let mut parts: Vec<String> =
        text.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    parts.pop();
    parts
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").env("HOME", "/").current_dir("/");
    for variable in list("/ombra/environment") {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    command
}

fn status_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What a shell answers for a command that can't be started.
fn status_of_failure(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

fn serial(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The bytes of stdin that the host has announced in all, once it has; and the pipe, until it is closed.
struct Input {
    total: Mutex<Option<u64>>,
    changed: Condvar,
}

fn streams(arguments: &[String]) -> i32 {
    let (Ok(data), Ok(errors), Ok(control)) =
        (serial("/dev/ttyS1"), serial("/dev/ttyS2"), serial("/dev/ttyS3"))
    else {
        eprintln!("ombra init: the guest's kernel has no ttyS1 to ttyS3");
        return 125;
    };
    for port in [&data, &errors, &control] {
        if let Err(error) = raw::make_raw(port).and_then(|()| raw::control_flow(port)) {
            eprintln!("ombra init: a serial port can't be made raw: {error}");
            return 125;
        }
    }
    // Ports that hold bytes for long lose them: output first, then the host hears that input may come.
    let Some((program, rest)) = arguments.split_first() else { return 125 };
    let spawned = command(program)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            tell(&errors, &format!("ombra: can't run `{program}`: {error}\n"));
            return status_of_failure(&error);
        }
    };
    tell(&control, "ready\n");
    let input = Arc::new(Input { total: Mutex::new(None), changed: Condvar::new() });
    if let (Some(stdin), Ok(from)) = (child.stdin.take(), data.try_clone()) {
        let input = Arc::clone(&input);
        thread::spawn(move || feed(from, stdin, &input));
    }
    thread::spawn(move || listen(control, None, Some(&input)));
    let stdout = child.stdout.take().map(|from| thread::spawn(move || copy(from, &data)));
    let stderr = child.stderr.take().map(|from| thread::spawn(move || copy(from, &errors)));
    let status = child.wait().map_or(125, status_of);
    // What the command wrote is in the pipes still. A grandchild may hold them open for ever, and isn't waited for
    // longer than it keeps writing within a moment.
    for copier in [stdout, stderr].into_iter().flatten() {
        let mut waited = 0;
        while !copier.is_finished() && (waited < 100 || !quiet()) {
            thread::sleep(Duration::from_millis(10));
            waited += 1;
        }
    }
    status
}

/// Bytes copied since this was last asked: none.
fn quiet() -> bool {
    COPIED.swap(0, std::sync::atomic::Ordering::Relaxed) == 0
}

static COPIED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// From a pipe to a port, and until the last byte has left the port.
fn copy(mut from: impl Read, mut to: &File) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                COPIED.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        }
    }
    raw::drain(to);
}

/// From the port to the command, up to as many bytes as the host says there are.
fn feed(mut from: File, stdin: ChildStdin, input: &Arc<Input>) {
    let fed = Arc::new(Mutex::new(0u64));
    let pipe = Arc::new(Mutex::new(Some(stdin)));
    {
        // The port never ends by itself; this closes the pipe once all announced bytes are through.
        let (input, fed, pipe) = (Arc::clone(input), Arc::clone(&fed), Arc::clone(&pipe));
        thread::spawn(move || {
            let mut total = input.total.lock().unwrap();
            loop {
                if total.is_some_and(|total| *fed.lock().unwrap() >= total) {
                    drop(pipe.lock().unwrap().take());
                    return;
                }
                total = input.changed.wait(total).unwrap();
            }
        });
    }
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(stdin) = pipe.lock().unwrap().as_mut() {
            // A command that reads no more is no error; its input is dropped.
            let _ = stdin.write_all(&buffer[..count]);
        }
        *fed.lock().unwrap() += count as u64;
        // Under the lock, so that the closer doesn't miss it between its look and its wait.
        let _total = input.total.lock().unwrap();
        input.changed.notify_all();
    }
}

/// Obeys the host's lines on ttyS3.
fn listen(control: File, terminal: Option<File>, input: Option<&Arc<Input>>) {
    for line in BufReader::new(control).lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["eof", total] => {
                if let (Ok(total), Some(input)) = (total.parse(), input) {
                    *input.total.lock().unwrap() = Some(total);
                    input.changed.notify_all();
                }
            }
            ["size", rows, columns] => {
                if let (Ok(rows), Ok(columns), Some(terminal)) = (rows.parse(), columns.parse(), &terminal) {
                    raw::set_size(terminal, rows, columns);
                }
            }
            _ => {}
        }
    }
}

/// Runs a command on a port as its controlling terminal, with job control.
fn terminal(arguments: &[String], port: &str) -> i32 {
    let (Ok(terminal), Ok(control)) = (serial(port), serial("/dev/ttyS3")) else {
        eprintln!("ombra init: the guest's kernel has no {port} or no ttyS3");
        return 125;
    };
    let size = fs::read_to_string("/ombra/size").unwrap_or_default();
    let mut numbers = size.split_whitespace().filter_map(|number| number.parse().ok());
    if let (Some(rows), Some(columns)) = (numbers.next(), numbers.next()) {
        raw::set_size(&terminal, rows, columns);
    }
    // What is pasted while the command doesn't read waits with the host.
    let _ = raw::control_flow(&terminal);
    let copies = (terminal.try_clone(), terminal.try_clone(), terminal.try_clone(), terminal.try_clone());
    let (Ok(stdin), Ok(stdout), Ok(stderr), Ok(resized)) = copies else { return 125 };
    let _ = raw::make_raw(&control);
    tell(&control, "ready\n");
    thread::spawn(move || listen(control, Some(resized), None));
    // busybox's setsid makes its stdin the controlling terminal of a new session.
    let status = command(BUSYBOX)
        .args(["setsid", "-c"])
        .args(arguments)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .status()
        .map_or_else(|error| status_of_failure(&error), status_of);
    raw::drain(&terminal);
    status
}

/// Writes a line and waits until it has left the port.
fn tell(mut to: &File, line: &str) {
    let _ = to.write_all(line.as_bytes());
    raw::drain(to);
}

/// The C library's functions that std doesn't wrap.
mod raw {
    use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// glibc's `struct termios` on x86-64.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Termios {
        modes: [u32; 4],
        line: u8,
        characters: [u8; 32],
        speeds: [u32; 2],
    }

    /// `c_cflag` in [`Termios::modes`].
    const CONTROL: usize = 2;
    /// RTS and CTS say who may send.
    const CRTSCTS: u32 = 0o20_000_000_000;

    /// `struct winsize`.
    #[repr(C)]
    struct Size {
        rows: u16,
        columns: u16,
        pixels: [u16; 2],
    }

    const TIOCSWINSZ: c_ulong = 0x5414;
    const RB_POWER_OFF: c_int = 0x4321_fedc;
    const TCSANOW: c_int = 0;

    unsafe extern "C" {
        fn mount(
            source: *const c_char,
            target: *const c_char,
            kind: *const c_char,
            flags: c_ulong,
            data: *const c_void,
        ) -> c_int;
        fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
        fn tcgetattr(fd: c_int, to: *mut Termios) -> c_int;
        fn tcsetattr(fd: c_int, when: c_int, from: *const Termios) -> c_int;
        fn cfmakeraw(termios: *mut Termios);
        fn tcdrain(fd: c_int) -> c_int;
        fn reboot(how: c_int) -> c_int;
        fn sync();
        fn syscall(number: c_long, ...) -> c_long;
    }

    fn result(code: c_int) -> io::Result<()> {
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Mounts a file system that has no device.
    pub(crate) fn mount_kind(kind: &str, to: &str) -> io::Result<()> {
        let (kind, to) = (CString::new(kind)?, CString::new(to)?);
        // SAFETY: three strings that end in NUL and outlive the call; no data.
        result(unsafe { mount(kind.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
    }

    const SYS_FINIT_MODULE: c_long = 313;

    /// Gives the kernel a module. One that is loaded already is no failure.
    pub(crate) fn load_module(file: &File) -> io::Result<()> {
        // SAFETY: an open descriptor, an empty string of parameters that ends in NUL, no flags.
        let code = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
        match result(code as c_int) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Bytes pass as they are: no echo, no signals, no line editing, no newline translation.
    pub(crate) fn make_raw(port: &File) -> io::Result<()> {
        let mut termios = Termios::default();
        // SAFETY: the descriptor is open, the structure is glibc's and lives through the calls.
        let code = unsafe {
            let code = tcgetattr(port.as_raw_fd(), &mut termios);
            cfmakeraw(&mut termios);
            code | tcsetattr(port.as_raw_fd(), TCSANOW, &termios)
        };
        result(code)
    }

    /// The port asks the host to wait, by RTS, before the kernel's buffers overflow: they drop bytes when a reader is slow.
    pub(crate) fn control_flow(port: &File) -> io::Result<()> {
        let mut termios = Termios::default();
        // SAFETY: as in `make_raw`.
        let code = unsafe {
            let code = tcgetattr(port.as_raw_fd(), &mut termios);
            termios.modes[CONTROL] |= CRTSCTS;
            code | tcsetattr(port.as_raw_fd(), TCSANOW, &termios)
        };
        result(code)
    }

    pub(crate) fn set_size(terminal: &File, rows: u16, columns: u16) {
        let size = Size { rows, columns, pixels: [0; 2] };
        // SAFETY: the descriptor is open and the request reads one `Size`. Its failure leaves the size as it was.
        unsafe { ioctl(terminal.as_raw_fd(), TIOCSWINSZ, &size) };
    }

    /// Waits until all that was written has left the port.
    pub(crate) fn drain(port: &File) {
        // SAFETY: the descriptor is open.
        unsafe { tcdrain(port.as_raw_fd()) };
    }

    pub(crate) fn power_off() -> ! {
        // SAFETY: no arguments that could be wrong; process 1 may.
        unsafe {
            sync();
            reboot(RB_POWER_OFF);
        }
        // A kernel that can't power off stops here; process 1 must not end.
        loop {
            std::thread::park();
        }
    }
}
