//! Modules of a guest's kernel that an initramfs of ours brings: found in the kernel's own folder, with what they depend on.
//!
//! The folder is the kernel's tree where the file lies in one, `modules/VERSION` beside the kernel's file (as in the cache) or the host's
//! `/lib/modules/VERSION`. Dependencies
//! are read from the modules themselves, since only an installed kernel has an index of them. Compressed modules are left out:
//! kernels before 6.1 can't load them, and none of those that are fetched has any.

use anyhow::{Result, bail};
use object::{Object, ObjectSection};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A kernel module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// The file.
    pub(crate) bytes: Vec<u8>,
}

/// Dependencies that are followed; no module has as many.
const DEPTH: usize = 16;

/// What a kernel has besides its image.
pub(crate) struct Kernel {
    folder: Folder,
    place: String,
}

impl Kernel {
    /// The modules of this kernel; none, where there is no folder of them.
    pub(crate) fn of(kernel: &Path) -> Self {
        let folder = folder(kernel);
        let place = match &folder {
            Some(folder) => folder.display().to_string(),
            None => format!("no folder of {}'s", kernel.display()),
        };
        Self { folder: folder.as_deref().map(Folder::read).unwrap_or_default(), place }
    }

    /// Whether it has this, as a module or as part of itself. One without a folder may have it all the same.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.has(name) || self.folder.files.contains_key(&normal(name))
    }

    /// Where its modules are, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The modules `helpful`, without which the guest may miss a device, and `wanted`, which the user names; each after those that it
    /// depends on.
    ///
    /// # Errors
    /// One of `wanted` isn't there.
    pub(crate) fn find(&self, helpful: &[&str], wanted: &[String]) -> Result<Vec<Module>> {
        let mut found = Vec::new();
        let place = &self.place;
        for name in helpful {
            if !self.folder.add(name, &mut found, 0) && !self.folder.has(name) {
                tracing::warn!("there is no module {name} in {place}: the guest may not find its devices");
            }
        }
        for name in wanted {
            if !self.folder.add(name, &mut found, 0) && !self.folder.has(name) {
                bail!("there is no module `{name}` in {place}");
            }
        }
        Ok(found)
    }
}

/// Names have `-` and `_` for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// A kernel's modules.
#[derive(Default)]
struct Folder {
    files: BTreeMap<String, PathBuf>,
    /// Those that are part of the kernel.
    built_in: BTreeSet<String>,
}

impl Folder {
    fn read(folder: &Path) -> Self {
        let mut files = Self::listed(folder);
        if files.is_empty() {
            files = Self::walked(folder);
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let built_in = list
            .lines()
            .filter_map(|line| Path::new(line).file_stem().and_then(|name| name.to_str()))
            .map(normal)
            .collect();
        Self { files, built_in }
    }

    /// The files in `modules.order`, which says how kernels are built: a tree names objects there, and since 6.3 not as modules.
    fn listed(folder: &Path) -> BTreeMap<String, PathBuf> {
        let list = fs::read_to_string(folder.join("modules.order")).unwrap_or_default();
        let file = |line: &str| {
            let path = Path::new(line).with_extension("ko");
            let stem = normal(path.file_stem()?.to_str()?);
            let beside = path.strip_prefix("kernel").ok().map(|path| folder.join(path));
            let found =
                [Some(folder.join(&path)), beside].into_iter().flatten().find(|path| path.is_file())?;
            Some((stem, found))
        };
        list.lines().filter_map(file).collect()
    }

    /// All files that are modules.
    fn walked(folder: &Path) -> BTreeMap<String, PathBuf> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // No links: /lib/modules has some to the kernel's source.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(path),
                    Ok(kind) if kind.is_file() && path.extension().is_some_and(|ending| ending == "ko") => {
                        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
                            files.insert(normal(name), path);
                        }
                    }
                    _ => {}
                }
            }
        }
        files
    }

    /// Whether it is part of the kernel.
    fn has(&self, name: &str) -> bool {
        self.built_in.contains(&normal(name))
    }

    /// Adds a module, after what it depends on. `false`: there is no file of it.
    fn add(&self, name: &str, found: &mut Vec<Module>, depth: usize) -> bool {
        let name = normal(name);
        if found.iter().any(|module| module.name == name) {
            return true;
        }
        let Some(bytes) = self.files.get(&name).and_then(|path| fs::read(path).ok()) else { return false };
        if depth < DEPTH {
            for dependency in dependencies(&bytes) {
                // One that isn't there is part of the kernel, or the kernel will say so.
                self.add(&dependency, found, depth + 1);
            }
        }
        found.push(Module { name, bytes });
        true
    }
}

