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
mod tests;
