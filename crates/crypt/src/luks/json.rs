//! The JSON text of version 2. Parsed by serde into what is used here; unknown members are let be, as the format wants it.

use super::damaged;
use super::derive::{Hash, Kdf, Memory, Pbkdf2};
use super::v2::{decoded, encoded, spec};
use crate::CryptError;
use crate::sectors::Spec;
use argon2::Algorithm;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Priorities of slots (3.2): not tried unless asked for, ordinary, first.
const IGNORED: i64 = 0;
const ORDINARY: i64 = 1;

#[derive(Deserialize)]
pub(super) struct Metadata {
    keyslots: BTreeMap<String, KeySlot>,
    segments: BTreeMap<String, Value>,
    digests: BTreeMap<String, JsonDigest>,
    #[serde(default)]
    config: Config,
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    requirements: Requirements,
}

#[derive(Deserialize, Default)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

#[derive(Deserialize)]
struct KeySlot {
    #[serde(rename = "type")]
    kind: String,
    key_size: usize,
    #[serde(default)]
    af: Option<JsonAf>,
    area: JsonArea,
    #[serde(default)]
    kdf: Option<JsonKdf>,
    #[serde(default)]
    priority: Option<i64>,
}

#[derive(Deserialize)]
struct JsonAf {
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
struct JsonArea {
    offset: String,
    size: String,
    #[serde(default)]
    encryption: String,
    #[serde(default)]
    key_size: usize,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum JsonKdf {
    Pbkdf2 { hash: String, iterations: u32, salt: String },
    Argon2i { time: u32, memory: u32, cpus: u32, salt: String },
    Argon2id { time: u32, memory: u32, cpus: u32, salt: String },
}

#[derive(Deserialize)]
struct JsonSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    #[serde(default)]
    iv_tweak: Option<String>,
    #[serde(default)]
    encryption: String,
    #[serde(default)]
    sector_size: u32,
    #[serde(default)]
    integrity: Option<Value>,
}

#[derive(Deserialize)]
struct JsonDigest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: String,
    digest: String,
}

/// A slot that a passphrase may open.
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) key_bytes: usize,
    pub(super) stripes: u32,
    pub(super) hash: Hash,
    pub(super) area: Area,
    pub(super) kdf: Kdf,
    first: bool,
}

/// Where a slot's key material is, in bytes, and what encrypts it.
pub(super) struct Area {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) spec: Spec,
    pub(super) key_bytes: usize,
}

/// The data.
pub(super) struct Segment {
    pub(super) spec: Spec,
    pub(super) offset: u64,
    pub(super) bytes: Option<u64>,
    pub(super) sector_bytes: u32,
    /// Added to sectors' numbers.
    pub(super) tweak: u64,
}

/// What tells whether a key is the disk's.
pub(super) struct Digest {
    pub(super) kdf: Pbkdf2,
    pub(super) digest: Vec<u8>,
}

fn number(text: &str) -> Result<u64, CryptError> {
    text.parse().map_err(|_| damaged("a number in it is none"))
}

impl Metadata {
    pub(super) fn parse(text: &[u8]) -> Result<Self, CryptError> {
        let metadata: Self = serde_json::from_slice(text)
            .map_err(|error| damaged(format!("its JSON text at line {} is wrong", error.line())))?;
        if let Some(what) = metadata.config.requirements.mandatory.first() {
            return Err(CryptError::Unsupported(format!("what the LUKS header requires, `{what}`,")));
        }
        Ok(metadata)
    }

    /// The one segment.
    pub(super) fn segment(&self) -> Result<Segment, CryptError> {
        let mut segments = self.segments.values();
        let (Some(segment), None) = (segments.next(), segments.next()) else {
            let count = self.segments.len();
            return Err(CryptError::Unsupported(format!("a LUKS header with {count} segments")));
        };
        let segment = JsonSegment::deserialize(segment).map_err(|_| damaged("its segment is wrong"))?;
        if segment.kind != "crypt" || segment.integrity.is_some() {
            return Err(CryptError::Unsupported("a segment that isn't only encrypted".to_owned()));
        }
        let bytes = if segment.size == "dynamic" { None } else { Some(number(&segment.size)?) };
        Ok(Segment {
            spec: spec(&segment.encryption)?,
            offset: number(&segment.offset)?,
            bytes,
            sector_bytes: segment.sector_size,
            tweak: segment.iv_tweak.as_deref().map_or(Ok(0), number)?,
        })
    }

    /// The slots that may be tried, in the order in which they should be. Those that need what isn't there are left out unless there are no
    /// others.
    pub(super) fn slots(&self) -> Result<Vec<Slot>, CryptError> {
        let mut slots = Vec::new();
        let mut problem = None;
        for (name, slot) in &self.keyslots {
            if slot.priority == Some(IGNORED) || slot.kind == "reencrypt" {
                continue;
            }
            match slot.usable(name) {
                Ok(slot) => slots.push(slot),
                Err(error) => problem = Some(error),
            }
        }
        slots.sort_by_key(|slot| !slot.first);
        match problem {
            Some(error) if slots.is_empty() => Err(error),
            _ => Ok(slots),
        }
    }

