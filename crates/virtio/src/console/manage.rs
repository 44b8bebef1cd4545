//! Control of a console's ports: which there are, their names, who has them open.
//!
//! Threads: one. It also takes what is written to rings that lead nowhere.

use super::spec::{self, CONTROL_RECEIVE, CONTROL_TRANSMIT, MESSAGE_BYTES, event, message};
use super::{Shared, hear, wake};
use crate::device::{Next, Wakes, Work};
use crate::queue::{Broken, Queue};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Messages that may wait for the driver before it is heard again: it could make us answer without reading.
const MOST_WAITING: usize = 256;

/// Control's work.
pub(super) struct Manager {
    shared: Arc<Shared>,
    /// The driver knows of ports.
    has_control: bool,
}

impl Manager {
    pub(super) fn new(shared: &Arc<Shared>, has_control: bool) -> Self {
        Self { shared: Arc::clone(shared), has_control }
    }

    /// Obeys a message of the driver's; nonsense is ignored.
    fn obey(&self, (number, what, value): (u32, u16, u16)) {
        if what == event::DEVICE_READY {
            if value == 1 {
                for number in 0..self.shared.ports.len() as u32 {
                    self.shared.post(message(number, event::PORT_ADD, 1, &[]));
                }
            }
            return;
        }
        let Some(port) = usize::try_from(number).ok().and_then(|number| self.shared.ports.get(number)) else {
            return;
        };
        match what {
            event::PORT_READY if value == 1 => {
                if port.is_console {
                    self.shared.post(message(number, event::CONSOLE_PORT, 1, &[]));
                }
                let name = [port.name.as_bytes(), b"\0"].concat();
                self.shared.post(message(number, event::PORT_NAME, 1, &name));
                let open = port.host_open.load(Ordering::Acquire).into();
                self.shared.post(message(number, event::PORT_OPEN, open, &[]));
            }
            event::PORT_OPEN => {
                port.guest_open.store(value == 1, Ordering::Release);
                wake(&port.opened);
            }
            _ => {}
        }
    }

    /// Messages to the driver. Whether all are given.
    fn tell(&self, queue: &mut Queue) -> Result<bool, Broken> {
        queue.mute_doorbell()?;
        loop {
            let Some(next) = self.shared.outbox().pop_front() else { break };
            match queue.pop()? {
                Some(mut request) => {
                    // What doesn't fit, or isn't RAM, is the driver's loss.
                    let _ = request.write(&next);
                    queue.push(request.head(), request.written())?;
                }
                None => {
                    self.shared.outbox().push_front(next);
                    if !queue.want_doorbell()? {
                        break;
                    }
                    queue.mute_doorbell()?;
                }
            }
        }
        queue.signal()?;
        Ok(self.shared.outbox().is_empty())
    }

    /// Messages of the driver's.
    fn listen(&self, queue: &mut Queue) -> Result<Next, Broken> {
        queue.serve(|request| {
            let mut bytes = [0; MESSAGE_BYTES];
            // A driver that doesn't read what it is told isn't obeyed.
            if request.read(&mut bytes).ok() == Some(MESSAGE_BYTES)
                && self.shared.outbox().len() < MOST_WAITING
            {
                self.obey(spec::parse(bytes));
            }
            Ok(0)
        })
    }
}

impl Work for Manager {
    fn run(&mut self, queues: &mut [Queue]) -> Result<Next, Broken> {
        hear(&self.shared.posted);
        let mut next = Next::Wait;
        for queue in queues.iter_mut() {
            let wanted = match queue.index() {
                CONTROL_TRANSMIT if self.has_control => self.listen(queue)?,
                // Rings from the guest have odd numbers.
                index if index % 2 == 1 => queue.serve(|_| Ok(0))?,
                _ => Next::Wait,
            };
            if wanted == Next::Again {
                next = Next::Again;
            }
        }
        if self.has_control
            && let Some(queue) = queues.iter_mut().find(|queue| queue.index() == CONTROL_RECEIVE)
        {
            self.tell(queue)?;
        }
        Ok(next)
    }

    fn wakes(&self) -> Wakes<'_> {
        Wakes { input: Some(self.shared.posted.as_fd()), ..Wakes::default() }
    }
}
