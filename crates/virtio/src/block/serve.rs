//! What a disk's threads do: one request after the other, by [`disk::Requests`].

use super::spec::{HEADER_BYTES, ID_BYTES, MOST_RANGES, MOST_SECTORS, RANGE_BYTES, Status, UNMAP, kind};
use crate::device::{Next, Wakes, Work};
use crate::queue::{Broken, Queue};
use crate::request::Request;
use disk::{Buffer, Failed, Requests, Sector};
use memory::MemoryError;
use std::sync::Arc;

/// What a disk's threads share.
pub(super) struct Shared {
    pub(super) disk: Requests,
    pub(super) id: [u8; ID_BYTES],
}

/// A request that fails, as the driver is told.
struct Failure(Status);

impl From<MemoryError> for Failure {
    fn from(_: MemoryError) -> Self {
        WRONG
    }
}

/// Whatever it was: the standard has no more to say.
impl From<Failed<MemoryError>> for Failure {
    fn from(_: Failed<MemoryError>) -> Self {
        WRONG
    }
}

const WRONG: Failure = Failure(Status::IoError);

/// One thread's work.
pub(super) struct Server {
    shared: Arc<Shared>,
    /// The driver doesn't flush.
    writes_through: bool,
    buffer: Buffer,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, writes_through: bool) -> Self {
        Self { shared, writes_through, buffer: Buffer::default() }
    }

    fn serve(&mut self, request: &mut Request) -> u32 {
        let room = request.writable();
        if room == 0 {
            return 0;
        }
        let status = match self.run(request) {
            Ok(()) => Status::Ok,
            Err(Failure(status)) => status,
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
            _ => Err(Failure(Status::Unsupported)),
        }
    }

    fn read(&mut self, request: &mut Request, sector: Sector) -> Result<(), Failure> {
        let bytes = request.writable() - 1;
        let give = |piece: &[u8]| request.write(piece).map(drop);
        Ok(self.shared.disk.read(&mut self.buffer, sector, bytes, give)?)
    }

    fn write(&mut self, request: &mut Request, sector: Sector) -> Result<(), Failure> {
        let bytes = request.readable();
        let take = |piece: &mut [u8]| request.read(piece).map(drop);
        self.shared.disk.write(&mut self.buffer, sector, bytes, take)?;
        if self.writes_through { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.shared.disk.flush()?)
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
                return Err(Failure(Status::Unsupported));
            }
            if count > MOST_SECTORS {
                return Err(WRONG);
            }
            if kind == kind::DISCARD {
                self.shared.disk.discard(sector, count.into())?;
            } else {
                self.shared.disk.zero(sector, count.into(), flags & UNMAP != 0)?;
            }
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

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
