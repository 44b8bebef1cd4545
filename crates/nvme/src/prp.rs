//! A command's data in guest memory, as Physical Region Pages describe it (4.3).
//!
//! The first entry may begin anywhere in a page, all others at its start. The second is a page where the data ends in it, and else
//! points to a list of further entries, whose last one in a page points to the next list.
//!
//! Threads: belongs to one. What isn't RAM fails when it is reached, lists when they are read.

use crate::spec::{PAGE, Status};
use memory::GuestMemory;
use x86::Gpa;

/// Bytes of an entry of a list.
const ENTRY: u64 = 8;

/// A command's data, read or written from front to back.
pub(crate) struct Data<'a> {
    memory: &'a GuestMemory,
    /// Runs of memory and their lengths.
    runs: Vec<(u64, u64)>,
    next: usize,
    /// Bytes of the next run that have been used.
    used: u64,
}

impl<'a> Data<'a> {
    /// The `bytes` of a command with these entries.
    pub(crate) fn new(memory: &'a GuestMemory, prps: (u64, u64), bytes: u64) -> Result<Self, Status> {
        let mut data = Self { memory, runs: Vec::new(), next: 0, used: 0 };
        let (first, second) = prps;
        if !first.is_multiple_of(4) {
            return Err(Status::PrpOffset);
        }
        let len = (PAGE - first % PAGE).min(bytes);
        data.add(first, len);
        let left = bytes - len;
        if left == 0 {
            return Ok(data);
        }
        if left <= PAGE {
            data.add_page(second, left)?;
            return Ok(data);
        }
        data.add_list(second, left)?;
        Ok(data)
    }

    fn add(&mut self, at: u64, len: u64) {
        match self.runs.last_mut() {
            Some((start, before)) if start.checked_add(*before) == Some(at) => *before += len,
            _ => self.runs.push((at, len)),
        }
    }

    fn add_page(&mut self, at: u64, len: u64) -> Result<(), Status> {
        if !at.is_multiple_of(PAGE) {
            return Err(Status::PrpOffset);
        }
        self.add(at, len);
        Ok(())
    }

    /// Adds `left` bytes, which is bounded by what a command may have.
    fn add_list(&mut self, mut list: u64, mut left: u64) -> Result<(), Status> {
        let mut entries = [0; PAGE as usize];
        if !list.is_multiple_of(ENTRY) {
            return Err(Status::PrpOffset);
        }
        while left > 0 {
            let room = (PAGE - list % PAGE) / ENTRY;
            let wanted = left.div_ceil(PAGE);
            let count = wanted.min(room);
            let bytes = &mut entries[..(count * ENTRY) as usize];
            self.memory.read(Gpa(list), bytes).map_err(|_| Status::DataTransfer)?;
            let mut pages = bytes
                .chunks_exact(ENTRY as usize)
                .map(|entry| u64::from_le_bytes(entry.try_into().expect("eight bytes")));
            let next = if wanted > room { pages.next_back() } else { None };
            for page in pages {
                let len = left.min(PAGE);
                self.add_page(page, len)?;
                left -= len;
            }
            list = next.unwrap_or(0);
            // Only the first list may begin within a page, so that each of the others has room for more than the next one's place.
            if !list.is_multiple_of(PAGE) {
                return Err(Status::PrpOffset);
            }
        }
        Ok(())
    }

    /// The next piece of at most `most` bytes within one run.
    fn take(&mut self, most: usize) -> Option<(Gpa, usize)> {
        let &(start, len) = self.runs.get(self.next)?;
        let at = Gpa(start.wrapping_add(self.used));
        let taken = (len - self.used).min(most as u64);
        self.used += taken;
        if self.used == len {
            self.next += 1;
            self.used = 0;
        }
        Some((at, taken as usize))
    }

