//! The event loop: the machine's one thread for timers and host file descriptors.
//!
//! Devices set [alarms](chipset::AlarmSink); the loop calls the device when the machine's clock reaches the moment. Host
//! file descriptors (serial input) are watched by the same `ppoll`, so a machine in which nothing happens sleeps in one
//! system call.
//!
//! Threads: [`Events::start`] makes the thread `ombra-events`; alarms may be set by any thread. Lock order: a device's lock
//! comes before the loop's; the loop calls nobody with its own lock held. An alarm that has been replaced or
//! cleared does not call: whoever is called with its own lock checks again under it (see [`AlarmHandle::calls`]).

use crate::clock::TscClock;
use crate::ending::{Control, Presence};
use chipset::{AlarmSink, Clock, Nanos};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};
use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest sleep, so that no arithmetic on times overflows; nothing happens on such a wake-up.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Alarms called in one turn: what guests can set at any rate must not keep the loop from its file descriptors.
const CALLS_A_TURN: usize = 64;
/// How soon a watch that could not go on is asked again.
const RETRY: Duration = Duration::from_millis(1);

/// A host file descriptor that the loop watches for input.
pub(crate) trait Watch: Send + Sync {
    /// The descriptor, if input is wanted now.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Somebody else was in the way when [`poll_fd`](Self::poll_fd) was asked: to be asked again soon.
    fn is_held_up(&self) -> bool {
        false
    }
    /// There is input, or the other end is gone.
    fn ready(&self);
}

type Call = Box<dyn Fn(&Firing<'_>) + Send + Sync>;

/// One alarm.
struct Slot {
    /// Advanced whenever the alarm is set or cleared: tells a firing that it is out of date.
    generation: AtomicU64,
    call: OnceLock<Call>,
}

/// A call that is being made; it may have been overtaken.
pub(crate) struct Firing<'a> {
    slot: &'a Slot,
    generation: u64,
}

impl Firing<'_> {
    /// Whether the alarm is still as it was when its time came. To be asked with the device's lock held.
    pub(crate) fn is_current(&self) -> bool {
        self.slot.generation.load(Ordering::Acquire) == self.generation
    }
}

struct Set {
    slots: Vec<(Arc<Slot>, Option<Nanos>)>,
    /// The alarms that are set, by time.
    queue: BTreeSet<(Nanos, usize)>,
    /// What the loop sleeps until; `None` while it is awake and will look at the queue anyway.
    asleep_until: Option<Nanos>,
    watches: Vec<Arc<dyn Watch>>,
}

struct Shared {
    clock: Arc<TscClock>,
    wake: OwnedFd,
    ended: AtomicBool,
    set: Mutex<Set>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the loop is being woken already.
        let _ = write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Makes alarms and wakes the loop. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

/// The running loop; ends when dropped.
pub(crate) struct Loop {
    events: Events,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// A loop that isn't running yet.
    ///
    /// # Errors
    /// The host refuses a file descriptor.
    pub(crate) fn new(clock: Arc<TscClock>) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let set = Set { slots: Vec::new(), queue: BTreeSet::new(), asleep_until: None, watches: Vec::new() };
        let shared = Shared { clock, wake, ended: AtomicBool::new(false), set: Mutex::new(set) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A new alarm, which calls nobody yet.
    pub(crate) fn alarm(&self) -> Arc<AlarmHandle> {
        let slot = Arc::new(Slot { generation: AtomicU64::new(0), call: OnceLock::new() });
        let mut set = self.shared.lock();
        set.slots.push((Arc::clone(&slot), None));
        let index = set.slots.len() - 1;
        Arc::new(AlarmHandle { events: self.clone(), slot, index })
    }

    /// Watches a file descriptor from now on.
    pub(crate) fn watch(&self, watch: Arc<dyn Watch>) {
        self.shared.lock().watches.push(watch);
        self.shared.wake();
    }

    /// Makes the loop ask its watches again what they want.
    pub(crate) fn look_again(&self) {
        self.shared.wake();
    }

    /// Starts the thread. Should a device panic on it, the run ends by way of `control`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn start(&self, control: Arc<Control>) -> std::io::Result<Loop> {
        let events = self.clone();
        let thread = std::thread::Builder::new().name("ombra-events".into()).spawn(move || {
            let _presence = Presence { control, what: "the event loop" };
            events.turn_until_ended();
        })?;
        Ok(Loop { events: self.clone(), thread: Some(thread) })
    }

