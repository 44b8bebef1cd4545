//! The one clock of a machine.
//!
//! Guest TSC = host TSC + an offset, and guest nanoseconds are the guest TSC divided by its frequency: all that a guest can
//! read as time comes from this one counter, so no two of its clocks drift apart. The frequency is what the host's CPUID
//! says if a short measurement agrees, else what a measurement of a few milliseconds finds; it is found once a process.
//!
//! Threads: any thread may read at any time. No locks: two atomics, and only the machine's owner pauses and resumes.
//! Left out: hosts whose TSC is not invariant or differs between CPUs (the guest is told what the host tells, and a
//! warning is logged), and TSC scaling.

use crate::raw::host_tsc;
use chipset::{Clock, Nanos};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;
/// TSC frequencies that a CPU with AVX-era features can have, in Hz.
const SANE_HZ: std::ops::RangeInclusive<u64> = 200_000_000..=20_000_000_000;
/// A first measurement; a frequency that CPUID names is believed if it is this close to it.
const SHORT: Duration = Duration::from_millis(3);
const BELIEVABLE_PPM: u64 = 200;
/// The rest of the measurement where CPUID names none.
const LONG: Duration = Duration::from_millis(7);

/// A moment on both counters.
#[derive(Clone, Copy)]
struct Moment {
    tsc: u64,
    nanos: u128,
}

impl Moment {
    /// Reads the host's monotonic clock between two reads of the TSC and keeps the tightest of several tries.
    fn now() -> Self {
        let mut best = (u64::MAX, Self { tsc: 0, nanos: 0 });
        for _ in 0..16 {
            let before = host_tsc();
            let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
            let after = host_tsc();
            let width = after.wrapping_sub(before);
            if width < best.0 {
                let nanos =
                    u128::from(time.tv_sec.unsigned_abs()) * SECOND + u128::from(time.tv_nsec.unsigned_abs());
                best = (width, Self { tsc: before.wrapping_add(width / 2), nanos });
            }
        }
        best.1
    }

    /// Hz between an earlier moment and this one.
    fn hz_since(self, start: Self) -> u64 {
        let ticks = u128::from(self.tsc.wrapping_sub(start.tsc));
        let nanos = self.nanos.saturating_sub(start.nanos).max(1);
        u64::try_from((ticks * SECOND + nanos / 2) / nanos).unwrap_or(u64::MAX)
    }
}

/// The frequency that the host's CPUID names: leaf 0x15, else the hypervisor's 0x40000010, else the nominal one of 0x16.
fn named_hz(query: impl Fn(u32, u32) -> x86::cpuid::Leaf) -> impl Iterator<Item = u64> {
    let highest = query(0, 0).eax;
    let crystal = if highest >= 0x15 { query(0x15, 0) } else { Default::default() };
    let ratio = (crystal.eax != 0)
        .then(|| u64::from(crystal.ecx) * u64::from(crystal.ebx) / u64::from(crystal.eax.max(1)));
    let hypervisor = query(1, 0).ecx >> 31 == 1 && query(0x4000_0000, 0).eax >= 0x4000_0010;
    let told = hypervisor.then(|| u64::from(query(0x4000_0010, 0).eax) * 1000);
    let nominal = (highest >= 0x16).then(|| u64::from(query(0x16, 0).eax & 0xffff) * 1_000_000);
    [ratio, told, nominal].into_iter().flatten().filter(|hz| SANE_HZ.contains(hz))
}

/// The host TSC's frequency in Hz. The first call takes up to 10 ms, later ones nothing.
#[must_use]
pub fn host_tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        if crate::cpuid::host(0x8000_0007, 0).edx & 1 << 8 == 0 {
            tracing::warn!("the host's TSC is not invariant: the guest's clocks may drift");
        }
        let start = Moment::now();
        std::thread::sleep(SHORT);
        let short = Moment::now().hz_since(start);
        let close = |hz: &u64| hz.abs_diff(short) <= short / 1_000_000 * BELIEVABLE_PPM;
        let hz = named_hz(crate::cpuid::host).find(close).unwrap_or_else(|| {
            std::thread::sleep(LONG);
            Moment::now().hz_since(start)
        });
        tracing::debug!(hz, "host TSC frequency");
        // A host without a working clock would divide by zero everywhere.
        hz.clamp(*SANE_HZ.start(), *SANE_HZ.end())
    })
}

/// Guest time on the host's TSC.
#[derive(Debug)]
pub struct TscClock {
    hz: u64,
    /// Guest TSC - host TSC, wrapping.
    offset: AtomicU64,
    /// The guest TSC at which time stands still, plus 1; 0 while it runs.
    paused: AtomicU64,
    /// The wall clock at guest TSC 0.
    wall_at_start: Duration,
}

impl TscClock {
    /// A clock that starts now, at guest TSC 0.
    #[must_use]
    pub fn start() -> Self {
        Self::with_hz(host_tsc_hz())
    }

    fn with_hz(hz: u64) -> Self {
        Self {
            hz,
            offset: AtomicU64::new(0u64.wrapping_sub(host_tsc())),
            paused: AtomicU64::new(0),
            wall_at_start: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// Guest TSC - host TSC, wrapping: what the vCPUs use. Changes by a pause.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// The guest's TSC.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        match self.paused.load(Ordering::Acquire) {
            0 => host_tsc().wrapping_add(self.offset()),
            stopped => stopped - 1,
        }
    }

