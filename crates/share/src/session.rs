//! One thread's way to a share.
//!
//! `fuse-backend-rs` takes requests from a virtio ring. A session has a memory of its own with a ring of two descriptors, which lead to the
//! request's bytes and to room for the answer.

use crate::{Share, raw};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use fuse_virtio_queue::{Queue, QueueT};
use fuse_vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use std::io;
use std::sync::Arc;

/// Bytes of a request or an answer: 1 MiB of data, and headers.
pub const MOST: usize = (1 << 20) + (4 << 10);

/// Where the ring's parts are, and the bytes.
const DESCRIPTORS: u64 = 0x0;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const REQUEST: u64 = 0x1000;
const ANSWER: u64 = REQUEST + MOST as u64;
const BYTES: usize = ANSWER as usize + MOST;

const ENTRIES: u16 = 2;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Of a request's header: all bytes, and what is wanted (include/uapi/linux/fuse.h, `fuse_in_header`).
const HEADER: usize = 40;

/// One thread's way to a share.
pub struct Session {
    share: Arc<Share>,
    memory: GuestMemoryMmap,
    /// The thread has a umask of its own.
    is_apart: bool,
}

impl Session {
    /// A session for one thread, which must be the one that calls [`Session::answer`].
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new(share: &Arc<Share>) -> io::Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).map_err(io::Error::other)?;
        Ok(Self { share: Arc::clone(share), memory, is_apart: false })
    }

    /// Does what a request wants. `answer` gets at most `room` bytes; none, where no answer is due or the request is nonsense.
    pub fn answer(&mut self, request: &[u8], room: usize, answer: &mut Vec<u8>) {
        answer.clear();
        // What the crate reads is as long as the header says, which it takes memory for.
        let says = request.get(..4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if request.len() < HEADER
            || request.len() > MOST
            || says.is_none_or(|says| says as usize > request.len())
        {
            return;
        }
        if !self.is_apart {
            if let Err(error) = raw::own_umask() {
                tracing::warn!("{}: files get modes as the host's umask has it: {error}", self.share.name);
            }
            self.is_apart = true;
        }
        match self.serve(request, room.min(MOST)) {
            Ok(written) => {
                answer.resize(written.min(room).min(MOST), 0);
                if self.memory.read_slice(answer, GuestAddress(ANSWER)).is_err() {
                    answer.clear();
                }
            }
            Err(error) => tracing::debug!("{}: a request fails: {error}", self.share.name),
        }
    }

    fn serve(&self, request: &[u8], room: usize) -> Result<usize, Box<dyn std::error::Error>> {
        let memory = &self.memory;
        memory.write_slice(request, GuestAddress(REQUEST))?;
        self.describe(0, REQUEST, request.len(), NEXT)?;
        self.describe(1, ANSWER, room, WRITE)?;
        if room == 0 {
            self.describe(0, REQUEST, request.len(), 0)?;
        }
        memory.write_obj([0u16, 1, 0, 0], GuestAddress(AVAILABLE))?;
        let mut ring = Queue::new(ENTRIES)?;
        ring.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        ring.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        ring.set_used_ring_address(Some(USED as u32), Some(0));
        ring.set_ready(true);
        let chain = ring.pop_descriptor_chain(memory).ok_or("no request")?;
        let reader = Reader::from_descriptor_chain(memory, chain.clone())?;
        let writer = Writer::VirtioFs(VirtioFsWriter::new(memory, chain)?);
        Ok(self.share.server.handle_message(reader, writer, None, None)?)
    }

    fn describe(
        &self,
        index: u64,
        at: u64,
        len: usize,
        flags: u16,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&1u16.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(DESCRIPTORS + 16 * index))?;
        Ok(())
    }
}
