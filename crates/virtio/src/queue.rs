//! One ring, as a device's thread sees it: requests come out of it, and go back with the number of bytes written.
//!
//! The split ring itself is `virtio-queue`'s, which reaches memory through [`memory::Dma`] and so is seen by whoever derived
//! something from it. Its chains end silently where they are broken; [`Queue::pop`] looks at what they gave and says so. The
//! functions of it that write to a log are not used: a guest could fill it.
//!
//! Source: VIRTIO 1.2, 2.7 (split virtqueues). Everything in a ring is a guest's and may be anything.
//!
//! Threads: a ring belongs to one thread at a time. No locks, but those of telling the driver.

use crate::device::Next;
use crate::interrupt::Signals;
use crate::request::{Request, Span};
use memory::{Dma, GuestMemory};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use workers::{Idle, Pace};

/// Requests that [`Queue::serve`] does before it lets its thread look around.
const AT_ONCE: usize = 256;

/// What a driver has done to a ring so that a device can't go on with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    /// Part of a ring isn't RAM.
    #[error("a ring is not in RAM")]
    Ring,
    /// The available index is ahead by more than the ring's size.
    #[error("the available index is impossible")]
    Index,
    /// A chain of descriptors has a loop, leads out of its table, is longer than the ring, or has a descriptor that can't be read.
    #[error("a chain of descriptors is damaged")]
    Chain,
    /// A descriptor that the device writes comes before one that it reads (2.7.4.2).
    #[error("descriptors are in the wrong order")]
    Order,
}

/// Where a ring is and how far it has come.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct RingState {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) next_available: u16,
    pub(crate) next_used: u16,
}

/// A ring that a driver has set up.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: Ring,
    dma: Dma,
    memory: Memory,
    signals: Arc<Signals>,
    /// Something has been given back since the driver was last told, or found not to want that.
    has_news: bool,
    pace: Pace,
}

/// A device's view of guest memory, which has no `Debug`.
#[derive(Clone)]
struct Memory(GuestMemory);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestMemory")
    }
}

impl Queue {
    /// The ring of `state`, with the driver's features as negotiated.
    ///
    /// # Errors
    /// [`Broken::Ring`], where it can't be.
    pub(crate) fn new(
        index: u16,
        state: &RingState,
        event_idx: bool,
        memory: &GuestMemory,
        signals: &Arc<Signals>,
    ) -> Result<Self, Broken> {
        let dma = Dma::new(memory);
        let mut ring = Ring::new(state.size).map_err(|_| Broken::Ring)?;
        ring.try_set_desc_table_address(GuestAddress(state.descriptors)).map_err(|_| Broken::Ring)?;
        ring.try_set_avail_ring_address(GuestAddress(state.available)).map_err(|_| Broken::Ring)?;
        ring.try_set_used_ring_address(GuestAddress(state.used)).map_err(|_| Broken::Ring)?;
        // Sizes with the two event fields (2.7).
        let entries = usize::from(state.size);
        for (at, bytes) in [
            (state.descriptors, 16 * entries),
            (state.available, 6 + 2 * entries),
            (state.used, 6 + 8 * entries),
        ] {
            if at == 0 || !GuestMemoryBackend::check_range(&dma, GuestAddress(at), bytes) {
                return Err(Broken::Ring);
            }
        }
        ring.set_event_idx(event_idx);
        ring.set_next_avail(state.next_available);
        ring.set_next_used(state.next_used);
        ring.set_ready(true);
        Ok(Self {
            index,
            ring,
            dma,
            memory: Memory(memory.clone()),
            signals: Arc::clone(signals),
            has_news: false,
            pace: Pace::default(),
        })
    }