    /// Stops time. The vCPUs must not run meanwhile: their RDTSC does not ask this clock.
    pub fn pause(&self) {
        if self.paused.load(Ordering::Acquire) == 0 {
            self.paused.store(self.tsc().wrapping_add(1).max(1), Ordering::Release);
        }
    }

    /// Lets time go on from where it stopped. The vCPUs need the new [`offset`](Self::offset).
    pub fn resume(&self) {
        if let Some(stopped) = self.paused.load(Ordering::Acquire).checked_sub(1) {
            self.offset.store(stopped.wrapping_sub(host_tsc()), Ordering::Release);
            self.paused.store(0, Ordering::Release);
        }
    }

    /// How much host time passes until `at`: zero if it is past, `None` while time stands still.
    #[must_use]
    pub fn until(&self, at: Nanos) -> Option<Duration> {
        let running = self.paused.load(Ordering::Acquire) == 0;
        running.then(|| Duration::from_nanos(at.0.saturating_sub(self.now().0)))
    }
}

/// Nanoseconds that have passed when a counter of `hz` shows `tsc`, rounded down.
fn nanos_at(tsc: u64, hz: u64) -> Nanos {
    Nanos(u64::try_from(u128::from(tsc) * SECOND / u128::from(hz)).unwrap_or(u64::MAX))
}

impl Clock for TscClock {
    fn now(&self) -> Nanos {
        nanos_at(self.tsc(), self.hz)
    }

    fn tsc_hz(&self) -> u64 {
        self.hz
    }

    fn tsc_at(&self, at: Nanos) -> u64 {
        at.to_ticks(self.hz)
    }

    fn when_tsc(&self, tsc: u64) -> Nanos {
        Nanos::from_ticks(tsc, self.hz)
    }

    fn wall_seconds(&self) -> u64 {
        (self.wall_at_start + Duration::from_nanos(self.now().0)).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::cpuid::Leaf;

    const FREQUENCIES: [u64; 6] =
        [200_000_000, 999_999_999, 1_000_000_000, 2_299_998_417, 4_700_000_001, 20_000_000_000];

    #[test]
    fn an_alarm_at_the_moment_of_a_tsc_value_is_not_early() {
        for hz in FREQUENCIES {
            let clock = TscClock::with_hz(hz);
            for tsc in [0, 1, 2, 999, 1_000_000_007, 0x1234_5678_9abc, 1 << 56] {
                assert!(clock.tsc_at(clock.when_tsc(tsc)) >= tsc, "{tsc} at {hz}");
            }
        }
    }

    #[test]
    fn tsc_and_nanoseconds_agree_to_one_tick_either_way() {
        for hz in FREQUENCIES {
            let clock = TscClock::with_hz(hz);
            for nanos in [0, 1, 17, 1_000_000_000, 86_400_000_000_000, 1 << 60] {
                let at = Nanos(nanos);
                if u128::from(nanos) * u128::from(hz) / SECOND > u128::from(u64::MAX) {
                    continue;
                }
                let back = nanos_at(clock.tsc_at(at), hz);
                let tick = u64::try_from(SECOND.div_ceil(u128::from(hz))).expect("small");
                assert!(back <= at && at.0 - back.0 <= tick, "{nanos} at {hz}: {}", back.0);
            }
        }
    }

    #[test]
    fn time_stands_still_while_paused_and_goes_on_without_a_jump() {
        let clock = TscClock::start();
        clock.pause();
        let stopped = clock.tsc();
        assert_eq!(clock.until(Nanos(u64::MAX)), None);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.tsc(), stopped);
        clock.resume();
        let after = clock.tsc();
        assert!(after >= stopped);
        // Far less than the 5 ms that the pause took at least.
        assert!(clock.until(Nanos(u64::MAX)).is_some());
        assert!(after - stopped < clock.tsc_hz() / 250, "{}", after - stopped);
    }

    #[test]
    fn the_measured_frequency_agrees_with_the_hosts_clock() {
        let clock = TscClock::start();
        let (host, guest) = (std::time::Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(100));
        let (host, guest) = (host.elapsed().as_nanos() as i128, i128::from(clock.now().0 - guest.0));
        // Two clocks read one after the other on a busy host: 2 % is far more than any error in the frequency.
        assert!((host - guest).abs() < host / 50, "host {host} ns, guest {guest} ns");
    }

    #[test]
    fn frequencies_that_cpuid_names_are_taken_in_order_and_only_if_sane() {
        let query = |leaf, _| match leaf {
            0 => Leaf { eax: 0x16, ..Leaf::default() },
            1 => Leaf { ecx: 1 << 31, ..Leaf::default() },
            0x15 => Leaf { eax: 2, ebx: 192, ecx: 24_000_000, edx: 0 },
            0x16 => Leaf { eax: 2300, ..Leaf::default() },
            0x4000_0000 => Leaf { eax: 0x4000_0010, ..Leaf::default() },
            0x4000_0010 => Leaf { eax: 1, ..Leaf::default() },
            _ => Leaf::default(),
        };
        assert_eq!(named_hz(query).collect::<Vec<_>>(), [2_304_000_000, 2_300_000_000]);
        assert_eq!(named_hz(|_, _| Leaf::default()).count(), 0);
    }
}
