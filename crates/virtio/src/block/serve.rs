//! What a disk's threads do: one request after the other.
//!
//! Locks: one for what has been said on stderr, a leaf.

use super::spec::{HEADER_BYTES, ID_BYTES, MOST_RANGES, MOST_SECTORS, RANGE_BYTES, Status, UNMAP, kind};
use crate::device::{Next, Wakes, Work};
use crate::queue::{Broken, Queue};
use crate::request::Request;
use disk::{DiskError, Layer, SECTOR_BYTES, Sector};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are copied at once.
const PIECE: usize = 256 << 10;

/// What a disk's threads share.
pub(super) struct Shared {
    pub(super) layer: Arc<dyn Layer>,
    /// For messages.
    name: String,
    id: [u8; ID_BYTES],
    /// Failures that have been told.
    told: Mutex<Vec<(&'static str, ErrorKind)>>,
}

impl Shared {
    pub(super) fn new(layer: Arc<dyn Layer>, name: String, id: [u8; ID_BYTES]) -> Self {
        Self { layer, name, id, told: Mutex::default() }
    }

    /// One line for each kind of failure; a guest that tries again and again fills no log.
    fn tell(&self, doing: &'static str, error: &std::io::Error) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.contains(&(doing, error.kind())) {
            told.push((doing, error.kind()));
            tracing::error!("{}: {doing} failed, the guest sees an I/O error: {error}", self.name);
        }
    }
}

/// A request that fails, and how.
enum Failure {
    /// As the driver is told.
    Status(Status),
    /// The layer.
    Disk(&'static str, DiskError),
}

impl From<memory::MemoryError> for Failure {
    fn from(_: memory::MemoryError) -> Self {
        Self::Status(Status::IoError)
    }
}

const WRONG: Failure = Failure::Status(Status::IoError);

/// One thread's work.
pub(super) struct Server {
    shared: Arc<Shared>,
    /// The driver doesn't flush.
    writes_through: bool,
    buffer: Vec<u8>,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, writes_through: bool) -> Self {
        Self { shared, writes_through, buffer: Vec::new() }
    }

    fn serve(&mut self, request: &mut Request) -> u32 {
        let room = request.writable();
        if room == 0 {
            return 0;
        }
        let status = match self.run(request) {
            Ok(()) => Status::Ok,
            Err(Failure::Status(status)) => status,
            Err(Failure::Disk(doing, error)) => {
                if let DiskError::Host(error) = &error {
                    self.shared.tell(doing, error);
                }
                Status::IoError
            }
        };
        // The status is the last byte, wherever the data ended.
        request.skip(request.writable().saturating_sub(1));
        let _ = request.write(&[status as u8]);
        request.written()
    }

    fn run(&mut self, request: &mut Request) -> Result<(), Failure> {
        let mut header = [0; HEADER_BYTES];
        if request.read(&mut header)? < HEADER_BYTES {
            return Err(WRONG);
        }
        let (kind, sector) =
            (word(&header, 0), Sector(u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32));
        match kind {
            kind::IN => self.read(request, sector),
            kind::OUT => self.write(request, sector),
            kind::FLUSH => self.flush(),
            kind::GET_ID => {
                if request.writable() < ID_BYTES as u64 + 1 {
                    return Err(WRONG);
                }
                let id = self.shared.id;
                request.write(&id)?;
                Ok(())
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(request, kind),
            _ => Err(Failure::Status(Status::Unsupported)),
        }
    }

    /// Whether so many bytes from a sector on are sectors of the disk.
    fn check(&self, sector: Sector, bytes: u64) -> Result<(), Failure> {
        let sectors = self.shared.layer.info().sectors;
        let fits = bytes.is_multiple_of(SECTOR_BYTES)
            && sector.0.checked_add(bytes / SECTOR_BYTES).is_some_and(|end| end <= sectors);
        if fits { Ok(()) } else { Err(WRONG) }
    }

    fn read(&mut self, request: &mut Request, mut sector: Sector) -> Result<(), Failure> {
        let mut left = request.writable() - 1;
        self.check(sector, left)?;
        while left > 0 {
            let len = left.min(PIECE as u64) as usize;
            let piece = piece(&mut self.buffer, len);
            self.shared.layer.read(sector, piece).map_err(|error| Failure::Disk("reading", error))?;
            request.write(piece)?;
            sector.0 += len as u64 / SECTOR_BYTES;
            left -= len as u64;
        }
        Ok(())
    }

    fn write(&mut self, request: &mut Request, mut sector: Sector) -> Result<(), Failure> {
        let mut left = request.readable();
        self.check(sector, left)?;
        while left > 0 {
            let len = left.min(PIECE as u64) as usize;
            let piece = piece(&mut self.buffer, len);
            request.read(piece)?;
            self.shared.layer.write(sector, piece).map_err(|error| Failure::Disk("writing", error))?;
            sector.0 += len as u64 / SECTOR_BYTES;
            left -= len as u64;
        }
        if self.writes_through { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Failure> {
        self.shared.layer.flush().map_err(|error| Failure::Disk("flushing", error))
    }

    /// Discards, or writes zeroes (5.2.6.2: several ranges, what is wrong with them in this order).
    fn ranges(&mut self, request: &mut Request, kind: u32) -> Result<(), Failure> {
        let bytes = request.readable();
        if bytes == 0
            || !bytes.is_multiple_of(RANGE_BYTES as u64)
            || bytes > u64::from(MOST_RANGES) * RANGE_BYTES as u64
        {
            return Err(WRONG);
        }
        let mut ranges = vec![0; bytes as usize];
        request.read(&mut ranges)?;
        for range in ranges.chunks_exact(RANGE_BYTES) {
            let sector = Sector(u64::from(word(range, 0)) | u64::from(word(range, 4)) << 32);
            let (count, flags) = (word(range, 8), word(range, 12));
            if flags & !UNMAP != 0 || flags != 0 && kind == kind::DISCARD {
                return Err(Failure::Status(Status::Unsupported));
            }
            if count > MOST_SECTORS {
                return Err(WRONG);
            }
            self.check(sector, u64::from(count) * SECTOR_BYTES)?;
            let (doing, done) = if kind == kind::DISCARD {
                ("discarding", self.shared.layer.discard(sector, count.into()))
            } else {
                ("zeroing", self.shared.layer.zero(sector, count.into(), flags & UNMAP != 0))
            };
            done.map_err(|error| Failure::Disk(doing, error))?;
        }
        if self.writes_through { self.flush() } else { Ok(()) }
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

/// So many bytes of a buffer that grows to what is needed.
fn piece(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
