//! Fetches guests into the checkout's `cache/`: Debian's kernels, a static busybox, memtest86+.
//!
//! apt runs with a root of its own under `cache/apt` (sources and keys are the host's, lists and downloads are ours), so
//! that it needs no privileges, may add the i386 architecture, and leaves the host as it was. Packages are unpacked with
//! `dpkg-deb`, never installed. A guest whose file is there isn't fetched again: the second time needs no network.
//!
//! `cache/guests/` afterwards: `cloud/vmlinuz`, `rt/vmlinuz`, `686-pae/vmlinuz`, `busybox`, `busybox-i386`,
//! `memtest86+ia32.bin`, `memtest86+x64.bin`.

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
    /// The files in the package, first by how the path starts, and where they go below `cache/guests`.
    files: &'static [(&'static str, &'static str)],
    /// Also wanted by `make run`.
    run: bool,
}

const GUESTS: &[Guest] = &[
    Guest {
        package: "linux-image-cloud-amd64:amd64",
        meta: true,
        files: &[("./boot/vmlinuz-", "cloud/vmlinuz")],
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
        .filter(|guest| !guest.files.iter().any(|(_, to)| guests.join(to).exists()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(&guests).with_context(|| format!("can't create {}", guests.display()))?;
    let apt = Apt::prepare(&cache.join("apt"))?;
    let mut failed = Vec::new();
    for guest in missing {
        println!("guests: fetching {}", guest.package);
        if let Err(error) = apt.fetch(guest, &guests) {
            failed.push(format!("{}: {error:#}", guest.package));
        }
    }
    // Only a few files are kept of each package; the lists are 100 MB that the next fetch would renew anyway.
    let _ = fs::remove_dir_all(&apt.root);
    if !failed.is_empty() {
        bail!("these guests could not be fetched:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

/// An apt whose every folder is ours.
struct Apt {
    root: PathBuf,
    conf: PathBuf,
}

impl Apt {
    fn prepare(root: &Path) -> Result<Apt> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            if Command::new(tool).arg("--version").output().is_err() {
                bail!(
                    "`{tool}` isn't there: guests are fetched with Debian's tools (apt install apt dpkg tar)"
                );
            }
        }
        for folder in
            ["state/lists/partial", "cache/archives/partial", "sources.list.d", "debs", "preferences.d"]
        {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
        }
        // apt opens every path itself and may change folder, so all of them are absolute.
        let root = fs::canonicalize(root)?;
        fs::write(root.join("status"), "")?;
        copy_sources(&root)?;
        let conf = root.join("apt.conf");
        fs::write(&conf, configuration(&root)).with_context(|| format!("can't write {}", conf.display()))?;
        let apt = Apt { root, conf };
        if let Err(error) = crate::run(apt.command("apt-get").args(["--quiet=2", "update"])) {
            // One list of several may be out of step at the mirror; whether it matters the downloads will say.
            eprintln!("guests: not all package lists could be had (is there a network?): {error:#}");
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&self.conf).current_dir(self.root.join("debs")).env("LC_ALL", "C");
        command
    }

    fn fetch(&self, guest: &Guest, guests: &Path) -> Result<()> {
        let package = if guest.meta { self.dependency(guest.package)? } else { guest.package.to_owned() };
        crate::run(self.command("apt-get").args(["--quiet=2", "download", &package]))?;
        let debs = self.root.join("debs");
        let deb = fs::read_dir(&debs)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get said that it downloaded a package, but there is none")?;
        let taken = unpack(&deb, guest, guests);
        fs::remove_file(&deb)?;
        taken
    }

    /// The kernel that a metapackage depends on, with the metapackage's architecture.
    fn dependency(&self, metapackage: &str) -> Result<String> {
        let architecture = metapackage.rsplit_once(':').map_or("amd64", |(_, architecture)| architecture);
        let output = self
            .command("apt-cache")
            .args(["--no-all-versions", "show", metapackage])
            .output()
            .context("can't run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let name = kernel_dependency(&text).with_context(|| {
            format!("the host's apt sources have no {metapackage} (they should name a Debian mirror)")
        })?;
        Ok(format!("{name}:{architecture}"))
    }
}

fn kernel_dependency(show: &str) -> Option<&str> {
    show.lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
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
        let part = to.with_extension("part");
        fs::copy(&found, &part).with_context(|| format!("can't write {}", part.display()))?;
        fs::rename(&part, &to)?;
        taken += 1;
    }
    fs::remove_dir_all(&folder)?;
    if taken == 0 {
        bail!("{} holds none of {:?}", deb.display(), guest.files);
    }
    Ok(())
}

/// The file below `folder` whose path begins as `start` does.
fn starting_with(folder: &Path, start: &str) -> Option<PathBuf> {
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

/// Copies the host's sources, of which ours may differ in architectures only by what apt.conf says.
fn copy_sources(root: &Path) -> Result<()> {
    let mut copied = 0;
    let mut sources = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        sources.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for source in sources {
        let is_source =
            source.extension().is_some_and(|extension| extension == "list" || extension == "sources");
        let Some(name) = source.file_name().filter(|_| is_source) else { continue };
        if let Ok(text) = fs::read(&source) {
            fs::write(root.join("sources.list.d").join(name), text)?;
            copied += 1;
        }
    }
    if copied == 0 {
        bail!("no apt sources in /etc/apt: guests come from a Debian mirror");
    }
    Ok(())
}

/// The host's settings (proxies, keys) stay in force; folders and hooks are replaced.
fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        "Dir::State \"{root}/state\";\n\
         Dir::State::status \"{root}/status\";\n\
         Dir::State::extended_states \"{root}/state/extended_states\";\n\
         Dir::Cache \"{root}/cache\";\n\
         Dir::Cache::archives \"{root}/cache/archives\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{root}/sources.list.d\";\n\
         Dir::Etc::preferencesparts \"{root}/preferences.d\";\n\
         Dir::Log \"{root}\";\n\
         APT::Architecture \"amd64\";\n\
         #clear APT::Architectures;\n\
         APT::Architectures {{ \"amd64\"; \"i386\"; }};\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_its_kernel() {
        let show = "Package: linux-image-cloud-amd64\nVersion: 1\nDepends: foo, linux-image-6.1.0-9-cloud-amd64 (= 6.1.9)\n";
        assert_eq!(kernel_dependency(show), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(kernel_dependency("Package: x\n"), None);
    }

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
