//! The values of `--share`, `--root` and `--rw`, and what a guest is told of them: folders of the host's, and what its root is.

use crate::cli::Run;
use crate::initramfs::Mode;
use crate::modules::Kernel;
use anyhow::{Context, Result, bail};
use control::{DiskConfig, ShareConfig};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of a tag (VIRTIO 1.2, 5.11.4).
const TAG_BYTES: usize = 36;
/// The root's tag.
const ROOT: &str = "ombra.root";
/// What a kernel needs for a root that is the host's.
const FOR_ROOT: [&str; 2] = ["virtiofs", "overlay"];

/// A folder, as the user names it: `DIR[:TAG][,ro]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Share(ShareConfig);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let (text, read_only) = match text.rsplit_once(',') {
            Some((text, "ro" | "readonly" | "readonly=on")) => (text, true),
            Some((text, "rw")) => (text, false),
            _ => (text, false),
        };
        let (folder, tag) = match text.rsplit_once(':') {
            Some((folder, tag)) if !tag.contains('/') => (folder, tag.to_owned()),
            _ => (text, String::new()),
        };
        if folder.is_empty() {
            return Err("wants a folder: DIR[:TAG][,ro]".to_owned());
        }
        let folder = PathBuf::from(folder);
        let tag = if tag.is_empty() { tag_of(&folder)? } else { tag };
        let is_plain = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if tag.len() > TAG_BYTES || !is_plain || tag.starts_with('.') {
            return Err(format!(
                "a tag has up to {TAG_BYTES} letters, digits, dots, dashes and underscores, unlike `{tag}`: name one by DIR:TAG"
            ));
        }
        Ok(Share(ShareConfig { folder, tag, read_only, is_still: false }))
    }
}

/// A folder's own name.
fn tag_of(folder: &Path) -> Result<String, String> {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| format!("`{}` has no name: give it one by DIR:TAG", folder.display()))
}

/// What a guest has as its root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Root {
    /// The host's file system.
    Host,
    /// A folder, or an image of a disk: what the path is decides.
    Path(PathBuf),
    /// busybox in the initramfs.
    Busybox,
}

impl FromStr for Root {
    type Err = String;

    fn from_str(text: &str) -> Result<Root, String> {
        match text {
            "" => Err("wants host, busybox, a folder or an image".to_owned()),
            "host" => Ok(Root::Host),
            "busybox" | "none" => Ok(Root::Busybox),
            path => Ok(Root::Path(path.into())),
        }
    }
}

/// Folders of a guest, and what its init does with them.
#[derive(Default, Debug)]
pub(crate) struct Folders {
    pub(crate) shares: Vec<ShareConfig>,
    /// The root's disk, before all others.
    pub(crate) disk: Option<DiskConfig>,
    /// For init: a line each, `root share TAG`, `root disk`, `mount TAG PATH`, with `ro` at the end where it is.
    pub(crate) instructions: String,
    /// The command's working folder.
    pub(crate) directory: Option<PathBuf>,
    /// Modules that are needed.
    pub(crate) modules: Vec<&'static str>,
}

impl Folders {
    /// What the flags want for a guest of this kind.
    ///
    /// # Errors
    /// A root that this kernel can't have, or a folder that isn't there.
    pub(crate) fn plan(flags: &Run, mode: Option<Mode>, kernel: &Kernel) -> Result<Self> {
        let mut folders = Self::default();
        if mode.is_some() {
            folders.root(flags, mode, kernel)?;
        } else if flags.root.is_some() || !flags.rw.is_empty() {
            bail!("--root and --rw want a command, or a shell in a guest of ours");
        }
        for folder in &flags.rw {
            let there = canonical(folder)?;
            let tag = format!("ombra.rw{}", folders.shares.len());
            let share = ShareConfig { folder: there.clone(), tag, read_only: false, is_still: false };
            folders.mount(share, &there)?;
        }
        for Share(share) in &flags.share {
            if folders.shares.iter().any(|other| other.tag == share.tag) {
                bail!("two folders have the tag `{}`: name another by DIR:TAG", share.tag);
            }
            let at = Path::new("/mnt").join(&share.tag);
            folders.mount(share.clone(), &at)?;
        }
        if !folders.shares.is_empty() {
            folders.modules.push("virtiofs");
        }
        Ok(folders)
    }

    fn mount(&mut self, share: ShareConfig, at: &Path) -> Result<()> {
        let path = at.to_str().filter(|path| !path.contains(['\n', ' '])).with_context(|| {
            format!("{} can't be mounted: its name has spaces or isn't UTF-8", at.display())
        })?;
        let end = if share.read_only { " ro" } else { "" };
        // Writing to a string can't fail.
        let _ = writeln!(self.instructions, "mount {} {path}{end}", share.tag);
        self.shares.push(share);
        Ok(())
    }

