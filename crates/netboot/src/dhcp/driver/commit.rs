//! The thread that owns the lease log. While one batch is on its way to the disk, the next one gathers, so a slow disk
//! makes batches larger and not clients fewer; and offers, which need no disk, never wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use goldwire_stdx::Report;

use super::Wake;
use super::socket::{Datagram, SocketSet};
use crate::dhcp::lease::{Log, LogError, Record, Time};
use crate::member::{Fitness, Part};

/// Most records in one batch.
const BATCH_MAX: usize = 4096;
/// After a failed rewriting, and when nothing can be acknowledged before it succeeds.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_SUSPECT: Duration = Duration::from_secs(1);
/// How often a log that works is looked at when nothing comes.
const IDLE: Duration = Duration::from_secs(3600);
/// A piece of a rewriting is up to 4 MiB.
const REWRITE_PATIENCE: Duration = Duration::from_secs(5);

/// What the log's thread is told. The order counts: a piece says what was true when it was sent.
#[derive(Debug)]
pub(super) enum Work {
    /// Make these durable, then send those.
    Commit(Vec<Record>, Vec<Datagram>),
    /// Begin a new file.
    Begin(Time, u64),
    /// A piece of what is true now.
    Piece(Vec<Record>),
    /// That was all.
    Finish,
}

impl Work {
    /// What has to be done for these; none only if there is neither. An answer without a record of its own waits for the
    /// batches before it all the same.
    pub(super) fn commit(records: Vec<Record>, datagrams: Vec<Datagram>) -> Option<Self> {
        (!records.is_empty() || !datagrams.is_empty()).then_some(Self::Commit(records, datagrams))
    }
}

/// What both threads see.
#[derive(Debug, Default)]
pub(super) struct LogState {
    /// Records that wait for the disk.
    pub(super) in_flight: AtomicUsize,
    /// Pieces of a rewriting that wait.
    pub(super) pieces: AtomicUsize,
    /// Set when the log should be rewritten; taken back by who begins with it.
    pub(super) wants_rewrite: AtomicBool,
    /// Whether the serving thread has to know when the log's thread has got on. Mostly not: and it would wake once more
    /// for every batch.
    pub(super) is_awaited: AtomicBool,
}

/// Who hears of it when the disk is stuck, and when it is.
#[derive(Debug)]
pub(super) struct Reporting {
    pub(super) fitness: Arc<Fitness>,
    pub(super) patience: Duration,
}

