//! A disk (VIRTIO 1.2, 5.2): requests of a driver, done on a [`disk::Layer`].
//!
//! One ring a vCPU, each with a thread of its own that does one request after the other (`ombra-blk-N`). Data goes through a buffer,
//! since guest memory is `memory`'s alone to touch.
//!
//! A write is done when the layer has it, and on stable storage after a flush that follows. A driver that doesn't know flushes gets them
//! with every write (5.2.6.2).
//!
//! What goes wrong on the host fails the request, and is said once for each kind of failure. A request that is wrong in
//! itself fails too; one without room for its status is the driver's loss.
//!
//! Left out: geometry, topology, secure erase, lifetime, zones; resizing while it is in use.

mod serve;
mod spec;
#[cfg(test)]
mod tests;

use crate::device::{Device, Job, Kind, Start};
use chipset::{RestoreError, Saved};
use disk::{Layer, Requests};
use serve::{Server, Shared};
use spec::{Config, ID_BYTES, feature};
use std::sync::Arc;

/// Entries of each ring.
const ENTRIES: u16 = 256;
/// Runs of memory in one request, besides its header and status.
const SEGMENTS: u32 = ENTRIES as u32 - 2;

/// A disk.
pub struct Block {
    shared: Arc<Shared>,
    config: Config,
}

impl Block {
    /// A disk of `layer`, with `queues` rings. `name` is for messages; of `serial`, which the guest can read, 20 bytes count.
    #[must_use]
    pub fn new(layer: Arc<dyn Layer>, name: String, serial: &str, queues: u16) -> Self {
        let mut id = [0; ID_BYTES];
        for (place, byte) in id.iter_mut().zip(serial.bytes()) {
            *place = byte;
        }
        let config = Config { sectors: layer.info().sectors, segments: SEGMENTS, queues: queues.max(1) };
        Self { shared: Arc::new(Shared { disk: Requests::new(layer, name), id }), config }
    }
}

impl Device for Block {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let always = feature::SEG_MAX | feature::BLOCK_SIZE | feature::FLUSH | feature::QUEUES;
        let more = if self.shared.disk.info().read_only {
            feature::READ_ONLY
        } else {
            feature::DISCARD | feature::WRITE_ZEROES
        };
        always | more
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; usize::from(self.config.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.config.bytes();
        for (place, at) in data.iter_mut().zip(offset..) {
            *place = usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Nothing in there can be written.
    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, start: Start) -> Vec<Job> {
        let writes_through = start.features & feature::FLUSH == 0;
        let job = |queue| Job {
            queues: vec![queue],
            work: Box::new(Server::new(Arc::clone(&self.shared), writes_through)) as _,
        };
        start.queues.into_iter().map(job).collect()
    }

    fn stop(&mut self) {}

    fn save(&self) -> Saved {
        Saved(self.config.sectors.to_le_bytes().to_vec())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.0 == self.config.sectors.to_le_bytes() {
            return Ok(());
        }
        Err(RestoreError::Impossible { device: "virtio blk", what: "a disk of another size" })
    }
}
