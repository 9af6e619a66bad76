//! One connection: a thread that reads frames, a thread that writes them, and what both know about its health.
//!
//! Every bound is kept on this side. A frame waits in memory only if this side asked for it, or made it and the peer does
//! read: answers come only to requests that are out, as long as those allow ([`Connection::ask`]); what waits to be
//! written is bounded by whoever makes it, with a [`Credit`] that comes back when the frame has left; and words for a
//! peer that reads none are dropped with the connection ([`WORDS_WAITING_MAX`]).

mod throttle;

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use goldwire_stdx::spawn;

pub(crate) use self::throttle::Throttle;
use crate::failure::{AGAIN, Result};
use crate::wire::{Failure, FailureKind, Frame, Head, Kind, WireError};

/// A silent side sends a ping this often.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A connection on which nothing was heard for this long is dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Bytes of events, commands and requests that wait to be written. A peer that leaves so much unread is lost.
const WORDS_WAITING_MAX: u64 = 8 << 20;

/// Frames of words that are written before an answer has its turn.
const WORDS_IN_A_ROW: usize = 16;

/// Something that is given back when a frame has been written, or never will be: by being dropped.
pub(crate) type Credit = Box<dyn Send>;

/// What a connection has carried, and how busy it is.
#[derive(Debug, Default)]
pub(crate) struct ConnectionStats {
    /// Bytes read.
    pub bytes_in: AtomicU64,
    /// Bytes written.
    pub bytes_out: AtomicU64,
    /// Nanoseconds spent inside writes: with `bytes_out` the speed of the connection while it is busy.
    pub writing_ns: AtomicU64,
    /// When something was last heard, or listening was taken up again, in milliseconds since `epoch`.
    heard_ms: AtomicU64,
    /// Whether the reader waits for the peer, and not for us.
    is_listening: AtomicBool,
    /// Bytes of words that wait to be written.
    words_waiting: AtomicU64,
    /// Whether the peer left too much unread, or can no longer be written to.
    is_lost: AtomicBool,
}

/// A frame that waits to be written.
struct Queued {
    frame: Frame,
    _credit: Option<Credit>,
}

/// Counts words that wait.
struct WordsWaiting(Arc<ConnectionStats>, u64);

impl Drop for WordsWaiting {
    fn drop(&mut self) {
        self.0.words_waiting.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The sending half of a connection; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    urgent: Sender<Queued>,
    bulk: Sender<Queued>,
    /// The longest payload of the answer to each request that is out, by id.
    expected: Arc<Mutex<HashMap<u64, u32>>>,
    /// Shared with both threads.
    pub stats: Arc<ConnectionStats>,
    epoch: Instant,
}

impl Connection {
    /// Starts the threads. `on_frame` runs on the reading thread for every frame but pings, and once with the
    /// reason when the connection has ended (`None`: cleanly). Answers pass through `throttle`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        throttle: Arc<Throttle>,
        mut on_frame: impl FnMut(Result<Option<Frame>, WireError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (urgent, urgent_queue) = unbounded();
        let (bulk, bulk_queue) = unbounded();
        let stats = Arc::new(ConnectionStats::default());
        let epoch = Instant::now();
        let writing = Arc::clone(&stats);
        spawn("writer", move || {
            // A failed write shows as an ended connection at the reader, which reports it.
            let _ = write_frames(writer, &urgent_queue, &bulk_queue, &throttle, &writing);
            writing.is_lost.store(true, Ordering::Relaxed);
        })?;
        let reading = Arc::clone(&stats);
        let expected: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
        let asked = Arc::clone(&expected);
        spawn("reader", move || {
            let mut reader = Hearing { reader, stats: Arc::clone(&reading), epoch };
            loop {
                match Frame::read_admitted(&mut reader, |head| admit(head, &asked)) {
                    Ok(Some(frame)) => {
                        reading.bytes_in.fetch_add(frame.length(), Ordering::Relaxed);
                        if frame.kind != Kind::Ping {
                            on_frame(Ok(Some(frame)));
                        }
                    }
                    end => {
                        on_frame(end);
                        break;
                    }
                }
            }
        })?;
        Ok(Self { urgent, bulk, expected, stats, epoch })
    }

    /// Queues words: a command, an event. They overtake answers. A dead connection swallows them; its reader reports it.
    pub(crate) fn send(&self, frame: Frame) {
        let length = frame.length();
        let waiting = self.stats.words_waiting.fetch_add(length, Ordering::Relaxed) + length;
        let counted = WordsWaiting(Arc::clone(&self.stats), length);
        if waiting > WORDS_WAITING_MAX {
            self.stats.is_lost.store(true, Ordering::Relaxed);
        }
        if !self.is_lost() {
            let _ = self.urgent.send(Queued { frame, _credit: Some(Box::new(counted)) });
        }
    }

    /// Queues a request; one answer of at most `answer_max` bytes of payload may come to it.
    pub(crate) fn ask(&self, frame: Frame, answer_max: u32) {
        lock(&self.expected).insert(frame.id, answer_max);
        self.send(frame);
    }

    /// Queues an answer or a refusal behind the earlier ones. `credit` bounds how many there can be.
    pub(crate) fn answer(&self, frame: Frame, credit: Credit) {
        if !self.is_lost() {
            let _ = self.bulk.send(Queued { frame, _credit: Some(credit) });
        }
    }

