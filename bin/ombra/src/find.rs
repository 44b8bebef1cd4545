//! Finds what the user didn't name: a guest kernel, a static busybox.
//!
//! Looked at in this order: `OMBRA_CACHE`, the `cache` of the checkout that this executable was built in, `~/.cache/ombra`
//! (or `XDG_CACHE_HOME`), each with what `cargo xtask guests` puts there; then the host's own files.

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::read::elf::{ElfFile64, ProgramHeader};
use std::cmp::Ordering;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The kernel to boot when the user names none.
///
/// # Errors
/// There is none; the message says how to get one.
pub(crate) fn kernel() -> Result<PathBuf> {
    if let Some(kernel) = cached("guests/cloud/vmlinuz") {
        return Ok(kernel);
    }
    newest_kernel(Path::new(&boot_folder())).context(
        "no guest kernel found; `make guests` in Ombra's checkout fetches one (or: apt install \
         linux-image-cloud-amd64), or name one with --kernel FILE",
    )
}

/// Where the host keeps its kernels. The variable is for the tests, which can't empty /boot.
fn boot_folder() -> PathBuf {
    env::var_os("OMBRA_BOOT").map_or_else(|| "/boot".into(), PathBuf::from)
}

/// A busybox that needs no shared libraries, whole.
///
/// # Errors
/// There is none; the message names the package.
pub(crate) fn busybox() -> Result<Vec<u8>> {
    let host = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    for path in cached("guests/busybox").into_iter().chain(host) {
        if let Ok(bytes) = fs::read(&path)
            && is_static(&bytes)
        {
            return Ok(bytes);
        }
    }
    bail!(
        "no static busybox found for the guest; `make guests` in Ombra's checkout fetches one (or: apt install \
         busybox-static)"
    )
}

/// Whether a kernel takes Linux's kind of command line: everything but multiboot images, whose arguments are their own.
pub(crate) fn takes_linux_arguments(kernel: &Path) -> bool {
    let mut head = Vec::new();
    if let Ok(file) = File::open(kernel) {
        // What can't be read is reported by the machine, which has to read all of it.
        let _ = file.take(8192).read_to_end(&mut head);
    }
    // Multiboot Specification 0.6.96, 3.1: a 4-aligned magic number in the first 8 KiB, and the checksum of three words.
    let words: Vec<u32> =
        head.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    !words.windows(3).any(|header| {
        header[0] == 0x1bad_b002 && header[0].wrapping_add(header[1]).wrapping_add(header[2]) == 0
    })
}

fn cached(file: &str) -> Option<PathBuf> {
    caches().into_iter().map(|cache| cache.join(file)).find(|path| path.is_file())
}

fn caches() -> Vec<PathBuf> {
    // A cache that is named is the only one.
    if let Some(cache) = env::var_os("OMBRA_CACHE").filter(|path| !path.is_empty()) {
        return vec![cache.into()];
    }
    let mut caches = Vec::new();
    if let Ok(executable) = env::current_exe() {
        caches.extend(
            executable
                .ancestors()
                .filter(|folder| folder.join("Cargo.toml").is_file())
                .map(|folder| folder.join("cache")),
        );
    }
    let user = env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    caches.extend(user.map(|folder| folder.join("ombra")));
    caches
}

/// The newest `vmlinuz-VERSION` of a folder that can be read: some distributions keep theirs from users.
fn newest_kernel(folder: &Path) -> Option<PathBuf> {
    let mut kernels: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned(), path)))
        .filter(|(_, path)| File::open(path).is_ok())
        .collect();
    kernels.sort_by(|(a, _), (b, _)| compare_versions(a, b));
    Some(kernels.pop()?.1)
}

/// Numbers by value, everything else by its bytes: 6.1.0-9 comes before 6.1.0-10.
fn compare_versions(a: &str, b: &str) -> Ordering {
    fn parts(version: &str) -> impl Iterator<Item = (u64, &str)> {
        version.split(['.', '-', '_', '+', '~']).map(|part| (part.parse().unwrap_or(0), part))
    }
    parts(a).cmp(parts(b))
}

fn is_static(program: &[u8]) -> bool {
    let Ok(elf) = ElfFile64::<Endianness>::parse(program) else { return false };
    let interpreter = object::elf::PT_INTERP;
    !elf.elf_program_headers().iter().any(|header| header.p_type(elf.endian()) == interpreter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_newest_by_number() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-10-amd64", "vmlinuz-5.10.0-99-amd64", "initrd.img-7"]
        {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(newest_kernel(folder.path()), Some(folder.path().join("vmlinuz-6.1.0-10-amd64")));
    }

    #[test]
    fn a_folder_without_kernels_has_no_newest() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_kernel(folder.path()), None);
        assert_eq!(newest_kernel(&folder.path().join("missing")), None);
    }

    #[test]
    fn a_program_with_a_dynamic_linker_is_not_static() {
        assert!(!is_static(b"no ELF file"));
        assert!(!is_static(&fs::read(env::current_exe().unwrap()).unwrap()));
        assert!(is_static(crate::initramfs::INIT));
    }

    #[test]
    fn multiboot_images_take_their_own_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let mut bytes = vec![0; 64];
        for word in [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)] {
            bytes.extend(word.to_le_bytes());
        }
        fs::write(&image, &bytes).unwrap();
        assert!(!takes_linux_arguments(&image));
        fs::write(&image, &bytes[..70]).unwrap();
        assert!(takes_linux_arguments(&image));
    }
}
