//! From a passphrase to a key, and a key spread over many sectors. The functions are RustCrypto's.

use super::{Limits, STRIPES, damaged};
use crate::{CryptError, Secret};
use argon2::{Algorithm, Argon2, Params};
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use std::time::{Duration, Instant};
use zeroize::Zeroize;

/// A hash function by LUKS's name of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

/// Runs `$body` with `$H` as the hash's type.
macro_rules! with_hash {
    ($hash:expr, $H:ident => $body:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $H = Sha1;
                $body
            }
            Hash::Sha224 => {
                type $H = Sha224;
                $body
            }
            Hash::Sha256 => {
                type $H = Sha256;
                $body
            }
            Hash::Sha384 => {
                type $H = Sha384;
                $body
            }
            Hash::Sha512 => {
                type $H = Sha512;
                $body
            }
            Hash::Ripemd160 => {
                type $H = Ripemd160;
                $body
            }
        }
    };
}

impl Hash {
    pub(super) fn named(name: &str) -> Result<Self, CryptError> {
        Ok(match name {
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "ripemd160" => Self::Ripemd160,
            _ => return Err(CryptError::Unsupported(format!("the hash `{name}`"))),
        })
    }

    fn bytes(self) -> usize {
        with_hash!(self, H => <H as Digest>::output_size())
    }

    /// One block of [`diffuse`]: the digest of its number and itself.
    fn block(self, number: u32, block: &mut [u8]) {
        with_hash!(self, H => {
            let mut digest = H::new().chain_update(number.to_be_bytes()).chain_update(&*block).finalize();
            block.copy_from_slice(&digest[..block.len()]);
            digest.as_mut_slice().zeroize();
        });
    }
}

/// PBKDF2 (RFC 8018) with HMAC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pbkdf2 {
    pub(super) hash: Hash,
    pub(super) rounds: u32,
    pub(super) salt: Vec<u8>,
}

impl Pbkdf2 {
    pub(super) fn derive(&self, from: &[u8], into: &mut [u8], limits: Limits) -> Result<(), CryptError> {
        if self.rounds == 0 {
            return Err(damaged("a key derived in no rounds"));
        }
        if self.rounds > limits.rounds {
            return Err(CryptError::Unsupported(format!("deriving a key in {} rounds", self.rounds)));
        }
        with_hash!(self.hash, H => pbkdf2_hmac::<H>(from, &self.salt, self.rounds, into));
        Ok(())
    }

    /// Rounds that take so long here.
    pub(super) fn rounds_in(hash: Hash, time: Duration, key_bytes: usize) -> u32 {
        const LEAST: u32 = 1000;
        const PROBE: u32 = 20_000;
        let mut key = vec![0; key_bytes];
        let start = Instant::now();
        with_hash!(hash, H => pbkdf2_hmac::<H>(b"how fast", &[7; 32], PROBE, &mut key));
        let spent = start.elapsed().as_secs_f64().max(1e-6);
        let rounds = f64::from(PROBE) * time.as_secs_f64() / spent;
        // `as` saturates.
        (rounds as u32).clamp(LEAST, 1 << 28)
    }
}

/// Argon2 (RFC 9106).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Memory {
    pub(super) algorithm: Algorithm,
    pub(super) passes: u32,
    /// KiB.
    pub(super) memory: u32,
    pub(super) lanes: u32,
    pub(super) salt: Vec<u8>,
}

impl Memory {
    pub(super) fn derive(&self, from: &[u8], into: &mut [u8], limits: Limits) -> Result<(), CryptError> {
        if self.memory > limits.memory || self.passes > limits.passes {
            return Err(CryptError::Unsupported(format!(
                "deriving a key with {} KiB in {} passes",
                self.memory, self.passes
            )));
        }
        let wrong = |error: argon2::Error| damaged(format!("Argon2 doesn't take its parameters: {error}"));
        let params = Params::new(self.memory, self.passes, self.lanes, Some(into.len())).map_err(wrong)?;
        let blocks = params.block_count();
        let refused = |_| CryptError::Refused {
            what: "the memory that Argon2 wants",
            source: std::io::ErrorKind::OutOfMemory.into(),
        };
        // A header may want more than there is, which is no reason to end.
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks).map_err(refused)?;
        memory.resize(blocks, argon2::Block::default());
        let derived = Argon2::new(self.algorithm, argon2::Version::V0x13, params)
            .hash_password_into_with_memory(from, &self.salt, into, &mut memory);
        for block in &mut memory {
            block.zeroize();
        }
        derived.map_err(wrong)
    }
}

/// How a slot derives its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kdf {
    Pbkdf2(Pbkdf2),
    Argon2(Memory),
}

impl Kdf {
    pub(super) fn derive(&self, from: &[u8], into: &mut [u8], limits: Limits) -> Result<(), CryptError> {
        match self {
            Self::Pbkdf2(pbkdf2) => pbkdf2.derive(from, into, limits),
            Self::Argon2(argon2) => argon2.derive(from, into, limits),
        }
    }
}

/// Spreads `stripe` over itself: each digest-sized block becomes the digest of its number and itself.
fn diffuse(hash: Hash, stripe: &mut [u8]) {
    for (number, block) in (0..).zip(stripe.chunks_mut(hash.bytes())) {
        hash.block(number, block);
    }
}

fn xor(into: &mut [u8], with: &[u8]) {
    for (into, with) in into.iter_mut().zip(with) {
        *into ^= with;
    }
}

/// The key that is spread over `material`, whose length is a multiple of the key's.
pub(super) fn merge(hash: Hash, material: &[u8], key: &mut [u8]) {
    key.fill(0);
    let last = material.len() / key.len() - 1;
    for (number, stripe) in material.chunks_exact(key.len()).enumerate() {
        xor(key, stripe);
        if number < last {
            diffuse(hash, key);
        }
    }
}

/// Spreads a key over [`STRIPES`] times its size, so that all of it is needed to have it back.
pub(super) fn split(hash: Hash, key: &[u8]) -> Result<Secret, CryptError> {
    let mut material = Secret::random(key.len() * STRIPES as usize)?;
    let (stripes, last) = material.split_at_mut(key.len() * (STRIPES as usize - 1));
    let mut sum = Secret::zeros(key.len())?;
    for stripe in stripes.chunks_exact(key.len()) {
        xor(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    last.copy_from_slice(&sum);
    xor(last, key);
    Ok(material)
}
