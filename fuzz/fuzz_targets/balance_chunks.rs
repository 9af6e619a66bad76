//! A member's chunked body as the balancing front takes it apart: however it arrives, the same content comes out.
#![no_main]

use goldwire_netboot::fuzzing::balance::Chunks;
use libfuzzer_sys::fuzz_target;

/// Content, bytes taken and whether the end came; a body that is refused gives what came before.
fn read(body: &[u8], step: usize) -> (Vec<u8>, Option<(usize, bool)>) {
    let (mut chunks, mut content, mut taken) = (Chunks::default(), Vec::new(), 0);
    for part in body.chunks(step) {
        let Ok(count) = chunks.take(part, |data| content.extend_from_slice(data)) else {
            return (content, None);
        };
        assert!(count == part.len() || chunks.is_end());
        taken += count;
        if chunks.is_end() {
            break;
        }
    }
    (content, Some((taken, chunks.is_end())))
}

fuzz_target!(|input: &[u8]| {
    let Some((step, body)) = input.split_first() else { return };
    let whole = read(body, body.len().max(1));
    assert_eq!(read(body, usize::from(*step).max(1)), whole);
    assert!(whole.0.len() < body.len().max(1));
});
