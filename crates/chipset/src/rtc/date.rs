//! Seconds since 1970 and the proleptic Gregorian calendar, for years 0..=9999 and tolerant of what a guest writes.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Date {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u16,
}

const DAYS_BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0000-01-01 to the first of January of `year` (>= 0).
fn days_before_year(year: i64) -> i64 {
    match year - 1 {
        -1 => 0,
        // Year 0 is a leap year, hence the 366.
        last => 366 + last * 365 + last / 4 - last / 100 + last / 400,
    }
}

/// 1970-01-01.
const EPOCH: i64 = 719_528;
/// Days of the 10,000 years that four digits can show.
const SPAN: i64 = 3_652_425;

impl Date {
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let day_number = (seconds.div_euclid(86_400) + EPOCH).rem_euclid(SPAN);
        let of_day = seconds.rem_euclid(86_400);
        // A year is at most 366 days, so this guess is never too late and at most a few years early.
        let mut year = day_number / 366;
        while days_before_year(year + 1) <= day_number {
            year += 1;
        }
        let day_of_year = day_number - days_before_year(year);
        let leap = i64::from(is_leap(year));
        let starts = |month: usize| DAYS_BEFORE_MONTH[month] + if month >= 2 { leap } else { 0 };
        let month = (0..12).rev().find(|month| starts(*month) <= day_of_year).unwrap_or(0);
        Self {
            second: (of_day % 60) as u8,
            minute: (of_day / 60 % 60) as u8,
            hour: (of_day / 3600) as u8,
            // 0000-01-01 was a Saturday.
            weekday: ((day_number + 6) % 7 + 1) as u8,
            day: (day_of_year - starts(month) + 1) as u8,
            month: month as u8 + 1,
            year: year as u16,
        }
    }

    /// Out-of-range fields carry over or are cut to the nearest that makes sense.
    pub(super) fn to_seconds(self) -> i64 {
        let year = i64::from(self.year);
        let month = usize::from(self.month.clamp(1, 12)) - 1;
        let leap = i64::from(month >= 2 && is_leap(year));
        let day = i64::from(self.day.max(1)) - 1;
        let days = days_before_year(year) + DAYS_BEFORE_MONTH[month] + leap + day - EPOCH;
        days * 86_400 + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_told_right() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (951_782_400, 2000, 2, 29, 3),
            (1_709_164_800, 2024, 2, 29, 5),
            (4_107_542_400, 2100, 3, 1, 2),
        ] {
            let date = Date::from_seconds(seconds);
            assert_eq!((date.year, date.month, date.day, date.weekday), (year, month, day, weekday));
            assert_eq!(date.to_seconds(), seconds);
        }
    }

    #[test]
    fn every_day_of_the_span_survives_the_round_trip() {
        for day in 0..SPAN {
            let seconds = (day - EPOCH) * 86_400 + 86_399;
            assert_eq!(Date::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