    fn turn_until_ended(&self) {
        while !self.shared.ended.load(Ordering::Acquire) {
            self.fire_due();
            self.sleep();
        }
    }

    /// Calls the alarms whose time has come, but not so many that the rest of the loop starves: alarms may be set again as
    /// fast as they are called.
    fn fire_due(&self) {
        for _ in 0..CALLS_A_TURN {
            if self.shared.ended.load(Ordering::Acquire) {
                return;
            }
            let mut set = self.shared.lock();
            let now = self.shared.clock.now();
            let Some(&(at, index)) = set.queue.first() else { return };
            if at > now {
                return;
            }
            set.queue.pop_first();
            set.slots[index].1 = None;
            let slot = Arc::clone(&set.slots[index].0);
            let generation = slot.generation.load(Ordering::Acquire);
            drop(set);
            if let Some(call) = slot.call.get() {
                call(&Firing { slot: &slot, generation });
            }
        }
    }

    fn sleep(&self) {
        let (until, watches) = {
            let mut set = self.shared.lock();
            let until = set.queue.first().map(|&(at, _)| at);
            set.asleep_until = Some(until.unwrap_or(Nanos(u64::MAX)));
            (until, set.watches.clone())
        };
        // `None` from the clock: time stands still, and resuming wakes the loop.
        let mut time =
            until.and_then(|at| self.shared.clock.until(at)).unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        let mut asked = Vec::new();
        for watch in &watches {
            if let Some(fd) = watch.poll_fd() {
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                asked.push(watch);
            }
            if watch.is_held_up() {
                time = time.min(RETRY);
            }
        }
        let time = rustix::event::Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        // An error here can only be EINTR: everything is looked at again in any case.
        let answered = poll(&mut fds, Some(&time)).is_ok();
        self.shared.lock().asleep_until = None;
        if !answered {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let _ = read(&self.shared.wake, &mut [0; 8]);
        }
        for (watch, _) in asked.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            watch.ready();
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.events.shared.ended.store(true, Ordering::Release);
        self.events.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the loop has been reported by its own message already.
            let _ = thread.join();
        }
    }
}

/// One device's alarm.
pub(crate) struct AlarmHandle {
    events: Events,
    slot: Arc<Slot>,
    index: usize,
}

impl AlarmHandle {
    /// Whom to call: the device, locked, and only if the alarm has not been set or cleared meanwhile. The first call of this
    /// counts.
    pub(crate) fn calls<T: Send + 'static>(&self, device: &Arc<Mutex<T>>, call: fn(&mut T)) {
        let device: Weak<Mutex<T>> = Arc::downgrade(device);
        self.calls_with(move |firing| {
            let Some(device) = device.upgrade() else { return };
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            if firing.is_current() {
                call(&mut device);
            }
        });
    }

    /// Whom to call, where locking is the callee's business.
    pub(crate) fn calls_with(&self, call: impl Fn(&Firing<'_>) + Send + Sync + 'static) {
        let _ = self.slot.call.set(Box::new(call));
    }
}

