//! The `Range` header (RFC 9110 §14): which bytes of a content are wanted.

/// Most ranges in one request; more are answered with the whole content, as the standard allows (§14.2).
const RANGES_MAX: usize = 32;

/// A part of a content: never empty, never past its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub offset: u64,
    /// Count of bytes.
    pub length: u64,
}

/// What a `Range` header comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole: the header is malformed, in another unit (some early iPXE versions sent what is no range), asks for
    /// more than there is in sum, or there is nothing to divide.
    Whole,
    /// These parts, in the order asked for.
    Parts(Vec<Part>),
    /// None of the parts is there: 416.
    Unsatisfiable,
}

/// Reads the value of a `Range` header for a content of `length` bytes.
pub fn parse(value: &str, length: u64) -> Wanted {
    let Some(list) = strip_unit(value) else { return Wanted::Whole };
    if length == 0 {
        return Wanted::Whole;
    }
    let mut parts = Vec::new();
    let mut is_any = false;
    for spec in list.split(',').map(|spec| spec.trim_matches([' ', '\t'])) {
        if spec.is_empty() {
            continue; // A list may have empty elements (§5.6.1).
        }
        is_any = true;
        match part(spec, length) {
            Some(Some(_)) if parts.len() == RANGES_MAX => return Wanted::Whole,
            Some(Some(part)) => parts.push(part),
            Some(None) => {}
            None => return Wanted::Whole,
        }
    }
    let sum = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.length));
    match parts.len() {
        0 if is_any => Wanted::Unsatisfiable,
        0 => Wanted::Whole,
        // Overlapping ranges that come to more than the content are how a small request is made a large answer.
        _ if sum > length => Wanted::Whole,
        _ => Wanted::Parts(parts),
    }
}

fn strip_unit(value: &str) -> Option<&str> {
    let (unit, list) = value.trim_matches([' ', '\t']).split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(list)
}

/// One range; the outer nothing is malformed, the inner one not satisfiable.
fn part(spec: &str, length: u64) -> Option<Option<Part>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?.min(length);
        return Some((suffix > 0).then(|| Part { offset: length - suffix, length: suffix }));
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some((first < length).then(|| Part { offset: first, length: last.min(length - 1) - first + 1 }))
}

/// Digits only; a number too large to hold is as good as the largest.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(value: &str, length: u64) -> Option<Vec<(u64, u64)>> {
        match parse(value, length) {
            Wanted::Parts(parts) => Some(parts.iter().map(|part| (part.offset, part.length)).collect()),
            _ => None,
        }
    }

    #[test]
    fn the_standards_examples() {
        assert_eq!(parts("bytes=0-499", 10_000), Some(vec![(0, 500)]));
        assert_eq!(parts("bytes=500-999", 10_000), Some(vec![(500, 500)]));
        assert_eq!(parts("bytes=-500", 10_000), Some(vec![(9500, 500)]));
        assert_eq!(parts("bytes=9500-", 10_000), Some(vec![(9500, 500)]));
        assert_eq!(parts("bytes=0-0,-1", 10_000), Some(vec![(0, 1), (9999, 1)]));
        assert_eq!(
            parts("bytes= 0-999, 4500-5499, -1000", 10_000),
            Some(vec![(0, 1000), (4500, 1000), (9000, 1000)])
        );
        assert_eq!(parts("Bytes=0-99999999999999999999999", 10), Some(vec![(0, 10)]));
        assert_eq!(parts("bytes=-99999999999999999999999", 10), Some(vec![(0, 10)]));
        assert_eq!(parts("bytes=5-6,100-", 10), Some(vec![(5, 2)]), "one that is not there is left out");
    }

    #[test]
    fn malformed_is_ignored_and_out_of_reach_is_said() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=2-1",
            "lines=1-2",
            "bytes=0--1",
            "bytes=+1-2",
            "=0-1",
            "bytes=1-2-3",
        ] {
            assert_eq!(parse(value, 10), Wanted::Whole, "{value}");
        }
        for value in ["bytes=10-", "bytes=10-11,12-", "bytes=-0", "bytes=18446744073709551615-"] {
            assert_eq!(parse(value, 10), Wanted::Unsatisfiable, "{value}");
        }
        assert_eq!(parse("bytes=0-", 0), Wanted::Whole);
        assert_eq!(parse("bytes=0-9,0-9", 10), Wanted::Whole, "no amplification");
        let many = (0..=RANGES_MAX).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&format!("bytes={many}"), 1000), Wanted::Whole);
    }

    /// What the standard says, byte by byte: which bytes of a content one range selects.
    fn model(spec: (Option<u64>, Option<u64>), length: u64) -> Option<Vec<u64>> {
        match spec {
            (None, None) => None,
            (None, Some(suffix)) => Some((0..length).filter(|at| length - at <= suffix).collect()),
            (Some(first), None) => Some((0..length).filter(|at| *at >= first).collect()),
            (Some(first), Some(last)) if last < first => None,
            (Some(first), Some(last)) => Some((0..length).filter(|at| (first..=last).contains(at)).collect()),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_model(
            length in 1_u64..40,
            specs in prop::collection::vec((prop::option::of(0_u64..50), prop::option::of(0_u64..50)), 1..5),
        ) {
            let text = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
            let list: Vec<_> = specs.iter().map(|(a, b)| format!("{}-{}", text(*a), text(*b))).collect();
            let got = parse(&format!("bytes={}", list.join(",")), length);
            let selected: Option<Vec<Vec<u64>>> = specs.iter().map(|spec| model(*spec, length)).collect();
            let wanted = match selected {
                None => Wanted::Whole,
                Some(all) => {
                    let there: Vec<_> = all.into_iter().filter(|bytes| !bytes.is_empty()).collect();
                    if there.is_empty() {
                        Wanted::Unsatisfiable
                    } else if there.iter().map(Vec::len).sum::<usize>() as u64 > length {
                        Wanted::Whole
                    } else {
                        Wanted::Parts(there.iter().map(|b| Part { offset: b[0], length: b.len() as u64 }).collect())
                    }
                }
            };
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn total_and_inside(value in "(bytes=)?[-0-9, a]{0,60}", length in any::<u64>()) {
            if let Wanted::Parts(parts) = parse(&value, length) {
                prop_assert!(parts.len() <= RANGES_MAX);
                for part in parts {
                    prop_assert!(part.length > 0 && part.offset.checked_add(part.length).is_some_and(|end| end <= length));
                }
            }
        }
    }
}
