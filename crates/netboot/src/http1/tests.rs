//! What a head means must not depend on who reads it.

use proptest::prelude::*;

use super::*;

fn request(fields: &str) -> Result<RequestHead, BadHead> {
    let head = format!("GET / HTTP/1.1\r\n{fields}\r\n");
    RequestHead::decode(head.as_bytes()).map(|read| read.unwrap().0)
}

#[test]
fn a_request_that_two_could_read_differently_is_refused() {
    for (fields, expected) in [
        ("", BadHead::Host),
        ("Host: a\r\nHost: a\r\n", BadHead::Host),
        ("Host: a\r\nhOST: b\r\n", BadHead::Host),
        ("Host: a, b\r\n", BadHead::Host),
        ("Host: a b\r\n", BadHead::Host),
        ("Host: a/b\r\n", BadHead::Host),
        ("Host: a\r\nContent-Length: x\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: +1\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: -1\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length:\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: 1, 1\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: 18446744073709551616\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: 0\r\ncontent-length: 0\r\n", BadHead::Length),
        ("Host: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n", BadHead::Length),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", BadHead::Length),
        ("Host: a\r\nTransfer-Encoding: identity\r\n", BadHead::Length),
        ("Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BadHead::Length),
        ("Host : a\r\n", BadHead::Malformed),
        ("Host: a\r\n X: folded\r\n", BadHead::Malformed),
    ] {
        assert_eq!(request(fields), Err(expected), "{fields:?}");
    }
    let unreadable = RequestHead::decode(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xff\r\n\r\n");
    assert_eq!(unreadable, Err(BadHead::Length));
    let old = RequestHead::decode(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(old, Err(BadHead::Length));
    assert_eq!(
        RequestHead::decode(b"GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().0.persistence,
        Persistence::Close
    );
    for (fields, has_body) in [
        ("Host: a\r\n", false),
        ("Host: [2001:db8::1]:8080\r\n", false),
        ("Host:\r\n", false),
        ("Host: a\r\nContent-Length: 00\r\n", false),
        ("Host: a\r\nContent-Length: 1\r\n", true),
        ("Host: a\r\nTransfer-Encoding: Chunked\r\n", true),
    ] {
        assert_eq!(request(fields).map(|head| head.has_body), Ok(has_body), "{fields:?}");
    }
}

#[test]
fn how_the_body_of_an_answer_ends() {
    for (fields, expected) in [
        ("", Ok(Framing::UntilClose)),
        ("Content-Length: 7\r\n", Ok(Framing::Length(7))),
        ("Content-Length: 0\r\n", Ok(Framing::Empty)),
        ("Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked)),
        ("Transfer-Encoding: gzip, chunked\r\n", Err(())),
        ("Transfer-Encoding: chunked\r\nContent-Length: 7\r\n", Err(())),
        ("Content-Length: 7\r\nContent-Length: 8\r\n", Err(())),
        ("Content-Length: +7\r\n", Err(())),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let found = ResponseHead::decode(head.as_bytes(), Method::Get);
        assert_eq!(found.map(|head| head.unwrap().0.framing).map_err(|_| ()), expected, "{fields}");
    }
}

/// Fields as an attacker would mix them.
fn field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        Just("Host"),
        Just("hOsT"),
        Just("Content-Length"),
        Just("Transfer-Encoding"),
        Just("Connection"),
        Just("Range"),
        Just("X-Other"),
        Just("If-Match"),
        Just("TE"),
    ];
    let value = prop_oneof![
        "[0-9]{0,3}",
        Just("chunked".to_owned()),
        Just("host".to_owned()),
        Just("range, if-match".to_owned()),
        Just("close".to_owned()),
        Just("x-other".to_owned()),
        "[ -~]{0,12}",
    ];
    (name.prop_map(str::to_owned), value.prop_map(String::into_bytes))
}

proptest! {
    /// The rule: whatever is taken names one host (or is HTTP/1.0 without any), and has at most one of the two fields
    /// that say how long its body is, once. And no list of a client takes a field away that is for the server.
    #[test]
    fn what_is_taken_can_be_read_in_one_way(fields in prop::collection::vec(field(), 0..8), minor in 0..2_u8) {
        let mut head = format!("GET / HTTP/1.{minor}\r\n").into_bytes();
        fields.iter().for_each(|(name, value)| put(&mut head, name, value));
        head.extend_from_slice(b"\r\n");
        let count = |wanted: &str| fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).count();
        let lengths = count("content-length") + count("transfer-encoding");
        if let Ok(Some((read, length))) = RequestHead::decode(&head) {
            prop_assert_eq!(length, head.len());
            prop_assert!(count("host") == 1 || minor == 0 && count("host") == 0);
            prop_assert!(lengths <= 1);
            prop_assert!(!read.has_body || lengths == 1);
            let listed = read.fields.listed();
            for name in ["host", "range", "if-match", "content-length", "user-agent"] {
                prop_assert!(!is_hop_by_hop(name, &listed));
            }
            prop_assert_eq!(is_hop_by_hop("x-other", &listed), listed.iter().any(|word| word == "x-other"));
        } else {
            let is_plain = count("host") == 1 && lengths == 0
                && fields.iter().all(|(name, value)| !name.eq_ignore_ascii_case("host") || value.iter().all(u8::is_ascii_alphanumeric));
            prop_assert!(!is_plain, "a plain request is taken");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = RequestHead::decode(&bytes);
        let _ = ResponseHead::decode(&bytes, Method::Get);
    }
}
