//! What a guest's network card is plugged into.
//!
//! | module | where frames go |
//! |---|---|
//! | [`nat`] | nowhere: TCP, UDP and ICMP echo end in this process and go on through the host's sockets. No privileges |
//! | [`tap`] | a tap device of the host |
//! | [`stream`] | another process, by the length-prefixed protocol of QEMU's `-netdev stream` and of passt |
//!
//! A front end (virtio-net) holds one [`Backend`] and drives it from one worker thread: it waits for [`Backend::wake`] to be
//! readable, or until [`Backend::deadline`], calls [`Backend::poll`], and moves frames both ways. A backend has no threads and
//! no locks. Nothing is queued that the guest has no room for: [`Backend::receive`] makes the next frame when it is asked
//! for one, so a slow guest slows its peers' sockets down instead of filling memory.
//!
//! Frames are Ethernet frames without a checksum at their end. Checksums and segmentation may be left to the other side,
//! as virtio 1.2, 5.1.6, has it: [`Offload`] says what is left to do.
//!
//! Nothing that a frame says is an error or a panic: what makes no sense is dropped.

pub mod frame;
pub mod nat;
mod raw;
pub mod stream;
pub mod tap;
mod watch;

pub use frame::{Frame, Offload, Offloads, PartialChecksum, Segment, SegmentKind};

use control::{NetBackend, NetConfig};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

/// The longest frame: 64 KiB of IP behind an Ethernet header.
pub const MAX_FRAME: usize = 14 + 65535;

/// The other end of a network card's cable.
pub trait Backend: Send {
    /// What it takes from the guest, and can give to it, with work left to do.
    fn offloads(&self) -> Offloads;

    /// A new driver, or none, has the card: what went on is forgotten. From now on frames are delivered with no more left to
    /// do than `deliver` has.
    fn reset(&mut self, deliver: Offloads);

    /// Readable when there is something for [`Backend::poll`].
    fn wake(&self) -> BorrowedFd<'_>;

    /// How long from now until [`Backend::poll`] wants to be called, whatever happens; `None`: not before [`Backend::wake`].
    fn deadline(&self) -> Option<Duration>;

    /// Takes note of what has happened on the host and of timers. Afterwards both [`Backend::receive`] and
    /// [`Backend::send`] may go on where they did not.
    fn poll(&mut self);

    /// A frame from the guest.
    ///
    /// # Errors
    /// [`Busy`]: it was not taken, and should be offered again after [`Backend::wake`].
    fn send(&mut self, frame: Frame<'_>) -> Result<(), Busy>;

    /// The next frame for the guest, in place of what `into` holds; `None` when there is none now.
    fn receive(&mut self, into: &mut Vec<u8>) -> Option<Offload>;
}

/// The other side takes no more at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Epoll, sockets: out of descriptors, or barred.
    #[error("the host refuses what user networking needs")]
    Host(#[source] io::Error),
    /// A port of the host that is to lead into the guest.
    #[error("can't listen on {address}/{protocol} for the guest's port {guest_port}")]
    Listen {
        /// Of the host.
        address: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// In the guest.
        guest_port: u16,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody listens, or it isn't a socket.
    #[error("can't connect to the network's socket {}", path.display())]
    Connect {
        /// What was asked for.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A tap device can't be had.
    #[error("can't open the tap device {name}{hint}")]
    Tap {
        /// What was asked for.
        name: String,
        /// What would help, with a separator in front; empty where nothing is known.
        hint: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// Opens what the configuration names.
///
/// # Errors
/// What the host refuses.
pub fn open(config: &NetConfig) -> Result<Box<dyn Backend>, NetError> {
    Ok(match &config.backend {
        NetBackend::User(user) => Box::new(nat::Nat::open(user)?),
        NetBackend::Socket(path) => Box::new(stream::Stream::connect(path)?),
        NetBackend::Tap(name) => Box::new(tap::Tap::open(name)?),
    })
}
