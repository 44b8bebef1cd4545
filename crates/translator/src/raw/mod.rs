//! The unsafe parts of the translator: code memory, the way into translated code, signals.

#![expect(unsafe_code, reason = "translated code is mapped, entered, and faults")]

pub(crate) mod code;
pub(crate) mod enter;
pub(crate) mod fill;
pub(crate) mod signals;
pub(crate) mod stack;
