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
//! `CARD dhcp`. `/ombra/folders` has a line for each folder of the host's, by its tag: `root share TAG` (the root, read-only, below a
//! throw-away overlay), `root disk` (the root is on the first disk) and `mount TAG PATH [ro]`; `/ombra/directory` is where the command starts.
//!
//! The streams are ports of a virtio console, `ombra.in`, `ombra.out`, `ombra.err` and `ombra.control`; where the kernel has no driver for
//! that, serial ports: ttyS1 both ways, ttyS2, and ttyS3 for control.
//! - `command`: the command has them through pipes, so that it sees what it would see in a shell pipeline.
//! - `terminal`: the command runs on a pseudo-terminal before them, or on ttyS1, as its controlling terminal.
//! - `shell`: the arguments' command runs on ttyS0, the console, as its controlling terminal; control is ttyS3.
//!
//! Lines of control to the host: `ready ports` or `ready serial` when input may come, and at the end `exit STATUS [OUT ERR]`, with the bytes that went
//! to stdout and stderr. From the host: `size ROWS COLUMNS`; on serial ports `eof N` (stdin ends after N bytes in all; other ports have
//! an end of file); on others `bye`, when it has all bytes, and the machine may be switched off.
//!
//! Modules: `link` (the ways to the host), `streams` (the command on them), `folders`, `network`, `raw`.

mod folders;
mod link;
mod network;
mod raw;
mod streams;

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

const BUSYBOX: &str = "/bin/busybox";

fn main() {
    if std::process::id() != 1 {
        eprintln!("ombra's init runs only as process 1 of a guest");
        std::process::exit(1);
    }
    let orders = Orders::read();
    mount();
    // Scripts of the network's, too, call it by its commands' names.
    if orders.folders.lines().all(|line| !line.starts_with("root")) || Path::new("/ombra/network").exists() {
        let _ = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status();
    }
    load_modules();
    network::set_up();
    match folders::mount(&orders.folders) {
        // Where this fails the host finds no status and says so, with the last of the log.
        Ok(has_root) => run(&orders, has_root),
        Err(error) => eprintln!("ombra init: {error}"),
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

/// What the host wants, read before its files are out of reach.
struct Orders {
    mode: String,
    arguments: Vec<String>,
    environment: Vec<String>,
    size: Option<(u16, u16)>,
    folders: String,
    directory: String,
}

impl Orders {
    fn read() -> Orders {
        let text = |name: &str| fs::read_to_string(format!("/ombra/{name}")).unwrap_or_default();
        let size = text("size");
        let mut numbers = size.split_whitespace().filter_map(|number| number.parse().ok());
        Orders {
            mode: text("mode").trim().to_owned(),
            arguments: list("/ombra/arguments"),
            environment: list("/ombra/environment"),
            size: numbers.next().zip(numbers.next()),
            folders: text("folders"),
            directory: text("directory"),
        }
    }
}

/// How commands are started.
pub(crate) struct Starter {
    environment: Vec<String>,
    path: &'static str,
    home: &'static str,
    directory: String,
    pub(crate) size: Option<(u16, u16)>,
    /// busybox, wherever it is.
    pub(crate) busybox: String,
}

impl Starter {
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let directory = Some(&self.directory).filter(|path| Path::new(path).is_dir());
        command.env_clear().env("PATH", self.path).env("HOME", self.home);
        command.current_dir(directory.map_or("/", String::as_str));
        for variable in &self.environment {
            if let Some((name, value)) = variable.split_once('=') {
                command.env(name, value);
            }
        }
        command
    }
}

/// Runs what the host asks for.
fn run(orders: &Orders, has_root: bool) {
    let starter = Starter {
        environment: orders.environment.clone(),
        path: if has_root {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/ombra/bin"
        } else {
            "/bin:/sbin:/usr/bin:/usr/sbin"
        },
        home: if has_root { "/root" } else { "/" },
        directory: orders.directory.clone(),
        size: orders.size,
        busybox: if has_root { format!("{}/busybox", folders::TOOLS) } else { BUSYBOX.to_owned() },
    };
    match orders.mode.as_str() {
        "command" => streams::pipes(&starter, &orders.arguments),
        "terminal" => streams::terminal(&starter, &orders.arguments),
        _ => streams::console(&starter, &orders.arguments),
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

fn status_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What a shell answers for a command that can't be started.
fn status_of_failure(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}
