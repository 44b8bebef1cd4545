//! What the vCPUs of a machine share: where each can be woken and told to drop cached translations.
//!
//! Each vCPU has a seat. A flush is left in the seat and the vCPU kicked; its thread takes it between two instructions
//! ([`Hub::take_flush`]). Who must know that it has happened compares counts ([`Hub::has_flushed`]); a vCPU whose thread sleeps counts as
//! having flushed, since it does so before it runs on.
//!
//! Threads: any. Lock order: a seat's lock is a leaf.

use chipset::apic::Lapics;
use chipset::{Alarm, Clock, PowerSink};
use engine::{Flush, Kicker, VcpuId};
use memory::GuestMemory;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use x86::Gva;

/// Flushes of single pages that wait before it is all of them.
const MOST_PAGES: usize = 64;
/// The longest that a vCPU idles without looking around.
const IDLE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Pending {
    all: bool,
    local: bool,
    pages: Vec<Gva>,
}

struct Seat {
    kicker: Kicker,
    /// Leads to [`Host::timer_alarm`](crate::Host::timer_alarm).
    alarm: Alarm,
    pending: Mutex<Pending>,
    /// Flushes asked for.
    wanted: AtomicU64,
    /// How many of them have been done.
    done: AtomicU64,
    /// The thread sleeps, and takes what is pending before the guest runs on.
    asleep: AtomicBool,
    /// The vCPU, halted or about to, is to go on.
    woken: AtomicBool,
}

/// What vCPUs share.
pub struct Hub {
    pub(crate) memory: GuestMemory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lapics: Arc<Lapics>,
    pub(crate) power: Arc<dyn PowerSink>,
    seats: Box<[Seat]>,
}

impl Hub {
    /// For as many vCPUs as there are kickers, each with its alarm.
    #[must_use]
    pub fn new(
        memory: GuestMemory,
        clock: Arc<dyn Clock>,
        lapics: Arc<Lapics>,
        power: Arc<dyn PowerSink>,
        vcpus: Vec<(Kicker, Alarm)>,
    ) -> Self {
        let seats = vcpus.into_iter().map(|(kicker, alarm)| Seat {
            kicker,
            alarm,
            pending: Mutex::default(),
            wanted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        });
        Self { memory, clock, lapics, power, seats: seats.collect() }
    }

    /// How many vCPUs there are.
    pub(crate) fn count(&self) -> u32 {
        self.seats.len() as u32
    }

    fn seat(&self, id: VcpuId) -> Option<&Seat> {
        self.seats.get(id.0 as usize)
    }

    /// The alarm of a vCPU's timers.
    pub(crate) fn alarm(&self, id: VcpuId) -> Option<&Alarm> {
        self.seat(id).map(|seat| &seat.alarm)
    }

    /// Makes a halted vCPU go on; one that isn't halted goes on at once when it halts next. False: there is no such vCPU.
    pub(crate) fn wake(&self, id: VcpuId) -> bool {
        let Some(seat) = self.seat(id) else { return false };
        seat.woken.store(true, Ordering::SeqCst);
        seat.kicker.kick();
        true
    }

    /// Whether somebody has woken this vCPU, which isn't so any more.
    pub(crate) fn take_wake(&self, id: VcpuId) -> bool {
        self.seat(id).is_some_and(|seat| {
            seat.woken.load(Ordering::Relaxed) && seat.woken.swap(false, Ordering::SeqCst)
        })
    }

    /// The vCPU's thread goes to sleep, or has woken. Between the two the guest doesn't run on it.
    pub(crate) fn set_asleep(&self, id: VcpuId, asleep: bool) {
        if let Some(seat) = self.seat(id) {
            seat.asleep.store(asleep, Ordering::SeqCst);
        }
    }

    /// Has this vCPU's thread sleep until something is pending for it, or a moment has passed.
    pub(crate) fn idle(&self, id: VcpuId) {
        let Some(seat) = self.seat(id) else { return };
        if !self.lapics.is_pending(id.0) {
            self.set_asleep(id, true);
            // A kick stays to be taken by the engine.
            seat.kicker.wait(Some(IDLE));
            self.set_asleep(id, false);
        }
    }

    /// Leaves flushes with a vCPU. The number is for [`Hub::has_flushed`].
    pub(crate) fn ask_flush(&self, id: VcpuId, flushes: &[Flush]) -> u64 {
        let Some(seat) = self.seat(id) else { return 0 };
        let number = {
            let mut pending = seat.pending.lock().unwrap_or_else(PoisonError::into_inner);
            for flush in flushes {
                match flush {
                    Flush::All => pending.all = true,
                    Flush::Local => pending.local = true,
                    Flush::Page(at) if pending.pages.len() < MOST_PAGES => pending.pages.push(*at),
                    Flush::Page(_) => pending.all = true,
                }
            }
            seat.wanted.fetch_add(1, Ordering::SeqCst) + 1
        };
        // Sequentially consistent against `set_asleep`: either it is seen asleep, or it sees the flush when it wakes.
        if !seat.asleep.load(Ordering::SeqCst) {
            seat.kicker.kick();
        }
        number
    }

    /// Whether the vCPU can't use anything that it had cached before that flush was asked for.
    pub(crate) fn has_flushed(&self, id: VcpuId, number: u64) -> bool {
        self.seat(id).is_none_or(|seat| {
            seat.done.load(Ordering::SeqCst) >= number || seat.asleep.load(Ordering::SeqCst)
        })
    }

    /// The next flush for this vCPU to do before its next instruction. Its thread only.
    pub(crate) fn take_flush(&self, id: VcpuId) -> Option<Flush> {
        let seat = self.seat(id)?;
        if seat.wanted.load(Ordering::SeqCst) == seat.done.load(Ordering::Relaxed) {
            return None;
        }
        let mut pending = seat.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let next = if pending.all {
            *pending = Pending::default();
            Some(Flush::All)
        } else if std::mem::take(&mut pending.local) {
            Some(Flush::Local)
        } else {
            pending.pages.pop().map(Flush::Page)
        };
        if pending.pages.is_empty() {
            // The lock keeps others from asking between this look and the store.
            seat.done.store(seat.wanted.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        next
    }
}
