use super::*;
use proptest::prelude::*;

fn message() -> Message {
    let mut message = Message::request(MessageType::DISCOVER, Mac([2, 0, 0, 0, 0, 1]), 7);
    message.options.set(code::VENDOR_CLASS, *b"PXEClient");
    message
}

#[test]
fn long_options_are_split_and_joined() {
    let mut long = message();
    long.options.set(code::BOOT_FILE, vec![b'x'; 600]);
    let bytes = long.encode(SIZE_MAX);
    assert_eq!(Message::decode(&bytes), Ok(long));
}

#[test]
fn what_does_not_fit_goes_into_file_and_sname() {
    let mut large = message();
    large.options.set(code::BOOT_FILE, vec![b'u'; 230]);
    large.options.set(code::DOMAIN_NAME, vec![b'd'; 100]);
    large.options.set(code::ROOT_PATH, vec![b'r'; 50]);
    let bytes = large.encode(SIZE_MIN);
    assert!(bytes.len() <= SIZE_MIN);
    let read = Message::decode(&bytes).unwrap();
    for (code, value) in large.options.iter() {
        assert_eq!(read.options.get(code), Some(value), "{code}");
    }
    // A field that is in use is left alone, and then the last option is what gives way.
    large.file = b"undionly.kpxe".to_vec();
    large.sname = b"boot".to_vec();
    let read = Message::decode(&large.encode(SIZE_MIN)).unwrap();
    assert_eq!((read.file.as_slice(), read.sname.as_slice()), (&b"undionly.kpxe"[..], &b"boot"[..]));
    assert!(read.options.has(code::BOOT_FILE) && !read.options.has(code::DOMAIN_NAME));
}

#[test]
fn nonsense_is_refused_with_its_place() {
    let good = message().encode(SIZE_MIN);
    assert_eq!(Message::decode(&good[..239]), Err(DecodeError::Short(239)));
    assert_eq!(Message::decode(&vec![0; 5000]), Err(DecodeError::Long(5000)));
    let mut bad = good.clone();
    bad[236] = 0;
    assert_eq!(Message::decode(&bad), Err(DecodeError::NoCookie));
    let mut bad = good.clone();
    bad[2] = 17;
    assert_eq!(Message::decode(&bad), Err(DecodeError::HardwareLength(17)));
    let mut bad = good[..246].to_vec();
    bad[243] = 67;
    bad[244] = 9;
    assert_eq!(Message::decode(&bad), Err(DecodeError::Truncated { code: 67, at: 243 }));
}

#[test]
fn sizes_follow_option_57() {
    let mut message = message();
    assert_eq!(message.reply_size_max(), 548);
    for (announced, size) in [(100_u16, 548), (576, 548), (1472, 1444), (65280, 1472)] {
        message.options.set(code::MESSAGE_SIZE_MAX, announced.to_be_bytes());
        assert_eq!(message.reply_size_max(), size, "{announced}");
    }
}

proptest! {
    /// The rule: whatever else there is, and however little room, what an answer is none without is in it, and what the
    /// relay needs is last in the message proper, where relays look for it.
    #[test]
    fn what_must_not_be_lost_has_its_room_first(
        circuit in 1..250_usize,
        url in 0..250_usize,
        others in prop::collection::btree_map(
            prop_oneof![Just(3_u8), Just(6), Just(12), Just(15), Just(43), Just(60), Just(97), Just(119), Just(61)],
            prop::collection::vec(any::<u8>(), 0..120),
            0..8,
        ),
        size_max in prop_oneof![Just(0), Just(548), 548..1473_usize],
        is_first in any::<bool>(),
    ) {
        let mut request = Message::request(MessageType::DISCOVER, Mac([2; 6]), 1);
        request.giaddr = Ipv4Addr::new(10, 0, 0, 1);
        let mut reply = Message::reply_to(&request, MessageType::OFFER);
        let set_url = |reply: &mut Message| {
            if url > 0 {
                reply.options.set(code::BOOT_FILE, vec![b'u'; url]);
            }
        };
        if is_first {
            set_url(&mut reply);
        }
        others.iter().for_each(|(code, value)| reply.options.set(*code, value.clone()));
        reply.options.set(code::SERVER_ID, [10, 0, 0, 1]);
        reply.options.set(code::LEASE_TIME, [0, 0, 1, 0]);
        reply.options.set(code::SUBNET_MASK, [255, 255, 255, 0]);
        set_url(&mut reply);
        reply.options.set(code::RELAY_AGENT, vec![7; circuit]);
        let bytes = reply.encode(size_max);
        prop_assert!(bytes.len() <= size_max.max(548));
        let read = Message::decode(&bytes).unwrap();
        for code in ESSENTIAL {
            prop_assert_eq!(read.options.get(code), reply.options.get(code), "option {}", code);
        }
        for (code, value) in read.options.iter() {
            prop_assert_eq!(reply.options.get(code), Some(value), "option {} is whole or left out", code);
        }
        let mut proper = Options::default();
        decode_options(&bytes, HEADER + 4..bytes.len(), &mut proper).unwrap();
        prop_assert_eq!(proper.iter().last().map(|(code, _)| code), Some(code::RELAY_AGENT));
        // What there is room for is there.
        if is_first && url > 0 && url + circuit <= 250 {
            prop_assert!(read.options.has(code::BOOT_FILE));
        }
    }
}

/// The relay's option is written last. That a message had it before another one is no difference.
#[test]
fn the_place_of_the_relays_option_is_no_difference() {
    let mut sent = Message::request(MessageType::REQUEST, Mac([2, 0, 0, 0, 0, 9]), 0);
    sent.options.set(code::RELAY_AGENT, []);
    sent.options.set(83, []);
    assert_eq!(Message::decode(&sent.encode(SIZE_MAX)), Ok(sent));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = Message::decode(&bytes);
        let mut framed = message().encode(SIZE_MIN);
        framed.truncate(240);
        framed.extend(&bytes);
        let _ = Message::decode(&framed);
    }

    #[test]
    fn what_is_read_is_written_the_same(
        options in proptest::collection::btree_map(1_u8..255, proptest::collection::vec(any::<u8>(), 0..40), 0..12),
        xid: u32, flags: u16, file in "[a-z]{0,20}",
    ) {
        let mut sent = Message::request(MessageType::REQUEST, Mac([2, 0, 0, 0, 0, 9]), xid);
        sent.flags = flags;
        sent.file = file.into_bytes();
        for (code, value) in options.into_iter().filter(|(code, _)| *code != code::OVERLOAD && *code != code::MESSAGE_TYPE) {
            sent.options.set(code, value);
        }
        prop_assert_eq!(Message::decode(&sent.encode(SIZE_MAX)), Ok(sent));
    }
}
