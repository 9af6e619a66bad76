//! One transfer to one client, over time: which blocks are to be sent when, and when it is over. No socket, no clock, no
//! file: blocks are named by their absolute number, from 1 and without wrap-around, and whoever sends them reads them.
//!
//! ```text
//!            ACK 0                   ACK of the last block
//! Greeting ─────────► Sending ─────────────────────────────► Ended(Complete)
//!    │  OACK until then   │  a window, its ACK, the next window
//!    └───── ERROR ────────┴──────── ERROR, silence ────────► Ended(…)
//! ```
//!
//! A window is what follows the highest acknowledged block. Every ACK that acknowledges something new starts the window
//! behind it, also when it is older than what was sent: the client misses the block behind it (RFC 7440 §4), and we go
//! back. What an ACK may *not* do is to start a window again that it has started already: answering each of two equal
//! ACKs with data doubles every packet to the end of the file, the sorcerer's apprentice of RFC 1123 §4.2.3.1. Only
//! with windows can an equal ACK mean something new, that the first block of the window is missing. It is believed once,
//! and then not again before the acknowledged blocks have passed all that had been sent by then; what a duplicated ACK
//! costs at most is thus one window, and its echoes cost nothing. The timer finds what is missed by this.

use std::time::{Duration, Instant};

use super::wire::{BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, ErrorCode, OptionName, Options};

/// The largest window. With half of the 16-bit numbers in flight, an ACK still tells old from new.
pub(super) const WINDOW_SIZE_MAX: u16 = 32767;
/// The longest `timeout` that a client may ask for, in seconds; what is longer would hold a dead client's transfer for
/// an hour and is not agreed to.
const TIMEOUT_OPTION_S_MAX: u64 = 60;
/// How often the first packet is sent again before the client has shown that it is there: it repeats its request by
/// itself, and somebody whose address was forged should not get much.
const GREETING_RETRIES_MAX: u32 = 3;
/// So many ACKs of blocks that were never sent may be left of an earlier transfer.
const INVENTIONS_MAX: u32 = 2;
/// The time between two attempts doubles so often.
const BACKOFF_DOUBLINGS_MAX: u32 = 3;

/// What the server agrees to for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Most bytes in a block.
    pub block_size_max: u16,
    /// Most blocks in a window.
    pub window_size_max: u16,
    /// How long an answer is waited for at first, unless the client asks for a time.
    pub timeout: Duration,
    /// How often something is sent again without any progress.
    pub(crate) retries: u32,
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client acknowledged the last block.
    Complete,
    /// The client only wanted to know the size: it broke off after the OACK that told it. EDK2 does so before each
    /// transfer, with error 8 "User aborted the transfer"; ROMs of network cards with error 0 "TFTP Aborted".
    SizeQuery,
    /// The client broke off.
    Aborted(ErrorCode, String),
    /// The client fell silent.
    TimedOut,
    /// Nobody is there: its host says that the port is closed.
    Unreachable,
    /// Somebody acknowledges what was never sent, and so does not see what is.
    Forged,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transmit {
    /// An OACK with [`Transfer::accepted`].
    OptionAck,
    /// Consecutive blocks.
    Blocks {
        /// The number of the first one, from 1, without wrap-around.
        first: u64,
        /// How many there are; at least 1.
        count: u16,
    },
}

/// A transfer.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    accepted: Options,
    block_size: u16,
    window_size: u16,
    length: u64,
    /// The last block, which is shorter than the others or empty.
    last: u64,
    timeout: Duration,
    retries: u32,
    state: State,
    /// The highest block that the client has, with all before it.
    acknowledged: u64,
    /// Attempts since the last progress.
    attempts: u32,
    /// ACKs of blocks that were never sent.
    inventions: u32,
    deadline: Instant,
}

#[derive(Clone, Debug)]
enum State {
    /// Options were agreed; the client has not answered the OACK.
    Greeting {
        /// It is to be sent now.
        is_due: bool,
    },
    Sending {
        /// Whether silence has to end before more than the window's first block is sent again.
        is_probing: bool,
        /// The next block to be sent; behind the window's end when all of it was.
        next: u64,
        /// The highest block that was ever sent.
        sent: u64,
        /// What had been sent at the last going back. An ACK that acknowledges nothing new is
        /// believed only behind it.
        recovery: u64,
    },
    Ended(Outcome),
}

