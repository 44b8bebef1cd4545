//! Network card (VIRTIO 1.2, 5.1): moves frames between its rings and what it is plugged into, a [`Backend`].
//!
//! Checksums and the cutting of TCP into segments are left to the other side wherever that takes it, both ways; frames longer
//! than a buffer are spread over several. One pair of rings.
//!
//! Threads: one, `ombra-net-0`, which drives the backend too. A frame that the guest has no room for is kept, and no other is
//! asked for; what the backend doesn't take stays in the guest's ring. So neither side can make the other's memory grow.
//!
//! A driver's reset makes the backend forget its flows. The one frame that waits for room is lost then.

use crate::device::{Device, Job, Kind, Next, Start, Wakes, Work};
use crate::queue::{Broken, Queue};
use crate::request::Request;
use ::net::{Backend, Frame, MAX_FRAME, Offload, Offloads, frame};
use chipset::{RestoreError, Saved};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Entries of each ring: buffers of 1.5 KiB in them hold more than TCP has on its way.
const ENTRIES: u16 = 1024;
/// Frames moved one way before the other way has its turn.
const AT_ONCE: usize = 64;
/// Turns before the thread looks around.
const TURNS: usize = 8;

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// `status` of the configuration space: the cable is plugged in (5.1.4).
const LINK_UP: u16 = 1;
/// The rings (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Where `num_buffers` is in the header (5.1.6).
const NUM_BUFFERS: usize = 10;

/// Who has the backend: the device between drivers, its work while one is there.
type Shelf = Arc<Mutex<Option<Box<dyn Backend>>>>;

/// A network card.
pub struct Net {
    mac: [u8; 6],
    offloads: Offloads,
    shelf: Shelf,
}

impl Net {
    /// A card with this address, plugged into `backend`.
    #[must_use]
    pub fn new(mac: [u8; 6], backend: Box<dyn Backend>) -> Self {
        Self { mac, offloads: backend.offloads(), shelf: Arc::new(Mutex::new(Some(backend))) }
    }
}

impl Device for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let offers = [
            (true, feature::MAC | feature::STATUS | feature::MRG_RXBUF),
            (self.offloads.checksum, feature::CSUM | feature::GUEST_CSUM),
            (self.offloads.tcp4, feature::HOST_TSO4 | feature::GUEST_TSO4),
            (self.offloads.tcp6, feature::HOST_TSO6 | feature::GUEST_TSO6),
        ];
        offers.iter().filter(|(offered, _)| *offered).map(|(_, bits)| bits).sum()
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..6].copy_from_slice(&self.mac);
        space[6..].copy_from_slice(&LINK_UP.to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, start: Start) -> Vec<Job> {
        let taken = self.shelf.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its last work has ended, or has panicked, and then the machine ends.
        let Some(mut backend) = taken else { return Vec::new() };
        let has = |bit| start.features & bit != 0;
        backend.reset(Offloads {
            checksum: has(feature::GUEST_CSUM),
            tcp4: has(feature::GUEST_TSO4),
            tcp6: has(feature::GUEST_TSO6),
        });
        let work = Mover {
            backend: Some(backend),
            shelf: Arc::clone(&self.shelf),
            merges: has(feature::MRG_RXBUF),
            outgoing: Vec::new(),
            refused: None,
            incoming: Vec::new(),
            arrived: None,
            room: Vec::new(),
        };
        vec![Job { queues: start.queues, work: Box::new(work) }]
    }

    fn stop(&mut self) {}

    fn save(&self) -> Saved {
        Saved(Vec::new())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.0.is_empty() {
            return Ok(());
        }
        Err(RestoreError::Impossible { device: "virtio net", what: "it has no state" })
    }
}

/// Moves frames.
struct Mover {
    /// Goes back onto the shelf at the end; `Some` until then.
    backend: Option<Box<dyn Backend>>,
    shelf: Shelf,
    /// A frame may be spread over several buffers.
    merges: bool,
    /// The guest's frame, and what is left to do on it, if the backend has refused it: it is offered again.
    outgoing: Vec<u8>,
    refused: Option<Offload>,
    /// The backend's frame, and what is left to do on it, while the guest has no room for it.
    incoming: Vec<u8>,
    arrived: Option<Offload>,
    /// Buffers for it, as yet too small together.
    room: Vec<Request>,
}

