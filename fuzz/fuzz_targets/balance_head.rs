//! What a client asks of the balancing front, and what a member answers: what goes on to the other side reads there as the
//! front has read it, so that nothing can be smuggled, and a broken download is continued at the right byte.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use goldwire_netboot::fuzzing::HEAD_MAX;
use goldwire_netboot::fuzzing::balance::{Method, Persistence, RequestHead, ResponseHead, Sender};
use libfuzzer_sys::fuzz_target;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

fuzz_target!(|input: &[u8]| {
    let Some((flags, head)) = input.split_first() else { return };
    let sender = if flags & 1 != 0 { Sender::Balancer } else { Sender::Stranger };
    let method = if flags & 2 != 0 { Method::Head } else { Method::Get };
    let persistence = if flags & 4 != 0 { Persistence::Keep } else { Persistence::Close };
    if let Ok(Some((request, length))) = RequestHead::decode(head) {
        assert!(length <= head.len() && length <= HEAD_MAX);
        let member = SocketAddr::from(([10, 0, 0, 1], 80));
        let forwarded = request.forward(CLIENT, member, sender);
        // What the front adds may make a head too long for another one.
        if let Ok(again) = RequestHead::decode(&forwarded) {
            let (again, length) = again.expect("a whole head");
            assert_eq!(length, forwarded.len(), "nothing stands behind it");
            assert_eq!((again.method, again.target), (request.method, request.target));
        } else {
            assert!(
                forwarded.len() > HEAD_MAX || forwarded.iter().filter(|byte| **byte == b'\n').count() > 90
            );
        }
    }
    if let Ok(Some((answer, length))) = ResponseHead::decode(head, method) {
        assert!(length <= head.len() && length <= HEAD_MAX);
        let word = if method == Method::Head { "HEAD" } else { "GET" };
        let asked = format!("{word} / HTTP/1.1\r\nHost: a\r\n\r\n");
        let Ok(Some((request, _))) = RequestHead::decode(asked.as_bytes()) else { panic!("a good request") };
        let passed = answer.pass_on(&request, answer.framing, persistence);
        if let Ok(again) = ResponseHead::decode(&passed, method) {
            let (again, length) = again.expect("a whole head");
            assert_eq!(length, passed.len(), "nothing stands behind it");
            assert_eq!((again.status, again.framing), (answer.status, answer.framing));
            assert_eq!(again.part(), answer.part());
        } else {
            assert!(passed.len() > HEAD_MAX || passed.iter().filter(|byte| **byte == b'\n').count() > 90);
        }
        if let Some(part) = answer.part() {
            assert!(part.first <= part.last && part.last < part.total);
            let done = u64::from(flags >> 3).min(part.last - part.first);
            assert!(done != 0 || !answer.is_rest_of(&part, 0) || answer.status == 206);
            let rest = request.forward_rest(CLIENT, ([10, 0, 0, 2], 80).into(), sender, &part, done);
            let range = format!("\r\nRange: bytes={}-{}\r\n", part.first + done, part.last);
            assert!(rest.windows(range.len()).any(|window| window == range.as_bytes()));
        }
    }
});
