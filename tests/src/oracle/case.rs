//! One oracle case: the state it starts from and the state it ends in, and where things lie.
//!
//! Both sides put the same bytes at the same virtual addresses, so that addresses in registers and in memory compare bit
//! for bit. The structures are `repr(C)` because the native side shares them with its worker process.

use x86::state::VectorState;

/// First byte of the data window: [`DATA_LEN`] writable bytes, then one read-only page. Unmapped around.
pub const DATA: u64 = 0x1000_0000;
/// Length of the writable part.
pub const DATA_LEN: usize = 0x2000;
/// The read-only page right behind the writable part.
pub const READ_ONLY: u64 = DATA + DATA_LEN as u64;
/// What the read-only page is filled with.
pub const READ_ONLY_FILL: u8 = 0x3c;
/// The code page. Readable and executable, not writable; unmapped around.
pub const CODE: u64 = 0x2000_0000;
/// Length of the code page.
pub const CODE_LEN: usize = 0x1000;
/// Most bytes of code in a case. The rest of the page is `INT3`.
pub const MAX_CODE: usize = 192;
/// Base of FS on both sides.
pub const FS_BASE: u64 = DATA + 0x1000;
/// Base of GS on both sides.
pub const GS_BASE: u64 = DATA + 0x800;
/// The selectors a user program of 64-bit Linux runs with: visible to `MOV r, CS` and `PUSH`.
pub const CS: u16 = 0x33;
/// See [`CS`].
pub const SS: u16 = 0x2b;

/// [`Outcome::vector`]: the worker process died.
pub const DIED: u32 = 1000;
/// [`Outcome::vector`]: the instruction budget ran out, or the worker's time.
pub const ENDLESS: u32 = 1001;
/// [`Outcome::vector`]: the engine reported a triple fault.
pub const SHUTDOWN: u32 = 1002;
/// [`Outcome::vector`]: the engine returned an error or panicked.
pub const BROKEN: u32 = 1003;
/// [`Outcome::vector`]: the engine halted at a place that is none of ours.
pub const LOST: u32 = 1004;

/// What a case starts with.
#[derive(Clone)]
#[repr(C)]
pub struct Initial {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Where the code lies.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Bytes of code in `code`; those past the end of the page are dropped.
    pub code_len: u64,
    /// The code.
    pub code: [u8; MAX_CODE],
    /// x87, SSE, AVX, AVX-512. PKRU and XCR0 are not used.
    pub vector: VectorState,
    /// The writable data.
    pub data: [u8; DATA_LEN],
}

/// What a case ends with.
#[derive(Clone)]
#[repr(C)]
pub struct Outcome {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Saved instruction pointer.
    pub rip: u64,
    /// Saved flags.
    pub rflags: u64,
    /// Exception vector, or one of the constants above 255.
    pub vector: u32,
    /// Error code; 0 where the vector has none.
    pub code: u32,
    /// Address of a page fault; 0 for other exceptions.
    pub cr2: u64,
    /// x87, SSE, AVX, AVX-512.
    pub vectors: VectorState,
    /// The writable data.
    pub data: [u8; DATA_LEN],
}

impl Default for Initial {
    fn default() -> Self {
        let mut gpr = [0; 16];
        gpr[4] = DATA + 0x1800;
        Self {
            gpr,
            rip: CODE,
            rflags: 0x202,
            code_len: 0,
            code: [0xcc; MAX_CODE],
            vector: VectorState::default(),
            data: [0; DATA_LEN],
        }
    }
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            vector: DIED,
            code: 0,
            cr2: 0,
            vectors: VectorState::default(),
            data: [0; DATA_LEN],
        }
    }
}

impl Initial {
    /// The part of the code that lies in the code page, and its offset there.
    #[must_use]
    pub fn code_in_page(&self) -> (usize, &[u8]) {
        let offset = (self.rip.wrapping_sub(CODE) as usize).min(CODE_LEN);
        let len = (self.code_len as usize).min(MAX_CODE).min(CODE_LEN - offset);
        (offset, &self.code[..len])
    }
}
