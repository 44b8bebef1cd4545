//! Keys in memory: locked, left out of core dumps, wiped. Called by everything here that has one.

use crate::CryptError;
use crate::raw::{self, Kept, Pages};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Once;
use zeroize::Zeroize;

/// The longest key or passphrase, in bytes; `cryptsetup`'s limit of a key file.
pub const LONGEST: usize = 8 << 20;
/// A key's first room.
const ROOM: usize = 4096;
/// Bytes of stack that a key's set-up may have used.
const STACK: usize = 32 << 10;

/// Where a key is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// In a file: all of it.
    File(PathBuf),
    /// Behind a file descriptor that this process was started with: all that comes, once.
    Inherited(i32),
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// [`CryptError::Key`].
    pub fn read(&self) -> Result<Secret, CryptError> {
        let failed = |source| CryptError::Key { from: self.to_string(), source };
        let file = match self {
            Self::File(path) => File::open(path),
            Self::Inherited(number) => raw::inherited(*number).map(File::from),
        };
        let secret = Secret::read(file.map_err(failed)?).map_err(|error| failed(error.into()))?;
        if secret.is_empty() {
            return Err(failed(io::Error::other("it is empty")));
        }
        Ok(secret)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Inherited(number) => write!(f, "file descriptor {number}"),
        }
    }
}

/// Bytes that nobody else should see. Comparing, printing and cloning them is left out.
pub struct Secret {
    pages: Pages,
    len: usize,
}

impl Secret {
    /// So many zeros.
    ///
    /// # Errors
    /// [`CryptError::Refused`].
    pub fn zeros(len: usize) -> Result<Self, CryptError> {
        let pages = Pages::new(len).map_err(|source| CryptError::Refused { what: "memory", source })?;
        told(pages.locked);
        Ok(Self { pages, len })
    }

    /// A copy of bytes, which the caller wipes.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn copy(bytes: &[u8]) -> Result<Self, CryptError> {
        let mut secret = Self::zeros(bytes.len())?;
        secret.copy_from_slice(bytes);
        Ok(secret)
    }

    /// Random bytes of the host's.
    ///
    /// # Errors
    /// [`CryptError::Refused`].
    pub fn random(len: usize) -> Result<Self, CryptError> {
        let mut secret = Self::zeros(len)?;
        random(&mut secret)?;
        Ok(secret)
    }

    /// Everything that `from` has, up to [`LONGEST`] bytes, without a buffer between.
    ///
    /// # Errors
    /// The host's; [`CryptError::KeySize`] where there is more.
    pub fn read(mut from: impl Read) -> Result<Self, CryptError> {
        let mut secret = Self::zeros(ROOM)?;
        let mut len = 0;
        loop {
            if len == secret.len {
                if len >= LONGEST {
                    let wants = format!("at most {LONGEST}");
                    return Err(CryptError::KeySize { cipher: "a disk".to_owned(), wants, has: len + 1 });
                }
                let mut more = Self::zeros((secret.len * 8).min(LONGEST))?;
                more[..len].copy_from_slice(&secret);
                secret = more;
            }
            match from.read(&mut secret[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        secret.len = len;
        Ok(secret)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.bytes()[..self.len]
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.bytes_mut()[..self.len]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A value with a key in it, such as a cipher's round keys, in memory as a [`Secret`]'s.
pub(crate) struct Guarded<T>(Kept<T>);

impl<T> Guarded<T> {
    /// Moves it there and overwrites what it leaves on the stack.
    pub(crate) fn new(value: T) -> Result<Self, CryptError> {
        let kept = Kept::new(value).map_err(|source| CryptError::Refused { what: "memory", source })?;
        told(kept.locked());
        scrub();
        Ok(Self(kept))
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.value()
    }
}

/// Says once that keys may be swapped out.
fn told(locked: bool) {
    static TOLD: Once = Once::new();
    if !locked {
        TOLD.call_once(|| {
            tracing::warn!("the host refuses to lock memory (ulimit -l): keys may get into its swap space");
        });
    }
}

/// Overwrites the stack below the caller.
#[inline(never)]
pub fn scrub() {
    let mut stack = [0xffu8; STACK];
    stack.zeroize();
}

/// This process leaves no core dump from now on, and other processes of the user can't look into it: what a guest reads from an
/// encrypted disk is in its memory in the clear.
///
/// # Errors
/// The host's.
pub fn forbid_dumps() -> io::Result<()> {
    raw::forbid_dumps()
}

/// Fills with the host's random bytes.
pub(crate) fn random(mut into: &mut [u8]) -> Result<(), CryptError> {
    while !into.is_empty() {
        match rustix::rand::getrandom(&mut *into, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => into = &mut into[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(CryptError::Refused { what: "random numbers", source: error.into() });
            }
        }
    }
    Ok(())
}
