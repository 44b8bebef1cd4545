//! Folders of the host for a guest: FUSE requests as bytes, answered from one folder and nowhere else.
//!
//! | module | what |
//! |---|---|
//! | [`Share`] | a folder that is shared |
//! | [`Session`] | one thread's way to it: a request's bytes in, the answer's out |
//! | `confined` | the file system: `fuse-backend-rs`'s, with what a guest may not do taken out |
//! | `raw` | gives a thread a umask of its own |
//!
//! `virtio::fs` makes a [`Session`] for each of its threads. The protocol (include/uapi/linux/fuse.h) and the work on files are the crate
//! `fuse-backend-rs`'s. It is made with an older `vm-memory` than the rest of Ombra, and works on rings in such a memory; so
//! requests are copied through a small memory of the session's own, and no guest memory is ever reached from here.
//!
//! # What a guest can reach
//! The folder is held open from the start, and files are found from it by single names, never through symbolic links, `..` or slashes. So
//! whatever is renamed meanwhile, on either side, leads to nothing that wasn't in the folder when it was found. Only regular files and
//! folders are opened; devices can't be made. A folder that is shared read-only is so here, whatever the guest thinks.
//!
//! # Owners
//! Ombra's user is the guest's root: files of that user are shown as root's, and what the guest makes is that user's. Other owners are shown
//! as they are, and can't be given files. Where Ombra itself is root's, owners are the same on both sides.
//!
//! # Limits
//! A file that the guest knows costs a descriptor. When they become few, the guest is told to forget what it doesn't use; at the
//! end it gets `ENFILE`, while Ombra keeps some for itself.
//!
//! # Threads
//! Any number may use a share, each through a session of its own. Locks are the crate's.

mod confined;
mod raw;
mod session;

pub use session::{MOST, Session};

use confined::Confined;
use fuse_backend_rs::api::server::Server;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a folder is shared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The folder.
    pub folder: PathBuf,
    /// The guest can't change anything.
    pub read_only: bool,
    /// How long the guest may believe what it has been told of names and attributes.
    pub believe: Duration,
    /// Nothing in the folder changes while it is shared, as far as anybody cares: contents stay in the guest's memory, and
    /// names that aren't there are remembered, too.
    pub is_still: bool,
}

/// A folder can't be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It can't be opened, or is none.
    #[error("can't share the folder {}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// A folder that is shared.
pub struct Share {
    server: Server<Confined>,
    name: String,
    /// Keeps the folder that is meant, whatever becomes of its name.
    _folder: File,
}

impl Share {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn open(options: &Options) -> Result<Self, ShareError> {
        let refused = |source| ShareError::Folder { folder: options.folder.clone(), source };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder: File = rustix::fs::open(&options.folder, flags, Mode::empty())
            .map_err(|error| refused(error.into()))?
            .into();
        // The dot is a name that isn't a link; the descriptor stays.
        let root = format!("/proc/self/fd/{}/.", folder.as_raw_fd());
        let confined = Confined::new(options, root).map_err(refused)?;
        Ok(Self { server: Server::new(confined), name: name(&options.folder), _folder: folder })
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn name(folder: &Path) -> String {
    folder.display().to_string()
}

#[cfg(test)]
mod tests;
