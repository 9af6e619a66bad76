//! Connections over pipes in memory whose other end a test plays.

use super::*;
use crate::testing::{Peer, memory_of, pipe, runs_alone, until};
use crate::wire::{Command, Event, Request};

fn answer(id: u64, length: usize) -> Frame {
    Frame { kind: Kind::Answer, stream: 0, id, payload: Arc::new(vec![1; length].into()) }
}

fn next(peer: &Peer) -> Result<Option<Frame>, WireError> {
    peer.frames.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn an_answer_comes_once_to_a_request_and_no_longer_than_that_allows() {
    let request = |id| Frame::of(Kind::Request, 0, id, &Request::Unchanged);
    for (what, said) in [
        ("unasked", vec![answer(8, 0)]),
        ("twice", vec![answer(7, 4), answer(7, 4)]),
        ("too long", vec![answer(7, 5)]),
        ("unasked refusal", vec![Frame::of(Kind::Refusal, 0, 9, &Failure::stopped())]),
    ] {
        let mut peer = Peer::that_reads();
        peer.connection.ask(request(7), 4);
        assert_eq!(peer.next().id, 7);
        said.iter().for_each(|frame| peer.say(frame));
        let mut last = next(&peer);
        if said.len() == 2 {
            assert_eq!(last.unwrap().unwrap().id, 7, "{what}");
            last = next(&peer);
        }
        assert!(matches!(last, Err(WireError::Unasked { .. })), "{what}: {last:?}");
    }
    let mut peer = Peer::that_reads();
    peer.connection.ask(request(7), 4);
    peer.connection.ask(request(8), 4);
    peer.say(&answer(8, 4));
    peer.say(&Frame::of(Kind::Refusal, 0, 7, &Failure::stopped()));
    assert_eq!((next(&peer).unwrap().unwrap().id, next(&peer).unwrap().unwrap().id), (8, 7));
}

/// The header alone decides; nothing is made ready for what will not be taken.
#[test]
fn a_frame_that_is_too_long_for_its_kind_ends_the_connection() {
    for kind in [Kind::Request, Kind::Answer, Kind::Command, Kind::Refusal, Kind::Hello, Kind::Ping] {
        let mut peer = Peer::that_reads();
        let mut header = Frame { kind, stream: 0, id: 0, payload: Arc::default() }.header();
        header[..4].copy_from_slice(&(4_u32 << 20).to_le_bytes());
        peer.say_bytes(&header);
        assert!(matches!(next(&peer), Err(WireError::Header(_))), "{kind:?}");
    }
}

#[test]
fn a_peer_that_reads_no_words_is_lost_and_costs_no_more_than_they_may_take() {
    if !runs_alone() {
        return;
    }
    let peer = Peer::that_never_reads();
    let before = memory_of();
    let words = Event::Notice("x".repeat(1000));
    for _ in 0..200_000 {
        peer.connection.send(Frame::of(Kind::Event, 0, 0, &words));
    }
    assert!(peer.connection.is_lost());
    assert!(memory_of().saturating_sub(before) < 64 << 20);
}

/// Two queues that fill and empty at any moment beside the writer's look at them.
#[test]
fn a_late_call_ends_no_connection() {
    const ROUNDS: usize = 20_000;
    let (urgent, urgent_out) = unbounded();
    let (bulk, bulk_out) = unbounded();
    let mut goes = Vec::new();
    for queue in [&urgent, &bulk, &urgent, &bulk] {
        let queue = queue.clone();
        let (go, wait) = crossbeam_channel::bounded::<()>(1);
        goes.push(go);
        goldwire_stdx::spawn("sender", move || {
            while wait.recv().is_ok() {
                let _ = queue.send(Queued { frame: answer(0, 0), _credit: None });
            }
        })
        .unwrap();
    }
    for round in 0..ROUNDS {
        goes.iter().for_each(|go| go.send(()).unwrap());
        for taken in 0..goes.len() {
            let began = Instant::now();
            let queued = wait_for_frame(&urgent_out, &bulk_out);
            let kind = queued.unwrap_or_else(|| panic!("round {round}, {taken}")).frame.kind;
            assert_eq!(kind, Kind::Answer, "round {round}, {taken}, {:?}", began.elapsed());
        }
    }
    drop((goes, urgent, bulk));
    while wait_for_frame(&urgent_out, &bulk_out).is_some() {}
}

#[test]
fn words_overtake_answers_and_pings_are_not_passed_on() {
    let mut peer = Peer::that_reads();
    // More than the pipe and the writer's buffer hold, so that the second answer is still queued.
    peer.connection.answer(answer(1, 1 << 20), Box::new(()));
    peer.connection.answer(answer(2, 1 << 20), Box::new(()));
    peer.connection.send(Frame::of(Kind::Command, 0, 3, &Command::Pause));
    let ids: Vec<u64> = (0..3).map(|_| peer.next().id).collect();
    assert!(matches!(ids[..], [1, 3, 2] | [3, 1, 2]), "{ids:?}");
    peer.say(&ping());
    peer.say(&Frame::of(Kind::Event, 0, 5, &Event::Notice(String::new())));
    assert_eq!(next(&peer).unwrap().unwrap().id, 5);
}

#[test]
fn a_cut_after_any_byte_is_an_end_and_never_a_frame() {
    let frame = Frame::of(Kind::Event, 0, 0, &Event::Notice("some words".into()));
    let length = frame.length();
    for cut in 1..=2 * length {
        let (mut to_us, theirs) = pipe(cut, 64 << 10, cut);
        let (ours, _from_us) = pipe(cut, 64 << 10, u64::MAX);
        let (frame_in, frames) = unbounded();
        let take = move |frame| {
            let _ = frame_in.send(frame);
        };
        let connection = Connection::start(theirs, ours, Arc::default(), take).unwrap();
        let _ = frame.write(&mut to_us).and_then(|()| frame.write(&mut to_us));
        drop(to_us);
        let got: Vec<_> = frames.iter().collect();
        let (end, whole) = got.split_last().unwrap();
        assert_eq!(whole.len() as u64, cut / length, "{cut}");
        assert!(whole.iter().all(|got| got.as_ref().unwrap().as_ref() == Some(&frame)));
        assert_eq!(matches!(end, Ok(None)), cut % length == 0, "{cut}: {end:?}");
        drop(connection);
    }
}

/// Whoever is busy with what was heard is not told that the peer is silent.
#[test]
fn silence_counts_only_while_somebody_listens() {
    let (mut to_us, theirs) = pipe(1, 64 << 10, u64::MAX);
    let (ours, _from_us) = pipe(2, 64 << 10, u64::MAX);
    let (go_in, go) = crossbeam_channel::bounded::<()>(0);
    let (busy_in, busy) = unbounded();
    let connection = Connection::start(theirs, ours, Arc::default(), move |_| {
        let _ = busy_in.send(());
        let _ = go.recv();
    })
    .unwrap();
    until("it listens", || connection.silent_for() > Duration::from_millis(30));
    Frame::of(Kind::Event, 0, 0, &Event::Notice(String::new())).write(&mut to_us).unwrap();
    busy.recv().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(connection.silent_for(), Duration::ZERO);
    go_in.send(()).unwrap();
    until("it listens again", || connection.silent_for() > Duration::from_millis(30));
}

#[test]
fn a_limit_holds_answers_back_and_a_pause_lets_words_through() {
    let throttle = Arc::new(Throttle::default());
    let (ours, mut from_us) = pipe(1, 4 << 20, u64::MAX);
    let (_to_us, theirs) = pipe(2, 1024, u64::MAX);
    throttle.pause();
    let connection = Connection::start(theirs, ours, Arc::clone(&throttle), |_| ()).unwrap();
    connection.answer(answer(1, 1000), Box::new(()));
    connection.send(Frame::of(Kind::Event, 0, 2, &Event::Notice(String::new())));
    assert_eq!(Frame::read(&mut from_us).unwrap().unwrap().id, 2);
    throttle.resume();
    assert_eq!(Frame::read(&mut from_us).unwrap().unwrap().id, 1);
    throttle.set_rate(Some(200_000));
    let began = Instant::now();
    for id in 0..5 {
        connection.answer(answer(id, 20_000), Box::new(()));
    }
    for _ in 0..5 {
        Frame::read(&mut from_us).unwrap();
    }
    // 100 kB at 200 kB/s; the first answer is free.
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}