impl Drop for Mover {
    fn drop(&mut self) {
        *self.shelf.lock().unwrap_or_else(PoisonError::into_inner) = self.backend.take();
    }
}

impl Work for Mover {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        let Some(backend) = &mut self.backend else { return Ok(Next::Wait) };
        backend.poll();
        for _ in 0..TURNS {
            let mut more = false;
            // Transmitting comes first: what the guest has sent may be answered at once, and nothing else would wake us for that.
            for queue in queues.iter_mut().rev() {
                more |= match queue.index() {
                    TRANSMIT => self.transmit(queue)?,
                    RECEIVE => self.receive(queue)?,
                    _ => false,
                };
                queue.signal()?;
            }
            if !more {
                return Ok(Next::Wait);
            }
        }
        Ok(Next::Again)
    }

    fn wakes(&self) -> Wakes<'_> {
        let Some(backend) = &self.backend else { return Wakes::default() };
        Wakes {
            input: Some(backend.wake()),
            output: None,
            at: backend.deadline().map(|deadline| Instant::now() + deadline),
        }
    }
}

impl Mover {
    /// From the guest. Whether there is more to do at once.
    fn transmit(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        queue.mute_doorbell()?;
        for _ in 0..AT_ONCE {
            if let Some(offload) = self.refused.take()
                && !self.send(offload)
            {
                // The backend's wake-up brings us back.
                return Ok(false);
            }
            let Some(mut request) = queue.pop()? else {
                return queue.want_doorbell();
            };
            // The frame is copied, so the driver may have the buffer back.
            let offload = self.take(&mut request);
            queue.push(request.head(), 0)?;
            self.refused = offload;
        }
        Ok(true)
    }

    /// Copies a frame into `outgoing`. `None`: it is none, and is dropped.
    fn take(&mut self, request: &mut Request) -> Option<Offload> {
        let mut header = [0; frame::HEADER];
        if request.read(&mut header).ok() != Some(header.len()) {
            return None;
        }
        let length = usize::try_from(request.readable()).ok().filter(|length| *length <= MAX_FRAME)?;
        self.outgoing.resize(length, 0);
        (request.read(&mut self.outgoing).ok() == Some(length)).then_some(())?;
        Offload::from_header(&header)
    }

    /// Whether the backend has taken `outgoing`.
    fn send(&mut self, offload: Offload) -> bool {
        let Some(backend) = &mut self.backend else { return true };
        if backend.send(Frame { bytes: &self.outgoing, offload }).is_err() {
            self.refused = Some(offload);
            return false;
        }
        true
    }

    /// For the guest. Whether there is more to do at once.
    fn receive(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        queue.mute_doorbell()?;
        for _ in 0..AT_ONCE {
            if self.arrived.is_none() {
                let Some(backend) = &mut self.backend else { return Ok(false) };
                self.arrived = backend.receive(&mut self.incoming);
            }
            let Some(offload) = self.arrived else { return Ok(false) };
            let needed = (frame::HEADER + self.incoming.len()) as u64;
            while self.room.iter().map(Request::writable).sum::<u64>() < needed
                && (self.merges || self.room.is_empty())
            {
                match queue.pop()? {
                    Some(request) => self.room.push(request),
                    // It rings when it has made room.
                    None => return queue.want_doorbell(),
                }
            }
            self.deliver(queue, offload)?;
            self.arrived = None;
        }
        Ok(true)
    }

    /// Copies `incoming` into the buffers, and gives them back.
    fn deliver(&mut self, queue: &mut Queue, offload: Offload) -> Result<(), Broken> {
        let mut header = offload.to_header();
        header[NUM_BUFFERS..].copy_from_slice(&(self.room.len() as u16).to_le_bytes());
        let mut left = &self.incoming[..];
        for (number, mut request) in self.room.drain(..).enumerate() {
            // Buffers that aren't RAM lose what was for them; a single one that is too small, what doesn't fit.
            if number == 0 {
                let _ = request.write(&header);
            }
            let fits = left.len().min(usize::try_from(request.writable()).unwrap_or(usize::MAX));
            let _ = request.write(&left[..fits]);
            left = &left[fits..];
            queue.push(request.head(), request.written())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
