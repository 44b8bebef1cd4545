//! The command line: flags, their help, and what their values may be. `main` parses it; nothing here does anything.

use crate::disks::Disk;
use crate::network::{Net, Publish};
use crate::shares::{Root, Share};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;

const AFTER_HELP: &str = "\
Examples:
  ombra run                                   a shell in a guest, with the kernel that `make run` fetched
  ombra run -- sh -c 'uname -a; exit 7'       one command in a guest; ends with its exit status
  ombra run -k bzImage --initramfs root.cpio  any kernel, its serial console on this terminal
  ombra doctor                                what this host offers

Exit status: that of the guest's command; 0 when the guest powers off; 125 when Ombra fails, 2 for wrong usage,
128+N when signal N ends it.";

const AFTER_RUN_HELP: &str = "\
Examples:
  ombra run
  ombra run -- sh -c 'cat /proc/cpuinfo'
  tar c . | ombra run -- tar t
  ombra run -m 2G -k vmlinuz --initramfs initrd.img -a 'console=ttyS0 root=/dev/ram0'
  ombra run -k test.elf --test-devices --no-reboot
  ombra run -p 8080:80 -- httpd -f -h /etc
  ombra run --disk disk.img -- sh -c 'mount /dev/vda /mnt && ls /mnt'

Without COMMAND and without --kernel, a shell runs in a guest of busybox. With COMMAND, its input, output and errors are
Ombra's own; the kernel's messages are kept and shown when the guest fails (or with --verbose). On a terminal: Ctrl-A X
quits, Ctrl-A H helps, Ctrl-A Ctrl-A sends Ctrl-A.";

/// Runs unmodified x86 operating systems in a process that needs no privileges and no /dev/kvm.
#[derive(Parser, Debug)]
#[command(name = "ombra", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a guest, or one command in a guest
    Run(Box<Run>),
    /// Make disk images, encrypted ones too, convert them, say what they are
    #[command(subcommand)]
    Disk(Box<DiskCommand>),
    /// Say what this host offers: KVM (by running guest code), CPU features, memory, limits
    Doctor,
    /// Used by `doctor`: runs the KVM probe in a process that can be abandoned
    #[command(hide = true)]
    KvmProbe,
}

