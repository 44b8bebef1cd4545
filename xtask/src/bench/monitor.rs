//! What runs the workloads: the host itself, an engine of Ombra, QEMU's TCG; and their command lines.

use super::Options;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The kernel's; what follows is the init's.
const CMDLINE: &str = "console=ttyS0 no_timer_check quiet -- ";
/// How much of the work an engine does that isn't made to be fast: of the workloads, and of the programs, whose start isn't
/// smaller when they do less.
const SLOW: (f64, f64) = (0.02, 0.1);

/// Sessions differ in their root file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Part {
    /// guests/bench alone.
    Plain,
    /// guests/bench alone, with two vCPUs.
    TwoCpus,
    /// Debian's programs.
    Programs,
}

/// What the command lines name.
pub(crate) struct Files {
    pub(crate) binary: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) archive: PathBuf,
    /// The initramfs of programs, and their root file system unpacked.
    pub(crate) programs: Option<(PathBuf, PathBuf)>,
}

impl Files {
    pub(crate) fn new(binary: PathBuf, kernel: PathBuf, program: PathBuf, archive: PathBuf) -> Files {
        Files { binary, kernel, program, archive, programs: None }
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Kind {
    Native,
    Ombra,
    Tcg,
}

/// Something that runs workloads.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// As the table calls it: `native`, `TCG`, or the engine's name.
    pub(crate) name: String,
    kind: Kind,
}

impl Monitor {
    pub(crate) fn native() -> Monitor {
        Monitor { name: "native".to_owned(), kind: Kind::Native }
    }

    pub(crate) fn ombra(engine: &str) -> Monitor {
        Monitor { name: engine.to_owned(), kind: Kind::Ombra }
    }

    pub(crate) fn tcg() -> Monitor {
        Monitor { name: "TCG".to_owned(), kind: Kind::Tcg }
    }

    pub(crate) fn is_native(&self) -> bool {
        self.kind == Kind::Native
    }

    pub(crate) fn is_tcg(&self) -> bool {
        self.kind == Kind::Tcg
    }

    /// How much of the work it does: of workloads, of programs.
    pub(crate) fn scales(&self) -> (f64, f64) {
        if self.kind == Kind::Ombra && self.name == "interpreter" { SLOW } else { (1.0, 1.0) }
    }

    /// Runs guests/bench with these words.
    ///
    /// # Errors
    /// This part can't run here.
    pub(crate) fn command(&self, files: &Files, part: Part, words: &[String]) -> Result<Command> {
        let programs = match part {
            Part::Plain | Part::TwoCpus => None,
            Part::Programs => Some(files.programs.as_ref().context("there is no root file system of them")?),
        };
        let (initramfs, memory) = match programs {
            Some((archive, _)) => (archive, "2G"),
            None => (&files.archive, "512M"),
        };
        let cpus = if part == Part::TwoCpus { "2" } else { "1" };
        let cmdline = format!("{CMDLINE}{}", words.join(" "));
        let command = match self.kind {
            Kind::Native => match programs {
                Some((_, tree)) => inside(tree, &files.program, words)?,
                None => {
                    let mut command = Command::new(&files.program);
                    command.args(words);
                    command
                }
            },
            Kind::Ombra => {
                let mut command = Command::new(&files.binary);
                command.args(["run", "--engine", &self.name, "--cpus", cpus, "--memory", memory]);
                command.args(["--no-reboot", "--kernel"]);
                command.arg(&files.kernel).arg("--initramfs").arg(initramfs).arg("--cmdline").arg(cmdline);
                command
            }
            Kind::Tcg => {
                let mut command = Command::new("qemu-system-x86_64");
                // The fastest that boots every time: microvm saves 0.2 s, but has no HPET and no PM timer, without which
                // Linux doesn't get to know its TSC's frequency on a busy host, and stops.
                command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", cpus, "-m", memory]);
                command.args(["-nographic", "-no-reboot", "-nic", "none", "-kernel"]);
                command.arg(&files.kernel).arg("-initrd").arg(initramfs).arg("-append").arg(cmdline);
                command
            }
        };
        Ok(command)
    }
}

/// Runs the program in a root file system, in a mount namespace of its own, and where we aren't root in one of users.
fn inside(tree: &Path, program: &Path, words: &[String]) -> Result<Command> {
    const SCRIPT: &str = "set -e; tree=$1; program=$2; shift 2
        mount -t tmpfs tmpfs \"$tree/tmp\"
        mount --rbind /dev \"$tree/dev\"
        mount --rbind /proc \"$tree/proc\"
        cp \"$program\" \"$tree/tmp/bench\"
        exec chroot \"$tree\" /tmp/bench \"$@\"";
    let command = |words: &[String]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh"]);
        command.arg(tree).arg(program).args(words);
        command
    };
    let probe = command(&["--list".to_owned()]).stdin(Stdio::null()).output();
    match probe {
        Ok(output) if output.status.success() => Ok(command(words)),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "this host doesn't let us change the root: {}",
                said.lines().next().unwrap_or("no reason given")
            )
        }
        Err(error) => bail!("can't run unshare: {error}"),
    }
}

