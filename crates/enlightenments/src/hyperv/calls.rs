//! Hyper-V's hypercalls (TLFS 3): how they are made, and those that there are.
//!
//! A call is refused, in this order, for a code that doesn't exist, for the way in which it is made, for where its input lies, for
//! its parameters. Repeating calls do some elements at a time and are then executed again, from the next element on.

use super::Hyperv;
use super::processors::Processors;
use super::spec::{Status, code, flush, slot};
use engine::{Flush, Hypercall, HypercallOutcome, VcpuId};
use x86::state::gpr;
use x86::{Gpa, Gva};

/// Elements of a list that one execution does.
const AT_ONCE: u64 = 16;
/// Pages in a row that are flushed one by one; more are all.
const MOST_IN_A_ROW: u64 = 32;

/// A call as the guest makes it (TLFS 3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    code: u16,
    fast: bool,
    /// Words of variable header.
    header: u64,
    count: u64,
    start: u64,
    /// Address of the input, or its first word.
    input: u64,
    /// The second word of a fast call's input.
    second: u64,
}

const START: u32 = 48;
const RESERVED: u64 = 0xf000_f000_f800_0000;

impl Request {
    fn of(value: u64, input: u64, second: u64) -> Self {
        Self {
            code: value as u16,
            fast: value >> 16 & 1 != 0,
            header: value >> 17 & 0x3ff,
            count: value >> 32 & 0xfff,
            start: value >> START & 0xfff,
            input,
            second,
        }
    }
}

/// What has become of a call.
pub(super) enum Progress {
    /// That many repetitions are done.
    Done(Status, u64),
    /// To be executed again from that repetition on.
    Again(u64),
}

impl From<Status> for Progress {
    fn from(status: Status) -> Self {
        Self::Done(status, 0)
    }
}

/// How a call may be made.
struct Form {
    repeats: bool,
    fast: bool,
    header: bool,
    /// Bytes of input before header and list.
    bytes: u64,
}

const fn form(code: u16) -> Option<Form> {
    let (repeats, fast, header, bytes) = match code {
        code::FLUSH_SPACE => (false, false, false, 24),
        code::FLUSH_LIST => (true, false, false, 24),
        code::FLUSH_SPACE_EX => (false, false, true, 32),
        code::FLUSH_LIST_EX => (true, false, true, 32),
        code::SEND_IPI => (false, true, false, 16),
        code::SEND_IPI_EX => (false, false, true, 24),
        code::LONG_SPIN_WAIT => (false, true, false, 8),
        code::POST_MESSAGE => (false, false, false, 256),
        code::SIGNAL_EVENT => (false, true, false, 8),
        _ => return None,
    };
    Some(Form { repeats, fast, header, bytes })
}

impl Hyperv {
    pub(super) fn call(&mut self, call: Hypercall<'_>) -> HypercallOutcome {
        let Hypercall { registers, long, cpl, protected } = call;
        if cpl != 0 || !protected || !self.partition.accepts_calls() {
            return HypercallOutcome::Undefined;
        }
        let pair = |high: usize, low: usize| registers[high] << 32 | registers[low] & 0xffff_ffff;
        let (value, input, output) = if long {
            (registers[gpr::RCX], registers[gpr::RDX], registers[gpr::R8])
        } else {
            (pair(gpr::RDX, gpr::RAX), pair(gpr::RBX, gpr::RCX), pair(gpr::RDI, gpr::RSI))
        };
        self.counts.calls += 1;
        let request = Request::of(value, input, output);
        let progress =
            if value & RESERVED != 0 { Status::InvalidInput.into() } else { self.answer(&request) };
        let (result, register, outcome) = match progress {
            Progress::Done(status, done) => {
                self.counts.refused += u64::from(status != Status::Success);
                (status as u64 | done << 32, gpr::RAX, HypercallOutcome::Done)
            }
            Progress::Again(start) => {
                let value = value & !(0xfff << START) | start << START;
                (value, gpr::RCX, HypercallOutcome::Again)
            }
        };
        if long {
            registers[register] = result;
        } else {
            (registers[gpr::RAX], registers[gpr::RDX]) = (result & 0xffff_ffff, result >> 32);
        }
        outcome
    }

