//! Admin commands (5).

use crate::prp::Data;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::shared::{MOST_EVENT_REQUESTS, Shared};
use crate::spec::{COMMAND_SHIFT, COMPLETION_SHIFT, Command, MOST_ENTRIES, Outcome, PAGE, Status, admin, cc};
use crate::{identify, log};
use std::sync::atomic::Ordering;

/// Create commands: the queue is in one piece (5.3, 5.4). There are no others (CAP.CQR).
const CONTIGUOUS: u32 = 1;
/// Create I/O Completion Queue: with interrupts.
const INTERRUPTS: u32 = 1 << 1;
/// Get Log Page: events may not be told again yet.
const RETAIN: u32 = 1 << 15;
/// Abort: the command was not aborted (5.1).
const NOT_ABORTED: u32 = 1;

/// Does a command. `None`: it waits for an event. `cc`: what the driver has written to CC.
pub(crate) fn run(shared: &Shared, command: &Command, cc: u32) -> Option<Outcome> {
    if command.wants_more() {
        return Some(Err(Status::InvalidField).into());
    }
    let done = match command.opcode() {
        admin::CREATE_COMPLETION_QUEUE => create_completions(shared, command, cc),
        admin::CREATE_SUBMISSION_QUEUE => create_submissions(shared, command, cc),
        admin::DELETE_COMPLETION_QUEUE => delete_completions(shared, command),
        admin::DELETE_SUBMISSION_QUEUE => delete_submissions(shared, command),
        admin::IDENTIFY => {
            let page = identify::page(shared, command.dword(10) as u8, command.namespace());
            page.and_then(|page| answer(shared, command, &page))
        }
        admin::LOG_PAGE => log_page(shared, command),
        admin::GET_FEATURES => {
            let (queues, vectors) = (shared.queues(), shared.queues() + 1);
            shared.state().features.get(command.dword(10), command.dword(11), queues, vectors)
        }
        admin::SET_FEATURES => set_features(shared, command),
        admin::ABORT => abort(shared, command),
        admin::ASYNC_EVENT => match wait_for_event(shared, command) {
            Ok(()) => return None,
            Err(status) => Err(status),
        },
        _ => Err(Status::InvalidOpcode),
    };
    Some(done.into())
}

/// Gives the driver bytes.
fn answer(shared: &Shared, command: &Command, bytes: &[u8]) -> Result<u32, Status> {
    Data::new(&shared.memory, command.prps(), bytes.len() as u64)?.write(bytes)?;
    Ok(0)
}

/// Number and size of a queue that is to be made, and whether its place is free.
fn new_queue(shared: &Shared, command: &Command, entry: u32, shift: u32) -> Result<(u16, u32), Status> {
    let number = command.dword(10) as u16;
    if number == 0 || number > shared.queues() {
        return Err(Status::QueueIdentifier);
    }
    let size = (command.dword(10) >> 16) + 1;
    if !(2..=MOST_ENTRIES).contains(&size) {
        return Err(Status::QueueSize);
    }
    let at_page = command.prps().0.is_multiple_of(PAGE);
    if command.dword(11) & CONTIGUOUS == 0 || entry != shift {
        return Err(Status::InvalidField);
    }
    if at_page { Ok((number, size)) } else { Err(Status::PrpOffset) }
}

/// Figures 151 and 152.
fn create_completions(shared: &Shared, command: &Command, cc: u32) -> Result<u32, Status> {
    let (_, entry) = cc::entry_sizes(cc);
    let (number, size) = new_queue(shared, command, entry, COMPLETION_SHIFT)?;
    if shared.completion(number).is_some_and(|queue| queue.is_some()) {
        return Err(Status::QueueIdentifier);
    }
    let flags = command.dword(11);
    let vector = (flags >> 16) as u16;
    if !shared.voice.has(vector) {
        return Err(Status::InterruptVector);
    }
    let vector = (flags & INTERRUPTS != 0).then_some(vector);
    shared.set_completion(number, Some(CompletionQueue::new(command.prps().0, size, vector)));
    Ok(0)
}

/// Figures 155 and 156.
fn create_submissions(shared: &Shared, command: &Command, cc: u32) -> Result<u32, Status> {
    let (entry, _) = cc::entry_sizes(cc);
    let (number, size) = new_queue(shared, command, entry, COMMAND_SHIFT)?;
    if shared.submission(number).is_some_and(|queue| queue.is_some()) {
        return Err(Status::QueueIdentifier);
    }
    let completions = (command.dword(11) >> 16) as u16;
    if completions == 0 || shared.completion(completions).is_none_or(|queue| queue.is_none()) {
        return Err(Status::CompletionQueueInvalid);
    }
    shared
        .set_submission(number, Some(SubmissionQueue { base: command.prps().0, size, head: 0, completions }));
    Ok(0)
}

