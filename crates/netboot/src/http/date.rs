//! Dates as HTTP writes them (RFC 9110 §5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`, whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last second of the year 9999, past which the form has no digits.
const LAST: u64 = 253_402_300_799;

/// Writes a time; one that the form cannot say is written as the nearest that it can.
pub(super) fn format(time: SystemTime) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds_of(time).min(LAST)))
}

/// Reads a time in any of the three forms that a recipient has to take. What is no date (its weekday has
/// to be right, too), or lies before 1970, is nothing, and a header that holds nothing is ignored (RFC 9110 §13.1.3).
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// Whole seconds since 1970.
pub(super) fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_standards_example_in_its_three_forms() {
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(format(time), "Sun, 06 Nov 1994 08:49:37 GMT");
        for text in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse(text), Some(time), "{text}");
        }
        assert_eq!(format(UNIX_EPOCH + Duration::from_secs(1_709_164_800)), "Thu, 29 Feb 2024 00:00:00 GMT");
    }

    #[test]
    fn times_that_the_form_cannot_say() {
        let first = "Thu, 01 Jan 1970 00:00:00 GMT";
        assert_eq!(format(UNIX_EPOCH), first);
        assert_eq!(format(UNIX_EPOCH - Duration::from_secs(1)), first);
        let last = "Fri, 31 Dec 9999 23:59:59 GMT";
        for more in [0, 1, 1 << 40] {
            assert_eq!(format(UNIX_EPOCH + Duration::from_secs(LAST + more)), last);
        }
    }

    #[test]
    fn what_is_no_date() {
        for text in [
            "",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Fri, 31 Feb 2023 00:00:00 GMT",
            "Sun, 00 Jan 2023 00:00:00 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1960 08:49:37 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "Sün, 06 Nov 1994 08:49:37 GM",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in 0..=LAST) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(parse(&format(time)), Some(time));
        }

        #[test]
        fn total(text in "\\PC{0,40}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT") {
            let _ = parse(&text);
        }
    }
}
