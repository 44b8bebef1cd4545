//! One request of a driver: bytes to read, and room to write.
//!
//! Both are runs of guest memory, read and written from front to back, however the driver has cut them into pieces. A run that isn't
//! RAM fails when it is reached, and what the device then does is its own business: mostly the request fails.
//!
//! Threads: belongs to one.

use memory::{GuestMemory, MemoryError};
use x86::Gpa;

/// A run of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) at: Gpa,
    pub(crate) len: u32,
}

impl Span {
    /// The first byte after `into` bytes; wraps as a guest's address may.
    fn from(&self, into: u32) -> Gpa {
        Gpa(self.at.0.wrapping_add(u64::from(into)))
    }
}

/// A place in a list of runs.
#[derive(Debug)]
struct Cursor {
    spans: Vec<Span>,
    /// The run that is next, and how much of it has been used.
    next: usize,
    used: u32,
    left: u64,
}

impl Cursor {
    fn new(spans: Vec<Span>) -> Self {
        let left = spans.iter().map(|span| u64::from(span.len)).sum();
        Self { spans, next: 0, used: 0, left }
    }

    /// The next piece of at most `most` bytes within one run.
    fn take(&mut self, most: usize) -> Option<(Gpa, usize)> {
        while let Some(span) = self.spans.get(self.next) {
            let room = span.len - self.used;
            if room == 0 {
                self.next += 1;
                self.used = 0;
                continue;
            }
            let len = room.min(u32::try_from(most).unwrap_or(u32::MAX));
            let at = span.from(self.used);
            self.used += len;
            self.left -= u64::from(len);
            return Some((at, len as usize));
        }
        None
    }
}

/// A request that has been taken out of a ring. It has to go back, by [`Queue::push`](crate::Queue::push) of its head.
pub struct Request {
    head: u16,
    memory: GuestMemory,
    readable: Cursor,
    writable: Cursor,
    written: u32,
    /// Room has been left out, so what is written now isn't counted.
    has_gap: bool,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("head", &self.head)
            .field("readable", &self.readable)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(head: u16, memory: GuestMemory, readable: Vec<Span>, writable: Vec<Span>) -> Self {
        Self {
            head,
            memory,
            readable: Cursor::new(readable),
            writable: Cursor::new(writable),
            written: 0,
            has_gap: false,
        }
    }

    /// What the ring knows it by.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that are left to read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.left
    }

    /// Bytes that are left to write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.left
    }

    /// Bytes written so far, which the ring is to be told: from the first on, without gaps (2.7.8.2).
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Fills `into` from the driver's bytes, and says how many there were.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`].
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, MemoryError> {
        let mut done = 0;
        while done < into.len() {
            let Some((at, len)) = self.readable.take(into.len() - done) else { break };
            self.memory.read(at, &mut into[done..done + len])?;
            done += len;
        }
        Ok(done)
    }

    /// Writes `from` for the driver, and says how much of it had room.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`].
    pub fn write(&mut self, from: &[u8]) -> Result<usize, MemoryError> {
        let mut done = 0;
        while done < from.len() {
            let Some((at, len)) = self.writable.take(from.len() - done) else { break };
            self.memory.write(at, &from[done..done + len])?;
            done += len;
            if !self.has_gap {
                self.written = self.written.saturating_add(len as u32);
            }
        }
        Ok(done)
    }

    /// Leaves room of `len` bytes as it is. For what stands before something that is known first.
    pub fn skip(&mut self, len: u64) {
        let mut left = len;
        self.has_gap |= len > 0;
        while left > 0 {
            let Some((_, taken)) = self.writable.take(usize::try_from(left).unwrap_or(usize::MAX)) else {
                break;
            };
            left -= taken as u64;
        }
    }
}
