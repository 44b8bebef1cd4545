//! Fetches guests into the checkout's `cache/`: Debian's kernels, a static busybox, memtest86+, root file systems.
//!
//! Packages come from [`Apt`] and are unpacked with `dpkg-deb`, never installed. A guest whose files are there isn't fetched
//! again: the second time needs no network.
//!
//! `cache/guests/` afterwards: `cloud/vmlinuz`, `cloud/modules/` (of that kernel), `rt/vmlinuz`, `686-pae/vmlinuz`, `busybox`,
//! `busybox-i386`, `memtest86+ia32.bin`, `memtest86+x64.bin`, and what [`rootfs`] says.

use crate::apt::Apt;
use crate::rootfs;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guests are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// A shell: one kernel and a busybox.
    Run,
    /// All tests.
    Everything,
}

/// One package and the file that is wanted of it.
struct Guest {
    /// As apt names it; a metapackage where `meta` is set.
    package: &'static str,
    /// The package is a metapackage; the wanted one is its only `linux-image-` dependency.
    meta: bool,
    /// The files in the package, first by how the path starts, and where they go below `cache/guests`. A path that ends
    /// with a slash is a folder's.
    files: &'static [(&'static str, &'static str)],
    /// Also wanted by `make run`.
    run: bool,
}

const GUESTS: &[Guest] = &[
    Guest {
        package: "linux-image-cloud-amd64:amd64",
        meta: true,
        files: &[
            ("./lib/modules/", "cloud/modules"),
            ("./usr/lib/modules/", "cloud/modules"),
            ("./boot/vmlinuz-", "cloud/vmlinuz"),
        ],
        run: true,
    },
    Guest {
        package: "busybox-static:amd64",
        meta: false,
        files: &[("./bin/busybox", "busybox"), ("./usr/bin/busybox", "busybox")],
        run: true,
    },
    Guest {
        package: "linux-image-rt-amd64:amd64",
        meta: true,
        files: &[("./boot/vmlinuz-", "rt/vmlinuz")],
        run: false,
    },
    Guest {
        package: "linux-image-686-pae:i386",
        meta: true,
        files: &[("./boot/vmlinuz-", "686-pae/vmlinuz")],
        run: false,
    },
    Guest {
        package: "busybox-static:i386",
        meta: false,
        files: &[("./bin/busybox", "busybox-i386"), ("./usr/bin/busybox", "busybox-i386")],
        run: false,
    },
    Guest {
        package: "memtest86+:amd64",
        meta: false,
        files: &[
            ("./boot/memtest86+ia32.bin", "memtest86+ia32.bin"),
            ("./boot/memtest86+x64.bin", "memtest86+x64.bin"),
        ],
        run: false,
    },
];

/// The cache folder: `OMBRA_CACHE`, else `cache` in the checkout.
pub(crate) fn cache(root: &Path) -> PathBuf {
    env::var_os("OMBRA_CACHE")
        .filter(|path| !path.is_empty())
        .map_or_else(|| root.join("cache"), PathBuf::from)
}

/// Fetches what is missing. Goes on after a guest that can't be had, and fails at the end with all of them.
pub(crate) fn fetch(root: &Path, purpose: For) -> Result<()> {
    let cache = cache(root);
    let guests = cache.join("guests");
    let missing: Vec<&Guest> = GUESTS
        .iter()
        .filter(|guest| purpose == For::Everything || guest.run)
        .filter(|guest| !guest.files.iter().all(|(_, to)| guests.join(to).exists()))
        .collect();
    let mut failed = Vec::new();
    if !missing.is_empty() {
        fetch_packages(&cache, &guests, &missing, &mut failed)?;
    }
    if purpose == For::Everything {
        let mut recipes = rootfs::FOR_TESTS.to_vec();
        if env::var_os("OMBRA_LONG").is_some_and(|value| value == "1") {
            recipes.push(&rootfs::NODE);
        }
        for recipe in recipes {
            if let Err(error) = rootfs::archive(root, recipe) {
                failed.push(format!("rootfs-{}: {error:#}", recipe.name));
            }
        }
    }
    if !failed.is_empty() {
        bail!("these guests could not be fetched:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

fn fetch_packages(cache: &Path, guests: &Path, missing: &[&Guest], failed: &mut Vec<String>) -> Result<()> {
    fs::create_dir_all(guests).with_context(|| format!("can't create {}", guests.display()))?;
    let apt = Apt::prepare(&cache.join("apt"))?;
    for guest in missing {
        println!("guests: fetching {}", guest.package);
        if let Err(error) = fetch_one(&apt, guest, guests) {
            failed.push(format!("{}: {error:#}", guest.package));
        }
    }
    apt.discard();
    Ok(())
}

fn fetch_one(apt: &Apt, guest: &Guest, guests: &Path) -> Result<()> {
    let package = if guest.meta { apt.dependency(guest.package)? } else { guest.package.to_owned() };
    let deb = apt.download(&package)?;
    let taken = unpack(&deb, guest, guests);
    fs::remove_file(&deb)?;
    taken
}

/// Takes the wanted files out of a package.
fn unpack(deb: &Path, guest: &Guest, guests: &Path) -> Result<()> {
    let folder = deb.with_extension("unpacked");
    crate::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&folder))?;
    let mut taken = 0;
    for (from, to) in guest.files {
        let Some(found) = starting_with(&folder, from) else { continue };
        let to = guests.join(to);
        fs::create_dir_all(to.parent().expect("below guests"))?;
        // Renamed into place last, so that what is there is whole.
        if from.ends_with('/') {
            if to.exists() {
                fs::remove_dir_all(&to)?;
            }
            fs::rename(&found, &to).with_context(|| format!("can't write {}", to.display()))?;
        } else {
            let part = to.with_extension("part");
            fs::copy(&found, &part).with_context(|| format!("can't write {}", part.display()))?;
            fs::rename(&part, &to)?;
        }
        taken += 1;
    }
    fs::remove_dir_all(&folder)?;
    if taken == 0 {
        bail!("{} holds none of {:?}", deb.display(), guest.files);
    }
    Ok(())
}

/// The file below `folder` whose path begins as `start` does; the folder `start` where that ends with a slash.
fn starting_with(folder: &Path, start: &str) -> Option<PathBuf> {
    if start.ends_with('/') {
        return Some(folder.join(start.trim_start_matches("./"))).filter(|path| path.is_dir());
    }
    let start = folder.join(start.trim_start_matches("./"));
    let name = start.file_name()?.to_str()?;
    let mut found: Vec<PathBuf> = fs::read_dir(start.parent()?)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .filter(|path| {
            path.file_name().and_then(|file| file.to_str()).is_some_and(|file| file.starts_with(name))
        })
        .collect();
    found.sort();
    found.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_is_fetched_by_a_name_with_an_architecture() {
        for guest in GUESTS {
            assert!(
                guest.package.ends_with(":amd64") || guest.package.ends_with(":i386"),
                "{}",
                guest.package
            );
        }
    }
}
