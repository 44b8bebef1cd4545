//! The synthetic interrupt controller of one vCPU: message slots, event flags, sixteen interrupt sources, four timers (TLFS 11, 12).
//!
//! Messages come from any thread and wait here while their slot is full. The one that is in the slot then has its pending flag set, by
//! which the guest knows that it has to say when it has taken it (EOM). The order is the TLFS's: the flag first, then a look whether the
//! slot is free after all.
//!
//! Used under the lock of its vCPU's seat in the partition; calls the local APIC, which calls nobody.

use super::spec::{ENABLE, PAGE, Status, sint, slot};
use super::timers::Timers;
use crate::page::Place;
use chipset::apic::Lapics;
use engine::GpFault;
use memory::GuestMemory;
use std::collections::VecDeque;
use x86::Gpa;
use x86::address::PAGE_SIZE;

/// What is sent to a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Not zero.
    pub kind: u32,
    /// Whom it comes from: a connection.
    pub sender: u64,
    /// At most 240 bytes.
    pub payload: Vec<u8>,
}

/// What has been counted.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counts {
    pub(super) posted: u64,
    pub(super) pending_set: u64,
    pub(super) eoms: u64,
    pub(super) events: u64,
    pub(super) timers: u64,
}

/// A page that the guest has named, and its MSR.
#[derive(Default)]
struct Page {
    msr: u64,
    place: Option<Place>,
}

impl Page {
    /// A page that is switched on anew begins as zeros.
    fn set(&mut self, memory: &GuestMemory, value: u64) -> Result<(), GpFault> {
        let place = if value & ENABLE != 0 {
            let at = Gpa(value & PAGE);
            let place = Place::new(memory, at, PAGE_SIZE).ok_or(GpFault)?;
            if value & PAGE != self.msr & PAGE || self.place.is_none() {
                memory.zero(at, PAGE_SIZE).map_err(|_| GpFault)?;
            }
            Some(place)
        } else {
            None
        };
        (self.msr, self.place) = (value, place);
        Ok(())
    }
}

pub(super) struct Synic {
    cpu: u32,
    control: u64,
    messages: Page,
    events: Page,
    sints: [u64; sint::COUNT],
    queues: [VecDeque<Message>; sint::COUNT],
    pub(super) timers: Timers,
    pub(super) counts: Counts,
}

impl Synic {
    pub(super) fn new(cpu: u32) -> Self {
        Self {
            cpu,
            control: 0,
            messages: Page::default(),
            events: Page::default(),
            sints: [sint::MASKED; sint::COUNT],
            queues: Default::default(),
            timers: Timers::default(),
            counts: Counts::default(),
        }
    }

    /// Power-up state; the local APIC forgets by itself.
    pub(super) fn reset(&mut self) {
        *self = Self { counts: self.counts, ..Self::new(self.cpu) };
    }

    pub(super) fn control(&self) -> u64 {
        self.control
    }

    pub(super) fn message_page(&self) -> u64 {
        self.messages.msr
    }

    pub(super) fn event_page(&self) -> u64 {
        self.events.msr
    }

    pub(super) fn source(&self, number: usize) -> u64 {
        self.sints[number]
    }

    pub(super) fn set_control(&mut self, lapics: &Lapics, value: u64) -> Result<(), GpFault> {
        if value & !ENABLE != 0 {
            return Err(GpFault);
        }
        self.control = value;
        self.deliver(lapics);
        Ok(())
    }

    pub(super) fn set_message_page(
        &mut self,
        lapics: &Lapics,
        memory: &GuestMemory,
        value: u64,
    ) -> Result<(), GpFault> {
        self.messages.set(memory, value)?;
        self.deliver(lapics);
        Ok(())
    }

    pub(super) fn set_event_page(&mut self, memory: &GuestMemory, value: u64) -> Result<(), GpFault> {
        self.events.set(memory, value)
    }

    /// A source's vector, mask and kind of end. Vectors below 16 don't exist.
    pub(super) fn set_source(&mut self, lapics: &Lapics, number: usize, value: u64) -> Result<(), GpFault> {
        let known = 0xff | sint::MASKED | sint::AUTO_EOI | sint::POLLING;
        if value & !known != 0 || value & sint::MASKED == 0 && (value as u8) < 16 {
            return Err(GpFault);
        }
        let old = std::mem::replace(&mut self.sints[number], value);
        // A vector ends by itself if any source that has it says so.
        for vector in [old as u8, value as u8] {
            let ends = |entry: &u64| {
                *entry as u8 == vector && entry & (sint::MASKED | sint::AUTO_EOI) == sint::AUTO_EOI
            };
            lapics.set_auto_eoi(self.cpu, vector, self.sints.iter().any(ends));
        }
        Ok(())
    }

