//! `cargo xtask soak`: a mixed load (compile, compress, scripts) in a guest for as long as is wanted, every result compared
//! with that of a native run of the same programs.
//!
//! `guests/soak/turn.sh` is the load, a round of which has a seed. The rounds of all seeds run here first, in the unpacked
//! root file system of [`rootfs::PROGRAMS`]; without root that needs user namespaces. What the guest printed stays in
//! `cache/soak.log`. Two threads: one reads the guest's console.

use crate::{guests, rootfs};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Seeds that the rounds take in turn.
const SEEDS: u32 = 6;
/// A guest that prints nothing for so long hangs. A round takes the interpreter minutes.
const PATIENCE: Duration = Duration::from_secs(1800);
const SCRIPTS: &[&str] = &["init.sh", "numbers.lua", "turn.sh", "words.pl", "write.py"];
/// What the kernel says when something is wrong.
const SYMPTOMS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "lockup",
    "detected stalls",
    "Out of memory",
    "segfault",
    "trap ",
];

/// How to soak.
struct Options {
    minutes: u64,
    engine: String,
    cpus: u32,
}

/// `--minutes N`, `--engine NAME`, `--cpus N`.
pub(crate) fn command(root: &Path, words: &[&str]) -> Result<()> {
    let mut options = Options { minutes: 60, engine: "auto".to_owned(), cpus: 1 };
    for pair in words.chunks(2) {
        match *pair {
            ["--minutes", count] => options.minutes = number(count)?,
            ["--cpus", count] => options.cpus = number(count)? as u32,
            ["--engine", name] => options.engine = name.to_owned(),
            _ => bail!("soak takes --minutes N, --engine NAME and --cpus N, not `{}`", pair.join(" ")),
        }
    }
    if options.cpus > SEEDS {
        bail!("at most {SEEDS} vCPUs, one for each seed");
    }
    run(root, &options)
}

fn number(text: &str) -> Result<u64> {
    text.parse()
        .ok()
        .filter(|&count| count > 0 && count < 1_000_000)
        .with_context(|| format!("a number from 1, not `{text}`"))
}

/// A round's results: its lines without the seed.
type Round = Vec<String>;

fn run(root: &Path, options: &Options) -> Result<()> {
    guests::fetch(root, guests::For::Run)?;
    let archive = rootfs::archive(root, &rootfs::PROGRAMS)?;
    let binary = crate::release_binary()?;
    let wanted = natively(root)?;
    let initramfs = guests::cache(root).join("soak.cpio");
    pack(root, options, &archive, &initramfs)?;
    let mut guest = Command::new(&binary)
        .args(["run", "--engine", &options.engine, "--cpus", &options.cpus.to_string()])
        .args(["--memory", "2G", "--no-reboot", "--cmdline", "console=ttyS0 no_timer_check quiet panic=-1"])
        .arg("--kernel")
        .arg(guests::cache(root).join("guests/cloud/vmlinuz"))
        .arg("--initramfs")
        .arg(&initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start ombra")?;
    let start = Instant::now();
    let watched = watch(root, &mut guest, &wanted);
    if watched.is_err() {
        let _ = guest.kill();
    }
    let status = guest.wait()?;
    let _ = fs::remove_file(&initramfs);
    let rounds = watched?;
    if !status.success() {
        bail!("ombra ended with {status}; the guest's console is in cache/soak.log");
    }
    if rounds < options.cpus || start.elapsed() < Duration::from_secs(60 * options.minutes) {
        bail!("the guest ended after {rounds} rounds and {} s", start.elapsed().as_secs());
    }
    println!(
        "soak: {rounds} rounds in {:.1} minutes, every result as natively",
        start.elapsed().as_secs_f64() / 60.0
    );
    Ok(())
}

/// The rounds of all seeds on this host.
fn natively(root: &Path) -> Result<BTreeMap<String, Round>> {
    let tree = rootfs::tree(root, &rootfs::PROGRAMS);
    let place = tree.join("soak");
    fs::create_dir_all(&place)?;
    for script in SCRIPTS {
        fs::copy(root.join("guests/soak").join(script), place.join(script))?;
    }
    // Only root may change its root; a user namespace makes one of everybody.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let mut rounds = BTreeMap::new();
    for seed in 1..=SEEDS {
        let folder = tree.join("tmp").join(format!("round-{seed}"));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let mut command = Command::new(if is_root { "chroot" } else { "unshare" });
        if !is_root {
            command.args(["--map-root-user", "chroot"]);
        }
        command.arg(&tree).args(["/usr/bin/dash", "/soak/turn.sh"]);
        command.arg(seed.to_string()).arg(format!("/tmp/round-{seed}"));
        let output = command.stdin(Stdio::null()).output().context("can't run the load natively")?;
        if !output.status.success() {
            bail!(
                "the native round {seed} ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::remove_dir_all(&folder)?;
        let lines: Round = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        if lines.is_empty() {
            bail!("the native round {seed} printed nothing");
        }
        rounds.insert(seed.to_string(), lines);
    }
    println!("soak: {SEEDS} rounds natively, {} results each", rounds["1"].len());
    Ok(rounds)
}

fn pack(root: &Path, options: &Options, archive: &Path, to: &Path) -> Result<()> {
    let mut files = Vec::new();
    for script in SCRIPTS {
        let contents = fs::read(root.join("guests/soak").join(script))?;
        let name = if *script == "init.sh" { "init".to_owned() } else { format!("soak/{script}") };
        files.push((name, 0o755, contents));
    }
    files.push(("soak/minutes".to_owned(), 0o644, format!("{}\n", options.minutes).into_bytes()));
    files.push(("soak/seeds".to_owned(), 0o644, format!("{SEEDS}\n").into_bytes()));
    let added: Vec<rootfs::Added<'_>> =
        files.iter().map(|(name, mode, contents)| (name.as_str(), *mode, contents.as_slice())).collect();
    rootfs::with_files(archive, &added, to)
}

/// Reads the console to its end and compares; the number of whole rounds.
fn watch(root: &Path, guest: &mut Child, wanted: &BTreeMap<String, Round>) -> Result<u32> {
    let log = guests::cache(root).join("soak.log");
    let mut log =
        BufWriter::new(fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?);
    let lines = console(guest)?;
    let mut rounds = Rounds { wanted, open: BTreeMap::new(), whole: 0 };
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(rounds.whole),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                bail!("the guest printed nothing for {} minutes; see cache/soak.log", PATIENCE.as_secs() / 60)
            }
        };
        writeln!(log, "{line}")?;
        log.flush()?;
        if let Some(symptom) = SYMPTOMS.iter().find(|symptom| line.contains(**symptom)) {
            bail!("the guest's kernel says `{symptom}`: {line}");
        }
        let before = rounds.whole;
        rounds.line(&line)?;
        if rounds.whole > before {
            println!("soak: {} rounds", rounds.whole);
        }
    }
}

