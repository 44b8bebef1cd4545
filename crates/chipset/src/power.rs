//! What the board asks of the machine as a whole: to power off, to reset, to end.
//!
//! Chips call [`PowerSink::request`] on a vCPU's thread with their own lock held, so a sink only takes a note and kicks whoever
//! acts on it; it never calls a device.

/// A request to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PowerRequest {
    /// Soft off (ACPI S5).
    PowerOff,
    /// Reset the whole machine.
    Reset,
    /// End with this exit status (only test devices ask for it).
    Exit(u8),
}

/// What takes [`PowerRequest`]s.
pub trait PowerSink: Send + Sync {
    /// Notes the request. The first of several counts.
    fn request(&self, request: PowerRequest);
}
