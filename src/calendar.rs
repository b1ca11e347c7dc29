//! Moments as text, in UTC.

use std::time::SystemTime;

/// Returns a moment as `YYYYmmdd-HHMMSS`, in UTC.
pub fn stamp(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil_date(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Returns a moment as RFC 3339 writes it, in UTC, to the second.
pub fn rfc3339(at: SystemTime) -> String {
    let text = stamp(at);
    let part = |range: std::ops::Range<usize>| &text[range];
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    )
}

/// The same to the millisecond.
pub fn rfc3339_milliseconds(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}Z", rfc3339(at).trim_end_matches('Z'), since.subsec_millis())
}

/// Year, month and day of a number of days since 1970-01-01, by whole 400-year cycles of the
/// Gregorian calendar counted from a March, so that the leap day ends a year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    let days = days + 719_468;
    let (cycle, day) = (days / CYCLE, days % CYCLE);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn stamps_are_right_around_leap_days() {
        // The expected values are those of `date -u -d @N +%Y%m%d-%H%M%S`.
        assert_eq!(stamp(at(0)), "19700101-000000");
        assert_eq!(stamp(at(951_782_400)), "20000229-000000");
        assert_eq!(stamp(at(1_709_251_199)), "20240229-235959");
        assert_eq!(stamp(at(4_107_542_400)), "21000301-000000");
        assert_eq!(rfc3339(at(1_709_251_199)), "2024-02-29T23:59:59Z");
        let later = at(1_709_251_199) + Duration::from_millis(7);
        assert_eq!(rfc3339_milliseconds(later), "2024-02-29T23:59:59.007Z");
    }
}
