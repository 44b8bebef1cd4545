//! Registers, commands and structures of the NVM Express Base Specification 1.4, as far as they are here.

/// Registers (3.1): offset of each in base address 0.
pub(crate) mod register {
    pub(crate) const CAP: u64 = 0x00;
    pub(crate) const CAP_HIGH: u64 = 0x04;
    pub(crate) const VS: u64 = 0x08;
    pub(crate) const INTMS: u64 = 0x0c;
    pub(crate) const INTMC: u64 = 0x10;
    pub(crate) const CC: u64 = 0x14;
    pub(crate) const CSTS: u64 = 0x1c;
    pub(crate) const AQA: u64 = 0x24;
    pub(crate) const ASQ: u64 = 0x28;
    pub(crate) const ASQ_HIGH: u64 = 0x2c;
    pub(crate) const ACQ: u64 = 0x30;
    pub(crate) const ACQ_HIGH: u64 = 0x34;
    /// Submission queue 0's tail, completion queue 0's head, and so on: 4 bytes each (3.1.24, 3.1.25).
    pub(crate) const DOORBELLS: u64 = 0x1000;
}

/// Where things are in base address 0.
pub(crate) const BAR: u8 = 0;
pub(crate) const BAR_BYTES: u32 = 0x4000;
pub(crate) const TABLE: u32 = 0x2000;
pub(crate) const PENDING: u32 = 0x3000;

/// 1.4.0 (3.1.2).
pub(crate) const VERSION: u32 = 0x0001_0400;
/// Entries of an I/O queue at most.
pub(crate) const MOST_ENTRIES: u32 = 1024;
/// Entries of an admin queue at most (3.1.9).
pub(crate) const MOST_ADMIN_ENTRIES: u32 = 4096;

/// CAP (3.1.1): queue sizes, physically contiguous queues, 10 s to become ready, the NVM command set, pages of 4 KiB only.
pub(crate) const CAPABILITIES: u64 = (MOST_ENTRIES as u64 - 1) | 1 << 16 | 20 << 24 | 1 << 37;

/// CC (3.1.5).
pub(crate) mod cc {
    pub(crate) const ENABLE: u32 = 1;
    /// Command set, page size, arbitration: nothing but zero is offered.
    pub(crate) const FIXED: u32 = 0x3ff0;
    /// Shutdown notification.
    pub(crate) const SHUTDOWN: u32 = 3 << 14;
    pub(crate) const WRITABLE: u32 = 0x00ff_fff1;
    /// log2 of the entry sizes, where the driver has said them: submission, completion.
    pub(crate) const fn entry_sizes(value: u32) -> (u32, u32) {
        (value >> 16 & 15, value >> 20 & 15)
    }
}

/// CSTS (3.1.6).
pub(crate) mod csts {
    pub(crate) const READY: u32 = 1;
    pub(crate) const FATAL: u32 = 1 << 1;
    pub(crate) const SHUTDOWN_GOES_ON: u32 = 1 << 2;
    pub(crate) const SHUTDOWN_DONE: u32 = 2 << 2;
}

/// Bytes, and their binary logarithm, of a command (4.2) and a completion (4.6).
pub(crate) const COMMAND_BYTES: usize = 64;
pub(crate) const COMMAND_SHIFT: u32 = 6;
pub(crate) const COMPLETION_BYTES: usize = 16;
pub(crate) const COMPLETION_SHIFT: u32 = 4;
/// Pages, in which data is described.
pub(crate) const PAGE: u64 = 4096;
/// The most data of a command, in pages, as a binary logarithm: 1 MiB.
pub(crate) const MOST_DATA: u8 = 8;

/// Admin commands (5).
pub(crate) mod admin {
    pub(crate) const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    pub(crate) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub(crate) const LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    pub(crate) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
}

/// Commands of the NVM command set (6).
pub(crate) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET: u8 = 0x09;
}

/// The one namespace, and what stands for all of them.
pub(crate) const NAMESPACE: u32 = 1;
pub(crate) const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// Status of a completion (4.6.1): type in bits 8 to 10, code in 0 to 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Status {
    Success = 0x000,
    InvalidOpcode = 0x001,
    InvalidField = 0x002,
    DataTransfer = 0x004,
    Internal = 0x006,
    Aborted = 0x007,
    InvalidNamespace = 0x00b,
    Sequence = 0x00c,
    PrpOffset = 0x013,
    WriteProtected = 0x020,
    LbaRange = 0x080,
    Capacity = 0x081,
    CompletionQueueInvalid = 0x100,
    QueueIdentifier = 0x101,
    QueueSize = 0x102,
    AsyncEventLimit = 0x105,
    InterruptVector = 0x108,
    LogPage = 0x109,
    QueueDeletion = 0x10c,
    NotSaveable = 0x10d,
    WriteFault = 0x280,
    ReadError = 0x281,
}

impl Status {
    /// Bits 17 to 31 of a completion's last dword, from bit 1 on. Trying again helps nobody but those that were aborted.
    pub(crate) const fn field(self) -> u16 {
        let do_not_retry = !matches!(self, Self::Success | Self::Aborted);
        (self as u16) << 1 | (do_not_retry as u16) << 15
    }
}

/// A command (4.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command(pub(crate) [u8; COMMAND_BYTES]);

impl Command {
    /// Dword `number`.
    pub(crate) fn dword(&self, number: usize) -> u32 {
        let at = 4 * number;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn quad(&self, number: usize) -> u64 {
        u64::from(self.dword(number)) | u64::from(self.dword(number + 1)) << 32
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0]
    }

    pub(crate) fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Fused operations and scatter-gather lists, which aren't offered.
    pub(crate) fn wants_more(&self) -> bool {
        self.0[1] & 0xc3 != 0
    }

    pub(crate) fn namespace(&self) -> u32 {
        self.dword(1)
    }

    /// PRP entries 1 and 2.
    pub(crate) fn prps(&self) -> (u64, u64) {
        (self.quad(6), self.quad(8))
    }

    /// The first block of commands that have one.
    pub(crate) fn block(&self) -> u64 {
        self.quad(10)
    }

    /// How many blocks, which the command counts from zero.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.dword(12) & 0xffff) + 1
    }
}

/// How a command ended: the first dword of its completion, and the status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) result: u32,
    pub(crate) status: Status,
}

impl From<Result<u32, Status>> for Outcome {
    fn from(done: Result<u32, Status>) -> Self {
        match done {
            Ok(result) => Self { result, status: Status::Success },
            Err(status) => Self { result: 0, status },
        }
    }
}