#[derive(Args, Debug)]
#[command(after_help = AFTER_RUN_HELP, next_line_help = false)]
pub(crate) struct Run {
    /// Kernel: bzImage, ELF (vmlinux, PVH) or multiboot image [default: the cache's, else the newest of /boot]
    #[arg(short, long, value_name = "FILE", help_heading = "Boot")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk; for multiboot a comma-separated list of modules
    #[arg(long, value_name = "FILE", alias = "initrd", conflicts_with = "command", help_heading = "Boot")]
    pub(crate) initramfs: Option<PathBuf>,
    /// Kernel command line; may be repeated [default: console=ttyS0 no_timer_check, and the
    /// TSC's frequency where Linux doesn't ask CPUID for it]
    #[arg(
        short = 'a',
        long,
        value_name = "STRING",
        aliases = ["append", "params"],
        allow_hyphen_values = true,
        help_heading = "Boot"
    )]
    pub(crate) cmdline: Vec<String>,

    /// Guest memory: MiB, or with K, M, G, T; taken from the host as it is touched
    #[arg(short, long, value_name = "SIZE", alias = "mem", default_value = "512M", help_heading = "Machine")]
    pub(crate) memory: Memory,
    /// Number of vCPUs
    #[arg(
        short,
        long,
        value_name = "N",
        alias = "smp",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(interpreter::MAX_VCPUS)),
        help_heading = "Machine"
    )]
    pub(crate) cpus: u32,
    /// Disk: FILE[,bus=virtio|nvme][,format=raw|qcow2][,readonly=on][,snapshot=on][,serial=TEXT], or an NBD server's nbd://HOST/NAME or
    /// nbd+unix:///NAME?socket=PATH; encrypted: [,encrypt=luks|xts|plugin:PATH|nbd:COMMAND][,key-file=PATH|,key-fd=N|,prompt];
    /// may be repeated, up to 16 times
    #[arg(long, value_name = "FILE", alias = "block", help_heading = "Machine")]
    pub(crate) disk: Vec<Disk>,
    /// Network: user[,hostfwd=tcp|udp:[IP]:PORT-[IP]:PORT][,host-loopback=on], tap=NAME or socket=PATH, each [,mac=ADDR]
    #[arg(
        long,
        value_name = "NET",
        alias = "network",
        num_args = 0..=1,
        default_missing_value = "user",
        help_heading = "Machine"
    )]
    pub(crate) net: Vec<Net>,
    /// Publish a port of the guest's: [IP:]HOST:GUEST[/udp], on this host alone without IP; implies --net; may be repeated
    #[arg(short, long, value_name = "PORTS", help_heading = "Machine")]
    pub(crate) publish: Vec<Publish>,
    /// Folder of this host's that the guest sees, DIR[:TAG][,ro]: at /mnt/TAG with COMMAND, else by `mount -t virtiofs TAG`; may be repeated
    #[arg(long, value_name = "DIR", help_heading = "Machine")]
    pub(crate) share: Vec<Share>,
    /// Root of COMMAND's guest: host (this system's files, read-only below a throw-away overlay), busybox, a folder, or a disk's
    /// image, whose changes are thrown away [default: host, where the kernel can]
    #[arg(long, value_name = "ROOT", conflicts_with = "initramfs", help_heading = "Machine")]
    pub(crate) root: Option<Root>,
    /// Folder that COMMAND may write to, in its place below a root of the host's; may be repeated
    #[arg(long, value_name = "DIR", conflicts_with = "initramfs", help_heading = "Machine")]
    pub(crate) rw: Vec<PathBuf>,
    /// Environment variable of COMMAND's: NAME (as it is here) or NAME=VALUE; may be repeated
    #[arg(short, long, value_name = "NAME", conflicts_with = "initramfs", help_heading = "Machine")]
    pub(crate) env: Vec<String>,
    /// Offer the guest 5-level paging (57-bit addresses)
    #[arg(long, help_heading = "Machine")]
    pub(crate) la57: bool,
    /// Offer the guest MONITOR and MWAIT, with which it then waits for work
    #[arg(long, help_heading = "Machine")]
    pub(crate) mwait: bool,
    /// What executes guest code
    #[arg(long, value_enum, value_name = "ENGINE", alias = "accel", default_value_t = Engine::Auto, help_heading = "Machine")]
    pub(crate) engine: Engine,
    /// Memory for translated code, of all vCPUs together: MiB, or with K, M, G [default: 64M for each vCPU]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub(crate) code_cache: Option<CodeCache>,
    /// Memory for the virtual TLB, of all vCPUs together: MiB, or with K, M, G [default: 256M for each vCPU]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub(crate) shadow_memory: Option<ShadowMemory>,
    /// What the guest does against leaks of CPUs: off costs nothing, guest is what it would do on this host
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Mitigations::Off, help_heading = "Machine")]
    pub(crate) mitigations: Mitigations,
    /// The interface for guests that know they are guests: KVM's, Hyper-V's, none, or what is best for most
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        default_value_t = Enlightenments::Auto,
        help_heading = "Machine"
    )]
    pub(crate) enlightenments: Enlightenments,
    /// Where the first serial port leads: stdio, file:PATH or null
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "stdio",
        conflicts_with = "command",
        help_heading = "Machine"
    )]
    pub(crate) serial: Serial,
    /// A command's streams go through serial ports, as with kernels that have no driver for virtio consoles
    #[arg(long, hide = true, help_heading = "Machine")]
    pub(crate) no_console: bool,
    /// Load a module of the kernel's before COMMAND or the shell; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "initramfs", help_heading = "Boot")]
    pub(crate) module: Vec<String>,
    /// A guest reboot ends Ombra
    #[arg(long, help_heading = "Machine")]
    pub(crate) no_reboot: bool,
    /// Add the devices that bare-metal test kernels written for QEMU expect
    #[arg(long, help_heading = "Machine")]
    pub(crate) test_devices: bool,

    /// What this process may still do when the guest runs: only what the flags need (on; auto, where the host can do that) or
    /// all that its user may (off)
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = Sandbox::Auto,
        default_missing_value = "on",
        help_heading = "Machine"
    )]
    pub(crate) sandbox: Sandbox,

    /// Show the guest kernel's messages (with COMMAND) and what Ombra does
    #[arg(short = 'V', long, help_heading = "Messages")]
    pub(crate) verbose: bool,
    /// At the end, print what was counted to stderr, or to FILE as JSON; counting instructions costs some speed
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-",
        help_heading = "Messages"
    )]
    pub(crate) stats: Option<PathBuf>,
    /// Print the translation of the code at this address (linear, hexadecimal) when it is made; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = address, help_heading = "Messages")]
    pub(crate) dump_translation: Vec<u64>,
    /// Switch a mechanism, to measure it or to check it: spaces=off drops address spaces that the guest leaves, check=on compares what
    /// is held of them with fresh page walks, chaos=on flushes at random, pv-NAME=off leaves out a part of --enlightenments (clock, steal,
    /// eoi, spin, flush, ipi, yield, poll, synic, timers); may be repeated
    #[arg(long, value_name = "NAME=on|off", help_heading = "Messages")]
    pub(crate) feature: Vec<Feature>,
    /// No messages but errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Messages")]
    pub(crate) quiet: bool,

    /// Command to run in the guest
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

