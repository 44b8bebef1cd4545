//! A command whose input, output and errors are the host's: through pipes, or on a terminal.
//!
//! Threads: one for each stream.

use crate::link::{self, Heard, Link};
use crate::{Starter, raw, status_of, status_of_failure};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that went to the host's stdout and stderr.
#[derive(Default)]
struct Sent([AtomicU64; 2]);

const OUTPUT: usize = 0;
const ERRORS: usize = 1;

impl Sent {
    fn now(&self) -> [u64; 2] {
        [OUTPUT, ERRORS].map(|stream| self.0[stream].load(Ordering::SeqCst))
    }
}

/// Runs a command with pipes, so that it sees what it would see in a shell pipeline, and reports its status.
pub(crate) fn pipes(starter: &Starter, arguments: &[String]) {
    let Some(link) = Link::open() else { return };
    let sent = Arc::new(Sent::default());
    let Some((program, rest)) = arguments.split_first() else { return };
    let spawned = starter
        .command(program)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let heard = link::listen(&link.control, None);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return cannot_run(&link, &heard, &sent, program, &error),
    };
    // Serial ports that hold bytes for long lose them: the readers are there before the host hears that input may come.
    if let (Some(stdin), Ok(from)) = (child.stdin.take(), link.input.try_clone()) {
        let heard = Arc::clone(&heard);
        thread::spawn(move || feed(from, stdin, &heard));
    }
    ready(&link);
    let copiers = [
        child.stdout.take().and_then(|from| copier(from, &link, OUTPUT, &sent)),
        child.stderr.take().and_then(|from| copier(from, &link, ERRORS, &sent)),
    ];
    let status = child.wait().map_or(125, status_of);
    finish(copiers, &sent);
    link::report(&link, &heard, status, sent.now());
}

/// Runs a command with job control on a terminal of its own: a serial port, or a pseudo-terminal before the console's ports.
pub(crate) fn terminal(starter: &Starter, arguments: &[String]) {
    let Some(link) = Link::open() else { return };
    let sent = Arc::new(Sent::default());
    let ends =
        if link.is_serial { link.output.try_clone().map(|port| (None, port)) } else { pseudo_terminal() };
    let (master, terminal) = match ends {
        Ok(ends) => ends,
        Err(error) => return eprintln!("ombra init: no terminal: {error}"),
    };
    // Not the terminal's end, which then would stay open.
    let sized = master.as_ref().unwrap_or(&terminal).try_clone();
    let heard = link::listen(&link.control, sized.ok());
    ready(&link);
    let mut copiers = [None, None];
    if let Some(master) = master {
        copiers[0] = master.try_clone().ok().and_then(|from| copier(from, &link, OUTPUT, &sent));
        if let Ok(from) = link.input.try_clone() {
            let heard = Arc::clone(&heard);
            thread::spawn(move || feed(from, master, &heard));
        }
    }
    let status = on_terminal(starter, arguments, &terminal);
    if link.is_serial {
        raw::drain(&terminal);
    }
    // Unless somebody else holds it, what comes out of the other end has an end now.
    drop(terminal);
    finish(copiers, &sent);
    link::report(&link, &heard, status, sent.now());
}

/// Runs a command on the console, with lines of control on a serial port.
pub(crate) fn console(starter: &Starter, arguments: &[String]) {
    let Some(control) = Link::control() else { return };
    let terminal = match OpenOptions::new().read(true).write(true).open("/dev/ttyS0") {
        Ok(terminal) => terminal,
        Err(error) => return eprintln!("ombra init: /dev/ttyS0: {error}"),
    };
    // What is pasted while the command doesn't read waits with the host.
    let _ = raw::control_flow(&terminal);
    let _heard = link::listen(&control, terminal.try_clone().ok());
    link::tell(&control, "ready serial\n");
    let status = on_terminal(starter, arguments, &terminal);
    raw::drain(&terminal);
    link::tell(&control, &format!("exit {status}\n"));
}

fn ready(link: &Link) {
    link::tell(&link.control, if link.is_serial { "ready serial\n" } else { "ready ports\n" });
}

fn cannot_run(link: &Link, heard: &Heard, sent: &Sent, program: &str, error: &io::Error) {
    let words = format!("ombra: can't run `{program}`: {error}\n");
    link::tell(&link.errors, &words);
    sent.0[ERRORS].fetch_add(words.len() as u64, Ordering::SeqCst);
    ready(link);
    link::report(link, heard, status_of_failure(error), sent.now());
}

/// Both ends of a new pseudo-terminal.
fn pseudo_terminal() -> io::Result<(Option<File>, File)> {
    let master = OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    let terminal = raw::peer(&master)?;
    Ok((Some(master), terminal))
}

/// Runs a command with this as its controlling terminal.
fn on_terminal(starter: &Starter, arguments: &[String], terminal: &File) -> i32 {
    if let Some((rows, columns)) = starter.size {
        raw::set_size(terminal, rows, columns);
    }
    let (Ok(stdin), Ok(stdout), Ok(stderr)) =
        (terminal.try_clone(), terminal.try_clone(), terminal.try_clone())
    else {
        return 125;
    };
    // busybox's setsid makes its stdin the controlling terminal of a new session.
    starter
        .command(&starter.busybox)
        .args(["setsid", "-c"])
        .args(arguments)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .status()
        .map_or_else(|error| status_of_failure(&error), status_of)
}

/// Copies a stream to the host, on a thread of its own.
fn copier(
    from: impl Read + Send + 'static,
    link: &Link,
    stream: usize,
    sent: &Arc<Sent>,
) -> Option<JoinHandle<()>> {
    let to = if stream == OUTPUT { &link.output } else { &link.errors };
    let (to, is_serial, sent) = (to.try_clone().ok()?, link.is_serial, Arc::clone(sent));
    Some(thread::spawn(move || {
        copy(from, &to, &sent.0[stream]);
        if is_serial {
            raw::drain(&to);
        }
    }))
}

fn copy(mut from: impl Read, mut to: &File, sent: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        sent.fetch_add(count as u64, Ordering::SeqCst);
    }
}

/// What the command wrote is in the pipes still. A grandchild may hold them open for ever, and isn't waited for longer than it keeps
/// writing within a moment.
fn finish(copiers: [Option<JoinHandle<()>>; 2], sent: &Sent) {
    let mut before = sent.now();
    for copier in copiers.into_iter().flatten() {
        let mut waited = 0;
        while !copier.is_finished() {
            thread::sleep(Duration::from_millis(1));
            waited += 1;
            let now = sent.now();
            if now != before {
                waited = 0;
                before = now;
            } else if waited >= 1000 {
                break;
            }
        }
    }
}

/// From the host to the command: to the end of file, or up to as many bytes as the host says there are.
fn feed(mut from: File, to: impl Write + Send + 'static, heard: &Arc<Heard>) {
    let fed = Arc::new(AtomicU64::new(0));
    let pipe = Arc::new(Mutex::new(Some(to)));
    {
        let (heard, fed, pipe) = (Arc::clone(heard), Arc::clone(&fed), Arc::clone(&pipe));
        thread::spawn(move || {
            heard.wait_for_end(&fed);
            drop(pipe.lock().unwrap().take());
        });
    }
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(to) = pipe.lock().unwrap().as_mut() {
            // A command that reads no more is no error; its input is dropped.
            let _ = to.write_all(&buffer[..count]);
        }
        fed.fetch_add(count as u64, Ordering::SeqCst);
        heard.look();
    }
    drop(pipe.lock().unwrap().take());
}
