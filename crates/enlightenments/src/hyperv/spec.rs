//! Hyper-V's interface for guests as numbers (Microsoft, Hypervisor Top-Level Functional Specification 6.0b; "TLFS" below).

/// Leaf 0x40000000: EBX, ECX, EDX (TLFS 2.4).
pub(super) const SIGNATURE: &[u8; 12] = b"Microsoft Hv";
/// EAX of leaf 0x40000001: "Hv#1".
pub(super) const INTERFACE: u32 = 0x3123_7648;
/// The version that leaf 0x40000002 tells: major in the upper half of EBX.
pub(super) const VERSION: u32 = 10 << 16;

/// Leaf 0x40000003, EAX: what a partition may use.
pub(super) mod privilege {
    pub(crate) const VP_RUNTIME: u32 = 1 << 0;
    pub(crate) const REFERENCE_COUNTER: u32 = 1 << 1;
    pub(crate) const SYNIC: u32 = 1 << 2;
    pub(crate) const TIMERS: u32 = 1 << 3;
    pub(crate) const APIC: u32 = 1 << 4;
    pub(crate) const HYPERCALL: u32 = 1 << 5;
    pub(crate) const VP_INDEX: u32 = 1 << 6;
    pub(crate) const RESET: u32 = 1 << 7;
    pub(crate) const REFERENCE_TSC: u32 = 1 << 9;
    pub(crate) const GUEST_IDLE: u32 = 1 << 10;
    pub(crate) const FREQUENCY: u32 = 1 << 11;
}

/// Leaf 0x40000003, EBX: which hypercalls a partition may make.
pub(super) mod calls {
    pub(crate) const POST_MESSAGES: u32 = 1 << 4;
    pub(crate) const SIGNAL_EVENTS: u32 = 1 << 5;
}

/// Leaf 0x40000003, EDX.
pub(super) mod feature {
    pub(crate) const FREQUENCY: u32 = 1 << 8;
    pub(crate) const CRASH: u32 = 1 << 10;
    pub(crate) const DIRECT_TIMERS: u32 = 1 << 19;
}

/// Leaf 0x40000004, EAX: what a guest had better do.
pub(super) mod hint {
    pub(crate) const REMOTE_FLUSH: u32 = 1 << 2;
    pub(crate) const APIC: u32 = 1 << 3;
    pub(crate) const RELAXED_TIMING: u32 = 1 << 5;
    pub(crate) const CLUSTER_IPI: u32 = 1 << 10;
    pub(crate) const EX_MASKS: u32 = 1 << 11;
}
/// EBX there: how often to try a spin lock before the hypervisor is told; and never.
pub(super) const SPINS: u32 = 0xfff;
pub(super) const NEVER: u32 = u32::MAX;

/// MSRs (TLFS appendix B).
pub(super) mod msr {
    pub(crate) const GUEST_OS_ID: u32 = 0x4000_0000;
    pub(crate) const HYPERCALL: u32 = 0x4000_0001;
    pub(crate) const VP_INDEX: u32 = 0x4000_0002;
    pub(crate) const RESET: u32 = 0x4000_0003;
    pub(crate) const VP_RUNTIME: u32 = 0x4000_0010;
    pub(crate) const REFERENCE_COUNT: u32 = 0x4000_0020;
    pub(crate) const REFERENCE_TSC: u32 = 0x4000_0021;
    pub(crate) const TSC_FREQUENCY: u32 = 0x4000_0022;
    pub(crate) const APIC_FREQUENCY: u32 = 0x4000_0023;
    pub(crate) const EOI: u32 = 0x4000_0070;
    pub(crate) const ICR: u32 = 0x4000_0071;
    pub(crate) const TPR: u32 = 0x4000_0072;
    pub(crate) const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    pub(crate) const SCONTROL: u32 = 0x4000_0080;
    pub(crate) const SVERSION: u32 = 0x4000_0081;
    pub(crate) const SIEFP: u32 = 0x4000_0082;
    pub(crate) const SIMP: u32 = 0x4000_0083;
    pub(crate) const EOM: u32 = 0x4000_0084;
    pub(crate) const SINT0: u32 = 0x4000_0090;
    pub(crate) const SINT15: u32 = 0x4000_009f;
    pub(crate) const STIMER0_CONFIG: u32 = 0x4000_00b0;
    pub(crate) const STIMER3_COUNT: u32 = 0x4000_00b7;
    pub(crate) const GUEST_IDLE: u32 = 0x4000_00f0;
    pub(crate) const CRASH_P0: u32 = 0x4000_0100;
    pub(crate) const CRASH_P4: u32 = 0x4000_0104;
    pub(crate) const CRASH_CTL: u32 = 0x4000_0105;
    pub(crate) const FIRST: u32 = 0x4000_0000;
    pub(crate) const LAST: u32 = 0x4000_ffff;
}

