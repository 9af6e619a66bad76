//! What a balancer sends before the first request, or somebody who is taken for one.
#![no_main]

use goldwire_netboot::fuzzing::proxy_header::{HEADER_MAX, Origin, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match decode(input) {
        Ok(Some((origin, length))) => {
            assert!(length <= input.len() && length <= HEADER_MAX);
            // What is behind it, which may be TLS, is nobody's business here; and nothing shorter is a header.
            assert_eq!(decode(&input[..length]), Ok(Some((origin, length))));
            (0..length).for_each(|cut| assert_eq!(decode(&input[..cut]), Ok(None), "{cut}"));
            if let Origin::Client { source, destination } = origin {
                let again = encode(source, destination);
                assert_eq!(decode(&again), Ok(Some((origin, again.len()))));
            }
        }
        // A limit ends every wait for more.
        Ok(None) => assert!(input.len() < HEADER_MAX),
        Err(_) => {}
    }
});