    /// The digest that a slot's key has to have.
    pub(super) fn digest(&self, slot: &str) -> Result<Option<Digest>, CryptError> {
        let segment = self.segments.keys().next();
        let found = self.digests.values().find(|digest| {
            digest.keyslots.iter().any(|name| name == slot)
                && digest.segments.iter().any(|name| Some(name) == segment)
        });
        let Some(digest) = found else { return Ok(None) };
        if digest.kind != "pbkdf2" {
            return Err(CryptError::Unsupported(format!("the digest `{}`", digest.kind)));
        }
        let value = decoded(&digest.digest)?;
        if value.is_empty() || value.len() > 64 {
            return Err(damaged("a digest of an impossible size"));
        }
        let kdf = Pbkdf2 {
            hash: Hash::named(&digest.hash)?,
            rounds: digest.iterations,
            salt: decoded(&digest.salt)?,
        };
        Ok(Some(Digest { kdf, digest: value }))
    }
}

impl KeySlot {
    fn usable(&self, name: &str) -> Result<Slot, CryptError> {
        let (Some(af), Some(kdf), "luks2") = (&self.af, &self.kdf, self.kind.as_str()) else {
            return Err(CryptError::Unsupported(format!("the kind `{}` of key slot {name}", self.kind)));
        };
        let kdf = match kdf {
            JsonKdf::Pbkdf2 { hash, iterations, salt } => {
                Kdf::Pbkdf2(Pbkdf2 { hash: Hash::named(hash)?, rounds: *iterations, salt: decoded(salt)? })
            }
            JsonKdf::Argon2i { time, memory, cpus, salt } => {
                argon2(Algorithm::Argon2i, *time, *memory, *cpus, salt)?
            }
            JsonKdf::Argon2id { time, memory, cpus, salt } => {
                argon2(Algorithm::Argon2id, *time, *memory, *cpus, salt)?
            }
        };
        Ok(Slot {
            name: name.to_owned(),
            key_bytes: self.key_size,
            stripes: af.stripes,
            hash: Hash::named(&af.hash)?,
            area: Area {
                offset: number(&self.area.offset)?,
                bytes: number(&self.area.size)?,
                spec: spec(&self.area.encryption)?,
                key_bytes: self.area.key_size,
            },
            kdf,
            first: self.priority.unwrap_or(ORDINARY) > ORDINARY,
        })
    }
}

fn argon2(algorithm: Algorithm, passes: u32, memory: u32, lanes: u32, salt: &str) -> Result<Kdf, CryptError> {
    Ok(Kdf::Argon2(Memory { algorithm, passes, memory, lanes, salt: decoded(salt)? }))
}

/// What a new header says.
pub(super) struct New<'a> {
    pub(super) area: Area,
    pub(super) kdf: &'a Kdf,
    pub(super) segment: Segment,
    pub(super) digest: &'a Digest,
    pub(super) json_bytes: u64,
    pub(super) slots_bytes: u64,
    pub(super) stripes: u32,
}

/// The text of a new header with one slot; PBKDF2 and digests are of SHA-256.
pub(super) fn write(new: &New<'_>) -> String {
    let kdf = match new.kdf {
        Kdf::Pbkdf2(kdf) => {
            json!({ "type": "pbkdf2", "hash": "sha256", "iterations": kdf.rounds, "salt": encoded(&kdf.salt) })
        }
        Kdf::Argon2(kdf) => json!({
            "type": "argon2id", "time": kdf.passes, "memory": kdf.memory, "cpus": kdf.lanes,
            "salt": encoded(&kdf.salt),
        }),
    };
    json!({
        "keyslots": { "0": {
            "type": "luks2",
            "key_size": new.area.key_bytes,
            "af": { "type": "luks1", "stripes": new.stripes, "hash": "sha256" },
            "area": {
                "type": "raw",
                "offset": new.area.offset.to_string(),
                "size": new.area.bytes.to_string(),
                "encryption": new.area.spec.to_string(),
                "key_size": new.area.key_bytes,
            },
            "kdf": kdf,
        } },
        "tokens": {},
        "segments": { "0": {
            "type": "crypt",
            "offset": new.segment.offset.to_string(),
            "size": "dynamic",
            "iv_tweak": new.segment.tweak.to_string(),
            "encryption": new.segment.spec.to_string(),
            "sector_size": new.segment.sector_bytes,
        } },
        "digests": { "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": new.digest.kdf.rounds,
            "salt": encoded(&new.digest.kdf.salt),
            "digest": encoded(&new.digest.digest),
        } },
        "config": {
            "json_size": new.json_bytes.to_string(),
            "keyslots_size": new.slots_bytes.to_string(),
        },
    })
    .to_string()
}
