//! What a view's tables cost the host, and how they are given back.
//!
//! The tables only reserve address space; what is touched of them stays backed, also when its entries are gone. One host page of
//! each table has the entries of 2 MiB of linear addresses, a *region*. A view knows the regions it has touched and when each was last
//! entered; [`View::reclaim`] gives the oldest back to the host. Without a bound a guest that maps one page at more and more
//! addresses would have all of the host's memory.
//!
//! A guest that leaves gigabytes between its addresses makes the host spend page tables of its own, which it doesn't give back with the
//! pages. Where there are too many of those the whole view starts over.

use crate::{LARGE, View};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Linear addresses whose entries are on one host page of each table, as a power of two.
const REGION: u32 = 21;
/// The same for one page of the host's page tables.
const CHUNK: u32 = 30;
/// Host bytes that a region may cost: a page of each table.
pub const REGION_BYTES: usize = 2 << 12;
/// And a page of the host's page tables for each.
const CHUNK_BYTES: usize = 2 << 12;
/// Linear addresses of a table.
const ADDRESSES: u64 = (1 << 48) - 1;

/// One multiplication. Addresses come from a guest that can only slow itself down.
#[derive(Default)]
struct RegionHasher(u64);

impl Hasher for RegionHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// The regions that a view has touched.
#[derive(Default)]
pub(crate) struct Touched {
    /// When each was last touched.
    regions: HashMap<u64, u64, BuildHasherDefault<RegionHasher>>,
    /// Since the view last started over.
    chunks: HashSet<u64>,
    clock: u64,
    /// The last one, which is most often the next one, too.
    last: Option<u64>,
}

impl View {
    /// A look-up of an address has come to nothing: from here on its region counts.
    #[inline]
    pub fn touch(&mut self, address: u64) {
        let region = (address & ADDRESSES) >> REGION;
        if self.touched.last != Some(region) {
            self.touch_region(region);
        }
    }

    fn touch_region(&mut self, region: u64) {
        let touched = &mut self.touched;
        touched.clock += 1;
        touched.last = Some(region);
        if touched.regions.insert(region, touched.clock).is_none() {
            touched.chunks.insert(region >> (CHUNK - REGION));
        }
    }

    /// Whether any entry can be at an address.
    #[inline]
    pub(crate) fn knows(&self, address: u64) -> bool {
        self.touched.regions.contains_key(&((address & ADDRESSES) >> REGION))
    }

    /// Bytes of host memory that the tables may have, at most.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.touched.regions.len() * REGION_BYTES + self.touched.chunks.len() * CHUNK_BYTES
    }

    /// Gives host memory back until the tables cost no more than `most` bytes: what was entered last stays. Says how many regions have lost
    /// their entries.
    pub fn reclaim(&mut self, most: usize) -> usize {
        let before = self.touched.regions.len();
        if self.cost() <= most {
            return 0;
        }
        if self.touched.chunks.len() * CHUNK_BYTES > most / 2 {
            self.drop_all();
            self.discard_all();
            self.touched = Touched::default();
            return before;
        }
        let keep = most.saturating_sub(self.touched.chunks.len() * CHUNK_BYTES) / REGION_BYTES;
        let mut by_age: Vec<(u64, u64)> =
            self.touched.regions.iter().map(|(&region, &at)| (at, region)).collect();
        by_age.sort_unstable();
        let gone = &by_age[..by_age.len().saturating_sub(keep)];
        for &(_, region) in gone {
            self.touched.regions.remove(&region);
        }
        self.touched.last = None;
        let left = &self.touched.regions;
        let stays = |note: &u64| left.contains_key(&((note & !LARGE & ADDRESSES) >> REGION));
        self.notes.local.retain(stays);
        self.notes.global.retain(stays);
        for &(_, region) in gone {
            self.discard(region << REGION, 1 << REGION);
        }
        gone.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fill, Shared};

    fn fill(page: u64) -> Fill {
        Fill { page, host: 0x7000_0000_0000, read: true, write: true, global: false, large: false }
    }

    fn resident(view: &View) -> u64 {
        memory_of(view).expect("the host tells")
    }

    fn memory_of(view: &View) -> Option<u64> {
        let range = view.tables();
        let text = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let (mut inside, mut sum) = (false, 0);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next()?;
            if let Some((from, to)) = first.split_once('-')
                && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
            {
                inside = from < range.end && to > range.start;
            } else if inside && first == "Anonymous:" {
                sum += words.next()?.parse::<u64>().ok()? << 10;
            }
        }
        Some(sum)
    }

    #[test]
    fn what_was_entered_last_stays_and_the_rest_goes_back_to_the_host() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        let page = |number: u64| 0x10_0000_0000 + (number << REGION) + 0x5000;
        for number in 0..256 {
            view.fill(&fill(page(number)));
        }
        view.watch(&fill(page(0) + 0x1000), 0x1234);
        let (cost, before) = (view.cost(), resident(&view));
        assert!(before >= 256 * REGION_BYTES as u64 && before <= cost as u64, "{before} of {cost}");
        // The first has just been entered again.
        let gone = view.reclaim(64 * REGION_BYTES);
        assert!(gone > 190 && view.cost() <= 64 * REGION_BYTES, "{gone} are gone, {}", view.cost());
        assert!(resident(&view) < 80 * REGION_BYTES as u64);
        assert!(view.read_entry(page(0)) != 0 && view.watched(page(0) + 0x1000).is_some());
        assert!(view.write_entry(page(255)) != 0);
        assert_eq!((view.read_entry(page(1)), view.write_entry(page(1))), (0, 0));
        // What is gone can come back.
        view.fill(&fill(page(1)));
        assert!(view.read_entry(page(1)) != 0);
        assert_eq!(view.reclaim(1 << 30), 0);
    }

    #[test]
    fn what_lies_far_apart_costs_more_and_goes_as_a_whole() {
        let shared = Shared::new().expect("memory");
        let mut view = View::new(&shared).expect("address space");
        for number in 0..64 {
            view.fill(&fill((number << CHUNK) + 0x5000));
            view.watch(&fill((number << CHUNK) + 0x7000), 0x1234);
        }
        assert_eq!(view.cost(), 64 * (REGION_BYTES + CHUNK_BYTES));
        assert_eq!(view.reclaim(64 * CHUNK_BYTES), 64);
        assert_eq!((view.cost(), view.filled(), view.read_entry(0x5000)), (0, 0, 0));
        assert_eq!(view.watched(0x7000), None);
        assert!(resident(&view) < 64 << 10);
        view.fill(&fill(0x5000));
        assert!(view.read_entry(0x5000) != 0);
        // The shared block is still what it was.
        view.write_shared(64, 7);
        let other = View::new(&shared).expect("address space");
        assert_eq!(other.read_shared(64), 7);
    }
}
