//! Parses and formats times, as milliseconds since the epoch.

use clap::ValueEnum;
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

/// The forms that [`parse`] accepts, for error messages.
pub(crate) const FORMS: &str = "RFC 3339 (2024-05-01T12:00:00Z), YYYY-MM-DD HH:MM[:SS[.fff]] or YYYY/MM/DD HH:MM \
                                (UTC if no zone is given), or seconds or milliseconds since 1970";

/// Numbers from this value on are milliseconds, smaller numbers are seconds. As seconds this is the year 5138, as
/// milliseconds it is March 1973.
const MILLISECONDS_FROM: f64 = 1e11;

/// Numbers from this value on cannot be milliseconds: as milliseconds this is the year 5138, as microseconds it is
/// March 1973.
const MICROSECONDS_FROM: f64 = 1e14;

/// Unit of a time that is written as a number since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unit {
    /// Seconds
    S,
    /// Milliseconds
    Ms,
    /// Microseconds
    Us,
    /// Nanoseconds
    Ns,
}

/// Parses a time in any of the [`FORMS`], and returns milliseconds since the epoch.
pub(crate) fn parse(text: &str) -> Option<i64> {
    parse_in(None, text)
}

/// Like [`parse`], with the given unit for numbers. Without a unit, a number is seconds or milliseconds, and numbers
/// that are too large for either are rejected.
pub(crate) fn parse_in(unit: Option<Unit>, text: &str) -> Option<i64> {
    let text = text.trim();
    parse_date(text).or_else(|| parse_number(unit, text))
}

/// Returns whether a number without a unit is so large that it must be micro- or nanoseconds.
pub(crate) fn is_finer_than_ms(text: &str) -> bool {
    number(text.trim()).is_some_and(|number| number >= MICROSECONDS_FROM)
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|_| text.starts_with(|first: char| first.is_ascii_digit()))
}

fn parse_number(unit: Option<Unit>, text: &str) -> Option<i64> {
    // Integers are converted exactly where possible, because an `f64` cannot hold nanoseconds.
    let whole: Option<i64> = text.parse().ok().filter(|whole| *whole >= 0);
    let number = number(text)?;
    let ms = match unit {
        None if number >= MICROSECONDS_FROM => return None,
        None if number >= MILLISECONDS_FROM => number,
        None | Some(Unit::S) => number * 1e3,
        Some(Unit::Ms) => number,
        Some(Unit::Us) => whole.map_or(number / 1e3, |whole| (whole / 1_000) as f64),
        Some(Unit::Ns) => whole.map_or(number / 1e6, |whole| (whole / 1_000_000) as f64),
    };
    (ms < i64::MAX as f64).then_some(ms.round() as i64)
}

/// Parses `YYYY-MM-DD` or `YYYY/MM/DD`, optionally followed by `T` or a space and `HH:MM[:SS[.fff]]`, and then by `Z`
/// or `±HH:MM`. Times before 1970 are rejected, because -1 means no timestamp in a record.
pub(crate) fn parse_date(text: &str) -> Option<i64> {
    let mut rest = text;
    let year = digits(&mut rest, 4)?;
    let separator = if rest.starts_with('/') { '/' } else { '-' };
    take(&mut rest, separator)?;
    let month = digits(&mut rest, 2)? as u8;
    take(&mut rest, separator)?;
    let day = digits(&mut rest, 2)? as u8;
    let date = Date::from_calendar_date(year as i32, Month::try_from(month).ok()?, day).ok()?;
    let time = if rest.is_empty() { Time::MIDNIGHT } else { clock(&mut rest)? };
    let offset = if rest.is_empty() { UtcOffset::UTC } else { zone(&mut rest)? };
    if !rest.is_empty() {
        return None;
    }
    let nanoseconds = date.with_time(time).assume_offset(offset).unix_timestamp_nanos();
    i64::try_from(nanoseconds.div_euclid(1_000_000)).ok().filter(|ms| *ms >= 0)
}

