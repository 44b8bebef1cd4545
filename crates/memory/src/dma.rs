//! Guest memory behind `vm-memory`'s traits, for crates of rust-vmm that work on rings in it (`virtio-queue`).
//!
//! Those crates reach memory by host address, through [`VolatileSlice`]s, but report every store to the slice's bitmap
//! right after it. Here that report is [`GuestMemory`]'s own notice of a store, so whoever derived something from the bytes
//! hears of it as of any other store. Slices are handed out for single accesses only, which no vCPU is waited for: a
//! store and then its notice is the order that marks count on.
//!
//! Payload doesn't go this way; devices copy it by [`GuestMemory::read`] and [`GuestMemory::write`].
//!
//! Threads: any number at once. No locks.

use crate::{GuestMemory, RamOffset, Region, Writer};
use std::fmt;
use vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    MemoryRegionAddress, VolatileSlice,
};

/// All of guest RAM, as `vm-memory` knows memory.
#[derive(Clone, Debug)]
pub struct Dma {
    regions: Vec<DmaRegion>,
}

impl Dma {
    /// The same memory as `memory`.
    #[must_use]
    pub fn new(memory: &GuestMemory) -> Self {
        let mut before = 0;
        let regions = memory.layout().regions().iter().map(|&region| {
            let first = RamOffset(before);
            before += region.len;
            DmaRegion { memory: memory.clone(), region, first }
        });
        Self { regions: regions.collect() }
    }
}

impl GuestMemoryBackend for Dma {
    type R = DmaRegion;

    fn iter(&self) -> impl Iterator<Item = &DmaRegion> {
        self.regions.iter()
    }
}

/// One run of RAM; also what notices stores to it.
#[derive(Clone)]
pub struct DmaRegion {
    memory: GuestMemory,
    region: Region,
    first: RamOffset,
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DmaRegion").field(&self.region).finish()
    }
}

impl GuestMemoryRegion for DmaRegion {
    type B = Self;

    fn len(&self) -> u64 {
        self.region.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.region.start.0)
    }

    fn bitmap(&self) -> Notice<'_> {
        self.slice_at(0)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self>>, GuestMemoryError> {
        let len = count as u64;
        if len > self.region.len || offset.0 > self.region.len - len {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let notice = self.slice_at(offset.0 as usize);
        // Nobody says whether the slice is for reading or writing.
        self.memory.ask(notice.from, len, Writer::Device);
        Ok(self.memory.ram.volatile_slice(notice.from, count, notice))
    }
}

impl GuestMemoryRegionBytes for DmaRegion {}

impl<'a> WithBitmapSlice<'a> for DmaRegion {
    type S = Notice<'a>;
}

impl Bitmap for DmaRegion {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Notice<'_> {
        Notice { memory: &self.memory, from: RamOffset(self.first.0 + offset as u64) }
    }
}

/// Passes on that bytes from a place on have been written.
#[derive(Clone, Copy)]
pub struct Notice<'a> {
    memory: &'a GuestMemory,
    from: RamOffset,
}

impl fmt::Debug for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Notice").field(&self.from).finish()
    }
}

impl<'a> WithBitmapSlice<'a> for Notice<'_> {
    type S = Self;
}

impl BitmapSlice for Notice<'_> {}

impl Bitmap for Notice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len > 0 {
            let _ = self.memory.note_by(RamOffset(self.from.0 + offset as u64), len as u64, Writer::Device);
        }
    }

    /// Nothing is recorded here.
    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { memory: self.memory, from: RamOffset(self.from.0 + offset as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use std::sync::atomic::Ordering;
    use vm_memory::Bytes;
    use x86::Gpa;

    fn memory() -> (GuestMemory, Dma) {
        let layout = Layout::new(vec![
            Region { start: Gpa(0), len: 0x2000 },
            Region { start: Gpa(0x1_0000_0000), len: 0x2000 },
        ])
        .expect("a sound layout");
        let memory = GuestMemory::new(layout).expect("the host has 16 KiB");
        let dma = Dma::new(&memory);
        (memory, dma)
    }

    #[test]
    fn both_ways_reach_the_same_bytes() {
        let (memory, dma) = memory();
        dma.write_slice(b"ring", GuestAddress(0x1_0000_0ffe)).expect("RAM");
        let mut bytes = [0; 4];
        memory.read(Gpa(0x1_0000_0ffe), &mut bytes).expect("RAM");
        assert_eq!(&bytes, b"ring");
        memory.write(Gpa(0x1000), &7u16.to_le_bytes()).expect("RAM");
        assert_eq!(dma.load::<u16>(GuestAddress(0x1000), Ordering::Acquire).expect("RAM"), 7);
    }

    #[test]
    fn stores_are_seen_by_who_derived_something_from_the_bytes() {
        let (memory, dma) = memory();
        let code = memory.locate(Gpa(0x1_0000_1040)).expect("RAM");
        let before = memory.mark_derived(code, 16);
        dma.store(1u16, GuestAddress(0x1_0000_1000), Ordering::Release).expect("RAM");
        assert_eq!(memory.generation(code), before, "another granule");
        dma.store(1u16, GuestAddress(0x1_0000_1042), Ordering::Release).expect("RAM");
        assert_eq!(memory.generation(code), before + 1);
        dma.write_obj(3u64, GuestAddress(0x1_0000_1048)).expect("RAM");
        assert_eq!(memory.generation(code), before + 2);
        dma.write_slice(&[0; 0x80], GuestAddress(0x1_0000_0fff)).expect("RAM");
        assert_eq!(memory.generation(code), before + 3);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let (_, dma) = memory();
        assert!(dma.read_obj::<u64>(GuestAddress(0x1ffc)).is_err());
        assert!(dma.write_obj(0u8, GuestAddress(u64::MAX)).is_err());
        assert!(dma.store(0u16, GuestAddress(0x2000), Ordering::Relaxed).is_err());
        assert!(dma.store(0u16, GuestAddress(0x1001), Ordering::Relaxed).is_err(), "not aligned");
    }
}