/// What a module says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    let Ok(elf) = object::File::parse(module) else { return Vec::new() };
    let Some(info) = elf.section_by_name(".modinfo").and_then(|section| section.data().ok()) else {
        return Vec::new();
    };
    info.split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Where a kernel's modules are.
fn folder(kernel: &Path) -> Option<PathBuf> {
    let beside = kernel.parent().unwrap_or(Path::new("")).join("modules");
    let installed = match version(kernel) {
        Some(version) => [beside, "/lib/modules".into()]
            .into_iter()
            .map(|folder| folder.join(&version))
            .find(|folder| folder.is_dir()),
        // A vmlinux doesn't tell. Where there is one folder it can only be that.
        None => {
            let mut folders = fs::read_dir(beside)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir());
            folders.next().filter(|_| folders.next().is_none())
        }
    };
    // The tree that it was built in, before what is installed of the same version.
    tree(kernel).or(installed)
}

/// The tree of a kernel's that a file lies in: it has been built there.
fn tree(kernel: &Path) -> Option<PathBuf> {
    let kernel = kernel.canonicalize().ok()?;
    let is_tree = |folder: &&Path| {
        folder.join("include/config/kernel.release").is_file() && folder.join("modules.builtin").is_file()
    };
    kernel.ancestors().skip(1).find(is_tree).map(Path::to_owned)
}

/// The version of a bzImage (Documentation/arch/x86/boot.rst, `kernel_version`).
fn version(kernel: &Path) -> Option<String> {
    let file = File::open(kernel).ok()?;
    let mut header = [0; 0x210];
    file.read_exact_at(&mut header, 0).ok()?;
    let offset = u16::from_le_bytes([header[0x20e], header[0x20f]]);
    if &header[0x202..0x206] != b"HdrS" || offset == 0 {
        return None;
    }
    let mut text = [0; 128];
    let len = file.read_at(&mut text, u64::from(offset) + 0x200).ok()?;
    let text = std::str::from_utf8(text[..len].split(|byte| *byte == 0).next()?).ok()?;
    let version = text.split_whitespace().next()?;
    (!version.contains('/')).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel of version 1.2 with modules that aren't ELF files, and so depend on nothing.
    fn kernel(folder: &Path) -> PathBuf {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x30b].copy_from_slice(b"1.2 (x@y) 1");
        let kernel = folder.join("vmlinuz");
        fs::write(&kernel, image).unwrap();
        let modules = folder.join("modules/1.2/kernel/drivers");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("virtio-one.ko"), "one").unwrap();
        fs::write(folder.join("modules/1.2/modules.builtin"), "kernel/drivers/virtio_two.ko\n").unwrap();
        kernel
    }

    #[test]
    fn modules_come_from_the_kernels_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = kernel(folder.path());
        let kernel = Kernel::of(&kernel);
        let found = kernel.find(&["virtio_one", "virtio_two", "virtio_three"], &[]).unwrap();
        assert_eq!(found, [Module { name: "virtio_one".to_owned(), bytes: b"one".to_vec() }]);
        assert_eq!(kernel.find(&[], &["virtio-one".to_owned()]).unwrap(), found);
        assert!(kernel.find(&[], &["virtio_two".to_owned()]).unwrap().is_empty(), "part of the kernel");
        assert!(kernel.has("virtio-one") && kernel.has("virtio_two") && !kernel.has("virtio_three"));
    }

    #[test]
    fn a_module_that_is_asked_for_and_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = kernel(folder.path());
        let error = Kernel::of(&kernel).find(&[], &["nothing".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`nothing`"), "{error}");
    }

    #[test]
    fn a_kernel_in_its_tree_has_the_modules_of_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("arch/x86/boot");
        let drivers = folder.path().join("drivers");
        for path in [&boot, &drivers, &folder.path().join("include/config")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(folder.path().join("include/config/kernel.release"), "6.9.0\n").unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/drivers/two.ko\n").unwrap();
        fs::write(
            folder.path().join("modules.order"),
            "drivers/virtio-one.o\nkernel/drivers/old.ko\ndrivers/gone.o\n",
        )
        .unwrap();
        fs::write(drivers.join("virtio-one.ko"), "one").unwrap();
        fs::write(drivers.join("old.ko"), "old").unwrap();
        fs::write(boot.join("bzImage"), "").unwrap();
        let kernel = Kernel::of(&boot.join("bzImage"));
        assert!(kernel.has("virtio_one") && kernel.has("old") && kernel.has("two") && !kernel.has("gone"));
    }

    #[test]
    fn a_kernel_without_a_folder_has_no_modules() {
        let kernel = Kernel::of(Path::new("/none"));
        assert!(kernel.find(&[], &[]).unwrap().is_empty());
        assert!(!kernel.has("virtio_pci"));
    }
}
