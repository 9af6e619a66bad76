//! One transfer through the front. Time is an argument.
//!
//! ```text
//! Asked ──OACK──► Agreed ──DATA──► Flowing
//!   └─────────────DATA──────────────►┘
//! ```
//!
//! While no DATA has come, a silent member can be replaced: the request is the same for each of them. If the client has
//! an OACK already, the next member has to agree to exactly the same, and its OACK is kept from the client.

use std::time::Duration;

/// How long a member may take to answer a request or the ACK of an OACK. Clients repeat after 1 s (iPXE) to 4 s (EDK2).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a session lasts without a datagram of either side: longer than all retries of firmware.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// RFC 1350's block size, where no other was agreed.
const BLOCK_USUAL: usize = 512;

const DATA: u8 = 3;
const ACK: u8 = 4;
const ERROR: u8 = 5;
const OACK: u8 = 6;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the client.
    ToClient(Vec<u8>),
    /// Send this to the member.
    ToMember(Vec<u8>),
    /// From now on, [`Self::ToMember`] means another member.
    NextMember,
    /// The session is over.
    End,
}

/// One transfer.
#[derive(Debug)]
pub struct Session {
    request: Vec<u8>,
    phase: Phase,
    /// When the last datagram came.
    heard_at: Duration,
    /// Since when the member owes an answer without which another one is asked.
    owed_since: Option<Duration>,
    block_size: usize,
    last_block: Option<u16>,
    /// The short block that is the last one, once it has come.
    final_block: Option<u16>,
    bytes: u64,
    is_complete: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The member has the request. The client may have the OACK of another one, and have acknowledged it.
    Asked { agreed: Option<Vec<u8>>, is_acked: bool },
    /// The client has this OACK.
    Agreed { oack: Vec<u8>, is_acked: bool },
    /// Blocks flow: no other member can go on.
    Flowing,
}

impl Session {
    /// For this read request.
    pub fn new(request: Vec<u8>) -> Self {
        Self {
            request,
            phase: Phase::Asked { agreed: None, is_acked: false },
            heard_at: Duration::ZERO,
            owed_since: None,
            block_size: BLOCK_USUAL,
            last_block: None,
            final_block: None,
            bytes: 0,
            is_complete: false,
        }
    }

    /// What to do first.
    pub fn start(&mut self, now: Duration) -> Vec<Action> {
        self.heard_at = now;
        self.replace(now)
    }

    /// Takes a datagram of the client.
    pub fn handle_client(&mut self, now: Duration, datagram: &[u8]) -> Vec<Action> {
        let forward = vec![Action::ToMember(datagram.to_vec())];
        let &[0, operation, high, low, ..] = datagram else { return Vec::new() };
        self.heard_at = now;
        match (operation, &mut self.phase) {
            (ERROR, _) => {
                // Firmware that only wanted to know the size says so like this.
                self.is_complete |= !matches!(self.phase, Phase::Flowing);
                [forward, vec![Action::End]].concat()
            }
            (ACK, Phase::Agreed { is_acked, .. }) => {
                *is_acked = true;
                self.owed_since.get_or_insert(now);
                forward
            }
            // The member is another one meanwhile, and has not agreed yet.
            (ACK, Phase::Asked { agreed: Some(_), is_acked }) => {
                *is_acked = true;
                Vec::new()
            }
            (ACK, Phase::Flowing) => {
                if self.final_block == Some(u16::from_be_bytes([high, low])) {
                    self.is_complete = true;
                    return [forward, vec![Action::End]].concat();
                }
                forward
            }
            // The request again: the OACK was lost.
            (1, Phase::Agreed { oack, .. } | Phase::Asked { agreed: Some(oack), .. }) => {
                vec![Action::ToClient(oack.clone())]
            }
            // Whoever has the request already repeats its first block by itself.
            _ => Vec::new(),
        }
    }

    /// Takes a datagram of the member.
    pub fn handle_member(&mut self, now: Duration, datagram: &[u8]) -> Vec<Action> {
        let &[0, operation, high, low, ref rest @ ..] = datagram else { return Vec::new() };
        let forward = vec![Action::ToClient(datagram.to_vec())];
        self.heard_at = now;
        match (operation, &mut self.phase) {
            // Its client has agreed on options that this one does not know.
            (DATA, Phase::Asked { agreed: Some(_), .. }) => self.replace(now),
            (DATA, _) => {
                self.phase = Phase::Flowing;
                self.owed_since = None;
                let block = u16::from_be_bytes([high, low]);
                if self.last_block.is_none_or(|last| block == last.wrapping_add(1)) {
                    self.last_block = Some(block);
                    self.bytes += rest.len() as u64;
                    if rest.len() < self.block_size {
                        self.final_block = Some(block);
                    }
                }
                forward
            }
            (OACK, Phase::Asked { agreed: None, .. }) => {
                self.block_size = block_size(&datagram[2..]);
                self.owed_since = None;
                self.phase = Phase::Agreed { oack: datagram.to_vec(), is_acked: false };
                forward
            }
            (OACK, Phase::Asked { agreed: Some(oack), is_acked }) => {
                if oack != datagram {
                    return self.replace(now);
                }
                let is_acked = *is_acked;
                self.owed_since = is_acked.then_some(now);
                self.phase = Phase::Agreed { oack: datagram.to_vec(), is_acked };
                if is_acked { vec![Action::ToMember(vec![0, ACK, 0, 0])] } else { Vec::new() }
            }
            (OACK, Phase::Agreed { .. }) => forward,
            (ERROR, _) => [forward, vec![Action::End]].concat(),
            _ => Vec::new(),
        }
    }

