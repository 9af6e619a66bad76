//! Times as people read them.

/// Seconds since 1970 as UTC, such as `2026-11-22 06:34:00Z`.
pub(crate) fn format_time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        // Past the year 9999, or before -9999: a footer can hold no such time, a file system can.
        Err(_) => format!("{seconds} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_utc() {
        assert_eq!(format_time(0), "1970-01-01 00:00:00Z");
        assert_eq!(format_time(946_684_800), "2000-01-01 00:00:00Z");
        assert_eq!(format_time(1_709_208_000), "2024-02-29 12:00:00Z");
        assert_eq!(format_time(-1), "1969-12-31 23:59:59Z");
        assert!(format_time(i64::MIN).starts_with("-9223372036854775808 s"));
    }
}
