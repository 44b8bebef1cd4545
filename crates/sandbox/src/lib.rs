//! Confines this process to what it needs, so that whoever takes over one of its threads - by way of a guest, an image, a packet - gets no further:
//! no other file, no other program, no other part of the kernel.
//!
//! Two steps, neither of which can be taken back:
//!
//! | step | when | by what | what |
//! |---|---|---|---|
//! | [`files`] | before the first thread is started, and before the files are opened | Landlock | opens only files that are in [`Needs`] |
//! | [`calls`] | when everything is set up | seccomp, in all threads | no programs, processes, privileges, mounts, kernel interfaces; sockets as [`Needs`] says |
//!
//! Landlock holds for the thread that asks for it and those that it starts, which is why it comes first. What is open already stays open.
//!
//! Left out: system calls are forbidden by name, all others are allowed; addresses that sockets may reach aren't restricted.

mod calls;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// The file rights of Landlock that are asked for: those of Linux 6.2.
const RIGHTS: ABI = ABI::V3;

/// Which sockets are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Sockets {
    /// None.
    #[default]
    None,
    /// Local ones.
    Unix,
    /// IPv4 and IPv6 as well.
    Internet,
}

/// What a process needs from now on. Empty: nothing but what is open.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Needs {
    /// Files that are read, and folders in which everything is.
    pub read: Vec<PathBuf>,
    /// Files that are read and written, and folders in which everything is, and is made and removed.
    pub write: Vec<PathBuf>,
    /// Files that are made, and written.
    pub make: Vec<PathBuf>,
    /// Sockets.
    pub sockets: Sockets,
    /// Programs or libraries are started, by [`calls`] at the latest: nobody knows which files those need.
    pub programs: bool,
    /// Files of others are managed: renamed, given rights and owners.
    pub manages_files: bool,
}

impl Needs {
    /// What both need.
    pub fn add(&mut self, other: Self) {
        let Self { read, write, make, sockets, programs, manages_files } = other;
        self.read.extend(read);
        self.write.extend(write);
        self.make.extend(make);
        self.sockets = self.sockets.max(sockets);
        self.programs |= programs;
        self.manages_files |= manages_files;
    }
}

/// Why a process isn't confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no Landlock, or only some of it.
    #[error("this kernel can't confine a process to files (Landlock)")]
    NoLandlock,
    /// The kernel refuses the rules.
    #[error("the host refuses rules for files")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter can't be made.
    #[error("the host refuses rules for system calls")]
    Filter(#[from] seccompiler::Error),
    /// The filter can't be built.
    #[error("the rules for system calls are wrong")]
    Rules(#[from] seccompiler::BackendError),
    /// Not for this architecture.
    #[error("there are no rules for this architecture")]
    Architecture,
}

/// From now on this thread, and those that it starts, open only files that they need. To be called before there are others. `false`: nothing
/// was done, since it starts programs that need others.
///
/// # Errors
/// [`SandboxError`]; then nothing is confined.
pub fn files(needs: &Needs) -> Result<bool, SandboxError> {
    if needs.programs {
        return Ok(false);
    }
    let read = AccessFs::from_read(RIGHTS) & !BitFlags::from(AccessFs::Execute);
    let write = AccessFs::from_all(RIGHTS) & !BitFlags::from(AccessFs::Execute);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(RIGHTS))
        .map_err(|_| SandboxError::NoLandlock)?
        .create()?;
    for path in &needs.make {
        // A rule is about a file that is there.
        let _ = OpenOptions::new().create(true).append(true).open(path);
    }
    let rights = [(&needs.read, read), (&needs.write, write), (&needs.make, write)];
    for (path, rights) in rights.iter().flat_map(|(paths, rights)| paths.iter().map(|path| (path, *rights))) {
        // What isn't there is for whoever opens it to say.
        if let Ok(file) = PathFd::new(path) {
            let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(RIGHTS) };
            rules = rules.add_rule(PathBeneath::new(file, rights))?;
        }
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(true),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(SandboxError::NoLandlock),
    }
}

/// From now on no thread of this process makes system calls that it doesn't need.
///
/// # Errors
/// [`SandboxError`]; then nothing is confined.
pub fn calls(needs: &Needs) -> Result<(), SandboxError> {
    calls::confine(needs)
}

/// Files that any process here reads: what it says of itself in /proc, and its own program for messages of panics.
#[must_use]
pub fn own() -> Needs {
    let program = std::env::current_exe().ok();
    Needs { read: program.into_iter().chain([PathBuf::from("/proc/self")]).collect(), ..Needs::default() }
}

/// Where the host's resolvers are named. Where something else than `/etc` has that file, its folder is meant, since it is often replaced.
#[must_use]
pub fn resolvers() -> Needs {
    let file = Path::new("/etc/resolv.conf");
    let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let folder = real.parent().filter(|folder| folder.starts_with("/run")).map(Path::to_owned);
    Needs { read: vec![folder.unwrap_or(real)], ..Needs::default() }
}