    pub(crate) fn save(&self) -> RingState {
        RingState {
            size: self.ring.size(),
            descriptors: self.ring.desc_table(),
            available: self.ring.avail_ring(),
            used: self.ring.used_ring(),
            next_available: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    /// Its number among the device's rings.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether no request has come through it since the driver set it up.
    pub(crate) fn is_new(&self) -> bool {
        self.ring.next_avail() == 0
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// [`Broken`]: the ring can't be used any more.
    pub fn pop(&mut self) -> Result<Option<Request>, Broken> {
        let size = usize::from(self.ring.size());
        let mut heads = self.ring.iter(&self.dma).map_err(|error| match error {
            virtio_queue::Error::InvalidAvailRingIndex => Broken::Index,
            _ => Broken::Ring,
        })?;
        let Some(chain) = heads.next() else {
            // Also where a ring's entry can't be read, which `new` has ruled out.
            return Ok(None);
        };
        let head = chain.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut unfinished = true;
        let mut count = 0;
        for descriptor in chain {
            count += 1;
            // A chain in an indirect table may not be longer either (2.7.5.3.1).
            if count > size {
                return Err(Broken::Chain);
            }
            unfinished = descriptor.has_next();
            let span = Span { at: x86::Gpa(descriptor.addr().0), len: descriptor.len() };
            if descriptor.is_write_only() {
                writable.push(span);
            } else if writable.is_empty() {
                readable.push(span);
            } else {
                return Err(Broken::Order);
            }
        }
        if unfinished || usize::from(head) >= size {
            return Err(Broken::Chain);
        }
        Ok(Some(Request::new(head, self.memory.0.clone(), readable, writable)))
    }

    /// Gives a request back, with so many bytes written to it. [`Queue::signal`] has to follow, once for several.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        if head >= self.ring.size() {
            return Err(Broken::Chain);
        }
        self.has_news = true;
        self.ring.add_used(&self.dma, head, written).map_err(|_| Broken::Ring)
    }

    /// Interrupts the driver, if it wants to hear of what has been given back.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn signal(&mut self) -> Result<(), Broken> {
        self.pace.told();
        if !std::mem::take(&mut self.has_news) {
            return Ok(());
        }
        let mut wanted = self.ring.needs_notification(&self.dma).map_err(|_| Broken::Ring)?;
        if wanted && !self.ring.event_idx_enabled() {
            // The hint of drivers without event indices, which `virtio-queue` leaves to us (2.7.7).
            let flags: u16 = self
                .dma
                .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
                .map_err(|_| Broken::Ring)?;
            wanted = u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        if wanted {
            self.signals.queue(self.index);
        }
        Ok(())
    }

    /// The driver need not ring until [`Queue::want_doorbell`].
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn mute_doorbell(&mut self) -> Result<(), Broken> {
        self.ring.disable_notification(&self.dma).map_err(|_| Broken::Ring)
    }

    /// The driver is to ring when there is more. True: there is already, and it may not have rung.
    ///
    /// # Errors
    /// [`Broken::Ring`].
    pub fn want_doorbell(&mut self) -> Result<bool, Broken> {
        self.ring.enable_notification(&self.dma).map_err(|_| Broken::Ring)
    }

    /// What the driver has not seen the end of, and how much of that has been given back, as far as it says what it has seen.
    fn flight(&self) -> Result<Option<(u32, u32)>, Broken> {
        if !self.ring.event_idx_enabled() {
            return Ok(None);
        }
        let size = self.ring.size();
        let available = self.ring.avail_idx(&self.dma, Ordering::Acquire).map_err(|_| Broken::Ring)?.0;
        // `used_event` lies behind the available ring's entries (2.7.6).
        let at = self.ring.avail_ring() + 4 + 2 * u64::from(size);
        let seen: u16 = self.dma.load(GuestAddress(at), Ordering::Relaxed).map_err(|_| Broken::Ring)?;
        let seen = u16::from_le(seen);
        let (flight, done) = (available.wrapping_sub(seen), self.ring.next_used().wrapping_sub(seen));
        // While it is looking, a driver may write anything there: Linux writes zero.
        Ok((seen != 0 && done <= flight && flight <= size).then_some((flight.into(), done.into())))
    }

    /// Takes requests out one after the other and gives each back with as many bytes as `each` says it has written to it,
    /// until there are none or many have been done. Interrupts at the queue's [`Pace`].
    ///
    /// # Errors
    /// [`Broken`], from the ring or from `each`.
    pub fn serve(
        &mut self,
        mut each: impl FnMut(&mut Request) -> Result<u32, Broken>,
    ) -> Result<Next, Broken> {
        self.mute_doorbell()?;
        let mut done = 0;
        while done < AT_ONCE {
            if let Some(mut request) = self.pop()? {
                let written = each(&mut request)?;
                self.push(request.head(), written)?;
                done += 1;
                if match self.flight()? {
                    Some((flight, done)) => self.pace.done(done, flight),
                    None => self.pace.done(1, 1),
                } {
                    self.signal()?;
                }
                continue;
            }
            match self.pace.idle() {
                Idle::Tell => self.signal()?,
                Idle::Look => std::hint::spin_loop(),
                Idle::Sleep => {
                    if !self.want_doorbell()? {
                        return Ok(Next::Wait);
                    }
                    self.mute_doorbell()?;
                }
            }
        }
        self.signal()?;
        Ok(Next::Again)
    }
}
