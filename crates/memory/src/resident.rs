//! How much memory the host has given a range of this process's addresses. For reports; nothing depends on it.

use std::ops::Range;

/// Bytes of memory that back these ranges, which are whole mappings or parts that no other use shares a mapping with. `None` where
/// the host doesn't say. Slow: reads the list of all mappings.
#[must_use]
pub fn resident_bytes(ranges: &[Range<u64>]) -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            inside = ranges.iter().any(|range| from < range.end && to > range.start);
        } else if inside && first == "Rss:" {
            bytes += words.next()?.parse::<u64>().ok()? * 1024;
        }
    }
    Some(bytes)
}

/// Bytes of memory that this process has in all, as the host counts it.
#[must_use]
pub fn resident_in_all() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