impl Transfer {
    /// A transfer of `length` bytes to a client that asked for `options`. Its first packet is due at once.
    pub(super) fn new(options: &Options, limits: Limits, length: u64, now: Instant) -> Self {
        let mut block_size = BLOCK_SIZE_DEFAULT;
        let mut window_size = 1;
        let mut timeout = limits.timeout;
        let mut accepted = Options::default();
        // Only what was asked for, never more than was asked for: EDK2 ends the transfer otherwise
        // (Mtftp4RrqOackValid). What is out of range is left out (RFC 2347).
        for (name, value) in options.iter() {
            match name {
                OptionName::BlockSize if value >= BLOCK_SIZE_MIN.into() => {
                    block_size = smaller(value, limits.block_size_max.clamp(BLOCK_SIZE_MIN, BLOCK_SIZE_MAX));
                    accepted.add(name, block_size.into());
                }
                OptionName::WindowSize if (1..=u16::MAX.into()).contains(&value) => {
                    window_size = smaller(value, limits.window_size_max.clamp(1, WINDOW_SIZE_MAX));
                    accepted.add(name, window_size.into());
                }
                OptionName::TimeoutS if (1..=TIMEOUT_OPTION_S_MAX).contains(&value) => {
                    timeout = Duration::from_secs(value);
                    accepted.add(name, value);
                }
                OptionName::TransferSize => accepted.add(name, length),
                _ => {}
            }
        }
        let state =
            if accepted.is_empty() { State::first_window() } else { State::Greeting { is_due: true } };
        Self {
            accepted,
            block_size,
            window_size,
            length,
            last: length / u64::from(block_size) + 1,
            timeout,
            retries: limits.retries,
            state,
            acknowledged: 0,
            attempts: 0,
            inventions: 0,
            deadline: now + timeout,
        }
    }

    /// The options of the OACK; empty where there is none.
    pub(super) fn accepted(&self) -> &Options {
        &self.accepted
    }

    /// Bytes of data in every block but the last.
    pub(super) fn block_size(&self) -> u16 {
        self.block_size
    }

    /// Where the bytes of these blocks lie: offset and count. Only the last block is shorter than the others.
    pub(super) fn extent(&self, first: u64, count: u16) -> (u64, usize) {
        let block = u64::from(self.block_size);
        let offset = (first - 1) * block;
        let bytes = (u64::from(count) * block).min(self.length.saturating_sub(offset));
        (offset, bytes as usize)
    }

    /// Bytes that the client has acknowledged.
    pub(super) fn bytes_acknowledged(&self) -> u64 {
        self.acknowledged.saturating_mul(self.block_size.into()).min(self.length)
    }

    /// How it ended, if it has.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether the client has shown that it is there.
    pub(super) fn is_confirmed(&self) -> bool {
        self.acknowledged > 0 || (!self.accepted.is_empty() && matches!(self.state, State::Sending { .. }))
    }

    /// What is to be sent now, at most `count_max` blocks at once. To be asked until it has nothing, after every
    /// `handle_…`.
    pub(super) fn poll_transmit(&mut self, now: Instant, count_max: u16) -> Option<Transmit> {
        let end = self.window_end();
        match &mut self.state {
            State::Greeting { is_due } if *is_due => {
                *is_due = false;
                self.wait(now);
                Some(Transmit::OptionAck)
            }
            State::Sending { next, sent, .. } if *next <= end => {
                let first = *next;
                let count = smaller(end - first + 1, count_max.max(1));
                *next += u64::from(count);
                *sent = (*sent).max(*next - 1);
                self.wait(now);
                Some(Transmit::Blocks { first, count })
            }
            _ => None,
        }
    }

