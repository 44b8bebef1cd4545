//! Memory operands of which only some bytes are touched, and those that hosts check in parts.
//!
//! Called by the other files of `native`. Where a mask leaves faults open, this follows what Intel hosts do: addresses
//! first, then the page of the first touched byte, then that of the last.

use super::host::Host;
use super::plan::runs;
use super::{NativeContext, x87};
use iced_x86::Register;

/// An operand's place.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) segment: Register,
    pub(super) offset: u64,
    /// What #AC asks for.
    pub(super) alignment: u64,
    /// Bytes of its elements, at least 1.
    pub(super) element: usize,
}

impl Place {
    fn at(self, byte: usize) -> u64 {
        self.offset.wrapping_add(byte as u64)
    }

    /// The addresses of the first and the last byte of `bytes`, which isn't empty. AMD's processors go from element to element: they look
    /// at the first one's page before they mind that a later one isn't canonical.
    fn check_ends<C: NativeContext>(
        self,
        context: &mut C,
        bytes: u64,
        write: bool,
    ) -> Result<(u64, u64), C::Fault> {
        let (first, last) = (bytes.trailing_zeros(), 63 - bytes.leading_zeros());
        let (first, last) = (self.at(first as usize), self.at(last as usize));
        context.reachable(self.segment, first)?;
        if let Err(fault) = context.reachable(self.segment, last) {
            let end = first.wrapping_add(self.element as u64 - 1);
            if Host::get().amd && context.reachable(self.segment, end).is_ok() {
                context.touch(self.segment, first, 1, write, 1)?;
            }
            return Err(fault);
        }
        Ok((first, last))
    }

    /// Loads the bytes whose bits are set in `bytes`.
    pub(super) fn load_some<C: NativeContext>(
        self,
        context: &mut C,
        into: &mut [u8],
        bytes: u64,
    ) -> Result<(), C::Fault> {
        if bytes == 0 {
            return Ok(());
        }
        self.check_ends(context, bytes, false)?;
        if self.alignment > 1 {
            context.check_alignment(self.segment, self.offset, self.alignment)?;
        }
        for (at, len) in runs(bytes) {
            context.load(self.segment, self.at(at), &mut into[at..at + len], 1)?;
        }
        Ok(())
    }

    /// Stores the bytes whose bits are set in `bytes`: all or, with a fault, none.
    pub(super) fn store_some<C: NativeContext>(
        self,
        context: &mut C,
        from: &[u8],
        bytes: u64,
    ) -> Result<(), C::Fault> {
        self.check_some(context, bytes)?;
        self.store_runs(context, from, bytes)
    }

    /// Faults as [`store_some`](Self::store_some) does. AMD's processors take one element after the other.
    pub(super) fn check_some<C: NativeContext>(self, context: &mut C, bytes: u64) -> Result<(), C::Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let (first, last) = self.check_ends(context, bytes, true)?;
        if self.alignment > 1 {
            context.check_alignment(self.segment, self.offset, self.alignment)?;
        }
        if Host::get().amd {
            let mut elements = (0..64).step_by(self.element).filter(|at| bytes >> at & 1 != 0);
            return elements
                .try_for_each(|at| context.touch(self.segment, self.at(at), self.element as u64, true, 1));
        }
        context.touch(self.segment, first, 1, true, 1)?;
        context.touch(self.segment, last, 1, true, 1)
    }

    /// Stores the bytes whose bits are set in `bytes` after a check of all of `from`.
    pub(super) fn store_within<C: NativeContext>(
        self,
        context: &mut C,
        from: &[u8],
        bytes: u64,
    ) -> Result<(), C::Fault> {
        context.touch(self.segment, self.offset, from.len() as u64, true, self.alignment)?;
        self.store_runs(context, from, bytes)
    }

    fn store_runs<C: NativeContext>(self, context: &mut C, from: &[u8], bytes: u64) -> Result<(), C::Fault> {
        runs(bytes).try_for_each(|(at, len)| context.store(self.segment, self.at(at), &from[at..at + len], 1))
    }

    /// Stores an 80-bit number as hosts do, significand and exponent apart: a fault of the latter leaves the former stored.
    pub(super) fn store_extended<C: NativeContext>(
        self,
        context: &mut C,
        from: &[u8],
    ) -> Result<(), C::Fault> {
        context.reachable(self.segment, self.at(9))?;
        context.store(self.segment, self.offset, &from[..8], self.alignment)?;
        context.store(self.segment, self.at(8), &from[8..], 1)
    }

    /// MASKMOVQ and MASKMOVDQU: checked and stored by eight bytes whatever the mask, from the highest, on AMD's processors from the lowest.
    pub(super) fn store_halves<C: NativeContext>(
        self,
        context: &mut C,
        from: &[u8],
        bytes: u64,
    ) -> Result<(), C::Fault> {
        let halves = from.len() / 8;
        for half in 0..halves {
            let half = if Host::get().amd { half } else { halves - 1 - half };
            context.touch(self.segment, self.at(8 * half), 8, true, self.alignment)?;
        }
        self.store_runs(context, from, bytes)
    }

    /// Loads an x87 image of `into.len()` bytes. Hosts look at its ends first.
    pub(super) fn load_image<C: NativeContext>(
        self,
        context: &mut C,
        into: &mut [u8],
    ) -> Result<(), C::Fault> {
        context.touch(self.segment, self.offset, self.alignment, false, self.alignment)?;
        context.touch(self.segment, self.at(into.len() - 1), 1, false, 1)?;
        context.load(self.segment, self.offset, into, 1)
    }
}

/// What Intel's processors have already done when an MMX store faults: TOP is 0, though the tags haven't changed.
pub(super) fn leave_top_cleared<C: NativeContext>(context: &mut C) {
    if Host::get().amd {
        return;
    }
    let state = context.registers().1;
    let tags = state.x87[4];
    x87::enter_mmx(state);
    state.x87[4] = tags;
}
