//! Version 1: a binary header of 592 bytes, big-endian, with eight slots.

use super::derive::{Hash, Kdf, Pbkdf2, merge, split};
use super::{Creation, Info, LONGEST_KEY, MAGIC, STRIPES, damaged, read, same, text, uuid};
use crate::sectors::{Spec, beside};
use crate::{CryptError, Limits, SECTOR_BYTES, Secret, Store, Volume};

/// Bytes of the header.
const BYTES: usize = 592;
const SLOTS: usize = 8;
const SLOT_BYTES: usize = 48;
const FIRST_SLOT: usize = 208;
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const DIGEST: usize = 20;
const SALT: usize = 32;
/// Key material begins at multiples of this, in bytes.
const ALIGNED: u64 = 4096;
/// Where the data of a new disk begins, at least, in bytes.
const DATA: u64 = 2 << 20;
/// Bytes of a slot's key material, at most.
const MOST_MATERIAL: usize = 16 << 20;

struct Slot {
    kdf: Kdf,
    /// Bytes from the start.
    offset: u64,
    stripes: u32,
}

/// A header.
pub(super) struct Header {
    spec: Spec,
    hash: Hash,
    /// Bytes from the start.
    data: u64,
    key_bytes: usize,
    digest: [u8; DIGEST],
    digest_kdf: Pbkdf2,
    uuid: String,
    slots: Vec<(usize, Slot)>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Header {
    pub(super) fn read(store: &dyn Store) -> Result<Self, CryptError> {
        let mut bytes = [0; BYTES];
        read(store, 0, &mut bytes)?;
        let spec: Spec = format!("{}-{}", text(&bytes[8..40])?, text(&bytes[40..72])?).parse()?;
        let hash = Hash::named(&text(&bytes[72..104])?)?;
        let key_bytes = word(&bytes, 108) as usize;
        if key_bytes == 0 || key_bytes > LONGEST_KEY {
            return Err(damaged(format!("a key of {key_bytes} bytes")));
        }
        let mut slots = Vec::new();
        for (number, slot) in bytes[FIRST_SLOT..].chunks_exact(SLOT_BYTES).take(SLOTS).enumerate() {
            match word(slot, 0) {
                ENABLED => {}
                DISABLED => continue,
                _ => return Err(damaged(format!("key slot {number} is neither used nor unused"))),
            }
            let stripes = word(slot, 44);
            if stripes == 0 || key_bytes.saturating_mul(stripes as usize) > MOST_MATERIAL {
                return Err(damaged(format!("key slot {number} is spread over {stripes} stripes")));
            }
            let salt = slot[8..8 + SALT].to_vec();
            let kdf = Kdf::Pbkdf2(Pbkdf2 { hash, rounds: word(slot, 4), salt });
            let offset = u64::from(word(slot, 40)) * SECTOR_BYTES;
            slots.push((number, Slot { kdf, offset, stripes }));
        }
        let mut digest = [0; DIGEST];
        digest.copy_from_slice(&bytes[112..132]);
        let salt = bytes[132..132 + SALT].to_vec();
        Ok(Self {
            spec,
            hash,
            data: u64::from(word(&bytes, 104)) * SECTOR_BYTES,
            key_bytes,
            digest,
            digest_kdf: Pbkdf2 { hash, rounds: word(&bytes, 164), salt },
            uuid: text(&bytes[168..208])?,
            slots,
        })
    }

    pub(super) fn info(&self) -> Info {
        let slot = |(number, slot): &(usize, Slot)| match &slot.kdf {
            Kdf::Pbkdf2(kdf) => format!("{number}: pbkdf2, {} rounds", kdf.rounds),
            Kdf::Argon2(_) => format!("{number}: argon2"),
        };
        Info {
            version: 1,
            cipher: self.spec.to_string(),
            sector_bytes: 512,
            key_bits: self.key_bytes * 8,
            uuid: self.uuid.clone(),
            slots: self.slots.iter().map(slot).collect(),
            offset: self.data,
        }
    }

    pub(super) fn open(&self, store: &dyn Store, key: &Secret, limits: Limits) -> Result<Volume, CryptError> {
        if self.data < BYTES as u64 {
            return Err(damaged("the data begins within the header"));
        }
        for (_, slot) in &self.slots {
            if let Some(key) = self.unlock(slot, store, key, limits)? {
                let technique = self.spec.technique(&key, SECTOR_BYTES as u32, 0)?;
                return Volume::new(technique, store.len(), self.data, None, SECTOR_BYTES as u32);
            }
        }
        Err(CryptError::WrongKey)
    }

    /// The disk's key, where the passphrase is this slot's.
    fn unlock(
        &self,
        slot: &Slot,
        store: &dyn Store,
        key: &Secret,
        limits: Limits,
    ) -> Result<Option<Secret>, CryptError> {
        let bytes = self.key_bytes * slot.stripes as usize;
        let mut material = Secret::zeros(bytes.next_multiple_of(SECTOR_BYTES as usize))?;
        read(store, slot.offset, &mut material)?;
        let mut derived = Secret::zeros(self.key_bytes)?;
        slot.kdf.derive(key, &mut derived, limits)?;
        beside(self.spec, &derived)?.decrypt(0, &mut material)?;
        let mut candidate = Secret::zeros(self.key_bytes)?;
        merge(self.hash, &material[..bytes], &mut candidate);
        let mut digest = [0; DIGEST];
        self.digest_kdf.derive(&candidate, &mut digest, limits)?;
        Ok(same(&digest, &self.digest).then_some(candidate))
    }
}

/// A new header with one slot.
pub(super) fn create(creation: &Creation, key: &Secret) -> Result<crate::Header, CryptError> {
    let hash = Hash::Sha256;
    let spec = creation.spec;
    if creation.sector_bytes != SECTOR_BYTES as u32 || creation.memory.is_some() {
        return Err(CryptError::Unsupported(
            "another sector size than 512, or Argon2, in version 1 of LUKS".to_owned(),
        ));
    }
    let disk = Secret::random(spec.key_bytes())?;
    let mut salts = [0; 2 * SALT];
    crate::secret::random(&mut salts)?;
    let rounds = Pbkdf2::rounds_in(hash, creation.effort, disk.len());
    let slot = Pbkdf2 { hash, rounds, salt: salts[..SALT].to_vec() };
    let digest_kdf = Pbkdf2 { hash, rounds: (rounds / 8).max(1000), salt: salts[SALT..].to_vec() };
    let mut material = split(hash, &disk)?;
    let mut derived = Secret::zeros(disk.len())?;
    slot.derive(key, &mut derived, Limits::default())?;
    beside(spec, &derived)?.encrypt(0, &mut material)?;
    let mut digest = [0; DIGEST];
    digest_kdf.derive(&disk, &mut digest, Limits::default())?;

    let room = (material.len() as u64).next_multiple_of(ALIGNED);
    let first = ALIGNED;
    let offset = (first + room * SLOTS as u64).next_multiple_of(1 << 20).max(DATA);
    let name = spec.to_string();
    let (cipher, mode) = name.split_once('-').unwrap_or((&name, ""));
    let mut bytes = vec![0; BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let sectors = |bytes: u64| ((bytes / SECTOR_BYTES) as u32).to_be_bytes();
    put(0, &MAGIC);
    put(6, &1u16.to_be_bytes());
    put(8, cipher.as_bytes());
    put(40, mode.as_bytes());
    put(72, b"sha256");
    put(104, &sectors(offset));
    put(108, &(disk.len() as u32).to_be_bytes());
    put(112, &digest);
    put(132, &digest_kdf.salt);
    put(164, &digest_kdf.rounds.to_be_bytes());
    put(168, uuid()?.as_bytes());
    for number in 0..SLOTS {
        let at = FIRST_SLOT + number * SLOT_BYTES;
        put(at, &DISABLED.to_be_bytes());
        put(at + 40, &sectors(first + room * number as u64));
        put(at + 44, &STRIPES.to_be_bytes());
    }
    put(FIRST_SLOT, &ENABLED.to_be_bytes());
    put(FIRST_SLOT + 4, &slot.rounds.to_be_bytes());
    put(FIRST_SLOT + 8, &slot.salt);
    Ok(crate::Header { pieces: vec![(0, bytes), (first, material.to_vec())], offset })
}
