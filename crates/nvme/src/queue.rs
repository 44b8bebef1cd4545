//! Queues in guest memory (4.1): submission queues, out of which commands come, and completion queues, into which answers go.
//!
//! A submission queue belongs to its thread; the tail is told by a doorbell, which is a number that vCPUs store. A completion queue
//! may have several submission queues and is behind a lock, which nobody holds while a command is done.
//!
//! **Interrupts.** A completion queue's vector is sent when there is something in the queue that the driver has not been told of. Until
//! the driver has moved the head, it is told no more: it is looking, or about to. When it has, and there is still something, it is
//! told again. So under load one interrupt stands for many completions, and none is lost.
//!
//! Lock order: a submission queue's, a completion queue's, then the pins', then the function's interrupts.

use crate::spec::{COMMAND_BYTES, COMMAND_SHIFT, COMPLETION_BYTES, COMPLETION_SHIFT, Command, Outcome};
use chipset::pci::Interrupts;
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use x86::Gpa;

/// A queue has a place that isn't RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost;

impl From<MemoryError> for Lost {
    fn from(_: MemoryError) -> Self {
        Self
    }
}

/// A queue of commands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SubmissionQueue {
    pub(crate) base: u64,
    /// Entries, 2 at least.
    pub(crate) size: u32,
    /// The entry that comes next.
    pub(crate) head: u32,
    /// The completion queue that it has.
    pub(crate) completions: u16,
}

impl SubmissionQueue {
    /// The next command, if the driver has put one in up to `tail`.
    pub(crate) fn take(&mut self, memory: &GuestMemory, tail: u32) -> Result<Option<Command>, Lost> {
        if self.head == tail {
            return Ok(None);
        }
        let at = self.base.wrapping_add(u64::from(self.head) << COMMAND_SHIFT);
        let mut bytes = [0; COMMAND_BYTES];
        memory.read(Gpa(at), &mut bytes)?;
        self.head = (self.head + 1) % self.size;
        Ok(Some(Command(bytes)))
    }
}

/// A queue of answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CompletionQueue {
    pub(crate) base: u64,
    /// Entries, 2 at least.
    pub(crate) size: u32,
    /// The entry that is written next.
    tail: u32,
    /// The entry that the driver looks at next.
    head: u32,
    /// What tells new entries from old ones.
    phase: bool,
    /// The interrupt vector, where the driver wants interrupts.
    pub(crate) vector: Option<u16>,
    /// Entries that are promised to commands in progress.
    promised: u32,
    /// Somebody waits for room.
    pub(crate) starves: bool,
    /// There is something that the driver has not been told of.
    has_news: bool,
    /// The driver has been told, and has not moved the head since.
    told: bool,
}

impl CompletionQueue {
    pub(crate) fn new(base: u64, size: u32, vector: Option<u16>) -> Self {
        Self {
            base,
            size,
            tail: 0,
            head: 0,
            phase: true,
            vector,
            promised: 0,
            starves: false,
            has_news: false,
            told: false,
        }
    }

    /// Entries that the driver hasn't seen.
    pub(crate) fn len(&self) -> u32 {
        (self.tail + self.size - self.head) % self.size
    }

    /// Whether this can be a queue's state.
    pub(crate) fn is_possible(&self, most: u32) -> bool {
        (2..=most).contains(&self.size)
            && self.head < self.size
            && self.tail < self.size
            && self.promised == 0
    }

    /// Promises an entry to a command. `false`: there is no room until the driver has moved the head.
    pub(crate) fn promise(&mut self) -> bool {
        let has_room = self.len() + self.promised < self.size - 1;
        self.promised += u32::from(has_room);
        self.starves |= !has_room;
        has_room
    }

    /// Takes a promise back.
    pub(crate) fn release(&mut self) {
        self.promised = self.promised.saturating_sub(1);
    }

    /// Writes a promised entry: how command `id` of `queue`, whose head is `head`, ended (4.6). [`Voice::tell`] has to follow.
    pub(crate) fn post(
        &mut self,
        memory: &GuestMemory,
        queue: u16,
        head: u32,
        id: u16,
        outcome: Outcome,
    ) -> Result<(), Lost> {
        self.release();
        let at = self.base.wrapping_add(u64::from(self.tail) << COMPLETION_SHIFT);
        let mut bytes = [0; COMPLETION_BYTES];
        bytes[..4].copy_from_slice(&outcome.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&(head as u16).to_le_bytes());
        bytes[10..12].copy_from_slice(&queue.to_le_bytes());
        let status = outcome.status.field() | u16::from(self.phase);
        let last = u32::from(id) | u32::from(status) << 16;
        bytes[12..].copy_from_slice(&last.to_le_bytes());
        // Drivers look at the phase, and then at the rest.
        memory.write(Gpa(at), &bytes[..12])?;
        let last_place = memory.locate(Gpa(at + 12)).ok_or(Lost)?;
        let _ = memory.store(last_place, last);
        self.tail = (self.tail + 1) % self.size;
        self.phase ^= self.tail == 0;
        self.has_news = true;
        Ok(())
    }

    /// The driver has looked up to `head`. `false`: it can't have.
    pub(crate) fn seen(&mut self, head: u32) -> bool {
        let moved = (head.wrapping_add(self.size)).wrapping_sub(self.head) % self.size.max(1);
        if head >= self.size || moved > self.len() {
            return false;
        }
        self.head = head;
        self.told = false;
        self.has_news = self.head != self.tail;
        true
    }
}

/// What decides whether the pin is asserted (7.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Pins {
    /// Completion queues that interrupt by pin and that the driver has not seen the end of, one bit each.
    waiting: u32,
    /// Vectors that the driver doesn't want now (INTMS, INTMC). The pin has vector 0.
    pub(crate) masked: u32,
}

/// How the driver is told of completions.
pub(crate) struct Voice {
    interrupts: Arc<Interrupts>,
    pins: Mutex<Pins>,
}

impl Voice {
    pub(crate) fn new(interrupts: Arc<Interrupts>) -> Self {
        Self { interrupts, pins: Mutex::default() }
    }

    /// Whether a completion queue may have this vector: the pin is one (5.3).
    pub(crate) fn has(&self, vector: u16) -> bool {
        vector < if self.interrupts.uses_messages() { self.interrupts.vectors() } else { 1 }
    }

    /// Interrupts for completion queue `number`, where there is news and the driver has seen what it was told of.
    pub(crate) fn tell(&self, number: u16, queue: &mut CompletionQueue) {
        let Some(vector) = queue.vector.filter(|_| queue.has_news && !queue.told) else { return };
        queue.has_news = false;
        queue.told = true;
        if self.interrupts.uses_messages() {
            self.interrupts.send(vector);
        } else {
            self.with_pins(|pins| pins.waiting |= bit(number));
        }
    }

    /// The driver has moved the head of completion queue `number`, or has deleted it.
    pub(crate) fn heard(&self, number: u16) {
        if self.lock().waiting & bit(number) != 0 {
            self.with_pins(|pins| pins.waiting &= !bit(number));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the pin depends on.
    pub(crate) fn with_pins<R>(&self, change: impl FnOnce(&mut Pins) -> R) -> R {
        let mut pins = self.lock();
        let result = change(&mut pins);
        self.interrupts.assert(pins.waiting != 0 && pins.masked & 1 == 0);
        result
    }
}

fn bit(queue: u16) -> u32 {
    1u32.checked_shl(queue.into()).unwrap_or(0)
}
