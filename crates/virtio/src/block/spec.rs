//! What a driver of a disk sees (VIRTIO 1.2, 5.2).

/// Feature bits (5.2.3).
pub(super) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const READ_ONLY: u64 = 1 << 5;
    pub(crate) const BLOCK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const QUEUES: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of requests (5.2.6).
pub(super) mod kind {
    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;
    pub(crate) const DISCARD: u32 = 11;
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// The last byte of every request (5.2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Bytes of a request's header: type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of the answer to GET_ID.
pub(super) const ID_BYTES: usize = 20;
/// Bytes of a range to discard or zero: sector, count, flags.
pub(super) const RANGE_BYTES: usize = 16;
/// A range's only flag.
pub(super) const UNMAP: u32 = 1;
/// Ranges in one request.
pub(super) const MOST_RANGES: u32 = 32;
/// Sectors in one range: 1 GiB.
pub(super) const MOST_SECTORS: u32 = 1 << 21;

/// What decides the configuration space (5.2.4).
pub(super) struct Config {
    pub(super) sectors: u64,
    pub(super) segments: u32,
    pub(super) queues: u16,
}

impl Config {
    /// The space's bytes.
    pub(super) fn bytes(&self) -> [u8; 60] {
        let mut bytes = [0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.sectors.to_le_bytes());
        put(12, &self.segments.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        // Discard, then zeroes: sectors, ranges, and how discards are best aligned or that zeroing may unmap.
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        bytes
    }
}