fn clock(rest: &mut &str) -> Option<Time> {
    take(rest, 'T').or_else(|| take(rest, 't')).or_else(|| take(rest, ' '))?;
    let hour = digits(rest, 2)? as u8;
    take(rest, ':')?;
    let minute = digits(rest, 2)? as u8;
    let (mut second, mut nanosecond) = (0, 0);
    if take(rest, ':').is_some() {
        second = digits(rest, 2)? as u8;
        if take(rest, '.').is_some() {
            let count = rest.bytes().take_while(u8::is_ascii_digit).count();
            let fraction = rest.get(..count).filter(|fraction| !fraction.is_empty())?;
            nanosecond = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
            *rest = &rest[count..];
        }
    }
    Time::from_hms_nano(hour, minute, second, nanosecond).ok()
}

fn zone(rest: &mut &str) -> Option<UtcOffset> {
    if take(rest, 'Z').or_else(|| take(rest, 'z')).is_some() {
        return Some(UtcOffset::UTC);
    }
    let sign = if take(rest, '-').is_some() { -1 } else { take(rest, '+').map(|()| 1)? };
    let hours = digits(rest, 2)? as i8;
    take(rest, ':')?;
    let minutes = digits(rest, 2)? as i8;
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

fn digits(rest: &mut &str, count: usize) -> Option<u32> {
    let (number, after) = rest.split_at_checked(count)?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    *rest = after;
    number.parse().ok()
}

fn take(rest: &mut &str, expected: char) -> Option<()> {
    *rest = rest.strip_prefix(expected)?;
    Some(())
}

/// Formats a time as `2024-05-01T12:00:00.000Z`. A time outside the range of the calendar is printed as a number.
pub(crate) fn format(timestamp_ms: i64) -> String {
    let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000) else {
        return timestamp_ms.to_string();
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_the_help_names_is_read() {
        let noon = Some(1_714_564_800_000);
        for text in [
            "2024-05-01T12:00:00Z",
            "2024-05-01t12:00:00.000z",
            "2024-05-01T14:00:00+02:00",
            "2024-05-01T03:30:00-08:30",
            "2024-05-01 12:00",
            "2024-05-01T12:00:00",
            "2024/05/01 12:00",
            "1714564800",
            "1714564800.0",
            "1714564800000",
        ] {
            assert_eq!(parse(text), noon, "{text}");
        }
        assert_eq!(parse("2024-05-01T12:00:00.1239"), Some(1_714_564_800_123));
        assert_eq!(parse("2024-05-01"), Some(1_714_521_600_000));
        assert_eq!(parse("1714564800.25"), Some(1_714_564_800_250));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "soon", "2024-13-01", "2024-02-30", "2024-05/01", "2024-05-01 25:00", "2024-05-01T12:00:00X"] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["-5", "1969-12-31", "nan", "inf", "1e400", "2024-05-01T12:00:00.Z", "2024-05-01 12:00 "] {
            assert_eq!(parse(text), None.or((text == "2024-05-01 12:00 ").then_some(1_714_564_800_000)), "{text}");
        }
    }

    #[test]
    fn a_number_counts_the_unit_that_is_named_and_nothing_is_guessed_to_be_finer_than_milliseconds() {
        let text = "1714564800123456789";
        assert_eq!(parse_in(Some(Unit::Ns), text), Some(1_714_564_800_123));
        assert_eq!(parse_in(Some(Unit::Us), &text[..16]), Some(1_714_564_800_123));
        assert_eq!(parse_in(Some(Unit::Ms), &text[..13]), Some(1_714_564_800_123));
        assert_eq!(parse_in(Some(Unit::S), "1714564800.123"), Some(1_714_564_800_123));
        assert_eq!(parse_in(Some(Unit::Ms), "5"), Some(5), "not seconds");
        assert_eq!(parse_in(Some(Unit::S), "100000000000"), Some(100_000_000_000_000), "not milliseconds");
        assert_eq!(parse_in(Some(Unit::Ns), "2024-05-01"), parse("2024-05-01"), "a date has no unit");
        for finer in [text, &text[..16], "1.7145648e18", "1e14"] {
            assert_eq!(parse(finer), None, "{finer}");
            assert!(is_finer_than_ms(finer), "{finer}");
        }
        for plain in [&text[..13], "99999999999999", "soon", "-1e15", ""] {
            assert!(!is_finer_than_ms(plain), "{plain}");
        }
    }

    #[test]
    fn a_formatted_time_is_read_back() {
        for ms in [0, 1, 978_310_020_000, 1_714_564_800_123] {
            assert_eq!(parse(&format(ms)), Some(ms));
        }
        assert_eq!(format(978_310_020_000), "2001-01-01T00:47:00.000Z");
    }
}