    /// Fills `into` from the driver's bytes.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<(), Status> {
        let mut done = 0;
        while done < into.len() {
            let Some((at, len)) = self.take(into.len() - done) else { return Err(Status::Internal) };
            self.memory.read(at, &mut into[done..done + len]).map_err(|_| Status::DataTransfer)?;
            done += len;
        }
        Ok(())
    }

    /// Writes `from` for the driver.
    pub(crate) fn write(&mut self, from: &[u8]) -> Result<(), Status> {
        let mut done = 0;
        while done < from.len() {
            let Some((at, len)) = self.take(from.len() - done) else { return Err(Status::Internal) };
            self.memory.write(at, &from[done..done + len]).map_err(|_| Status::DataTransfer)?;
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Layout, Region};

    fn memory() -> GuestMemory {
        let layout = Layout::new(vec![Region { start: Gpa(0), len: 1 << 20 }]).expect("a sound layout");
        GuestMemory::new(layout).expect("the host has 1 MiB")
    }

    fn list(memory: &GuestMemory, at: u64, entries: &[u64]) {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory.write(Gpa(at), &bytes).expect("RAM");
    }

    fn runs(memory: &GuestMemory, prps: (u64, u64), bytes: u64) -> Result<Vec<(u64, u64)>, Status> {
        Data::new(memory, prps, bytes).map(|data| data.runs)
    }

    #[test]
    fn the_second_entry_is_a_page_where_that_is_enough() {
        let memory = memory();
        assert_eq!(runs(&memory, (0x1e00, 0), 512), Ok(vec![(0x1e00, 512)]));
        assert_eq!(runs(&memory, (0x1e00, 0x8000), 1024), Ok(vec![(0x1e00, 512), (0x8000, 512)]));
        assert_eq!(runs(&memory, (0x1000, 0x2000), 8192), Ok(vec![(0x1000, 8192)]), "neighbours are one");
        assert_eq!(runs(&memory, (0x1000, 0x2008), 8192), Err(Status::PrpOffset));
        assert_eq!(runs(&memory, (0x1002, 0), 512), Err(Status::PrpOffset));
    }

    #[test]
    fn lists_go_on_in_other_pages() {
        let memory = memory();
        // Room for two entries in the first page, of which the second leads on.
        list(&memory, 0x2ff0, &[0x8000, 0x4000]);
        list(&memory, 0x4000, &[0xa000, 0xc000]);
        let found = runs(&memory, (0x1000, 0x2ff0), 4 * 4096);
        assert_eq!(found, Ok(vec![(0x1000, 4096), (0x8000, 4096), (0xa000, 4096), (0xc000, 4096)]));
        // The last entry of a page is a page itself where the data ends with it.
        list(&memory, 0x2ff0, &[0x8000, 0x6000]);
        let found = runs(&memory, (0x1000, 0x2ff0), 3 * 4096 - 512);
        assert_eq!(found, Ok(vec![(0x1000, 4096), (0x8000, 4096), (0x6000, 3584)]));
    }

    #[test]
    fn lists_that_cannot_be_read_or_point_into_pages_are_refused() {
        let memory = memory();
        assert_eq!(runs(&memory, (0x1000, 1 << 30), 3 * 4096), Err(Status::DataTransfer));
        assert_eq!(runs(&memory, (0x1000, 0x2004), 3 * 4096), Err(Status::PrpOffset));
        list(&memory, 0x3000, &[0x8000, 0x9010]);
        assert_eq!(runs(&memory, (0x1000, 0x3000), 3 * 4096), Err(Status::PrpOffset));
    }

    #[test]
    fn a_list_that_leads_to_itself_ends_with_the_data() {
        let memory = memory();
        list(&memory, 0x2ff8, &[0x2ff8]);
        assert_eq!(
            runs(&memory, (0x1000, 0x2ff8), 3 * 4096),
            Err(Status::PrpOffset),
            "not at a page's start"
        );
        let mut entries = [0x8000; 512];
        entries[511] = 0x4000;
        list(&memory, 0x4000, &entries);
        let found = runs(&memory, (0x1000, 0x4000), 1000 * 4096).unwrap();
        assert_eq!(found.iter().map(|run| run.1).sum::<u64>(), 1000 * 4096);
    }

    #[test]
    fn bytes_go_where_the_runs_are() {
        let memory = memory();
        let bytes: Vec<u8> = (0..1024u32).map(|number| number as u8).collect();
        Data::new(&memory, (0x1e00, 0x8000), 1024).unwrap().write(&bytes).unwrap();
        let mut back = vec![0; 1024];
        let mut data = Data::new(&memory, (0x1e00, 0x8000), 1024).unwrap();
        data.read(&mut back[..700]).unwrap();
        data.read(&mut back[700..]).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(data.read(&mut [0]), Err(Status::Internal), "there is no more");
        let mut far = Data::new(&memory, (u64::MAX - 0xfff, 0), 512).unwrap();
        assert_eq!(far.write(&[0; 512]), Err(Status::DataTransfer));
    }
}
