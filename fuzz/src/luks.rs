//! A LUKS header of any bytes, read and opened with some key: refused, or a volume that lies in its file.
//!
//! A sound header of either version is patched, so that the checks it passes are passed again; of version 2 the checksums are made to fit, or no JSON text
//! would ever be read.
//!
//! The sound headers' salts and keys are others in each process, which no path depends on.
//!
//! Threads: one.

use crate::Input;
use crypt::luks::{self, Version};
use crypt::{Creation, Header, Limits, Method, Secret, Store};
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

/// What a file has of a header, in bytes: both copies of version 2, and key material.
const LEN: usize = 320 << 10;
/// Where the second copy of version 2 begins, and where its JSON text does.
const COPY: usize = 0x4000;
const JSON: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..512;

struct File(Vec<u8>);

impl Store for File {
    fn len(&self) -> u64 {
        // As if there was data behind it.
        (17 << 20) + self.0.len() as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0);
        if let Some(from) = usize::try_from(at).ok().and_then(|at| self.0.get(at..)) {
            let len = from.len().min(into.len());
            into[..len].copy_from_slice(&from[..len]);
        }
        Ok(())
    }
}

fn key() -> Secret {
    Secret::copy(b"key").expect("memory")
}

fn made(version: Version) -> Vec<u8> {
    let creation = luks::Creation {
        effort: Duration::from_millis(1),
        memory: (version == Version::Two).then_some(64),
        ..luks::Creation::new(version)
    };
    let Header { pieces, .. } = crypt::create(&Creation::Luks(creation), 1 << 20, &key()).expect("made");
    let mut bytes = vec![0; LEN];
    for (at, piece) in pieces {
        bytes[at as usize..][..piece.len()].copy_from_slice(&piece);
    }
    bytes
}

fn sound(version: Version) -> Vec<u8> {
    static SOUND: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    SOUND.get_or_init(|| [made(Version::One), made(Version::Two)])[usize::from(version == Version::Two)]
        .clone()
}

/// One run.
///
/// # Panics
/// Where a header breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let version = if input.flag() { Version::One } else { Version::Two };
    let mut file = sound(version);
    for _ in 0..=input.u8() & 7 {
        let at = match version {
            Version::One => usize::from(input.u16()) % 1024,
            Version::Two => input.pick(&[0, JSON, JSON, COPY, COPY + JSON]) + usize::from(input.u16()) % 1024,
        };
        let patch = input.bytes(24);
        file[at..at + patch.len()].copy_from_slice(patch);
    }
    if version == Version::Two && !input.is_empty() {
        for copy in [0, COPY] {
            let sum = luks::checksum(&file[copy..copy + COPY]);
            file[copy..][CHECKSUM][..sum.len()].copy_from_slice(&sum);
        }
    }
    if input.u8() == 255 {
        file.truncate(usize::from(input.u16()));
    }
    let file = File(file);
    let _ = luks::info(&file);
    // Little work, however much a header asks for.
    let limits = Limits { rounds: 2000, memory: 1024, passes: 8 };
    if let Ok(volume) = crypt::open(&file, &Method::Luks, &key(), limits) {
        assert!(volume.offset + volume.bytes <= file.len() && volume.bytes > 0);
        let mut sector = vec![0; volume.sector_bytes as usize];
        volume.technique.encrypt(0, &mut sector).expect("encrypted");
        volume.technique.decrypt(0, &mut sector).expect("decrypted");
        assert!(sector.iter().all(|byte| *byte == 0));
    }
}