/// Those in progress are finished first (5.6); what hasn't been taken out of the queue is forgotten, as its driver has no queue to hear
/// of it from.
fn delete_submissions(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let number = command.dword(10) as u16;
    if number == 0 || shared.submission(number).is_none_or(|queue| queue.is_none()) {
        return Err(Status::QueueIdentifier);
    }
    shared.set_submission(number, None);
    Ok(0)
}

fn delete_completions(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let number = command.dword(10) as u16;
    if number == 0 || shared.completion(number).is_none_or(|queue| queue.is_none()) {
        return Err(Status::QueueIdentifier);
    }
    for other in 1..=shared.queues() {
        let uses = |queue: &SubmissionQueue| queue.completions == number;
        if shared.submission(other).is_some_and(|queue| queue.as_ref().is_some_and(uses)) {
            return Err(Status::QueueDeletion);
        }
    }
    shared.set_completion(number, None);
    Ok(0)
}

/// Figures 186 to 191.
fn log_page(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let which = command.dword(10);
    let page = log::page(which as u8, &shared.state().errors, &shared.counters, identify::REVISION)?;
    let dwords = u64::from(which >> 16) | u64::from(command.dword(11) & 0xffff) << 16;
    let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
    if !offset.is_multiple_of(4) || offset > page.len() as u64 {
        return Err(Status::InvalidField);
    }
    let rest = &page[offset as usize..];
    // What lies beyond the page isn't written.
    let len = dwords.saturating_add(1).saturating_mul(4).min(rest.len() as u64) as usize;
    answer(shared, command, &rest[..len])?;
    if which & RETAIN == 0 && log::clears_errors(which as u8) {
        shared.state().events_masked = false;
    }
    Ok(0)
}

fn set_features(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let has_queues = (1..=shared.queues()).any(|number| {
        shared.submission(number).is_some_and(|queue| queue.is_some())
            || shared.completion(number).is_some_and(|queue| queue.is_some())
    });
    let (queues, vectors) = (shared.queues(), shared.queues() + 1);
    let mut state = shared.state();
    state.features.set(command.dword(10), command.dword(11), queues, vectors, has_queues)
}

/// Commands are done one after the other and within a moment: only event requests wait and can be aborted.
fn abort(shared: &Shared, command: &Command) -> Result<u32, Status> {
    let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
    if queue != 0 {
        return Ok(NOT_ABORTED);
    }
    let mut state = shared.state();
    let Some(place) = state.event_requests.iter().position(|waiting| *waiting == id) else {
        return Ok(NOT_ABORTED);
    };
    state.event_requests.remove(place);
    state.aborted.push(id);
    Ok(0)
}

fn wait_for_event(shared: &Shared, command: &Command) -> Result<(), Status> {
    let mut state = shared.state();
    if state.event_requests.len() == MOST_EVENT_REQUESTS {
        return Err(Status::AsyncEventLimit);
    }
    state.event_requests.push(command.id());
    Ok(())
}

/// What ends event requests: those that were aborted, and the event that waits to be told. One at a time; the caller has an entry of
/// the completion queue for it.
pub(crate) fn ended_request(shared: &Shared) -> Option<(u16, Outcome)> {
    let mut state = shared.state();
    if let Some(id) = state.aborted.pop() {
        return Some((id, Err(Status::Aborted).into()));
    }
    if state.events_masked || state.event_requests.is_empty() {
        return None;
    }
    let event = state.event.take()?;
    state.events_masked = true;
    let id = state.event_requests.remove(0);
    Some((id, Ok(event.result()).into()))
}

/// Whether [`ended_request`] has one.
pub(crate) fn has_ended_request(shared: &Shared) -> bool {
    let state = shared.state();
    !state.aborted.is_empty()
        || state.event.is_some() && !state.events_masked && !state.event_requests.is_empty()
}

/// A shutdown that the driver has asked for (7.6.2): everything to stable storage.
pub(crate) fn shut_down(shared: &Shared) {
    use crate::shared::shutdown;
    if shared.shutdown.load(Ordering::Acquire) == shutdown::GOES_ON {
        // What can't be written has been said on stderr; the driver can't be told.
        let _ = shared.disk.flush::<()>();
        shared.shutdown.store(shutdown::DONE, Ordering::Release);
    }
}