const AFTER_DISK_HELP: &str = "\
Examples:
  ombra disk create data.img 10G
  ombra disk create data.qcow2 10G
  ombra disk create top.qcow2 --backing base.qcow2
  ombra disk create secret.img,encrypt=luks,key-file=secret.key 10G
  ombra disk convert old.qcow2 new.qcow2,encrypt=luks1,prompt
  ombra disk info secret.img

FILE is what --disk of `ombra run` takes: FILE[,format=raw|qcow2][,encrypt=luks|luks1|luks2|xts|CIPHER|plugin:PATH][,key-file=PATH|,key-fd=N|,prompt].
A new file's format is the one that its name's ending says. docs/encryption.md has more.";

/// What `ombra disk` does.
#[derive(Subcommand, Debug)]
#[command(after_help = AFTER_DISK_HELP)]
pub(crate) enum DiskCommand {
    /// Make an image
    Create(CreateDisk),
    /// Copy an image to a new one of another format or encryption
    Convert(ConvertDisk),
    /// Say what an image is; with its key, whether that opens it
    Info(InfoDisk),
}

#[derive(Args, Debug)]
pub(crate) struct CreateDisk {
    /// The new image: FILE and options as --disk has them
    #[arg(value_name = "FILE")]
    pub(crate) disk: Disk,
    /// What a guest is to have: MiB, or with K, M, G, T
    #[arg(value_name = "SIZE")]
    pub(crate) size: Option<Bytes>,
    /// What shows through a qcow2 image where nothing has been written: FILE[,format=raw|qcow2], relative to the image's folder
    #[arg(long, value_name = "FILE")]
    pub(crate) backing: Option<Disk>,
    #[command(flatten)]
    pub(crate) make: MakeDisk,
}

#[derive(Args, Debug)]
pub(crate) struct ConvertDisk {
    /// The image to copy
    #[arg(value_name = "FROM")]
    pub(crate) from: Disk,
    /// The new image
    #[arg(value_name = "TO")]
    pub(crate) to: Disk,
    /// No progress on a terminal
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) make: MakeDisk,
}