/// The console's lines, from a thread that ends with the guest.
fn console(guest: &mut Child) -> Result<Receiver<String>> {
    let stdout = guest.stdout.take().context("a pipe was asked for")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

/// What the guest has told so far.
struct Rounds<'a> {
    wanted: &'a BTreeMap<String, Round>,
    /// Results of rounds that haven't ended.
    open: BTreeMap<String, Round>,
    whole: u32,
}

impl Rounds<'_> {
    /// Takes a line: `soak SEED NAME CHECKSUM`, `soak SEED end` or anything else.
    fn line(&mut self, line: &str) -> Result<()> {
        let Some(rest) = line.strip_prefix("soak ") else { return Ok(()) };
        let (seed, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let Some(wanted) = self.wanted.get(seed) else { bail!("the guest says: {line}") };
        if rest != "end" {
            self.open.entry(seed.to_owned()).or_default().push(rest.to_owned());
            return Ok(());
        }
        let got = self.open.remove(seed).unwrap_or_default();
        if let Some((got, wanted)) = got.iter().zip(wanted).find(|(got, wanted)| got != wanted) {
            bail!("seed {seed}: `{got}` in the guest, `{wanted}` natively");
        }
        if got.len() != wanted.len() {
            bail!("seed {seed}: {} results in the guest, {} natively", got.len(), wanted.len());
        }
        self.whole += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Result<u32> {
        let wanted = BTreeMap::from([("1".to_owned(), vec!["a 1".to_owned(), "b 2".to_owned()])]);
        let mut rounds = Rounds { wanted: &wanted, open: BTreeMap::new(), whole: 0 };
        for line in lines {
            rounds.line(line)?;
        }
        Ok(rounds.whole)
    }

    #[test]
    fn a_round_counts_when_all_its_results_are_right() {
        assert_eq!(told(&["noise", "soak 1 a 1", "soak 1 b 2", "soak 1 end"]).expect("right"), 1);
        assert_eq!(told(&["soak 1 a 1"]).expect("unfinished"), 0);
    }

    #[test]
    fn wrong_missing_and_failed_results_are_errors() {
        for lines in [
            &["soak 1 a 1", "soak 1 b 3", "soak 1 end"][..],
            &["soak 1 a 1", "soak 1 end"],
            &["soak 1 end"],
            &["soak failed 1"],
            &["soak 7 a 1"],
        ] {
            assert!(told(lines).is_err(), "{lines:?}");
        }
    }
}
