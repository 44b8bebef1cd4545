//! Root file systems of Debian's programs: packages with all they depend on, unpacked into `cache/rootfs/NAME/` and packed as
//! the initramfs `cache/guests/rootfs-NAME.cpio`. Tests, `bench` and `soak` start guests from the archive and run the same
//! programs natively in the folder.
//!
//! No package is configured and nothing runs as root: there are no users, no alternatives, no `ld.so.cache`, which programs
//! called by their own names don't miss. A static busybox is in each for what a guest's init needs. The archive has no
//! `/init`; [`with_files`] makes an archive that has. A changed recipe is built anew.

use crate::apt::Apt;
use crate::guests;
use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a root file system is made of.
pub(crate) struct Recipe {
    /// Of the archive and the folder.
    pub(crate) name: &'static str,
    /// Debian's packages; what they depend on comes along.
    pub(crate) packages: &'static [&'static str],
    /// Beginnings of paths that are left out, beside [`NEVER`].
    pub(crate) without: &'static [&'static str],
}

/// A JIT that starts fast, for the tests.
pub(crate) const JIT: Recipe =
    Recipe { name: "jit", packages: &["luajit", "busybox-static"], without: &["usr/share/"] };

/// Character sets, and the largest of what C without link-time optimisation, sanitizers and profiles doesn't need.
const COMPILER: &[&str] = &[
    "usr/bin/lto-dump",
    "usr/bin/x86_64-linux-gnu-dwp",
    "usr/bin/x86_64-linux-gnu-gp",
    "usr/bin/x86_64-linux-gnu-lto-dump",
    "usr/lib/gcc/x86_64-linux-gnu/12/libasan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libgcov",
    "usr/lib/gcc/x86_64-linux-gnu/12/libgomp",
    "usr/lib/gcc/x86_64-linux-gnu/12/libitm",
    "usr/lib/gcc/x86_64-linux-gnu/12/liblsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libtsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/libubsan",
    "usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "usr/lib/gcc/x86_64-linux-gnu/12/plugin/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/x86_64-linux-gnu/libasan",
    "usr/lib/x86_64-linux-gnu/liblsan",
    "usr/lib/x86_64-linux-gnu/libtsan",
    "usr/lib/x86_64-linux-gnu/libubsan",
    "usr/lib/x86_64-linux-gnu/perl/5.36.0/CORE/",
    "usr/lib/x86_64-linux-gnu/perl/5.36.0/auto/Encode/",
];

/// Programs that people run, for `soak` and `bench`.
pub(crate) const PROGRAMS: Recipe = Recipe {
    name: "programs",
    packages: &[
        "busybox-static",
        "coreutils",
        "dash",
        "gcc",
        "gzip",
        "libc6-dev",
        "lua5.4",
        "luajit",
        "openssl",
        "perl",
        "python3",
        "xz-utils",
    ],
    without: COMPILER,
};

/// V8's compilers.
pub(crate) const NODE: Recipe = Recipe {
    name: "node",
    packages: &["nodejs", "busybox-static"],
    without: &["usr/lib/x86_64-linux-gnu/perl"],
};

/// What strains a kernel and its vCPUs, for the tests.
pub(crate) const STRESS: Recipe = Recipe {
    name: "stress",
    packages: &["busybox-static", "rt-tests", "stress-ng"],
    without: &["usr/lib/python3", "usr/share/"],
};

/// A compiler to run in parallel.
pub(crate) const MAKE: Recipe =
    Recipe { name: "make", packages: &["busybox-static", "gcc", "libc6-dev", "make"], without: COMPILER };

/// What `cargo xtask test` wants.
pub(crate) const FOR_TESTS: &[&Recipe] = &[&JIT, &STRESS];

/// Recipes by name.
pub(crate) const ALL: &[&Recipe] = &[&JIT, &PROGRAMS, &NODE, &STRESS, &MAKE];

/// Documentation, translations, and what only installing needs.
const NEVER: &[&str] = &[
    "usr/share/bash-completion/",
    "usr/share/bug/",
    "usr/share/doc-base/",
    "usr/share/doc/",
    "usr/share/gdb/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/locale/",
    "usr/share/man/",
    "usr/share/menu/",
    "usr/share/pixmaps/",
    "var/",
];

/// A file that [`with_files`] adds: path without a leading slash, permissions, contents.
pub(crate) type Added<'a> = (&'a str, u32, &'a [u8]);

/// `cargo xtask rootfs NAME`: makes the archive and says where it is.
pub(crate) fn by_name(root: &Path, name: &str) -> Result<()> {
    let Some(recipe) = ALL.iter().find(|recipe| recipe.name == name) else {
        let names: Vec<_> = ALL.iter().map(|recipe| recipe.name).collect();
        bail!(
            "no root file system is called `{name}`; there are {}, {}",
            names.join(", "),
            crate::debian::NAME
        );
    };
    println!("{}", archive(root, recipe)?.display());
    Ok(())
}

/// Where the unpacked root file system is once [`archive`] has made it.
pub(crate) fn tree(root: &Path, recipe: &Recipe) -> PathBuf {
    guests::cache(root).join("rootfs").join(recipe.name)
}

