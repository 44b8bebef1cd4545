//! Time, and being woken.
//!
//! All guest-visible time (TSC, APIC timer, PIT, HPET, ACPI PM timer, RTC) derives from one [`Clock`], so that no two of
//! them drift apart and Linux's clocksource watchdog is content.

use std::sync::Arc;

/// Nanoseconds of guest time since the machine started. Does not advance while the machine is paused.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Ticks of a counter that runs at `hz`, rounded down.
    #[must_use]
    pub const fn to_ticks(self, hz: u64) -> u64 {
        (self.0 as u128 * hz as u128 / 1_000_000_000) as u64
    }

    /// The first moment at which a counter running at `hz` shows `ticks`.
    #[must_use]
    pub const fn from_ticks(ticks: u64, hz: u64) -> Self {
        let nanos = (ticks as u128 * 1_000_000_000).div_ceil(hz as u128);
        Self(if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 })
    }
}

/// Guest time, as the machine keeps it.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Nanos;
    /// The frequency of the guest's TSC in Hz.
    fn tsc_hz(&self) -> u64;
    /// The TSC of a vCPU whose TSC offset is the machine's, at `at`.
    fn tsc_at(&self, at: Nanos) -> u64;
    /// When that TSC reaches `tsc`; a value in the past gives some moment that is not in the future.
    fn when_tsc(&self, tsc: u64) -> Nanos;
    /// Seconds since 1970 on the guest's wall clock.
    fn wall_seconds(&self) -> u64;
}

/// A device's request to be called at a moment. The machine gives each device as many as it needs and decides what they call;
/// setting an alarm that is set replaces it.
pub trait AlarmSink: Send + Sync {
    /// Sets or, with `None`, clears the alarm. Never calls the device from within.
    fn set(&self, at: Option<Nanos>);
}

/// A shared handle to an alarm.
pub type Alarm = Arc<dyn AlarmSink>;
