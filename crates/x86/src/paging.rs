//! Page-table entry bits and page-fault error codes (SDM 3A 4.2-4.7).

/// Bits of a paging-structure entry. The same positions serve all paging modes.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod pte {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const XD: u64 = 1 << 63;
    /// Where the protection key lies in a leaf entry (4 bits).
    pub const KEY_SHIFT: u32 = 59;
}

/// Bits of a page fault's error code (SDM 3A 4.7).
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod fault {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}
