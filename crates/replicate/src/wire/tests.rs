//! Frames and answers round trip, and foreign bytes are refused.

use std::sync::Arc;

use super::frame::HEADER_LENGTH;
use super::*;
use proptest::prelude::*;

#[test]
fn frames_round_trip_and_a_torn_one_is_an_error() {
    let frame = Frame::of(
        Kind::Request,
        3,
        77,
        &Request::Blocks { wants: vec![(5, 0xffff), (1 << 40, 1)], is_delta: true },
    );
    let mut bytes = Vec::new();
    frame.write(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, frame.length());
    assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap(), Some(frame));
    assert!(Frame::read(&mut [].as_slice()).unwrap().is_none());
    for length in 1..bytes.len() {
        assert!(Frame::read(&mut &bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn an_absurd_length_allocates_nothing() {
    let mut header = [0xff; HEADER_LENGTH];
    header[4..6].copy_from_slice(&5_u16.to_le_bytes());
    assert!(matches!(Frame::read(&mut header.as_slice()), Err(WireError::Header(_))));
}

#[test]
fn answers_unpack_to_what_was_packed_and_to_nothing_else() {
    let raw: Vec<u8> = (0..100_000_u32).map(|n| (n / 100) as u8).collect();
    let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
    for payload in [pack_answer(&raw, None), pack_answer(&raw, Some(&mut compressor))] {
        assert_eq!(unpack_answer(&payload, raw.len()).unwrap(), raw);
        assert!(unpack_answer(&payload, raw.len() - 1).is_err());
        assert!(unpack_answer(&payload[..payload.len() - 1], raw.len()).is_err());
    }
    assert!(unpack_answer(&[2; 20], 0x0202_0202).is_err());
    assert!(unpack_answer(&[0; 5], 0).is_err());
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::read(&mut bytes.as_slice());
        let frame = Frame { kind: Kind::Request, stream: 0, id: 0, payload: Arc::new(bytes.into()) };
        let _ = frame.message::<Request>("request");
        let _ = frame.message::<Command>("command");
        let _ = frame.message::<Event>("event");
        let _ = unpack_answer(&frame.payload, 300);
    }
}
