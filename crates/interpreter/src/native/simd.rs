//! MXCSR around a stub (SDM 1 11.5).
//!
//! Called by `Inner::run` for instructions that may look at MXCSR. The guest's value is the host's while the stub runs, masks
//! and all; what it raises comes back through `raw/trap.rs`. So flags, and the order of exceptions, are the host's own.

use super::host::Host;
use super::{Inner, NativeContext, Stub, raw};

impl Inner {
    /// Runs a stub. False: an unmasked exception, and nothing is stored but its flags.
    pub(super) fn run_with_mxcsr<C: NativeContext>(
        &mut self,
        stub: &Stub,
        context: &mut C,
    ) -> Result<bool, raw::Stale> {
        let (gpr, vector) = context.registers();
        // Reserved bits, which only a state from outside could have, would fault on the host.
        self.frame.mxcsr_in = vector.mxcsr & Host::get().mxcsr_mask;
        let completed = self.arena.run(stub.entry, &mut self.frame, gpr, vector)?;
        vector.mxcsr = self.frame.mxcsr_out;
        Ok(completed)
    }
}
