//! A tap device of the host: frames go to the host's kernel as they are, with a virtio-net header that leaves checksums and
//! cutting to it.
//!
//! The device may be one that was made for this user (`ip tuntap add mode tap user NAME`), which needs no privileges here.

use crate::frame::{Frame, HEADER, Offload, Offloads};
use crate::watch::Watch;
use crate::{Backend, Busy, MAX_FRAME, NetError, raw};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A tap device.
#[derive(Debug)]
pub struct Tap {
    device: OwnedFd,
    watch: Watch,
}

impl Tap {
    /// Opens a tap device by its name.
    ///
    /// # Errors
    /// There is none that this user may open.
    pub fn open(name: &str) -> Result<Self, NetError> {
        let device = raw::tap(name, HEADER as i32).map_err(|error| NetError::Tap {
            name: name.to_owned(),
            hint: match error {
                Errno::PERM | Errno::ACCESS => {
                    " (its administrator makes it with `ip tuntap add mode tap user YOU name NAME`)"
                }
                Errno::BUSY => " (somebody else has it)",
                Errno::INVAL => " (the name is no tap device's)",
                _ => "",
            },
            source: error.into(),
        })?;
        let watch = Watch::new(&device).map_err(NetError::Host)?;
        Ok(Self { device, watch })
    }
}

impl Backend for Tap {
    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tcp4: true, tcp6: true }
    }

    fn reset(&mut self, deliver: Offloads) {
        if let Err(error) = raw::set_offloads(self.device.as_fd(), deliver) {
            tracing::warn!(%error, "the tap device keeps its offloads");
        }
    }

    fn wake(&self) -> BorrowedFd<'_> {
        self.watch.wake()
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }

    fn poll(&mut self) {
        self.watch.noted();
    }

    fn send(&mut self, frame: Frame<'_>) -> Result<(), Busy> {
        let header = frame.offload.to_header();
        let parts = [IoSlice::new(&header), IoSlice::new(frame.bytes)];
        match rustix::io::retry_on_intr(|| rustix::io::writev(&self.device, &parts)) {
            Err(Errno::AGAIN) => Err(Busy),
            // Anything else is this frame's fault, or the device is down: it is lost, as on any network.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload> {
        into.resize(MAX_FRAME, 0);
        loop {
            let mut header = [0; HEADER];
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(into)];
            let read = rustix::io::retry_on_intr(|| rustix::io::readv(&self.device, &mut parts)).ok()?;
            if let Some(length) = read.checked_sub(HEADER)
                && let Some(offload) = Offload::from_header(&header)
            {
                into.truncate(length);
                return Some(offload);
            }
        }
    }
}
