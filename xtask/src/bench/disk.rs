//! `cargo xtask bench --only disk`: fio in a guest, on Ombra's virtio-blk and NVMe and on QEMU TCG's virtio-blk, in turn.
//!
//! The guest is the Debian of [`crate::debian`], whose root is a snapshot behind NVMe everywhere; fio reads and writes a second disk,
//! a raw file in memory (`/dev/shm`, where there is one), past the guest's page cache. The shell is the guest's init: nothing else
//! runs. One thread.

use super::{Options, report};
use crate::debian;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Its name among the groups.
pub(crate) const NAME: &str = "disk";
const BEGIN: &str = "<!-- written by `cargo xtask bench --only disk --write` -->\n";
const END: &str = "<!-- end of what it writes about disks -->\n";
/// Bytes of the disk that is measured.
const DISK: u64 = 256 << 20;
/// Seconds of each job, before `--scale`.
const SECONDS: f64 = 4.0;
/// Times faster than TCG.
const TARGET: f64 = 3.0;

/// fio's name of what is done, ours, and bytes of a block.
const KINDS: [(&str, &str, u32); 4] = [
    ("read", "sequential reads", 64),
    ("write", "sequential writes", 64),
    ("randread", "random reads", 4),
    ("randwrite", "random writes", 4),
];
const DEPTHS: [u32; 2] = [1, 32];