/// How an image is made.
#[derive(Args, Debug)]
pub(crate) struct MakeDisk {
    /// Version of qcow2: 3, or 2 for old readers
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub(crate) qcow2_version: u8,
    /// What encrypts a LUKS disk's sectors [default: aes-xts-plain64]
    #[arg(long, value_name = "CIPHER")]
    pub(crate) cipher: Option<String>,
    /// Bytes of a LUKS2 disk's encrypted sectors [default: 512]
    #[arg(long, value_name = "BYTES")]
    pub(crate) sector_size: Option<u32>,
    /// How many milliseconds unlocking a LUKS disk is to take here [default: 2000]
    #[arg(long, value_name = "MS")]
    pub(crate) iter_time: Option<u64>,
    /// Replace a file that is there, or write to a block device
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InfoDisk {
    /// The image: FILE and options as --disk has them
    #[arg(value_name = "FILE")]
    pub(crate) disk: Disk,
}

/// An amount in bytes, whole sectors of 512.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        match bytes(text) {
            Some(Some(bytes)) if bytes > 0 => Ok(Bytes(bytes)),
            Some(Some(_)) => Err("a disk has at least 1K".to_owned()),
            Some(None) => Err("that is more than 64 bits".to_owned()),
            None => Err(WANTS_BYTES.to_owned()),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    /// The best that this host can do
    Auto,
    /// Guest code re-emitted for the host: fast
    Translator,
    /// Instruction by instruction: works everywhere
    Interpreter,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sandbox {
    /// As far as this host can
    Auto,
    /// All of it, or no guest
    On,
    /// Not at all
    Off,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mitigations {
    /// The guest is told that the CPU has no leaks
    Off,
    /// The guest is told what the host's CPUID says
    Guest,
}

impl From<Mitigations> for control::Mitigations {
    fn from(flag: Mitigations) -> Self {
        match flag {
            Mitigations::Off => Self::Off,
            Mitigations::Guest => Self::Guest,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Enlightenments {
    /// What is best for most guests
    Auto,
    /// KVM's
    Kvm,
    /// Hyper-V's
    #[value(name = "hyperv")]
    HyperV,
    /// None: the guest sees hardware alone
    None,
}

impl From<Enlightenments> for control::Enlightenments {
    fn from(flag: Enlightenments) -> Self {
        match flag {
            Enlightenments::Auto => Self::Auto,
            Enlightenments::Kvm => Self::Kvm,
            Enlightenments::HyperV => Self::HyperV,
            Enlightenments::None => Self::None,
        }
    }
}

/// A linear address of the guest's.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("wants a hexadecimal address such as ffffffff81000000".to_owned());
    }
    u64::from_str_radix(digits, 16).map_err(|_| "is more than 64 bits".to_owned())
}

/// Where the first serial port leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Serial {
    Stdio,
    File(PathBuf),
    Null,
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Serial, String> {
        match text.split_once([':', '=']) {
            None if text == "stdio" => Ok(Serial::Stdio),
            None if text == "null" || text == "none" => Ok(Serial::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err("wants stdio, file:PATH or null".to_owned()),
        }
    }
}

/// A mechanism, on or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feature {
    Spaces(bool),
    Check(bool),
    Chaos(bool),
    /// A part of the interface for guests.
    Part(control::Parts, bool),
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Feature, String> {
        let (name, on) = match text.split_once('=') {
            Some((name, "on")) => (name, true),
            Some((name, "off")) => (name, false),
            _ => return Err("wants NAME=on or NAME=off".to_owned()),
        };
        match name {
            "spaces" => Ok(Feature::Spaces(on)),
            "check" => Ok(Feature::Check(on)),
            "chaos" => Ok(Feature::Chaos(on)),
            _ => match control::Parts::NAMES.iter().find(|(part, _)| *part == name) {
                Some((_, part)) => Ok(Feature::Part(*part, on)),
                None => {
                    let parts = control::Parts::NAMES.map(|(name, _)| name).join(", ");
                    Err(format!("there are spaces, check, chaos, {parts}"))
                }
            },
        }
    }
}

/// An amount of guest memory in bytes, a multiple of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory(pub(crate) u64);

impl Memory {
    /// Below this no operating system of this architecture starts.
    const LEAST: u64 = 1 << 20;
    /// What a host process can address with room for everything else.
    const MOST: u64 = 32 << 40;
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Memory, String> {
        match bytes(text) {
            Some(Some(bytes)) if bytes < Memory::LEAST => {
                Err("a guest needs at least 1M of memory".to_owned())
            }
            Some(Some(bytes)) if bytes <= Memory::MOST => Ok(Memory(bytes & !0xfff)),
            Some(_) => Err("a guest can have 32T of memory at most".to_owned()),
            None => Err(WANTS_BYTES.to_owned()),
        }
    }
}

const WANTS_BYTES: &str = "wants a number of MiB, or one with K, M, G or T, such as 1024 or 1G";

/// A number of MiB, or one with a unit, in bytes. `None`: it isn't one; `Some(None)`: it is more than 64 bits.
fn bytes(text: &str) -> Option<Option<u64>> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "K" | "KB" | "KIB" => 10,
        "" | "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    if number.is_empty() {
        return None;
    }
    Some(number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)))
}