    /// The client acknowledges a block.
    pub(super) fn handle_ack(&mut self, block: u16) {
        let window_size = self.window_size;
        match &mut self.state {
            State::Greeting { .. } if block == 0 => {
                self.attempts = 0;
                self.state = State::first_window();
            }
            State::Sending { next, sent, recovery, is_probing } => {
                // Less than half of the numbers are in flight, so what is old or was never sent is far ahead.
                let ahead = u64::from(block.wrapping_sub(self.acknowledged as u16));
                if ahead > *sent - self.acknowledged {
                    // Half of the numbers are ahead and half behind. Who acknowledges what was never sent does not see
                    // what is sent: somebody else's address was forged. Once or twice it may be left of a transfer before.
                    self.inventions += u32::from(ahead < 1 << 15);
                    if self.inventions > INVENTIONS_MAX {
                        self.state = State::Ended(Outcome::Forged);
                    }
                    return;
                }
                // The client is there, whatever of the window it has: it is sent all of it again, once.
                let was_probing = std::mem::take(is_probing);
                if ahead > 0 {
                    self.attempts = 0;
                    self.acknowledged += ahead;
                } else {
                    let is_gap =
                        window_size > 1 && self.acknowledged > *recovery && *sent > self.acknowledged;
                    if !(is_gap || was_probing && window_size > 1) {
                        return;
                    }
                }
                if self.acknowledged == self.last {
                    self.state = State::Ended(Outcome::Complete);
                    return;
                }
                if self.acknowledged < *sent {
                    *recovery = *sent;
                }
                *next = self.acknowledged + 1;
            }
            _ => {}
        }
    }

    /// The client broke off. Nothing is sent any more.
    pub(super) fn handle_error(&mut self, code: ErrorCode, message: String) {
        let is_size_query = matches!(self.state, State::Greeting { .. })
            && self.accepted.get(OptionName::TransferSize).is_some()
            && matches!(code, ErrorCode::OPTION_NEGOTIATION | ErrorCode::NOT_DEFINED);
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(if is_size_query {
                Outcome::SizeQuery
            } else {
                Outcome::Aborted(code, message)
            });
        }
    }

    /// The client's host says that nobody is there. Nothing is sent any more.
    pub(super) fn handle_unreachable(&mut self) {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(Outcome::Unreachable);
        }
    }

    /// When [`Self::handle_timeout`] is to be called; later calls of the others put it off.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        let is_confirmed = self.is_confirmed();
        let retries = if is_confirmed { self.retries } else { self.retries.min(GREETING_RETRIES_MAX) };
        if self.attempts >= retries && !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(Outcome::TimedOut);
            return;
        }
        self.attempts += 1;
        match &mut self.state {
            State::Greeting { is_due } => *is_due = true,
            // A block is ten times as long as the request: it is not sent again before its client was heard. The client
            // repeats its request.
            State::Sending { .. } if !is_confirmed => {}
            State::Sending { next, sent, recovery, is_probing } => {
                *next = self.acknowledged + 1;
                *recovery = *sent;
                *is_probing = true;
            }
            State::Ended(_) => {}
        }
        self.wait(now);
    }

    /// The client repeats its request before it has acknowledged anything: what it was answered is lost.
    pub(super) fn handle_repetition(&mut self) {
        if self.is_confirmed() {
            return;
        }
        match &mut self.state {
            State::Greeting { is_due } => *is_due = true,
            State::Sending { next, .. } => *next = 1,
            State::Ended(_) => {}
        }
    }

    fn window_end(&self) -> u64 {
        match self.state {
            State::Sending { is_probing: true, .. } => (self.acknowledged + 1).min(self.last),
            State::Sending { .. } => self.acknowledged.saturating_add(self.window_size.into()).min(self.last),
            _ => 0,
        }
    }

    /// Waits for an answer to what is sent now.
    fn wait(&mut self, now: Instant) {
        self.deadline = now + self.timeout * (1 << self.attempts.min(BACKOFF_DOUBLINGS_MAX));
    }
}

impl State {
    fn first_window() -> Self {
        Self::Sending { is_probing: false, next: 1, sent: 0, recovery: 0 }
    }
}

/// The smaller of a number that may be large and one that is not.
fn smaller(value: u64, max: u16) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX).min(max)
}

#[cfg(test)]
mod tests {
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
}
