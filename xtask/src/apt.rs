//! An apt with a root of its own, for `guests` and `rootfs`: packages of a Debian mirror without privileges.
//!
//! Sources and keys are the host's; lists and downloads are ours, so that i386 may be added and the host stays as it was.
//! No package counts as installed. Packages are unpacked with `dpkg-deb`, never installed.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An apt whose every folder is ours.
pub(crate) struct Apt {
    root: PathBuf,
    conf: PathBuf,
}

impl Apt {
    /// Makes the folders below `root` and fetches the mirrors' lists.
    pub(crate) fn prepare(root: &Path) -> Result<Apt> {
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
        // Other origins may have packages of the same names; what is tested shall not depend on the host.
        fs::write(
            root.join("preferences.d/debian"),
            "Package: *\nPin: release o=Debian\nPin-Priority: 990\n",
        )?;
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

    /// Downloads one package; the caller removes the file.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        crate::run(self.command("apt-get").args(["--quiet=2", "download", package]))?;
        let found = packages(&self.root.join("debs"))?.pop();
        found.context("apt-get said that it downloaded a package, but there is none")
    }

    /// Downloads packages with all that they depend on, for amd64; recommended packages are left out.
    pub(crate) fn download_with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get");
        command.args(["--quiet=2", "--yes", "--download-only", "--no-install-recommends", "install"]);
        crate::run(command.args(names))?;
        packages(&self.root.join("cache/archives"))
    }

    /// Removes lists and downloads: 100 MB that the next fetch would renew anyway.
    pub(crate) fn discard(self) {
        let _ = fs::remove_dir_all(&self.root);
    }

    /// The kernel that a metapackage depends on, with the metapackage's architecture.
    pub(crate) fn dependency(&self, metapackage: &str) -> Result<String> {
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

/// The packages in a folder, sorted.
fn packages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn kernel_dependency(show: &str) -> Option<&str> {
    show.lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
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
}
