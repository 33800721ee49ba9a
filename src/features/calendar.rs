//! Points in time: what the calendar says of them (in UTC), and waves of given periods.
//!
//! The date of a day is by the algorithm of Hinnant, "chrono-compatible low-level date algorithms" (2013), `civil_from_days`, which is right
//! for every day of the proleptic Gregorian calendar. A wave of period T and order K is sin(2πkt/T), cos(2πkt/T) for k = 1 … K with t counted
//! from 1970-01-01T00:00Z (Hyndman & Athanasopoulos, *Forecasting: Principles and Practice*, 3rd ed., §7.4, dynamic harmonic regression).

use serde::{Deserialize, Serialize};

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;
const HOUR: i64 = DAY / 24;

/// A part of a date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// 0 to 23.
    Hour,
    /// 1 (Monday) to 7.
    Weekday,
    /// 1 to 12.
    Month,
    /// 1 to 366.
    Yearday,
}

const WEEKDAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];

impl Part {
    /// The part of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hour, Self::Weekday, Self::Month, Self::Yearday].into_iter().find(|part| part.as_str() == text)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Weekday => "weekday",
            Self::Month => "month",
            Self::Yearday => "yearday",
        }
    }

    /// How many values it has.
    #[must_use]
    pub fn values(self) -> usize {
        match self {
            Self::Hour => 24,
            Self::Weekday => 7,
            Self::Month => 12,
            Self::Yearday => 366,
        }
    }

    /// The name of one of them, counted from 0.
    pub(super) fn name(self, value: usize) -> String {
        match self {
            Self::Hour => value.to_string(),
            Self::Weekday => WEEKDAYS.get(value).copied().unwrap_or_default().to_owned(),
            Self::Month => MONTHS.get(value).copied().unwrap_or_default().to_owned(),
            Self::Yearday => (value + 1).to_string(),
        }
    }

    /// One of them, counted from 0, as the number that people say.
    pub(super) fn number(self, value: usize) -> f64 {
        #[allow(clippy::cast_precision_loss)] // at most 366
        let value = value as f64;
        if self == Self::Hour { value } else { value + 1.0 }
    }

    /// The value at a moment, counted from 0.
    pub(super) fn of(self, moment: &Moment) -> usize {
        match self {
            Self::Hour => moment.hour,
            Self::Weekday => moment.weekday,
            Self::Month => moment.month,
            Self::Yearday => moment.yearday,
        }
    }
}

/// What the calendar says of a point in time; all counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    hour: usize,
    weekday: usize,
    month: usize,
    yearday: usize,
}

/// The moment so many microseconds after the beginning of 1970.
pub(super) fn moment(microseconds: f64) -> Moment {
    #[allow(clippy::cast_possible_truncation)] // a timestamp, which came from an i64
    let microseconds = microseconds as i64;
    let (days, within) = (microseconds.div_euclid(DAY), microseconds.rem_euclid(DAY));
    // Days since 0000-03-01, in eras of 400 years; years begin in March, so that leap days are their last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let (month, next_year) = if march_month < 10 { (march_month + 2, 0) } else { (march_month - 10, 1) };
    let year = year_of_era + 400 * era + next_year;
    let leap = i64::from(year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0));
    // January and February, 306 days after the first of March.
    let yearday = if march_month < 10 { day_of_year + 59 + leap } else { day_of_year - 306 };
    let small = |value: i64| usize::try_from(value).unwrap_or_default();
    // 1970-01-01 was a Thursday.
    Moment { hour: small(within / HOUR), weekday: small((days + 3).rem_euclid(7)), month: small(month), yearday: small(yearday) }
}

/// Waves of a period.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Season {
    /// As it was given: `7d`.
    pub period: String,
    /// The period in days.
    pub days: f64,
    /// How many waves, each a whole number of times as fast as the first.
    pub order: u32,
}

impl Season {
    /// Waves of a period such as `1d`, `365.25d` or `12h`; nothing where it is not one.
    #[must_use]
    pub fn parse(period: &str, order: u32) -> Option<Self> {
        let unit = period.chars().last()?;
        let days = match unit {
            'd' => 1.0,
            'h' => 1.0 / 24.0,
            _ => return None,
        };
        let days = period.strip_suffix(unit)?.parse::<f64>().ok()? * days;
        // Shorter ones are finer than timestamps; longer ones are longer than they reach.
        (1e-6..=1e6).contains(&days).then(|| Self { period: period.to_owned(), days, order })
    }

    pub(super) fn width(&self) -> usize {
        2 * self.order as usize
    }

    pub(super) fn names(&self, column: &str) -> Vec<String> {
        (1..=self.order).flat_map(|wave| ["sin", "cos"].map(|kind| format!("{column}:{kind}{wave}({})", self.period))).collect()
    }

    /// The waves at a point in time: sine and cosine of each.
    pub(super) fn waves(&self, microseconds: f64, out: &mut [f64]) {
        #[allow(clippy::cast_precision_loss)] // exact
        let period = self.days * DAY as f64;
        let turn = microseconds.rem_euclid(period) / period;
        for (wave, out) in (1..=self.order).zip(out.chunks_exact_mut(2)) {
            let (sine, cosine) = (std::f64::consts::TAU * (f64::from(wave) * turn).fract()).sin_cos();
            out.copy_from_slice(&[sine, cosine]);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_agrees_with_jiff() {
        // A step that visits all hours and all days of leap and common years, from 1500 on.
        for step in 0..60_000_i64 {
            let microseconds = -14_800_000_000_000_000 + step * 449_357_000_000;
            let there = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::from_microsecond(microseconds).unwrap());
            #[allow(clippy::cast_precision_loss)]
            let found = moment(microseconds as f64);
            let expected = Moment {
                hour: there.hour() as usize,
                weekday: there.weekday().to_monday_zero_offset() as usize,
                month: there.month() as usize - 1,
                yearday: there.day_of_year() as usize - 1,
            };
            assert_eq!(found, expected, "{there}");
        }
    }

    #[test]
    fn a_wave_returns_after_its_period() {
        let season = Season::parse("7d", 2).unwrap();
        let (mut now, mut later) = ([0.0; 4], [0.0; 4]);
        let quarter = 7.0 * 86_400e6 / 4.0;
        season.waves(quarter, &mut now);
        season.waves(quarter + 52.0 * 7.0 * 86_400e6, &mut later);
        assert_eq!(now, later);
        for (found, expected) in now.into_iter().zip([1.0, 0.0, 0.0, -1.0]) {
            assert!((found - expected).abs() < 1e-15, "{now:?}");
        }
        assert_eq!(season.names("at"), ["at:sin1(7d)", "at:cos1(7d)", "at:sin2(7d)", "at:cos2(7d)"]);
        for wrong in ["", "d", "7", "0d", "-1d", "7w", "infd", "nand", "7 d"] {
            assert_eq!(Season::parse(wrong, 1), None, "{wrong}");
        }
    }
}
