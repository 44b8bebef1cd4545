//! Version 2: two copies of a binary header of 4096 bytes and a JSON text, each copy with a checksum; then key slots, then data.

use super::derive::{Hash, Kdf, Memory, Pbkdf2, merge, split};
use super::json::{self, Area, Digest, Metadata, Segment};
use super::{Creation, Info, LONGEST_KEY, MAGIC, STRIPES, damaged, read, same, text, uuid};
use crate::sectors::{Spec, beside};
use crate::{CryptError, Limits, SECTOR_BYTES, Secret, Store, Volume};
use argon2::Algorithm;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256, Sha512};

/// The second copy's first bytes.
const SECOND: [u8; 6] = *b"SKUL\xba\xbe";
/// Bytes of the binary part.
const BINARY: usize = 4096;
/// Sizes that a copy may have, in bytes (2.1 of the format).
const SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// A new header's sizes: a copy; where key slots end and data begins.
const COPY: u64 = SIZES[0];
const DATA: u64 = 16 << 20;
/// Bytes of a slot's key material, at most.
const MOST_MATERIAL: u64 = 16 << 20;

/// A header.
pub(super) struct Header {
    metadata: Metadata,
    sequence: u64,
    uuid: String,
}

impl Header {
    /// The better one of the two copies, the first of which is there at least by its first bytes.
    pub(super) fn read(store: &dyn Store) -> Result<Self, CryptError> {
        match (Self::copy(store, 0, MAGIC), Self::second(store)) {
            (Ok(first), Some(second)) => Ok(if second.sequence > first.sequence { second } else { first }),
            (Ok(first), None) => {
                tracing::warn!("the second LUKS header is damaged (cryptsetup repair mends it)");
                Ok(first)
            }
            (Err(error), Some(second)) => {
                tracing::warn!("the first LUKS header can't be used ({error}); the second one is");
                Ok(second)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The second copy, wherever it may be.
    pub(super) fn second(store: &dyn Store) -> Option<Self> {
        SIZES.iter().find_map(|at| Self::copy(store, *at, SECOND).ok())
    }

    fn copy(store: &dyn Store, at: u64, magic: [u8; 6]) -> Result<Self, CryptError> {
        let mut binary = [0; BINARY];
        read(store, at, &mut binary)?;
        if !binary.starts_with(&magic) || binary[6..8] != [0, 2] {
            return Err(CryptError::NotLuks);
        }
        let long = |at: usize| binary[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let size = long(8);
        if !SIZES.contains(&size) || long(256) != at {
            return Err(damaged("a copy of it has an impossible size or place"));
        }
        let mut bytes = vec![0; size as usize];
        read(store, at, &mut bytes)?;
        let stored: Vec<u8> = bytes[CHECKSUM].to_vec();
        bytes[CHECKSUM].fill(0);
        let sum = match text(&binary[72..104])?.as_str() {
            "sha256" => Sha256::digest(&bytes).to_vec(),
            "sha512" => Sha512::digest(&bytes).to_vec(),
            other => return Err(CryptError::Unsupported(format!("the checksum `{other}`"))),
        };
        if !same(&sum, &stored[..sum.len()]) {
            return Err(damaged("its checksum is wrong"));
        }
        let json = &bytes[BINARY..];
        let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
        Ok(Self {
            metadata: Metadata::parse(&json[..end])?,
            sequence: long(16),
            uuid: text(&binary[168..208])?,
        })
    }

    pub(super) fn info(&self) -> Result<Info, CryptError> {
        let segment = self.metadata.segment()?;
        let slots = self.metadata.slots()?;
        let slot = |slot: &json::Slot| match &slot.kdf {
            Kdf::Pbkdf2(kdf) => format!("{}: pbkdf2, {} rounds", slot.name, kdf.rounds),
            Kdf::Argon2(kdf) => {
                format!(
                    "{}: argon2, {} KiB, {} passes, {} lanes",
                    slot.name, kdf.memory, kdf.passes, kdf.lanes
                )
            }
        };
        Ok(Info {
            version: 2,
            cipher: segment.spec.to_string(),
            sector_bytes: segment.sector_bytes,
            key_bits: slots.first().map_or(0, |slot| slot.key_bytes * 8),
            uuid: self.uuid.clone(),
            slots: slots.iter().map(slot).collect(),
            offset: segment.offset,
        })
    }

    pub(super) fn open(&self, store: &dyn Store, key: &Secret, limits: Limits) -> Result<Volume, CryptError> {
        let segment = self.metadata.segment()?;
        for slot in self.metadata.slots()? {
            let Some(digest) = self.metadata.digest(&slot.name)? else { continue };
            if let Some(key) = unlock(&slot, &digest, store, key, limits)? {
                let technique = segment.spec.technique(&key, segment.sector_bytes, segment.tweak)?;
                return Volume::new(
                    technique,
                    store.len(),
                    segment.offset,
                    segment.bytes,
                    segment.sector_bytes,
                );
            }
        }
        Err(CryptError::WrongKey)
    }
}

/// SHA-256 of a copy without its checksum.
pub(super) fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut copy = copy.to_vec();
    if let Some(place) = copy.get_mut(CHECKSUM) {
        place.fill(0);
    }
    Sha256::digest(&copy).into()
}

/// The disk's key, where the passphrase is this slot's.
fn unlock(
    slot: &json::Slot,
    digest: &Digest,
    store: &dyn Store,
    key: &Secret,
    limits: Limits,
) -> Result<Option<Secret>, CryptError> {
    if slot.key_bytes == 0 || slot.key_bytes > LONGEST_KEY {
        return Err(damaged(format!("a key of {} bytes", slot.key_bytes)));
    }
    let bytes = slot.key_bytes as u64 * u64::from(slot.stripes);
    if bytes == 0 || bytes > slot.area.bytes || bytes > MOST_MATERIAL {
        return Err(damaged(format!("key slot {} doesn't fit its place", slot.name)));
    }
    let mut material = Secret::zeros(bytes.next_multiple_of(SECTOR_BYTES) as usize)?;
    read(store, slot.area.offset, &mut material)?;
    let mut derived = Secret::zeros(slot.area.key_bytes.min(LONGEST_KEY))?;
    slot.kdf.derive(key, &mut derived, limits)?;
    beside(slot.area.spec, &derived)?.decrypt(0, &mut material)?;
    let mut candidate = Secret::zeros(slot.key_bytes)?;
    merge(slot.hash, &material[..bytes as usize], &mut candidate);
    let mut sum = vec![0; digest.digest.len()];
    digest.kdf.derive(&candidate, &mut sum, limits)?;
    Ok(same(&sum, &digest.digest).then_some(candidate))
}

/// A new header with one slot.
pub(super) fn create(creation: &Creation, key: &Secret) -> Result<crate::Header, CryptError> {
    let hash = Hash::Sha256;
    let spec = creation.spec;
    let disk = Secret::random(spec.key_bytes())?;
    let mut salts = [0; 3 * 32 + 64];
    crate::secret::random(&mut salts)?;
    let salt = |number: usize| salts[number * 32..][..32].to_vec();
    let kdf = match creation.memory {
        Some(memory) => Kdf::Argon2(argon2id(memory, creation, salt(0))?),
        None => Kdf::Pbkdf2(Pbkdf2 {
            hash,
            rounds: Pbkdf2::rounds_in(hash, creation.effort, disk.len()),
            salt: salt(0),
        }),
    };
    let digest_kdf =
        Pbkdf2 { hash, rounds: Pbkdf2::rounds_in(hash, creation.effort / 16, 32), salt: salt(1) };
    let mut digest = vec![0; 32];
    digest_kdf.derive(&disk, &mut digest, Limits::default())?;
    let mut material = split(hash, &disk)?;
    let mut derived = Secret::zeros(disk.len())?;
    kdf.derive(key, &mut derived, Limits::default())?;
    beside(spec, &derived)?.encrypt(0, &mut material)?;

    let first = 2 * COPY;
    let metadata = json::write(&json::New {
        area: Area {
            offset: first,
            bytes: (material.len() as u64).next_multiple_of(4096),
            spec,
            key_bytes: disk.len(),
        },
        kdf: &kdf,
        segment: Segment { spec, offset: DATA, bytes: None, sector_bytes: creation.sector_bytes, tweak: 0 },
        digest: &Digest { kdf: digest_kdf, digest },
        json_bytes: COPY - BINARY as u64,
        slots_bytes: DATA - first,
        stripes: STRIPES,
    });
    let uuid = uuid()?;
    let copy = |at: u64, magic: [u8; 6], salt: &[u8]| {
        let mut bytes = vec![0; COPY as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &magic);
        put(6, &2u16.to_be_bytes());
        put(8, &COPY.to_be_bytes());
        put(16, &1u64.to_be_bytes());
        put(72, b"sha256");
        put(104, salt);
        put(168, uuid.as_bytes());
        put(256, &at.to_be_bytes());
        put(BINARY, metadata.as_bytes());
        let sum = Sha256::digest(&bytes);
        bytes[CHECKSUM.start..][..sum.len()].copy_from_slice(&sum);
        bytes
    };
    // Each copy has a salt of 64 bytes of its own, so that no two headers are alike.
    let mut other = salts[96..].to_vec();
    other.reverse();
    Ok(crate::Header {
        pieces: vec![
            (0, copy(0, MAGIC, &salts[96..])),
            (COPY, copy(COPY, SECOND, &other)),
            (first, material.to_vec()),
        ],
        offset: DATA,
    })
}

/// As many passes as fit into the time, four at least.
fn argon2id(memory: u32, creation: &Creation, salt: Vec<u8>) -> Result<Memory, CryptError> {
    let lanes = std::thread::available_parallelism().map_or(1, |count| count.get().min(4)) as u32;
    let mut kdf = Memory { algorithm: Algorithm::Argon2id, passes: 1, memory, lanes, salt };
    let start = std::time::Instant::now();
    kdf.derive(b"how fast", &mut [0; 32], Limits::default())?;
    let pass = start.elapsed().as_secs_f64().max(1e-6);
    kdf.passes = ((creation.effort.as_secs_f64() / pass) as u32).clamp(4, 1 << 10);
    Ok(kdf)
}

/// Base64 as the JSON text has it.
pub(super) fn decoded(text: &str) -> Result<Vec<u8>, CryptError> {
    BASE64_STANDARD.decode(text).map_err(|_| damaged("something in it is no Base64"))
}

/// The reverse.
pub(super) fn encoded(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Whether a cipher can be meant.
pub(super) fn spec(text: &str) -> Result<Spec, CryptError> {
    text.parse()
}