/// Memory for translated code in bytes, of all vCPUs together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CodeCache(pub(crate) usize);

impl CodeCache {
    /// Jumps in it reach 2 GiB.
    const MOST: u64 = 1 << 30;

    /// Each vCPU's share; what is wrong where that is too little.
    pub(crate) fn share(self, cpus: u32) -> Result<usize, String> {
        let share = (self.0 / cpus as usize) & !0xfff;
        if share < translator::MIN_CODE_CACHE {
            let least = (cpus as usize * translator::MIN_CODE_CACHE) >> 10;
            return Err(format!(
                "--code-cache {}K is too little for {cpus} vCPUs: at least {least}K",
                self.0 >> 10
            ));
        }
        Ok(share)
    }
}

impl FromStr for CodeCache {
    type Err = String;

    fn from_str(text: &str) -> Result<CodeCache, String> {
        match bytes(text) {
            Some(Some(bytes)) if bytes < translator::MIN_CODE_CACHE as u64 => {
                Err(format!("translated code needs at least {}K", translator::MIN_CODE_CACHE >> 10))
            }
            Some(Some(bytes)) if bytes <= CodeCache::MOST => Ok(CodeCache(bytes as usize)),
            Some(_) => Err("1G is enough for all translated code".to_owned()),
            None => Err(WANTS_BYTES.to_owned()),
        }
    }
}

/// Host memory for the virtual TLB in bytes, of all vCPUs together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShadowMemory(pub(crate) usize);

impl ShadowMemory {
    /// Each vCPU's share; what is wrong where that is too little.
    pub(crate) fn share(self, cpus: u32) -> Result<usize, String> {
        let share = self.0 / cpus as usize;
        if share < translator::MIN_SHADOW_MEMORY {
            let least = (cpus as usize * translator::MIN_SHADOW_MEMORY) >> 20;
            return Err(format!(
                "--shadow-memory {}K is too little for {cpus} vCPUs: at least {least}M",
                self.0 >> 10
            ));
        }
        Ok(share)
    }
}

