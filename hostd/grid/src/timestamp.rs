//! Points in time as deployments have them: seconds since 1970, or on input a date of RFC 3339.

use std::fmt;

use serde::Serialize;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

const SECONDS_OF_DAY: i64 = 86_400;
/// Days of 400 years.
const DAYS_OF_CYCLE: i64 = 146_097;

impl Timestamp {
    /// Reads `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`, strictly. A fraction is dropped.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let (date, time) = text.split_at_checked(10)?;
        let (year, month, day) = match date.as_bytes() {
            [y @ .., b'-', m1, m2, b'-', d1, d2] => {
                (number(y)?, number(&[*m1, *m2])?, number(&[*d1, *d2])?)
            }
            _ => return None,
        };
        let (clock, rest) = time.strip_prefix('T')?.split_at_checked(8)?;
        let [h1, h2, b':', m1, m2, b':', s1, s2] = *clock.as_bytes() else { return None };
        let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
        let in_range = (1..=12).contains(&month)
            && (1..=days_of_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let offset = offset_seconds(without_fraction(rest)?)?;
        let seconds =
            days_since_1970(year, month, day) * SECONDS_OF_DAY + hour * 3600 + minute * 60 + second
                - offset;
        in_range.then_some(Self(seconds))
    }
}

impl fmt::Display for Timestamp {
    /// As RFC 3339 has it, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.div_euclid(SECONDS_OF_DAY), self.0.rem_euclid(SECONDS_OF_DAY));
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn without_fraction(text: &str) -> Option<&str> {
    match text.strip_prefix('.') {
        None => Some(text),
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
            (rest.len() < fraction.len()).then_some(rest)
        }
    }
}

fn offset_seconds(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let [sign, h1, h2, b':', m1, m2] = *text.as_bytes() else { return None };
    let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
    let seconds = hours * 3600 + minutes * 60;
    match sign {
        _ if hours > 23 || minutes > 59 => None,
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar from 0000-01-01 to the first of a year.
fn days_before(year: i64) -> i64 {
    year * 365 + (year + 3).div_euclid(4) - (year + 99).div_euclid(100)
        + (year + 399).div_euclid(400)
}

/// Days from 1970-01-01 to a date.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let months: i64 = (1..month).map(|month| days_of_month(year, month)).sum();
    days_before(year) - days_before(1970) + months + day - 1
}

/// Year, month and day, so many days after 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + days_before(1970);
    // The calendar is the same again every 400 years.
    let (cycle, days) = (days.div_euclid(DAYS_OF_CYCLE), days.rem_euclid(DAYS_OF_CYCLE));
    let mut year = days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let (mut month, mut day) = (1, days - days_before(year));
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    (cycle * 400 + year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<i64> {
        Timestamp::from_rfc3339(text).map(|timestamp| timestamp.0)
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("2023-11-14T23:13:20.5+01:00"), Some(1_700_000_000));
        assert_eq!(read("2000-02-29T00:00:00Z"), Some(951_782_400));
        assert_eq!(read("1969-12-31T23:59:59Z"), Some(-1));
        assert_eq!(read("0000-01-01T00:00:00Z"), Some(-62_167_219_200));
        assert_eq!(read("9999-12-31T23:59:59-23:59"), Some(253_402_300_799 + 86_340));
    }

    #[test]
    fn dates_are_shown_as_they_are_read() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2023-11-14T22:13:20Z",
            "2000-02-29T23:59:59Z",
            "1969-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "2100-03-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(Timestamp::from_rfc3339(text).unwrap().to_string(), text);
        }
        for seconds in [i64::MIN, i64::MAX] {
            assert!(Timestamp(seconds).to_string().ends_with('Z'), "{seconds}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14t22:13:20Z",
            "2023-11-14 22:13:20Z",
            "2023-13-14T22:13:20Z",
            "2023-02-29T22:13:20Z",
            "2023-11-14T24:13:20Z",
            "2023-11-14T22:13:60Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20,5Z",
            "2023-11-14T22:13:20+24:00",
            "2023-11-14T22:13:20+1:00",
            "+023-11-14T22:13:20Z",
            "2023-11-14T22:13:20Zx",
            "2023-11-1äT22:13:20Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
