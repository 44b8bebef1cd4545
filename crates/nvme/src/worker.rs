//! What a controller's threads do: one for the admin queue, one for each I/O submission queue.
//!
//! A thread holds its queue's lock while it serves it, so whoever deletes the queue waits for the command in progress.

use crate::shared::Shared;
use crate::spec::{Command, Outcome};
use crate::{admin, io};
use disk::Buffer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use workers::{Idle, Next, Pace, Wakes, Work};

/// Commands that are done before a thread looks around.
const AT_ONCE: usize = 64;

/// Serves one submission queue.
pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    /// Of the queue; 0 is the admin queue.
    pub(crate) number: u16,
    pub(crate) buffer: Buffer,
    pub(crate) pace: Pace,
    /// What the driver has written to CC.
    pub(crate) cc: Arc<AtomicU32>,
}

impl Server {
    fn run(&mut self, command: &Command) -> Option<Outcome> {
        if self.number == 0 {
            return admin::run(&self.shared, command, self.cc.load(Ordering::Acquire));
        }
        let done = io::run(&self.shared, &mut self.buffer, command);
        if let Err(status) = done {
            let mut state = self.shared.state();
            state.errors.add(self.number, command.id(), status, command.block());
        }
        Some(done.into())
    }

    fn serve(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let Some(mut place) = shared.submission(self.number) else { return Next::Wait };
        let Some(queue) = place.as_mut() else { return Next::Wait };
        let bell = &shared.bells[usize::from(self.number)];
        let mut done = 0;
        while done < AT_ONCE {
            let tail = bell.tail.load(Ordering::Acquire);
            let is_ended_request = self.number == 0 && admin::has_ended_request(&shared);
            if shared.has_failed() || tail == queue.head && !is_ended_request {
                match self.pace.idle() {
                    Idle::Tell => {
                        shared.tell(queue.completions);
                        self.pace.told();
                    }
                    Idle::Look => std::hint::spin_loop(),
                    Idle::Sleep => return Next::Wait,
                }
                continue;
            }
            // Whoever makes room rings.
            if !shared.promise(queue.completions) {
                shared.tell(queue.completions);
                return Next::Wait;
            }
            let ended = if is_ended_request {
                admin::ended_request(&shared)
            } else {
                match queue.take(&shared.memory, tail) {
                    Ok(Some(command)) => self.run(&command).map(|outcome| (command.id(), outcome)),
                    Ok(None) => None,
                    Err(_) => {
                        shared.fail("a submission queue is not in RAM");
                        None
                    }
                }
            };
            done += 1;
            let Some((id, outcome)) = ended else {
                shared.release(queue.completions);
                continue;
            };
            let unseen = shared.post(queue, self.number, id, outcome);
            let tail = bell.tail.load(Ordering::Acquire);
            let waiting = (tail + queue.size - queue.head) % queue.size;
            if self.pace.done(unseen, unseen + waiting) {
                shared.tell(queue.completions);
                self.pace.told();
            }
        }
        shared.tell(queue.completions);
        self.pace.told();
        Next::Again
    }
}

impl Work for Server {
    fn turn(&mut self) -> Next {
        let next = self.serve();
        if self.number == 0 {
            admin::shut_down(&self.shared);
        }
        next
    }

    fn wakes(&self) -> Wakes<'_> {
        Wakes::default()
    }
}