/// The archive, in cpio's newc format without compression; fetches and packs what isn't there yet.
pub(crate) fn archive(root: &Path, recipe: &Recipe) -> Result<PathBuf> {
    let guests = guests::cache(root).join("guests");
    let archive = guests.join(format!("rootfs-{}.cpio", recipe.name));
    let tree = tree(root, recipe);
    // Written last: what it describes is whole.
    let stamp = tree.with_extension("recipe");
    let wanted = format!("{:?}\n{:?}\n", recipe.packages, recipe.without);
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(archive);
    }
    println!("rootfs: fetching {} with all they depend on", recipe.packages.join(", "));
    let _ = fs::remove_file(&stamp);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("can't remove {}", tree.display()))?;
    }
    for folder in [&guests, &tree] {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    }
    let apt = Apt::prepare(&guests::cache(root).join(format!("apt-{}", recipe.name)))?;
    let unpacked = apt.download_with_dependencies(recipe.packages).and_then(|debs| unpack(&debs, &tree));
    apt.discard();
    unpacked?;
    for start in NEVER.iter().chain(recipe.without) {
        remove(&tree, start)?;
    }
    for folder in ["dev", "proc", "sys", "tmp", "run", "root"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let part = archive.with_extension("part");
    pack(&tree, &part).with_context(|| format!("can't write {}", part.display()))?;
    fs::rename(&part, &archive)?;
    fs::write(&stamp, wanted)?;
    Ok(archive)
}

/// Writes to `to` the archive `from` with more files, which replace those of the same names, and the folders they are in.
///
/// The kernel unpacks archives that follow one another (early-userspace/buffer-format.rst).
pub(crate) fn with_files(from: &Path, files: &[Added<'_>], to: &Path) -> Result<()> {
    let context = || format!("can't write {}", to.display());
    fs::copy(from, to).with_context(context)?;
    let mut out = BufWriter::new(File::options().append(true).open(to).with_context(context)?);
    let mut inode = 0;
    let mut folders = BTreeSet::new();
    for (name, permissions, contents) in files {
        for (at, _) in name.match_indices('/') {
            if folders.insert(&name[..at]) {
                inode += 1;
                let builder = Builder::new(&name[..at]).ino(inode).mode(0o755);
                builder.set_mode_file_type(ModeFileType::Directory).write(&mut out, 0).finish()?;
            }
        }
        inode += 1;
        let builder =
            Builder::new(name).ino(inode).mode(*permissions).set_mode_file_type(ModeFileType::Regular);
        let mut entry = builder.write(&mut out, contents.len() as u32);
        entry.write_all(contents)?;
        entry.finish()?;
    }
    trailer(&mut out)?;
    out.flush().with_context(context)
}

fn unpack(debs: &[PathBuf], tree: &Path) -> Result<()> {
    if debs.is_empty() {
        bail!("apt-get downloaded nothing");
    }
    // Debian's programs are all in /usr; packages still name both places.
    for folder in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(tree.join("usr").join(folder))?;
        symlink(format!("usr/{folder}"), tree.join(folder))?;
    }
    for deb in debs {
        let mut reader =
            Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
        let stream = reader.stdout.take().context("a pipe was asked for")?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]).arg(tree);
        crate::run(tar.stdin(stream))?;
        let status = reader.wait()?;
        if !status.success() {
            bail!("dpkg-deb --fsys-tarfile {} failed: {status}", deb.display());
        }
    }
    Ok(())
}

/// Removes what begins with `start`, a folder where that ends with a slash.
fn remove(tree: &Path, start: &str) -> Result<()> {
    let path = tree.join(start);
    if start.ends_with('/') {
        return match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(name.as_bytes()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Packs a folder: root owns everything, hard links become files of their own, a console is added.
fn pack(tree: &Path, to: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    let mut inode = 0;
    let mut waiting = vec![PathBuf::new()];
    while let Some(folder) = waiting.pop() {
        let mut names: Vec<_> = fs::read_dir(tree.join(&folder))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let path = folder.join(name);
            let name = path.to_str().with_context(|| format!("{} isn't UTF-8", path.display()))?;
            let full = tree.join(&path);
            let meta = fs::symlink_metadata(&full)?;
            inode += 1;
            let builder = Builder::new(name).ino(inode).mode(meta.permissions().mode() & 0o7777);
            let kind = meta.file_type();
            if kind.is_dir() {
                builder.set_mode_file_type(ModeFileType::Directory).write(&mut out, 0).finish()?;
                waiting.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&full)?;
                let target = target.as_os_str().as_bytes();
                let builder = builder.set_mode_file_type(ModeFileType::Symlink);
                let mut entry = builder.write(&mut out, target.len() as u32);
                entry.write_all(target)?;
                entry.finish()?;
            } else if kind.is_file() {
                let size = u32::try_from(meta.size()).context("a file of 4 GiB")?;
                let mut entry = builder.set_mode_file_type(ModeFileType::Regular).write(&mut out, size);
                io::copy(&mut File::open(&full)?, &mut entry)?;
                entry.finish()?;
            }
        }
    }
    let console = Builder::new("dev/console").ino(inode + 1).mode(0o600).rdev_major(5).rdev_minor(1);
    console.set_mode_file_type(ModeFileType::Char).write(&mut out, 0).finish()?;
    trailer(&mut out)?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_recipes_differ() {
        let mut names: Vec<_> = ALL.iter().map(|recipe| recipe.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
