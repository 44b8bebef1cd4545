//! An epoll set with one descriptor in it: a backend's [`wake`](crate::Backend::wake) that is quiet between edges.

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Tells when a descriptor has become readable or writable.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn new(descriptor: impl AsFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let what = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&set, descriptor, epoll::EventData::new_u64(0), what)?;
        Ok(Self(set))
    }

    /// Readable until [`Watch::noted`] is called.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The news have been noted.
    pub(crate) fn noted(&self) {
        let mut events = Vec::with_capacity(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A failure leaves it readable, and this is called again.
        let _ = epoll::wait(&self.0, spare_capacity(&mut events), Some(&now));
    }
}