    fn root(&mut self, flags: &Run, mode: Option<Mode>, kernel: &Kernel) -> Result<()> {
        let missing: Vec<&str> = FOR_ROOT.into_iter().filter(|name| !kernel.has(name)).collect();
        let root = match &flags.root {
            Some(root) => root.clone(),
            None if mode == Some(Mode::Shell) => Root::Busybox,
            None if !missing.is_empty() || !kernel.has("virtio_console") || !kernel.has("virtio_pci") => {
                tracing::info!(
                    "the root is an initramfs of busybox: the kernel may have no virtio_pci, virtio_console, virtiofs and \
                     overlay ({})",
                    kernel.place()
                );
                Root::Busybox
            }
            None => Root::Host,
        };
        let folder = match root {
            Root::Busybox if !flags.rw.is_empty() => bail!("--rw wants a root of the host's: --root host"),
            Root::Busybox => return Ok(()),
            Root::Path(path) if path.is_file() => {
                tracing::info!(
                    "the root is the image {}; what is written to it is thrown away",
                    path.display()
                );
                self.disk = Some(DiskConfig {
                    file: path,
                    format: None,
                    read_only: false,
                    snapshot: true,
                    serial: Some("root".to_owned()),
                    encryption: None,
                    bus: control::DiskBus::Virtio,
                });
                self.instructions.push_str("root disk\n");
                return Ok(());
            }
            Root::Path(path) => canonical(&path)?,
            Root::Host => {
                self.directory = std::env::current_dir().ok();
                PathBuf::from("/")
            }
        };
        if !missing.is_empty() {
            bail!(
                "a root of the host's needs {} in the guest's kernel, built in or as modules (looked in {}); another root is \
                 --root busybox, or an image",
                missing.join(" and "),
                kernel.place()
            );
        }
        tracing::info!("the root is {}, read-only under a throw-away overlay", folder.display());
        self.modules.extend(FOR_ROOT);
        let _ = writeln!(self.instructions, "root share {ROOT}");
        self.shares.push(ShareConfig { folder, tag: ROOT.to_owned(), read_only: true, is_still: true });
        Ok(())
    }
}

/// A folder's whole name.
fn canonical(folder: &Path) -> Result<PathBuf> {
    let there =
        folder.canonicalize().with_context(|| format!("can't share the folder {}", folder.display()))?;
    if !there.is_dir() {
        bail!("can't share {}: it is no folder", folder.display());
    }
    Ok(there)
}

/// As many descriptors as the process may have: each file that a guest knows costs one.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that fails the guest knows fewer files.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// `NAME=VALUE`, or the host's value for `NAME`; none, where the host has none.
pub(crate) fn variable(text: &str) -> Result<Option<String>> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || text.contains('\0') {
        bail!("-e wants NAME or NAME=VALUE, not `{text}`");
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    match std::env::var(name) {
        Ok(value) => Ok(Some(format!("{name}={value}"))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => bail!("-e {name}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> ShareConfig {
        text.parse::<Share>().unwrap().0
    }

    #[test]
    fn a_folder_has_its_own_name_as_tag_or_the_one_it_is_given() {
        assert_eq!((share("/usr/share").tag.as_str(), share("/usr/share").read_only), ("share", false));
        assert_eq!(share("/usr/share:docs,ro").tag, "docs");
        assert!(share("/usr/share:docs,ro").read_only);
        assert_eq!(share("/a:b/c").folder, PathBuf::from("/a:b/c"));
    }

    #[test]
    fn folders_that_cannot_be_named_are_refused() {
        for (text, hint) in
            [("", "wants a folder"), (":x", "wants a folder"), ("/", "DIR:TAG"), ("/x:a b", "tag")]
        {
            let problem = text.parse::<Share>().unwrap_err();
            assert!(problem.contains(hint), "{text}: {problem}");
        }
        assert!("/x".parse::<Share>().is_ok());
        assert!(format!("/x:{}", "t".repeat(37)).parse::<Share>().is_err());
    }

    #[test]
    fn a_variable_has_its_value_or_the_hosts() {
        assert_eq!(variable("A=b=c").unwrap().as_deref(), Some("A=b=c"));
        assert_eq!(variable("NOBODY_HAS_THIS").unwrap(), None);
        assert!(variable("PATH").unwrap().unwrap().starts_with("PATH="));
        assert!(variable("=x").is_err());
    }
}