/// Runs until the other end of `work` is gone.
pub(super) fn run(
    mut log: Log,
    work: &Receiver<Work>,
    sockets: &SocketSet,
    state: &Arc<LogState>,
    wake: &Wake,
    reporting: &Reporting,
) {
    let mut next = None;
    let mut retry_at = Instant::now();
    let mut room_retry_at = retry_at;
    let Reporting { fitness, patience: commit_patience } = reporting;
    let mut is_failing = log.is_suspect();
    if is_failing {
        fitness.fails(Part::LeaseLog, Report::of(&LogError::Suspect).line());
    }
    loop {
        let item = match next.take() {
            Some(item) => item,
            None => match work.recv_timeout(if is_failing { RETRY_SUSPECT } else { IDLE }) {
                Ok(item) => item,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // While it fails nobody is answered, so nothing comes that would try it again.
                    if is_failing && !log.is_rewriting() {
                        state.wants_rewrite.store(true, Ordering::Release);
                        wake.wake();
                    }
                    continue;
                }
            },
        };
        let patience = if matches!(item, Work::Commit(..)) { *commit_patience } else { REWRITE_PATIENCE };
        let working = fitness.begin(Part::LeaseLog, patience);
        let is_commit = matches!(item, Work::Commit(..));
        let mut is_rewritten = false;
        let result = match item {
            Work::Commit(mut records, mut datagrams) => {
                while records.len() < BATCH_MAX {
                    match work.try_recv() {
                        Ok(Work::Commit(more, others)) => {
                            records.extend(more);
                            datagrams.extend(others);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let result = log.commit(&records);
                if result.is_ok() {
                    datagrams.iter().for_each(|datagram| super::send(sockets, datagram));
                }
                state.in_flight.fetch_sub(records.len(), Ordering::SeqCst);
                result
            }
            Work::Begin(now, member_sequence) => log.begin_rewrite(now, member_sequence),
            Work::Piece(records) => {
                state.pieces.fetch_sub(1, Ordering::SeqCst);
                log.rewrite(&records)
            }
            Work::Finish => log.finish_rewrite().map(|is_done| {
                is_rewritten = is_done;
                tracing::info!(is_done, bytes = log.length(), "the lease log is rewritten");
            }),
        };
        drop(working);
        if let Err(error) = &result
            && is_commit
        {
            is_failing = true;
            fitness.fails(Part::LeaseLog, Report::of(error).line());
        } else if result.is_ok() && (is_commit || is_rewritten) && !log.is_suspect() {
            is_failing = false;
            fitness.works(Part::LeaseLog);
        }
        // While the log is not trusted, every batch fails; the first failure has been told.
        if let Err(error) = result
            && !matches!(error, LogError::Suspect)
        {
            tracing::error!(error = %Report::of(&error), "leases cannot be acknowledged, or their log not be rewritten");
            retry_at = Instant::now() + if log.is_suspect() { RETRY_SUSPECT } else { RETRY };
        }
        if log.wants_rewrite() && Instant::now() >= retry_at {
            state.wants_rewrite.store(true, Ordering::Release);
            wake.wake();
        } else if state.is_awaited.load(Ordering::SeqCst) {
            wake.wake();
        }
        if log.wants_room()
            && Instant::now() >= room_retry_at
            && let Err(error) = log.make_room()
        {
            tracing::warn!(error = %Report::of(&error), "batches of leases take longer");
            room_retry_at = Instant::now() + RETRY;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

    use super::*;
    use crate::dhcp::destination::Destination;
    use crate::dhcp::driver::{DriverSettings, Ports};
    use crate::dhcp::lease::{CrashingVolume, MemberId};
    use crate::dhcp::server::Arrival;

    /// What a client hears of answers that have no record, when the log can be trusted and when it cannot.
    fn heard(is_trusted: bool) -> Vec<Vec<u8>> {
        let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let client = UdpSocket::bind(local).unwrap();
        client.set_nonblocking(true).unwrap();
        let SocketAddr::V4(to) = client.local_addr().unwrap() else { panic!() };
        let arrival = Arrival { received_on: Ipv4Addr::LOCALHOST, is_broadcast: false, from: to, link: 0 };
        let answer =
            |bytes: &[u8]| Datagram { bytes: bytes.into(), destination: Destination::Unicast(to), arrival };
        let ports = Ports { binl: None, ..Ports::default() };
        let settings = DriverSettings { addresses: vec![local], ports, ..DriverSettings::default() };
        let sockets = SocketSet::bind(&settings).unwrap();

        // A new log is not trusted before it is written for the first time.
        let (mut log, _) = Log::open(Box::new(CrashingVolume::default()), MemberId(1), |_| {}).unwrap();
        if is_trusted {
            log.begin_rewrite(Time(1), 1).unwrap();
            assert!(log.finish_rewrite().unwrap());
        }
        let reporting = Reporting { fitness: Arc::default(), patience: Duration::from_secs(60) };
        let (sender, receiver) = std::sync::mpsc::channel();
        for answers in [vec![answer(b"one"), answer(b"two")], vec![], vec![answer(b"three")]] {
            Work::commit(Vec::new(), answers).into_iter().for_each(|work| sender.send(work).unwrap());
        }
        drop(sender);
        run(log, &receiver, &sockets, &Arc::default(), &Wake::new().unwrap(), &reporting);
        let mut buffer = [0; 64];
        std::iter::from_fn(|| client.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
    }

    #[test]
    fn an_answer_without_a_record_is_sent_if_and_only_if_the_log_is_trusted() {
        assert_eq!(heard(true), [&b"one"[..], b"two", b"three"]);
        assert_eq!(heard(false), [b""; 0]);
    }
}
