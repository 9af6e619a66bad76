//! What a stranger sends to the HTTP server: a head, a `Range`. Nothing of it may panic, reach beyond a content, or leave
//! a path that a folder could misread.
#![no_main]

use goldwire_netboot::fuzzing::http::{Wanted, parse_range, parse_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((request, length))) = parse_request(data) {
        assert!(length <= data.len());
        assert!(
            !request.path.contains('\0') && !request.path.starts_with('/') && !request.path.contains("//")
        );
        if let Some(value) = &request.range {
            check_range(value, 1_000_000);
        }
        // Every shorter beginning is either not whole or as bad as the whole would be.
        assert!(!matches!(parse_request(&data[..length - 1]), Ok(Some((_, longer))) if longer >= length));
    }
    if let Some((first, rest)) = data.split_first_chunk::<8>()
        && let Ok(value) = std::str::from_utf8(rest)
    {
        check_range(value, u64::from_le_bytes(*first));
    }
});

fn check_range(value: &str, length: u64) {
    if let Wanted::Parts(parts) = parse_range(value, length) {
        let mut sum = 0_u64;
        for part in parts {
            assert!(part.length > 0 && part.offset.checked_add(part.length).is_some_and(|end| end <= length));
            sum += part.length;
        }
        assert!(sum <= length);
    }
}
