//! What can go wrong with encrypted disks. No message has a byte of a key in it.

use std::io;

/// An encrypted disk that can't be opened, made or used.
#[derive(Debug, thiserror::Error)]
pub enum CryptError {
    /// Reading the disk.
    #[error("the host can't read it")]
    Host(#[from] io::Error),
    /// There is no LUKS header.
    #[error("there is no LUKS header")]
    NotLuks,
    /// The header is damaged; what is wrong.
    #[error("its header is damaged: {0}")]
    Header(String),
    /// The header is sound, and asks for what isn't there.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// No key slot opens.
    #[error("the key opens none of its key slots: it is wrong, or the header was changed")]
    WrongKey,
    /// A key of the wrong size.
    #[error("{cipher} wants a key of {wants} bytes, and there are {has}")]
    KeySize {
        /// The cipher.
        cipher: String,
        /// Bytes, or a choice of them.
        wants: String,
        /// Bytes.
        has: usize,
    },
    /// A key that can't be read.
    #[error("can't read the key from {from}")]
    Key {
        /// Where it should be.
        from: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A plug-in.
    #[error("the plug-in {plugin}: {reason}")]
    Plugin {
        /// Its file.
        plugin: String,
        /// What happened.
        reason: String,
    },
    /// No memory, no random numbers.
    #[error("the host refuses {what}")]
    Refused {
        /// What.
        what: &'static str,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

impl From<CryptError> for io::Error {
    fn from(error: CryptError) -> Self {
        match error {
            CryptError::Host(error) => error,
            other => Self::other(other.to_string()),
        }
    }
}
