//! Commands of the NVM command set (6), done by [`disk::Requests`].

use crate::prp::Data;
use crate::shared::Shared;
use crate::spec::{ALL_NAMESPACES, Command, MOST_DATA, NAMESPACE, PAGE, Status, io};
use disk::{Buffer, Failed, SECTOR_BYTES, Sector};

/// Write, and write zeroes: done when it is on stable storage (6.15, figure 406).
const FORCE: u32 = 1 << 30;
/// Write zeroes: the blocks need no space any more (figure 415).
const DEALLOCATE: u32 = 1 << 25;
/// Dataset management: the only attribute that means something here (figure 371).
const DISCARD: u32 = 1 << 2;
/// Bytes of a range: attributes, length, first block (figure 372).
const RANGE: usize = 16;

/// What a driver is told of a failed request. `host` is what it is told when the host has failed.
fn status(failed: Failed<Status>, host: Status) -> Status {
    match failed {
        Failed::Range => Status::LbaRange,
        Failed::ReadOnly => Status::WriteProtected,
        Failed::Full => Status::Capacity,
        Failed::Host => host,
        Failed::Guest(status) => status,
    }
}

/// Does a command.
pub(crate) fn run(shared: &Shared, buffer: &mut Buffer, command: &Command) -> Result<u32, Status> {
    if command.wants_more() {
        return Err(Status::InvalidField);
    }
    let is_flush = command.opcode() == io::FLUSH;
    if command.namespace() != NAMESPACE && !(is_flush && command.namespace() == ALL_NAMESPACES) {
        return Err(Status::InvalidNamespace);
    }
    match command.opcode() {
        io::FLUSH => flush(shared)?,
        io::READ | io::WRITE => transfer(shared, buffer, command)?,
        io::WRITE_ZEROES => {
            let unmap = command.dword(12) & DEALLOCATE != 0;
            let zeroed = shared.disk.zero(Sector(command.block()), command.blocks(), unmap);
            zeroed.map_err(|failed| status(failed, Status::WriteFault))?;
            force(shared, command)?;
        }
        io::DATASET => dataset(shared, command)?,
        _ => return Err(Status::InvalidOpcode),
    }
    Ok(0)
}

fn flush(shared: &Shared) -> Result<(), Status> {
    shared.disk.flush().map_err(|failed| status(failed, Status::Internal))
}

/// Flushes what has been written, where the driver wants that with this command, or with all of them.
fn force(shared: &Shared, command: &Command) -> Result<(), Status> {
    if command.dword(12) & FORCE != 0 || !shared.state().features.write_cache {
        flush(shared)?;
    }
    Ok(())
}

fn transfer(shared: &Shared, buffer: &mut Buffer, command: &Command) -> Result<(), Status> {
    let (first, blocks) = (Sector(command.block()), command.blocks());
    let bytes = blocks * SECTOR_BYTES;
    if bytes > PAGE << MOST_DATA {
        return Err(Status::InvalidField);
    }
    let mut data = Data::new(&shared.memory, command.prps(), bytes)?;
    let writes = command.opcode() == io::WRITE;
    shared.counters.add(writes, blocks);
    if writes {
        let written = shared.disk.write(buffer, first, bytes, |piece| data.read(piece));
        written.map_err(|failed| status(failed, Status::WriteFault))?;
        force(shared, command)
    } else {
        let read = shared.disk.read(buffer, first, bytes, |piece| data.write(piece));
        read.map_err(|failed| status(failed, Status::ReadError))
    }
}

/// Other attributes are hints, of which nothing is made.
fn dataset(shared: &Shared, command: &Command) -> Result<(), Status> {
    if command.dword(11) & DISCARD == 0 {
        return Ok(());
    }
    let count = (command.dword(10) & 0xff) as usize + 1;
    let mut ranges = vec![0; count * RANGE];
    Data::new(&shared.memory, command.prps(), ranges.len() as u64)?.read(&mut ranges)?;
    for range in ranges.chunks_exact(RANGE) {
        let word = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
        let first = Sector(u64::from(word(8)) | u64::from(word(12)) << 32);
        let discarded = shared.disk.discard(first, word(4).into());
        discarded.map_err(|failed| status(failed, Status::WriteFault))?;
    }
    Ok(())
}
