//! Plug-ins that are shared libraries, by `include/ombra_crypt.h`. They run in this process, with everything that it may do.

use super::raw::{Interface, State};
use super::{Answer, Disk, Opener, Plugin};
use crate::{CryptError, Technique, shown};
use std::sync::Arc;

/// A library, loaded.
pub(super) struct Library {
    plugin: String,
    interface: Arc<Interface>,
}

fn problem(plugin: &str, reason: String) -> CryptError {
    CryptError::Plugin { plugin: plugin.to_owned(), reason }
}

impl Library {
    pub(super) fn load(plugin: &Plugin) -> Result<Self, CryptError> {
        let interface = Interface::load(&plugin.path).map_err(|reason| plugin.problem(reason))?;
        Ok(Self { plugin: shown(&plugin.path), interface: Arc::new(interface) })
    }
}

impl Opener for Library {
    fn open(&mut self, disk: &Disk<'_>) -> Result<(Answer, Option<Arc<dyn Technique>>), CryptError> {
        let (answer, state) =
            Interface::open(&self.interface, disk).map_err(|reason| problem(&self.plugin, reason))?;
        if answer.header_bytes as usize > disk.header.len() {
            return Ok((answer, None));
        }
        Ok((answer, Some(Arc::new(Loaded { plugin: self.plugin.clone(), state }))))
    }

    fn create(&mut self, disk: &Disk<'_>) -> Result<(Answer, Vec<u8>), CryptError> {
        self.interface.create(disk).map_err(|reason| problem(&self.plugin, reason))
    }
}

/// The technique of a disk that is open.
struct Loaded {
    plugin: String,
    state: State,
}

impl Loaded {
    fn done(&self, doing: &str, status: i32) -> Result<(), CryptError> {
        if status == 0 {
            return Ok(());
        }
        Err(problem(&self.plugin, format!("{doing} failed with {status}")))
    }
}

impl Technique for Loaded {
    fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.done("encrypting", self.state.encrypt(sector, data))
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.done("decrypting", self.state.decrypt(sector, data))
    }
}
