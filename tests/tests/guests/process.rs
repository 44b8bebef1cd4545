//! One run of the binary: its output with the times at which it came, its status.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A guest that takes longer has failed. Machines that run other tests at the same time are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Where the binary and the guests are.
pub(crate) struct Guests {
    /// The binary under test.
    pub(crate) binary: PathBuf,
    /// `cache/guests`.
    pub(crate) folder: PathBuf,
    /// What executes guest code, as `--engine` has it.
    pub(crate) engine: &'static str,
}

impl Guests {
    /// `ombra run`, with pipes.
    pub(crate) fn ombra(&self) -> Command {
        let mut command = Command::new(&self.binary);
        // The binary must find the same guests as the test.
        command
            .args(["run", "--engine", self.engine])
            .env("OMBRA_CACHE", self.folder.parent().unwrap_or(Path::new("/")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A guest's file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// When stdout had grown to a length.
    times: Vec<(usize, Instant)>,
}

impl Ended {
    /// stdout as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// When `text` had come on stdout.
    #[track_caller]
    pub(crate) fn when(&self, text: &str) -> Instant {
        let end = self.stdout.windows(text.len()).position(|window| window == text.as_bytes());
        let end =
            end.unwrap_or_else(|| panic!("no `{text}` in {}\n{}", self.text(), self.stderr)) + text.len();
        self.times.iter().find(|(length, _)| *length >= end).expect("all of stdout has a time").1
    }
}

/// Runs until the process ends, `until` appears on stdout, or patience does.
pub(crate) fn run(command: &mut Command, until: Option<&str>) -> Ended {
    run_for(command, until.map(|mark| (mark, 1)), PATIENCE)
}

/// Runs until the process ends; does something when `mark` has appeared on stdout.
pub(crate) fn run_and(command: &mut Command, mark: &str, does: impl FnOnce()) -> Ended {
    let mut does = Some(does);
    watch(command, None, PATIENCE, |_, stdout| {
        if stdout.windows(mark.len()).any(|window| window == mark.as_bytes())
            && let Some(does) = does.take()
        {
            does();
        }
    })
}

/// As [`run`], until `until` has appeared so many times, for a guest that may take longer.
pub(crate) fn run_for(command: &mut Command, until: Option<(&str, usize)>, patience: Duration) -> Ended {
    watch(command, until, patience, |_, _| ())
}

/// Runs until the process ends; `look` gets the process's number and all of stdout whenever there is more of it.
pub(crate) fn run_watched(command: &mut Command, look: impl FnMut(u32, &[u8])) -> Ended {
    watch(command, None, PATIENCE, look)
}

/// The same; `look` gets the process's number and all of stdout whenever there is more of it.
fn watch(
    command: &mut Command,
    until: Option<(&str, usize)>,
    patience: Duration,
    mut look: impl FnMut(u32, &[u8]),
) -> Ended {
    let start = Instant::now();
    let mut child = command.spawn().expect("the binary starts");
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = errors.read_to_end(&mut bytes);
        bytes
    });
    let (sender, pieces) = std::sync::mpsc::channel();
    let mut output = child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut piece) {
            if sender.send((Instant::now(), piece[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    let (mut stdout, mut times, mut seen) = (Vec::new(), Vec::new(), 0);
    while let Ok((at, piece)) = pieces.recv_timeout(patience.saturating_sub(start.elapsed())) {
        let before = stdout.len();
        stdout.extend(piece);
        times.push((stdout.len(), at));
        look(child.id(), &stdout);
        if let Some((mark, often)) = until {
            // A mark may have begun in the piece before.
            let from = before.saturating_sub(mark.len() - 1);
            seen += stdout[from..].windows(mark.len()).filter(|window| *window == mark.as_bytes()).count();
            if seen >= often {
                break;
            }
        }
    }
    if until.is_some() || start.elapsed() >= patience {
        let _ = child.kill();
    }
    let status = child.wait().expect("it ends").code();
    let stderr = String::from_utf8_lossy(&errors.join().expect("no panic")).into_owned();
    Ended { status, stdout, stderr, times }
}

/// The process's status once it ends by itself; kills it when patience ends.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if start.elapsed() > patience {
            let _ = child.kill();
            return child.wait().expect("a child of ours");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