impl FromStr for ShadowMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<ShadowMemory, String> {
        match bytes(text) {
            Some(Some(bytes)) if bytes < translator::MIN_SHADOW_MEMORY as u64 => {
                Err(format!("the virtual TLB needs at least {}M", translator::MIN_SHADOW_MEMORY >> 20))
            }
            Some(Some(bytes)) if bytes <= 1 << 46 => Ok(ShadowMemory(bytes as usize)),
            Some(_) => Err("the virtual TLB can't use more than 64T".to_owned()),
            None => Err(WANTS_BYTES.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(words: &[&str]) -> Run {
        match Cli::try_parse_from(["ombra", "run"].iter().chain(words)).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_is_mib_unless_it_has_a_unit() {
        assert_eq!("64".parse(), Ok(Memory(64 << 20)));
        assert_eq!("2048K".parse(), Ok(Memory(2 << 20)));
        assert_eq!("1g".parse(), Ok(Memory(1 << 30)));
        assert_eq!("2GiB".parse(), Ok(Memory(2 << 30)));
        assert_eq!("1T".parse(), Ok(Memory(1 << 40)));
    }

    #[test]
    fn features_are_on_or_off() {
        let run = run(&["--feature", "spaces=off", "--feature", "check=on"]);
        assert_eq!(run.feature, [Feature::Spaces(false), Feature::Check(true)]);
        assert_eq!("pv-eoi=off".parse(), Ok(Feature::Part(control::Parts::EOI, false)));
        for text in ["", "spaces", "spaces=", "spaces=yes", "=on", "other=on"] {
            assert!(text.parse::<Feature>().is_err(), "{text}");
        }
    }

    #[test]
    fn absurd_memory_is_refused() {
        for text in
            ["", "0", "1K", "-1", "1.5G", "G", "12X", "33T", "99999999999999999999", "18446744073709551615T"]
        {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    #[test]
    fn shadow_memory_is_shared_out_and_no_share_is_too_small() {
        assert_eq!("64".parse(), Ok(ShadowMemory(64 << 20)));
        assert!("1023K".parse::<ShadowMemory>().is_err());
        assert!("65T".parse::<ShadowMemory>().is_err());
        assert_eq!(ShadowMemory(4 << 20).share(4), Ok(1 << 20));
        let error = ShadowMemory(4 << 20).share(5).expect_err("too little");
        assert!(error.contains("--shadow-memory 4096K") && error.contains("at least 5M"), "{error}");
    }

    #[test]
    fn the_code_cache_is_shared_out_in_pages_and_no_share_is_too_small() {
        assert_eq!("64M".parse(), Ok(CodeCache(64 << 20)));
        assert!("255K".parse::<CodeCache>().is_err());
        assert!("2G".parse::<CodeCache>().is_err());
        assert!("".parse::<CodeCache>().is_err());
        assert_eq!(CodeCache(1 << 20).share(1), Ok(1 << 20));
        assert_eq!(CodeCache(1 << 20).share(3), Ok(0x55000));
        assert_eq!(CodeCache(1 << 20).share(4), Ok(256 << 10));
        let error = CodeCache(1 << 20).share(5).expect_err("too little");
        assert!(error.contains("1280K"), "{error}");
    }

    #[test]
    fn statistics_need_no_file_and_addresses_no_prefix() {
        assert_eq!(run(&["--stats"]).stats, Some("-".into()));
        assert_eq!(run(&["--stats=x.json"]).stats, Some("x.json".into()));
        assert_eq!(run(&["--stats", "--", "x"]).command, ["x"]);
        assert_eq!(run(&[]).stats, None);
        let run = run(&["--dump-translation", "0xffffffff81000000", "--dump-translation", "7c00"]);
        assert_eq!(run.dump_translation, [0xffff_ffff_8100_0000, 0x7c00]);
        for wrong in ["", "0x", "-1", "+1", "10000000000000000", "g"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_monitors_names_of_flags_work() {
        let run = run(&[
            "--initrd", "i", "--append", "a", "--params", "b", "--mem", "1G", "--smp", "2", "--accel", "auto",
        ]);
        assert_eq!(run.initramfs, Some("i".into()));
        assert_eq!(run.cmdline, ["a", "b"]);
        assert_eq!(run.memory, Memory(1 << 30));
        assert_eq!(run.cpus, 2);
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        assert_eq!(
            run(&["-m", "1G", "--", "sh", "-c", "exit 7", "--help"]).command,
            ["sh", "-c", "exit 7", "--help"]
        );
    }

    #[test]
    fn serial_ports_lead_where_they_should() {
        assert_eq!("file:/x/y".parse(), Ok(Serial::File("/x/y".into())));
        assert_eq!("null".parse(), Ok(Serial::Null));
        assert!("file:".parse::<Serial>().is_err());
        assert!("pty".parse::<Serial>().is_err());
    }
}
