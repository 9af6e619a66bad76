//! What a peer sends: a stream of frames, and each kind of payload.
#![no_main]

use std::fmt::Debug;
use std::sync::Arc;

use goldwire_replicate::wire::{
    ANSWER_RAW_MAX, Command, Event, Failure, Frame, Hello, Kind, PREAMBLE, Request, pack_answer,
    unpack_answer,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// More frames than this teach nothing: nothing is remembered between two of them.
const FRAMES_MAX: usize = 256;

fuzz_target!(|input: &[u8]| {
    // What a captured agent said starts with words for the shell and its preamble.
    let words = input.windows(PREAMBLE.len()).take(256).position(|window| window == PREAMBLE);
    let mut stream = &input[words.map_or(0, |at| at + PREAMBLE.len())..];
    for _ in 0..FRAMES_MAX {
        let before = stream;
        let Ok(Some(frame)) = Frame::read(&mut stream) else { break };
        let mut again = Vec::new();
        frame.write(&mut again).expect("a vector takes everything");
        assert_eq!(again, before[..before.len() - stream.len()], "a frame is written as it was read");
        look(&frame);
    }
    look(&Frame { kind: Kind::Request, stream: 0, id: 0, payload: Arc::new(input.to_vec().into()) });
});

fn look(frame: &Frame) {
    decode::<Hello>(frame);
    decode::<Command>(frame);
    decode::<Event>(frame);
    decode::<Failure>(frame);
    decode::<Request>(frame);
    // The caller knows the length from its own request; here the answer's own claim stands for it.
    let Some(claimed) = frame.payload.get(4..8) else { return };
    let claimed = u32::from_le_bytes(claimed.try_into().expect("four bytes")) as usize;
    for length in [claimed, 65_536] {
        if let Ok(raw) = unpack_answer(&frame.payload, length) {
            assert!(raw.len() == length && length <= ANSWER_RAW_MAX);
            let plain = pack_answer(&raw, None);
            assert_eq!(unpack_answer(&plain, length).expect("our own answer"), raw);
        }
    }
}

/// Bytes may spell a number in more than one way, so it is the message that has to survive.
fn decode<T: Serialize + DeserializeOwned + PartialEq + Debug>(frame: &Frame) {
    if let Ok(message) = frame.message::<T>("message") {
        let again = Frame::of(frame.kind, frame.stream, frame.id, &message);
        assert_eq!(again.message::<T>("message").expect("our own message"), message);
    }
}
