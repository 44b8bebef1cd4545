//! The life of a device, apart from the bus it sits on.

/// A device's guest-visible state, in the device's own format (postcard of its state struct).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved(pub Vec<u8>);

/// A saved state doesn't fit the device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes aren't a state of this device.
    #[error("the saved state of {device} is damaged or of another version")]
    Format {
        /// The device.
        device: &'static str,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// The state is well-formed but can't be.
    #[error("the saved state of {device} is impossible: {what}")]
    Impossible {
        /// The device.
        device: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What a machine needs of a device.
pub trait Device: Send {
    /// Its name in messages and saved machines.
    fn name(&self) -> &str;
    /// Back to the state after power-up. Lines are lowered, alarms cleared.
    fn reset(&mut self);
    /// Stop producing work (no alarm, no interrupt from now on), but accept and hold on to new work.
    fn quiesce(&mut self);
    /// Go on after [`Device::quiesce`] or [`Device::restore`]: set lines and alarms from the state.
    fn resume(&mut self);
    /// The guest-visible state.
    fn save(&self) -> Saved;
    /// Takes over a saved state; [`Device::resume`] follows.
    ///
    /// # Errors
    /// [`RestoreError`]; the device is unchanged then.
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;
}

/// Encodes a device's state struct.
///
/// # Panics
/// Never for the plain structs that devices keep: postcard only fails on types without a known length.
#[must_use]
pub fn encode<T: serde::Serialize>(state: &T) -> Saved {
    Saved(postcard::to_allocvec(state).expect("a device's state is plain data"))
}

/// Decodes a device's state struct.
///
/// # Errors
/// [`RestoreError::Format`].
pub fn decode<'a, T: serde::Deserialize<'a>>(
    device: &'static str,
    saved: &'a Saved,
) -> Result<T, RestoreError> {
    postcard::from_bytes(&saved.0).map_err(|source| RestoreError::Format { device, source })
}
