//! From TSC ticks to nanoseconds, in the fixed-point forms that the interfaces have.
//!
//! Machine time and the machine's TSC both begin at zero, and a vCPU's TSC is ahead of the machine's by what its guest has written to
//! it; so the whole of a clock page is one factor and one TSC value, and never changes while the machine runs.

const NANOS: u64 = 1_000_000_000;

/// `nanoseconds = (ticks << shift) * mul >> 32`, with a negative shift to the right; `mul` is at least 2^31, so that it is as exact as
/// 32 bits can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PvScale {
    pub(crate) mul: u32,
    pub(crate) shift: i8,
}

impl PvScale {
    /// Of a TSC that runs at `hz`, more than zero.
    pub(crate) fn of(hz: u64) -> Self {
        // mul = 10^9 / hz * 2^(32 - shift), which has to be in 2^31..2^32.
        let exact = |shift: i32| (u128::from(NANOS) << 64 >> (32 + shift)) / u128::from(hz.max(1));
        let shift = (-31..=31).rev().find(|shift| exact(*shift) >= 1 << 31).unwrap_or(-31);
        let mul = u32::try_from(exact(shift)).unwrap_or(u32::MAX);
        Self { mul, shift: shift as i8 }
    }
}

/// `units of 100 ns = ticks * scale >> 64`, for a TSC that runs at `hz`, more than 10 MHz (TLFS 12.7.3).
pub(crate) fn reference_scale(hz: u64) -> u64 {
    u64::try_from((u128::from(NANOS / 100) << 64) / u128::from(hz.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_ticks_comes_to_a_day_within_a_part_in_a_thousand_million() {
        for hz in [200_000_000, 999_999_999, 1_000_000_000, 2_299_998_417, 4_700_000_001, 20_000_000_000u64] {
            let scale = PvScale::of(hz);
            assert!(scale.mul >= 1 << 31, "{hz}: {scale:?}");
            let ticks = hz * 86_400;
            let shifted = if scale.shift < 0 { ticks >> -scale.shift } else { ticks << scale.shift };
            let nanos = (u128::from(shifted) * u128::from(scale.mul)) >> 32;
            let day = u128::from(NANOS) * 86_400;
            assert!(nanos.abs_diff(day) * 1_000_000_000 <= day, "{hz}: {nanos}");
            let units = (u128::from(ticks) * u128::from(reference_scale(hz))) >> 64;
            assert!(units.abs_diff(day / 100) <= 1, "{hz}: {units}");
        }
    }
}