/// What is measured, and how it is called.
const MONITORS: [(Monitor, &str); 3] = [
    (Monitor::Virtio, "Ombra, virtio-blk"),
    (Monitor::Nvme, "Ombra, NVMe"),
    (Monitor::Tcg, "TCG, virtio-blk"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Monitor {
    Virtio,
    Nvme,
    Tcg,
}

/// A job: kind and depth.
type Job = (usize, u32);
/// I/Os a second of each job.
type Rates = BTreeMap<Job, f64>;

/// Measures, prints a table, and writes it into the page where that is wanted.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let image = debian::disk(root)?;
    let folder = image.parent().context("an image is in a folder")?.to_path_buf();
    let binary = crate::release_binary()?;
    let memory = Path::new("/dev/shm");
    let data = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let data = data.join(format!("ombra-bench-{}.raw", std::process::id()));
    let session = Session { binary, image, folder, data, seconds: (SECONDS * options.scale).ceil().max(1.0) };
    let measured = measure(&session, options);
    let _ = fs::remove_file(&session.data);
    let text = table(&measured?, options.rounds, session.seconds);
    println!("{text}");
    if options.write {
        report::rewrite(root, BEGIN, END, &text)?;
    }
    Ok(())
}

fn measure(session: &Session, options: &Options) -> Result<Vec<(&'static str, Rates)>> {
    // Holes would be read faster than anything else.
    let mut random = File::open("/dev/urandom")?.take(DISK);
    std::io::copy(&mut random, &mut File::create(&session.data)?)
        .with_context(|| format!("can't fill {}", session.data.display()))?;
    let mut all: Vec<(&'static str, BTreeMap<Job, Vec<f64>>)> = Vec::new();
    for round in 1..=options.rounds {
        for (monitor, name) in MONITORS {
            if monitor == Monitor::Tcg && (!options.tcg || super::monitor::qemu_version().is_none()) {
                continue;
            }
            if monitor != Monitor::Tcg && !options.ombra {
                continue;
            }
            eprintln!("bench: round {round} of {}, {name}", options.rounds);
            let rates = session.run(monitor).with_context(|| format!("{name} failed"))?;
            let place = all.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                all.push((name, BTreeMap::new()));
                all.len() - 1
            });
            for (job, rate) in rates {
                all[place].1.entry(job).or_default().push(rate);
            }
        }
    }
    let medians = |rates: BTreeMap<Job, Vec<f64>>| {
        rates.into_iter().map(|(job, rates)| (job, median(rates))).collect::<Rates>()
    };
    Ok(all.into_iter().map(|(name, rates)| (name, medians(rates))).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Session {
    binary: PathBuf,
    /// The Debian, beside which its kernel is.
    image: PathBuf,
    folder: PathBuf,
    /// The disk that is measured.
    data: PathBuf,
    seconds: f64,
}

impl Session {
    /// What the guest's shell does. Without double quotes, in which the kernel's command line has it.
    fn script(&self) -> String {
        let kinds: Vec<_> = KINDS.iter().map(|(name, ..)| *name).collect();
        let depths: Vec<_> = DEPTHS.iter().map(u32::to_string).collect();
        format!(
            "mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys; mount -t tmpfs t /tmp; cd /tmp; \
             modprobe virtio_pci; modprobe virtio_blk; sleep 1; for d in /dev/vda /dev/nvme1n1; do [ -e $d ] && f=$d; done; \
             for k in {}; do for q in {}; do b=64k; case $k in rand*) b=4k;; esac; \
             echo fio $k $q $(fio --name=x --minimal --filename=$f --direct=1 --ioengine=libaio --rw=$k --bs=$b --iodepth=$q \
             --runtime={} --time_based 2>&1); done; done; echo o > /proc/sysrq-trigger; sleep 100",
            kinds.join(" "),
            depths.join(" "),
            self.seconds
        )
    }

    fn command(&self, monitor: Monitor) -> Command {
        let kernel = self.folder.join("vmlinuz");
        let cmdline = format!(
            "console=ttyS0 no_timer_check quiet root=/dev/nvme0n1 ro init=/bin/sh -- -c \"{}\"",
            self.script()
        );
        let (image, data) = (self.image.display(), self.data.display());
        if monitor == Monitor::Tcg {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1G", "-display", "none"]);
            command.args(["-serial", "stdio", "-monitor", "none", "-no-reboot", "-append", &cmdline]);
            command.arg("-kernel").arg(kernel);
            command.args(["-drive", &format!("file={image},if=none,id=root,snapshot=on")]);
            command.args(["-device", "nvme,drive=root,serial=root"]);
            command.args(["-drive", &format!("file={data},format=raw,if=none,id=data")]);
            command.args(["-device", "virtio-blk-pci,drive=data"]);
            return command;
        }
        let bus = if monitor == Monitor::Nvme { "nvme" } else { "virtio" };
        let mut command = Command::new(&self.binary);
        command.args(["run", "-m", "1G", "-a", &cmdline]).arg("-k").arg(kernel);
        command.args(["--disk", &format!("{image},bus=nvme,snapshot=on")]);
        command.args(["--disk", &format!("{data},format=raw,bus={bus}")]);
        command
    }

    fn run(&self, monitor: Monitor) -> Result<Rates> {
        let output = self.command(monitor).stdin(Stdio::null()).output().context("it doesn't start")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rates: Rates = text.lines().filter_map(rate).collect();
        if rates.len() < KINDS.len() * DEPTHS.len() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("not all jobs have ended ({}):\n{text}{errors}", output.status);
        }
        Ok(rates)
    }
}

/// What a line of the guest says: kind, depth, and fio's terse output, in which I/Os a second are field 8 of reads and 49 of writes.
fn rate(line: &str) -> Option<(Job, f64)> {
    let mut words = line.trim().strip_prefix("fio ")?.splitn(3, ' ');
    let (name, depth, terse) = (words.next()?, words.next()?, words.next()?);
    let kind = KINDS.iter().position(|(known, ..)| *known == name)?;
    let field = if name.contains("write") { 48 } else { 7 };
    Some(((kind, depth.parse().ok()?), terse.split(';').nth(field)?.parse().ok()?))
}

fn table(measured: &[(&'static str, Rates)], rounds: u32, seconds: f64) -> String {
    let tcg = measured.iter().find(|(name, _)| name.starts_with("TCG")).map(|(_, rates)| rates);
    let mut text = format!(
        "fio in a guest with 1 vCPU, direct I/O of one job with libaio on a raw file in the host's memory; {seconds} s a job, medians of \
         {rounds} rounds. Target: {TARGET} times TCG.\n\n| I/Os a second "
    );
    for (name, _) in measured {
        let _ = write!(text, "| {name} ");
        if tcg.is_some() && !name.starts_with("TCG") {
            text.push_str("| / TCG ");
        }
    }
    text.push_str("|\n|---");
    let columns =
        measured.iter().map(|(name, _)| if tcg.is_some() && !name.starts_with("TCG") { 2 } else { 1 });
    text.push_str(&"|---".repeat(columns.sum()));
    text.push_str("|\n");
    for (kind, (_, name, kib)) in KINDS.iter().enumerate() {
        for depth in DEPTHS {
            let _ = write!(text, "| {name}, {kib} KiB, depth {depth} ");
            for (monitor, rates) in measured {
                let rate = rates.get(&(kind, depth)).copied().unwrap_or_default();
                let _ = write!(text, "| {rate:.0} ");
                if let Some(tcg) = tcg.filter(|_| !monitor.starts_with("TCG")) {
                    let ratio = rate / tcg.get(&(kind, depth)).copied().unwrap_or(f64::NAN);
                    let _ = write!(text, "| {ratio:.1}{} ", if ratio >= TARGET { ", met" } else { "" });
                }
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fio_has_its_rate() {
        let terse: Vec<String> = (0..120).map(|field| field.to_string()).collect();
        let terse = terse.join(";");
        assert_eq!(rate(&format!("fio randread 32 {terse}")), Some(((2, 32), 7.0)));
        assert_eq!(rate(&format!("fio write 1 {terse}\r")), Some(((1, 1), 48.0)));
        assert_eq!(rate("fio randread 32 fio: no such file"), None);
        assert_eq!(rate("[ 1.0] fio"), None);
    }

    #[test]
    fn the_table_has_ratios_where_there_is_something_to_compare_with() {
        let rates = |factor: f64| -> Rates {
            (0..4).flat_map(|kind| DEPTHS.map(|depth| ((kind, depth), 100.0 * factor))).collect()
        };
        let text = table(&[("Ombra, NVMe", rates(4.0)), ("TCG, virtio-blk", rates(1.0))], 3, 4.0);
        assert!(text.contains("| random reads, 4 KiB, depth 32 | 400 | 4.0, met | 100 |"), "{text}");
        let text = table(&[("Ombra, NVMe", rates(4.0))], 1, 4.0);
        assert!(text.contains("| random reads, 4 KiB, depth 32 | 400 |\n"), "{text}");
    }

    #[test]
    fn the_script_fits_a_command_line() {
        let session = Session {
            binary: PathBuf::new(),
            image: PathBuf::new(),
            folder: PathBuf::new(),
            data: PathBuf::new(),
            seconds: 4.0,
        };
        // Linux takes 2048 bytes, and quotes end at the next one.
        assert!(session.script().len() < 1800 && !session.script().contains('"'));
    }
}
