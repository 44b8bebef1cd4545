//! File system (VIRTIO 1.2, 5.11): carries FUSE requests to a [`share::Share`] and answers back.
//!
//! A guest finds it by its tag (`mount -t virtiofs TAG /mnt`).
//!
//! Threads: two, `ombra-fs-0` for requests that nobody waits for and `ombra-fs-1` for all others. Each copies a request out of guest memory,
//! has it answered, which may wait for the host's disk, and copies the answer back.
//!
//! Left out: the DAX window, notifications, several rings for requests (Linux up to 6.8 uses one), and what was open when a machine is saved:
//! the host's files can't be part of that.

use crate::device::{Device, Job, Kind, Next, Start, Wakes, Work};
use crate::queue::{Broken, Queue};
use crate::request::Request;
use chipset::{RestoreError, Saved};
use share::{Session, Share};
use std::io;
use std::sync::Arc;

/// Bytes of a tag (5.11.4).
pub const TAG_BYTES: usize = 36;
/// Entries of the ring that nobody waits for, and of that of requests: a request of 1 MiB takes as many descriptors as it has pages.
const ENTRIES: [u16; 2] = [128, 512];

/// A file system.
pub struct FileSystem {
    tag: String,
    share: Arc<Share>,
}

impl FileSystem {
    /// A file system of `share`, which the guest finds as `tag`, of which [`TAG_BYTES`] count.
    #[must_use]
    pub fn new(tag: String, share: Share) -> Self {
        Self { tag, share: Arc::new(share) }
    }
}

impl Device for FileSystem {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn kind(&self) -> Kind {
        Kind::FileSystem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        ENTRIES.to_vec()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; TAG_BYTES + 4];
        for (place, byte) in space[..TAG_BYTES].iter_mut().zip(self.tag.bytes()) {
            *place = byte;
        }
        // Rings of requests.
        space[TAG_BYTES] = 1;
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, start: Start) -> Vec<Job> {
        let job = |queue| {
            let work = Box::new(Server::new(&self.share)?);
            Ok(Job { queues: vec![queue], work })
        };
        start
            .queues
            .into_iter()
            .map(job)
            .collect::<io::Result<_>>()
            .inspect_err(|error| tracing::error!("{} is not there for the guest: {error}", self.share.name()))
            .unwrap_or_default()
    }

    fn stop(&mut self) {}

    fn save(&self) -> Saved {
        Saved(Vec::new())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.0.is_empty() {
            return Ok(());
        }
        Err(RestoreError::Impossible { device: "virtio fs", what: "it has no state" })
    }
}

/// One thread's work.
struct Server {
    session: Session,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Server {
    fn new(share: &Arc<Share>) -> io::Result<Self> {
        Ok(Self { session: Session::new(share)?, request: Vec::new(), answer: Vec::new() })
    }

    /// A request that is too long, or isn't RAM, gets no answer.
    fn serve(&mut self, request: &mut Request) -> u32 {
        let (Ok(len), Ok(room)) = (usize::try_from(request.readable()), usize::try_from(request.writable()))
        else {
            return 0;
        };
        if len > share::MOST {
            return 0;
        }
        self.request.resize(len, 0);
        if request.read(&mut self.request).ok() != Some(len) {
            return 0;
        }
        self.session.answer(&self.request, room, &mut self.answer);
        let _ = request.write(&self.answer);
        request.written()
    }
}

impl Work for Server {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        let mut next = Next::Wait;
        for queue in queues {
            if queue.serve(|request| Ok(self.serve(request)))? == Next::Again {
                next = Next::Again;
            }
        }
        Ok(next)
    }

    fn wakes(&self) -> Wakes<'_> {
        Wakes::default()
    }
}
