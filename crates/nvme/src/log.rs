//! Log pages (5.14.1): errors, health, firmware.

use crate::spec::{NAMESPACE, Status};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Log page identifiers.
mod id {
    pub(super) const ERRORS: u8 = 0x01;
    pub(super) const HEALTH: u8 = 0x02;
    pub(super) const FIRMWARE: u8 = 0x03;
}

/// Entries of the error log.
pub(crate) const ERRORS: usize = 16;
const ERROR_BYTES: usize = 64;
/// What the composite temperature always is, in Kelvin: there is nothing that could get warm.
const TEMPERATURE: u16 = 298;

/// A command that failed, or something else that went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Error {
    queue: u16,
    command: u16,
    status: u16,
    block: u64,
    namespace: u32,
}

/// The latest errors, and how many there have been.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Errors {
    /// The latest is first.
    latest: Vec<Error>,
    count: u64,
}

impl Errors {
    fn push(&mut self, error: Error) {
        self.count += 1;
        self.latest.truncate(ERRORS - 1);
        self.latest.insert(0, error);
    }

    /// A command of an I/O queue has failed.
    pub(crate) fn add(&mut self, queue: u16, command: u16, status: Status, block: u64) {
        self.push(Error { queue, command, status: status.field(), block, namespace: NAMESPACE });
    }

    /// Something that is no command's (figure 192: all ones where nothing applies).
    pub(crate) fn add_event(&mut self) {
        self.push(Error { queue: 0xffff, command: 0xffff, status: 0, block: 0, namespace: 0 });
    }

    pub(crate) fn is_possible(&self) -> bool {
        self.latest.len() <= ERRORS
    }

    fn page(&self) -> Vec<u8> {
        let mut page = vec![0; ERRORS * ERROR_BYTES];
        for ((entry, error), before) in page.chunks_exact_mut(ERROR_BYTES).zip(&self.latest).zip(0..) {
            entry[..8].copy_from_slice(&self.count.wrapping_sub(before).to_le_bytes());
            entry[8..10].copy_from_slice(&error.queue.to_le_bytes());
            entry[10..12].copy_from_slice(&error.command.to_le_bytes());
            entry[12..14].copy_from_slice(&error.status.to_le_bytes());
            entry[14..16].copy_from_slice(&[0xff; 2]);
            entry[16..24].copy_from_slice(&error.block.to_le_bytes());
            entry[24..28].copy_from_slice(&error.namespace.to_le_bytes());
        }
        page
    }
}

/// What has been done since the machine began.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) sectors_read: AtomicU64,
    pub(crate) sectors_written: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, writes: bool, sectors: u64) {
        let (commands, count) =
            if writes { (&self.writes, &self.sectors_written) } else { (&self.reads, &self.sectors_read) };
        commands.fetch_add(1, Ordering::Relaxed);
        count.fetch_add(sectors, Ordering::Relaxed);
    }

    /// Figure 194.
    fn page(&self, errors: u64) -> Vec<u8> {
        let mut page = vec![0; 512];
        let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        // In thousands of sectors, rounded up.
        put(32, self.sectors_read.load(Ordering::Relaxed).div_ceil(1000));
        put(48, self.sectors_written.load(Ordering::Relaxed).div_ceil(1000));
        put(64, self.reads.load(Ordering::Relaxed));
        put(80, self.writes.load(Ordering::Relaxed));
        put(112, 1);
        put(176, errors);
        page[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
        // Spare blocks: all there, and when to warn.
        page[3] = 100;
        page[4] = 10;
        page
    }
}

/// A whole log page.
pub(crate) fn page(
    id: u8,
    errors: &Errors,
    counters: &Counters,
    revision: [u8; 8],
) -> Result<Vec<u8>, Status> {
    match id {
        id::ERRORS => Ok(errors.page()),
        id::HEALTH => Ok(counters.page(errors.count)),
        id::FIRMWARE => {
            // Slot 1 is active, and has this revision.
            let mut page = vec![0; 512];
            page[0] = 1;
            page[8..16].copy_from_slice(&revision);
            Ok(page)
        }
        _ => Err(Status::LogPage),
    }
}

/// Whether reading this log page lets errors be told again (5.2).
pub(crate) fn clears_errors(id: u8) -> bool {
    id == id::ERRORS
}