impl AlarmSink for AlarmHandle {
    fn set(&self, at: Option<Nanos>) {
        let shared = &self.events.shared;
        let mut set = shared.lock();
        self.slot.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(old) = std::mem::replace(&mut set.slots[self.index].1, at) {
            set.queue.remove(&(old, self.index));
        }
        let Some(at) = at else { return };
        set.queue.insert((at, self.index));
        // Only a sleeper that would wake too late is woken. Once is enough: it looks at the whole queue.
        if set.asleep_until.is_some_and(|until| at < until) {
            set.asleep_until = None;
            drop(set);
            shared.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Log(mpsc::Sender<u32>);

    fn events() -> (Arc<TscClock>, Events) {
        let clock = Arc::new(TscClock::start());
        let events = Events::new(Arc::clone(&clock)).expect("an eventfd");
        (clock, events)
    }

    fn logged(events: &Events, log: &mpsc::Sender<u32>, id: u32) -> Arc<AlarmHandle> {
        let alarm = events.alarm();
        let log = Mutex::new(Log(log.clone()));
        alarm.calls_with(move |firing| {
            if firing.is_current() {
                let _ = log.lock().expect("not poisoned").0.send(id);
            }
        });
        alarm
    }

    fn after(clock: &TscClock, millis: u64) -> Option<Nanos> {
        Some(Nanos(clock.now().0 + millis * 1_000_000))
    }

    #[test]
    fn alarms_fire_in_the_order_of_their_times_not_of_their_setting() {
        let (clock, events) = events();
        let (sender, log) = mpsc::channel();
        let alarms = [0, 1, 2].map(|id| logged(&events, &sender, id));
        alarms[0].set(after(&clock, 60));
        alarms[1].set(after(&clock, 20));
        alarms[2].set(after(&clock, 40));
        let _loop = events.start(Arc::default()).expect("a thread");
        let order: Vec<u32> = log.iter().take(3).collect();
        assert_eq!(order, [1, 2, 0]);
    }

    #[test]
    fn an_earlier_alarm_wakes_a_loop_that_sleeps_for_a_later_one() {
        let (clock, events) = events();
        let (sender, log) = mpsc::channel();
        let late = logged(&events, &sender, 1);
        let early = logged(&events, &sender, 2);
        let _loop = events.start(Arc::default()).expect("a thread");
        late.set(Some(Nanos(u64::MAX)));
        std::thread::sleep(Duration::from_millis(20));
        early.set(after(&clock, 1));
        assert_eq!(log.recv_timeout(Duration::from_secs(5)), Ok(2));
    }

    #[test]
    fn a_cleared_or_replaced_alarm_does_not_fire() {
        let (clock, events) = events();
        let (sender, log) = mpsc::channel();
        let cleared = logged(&events, &sender, 1);
        let replaced = logged(&events, &sender, 2);
        let _loop = events.start(Arc::default()).expect("a thread");
        cleared.set(after(&clock, 20));
        replaced.set(after(&clock, 20));
        cleared.set(None);
        replaced.set(after(&clock, 60));
        let fired = clock.now();
        assert_eq!(log.recv_timeout(Duration::from_secs(5)), Ok(2));
        assert!(clock.now().0 - fired.0 > 40_000_000);
        assert!(log.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn an_alarm_cleared_by_the_device_while_its_call_waits_for_the_device_is_dropped() {
        let (clock, events) = events();
        let device = Arc::new(Mutex::new(0u32));
        let alarm = events.alarm();
        alarm.calls(&device, |calls| *calls += 1);
        let _loop = events.start(Arc::default()).expect("a thread");
        let held = device.lock().expect("not poisoned");
        alarm.set(after(&clock, 0));
        // The loop now waits for the device.
        std::thread::sleep(Duration::from_millis(20));
        alarm.set(None);
        drop(held);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(*device.lock().expect("not poisoned"), 0);
        alarm.set(after(&clock, 0));
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while *device.lock().expect("not poisoned") == 0 {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// An alarm that is always due again.
    fn restless(events: &Events) -> Arc<AlarmHandle> {
        let alarm = events.alarm();
        let again = Arc::downgrade(&alarm);
        alarm.calls_with(move |_| {
            if let Some(alarm) = again.upgrade() {
                alarm.set(Some(Nanos(0)));
            }
        });
        alarm.set(Some(Nanos(0)));
        alarm
    }

    struct Pipe(std::io::PipeReader, mpsc::Sender<u32>);

    impl Watch for Pipe {
        fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
            use std::os::fd::AsFd;
            Some(self.0.as_fd())
        }
        fn ready(&self) {
            let _ = self.1.send(1);
        }
    }

    #[test]
    fn alarms_that_are_always_due_neither_starve_input_nor_keep_the_loop_from_ending() {
        let (_clock, events) = events();
        let _alarm = restless(&events);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(writer);
        let (sender, log) = mpsc::channel();
        events.watch(Arc::new(Pipe(reader, sender)));
        let running = events.start(Arc::default()).expect("a thread");
        assert_eq!(log.recv_timeout(Duration::from_secs(5)), Ok(1));
        // Would not return.
        drop(running);
    }

    #[test]
    fn a_device_that_panics_on_the_loop_ends_the_run() {
        let (_clock, events) = events();
        let alarm = events.alarm();
        alarm.calls_with(|_| panic!("as a broken device would"));
        let control = Arc::new(Control::default());
        let _loop = events.start(Arc::clone(&control)).expect("a thread");
        alarm.set(Some(Nanos(0)));
        control.wait();
        assert!(matches!(
            control.take(),
            Some(crate::ending::Ending::Failed(crate::MachineError::Panicked { what: "the event loop" }))
        ));
    }
}
