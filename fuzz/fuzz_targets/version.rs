//! A version descriptor.
#![no_main]

use goldwire_store::Version;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(version) = Version::decode(input) else { return };
    // Signed bytes cannot be made again without the key; all others can. The parent's place is ignored when there
    // is none, so bytes may differ where meaning does not.
    if version.signer.is_none() {
        let again = version.encode(None).expect("what was decoded is within the limits");
        assert_eq!(Version::decode(&again), Ok(version));
    }
});