/// The engines that an `ombra` has, beside `auto`.
pub(crate) fn engines(binary: &Path) -> Result<Vec<String>> {
    // The complaint about an engine that can't be lists those that can.
    let output = Command::new(binary).args(["run", "--engine", "?"]).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("can't start {}", binary.display()))?;
    let engines = listed(&String::from_utf8_lossy(&output.stderr));
    if engines.is_empty() {
        bail!("{} doesn't say which engines it has", binary.display());
    }
    Ok(engines)
}

fn listed(complaint: &str) -> Vec<String> {
    complaint
        .split_once("[possible values: ")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(values, _)| values.split(", ").filter(|name| *name != "auto").map(str::to_owned).collect())
        .unwrap_or_default()
}

/// QEMU's version, where it is installed.
pub(crate) fn qemu_version() -> Option<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.split_whitespace().nth(3)?.to_owned())
}

/// What was measured on what, for the report.
pub(crate) fn versions(files: &Files, options: &Options) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read(&files.kernel).map(|image| version_of(&image)).unwrap_or_default();
    let mut text = format!(
        "{} (family {}, model {}), {processors} processors; guests with 1 vCPU and Linux {}",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        kernel.unwrap_or_else(|| "?".to_owned())
    );
    if let Some(version) = qemu_version().filter(|_| options.tcg) {
        text += &format!("; QEMU {version} (q35, `-cpu max`)");
    }
    text += &format!("; medians of {} rounds", options.rounds);
    if options.scale != 1.0 {
        text += &format!(", {} of the work", options.scale);
    }
    text
}

/// A bzImage's version (Documentation/arch/x86/boot.rst: kernel_version, at offset 0x20e, from 0x200).
fn version_of(image: &[u8]) -> Option<String> {
    let start = usize::from(u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?)) + 0x200;
    let text = String::from_utf8_lossy(image.get(start..start + 200)?).into_owned();
    Some(text.split([' ', '\0']).next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_off_the_complaint() {
        let said =
            "error: invalid value '?' for '--engine <ENGINE>'\n  [possible values: auto, interpreter, x]\n";
        assert_eq!(listed(said), ["interpreter", "x"]);
        assert!(listed("error").is_empty());
    }

    #[test]
    fn a_kernels_version_is_in_its_header() {
        let mut image = vec![0; 0x600];
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x50c].copy_from_slice(b"6.1.0-9 (x) ");
        assert_eq!(version_of(&image).as_deref(), Some("6.1.0-9"));
        assert_eq!(version_of(&[0; 16]), None);
    }

    #[test]
    fn guests_get_the_words_behind_their_kernels_own() {
        let files = Files::new("o".into(), "k".into(), "p".into(), "a".into());
        let words = ["integer".to_owned(), "--scale".to_owned(), "1".to_owned()];
        for monitor in [Monitor::ombra("interpreter"), Monitor::tcg()] {
            let command = monitor.command(&files, Part::Plain, &words).unwrap();
            let last = command.get_args().last().unwrap().to_str().unwrap();
            assert!(last.ends_with(" -- integer --scale 1"), "{last}");
            assert!(monitor.command(&files, Part::Programs, &words).is_err());
        }
    }
}
