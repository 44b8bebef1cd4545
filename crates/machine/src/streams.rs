//! Output and input of serial ports and of the ports of a virtio console, on the host's side.
//!
//! The caller of [`Machine::new`](crate::Machine::new) connects ports to its terminal or pipes with [`Streams`]. Output goes through a queue
//! to one writer thread a port (`ombra-com1`...), which writes and flushes as soon as there is something. When [`QUEUE_LIMIT`] bytes
//! wait for a slow reader, the port tells the guest that its transmitter is busy, and the guest goes on with something else. Only
//! a guest that sends all the same waits, at twice that, so nothing is lost. A failing write ends the run
//! with [`MachineError::Output`]. Input is read by the event loop when the port has room for it.
//!
//! Threads and lock order: a port's device lock comes before its queue's lock, which is a leaf. The writer calls the port with no
//! lock held.

use crate::MachineError;
use crate::ending::{Control, Ending, Presence};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of output that may wait for their reader before the port says that its transmitter is busy.
pub const QUEUE_LIMIT: usize = 64 << 10;
/// Bytes of output that may wait before a guest that doesn't ask is made to wait.
pub(crate) const HARD_LIMIT: usize = 2 * QUEUE_LIMIT;
/// How long a stopped machine waits for a reader that doesn't read.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// What the caller connects to the serial ports: one for each port that is configured as
/// [`Stream`](control::SerialConfig::Stream). Ports without one drop their output.
#[derive(Default)]
pub struct Streams {
    /// COM1 to COM4.
    pub serial: [Option<Stream>; 4],
    /// The virtio console's ports, in the order of [`MachineConfig::ports`](control::MachineConfig::ports).
    pub ports: Vec<Stream>,
}

/// Both directions of one port.
pub struct Stream {
    /// Takes the guest's output. May block; is flushed after each piece.
    pub output: Box<dyn Write + Send>,
    /// Gives the guest input, if there is any to come.
    pub input: Option<Box<dyn Input>>,
}

/// A source of input. The machine's event loop owns that of serial ports, a device's thread that of a console's.
pub trait Input: Send {
    /// What to poll. Asked once.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The descriptor is readable: reads what is there without blocking and appends what is meant for the guest, which may be
    /// nothing. `false`: nothing will come any more.
    ///
    /// # Errors
    /// The read's; taken as the end of input.
    fn receive(&mut self, guest: &mut Vec<u8>) -> io::Result<bool>;
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    /// A piece is being written.
    writing: bool,
    /// No more will come.
    closed: bool,
    /// The writer gave up.
    failed: bool,
    /// The vCPUs are to stop: nobody waits for room.
    hurried: bool,
    /// The port was told that there is no room, and is to hear when there is.
    asked: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Tells the port that there is room again.
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest's end of an output queue. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Arc<Shared>,
}

impl Output {
    /// Queues bytes; waits while too many are waiting.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut queue = self.shared.lock();
        while queue.waiting.len() >= HARD_LIMIT && !queue.failed && !queue.hurried {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.failed {
            return;
        }
        let was_empty = queue.waiting.is_empty();
        queue.waiting.extend_from_slice(bytes);
        drop(queue);
        if was_empty {
            self.shared.changed.notify_all();
        }
    }

    /// Whether there is room for more than what a guest sends without asking again. If not, [`Self::on_room`]'s callee hears when
    /// there is.
    pub(crate) fn has_room(&self) -> bool {
        let mut queue = self.shared.lock();
        let room = queue.waiting.len() < QUEUE_LIMIT || queue.failed || queue.hurried;
        queue.asked |= !room;
        room
    }

    /// Whom the writer calls when there is room again. Once.
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_room.set(Box::new(call));
    }

    /// Makes nobody wait for room any more (`true`), or again.
    pub(crate) fn hurry(&self, hurried: bool) {
        self.shared.lock().hurried = hurried;
        self.shared.changed.notify_all();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A port's writer thread.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts a writer for the port `name`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn start(
        name: &str,
        mut sink: Box<dyn Write + Send>,
        control: Arc<Control>,
    ) -> io::Result<(Self, Output)> {
        let shared = Arc::new(Shared::default());
        let port = name.to_owned();
        let thread = std::thread::Builder::new().name(format!("ombra-{}", name.to_lowercase())).spawn({
            let shared = Arc::clone(&shared);
            move || {
                // Dropped in the other order: nobody waits for the queue any more when the run ends because of a panic.
                let _presence = Presence { control: Arc::clone(&control), what: "a port's writer" };
                let gone = Gone(&shared);
                let result = write_all(&shared, &mut *sink);
                drop(gone);
                if let Err(source) = result {
                    control.end(Ending::Failed(MachineError::Output { port, source }));
                }
            }
        })?;
        let output = Output { shared: Arc::clone(&shared) };
        Ok((Self { shared, thread: Some(thread) }, output))
    }

    /// Writes out what is waiting and ends the thread. `patient` waits for a slow reader as long as it takes.
    pub(crate) fn finish(&mut self, patient: bool) {
        let Some(thread) = self.thread.take() else { return };
        let end = Instant::now() + STOP_PATIENCE;
        let mut queue = self.shared.lock();
        queue.closed = true;
        self.shared.changed.notify_all();
        while !patient && !queue.failed && (queue.writing || !queue.waiting.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The thread hangs in a write that may never end; it goes with the process.
                return;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queue);
        // A panic in the sink has been reported by its own message.
        let _ = thread.join();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish(false);
    }
}

