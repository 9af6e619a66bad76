use super::*;

const LIMITS: Limits =
    Limits { block_size_max: 1468, window_size_max: 16, timeout: Duration::from_secs(1), retries: 5 };

fn options(pairs: &[(OptionName, u64)]) -> Options {
    let mut options = Options::default();
    for (name, value) in pairs {
        options.add(*name, *value);
    }
    options
}

fn blocks(first: u64, count: u16) -> Option<Transmit> {
    Some(Transmit::Blocks { first, count })
}

/// A transfer of blocks of 8 bytes in this window, its OACK answered.
fn windowed(window: u64, length: u64, now: Instant) -> Transfer {
    let asked = options(&[(OptionName::BlockSize, 8), (OptionName::WindowSize, window)]);
    let mut transfer = Transfer::new(&asked, LIMITS, length, now);
    assert_eq!(transfer.poll_transmit(now, 64), Some(Transmit::OptionAck));
    transfer.handle_ack(0);
    transfer
}

#[test]
fn only_what_was_asked_for_and_never_more() {
    use OptionName::{BlockSize, TimeoutS, TransferSize, WindowSize};
    let now = Instant::now();
    for (asked, accepted) in [
        (vec![], vec![]),
        (vec![(BlockSize, 512)], vec![(BlockSize, 512)]),
        (vec![(BlockSize, 8192), (WindowSize, 64)], vec![(BlockSize, 1468), (WindowSize, 16)]),
        (vec![(WindowSize, 4), (BlockSize, 1024)], vec![(WindowSize, 4), (BlockSize, 1024)]),
        (vec![(BlockSize, 7), (WindowSize, 0), (TransferSize, 0)], vec![(TransferSize, 1000)]),
        (vec![(BlockSize, 1 << 40), (WindowSize, 1 << 40)], vec![(BlockSize, 1468)]),
        (vec![(TimeoutS, 5)], vec![(TimeoutS, 5)]),
        (vec![(TimeoutS, 255)], vec![]),
        (vec![(TimeoutS, 0)], vec![]),
    ] {
        let transfer = Transfer::new(&options(&asked), LIMITS, 1000, now);
        assert_eq!(transfer.accepted(), &options(&accepted), "{asked:?}");
    }
}

#[test]
fn without_options_the_data_comes_at_once() {
    let now = Instant::now();
    let mut transfer = Transfer::new(&Options::default(), LIMITS, 512, now);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(1, 1));
    assert_eq!(transfer.poll_transmit(now, 64), None);
    transfer.handle_ack(1);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(2, 1));
    assert_eq!(transfer.extent(2, 1), (512, 0));
    transfer.handle_ack(2);
    assert_eq!(transfer.outcome(), Some(&Outcome::Complete));
    assert_eq!(transfer.bytes_acknowledged(), 512);
}

#[test]
fn a_duplicate_ack_sends_nothing_again() {
    let now = Instant::now();
    let mut transfer = Transfer::new(&Options::default(), LIMITS, 5000, now);
    transfer.poll_transmit(now, 64);
    transfer.handle_ack(1);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(2, 1));
    for old in [1, 1, 0, 3, 40_000] {
        transfer.handle_ack(old);
        assert_eq!(transfer.poll_transmit(now, 64), None, "{old}");
    }
}

#[test]
fn an_older_ack_in_a_window_goes_back_behind_it() {
    let now = Instant::now();
    let mut transfer = windowed(4, 1000, now);
    assert_eq!(transfer.poll_transmit(now, 3), blocks(1, 3));
    assert_eq!(transfer.poll_transmit(now, 3), blocks(4, 1));
    transfer.handle_ack(2);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(3, 4));
    // The client repeats itself for each block that it throws away.
    transfer.handle_ack(2);
    assert_eq!(transfer.poll_transmit(now, 64), None);
    transfer.handle_ack(6);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(7, 4));
    // The first block of a window is lost.
    transfer.handle_ack(6);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(7, 4));
    transfer.handle_ack(6);
    assert_eq!(transfer.poll_transmit(now, 64), None);
}

#[test]
fn a_duplicated_ack_costs_one_window_and_has_no_echo() {
    let now = Instant::now();
    let mut transfer = windowed(4, 1000, now);
    transfer.poll_transmit(now, 64);
    transfer.handle_ack(4);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(5, 4));
    transfer.handle_ack(4);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(5, 4));
    transfer.handle_ack(8);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(9, 4));
    transfer.handle_ack(8);
    assert_eq!(transfer.poll_transmit(now, 64), None);
}

