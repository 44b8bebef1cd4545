//! KVM's interface for guests as numbers (Linux `Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst`).

/// Leaf 0x40000000: EBX, ECX, EDX.
pub(super) const SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
/// The leaf of features.
pub(super) const FEATURES_LEAF: u32 = 0x4000_0001;

/// Bits of EAX in the leaf of features.
pub(super) mod feature {
    pub(crate) const NOP_IO_DELAY: u32 = 1 << 1;
    pub(crate) const CLOCKSOURCE2: u32 = 1 << 3;
    pub(crate) const STEAL_TIME: u32 = 1 << 5;
    pub(crate) const PV_EOI: u32 = 1 << 6;
    pub(crate) const PV_UNHALT: u32 = 1 << 7;
    pub(crate) const PV_TLB_FLUSH: u32 = 1 << 9;
    pub(crate) const PV_SEND_IPI: u32 = 1 << 11;
    pub(crate) const POLL_CONTROL: u32 = 1 << 12;
    pub(crate) const PV_SCHED_YIELD: u32 = 1 << 13;
    pub(crate) const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

/// MSRs.
pub(super) mod msr {
    pub(crate) const WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(crate) const SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub(crate) const STEAL_TIME: u32 = 0x4b56_4d03;
    pub(crate) const PV_EOI: u32 = 0x4b56_4d04;
    pub(crate) const POLL_CONTROL: u32 = 0x4b56_4d05;
    pub(crate) const FIRST: u32 = 0x4b56_4d00;
    pub(crate) const LAST: u32 = 0x4b56_4dff;
}

/// Numbers of hypercalls, in RAX.
pub(super) mod call {
    pub(crate) const KICK_CPU: u64 = 5;
    pub(crate) const SEND_IPI: u64 = 10;
    pub(crate) const SCHED_YIELD: u64 = 11;
}

/// Errors, in RAX as negative numbers.
pub(super) mod error {
    pub(crate) const NO_SUCH_CALL: i64 = -1000;
    pub(crate) const NOT_PERMITTED: i64 = -1;
    pub(crate) const INVALID: i64 = -22;
}

/// `struct pvclock_vcpu_time_info`.
pub(super) mod time_info {
    pub(crate) const BYTES: u64 = 32;
    pub(crate) const VERSION: u64 = 0;
    pub(crate) const TSC_TIMESTAMP: u64 = 8;
    pub(crate) const SYSTEM_TIME: u64 = 16;
    pub(crate) const MUL: u64 = 24;
    pub(crate) const SHIFT: u64 = 28;
    pub(crate) const FLAGS: u64 = 29;
    /// All vCPUs' pages agree, so that readings of several never go backwards.
    pub(crate) const TSC_STABLE: u8 = 1;
}

/// `struct pvclock_wall_clock`.
pub(super) mod wall_clock {
    pub(crate) const BYTES: u64 = 12;
    pub(crate) const VERSION: u64 = 0;
    pub(crate) const SECONDS: u64 = 4;
    pub(crate) const NANOSECONDS: u64 = 8;
}

/// `struct kvm_steal_time`.
pub(super) mod steal_time {
    pub(crate) const BYTES: u64 = 64;
    pub(crate) const STEAL: u64 = 0;
    pub(crate) const VERSION: u64 = 8;
    pub(crate) const PREEMPTED: u64 = 16;
    /// Bits of the byte at `PREEMPTED`.
    pub(crate) const IS_PREEMPTED: u8 = 1;
    pub(crate) const FLUSH_TLB: u8 = 2;
    /// Bits of the MSR that must be zero.
    pub(crate) const RESERVED: u64 = 0x3e;
}
