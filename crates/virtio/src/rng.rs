//! Entropy source (VIRTIO 1.2, 5.4): fills the driver's buffers with the host's random bytes.
//!
//! Threads: one, `ombra-rng-0`. It asks the host's kernel, which never waits once it is up.

use crate::device::{Device, Job, Kind, Next, Start, Wakes, Work};
use crate::queue::{Broken, Queue};
use crate::request::Request;
use chipset::{RestoreError, Saved};
use rustix::rand::{GetRandomFlags, getrandom};

/// Entries of the ring.
const ENTRIES: u16 = 64;
/// Bytes that one request gets at most: drivers ask again.
const MOST: u64 = 4096;

/// An entropy source.
#[derive(Debug, Default)]
pub struct Rng;

impl Device for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }
    fn kind(&self) -> Kind {
        Kind::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES]
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn write_config(&mut self, _: u64, _: &[u8]) {}
    fn start(&mut self, start: Start) -> Vec<Job> {
        vec![Job { queues: start.queues, work: Box::new(Filler) }]
    }
    fn stop(&mut self) {}
    fn save(&self) -> Saved {
        Saved(Vec::new())
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.0.is_empty() {
            return Ok(());
        }
        Err(RestoreError::Impossible { device: "virtio rng", what: "it has no state" })
    }
}

struct Filler;

impl Work for Filler {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        let mut next = Next::Wait;
        for queue in queues {
            if queue.serve(fill)? == Next::Again {
                next = Next::Again;
            }
        }
        Ok(next)
    }
    fn wakes(&self) -> Wakes<'_> {
        Wakes::default()
    }
}

/// A buffer that isn't RAM comes back with what could be written.
fn fill(request: &mut Request) -> Result<u32, Broken> {
    let mut bytes = vec![0; request.writable().min(MOST) as usize];
    let len = getrandom(&mut bytes, GetRandomFlags::empty()).unwrap_or(0);
    let _ = request.write(&bytes[..len]);
    Ok(request.written())
}