/// Bit 0 of the MSRs that name a page.
pub(super) const ENABLE: u64 = 1;
/// The page's address in them.
pub(super) const PAGE: u64 = !0xfff;
/// The hypercall MSR can't be changed any more.
pub(super) const LOCKED: u64 = 2;

/// CRASH_CTL: the guest has crashed; the parameters 3 and 4 are a message's address and length.
pub(super) mod crash {
    pub(crate) const NOTIFY: u64 = 1 << 63;
    pub(crate) const MESSAGE: u64 = 1 << 62;
}

/// The reference TSC page (TLFS 12.7.2).
pub(super) mod tsc_page {
    pub(crate) const SEQUENCE: u64 = 0;
    pub(crate) const SCALE: u64 = 8;
    pub(crate) const OFFSET: u64 = 16;
    pub(crate) const BYTES: u64 = 24;
}

/// Statuses of hypercalls (TLFS appendix C).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Success = 0,
    /// There is no such call.
    InvalidCode = 2,
    /// The call isn't made as it has to be: repetitions, header, fast.
    InvalidInput = 3,
    /// An address isn't aligned.
    InvalidAlignment = 4,
    /// A parameter has no meaning.
    InvalidParameter = 5,
    /// There is no such connection.
    InvalidConnection = 0x12,
    /// Too many messages wait.
    InsufficientBuffers = 0x13,
    /// The receiver's controller is off.
    InvalidSynicState = 0x18,
}

/// Call codes (TLFS appendix A).
pub(super) mod code {
    pub(crate) const FLUSH_SPACE: u16 = 0x02;
    pub(crate) const FLUSH_LIST: u16 = 0x03;
    pub(crate) const LONG_SPIN_WAIT: u16 = 0x08;
    pub(crate) const SEND_IPI: u16 = 0x0b;
    pub(crate) const FLUSH_SPACE_EX: u16 = 0x13;
    pub(crate) const FLUSH_LIST_EX: u16 = 0x14;
    pub(crate) const SEND_IPI_EX: u16 = 0x15;
    pub(crate) const POST_MESSAGE: u16 = 0x5c;
    pub(crate) const SIGNAL_EVENT: u16 = 0x5d;
}

/// Flags of flushes (TLFS 9.4.6).
pub(super) mod flush {
    pub(crate) const ALL_PROCESSORS: u64 = 1;
    pub(crate) const NON_GLOBAL: u64 = 4;
    /// All that there are: with all address spaces (2) nothing differs here.
    pub(crate) const KNOWN: u64 = 7;
}

/// SINT registers.
pub(super) mod sint {
    pub(crate) const COUNT: usize = 16;
    pub(crate) const MASKED: u64 = 1 << 16;
    pub(crate) const AUTO_EOI: u64 = 1 << 17;
    pub(crate) const POLLING: u64 = 1 << 18;
}

/// A message slot (TLFS 11.8.1).
pub(super) mod slot {
    pub(crate) const BYTES: u64 = 256;
    pub(crate) const TYPE: u64 = 0;
    pub(crate) const FLAGS: u64 = 5;
    pub(crate) const PENDING: u8 = 1;
    pub(crate) const PAYLOAD: usize = 240;
    /// Of the messages that the hypervisor itself sends.
    pub(crate) const TIMER_EXPIRED: u32 = 0x8000_0010;
    pub(crate) const FROM_HYPERVISOR: u32 = 1 << 31;
}

/// Bits of a timer's configuration (TLFS 12.3.2).
pub(super) mod stimer {
    pub(crate) const COUNT: usize = 4;
    pub(crate) const ENABLED: u64 = 1;
    pub(crate) const PERIODIC: u64 = 2;
    pub(crate) const AUTO_ENABLE: u64 = 8;
    pub(crate) const DIRECT: u64 = 1 << 12;
    pub(crate) const RESERVED: u64 = !0xf_1fff;
}