#[test]
fn silence_is_answered_ever_more_slowly_and_then_not() {
    let start = Instant::now();
    let mut transfer = windowed(2, 1000, start);
    assert_eq!(transfer.poll_transmit(start, 64), blocks(1, 2));
    let mut waits = Vec::new();
    let mut now = start;
    while transfer.outcome().is_none() {
        waits.push((transfer.deadline() - now).as_secs());
        now = transfer.deadline();
        transfer.handle_timeout(now - Duration::from_millis(1));
        assert_eq!(transfer.poll_transmit(now, 64), None);
        transfer.handle_timeout(now);
        let again = transfer.poll_transmit(now, 64);
        // Of a window that nobody answers, the first block is enough to find out whether somebody is there.
        assert!(again == blocks(1, 1) || transfer.outcome().is_some());
    }
    assert_eq!((waits, transfer.outcome()), (vec![1, 2, 4, 8, 8, 8], Some(&Outcome::TimedOut)));
}

#[test]
fn a_client_that_was_never_heard_gets_little() {
    let start = Instant::now();
    let mut transfer = Transfer::new(&Options::default(), LIMITS, 1000, start);
    let mut sent = 0;
    while transfer.outcome().is_none() {
        sent += u32::from(transfer.poll_transmit(start, 64).is_some());
        transfer.handle_timeout(transfer.deadline());
    }
    assert_eq!(sent, 1);
    // One answer for each request.
    let mut transfer = Transfer::new(&Options::default(), LIMITS, 1000, start);
    assert_eq!(transfer.poll_transmit(start, 64), blocks(1, 1));
    assert_eq!(transfer.poll_transmit(start, 64), None);
    transfer.handle_repetition();
    assert_eq!(transfer.poll_transmit(start, 64), blocks(1, 1));
    transfer.handle_ack(1);
    transfer.handle_repetition();
    assert_eq!(transfer.poll_transmit(start, 64), blocks(2, 1));
    assert_eq!(transfer.poll_transmit(start, 64), None);
}

// With one port for all, the numbers of ACKs can be guessed: 426 of them, sent blindly in somebody else's name, had 27
// MB sent there.
#[test]
fn who_acknowledges_what_was_never_sent_is_sent_no_more() {
    let now = Instant::now();
    let mut transfer = windowed(16, 1 << 20, now);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(1, 16));
    for block in [32, 48, 64] {
        transfer.handle_ack(block);
    }
    assert_eq!(transfer.outcome(), Some(&Outcome::Forged));
    // Old ones are none of that: they come twice, and late.
    let mut transfer = windowed(16, 1 << 20, now);
    for block in 1..200_u16 {
        assert_eq!(transfer.poll_transmit(now, 64), blocks(u64::from(block) * 16 - 15, 16));
        transfer.handle_ack(block * 16);
        transfer.handle_ack((block * 16).saturating_sub(20));
    }
    assert_eq!(transfer.outcome(), None);
}

// A whole window was lost. The client says again what it has, and gets all of it.
#[test]
fn a_window_that_was_lost_is_sent_again_when_the_client_is_heard() {
    let start = Instant::now();
    let mut transfer = windowed(4, 1000, start);
    assert_eq!(transfer.poll_transmit(start, 64), blocks(1, 4));
    transfer.handle_ack(4);
    assert_eq!(transfer.poll_transmit(start, 64), blocks(5, 4));
    let now = transfer.deadline();
    transfer.handle_timeout(now);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(5, 1));
    assert_eq!(transfer.poll_transmit(now, 64), None);
    transfer.handle_ack(4);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(5, 4));
    transfer.handle_ack(4);
    assert_eq!(transfer.poll_transmit(now, 64), None, "and an echo gets nothing");
    // Or it has the first block by then, and wants what is behind it.
    transfer.handle_timeout(transfer.deadline());
    assert_eq!(transfer.poll_transmit(now, 64), blocks(5, 1));
    transfer.handle_ack(5);
    assert_eq!(transfer.poll_transmit(now, 64), blocks(6, 4));
}

#[test]
fn the_numbers_wrap_to_zero() {
    let now = Instant::now();
    let mut transfer = windowed(16, 8 * 70_000, now);
    let mut acknowledged = 0_u64;
    while let Some(Transmit::Blocks { first, count }) = transfer.poll_transmit(now, 64) {
        assert_eq!(first, acknowledged + 1);
        acknowledged += u64::from(count);
        transfer.handle_ack(acknowledged as u16);
    }
    assert_eq!((acknowledged, transfer.outcome()), (70_001, Some(&Outcome::Complete)));
}

#[test]
fn an_error_ends_it_and_after_an_oack_it_was_a_question() {
    let now = Instant::now();
    let query = options(&[(OptionName::TransferSize, 0), (OptionName::BlockSize, 1468)]);
    for (asked, code, is_query) in [
        (&query, 8, true),
        (&query, 0, true),
        (&query, 3, false),
        (&options(&[(OptionName::BlockSize, 1468)]), 8, false),
    ] {
        let mut transfer = Transfer::new(asked, LIMITS, 1000, now);
        transfer.poll_transmit(now, 64);
        transfer.handle_error(ErrorCode(code), "enough".into());
        assert_eq!(transfer.outcome() == Some(&Outcome::SizeQuery), is_query, "{code}");
        transfer.handle_ack(0);
        transfer.handle_timeout(now + Duration::from_secs(100));
        assert_eq!(transfer.poll_transmit(now, 64), None);
    }
}
