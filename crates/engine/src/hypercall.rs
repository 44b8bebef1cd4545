//! VMCALL and VMMCALL: what an engine hands to the machine, and what it does with the answer.
//!
//! The two instructions mean the same here, whoever made the host's CPU: guests choose by the vendor that CPUID names, or by what
//! a hypercall page holds. No threads, no locks.

/// A hypercall as the machine sees it.
#[derive(Debug)]
pub struct Hypercall<'a> {
    /// The general registers, in the order of [`x86::state::gpr`]. What the machine changes is the guest's result.
    pub registers: &'a mut [u64; 16],
    /// The calling code is 64-bit code. Else only the registers' low halves count.
    pub long: bool,
    /// The calling code's privilege level, 0..=3.
    pub cpl: u8,
    /// CR0.PE is set and RFLAGS.VM is clear.
    pub protected: bool,
}

/// What has become of a hypercall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HypercallOutcome {
    /// It is done; the guest goes on behind the instruction.
    Done,
    /// Not yet: events may be taken, then the guest executes the instruction again.
    Again,
    /// The instruction gets `#UD`: there are no hypercalls here.
    Undefined,
}
