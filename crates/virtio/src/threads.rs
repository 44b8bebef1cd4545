//! Who does a running device's work: one thread a job, woken by doorbells.
//!
//! A vCPU that rings only sets a flag and, unless the thread is awake for it already, writes to an event descriptor. Stopping is
//! asked for and then waited for, or looked at now and then, since a work may be in the middle of something.
//!
//! Threads: `ombra-NAME-N`. A thread has its rings to itself. Locks: none. A work that panics is reported to the machine.

use crate::device::{Job, Next, Work};
use crate::interrupt::Signals;
use crate::queue::Queue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Called by a thread that ends in a panic.
pub type OnPanic = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Who does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Staff {
    /// A thread for each job.
    Threads,
    /// Whoever rings, at once. For tests, which then do the same each time. Nothing but doorbells wakes a work.
    Caller,
}

/// Turns of a work that [`Staff::Caller`] waits for at most.
const TURNS: usize = 64;

/// Wakes a thread.
struct Doorbell {
    rung: AtomicBool,
    stopping: AtomicBool,
    wake: OwnedFd,
}

impl Doorbell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the thread is being woken already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// What rings after this is heard.
    fn answer(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }
}

struct Running {
    doorbell: Arc<Doorbell>,
    /// The indices of its rings.
    queues: Vec<u16>,
    thread: JoinHandle<Vec<Queue>>,
}

/// A job that callers do.
struct Lent {
    job: Job,
    broken: bool,
    signals: Arc<Signals>,
    name: &'static str,
}

impl Lent {
    fn run(&mut self) {
        for _ in 0..TURNS {
            if self.broken {
                return;
            }
            match turn(&mut self.job.queues, &mut *self.job.work, &self.signals, self.name) {
                Some(Next::Again) => {}
                Some(Next::Wait) => return,
                None => self.broken = true,
            }
        }
    }
}

/// Those who do a device's work.
#[derive(Default)]
pub(crate) struct Threads {
    running: Vec<Running>,
    lent: Vec<Lent>,
}

impl Threads {
    /// Starts a thread for each job, or has callers do them.
    ///
    /// # Errors
    /// What the host refuses; the threads that have been started are stopped again.
    pub(crate) fn start(
        staff: Staff,
        name: &'static str,
        jobs: Vec<Job>,
        signals: &Arc<Signals>,
        on_panic: &OnPanic,
    ) -> io::Result<Self> {
        let mut threads = Self::default();
        if staff == Staff::Caller {
            let lend = |job| Lent { job, broken: false, signals: Arc::clone(signals), name };
            threads.lent = jobs.into_iter().map(lend).collect();
            threads.lent.iter_mut().for_each(Lent::run);
            return Ok(threads);
        }
        for (number, job) in jobs.into_iter().enumerate() {
            let started = threads.add(name, number, job, signals, on_panic);
            if let Err(error) = started {
                threads.stop();
                return Err(error);
            }
        }
        Ok(threads)
    }

    fn add(
        &mut self,
        name: &'static str,
        number: usize,
        job: Job,
        signals: &Arc<Signals>,
        on_panic: &OnPanic,
    ) -> io::Result<()> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let doorbell =
            Arc::new(Doorbell { rung: AtomicBool::new(false), stopping: AtomicBool::new(false), wake });
        let queues = job.queues.iter().map(Queue::index).collect();
        let (bell, signals) = (Arc::clone(&doorbell), Arc::clone(signals));
        let presence = Presence { name, on_panic: Arc::clone(on_panic) };
        let thread = std::thread::Builder::new().name(format!("ombra-{name}-{number}")).spawn(move || {
            let _presence = presence;
            work(job, &bell, &signals, name)
        })?;
        self.running.push(Running { doorbell, queues, thread });
        Ok(())
    }

    /// Wakes the thread that has this ring.
    pub(crate) fn ring(&mut self, queue: u16) {
        for lent in &mut self.lent {
            if lent.job.queues.iter().any(|ring| ring.index() == queue) {
                lent.run();
            }
        }
        if let Some(running) = self.running.iter().find(|running| running.queues.contains(&queue)) {
            running.doorbell.ring();
        }
    }

    /// Asks all threads to end.
    pub(crate) fn ask_to_stop(&self) {
        for running in &self.running {
            running.doorbell.stopping.store(true, Ordering::Release);
            running.doorbell.ring();
        }
    }

    /// Whether none runs any more.
    pub(crate) fn have_ended(&self) -> bool {
        self.running.iter().all(|running| running.thread.is_finished())
    }

    /// Ends all threads, waits for them, and gives their rings back.
    pub(crate) fn stop(&mut self) -> Vec<Queue> {
        self.ask_to_stop();
        let lent = self.lent.drain(..).flat_map(|lent| lent.job.queues);
        // One that panicked has said so; its rings are gone.
        let running = self.running.drain(..).filter_map(|running| running.thread.join().ok()).flatten();
        lent.chain(running).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.stop();
    }
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
fn work(job: Job, doorbell: &Doorbell, signals: &Signals, name: &'static str) -> Vec<Queue> {
    let Job { mut queues, mut work } = job;
    let mut broken = false;
    while !doorbell.stopping.load(Ordering::Acquire) {
        doorbell.answer();
        let mut next = Next::Wait;
        if !broken {
            match turn(&mut queues, &mut *work, signals, name) {
                Some(wanted) => next = wanted,
                None => broken = true,
            }
        }
        if next == Next::Wait {
            sleep(&*work, broken, doorbell);
        }
    }
    queues
}

/// One turn of a work. `None`: its rings are broken, which the driver has been told.
fn turn(queues: &mut [Queue], work: &mut dyn Work, signals: &Signals, name: &str) -> Option<Next> {
    match work.run(queues) {
        Ok(next) => Some(next),
        Err(why) => {
            tracing::info!("virtio {name}: {why}; it waits for a reset");
            signals.need_reset();
            None
        }
    }
}

/// Until a doorbell rings, or what else the work waits for.
fn sleep(work: &dyn Work, broken: bool, doorbell: &Doorbell) {
    let wakes = if broken { Default::default() } else { work.wakes() };
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
