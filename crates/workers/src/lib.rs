//! Who does a running device's work: one thread a [`Work`], woken by doorbells; and at which [`Pace`]. Called by controllers (virtio's
//! transport, NVMe).
//!
//! A vCPU that rings only sets a flag and, where the thread sleeps, writes to an event descriptor. Stopping is
//! asked for and then waited for, or looked at now and then, since a work may be in the middle of something.
//!
//! Threads: `ombra-NAME-N`, each with its work to itself. Locks: none. A work that panics is reported to the machine.

mod pace;

pub use pace::{Idle, Pace};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Called by a thread that ends in a panic, with the device's name.
pub type OnPanic = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Who does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Staff {
    /// A thread for each work.
    Threads,
    /// Whoever rings, at once. For tests, which then do the same each time. Nothing but doorbells wakes a work.
    Caller,
}

/// What one thread does.
pub trait Work: Send + 'static {
    /// Does what there is to do: called at the start, and whenever it has been woken, perhaps for nothing. Should return within a
    /// moment, since whoever stops it may wait.
    fn turn(&mut self) -> Next;
    /// What wakes it besides doorbells.
    fn wakes(&self) -> Wakes<'_>;
}

/// When [`Work::turn`] wants to be called next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// When it is woken.
    Wait,
    /// At once: there is more to do.
    Again,
}

/// What wakes a work besides doorbells.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wakes<'a> {
    /// Input on this.
    pub input: Option<BorrowedFd<'a>>,
    /// Room for output on this.
    pub output: Option<BorrowedFd<'a>>,
    /// This moment.
    pub at: Option<Instant>,
}

/// Turns of a work that [`Staff::Caller`] waits for at most.
const TURNS: usize = 64;

/// Wakes a thread.
struct Doorbell {
    /// Somebody has rung since the thread last began a turn.
    rung: AtomicBool,
    /// The thread will look at `rung` before it sleeps.
    awake: AtomicBool,
    stopping: AtomicBool,
    wake: OwnedFd,
}

impl Doorbell {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            rung: AtomicBool::new(false),
            awake: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Either this finds the thread asleep, or the thread finds that it was rung for.
    fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.awake.swap(true, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the thread is being woken already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// One of a crew.
enum Member<W> {
    Thread {
        doorbell: Arc<Doorbell>,
        thread: JoinHandle<W>,
    },
    /// Callers do it.
    Lent(W),
}

/// Those who do a device's works, known by the works' places.
pub struct Crew<W> {
    members: Vec<Member<W>>,
}

impl<W> Default for Crew<W> {
    fn default() -> Self {
        Self { members: Vec::new() }
    }
}

impl<W: Work> Crew<W> {
    /// Starts a thread for each work, or has callers do them. `name` is that of the device: one short word.
    ///
    /// # Errors
    /// What the host refuses; the threads that have been started are stopped again.
    pub fn start(staff: Staff, name: &'static str, works: Vec<W>, on_panic: &OnPanic) -> io::Result<Self> {
        let mut crew = Self::default();
        for (number, work) in works.into_iter().enumerate() {
            let mut member = match staff {
                Staff::Caller => Member::Lent(work),
                // Those who have started end as `crew` is dropped.
                Staff::Threads => hire(name, number, work, on_panic)?,
            };
            if let Member::Lent(work) = &mut member {
                take_turns(work);
            }
            crew.members.push(member);
        }
        Ok(crew)
    }

    /// Wakes the work at `place`, if there is one.
    pub fn ring(&mut self, place: usize) {
        match self.members.get_mut(place) {
            Some(Member::Thread { doorbell, .. }) => doorbell.ring(),
            Some(Member::Lent(work)) => take_turns(work),
            None => {}
        }
    }

    /// Asks all threads to end.
    pub fn ask_to_stop(&self) {
        for doorbell in self.members.iter().filter_map(Member::doorbell) {
            doorbell.stopping.store(true, Ordering::Release);
            doorbell.ring();
        }
    }
}

impl<W> Crew<W> {
    /// Whether none runs any more.
    #[must_use]
    pub fn have_ended(&self) -> bool {
        self.members.iter().all(|member| match member {
            Member::Thread { thread, .. } => thread.is_finished(),
            Member::Lent(_) => true,
        })
    }

    /// Ends all threads, waits for them, and gives the works back, but for those that have panicked.
    pub fn stop(&mut self) -> Vec<W> {
        for doorbell in self.members.iter().filter_map(Member::doorbell) {
            doorbell.stopping.store(true, Ordering::Release);
            doorbell.ring();
        }
        let home = |member| match member {
            Member::Thread { thread, .. } => thread.join().ok(),
            Member::Lent(work) => Some(work),
        };
        self.members.drain(..).filter_map(home).collect()
    }
}

impl<W> Drop for Crew<W> {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl<W> Member<W> {
    fn doorbell(&self) -> Option<&Doorbell> {
        match self {
            Self::Thread { doorbell, .. } => Some(doorbell),
            Self::Lent(_) => None,
        }
    }
}

/// A caller's share.
fn take_turns(work: &mut impl Work) {
    for _ in 0..TURNS {
        if work.turn() == Next::Wait {
            return;
        }
    }
}

fn hire<W: Work>(name: &'static str, number: usize, work: W, on_panic: &OnPanic) -> io::Result<Member<W>> {
    let doorbell = Doorbell::new()?;
    let bell = Arc::clone(&doorbell);
    let presence = Presence { name, on_panic: Arc::clone(on_panic) };
    let thread = std::thread::Builder::new().name(format!("ombra-{name}-{number}")).spawn(move || {
        let _presence = presence;
        live(work, &bell)
    })?;
    Ok(Member::Thread { doorbell, thread })
}

/// Tells the machine when its thread ends unexpectedly.
struct Presence {
    name: &'static str,
    on_panic: OnPanic,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.on_panic)(self.name);
        }
    }
}

/// A thread's life.
fn live<W: Work>(mut work: W, doorbell: &Doorbell) -> W {
    while !doorbell.stopping.load(Ordering::Acquire) {
        doorbell.rung.store(false, Ordering::SeqCst);
        if work.turn() == Next::Again {
            continue;
        }
        doorbell.awake.store(false, Ordering::SeqCst);
        if !doorbell.rung.load(Ordering::SeqCst) {
            sleep(&work, doorbell);
        }
        doorbell.awake.store(true, Ordering::SeqCst);
    }
    work
}

/// Until a doorbell rings, or what else the work waits for.
fn sleep(work: &impl Work, doorbell: &Doorbell) {
    let wakes = work.wakes();
    let time = wakes.at.map(|at| timespec(at.saturating_duration_since(Instant::now())));
    let mut fds = vec![PollFd::new(&doorbell.wake, PollFlags::IN)];
    fds.extend(wakes.input.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    fds.extend(wakes.output.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
    // An error here can only be EINTR: the work looks at everything in any case.
    if poll(&mut fds, time.as_ref()).is_ok() && !fds[0].revents().is_empty() {
        let _ = rustix::io::read(&doorbell.wake, &mut [0; 8]);
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
