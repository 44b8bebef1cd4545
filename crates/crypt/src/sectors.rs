//! Sector ciphers as dm-crypt names them, such as `aes-xts-plain64`: a block cipher of 128 bits, a mode, and how a sector's number becomes the
//! mode's start. The block ciphers are RustCrypto's.
//!
//! XTS (IEEE 1619) is spelled out here over the ciphers' calls for many blocks, which keep the host's AES units busy; the crate
//! `xts-mode` does a block at a time and is the test's oracle. CBC is RustCrypto's.
//!
//! A sector's number counts 512 bytes whatever its size, as dm-crypt has it without `iv_large_sectors`.

use crate::secret::Guarded;
use crate::{CryptError, SECTOR_BYTES, Secret, Technique};
use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser, InnerIvInit,
    KeyInit,
};
use aes::{Aes128, Aes192, Aes256};
use serpent::Serpent;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use twofish::Twofish;
use zeroize::Zeroizing;

/// Blocks that are given to a cipher at once: two sectors of 4096 bytes, or 16 of 512.
const AT_ONCE: usize = 512;
const MOST_SECTORS: usize = 16;
/// Tweaks that are worked on at once; at most eight.
const CHAINS: usize = 8;

type Block = Array<u8, U16>;

/// A block cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cipher {
    /// FIPS 197.
    Aes,
    /// Anderson, Biham, Knudsen.
    Serpent,
    /// Schneier and others.
    Twofish,
}

/// A mode of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// IEEE 1619.
    Xts,
    /// Cipher block chaining.
    Cbc,
}

/// How a sector's number becomes a mode's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Iv {
    /// Its low 32 bits.
    Plain,
    /// All of it.
    Plain64,
    /// All of it, encrypted with the SHA-256 of the key.
    EssivSha256,
}

/// What encrypts sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    /// The block cipher.
    pub cipher: Cipher,
    /// Its mode.
    pub mode: Mode,
    /// The mode's start.
    pub iv: Iv,
}

impl Spec {
    /// dm-crypt's and everybody's default.
    pub const AES_XTS: Self = Self { cipher: Cipher::Aes, mode: Mode::Xts, iv: Iv::Plain64 };

    /// Bytes of the key that are the best choice.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self.mode {
            Mode::Xts => 64,
            Mode::Cbc => 32,
        }
    }

    /// The technique for a key. `offset` is added to sectors' numbers.
    ///
    /// # Errors
    /// [`CryptError::KeySize`], [`CryptError::Refused`].
    pub fn technique(
        self,
        key: &[u8],
        sector_bytes: u32,
        offset: u64,
    ) -> Result<Arc<dyn Technique>, CryptError> {
        let single = match self.mode {
            Mode::Xts if key.len().is_multiple_of(2) => key.len() / 2,
            Mode::Xts => 0,
            Mode::Cbc => key.len(),
        };
        let numbers = Numbers { iv: self.iv, sector_bytes: sector_bytes as usize, offset };
        match (self.cipher, single) {
            (Cipher::Aes, 16) => make::<Aes128, Aes256>(self.mode, key, numbers),
            (Cipher::Aes, 24) => make::<Aes192, Aes256>(self.mode, key, numbers),
            (Cipher::Aes, 32) => make::<Aes256, Aes256>(self.mode, key, numbers),
            (Cipher::Serpent, 16 | 24 | 32) => make::<Serpent, Serpent>(self.mode, key, numbers),
            (Cipher::Twofish, 16 | 24 | 32) => make::<Twofish, Twofish>(self.mode, key, numbers),
            _ => Err(CryptError::KeySize {
                cipher: self.to_string(),
                wants: match self.mode {
                    Mode::Xts => "32, 48 or 64",
                    Mode::Cbc => "16, 24 or 32",
                }
                .to_owned(),
                has: key.len(),
            }),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cipher = match self.cipher {
            Cipher::Aes => "aes",
            Cipher::Serpent => "serpent",
            Cipher::Twofish => "twofish",
        };
        let mode = match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        };
        let iv = match self.iv {
            Iv::Plain => "plain",
            Iv::Plain64 => "plain64",
            Iv::EssivSha256 => "essiv:sha256",
        };
        write!(f, "{cipher}-{mode}-{iv}")
    }
}

