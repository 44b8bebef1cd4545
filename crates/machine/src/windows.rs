//! Event windows: being told when a vCPU can next take an interrupt or an NMI.
//!
//! A request is looked at whenever the engine asks for events, which it does after a kick and whenever a window has opened further: so it
//! is reported between the two instructions where the window opens, before any event that waits is delivered, and costs nothing until
//! then. The report is made on the vCPU's thread.
//!
//! Threads: requests and cancellations may come from any. Lock order: a vCPU's requests are a leaf; reports are made with nothing
//! locked.

use engine::{Kicker, Window};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a vCPU is to be able to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventWindow {
    /// An interrupt: IF is set and no shadow is in force. The task priority doesn't matter.
    Interrupt,
    /// An NMI: no handler of an earlier one runs, and no shadow is in force.
    Nmi,
}

impl EventWindow {
    fn is_open(self, window: Window) -> bool {
        match self {
            Self::Interrupt => window.interrupt,
            Self::Nmi => window.nmi,
        }
    }
}

type Report = Box<dyn FnOnce() + Send>;

struct Waiting {
    number: u64,
    kind: EventWindow,
    report: Report,
}

struct Seat {
    kicker: Kicker,
    /// How many requests there are.
    count: AtomicUsize,
    requests: Mutex<Vec<Waiting>>,
    reported: AtomicU64,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests of all vCPUs.
pub(crate) struct Windows {
    seats: Box<[Seat]>,
    next: AtomicU64,
}

impl Windows {
    pub(crate) fn new(kickers: &[Kicker]) -> Self {
        let seats = kickers.iter().map(|kicker| Seat {
            kicker: kicker.clone(),
            count: AtomicUsize::new(0),
            requests: Mutex::default(),
            reported: AtomicU64::new(0),
        });
        Self { seats: seats.collect(), next: AtomicU64::new(0) }
    }

    /// Asks to be told once. `None`: there is no such vCPU.
    pub(crate) fn request(
        self: &Arc<Self>,
        cpu: u32,
        kind: EventWindow,
        report: Report,
    ) -> Option<WindowRequest> {
        let seat = self.seats.get(cpu as usize)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut requests = seat.lock();
            requests.push(Waiting { number, kind, report });
            seat.count.store(requests.len(), Ordering::SeqCst);
        }
        seat.kicker.kick();
        Some(WindowRequest { windows: Arc::clone(self), cpu, number })
    }

    /// Reports what a vCPU's windows let through. Its thread only.
    #[inline]
    pub(crate) fn look(&self, cpu: u32, window: Window) {
        if let Some(seat) = self.seats.get(cpu as usize)
            && seat.count.load(Ordering::Relaxed) != 0
        {
            Self::report(seat, window);
        }
    }

    #[cold]
    fn report(seat: &Seat, window: Window) {
        let open: Vec<_> = {
            let mut requests = seat.lock();
            let open = requests.extract_if(.., |waiting| waiting.kind.is_open(window)).collect();
            seat.count.store(requests.len(), Ordering::SeqCst);
            open
        };
        for waiting in open {
            seat.reported.fetch_add(1, Ordering::Relaxed);
            (waiting.report)();
        }
    }

    /// How many of a vCPU's requests have been reported.
    pub(crate) fn reported(&self, cpu: u32) -> u64 {
        self.seats.get(cpu as usize).map_or(0, |seat| seat.reported.load(Ordering::Relaxed))
    }
}

/// A request that may be taken back. Dropping it leaves it in force.
pub struct WindowRequest {
    windows: Arc<Windows>,
    cpu: u32,
    number: u64,
}

impl WindowRequest {
    /// Takes it back. True: it hasn't been reported, and never will be. False: it has been, or is being just now.
    #[must_use]
    pub fn cancel(self) -> bool {
        let Some(seat) = self.windows.seats.get(self.cpu as usize) else { return false };
        let mut requests = seat.lock();
        let before = requests.len();
        requests.retain(|waiting| waiting.number != self.number);
        seat.count.store(requests.len(), Ordering::SeqCst);
        requests.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: Window = Window { nmi: false, interrupt: false, halted: false };
    const OPEN: Window = Window { nmi: true, interrupt: true, halted: false };

    fn request(windows: &Arc<Windows>, kind: EventWindow) -> (WindowRequest, Arc<AtomicUsize>) {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let report = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (windows.request(0, kind, report).expect("there is vCPU 0"), seen)
    }

    #[test]
    fn a_request_is_reported_once_when_its_window_is_open() {
        let kicker = Kicker::new();
        let windows = Arc::new(Windows::new(std::slice::from_ref(&kicker)));
        let (interrupt, seen) = request(&windows, EventWindow::Interrupt);
        let (_nmi, nmis) = request(&windows, EventWindow::Nmi);
        assert!(kicker.take(), "the vCPU looks at once");
        windows.look(0, CLOSED);
        windows.look(0, Window { nmi: true, ..CLOSED });
        assert_eq!((seen.load(Ordering::Relaxed), nmis.load(Ordering::Relaxed)), (0, 1));
        for _ in 0..3 {
            windows.look(0, OPEN);
        }
        assert_eq!(
            (seen.load(Ordering::Relaxed), nmis.load(Ordering::Relaxed), windows.reported(0)),
            (1, 1, 2)
        );
        assert!(!interrupt.cancel(), "too late");
    }

    #[test]
    fn what_is_cancelled_while_due_is_not_reported() {
        let windows = Arc::new(Windows::new(&[Kicker::new()]));
        let (due, seen) = request(&windows, EventWindow::Interrupt);
        let (_other, others) = request(&windows, EventWindow::Interrupt);
        assert!(due.cancel());
        windows.look(0, OPEN);
        assert_eq!((seen.load(Ordering::Relaxed), others.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn a_report_may_ask_again() {
        let windows = Arc::new(Windows::new(&[Kicker::new()]));
        let again = Arc::clone(&windows);
        let report = Box::new(move || assert!(again.request(0, EventWindow::Nmi, Box::new(|| ())).is_some()));
        assert!(windows.request(0, EventWindow::Nmi, report).is_some());
        windows.look(0, OPEN);
        windows.look(0, OPEN);
        assert_eq!(windows.reported(0), 2);
        assert!(windows.request(1, EventWindow::Nmi, Box::new(|| ())).is_none(), "no such vCPU");
    }
}
