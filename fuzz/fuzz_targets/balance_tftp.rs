//! Datagrams of a client and of members through the balancing front: a session passes on nothing that did not come, and
//! ends.
#![no_main]

use std::time::Duration;

use goldwire_netboot::fuzzing::balance::{Action, Session};
use libfuzzer_sys::fuzz_target;

/// No session lives without a datagram for so long.
const SILENCE: Duration = Duration::from_secs(60);

fuzz_target!(|input: &[u8]| {
    let Some((length, mut rest)) = input.split_first() else { return };
    let request = rest.get(..usize::from(*length)).unwrap_or(rest).to_vec();
    rest = &rest[request.len()..];
    let mut now = Duration::ZERO;
    let mut came = vec![request.clone(), vec![0, 4, 0, 0]];
    let mut session = Session::new(request);
    let mut actions = session.start(now);
    while let [what, length, datagram @ ..] = rest {
        let datagram = datagram.get(..usize::from(*length)).unwrap_or(datagram);
        rest = &rest[2 + datagram.len()..];
        now += Duration::from_millis(u64::from(what >> 2) * 100);
        came.push(datagram.to_vec());
        actions.extend(match what & 3 {
            0 => session.handle_client(now, datagram),
            1 => session.handle_member(now, datagram),
            _ => session.handle_timeout(now),
        });
        for action in actions.drain(..) {
            match action {
                Action::ToClient(bytes) | Action::ToMember(bytes) => assert!(came.contains(&bytes)),
                Action::NextMember => {}
                Action::End => return,
            }
        }
    }
    assert!(session.handle_timeout(now + SILENCE).contains(&Action::End));
});