impl FromStr for Spec {
    type Err = CryptError;

    fn from_str(text: &str) -> Result<Self, CryptError> {
        let unknown = || CryptError::Unsupported(format!("the cipher `{text}`"));
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().ok_or_else(unknown);
        Ok(Self {
            cipher: match part()? {
                "aes" => Cipher::Aes,
                "serpent" => Cipher::Serpent,
                "twofish" => Cipher::Twofish,
                _ => return Err(unknown()),
            },
            mode: match part()? {
                "xts" => Mode::Xts,
                "cbc" => Mode::Cbc,
                _ => return Err(unknown()),
            },
            iv: match part()? {
                "plain" => Iv::Plain,
                "plain64" => Iv::Plain64,
                "essiv:sha256" => Iv::EssivSha256,
                _ => return Err(unknown()),
            },
        })
    }
}

/// How sectors are numbered.
#[derive(Clone, Copy)]
struct Numbers {
    iv: Iv,
    sector_bytes: usize,
    offset: u64,
}

impl Numbers {
    /// What the mode starts with for the `index`th sector from `first` on, before ESSIV.
    fn start(&self, first: u64, index: usize) -> Block {
        let number = first
            .wrapping_add(self.offset)
            .wrapping_add((index * (self.sector_bytes / SECTOR_BYTES as usize)) as u64);
        let number = if self.iv == Iv::Plain { number & 0xffff_ffff } else { number };
        u128::from(number).to_le_bytes().into()
    }
}

/// A block cipher as all of these are.
trait Both:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit + Send + Sync + 'static
{
}

impl<C> Both for C where
    C: BlockCipherEncrypt
        + BlockCipherDecrypt
        + BlockSizeUser<BlockSize = U16>
        + KeyInit
        + Send
        + Sync
        + 'static
{
}

/// `E` is the cipher with the key size that ESSIV's hash has.
fn make<C: Both, E: Both>(
    mode: Mode,
    key: &[u8],
    numbers: Numbers,
) -> Result<Arc<dyn Technique>, CryptError> {
    let essiv = match numbers.iv {
        Iv::EssivSha256 => {
            let hash: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(key).into());
            Some(Guarded::new(keyed::<E>(&*hash)?)?)
        }
        Iv::Plain | Iv::Plain64 => None,
    };
    Ok(match mode {
        Mode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            let keys = Guarded::new((keyed::<C>(data)?, keyed::<C>(tweak)?))?;
            Arc::new(Xts { keys, essiv, numbers })
        }
        Mode::Cbc => Arc::new(Cbc { key: Guarded::new(keyed::<C>(key)?)?, essiv, numbers }),
    })
}

fn keyed<C: Both>(key: &[u8]) -> Result<C, CryptError> {
    C::new_from_slice(key).map_err(|_| CryptError::KeySize {
        cipher: "the cipher".to_owned(),
        wants: "another number of bytes".to_owned(),
        has: key.len(),
    })
}

/// Blocks of whole sectors.
fn blocks(data: &mut [u8]) -> &mut [Block] {
    let (blocks, rest) = Block::slice_as_chunks_mut(data);
    debug_assert!(rest.is_empty(), "whole sectors");
    blocks
}

struct Xts<C, E> {
    /// For data, and for tweaks.
    keys: Guarded<(C, C)>,
    essiv: Option<Guarded<E>>,
    numbers: Numbers,
}

