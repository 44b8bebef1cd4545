//! Where RAM lies in the guest-physical address space.
//!
//! Called by [`GuestMemory`](crate::GuestMemory) on every translation that misses a TLB. Immutable after creation.

use crate::{MemoryError, RamOffset};
use x86::Gpa;
use x86::address::PAGE_SIZE;

/// One run of RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte, page-aligned.
    pub start: Gpa,
    /// Length in bytes, a multiple of 4096, not zero.
    pub len: u64,
}

/// All runs of RAM, ascending. RAM offsets count through them without gaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    regions: Vec<Region>,
}

impl Layout {
    /// A layout of the given regions.
    ///
    /// # Errors
    /// [`MemoryError::Layout`] where they are empty, unaligned, overlapping or out of order.
    pub fn new(regions: Vec<Region>) -> Result<Self, MemoryError> {
        let mut free_from = 0;
        for region in &regions {
            let end = region.start.0.checked_add(region.len).ok_or(MemoryError::Layout)?;
            let aligned = region.start.offset() == 0 && region.len.is_multiple_of(PAGE_SIZE);
            if !aligned || region.len == 0 || region.start.0 < free_from {
                return Err(MemoryError::Layout);
            }
            free_from = end;
        }
        if regions.is_empty() { Err(MemoryError::Layout) } else { Ok(Self { regions }) }
    }

    /// The runs, ascending.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// RAM in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum()
    }

    /// The RAM offset of `gpa`, or `None` where there is no RAM.
    #[inline]
    #[must_use]
    pub fn locate(&self, gpa: Gpa) -> Option<RamOffset> {
        self.locate_range(gpa, 1)
    }

    /// The RAM offset of `gpa` if `len` bytes from there lie in one region.
    #[inline]
    #[must_use]
    pub fn locate_range(&self, gpa: Gpa, len: u64) -> Option<RamOffset> {
        let mut before = 0;
        for region in &self.regions {
            let into = gpa.0.wrapping_sub(region.start.0);
            if into < region.len {
                return (len <= region.len - into).then_some(RamOffset(before + into));
            }
            before += region.len;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Layout {
        Layout::new(vec![
            Region { start: Gpa(0), len: 0x2000 },
            Region { start: Gpa(0x1_0000_0000), len: 0x1000 },
        ])
        .expect("a sound layout")
    }

    #[test]
    fn offsets_count_through_the_regions_without_gaps() {
        let layout = two();
        assert_eq!(layout.locate(Gpa(0x1fff)), Some(RamOffset(0x1fff)));
        assert_eq!(layout.locate(Gpa(0x2000)), None);
        assert_eq!(layout.locate(Gpa(0x1_0000_0004)), Some(RamOffset(0x2004)));
        assert_eq!(layout.locate(Gpa(u64::MAX)), None);
    }

    #[test]
    fn a_range_must_lie_in_one_region() {
        let layout = two();
        assert_eq!(layout.locate_range(Gpa(0x1000), 0x1000), Some(RamOffset(0x1000)));
        assert_eq!(layout.locate_range(Gpa(0x1000), 0x1001), None);
        assert_eq!(layout.locate_range(Gpa(0x1000), u64::MAX), None);
    }

    #[test]
    fn unsound_layouts_are_refused() {
        let region = |start, len| Region { start: Gpa(start), len };
        for regions in [
            vec![],
            vec![region(0, 0)],
            vec![region(1, 0x1000)],
            vec![region(0, 0x1001)],
            vec![region(0, 0x2000), region(0x1000, 0x1000)],
            vec![region(0x1000, 0x1000), region(0, 0x1000)],
            vec![region(!0xfff, 0x2000)],
        ] {
            assert!(Layout::new(regions).is_err());
        }
    }
}
