//! A qcow2 image of any bytes, opened and used as a guest would: refused, or a disk whose requests succeed or fail.
//!
//! The first byte says how much of the input is laid over a sound image instead of being one by itself.
//!
//! Asserted: nothing panics; what an image names is not opened, since nobody has said that it is qcow2.
//!
//! Threads: one.

use crate::Input;
use disk::{Format, Image, Sector};
use std::fs;
use std::io::Write;

/// Requests in one run.
const STEPS: usize = 20;
/// Sectors are looked for up to here.
const FAR: u64 = 1 << 40;

/// The start of a sound image: version 3, clusters of 64 KiB, 1 MiB in size, tables in clusters 1 to 3.
fn sound() -> Vec<u8> {
    let mut bytes = vec![0; 5 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(3u64 << 16).to_be_bytes());
    put(48, &(1u64 << 16).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    // One table of reference counts, with one for each of the five clusters.
    put(1 << 16, &(2u64 << 16).to_be_bytes());
    for cluster in 0..5 {
        put((2 << 16) + 2 * cluster, &1u16.to_be_bytes());
    }
    // The first second-level table; its clusters are not there.
    put(3 << 16, &(1u64 << 63 | 4 << 16).to_be_bytes());
    bytes
}

/// One run.
///
/// # Panics
/// Where an image breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut image = if input.u8() < 200 { sound() } else { b"QFI\xfb".to_vec() };
    for _ in 0..input.u8() & 15 {
        // Header, the three kinds of tables.
        let at = input.pick(&[0, 0, 0, 1 << 16, 2 << 16, 3 << 16, 4 << 16]) + usize::from(input.u8());
        let patch = input.bytes(8);
        if image.len() < at + patch.len() {
            image.resize(at + patch.len(), 0);
        }
        image[at..at + patch.len()].copy_from_slice(patch);
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&image).expect("written");
    let image = Image { read_only: true, ..Image::new(file.path()) };
    let snapshot = Image { read_only: false, snapshot: true, ..image.clone() };
    // What is told of it, and which files it names.
    let _ = disk::make::describe(file.path(), None);
    let named = disk::files(&Image { format: Some(Format::Qcow2), ..image.clone() });
    assert!(named.write.is_empty() && named.read.len() <= 65);
    let Ok(layer) = disk::open(if input.flag() { &image } else { &snapshot }) else { return };
    let mut data = vec![0; 4096];
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let first = Sector(if input.flag() { input.u16().into() } else { input.number() % FAR });
        let _ = match input.u8() % 8 {
            0..=3 => layer.read(first, &mut data),
            4 | 5 => layer.write(first, &data),
            6 => layer.zero(first, input.u8().into(), input.flag()),
            _ => layer.flush(),
        };
    }
    drop(layer);
    let len = fs::metadata(file.path()).expect("there").len();
    assert!(len < 1 << 20, "an image that is only read has not grown");
}