/// The writer takes no more, for whatever reason, a panic of the sink included.
struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.failed = true;
        queue.writing = false;
        drop(queue);
        self.0.changed.notify_all();
    }
}

fn write_all(shared: &Shared, sink: &mut dyn Write) -> io::Result<()> {
    loop {
        let (piece, asked) = {
            let mut queue = shared.lock();
            while queue.waiting.is_empty() {
                if queue.closed {
                    return Ok(());
                }
                queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.writing = true;
            (std::mem::take(&mut queue.waiting), std::mem::take(&mut queue.asked))
        };
        // There is room again.
        shared.changed.notify_all();
        if let Some(call) = shared.on_room.get().filter(|_| asked) {
            call();
        }
        sink.write_all(&piece)?;
        sink.flush()?;
        shared.lock().writing = false;
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A reader that takes its time.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_loses_nothing_and_makes_the_guest_wait() {
        let (sender, reader) = mpsc::sync_channel(0);
        let (mut writer, output) =
            Writer::start("COM1", Box::new(Slow(sender)), Arc::default()).expect("a thread");
        let guest = std::thread::spawn(move || {
            for number in 0..3 * HARD_LIMIT {
                output.push(&[number as u8]);
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!guest.is_finished());
        let mut got = Vec::new();
        while got.len() < 3 * HARD_LIMIT {
            got.extend(reader.recv().expect("more to come"));
        }
        assert!(got.iter().enumerate().all(|(number, byte)| number as u8 == *byte));
        guest.join().expect("the guest ends");
        writer.finish(true);
    }

    #[test]
    fn a_broken_reader_ends_the_run_with_its_error() {
        let (sender, reader) = mpsc::sync_channel(0);
        drop(reader);
        let control = Arc::new(Control::default());
        let (_writer, output) =
            Writer::start("COM2", Box::new(Slow(sender)), Arc::clone(&control)).expect("a thread");
        output.push(b"x");
        control.wait();
        let ending = control.take().expect("an ending");
        assert!(matches!(
            &ending,
            Ending::Failed(MachineError::Output { port, source }) if port == "COM2" && source.kind() == io::ErrorKind::BrokenPipe
        ));
        // Output after that is dropped, not waited for.
        output.push(&vec![0; 2 * QUEUE_LIMIT]);
        output.push(b"x");
    }

    #[test]
    fn a_stopped_machine_does_not_wait_for_a_reader_that_never_reads() {
        let (sender, _reader) = mpsc::sync_channel(0);
        let (mut writer, output) =
            Writer::start("COM1", Box::new(Slow(sender)), Arc::default()).expect("a thread");
        output.push(&vec![0; QUEUE_LIMIT]);
        let pusher = std::thread::spawn({
            let output = output.clone();
            move || {
                output.push(&vec![0; HARD_LIMIT]);
                output.push(b"x");
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        output.hurry(true);
        pusher.join().expect("it stops waiting");
        let start = Instant::now();
        writer.finish(false);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_port_hears_of_a_full_queue_before_it_waits_and_when_there_is_room_again() {
        let (sender, reader) = mpsc::sync_channel(0);
        let (writer, output) =
            Writer::start("COM1", Box::new(Slow(sender)), Arc::default()).expect("a thread");
        let (room, heard) = mpsc::channel();
        output.on_room(move || {
            let _ = room.send(());
        });
        assert!(output.has_room());
        output.push(&vec![0; QUEUE_LIMIT]);
        // The writer takes the first piece at once, and has to wait with it.
        while !output.shared.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
        output.push(&vec![0; QUEUE_LIMIT]);
        assert!(!output.has_room());
        assert!(heard.try_recv().is_err());
        reader.recv().expect("the first piece");
        assert_eq!(heard.recv_timeout(Duration::from_secs(5)), Ok(()));
        assert!(output.has_room());
        drop(reader);
        drop(writer);
    }

    #[test]
    fn a_sink_that_panics_ends_the_run_and_makes_nobody_wait() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("as a broken sink would")
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let control = Arc::new(Control::default());
        let (mut writer, output) =
            Writer::start("COM1", Box::new(Broken), Arc::clone(&control)).expect("a thread");
        output.push(b"x");
        control.wait();
        assert!(matches!(control.take(), Some(Ending::Failed(MachineError::Panicked { .. }))));
        output.push(&vec![0; 2 * HARD_LIMIT]);
        output.push(b"x");
        writer.finish(true);
    }
}