impl<C: Both, E: Both> Xts<C, E> {
    /// `turn` encrypts or decrypts blocks, as many at once as there are: a host's AES units do dozens in parallel.
    fn run(&self, sector: u64, data: &mut [u8], turn: impl Fn(&C, &mut [Block])) {
        let size = self.numbers.sector_bytes;
        let together = AT_ONCE * size_of::<Block>() / size;
        for (group, sectors) in data.chunks_mut(together * size).enumerate() {
            let count = sectors.len() / size;
            let mut tweaks = [Block::default(); MOST_SECTORS];
            for (index, tweak) in tweaks[..count].iter_mut().enumerate() {
                *tweak = self.numbers.start(sector, group * together + index);
            }
            if let Some(essiv) = &self.essiv {
                essiv.encrypt_blocks(&mut tweaks[..count]);
            }
            self.keys.1.encrypt_blocks(&mut tweaks[..count]);
            let mut powers = [0; AT_ONCE];
            for (powers, tweak) in powers.chunks_exact_mut(size / size_of::<Block>()).zip(&tweaks[..count]) {
                fill(powers, u128::from_le_bytes((*tweak).into()));
            }
            let blocks = blocks(sectors);
            mask(blocks, &powers);
            turn(&self.keys.0, blocks);
            mask(blocks, &powers);
        }
    }
}

/// A sector's tweaks: each is the one before times x.
fn fill(powers: &mut [u128], tweak: u128) {
    for (number, power) in powers.iter_mut().take(CHAINS).enumerate() {
        *power = times_x(tweak, number as u32);
    }
    // Chains that don't wait for each other.
    for number in CHAINS..powers.len() {
        let before = powers[number - CHAINS];
        let out = (before >> (u128::BITS - CHAINS as u32)) as u64;
        powers[number] = (before << CHAINS) ^ u128::from(reduced(out));
    }
}

/// Times x to the power of up to eight in GF(2^128), modulo x^128 + x^7 + x^2 + x + 1.
fn times_x(value: u128, power: u32) -> u128 {
    let out = value.checked_shr(u128::BITS - power).unwrap_or(0) as u64;
    (value << power) ^ u128::from(reduced(out))
}

/// What bits that are shifted out come back as.
fn reduced(out: u64) -> u64 {
    out ^ (out << 1) ^ (out << 2) ^ (out << 7)
}

fn mask(blocks: &mut [Block], with: &[u128; AT_ONCE]) {
    for (block, with) in blocks.iter_mut().zip(with) {
        *block = (u128::from_le_bytes((*block).into()) ^ with).to_le_bytes().into();
    }
}

impl<C: Both, E: Both> Technique for Xts<C, E> {
    fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.run(sector, data, |cipher, blocks| cipher.encrypt_blocks(blocks));
        Ok(())
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.run(sector, data, |cipher, blocks| cipher.decrypt_blocks(blocks));
        Ok(())
    }
}

struct Cbc<C, E> {
    key: Guarded<C>,
    essiv: Option<Guarded<E>>,
    numbers: Numbers,
}

impl<C: Both, E: Both> Cbc<C, E> {
    fn start(&self, sector: u64, index: usize) -> Block {
        let mut start = self.numbers.start(sector, index);
        if let Some(essiv) = &self.essiv {
            essiv.encrypt_block(&mut start);
        }
        start
    }
}

impl<C: Both, E: Both> Technique for Cbc<C, E> {
    fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        for (index, data) in data.chunks_exact_mut(self.numbers.sector_bytes).enumerate() {
            cbc::Encryptor::inner_iv_init(&*self.key, &self.start(sector, index))
                .encrypt_blocks(blocks(data));
        }
        Ok(())
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        for (index, data) in data.chunks_exact_mut(self.numbers.sector_bytes).enumerate() {
            cbc::Decryptor::inner_iv_init(&*self.key, &self.start(sector, index))
                .decrypt_blocks(blocks(data));
        }
        Ok(())
    }
}

/// The technique that encrypts something small beside the data, as LUKS its key slots.
pub(crate) fn beside(spec: Spec, key: &Secret) -> Result<Arc<dyn Technique>, CryptError> {
    spec.technique(key, SECTOR_BYTES as u32, 0)
}