    /// Queues words that another peer said. `credit` bounds how many there can be.
    pub(crate) fn forward(&self, frame: Frame, credit: Credit) {
        if !self.is_lost() {
            let _ = self.urgent.send(Queued { frame, _credit: Some(credit) });
        }
    }

    /// Whether the peer left too much unread, or can no longer be written to.
    pub(crate) fn is_lost(&self) -> bool {
        self.stats.is_lost.load(Ordering::Relaxed)
    }

    /// How long this side has listened and heard nothing.
    pub(crate) fn silent_for(&self) -> Duration {
        if !self.stats.is_listening.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        self.epoch
            .elapsed()
            .saturating_sub(Duration::from_millis(self.stats.heard_ms.load(Ordering::Relaxed)))
    }
}

/// Lets an answer in only for a request that is out, and only as long as that allows. Each is let in once.
fn admit(head: &Head, expected: &Mutex<HashMap<u64, u32>>) -> Result<(), WireError> {
    let allowed = match head.kind {
        Kind::Answer => lock(expected).remove(&head.id),
        // Its own limit holds for a refusal.
        Kind::Refusal => lock(expected).remove(&head.id).map(|_| u32::MAX),
        _ => return Ok(()),
    };
    match allowed {
        Some(most) if head.length <= most => Ok(()),
        _ => Err(WireError::Unasked { length: head.length }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The failure of a peer, `the source` or `host:/sr/`, whose connection ended before its work.
pub(crate) fn lost(peer: &str, error: Option<&WireError>) -> Failure {
    let mut failure = Failure::new(FailureKind::Disconnected, format!("the connection to {peer} was lost"));
    if let Some(error) = error {
        failure.chain.push(error.to_string());
    }
    failure.hint(AGAIN)
}

/// Notes when bytes come, not when a frame is whole: on a slow line one frame can take minutes.
struct Hearing<R> {
    reader: R,
    stats: Arc<ConnectionStats>,
    epoch: Instant,
}

impl<R: Read> Read for Hearing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let note = || {
            self.stats.heard_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
        };
        note();
        self.stats.is_listening.store(true, Ordering::Relaxed);
        let length = self.reader.read(buffer);
        self.stats.is_listening.store(false, Ordering::Relaxed);
        note();
        length
    }
}

fn ping() -> Frame {
    Frame { kind: Kind::Ping, stream: 0, id: 0, payload: Arc::default() }
}

fn write_frames(
    writer: impl Write,
    urgent: &Receiver<Queued>,
    bulk: &Receiver<Queued>,
    throttle: &Throttle,
    stats: &ConnectionStats,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(64 * 1024, writer);
    let mut words_in_a_row = 0;
    loop {
        // Words overtake answers, but a flood of them that is passed on does not keep answers back.
        let turn = if words_in_a_row < WORDS_IN_A_ROW { urgent.try_recv() } else { bulk.try_recv() };
        words_in_a_row = if words_in_a_row < WORDS_IN_A_ROW { words_in_a_row + 1 } else { 0 };
        let next = match turn.or_else(|_| urgent.try_recv()) {
            Ok(frame) => Some(frame),
            Err(TryRecvError::Disconnected) => return writer.flush(),
            Err(TryRecvError::Empty) => match bulk.try_recv() {
                Ok(frame) => Some(frame),
                Err(_) => {
                    // Nothing waits: let out what is buffered before sleeping.
                    let started = Instant::now();
                    writer.flush()?;
                    stats.writing_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    wait_for_frame(urgent, bulk)
                }
            },
        };
        // The credit goes back when the frame is written.
        let Some(Queued { frame, _credit }) = next else { return writer.flush() };
        if frame.kind == Kind::Answer {
            let mut pinged = Instant::now();
            throttle.admit(frame.length(), || {
                if pinged.elapsed() >= PING_EVERY {
                    pinged = Instant::now();
                    ping().write(&mut writer)?;
                }
                // While an answer waits for its turn, urgent frames still go.
                for Queued { frame, _credit } in urgent.try_iter().take(WORDS_IN_A_ROW) {
                    frame.write(&mut writer)?;
                    stats.bytes_out.fetch_add(frame.length(), Ordering::Relaxed);
                }
                writer.flush()
            })?;
        }
        let started = Instant::now();
        frame.write(&mut writer)?;
        stats.writing_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        stats.bytes_out.fetch_add(frame.length(), Ordering::Relaxed);
    }
}

/// The next frame, a ping when there was none for a while, or `None` when the connection was dropped.
///
/// A frame is taken in the same step that finds it: a queue that was only said to be ready may be empty again.
fn wait_for_frame(urgent: &Receiver<Queued>, bulk: &Receiver<Queued>) -> Option<Queued> {
    crossbeam_channel::select_biased! {
        recv(urgent) -> queued => queued.ok(),
        // Both senders go together, words before answers.
        recv(bulk) -> queued => queued.ok().or_else(|| urgent.try_recv().ok()),
        default(PING_EVERY) => Some(Queued { frame: ping(), _credit: None }),
    }
}

#[cfg(test)]
mod tests;