    fn answer(&mut self, request: &Request) -> Progress {
        let Some(form) = form(request.code).filter(|_| self.offers(request.code)) else {
            return Status::InvalidCode.into();
        };
        let repetitions = if form.repeats {
            request.count > 0 && request.start < request.count
        } else {
            request.count == 0 && request.start == 0
        };
        if !repetitions || request.fast && !form.fast || request.header != 0 && !form.header {
            return Status::InvalidInput.into();
        }
        let bytes = form.bytes + 8 * (request.header + request.count);
        let mut input = vec![0; bytes as usize];
        if request.fast {
            input[..8].copy_from_slice(&request.input.to_le_bytes());
            if let Some(second) = input.get_mut(8..16) {
                second.copy_from_slice(&request.second.to_le_bytes());
            }
        } else {
            let at = Gpa(request.input);
            if at.0 & 7 != 0 || at.offset() + bytes > 0x1000 {
                return Status::InvalidAlignment.into();
            }
            if self.partition.hub.memory.read(at, &mut input).is_err() {
                return Status::InvalidInput.into();
            }
        }
        let words: Vec<u64> = input
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            .collect();
        match request.code {
            code::FLUSH_SPACE | code::FLUSH_LIST => {
                let processors = if words[1] & flush::ALL_PROCESSORS != 0 {
                    Processors::All
                } else {
                    Processors::Mask(words[2])
                };
                self.flush(request, words[1], &processors, &words[3..])
            }
            code::FLUSH_SPACE_EX | code::FLUSH_LIST_EX => {
                let header = request.header as usize;
                match Processors::sparse(words[2], words[3], &words[4..4 + header]) {
                    Ok(_) if words[1] & flush::ALL_PROCESSORS != 0 => {
                        self.flush(request, words[1], &Processors::All, &words[4 + header..])
                    }
                    Ok(processors) => self.flush(request, words[1], &processors, &words[4 + header..]),
                    Err(status) => status.into(),
                }
            }
            code::SEND_IPI => self.send_ipi(words[0], &Processors::Mask(words[1])).into(),
            code::SEND_IPI_EX => match Processors::sparse(words[1], words[2], &words[3..]) {
                Ok(processors) => self.send_ipi(words[0], &processors).into(),
                Err(status) => status.into(),
            },
            code::LONG_SPIN_WAIT => {
                self.counts.spins += 1;
                std::thread::yield_now();
                Status::Success.into()
            }
            code::POST_MESSAGE => {
                let (kind, size) = (words[1] as u32, (words[1] >> 32) as usize);
                if kind == 0 || kind & slot::FROM_HYPERVISOR != 0 || size > slot::PAYLOAD {
                    return Status::InvalidParameter.into();
                }
                self.partition.post(words[0] as u32, kind, input[16..16 + size].to_vec()).into()
            }
            _ => self.partition.signal(words[0] as u32, (words[0] >> 32) as u16).into(),
        }
    }

    /// An interrupt of fixed delivery mode: the vector, and the level of trust, which is always 0.
    fn send_ipi(&mut self, what: u64, processors: &Processors) -> Status {
        if !(16..=255).contains(&(what as u32)) || what >> 32 & 0xff != 0 {
            return Status::InvalidParameter;
        }
        for cpu in processors.of(self.partition.hub.count()) {
            self.counts.ipis += 1;
            self.partition.hub.lapics.request(cpu, what as u8);
        }
        Status::Success
    }

    /// Translations go on some vCPUs, and the caller goes on when they have. Which address space doesn't matter: more goes than has to.
    fn flush(&mut self, request: &Request, flags: u64, processors: &Processors, list: &[u64]) -> Progress {
        if flags & !flush::KNOWN != 0 {
            return Status::InvalidParameter.into();
        }
        let all = if flags & flush::NON_GLOBAL != 0 { Flush::Local } else { Flush::All };
        let key = Request { start: 0, ..*request };
        let known = self.waiting.take().filter(|waiting| waiting.key == key);
        let is_new = known.is_none();
        let mut waiting = known.unwrap_or(Waiting { key, tickets: Vec::new(), asked: request.start });
        let hub = &self.partition.hub;
        let from = waiting.asked.min(request.count);
        let to = (from + AT_ONCE).min(request.count);
        let mut flushes = Vec::new();
        if request.count == 0 && is_new {
            flushes.push(all);
        }
        if is_new && request.start > 0 {
            // Somebody else's call came between, and who was asked before isn't known any more.
            flushes.push(all);
        }
        for entry in &list[from as usize..to as usize] {
            let (page, more) = (entry & !0xfff, entry & 0xfff);
            if more >= MOST_IN_A_ROW {
                flushes.push(all);
            } else {
                flushes.extend((0..=more).map(|n| Flush::Page(Gva(page.wrapping_add(n << 12)))));
            }
        }
        if !flushes.is_empty() {
            for cpu in processors.of(hub.count()) {
                self.counts.flushes += 1;
                let number = hub.ask_flush(VcpuId(cpu), &flushes);
                // This one flushes before its next instruction, whatever that is.
                if cpu != self.id.0 {
                    waiting.tickets.retain(|(id, _)| *id != cpu);
                    waiting.tickets.push((cpu, number));
                }
            }
        }
        waiting.asked = to;
        waiting.tickets.retain(|(cpu, number)| !hub.has_flushed(VcpuId(*cpu), *number));
        if to == request.count && waiting.tickets.is_empty() {
            return Progress::Done(Status::Success, request.count);
        }
        // The guest sees how far it has come; the last element stays until all is done.
        let shown = to.min(request.count.saturating_sub(1));
        self.waiting = Some(waiting);
        Progress::Again(shown)
    }
}

/// A flush that isn't over.
pub(super) struct Waiting {
    key: Request,
    /// vCPUs, each with the flush that it has to have done.
    tickets: Vec<(u32, u64)>,
    /// Elements that they have been asked for.
    asked: u64,
}