    /// Takes the time, at [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<Action> {
        if now.saturating_sub(self.heard_at) >= IDLE_TIMEOUT {
            return vec![Action::End];
        }
        if self.owed_since.is_some_and(|since| now.saturating_sub(since) >= ANSWER_TIMEOUT) {
            return self.replace(now);
        }
        Vec::new()
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Duration {
        let idle = self.heard_at + IDLE_TIMEOUT;
        self.owed_since.map_or(idle, |since| idle.min(since + ANSWER_TIMEOUT))
    }

    /// Bytes of content that went to the client, repetitions not counted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the client has all that it wanted.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    fn replace(&mut self, now: Duration) -> Vec<Action> {
        self.owed_since = Some(now);
        if let Phase::Agreed { oack, is_acked } = &mut self.phase {
            self.phase = Phase::Asked { agreed: Some(std::mem::take(oack)), is_acked: *is_acked };
        }
        vec![Action::NextMember, Action::ToMember(self.request.clone())]
    }
}

/// The file that a request asks for, for events.
pub(crate) fn path_of(request: &[u8]) -> String {
    let path = request.get(2..).unwrap_or_default().split(|byte| *byte == 0).next();
    String::from_utf8_lossy(path.unwrap_or_default()).chars().filter(|c| !c.is_control()).collect()
}

/// The block size in an OACK's options.
fn block_size(options: &[u8]) -> usize {
    let words: Vec<&[u8]> = options.split(|byte| *byte == 0).collect();
    let agreed = words.chunks(2).find_map(|pair| match pair {
        [name, value] if name.eq_ignore_ascii_case(b"blksize") => {
            std::str::from_utf8(value).ok()?.parse().ok()
        }
        _ => None,
    });
    agreed.unwrap_or(BLOCK_USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = b"\0\x01f\0octet\0blksize\x001000\0";
    const OACK_1000: &[u8] = b"\0\x06blksize\x001000\0";
    const ACK_0: &[u8] = b"\0\x04\0\0";

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn to_client(datagram: &[u8]) -> Vec<Action> {
        vec![Action::ToClient(datagram.to_vec())]
    }

    fn to_member(datagram: &[u8]) -> Vec<Action> {
        vec![Action::ToMember(datagram.to_vec())]
    }

    fn next_member() -> Vec<Action> {
        [vec![Action::NextMember], to_member(REQUEST)].concat()
    }

    fn block(number: u8, length: usize) -> Vec<u8> {
        [&[0, DATA, 0, number][..], &vec![b'x'; length]].concat()
    }

    #[test]
    fn a_whole_transfer() {
        let mut session = Session::new(REQUEST.to_vec());
        assert_eq!(session.start(at(0)), next_member());
        assert_eq!(session.handle_member(at(1), OACK_1000), to_client(OACK_1000));
        assert_eq!(session.handle_client(at(2), ACK_0), to_member(ACK_0));
        for _ in 0..2 {
            assert_eq!(session.handle_member(at(3), &block(1, 1000)), to_client(&block(1, 1000)));
        }
        assert_eq!(session.handle_client(at(4), b"\0\x04\0\x01"), to_member(b"\0\x04\0\x01"));
        session.handle_member(at(5), &block(2, 10));
        assert!(!session.is_complete());
        let last = session.handle_client(at(6), b"\0\x04\0\x02");
        assert_eq!(last, [to_member(b"\0\x04\0\x02"), vec![Action::End]].concat());
        assert!(session.is_complete());
        assert_eq!(session.bytes(), 1010);
    }

    #[test]
    fn a_member_that_is_silent_is_replaced_before_the_first_block_only() {
        let mut session = Session::new(REQUEST.to_vec());
        session.start(at(0));
        assert_eq!(session.handle_timeout(at(999)), []);
        assert_eq!(session.handle_timeout(session.poll_timeout()), next_member());
        // The second one agrees, and dies before its first block; the third has to agree to the same.
        session.handle_member(at(1100), OACK_1000);
        session.handle_client(at(1200), ACK_0);
        assert_eq!(session.handle_timeout(at(2200)), next_member());
        assert_eq!(session.handle_client(at(2300), ACK_0), []);
        assert_eq!(session.handle_member(at(2400), b"\0\x06blksize\x00512\0"), next_member());
        assert_eq!(session.handle_member(at(2500), OACK_1000), to_member(ACK_0));
        session.handle_member(at(2600), &block(1, 1000));
        assert_eq!(session.handle_timeout(at(9000)), []);
        assert_eq!(session.handle_timeout(at(2600) + IDLE_TIMEOUT), [Action::End]);
        assert!(!session.is_complete());
    }

    #[test]
    fn a_repeated_request_and_an_abort_for_the_size() {
        let mut session = Session::new(REQUEST.to_vec());
        session.start(at(0));
        assert_eq!(session.handle_client(at(1), REQUEST), []);
        session.handle_member(at(2), OACK_1000);
        assert_eq!(session.handle_client(at(3), REQUEST), to_client(OACK_1000));
        let abort = b"\0\x05\0\x08User aborted the transfer\0";
        assert_eq!(session.handle_client(at(4), abort), [to_member(abort), vec![Action::End]].concat());
        assert!(session.is_complete());
    }

    #[test]
    fn nonsense_is_dropped() {
        let mut session = Session::new(REQUEST.to_vec());
        session.start(at(0));
        for datagram in [&b""[..], b"\0", b"\0\x09ab", b"\x01\x04\0\0", b"\0\x04\0"] {
            assert_eq!(session.handle_client(at(1), datagram), [], "{datagram:?}");
            assert_eq!(session.handle_member(at(1), datagram), [], "{datagram:?}");
        }
        assert_eq!(path_of(b"\0\x01a\x1b/b\0octet\0"), "a/b");
    }
}
