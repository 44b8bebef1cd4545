//! Serial output and input on the host's side.
//!
//! The caller of [`Machine::new`](crate::Machine::new) connects ports to its terminal or pipes with [`Streams`]. Output goes through a queue
//! to one writer thread a port (`ombra-com1`...), which writes and flushes as soon as there is something: a vCPU does not wait for
//! a slow reader until [`QUEUE_LIMIT`] bytes are waiting, and then it does, so nothing is lost. A failing write ends the run
//! with [`MachineError::Output`]. Input is read by the event loop when the port has room for it.
//!
//! Threads and lock order: a port's device lock comes before its queue's lock, which is a leaf.

use crate::MachineError;
use crate::ending::{Control, Ending};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of output that may wait for their reader before the guest waits too.
pub const QUEUE_LIMIT: usize = 64 << 10;
/// How long a stopped machine waits for a reader that doesn't read.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// What the caller connects to the serial ports: one for each port that is configured as
/// [`Stream`](control::SerialConfig::Stream). Ports without one drop their output.
#[derive(Default)]
pub struct Streams {
    /// COM1 to COM4.
    pub serial: [Option<Stream>; 4],
}

/// Both directions of one serial port.
pub struct Stream {
    /// Takes the guest's output. May block; is flushed after each piece.
    pub output: Box<dyn Write + Send>,
    /// Gives the guest input, if there is any to come.
    pub input: Option<Box<dyn Input>>,
}

/// A source of serial input. The machine's event loop owns it.
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
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
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
        while queue.waiting.len() >= QUEUE_LIMIT && !queue.failed && !queue.hurried {
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
    /// Starts a writer for COM`number`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub(crate) fn start(
        number: usize,
        mut sink: Box<dyn Write + Send>,
        control: Arc<Control>,
    ) -> io::Result<(Self, Output)> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name(format!("ombra-com{number}")).spawn({
            let shared = Arc::clone(&shared);
            move || {
                if let Err(source) = write_all(&shared, &mut *sink) {
                    let mut queue = shared.lock();
                    queue.failed = true;
                    queue.writing = false;
                    drop(queue);
                    shared.changed.notify_all();
                    control.end(Ending::Failed(MachineError::Output { port: number, source }));
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

fn write_all(shared: &Shared, sink: &mut dyn Write) -> io::Result<()> {
    loop {
        let piece = {
            let mut queue = shared.lock();
            while queue.waiting.is_empty() {
                if queue.closed {
                    return Ok(());
                }
                queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.writing = true;
            std::mem::take(&mut queue.waiting)
        };
        // There is room again.
        shared.changed.notify_all();
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
            Writer::start(1, Box::new(Slow(sender)), Arc::default()).expect("a thread");
        let guest = std::thread::spawn(move || {
            for number in 0..3 * QUEUE_LIMIT {
                output.push(&[number as u8]);
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!guest.is_finished());
        let mut got = Vec::new();
        while got.len() < 3 * QUEUE_LIMIT {
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
            Writer::start(2, Box::new(Slow(sender)), Arc::clone(&control)).expect("a thread");
        output.push(b"x");
        control.wait();
        let ending = control.take().expect("an ending");
        assert!(matches!(
            &ending,
            Ending::Failed(MachineError::Output { port: 2, source }) if source.kind() == io::ErrorKind::BrokenPipe
        ));
        // Output after that is dropped, not waited for.
        output.push(&vec![0; 2 * QUEUE_LIMIT]);
        output.push(b"x");
    }

    #[test]
    fn a_stopped_machine_does_not_wait_for_a_reader_that_never_reads() {
        let (sender, _reader) = mpsc::sync_channel(0);
        let (mut writer, output) =
            Writer::start(1, Box::new(Slow(sender)), Arc::default()).expect("a thread");
        output.push(&vec![0; QUEUE_LIMIT]);
        let pusher = std::thread::spawn({
            let output = output.clone();
            move || {
                output.push(&vec![0; QUEUE_LIMIT]);
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
}
