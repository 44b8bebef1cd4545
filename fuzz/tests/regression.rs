//! Every target over its committed seeds and over random inputs: what every test run can afford of fuzzing.
//!
//! `FUZZ_RUNS` sets the number of random inputs a target (default 3000). The generator is fixed: a failure repeats.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

const MOST_BYTES: usize = 1500;

/// Steele and Vigna's SplitMix64: small and good enough to make inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.below(MOST_BYTES);
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A seed with some bytes changed, so that the checks it passes are passed again.
    fn variant(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(8) {
            match self.below(4) {
                0 => bytes.truncate(self.below(bytes.len() + 1)),
                1 => bytes.push(self.next() as u8),
                _ if bytes.is_empty() => {}
                _ => {
                    let at = self.below(bytes.len());
                    bytes[at] = self.next() as u8;
                }
            }
        }
        bytes
    }
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("no seeds in {}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a readable seed")))
        .collect();
    seeds.sort();
    seeds
}

fn check(target: &str) {
    let (_, run) = fuzz::TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let seeds = seeds(target);
    for (name, bytes) in &seeds {
        assert!(catch_unwind(|| run(bytes)).is_ok(), "{target} fails on {name}");
    }
    let runs = std::env::var("FUZZ_RUNS").map_or(3000, |runs| runs.parse().expect("FUZZ_RUNS is a number"));
    let mut random = Random(1);
    for number in 0..runs {
        let bytes = if number % 2 == 0 || seeds.is_empty() {
            random.bytes()
        } else {
            let seed = random.below(seeds.len());
            random.variant(&seeds[seed].1)
        };
        if catch_unwind(|| run(&bytes)).is_err() {
            let artifact = std::env::temp_dir().join(format!("ombra-fuzz-{target}-{number}"));
            fs::write(&artifact, &bytes).expect("the temporary folder is writable");
            panic!("{target} fails on random input {number}, kept as {}", artifact.display());
        }
    }
}

#[test]
fn hostile_boot_images_are_refused_or_loaded() {
    check("boot_image");
}

#[test]
fn hostile_accesses_leave_the_devices_alive() {
    check("devices");
}

#[test]
fn hostile_guests_leave_the_interpreter_alive() {
    check("execute");
}

#[test]
fn hostile_disk_images_are_refused_or_used() {
    check("disk_image");
}

#[test]
fn hostile_luks_headers_are_refused_or_opened() {
    check("luks");
}

#[test]
fn hostile_servers_and_plug_ins_are_errors() {
    check("answers");
}

#[test]
fn hostile_drivers_leave_virtio_devices_alive() {
    check("virtio");
}

#[test]
fn hostile_drivers_leave_nvme_controllers_alive() {
    check("nvme");
}

#[test]
fn hostile_frames_leave_the_network_alive() {
    check("net");
}
