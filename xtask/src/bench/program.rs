//! Builds guests/bench: the static program that measures, natively and as the init of an initramfs.
//!
//! rustc is called directly, as bin/ombra's build script does for guests/init, with a static C library (Debian's
//! libc6-dev). Optimised for any 64-bit CPU; workloads that want more ask the CPU at run time.

use crate::rootfs;
use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Below the checkout.
pub(crate) const SOURCE: &str = "guests/bench/src/main.rs";

/// Builds the program and an initramfs of it into `folder`: `bench` and `bench.cpio`.
pub(crate) fn prepare(root: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    let (program, archive) = (folder.join("bench"), folder.join("bench.cpio"));
    build(root, &program)?;
    let contents = fs::read(&program).with_context(|| format!("can't read {}", program.display()))?;
    let contents = initramfs(&contents).context("can't build the initramfs")?;
    fs::write(&archive, contents).with_context(|| format!("can't write {}", archive.display()))?;
    Ok((program, archive))
}

/// An initramfs of Debian's programs whose init is the program, and the root file system unpacked.
pub(crate) fn prepare_programs(root: &Path, folder: &Path, program: &Path) -> Result<(PathBuf, PathBuf)> {
    let programs = rootfs::archive(root, &rootfs::PROGRAMS)?;
    let contents = fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    let archive = folder.join("bench-programs.cpio");
    rootfs::with_files(&programs, &[("init", 0o755, &contents)], &archive)?;
    Ok((archive, rootfs::tree(root, &rootfs::PROGRAMS)))
}

/// Builds the program.
pub(crate) fn build(root: &Path, to: &Path) -> Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    crate::run(
        Command::new(rustc)
            .current_dir(root)
            .args(["--edition", "2024", "--crate-name", "bench", "--target", "x86_64-unknown-linux-gnu"])
            .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static"])
            .args(["-C", "opt-level=3", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "panic=abort"])
            .args(["-C", "strip=symbols", "-D", "warnings"])
            .arg("-o")
            .arg(to)
            .arg(SOURCE),
    )
    .context("guests/bench doesn't build; it needs gcc and a static C library (apt install gcc libc6-dev)")
}

/// An archive (cpio's newc) with the program as its init.
fn initramfs(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, kind, mode, device, contents) in [
        ("dev", ModeFileType::Directory, 0o755, (0, 0), &[][..]),
        // Where the kernel opens the init's stdout.
        ("dev/console", ModeFileType::Char, 0o600, (5, 1), &[][..]),
        ("init", ModeFileType::Regular, 0o755, (0, 0), program),
    ] {
        let entry = Builder::new(name).mode(mode).set_mode_file_type(kind).ino(archive.len() as u32);
        let entry = entry.rdev_major(device.0).rdev_minor(device.1);
        let mut writer = entry.write(&mut archive, u32::try_from(contents.len())?);
        writer.write_all(contents)?;
        writer.finish()?;
    }
    Ok(trailer(archive)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::process::Output;
    use std::sync::OnceLock;

    /// Scale, and each workload's iterations and checksum at it, as a host found them. Those of SHA-256 and AES were compared
    /// with other implementations.
    const SCALE: &str = "0.001";
    const KNOWN: &str = include_str!("checksums.txt");

    /// Runs the program, which is built once for all tests.
    fn bench(words: &[&str]) -> Output {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            let path = env::temp_dir().join(format!("ombra-bench-{}", std::process::id()));
            build(&crate::root(), &path).expect("guests/bench builds");
            path
        });
        Command::new(program).args(words).output().expect("guests/bench runs")
    }

    /// A workload's line without its name.
    fn lines(output: &Output) -> BTreeMap<String, Vec<String>> {
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        text.lines()
            .map(|line| line.split_whitespace().map(str::to_owned))
            .map(|mut words| (words.next().unwrap(), words.collect()))
            .collect()
    }

    #[test]
    fn every_workload_has_its_known_checksum() {
        let found = lines(&bench(&["--without", "programs", "--scale", SCALE, "--repeat", "2"]));
        let known: BTreeMap<&str, (&str, &str)> = KNOWN
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .map(|words| (words[0], (words[1], words[2])))
            .collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
        for (name, (iterations, checksum)) in known {
            match found[name].as_slice() {
                [skipped, missing @ ..] if skipped == "skipped" => {
                    eprintln!("{name} is skipped: {}", missing.join(" "));
                }
                [count, _, sum] => {
                    let found = (count.as_str(), sum.as_str());
                    assert_eq!(found, (iterations, checksum), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_same_work_in_other_instructions_has_the_same_result() {
        let rows = ["mandelbrot-scalar=0.02", "mandelbrot-sse2=0.01", "mandelbrot-avx2=0.005"];
        let digests = ["sha256-plain=0.01", "sha256-ni=0.0015"];
        let mut words = vec!["vector", "--scale", "0.0001"];
        for scale in rows.iter().chain(&digests) {
            words.extend(["--scale", scale]);
        }
        let found = lines(&bench(&words));
        for names in [&rows[..], &digests] {
            let results: Vec<&Vec<String>> = names
                .iter()
                .map(|scale| &found[scale.split('=').next().unwrap()])
                .filter(|line| line[0] != "skipped")
                .collect();
            for result in &results {
                assert_eq!((&result[0], &result[2]), (&results[0][0], &results[0][2]));
            }
        }
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            &["nonsense"][..],
            &["--without"],
            &["--scale", "0"],
            &["--scale", "x=1"],
            &["--repeat", "0"],
            &["-x"],
        ] {
            assert_eq!(bench(words).status.code(), Some(2), "{words:?}");
        }
    }

    #[test]
    fn a_list_names_workloads_and_runs_none() {
        let found = lines(&bench(&["integer", "--list", "--scale", "sort=2"]));
        assert!(found.len() >= 10);
        assert_eq!(found["sort"], ["integer", "160"]);
    }

    #[test]
    fn the_initramfs_has_the_program_as_init() {
        let archive = initramfs(b"program").unwrap();
        let console = cpio::newc::Reader::new(&archive[..]).unwrap().finish().unwrap();
        let mut reader = cpio::newc::Reader::new(console).unwrap();
        assert_eq!(reader.entry().name(), "dev/console");
        reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!((reader.entry().name(), reader.entry().mode()), ("init", 0o100_755));
    }
}
