//! The thread that owns the lease log. While one batch is on its way to the disk, the next one gathers, so a slow disk
//! makes batches larger and not clients fewer; and offers, which need no disk, never wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use goldwire_stdx::Report;

use super::Wake;
use super::socket::{Datagram, SocketSet};
use crate::dhcp::lease::{Log, LogError, Record, Time};

/// Most records in one batch.
const BATCH_MAX: usize = 4096;
/// After a failed rewriting, and when nothing can be acknowledged before it succeeds.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_SUSPECT: Duration = Duration::from_secs(1);

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

/// Runs until the other end of `work` is gone.
pub(super) fn run(
    mut log: Log,
    work: &Receiver<Work>,
    sockets: &SocketSet,
    state: &Arc<LogState>,
    wake: &Wake,
) {
    let mut next = None;
    let mut retry_at = Instant::now();
    let mut room_retry_at = retry_at;
    while let Some(item) = next.take().or_else(|| work.recv().ok()) {
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
                tracing::info!(is_done, bytes = log.length(), "the lease log is rewritten");
            }),
        };
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