    /// Requests a source's interrupt, unless it is masked or polled for. False: it has none.
    pub(super) fn raise(&self, lapics: &Lapics, number: usize) -> bool {
        let entry = self.sints[number];
        entry & (sint::MASKED | sint::POLLING) == 0 && lapics.request(self.cpu, entry as u8)
    }

    /// Sends a message, or lets it wait if not more than `most` wait already.
    pub(super) fn post(&mut self, lapics: &Lapics, number: usize, message: Message, most: usize) -> Status {
        if self.control & ENABLE == 0 || self.messages.place.is_none() {
            return Status::InvalidSynicState;
        }
        if message.kind == 0 || message.payload.len() > slot::PAYLOAD {
            return Status::InvalidParameter;
        }
        if self.queues[number].len() >= most {
            // Perhaps there is room by now.
            self.deliver(lapics);
            if self.queues[number].len() >= most {
                return Status::InsufficientBuffers;
            }
        }
        self.queues[number].push_back(message);
        self.counts.posted += 1;
        self.deliver(lapics);
        Status::Success
    }

    /// Sends a message if its slot is free and none waits; marks the slot where it isn't.
    pub(super) fn post_if_free(&mut self, lapics: &Lapics, number: usize, message: Message) -> Status {
        let Some(place) = self.messages.place.clone().filter(|_| self.control & ENABLE != 0) else {
            return Status::InvalidSynicState;
        };
        let at = number as u64 * slot::BYTES;
        let is_full = || place.load::<u32>(at + slot::TYPE) != 0;
        if is_full() {
            self.counts.pending_set += 1;
            place.set_bits(at + slot::FLAGS, slot::PENDING);
            if is_full() {
                return Status::InsufficientBuffers;
            }
        }
        self.post(lapics, number, message, 1)
    }

    pub(super) fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Whether a message waits for its slot. An interrupt's end has to be told then.
    pub(super) fn waits(&self) -> bool {
        self.has_unsent() || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// The guest has freed a slot.
    pub(super) fn end_of_message(&mut self, lapics: &Lapics) {
        self.counts.eoms += 1;
        self.deliver(lapics);
    }

    /// Puts messages into free slots.
    pub(super) fn deliver(&mut self, lapics: &Lapics) {
        let Some(place) = self.messages.place.clone().filter(|_| self.control & ENABLE != 0) else { return };
        for number in 0..sint::COUNT {
            let at = number as u64 * slot::BYTES;
            while let Some(message) = self.queues[number].front() {
                if place.load::<u32>(at + slot::TYPE) != 0 {
                    self.counts.pending_set += 1;
                    place.set_bits(at + slot::FLAGS, slot::PENDING);
                    if place.load::<u32>(at + slot::TYPE) != 0 {
                        break;
                    }
                }
                let mut head = [0u8; slot::BYTES as usize];
                head[4] = message.payload.len() as u8;
                head[8..16].copy_from_slice(&message.sender.to_le_bytes());
                head[16..16 + message.payload.len()].copy_from_slice(&message.payload);
                let more = self.queues[number].len() > 1;
                head[slot::FLAGS as usize] = if more { slot::PENDING } else { 0 };
                // The type makes it a message, so it comes last.
                place.store_bytes(at + 4, &head[4..]);
                place.store(at + slot::TYPE, message.kind);
                if more {
                    self.counts.pending_set += 1;
                }
                self.queues[number].pop_front();
                self.raise(lapics, number);
            }
        }
    }

    /// Sets an event flag of a source and, if it wasn't set, requests its interrupt.
    pub(super) fn signal(&mut self, lapics: &Lapics, number: usize, flag: u16) -> Status {
        let Some(place) = self.events.place.clone().filter(|_| self.control & ENABLE != 0) else {
            return Status::InvalidSynicState;
        };
        if u64::from(flag) >= slot::BYTES * 8 {
            return Status::InvalidParameter;
        }
        let at = number as u64 * slot::BYTES + u64::from(flag / 8);
        let bit = 1 << (flag % 8);
        if place.set_bits(at, bit) & bit == 0 {
            self.counts.events += 1;
            self.raise(lapics, number);
        }
        Status::Success
    }
}
