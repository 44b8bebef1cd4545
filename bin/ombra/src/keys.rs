//! Keys of encrypted disks, where the terminal asks for them. Called before the guest starts, since it has the terminal then.

use anyhow::{Context, Result, bail};
use control::KeySource;
use rustix::io::FdFlags;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::path::Path;
use zeroize::Zeroizing;

/// The longest passphrase that is asked for, in bytes; `cryptsetup`'s limit.
const LONGEST: usize = 512;

/// Asks for the passphrase of a disk. It waits in a pipe, as if it had come from who started Ombra.
///
/// # Errors
/// No terminal, or nothing is said.
pub(crate) fn ask(file: &Path) -> Result<KeySource> {
    hidden(&format!("Passphrase of {}: ", file.display()))
}

/// Asks for a new passphrase, twice.
///
/// # Errors
/// As [`ask`]; the two differ.
pub(crate) fn ask_new(file: &Path) -> Result<KeySource> {
    let first = read(&format!("New passphrase of {}: ", file.display()))?;
    if *read("Once more: ")? != *first {
        bail!("these are two different passphrases");
    }
    piped(&first)
}

fn hidden(prompt: &str) -> Result<KeySource> {
    piped(&read(prompt)?)
}

fn read(prompt: &str) -> Result<Zeroizing<String>> {
    let typed =
        rpassword::prompt_password(prompt).context("there is no terminal to ask for a passphrase on")?;
    let typed = Zeroizing::new(typed);
    if typed.is_empty() || typed.len() > LONGEST {
        bail!("a passphrase has 1 to {LONGEST} bytes");
    }
    Ok(typed)
}

fn piped(typed: &str) -> Result<KeySource> {
    let (reader, mut writer) = std::io::pipe().context("the host refuses a pipe")?;
    writer.write_all(typed.as_bytes()).context("the host refuses a pipe")?;
    // What is inherited doesn't close on exec; who reads it sees to that.
    rustix::io::fcntl_setfd(&reader, FdFlags::empty()).context("the host refuses a pipe")?;
    Ok(KeySource::Inherited(reader.into_raw_fd()))
}
