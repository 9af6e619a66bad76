//! One connection: a thread that reads frames, a thread that writes them, and what both know about its health.

use std::io::{self, BufWriter, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use goldwire_stdx::{TokenBucket, spawn};

use crate::failure::Result;
use crate::wire::{Failure, FailureKind, Frame, Kind, WireError};

/// A silent side sends a ping this often.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A connection on which nothing was heard for this long is dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What a connection has carried, and how busy it is.
#[derive(Debug, Default)]
pub(crate) struct ConnectionStats {
    /// Bytes read.
    pub bytes_in: AtomicU64,
    /// Bytes written.
    pub bytes_out: AtomicU64,
    /// Nanoseconds spent inside writes: with `bytes_out` the speed of the connection while it is busy.
    pub writing_ns: AtomicU64,
    /// When something was last heard, in milliseconds since `epoch`.
    heard_ms: AtomicU64,
}

/// The sending half of a connection; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    urgent: Sender<Frame>,
    bulk: Sender<Frame>,
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
        })?;
        let reading = Arc::clone(&stats);
        spawn("reader", move || {
            let mut reader = Hearing { reader, stats: Arc::clone(&reading), epoch };
            loop {
                match Frame::read(&mut reader) {
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
        Ok(Self { urgent, bulk, stats, epoch })
    }

    /// Queues a frame. Answers queue behind each other, everything else overtakes them. How much can queue is
    /// bounded by what the other side may ask for. A dead connection swallows frames; its reader reports it.
    pub(crate) fn send(&self, frame: Frame) {
        let queue = if frame.kind == Kind::Answer { &self.bulk } else { &self.urgent };
        let _ = queue.send(frame);
    }

    /// How long nothing has been heard.
    pub(crate) fn silent_for(&self) -> Duration {
        self.epoch
            .elapsed()
            .saturating_sub(Duration::from_millis(self.stats.heard_ms.load(Ordering::Relaxed)))
    }
}

/// The failure of a peer whose connection ended before its work.
pub(crate) fn lost(peer: &str, error: Option<&WireError>) -> Failure {
    let mut failure =
        Failure::new(FailureKind::Disconnected, format!("the connection to the {peer} was lost"));
    if let Some(error) = error {
        failure.chain.push(error.to_string());
    }
    failure.hint("run the same command again: it continues where this one stopped")
}

/// Notes when bytes come, not when a frame is whole: on a slow line one frame can take minutes.
struct Hearing<R> {
    reader: R,
    stats: Arc<ConnectionStats>,
    epoch: Instant,
}

impl<R: Read> Read for Hearing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.stats.heard_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
        Ok(length)
    }
}

fn ping() -> Frame {
    Frame { kind: Kind::Ping, stream: 0, id: 0, payload: Arc::default() }
}

fn write_frames(
    writer: impl Write,
    urgent: &Receiver<Frame>,
    bulk: &Receiver<Frame>,
    throttle: &Throttle,
    stats: &ConnectionStats,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(64 * 1024, writer);
    loop {
        let next = match urgent.try_recv() {
            Ok(frame) => Some(frame),
            Err(TryRecvError::Disconnected) => return writer.flush(),
            Err(TryRecvError::Empty) => match bulk.try_recv() {
                Ok(frame) => Some(frame),
                Err(_) => {
                    // Nothing waits: let out what is buffered before sleeping.
                    let started = Instant::now();
                    writer.flush()?;
                    stats.writing_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    wait_for_frame(urgent, bulk)?
                }
            },
        };
        let Some(frame) = next else { return writer.flush() };
        if frame.kind == Kind::Answer {
            let mut pinged = Instant::now();
            throttle.admit(frame.length(), || {
                if pinged.elapsed() >= PING_EVERY {
                    pinged = Instant::now();
                    ping().write(&mut writer)?;
                }
                // While an answer waits for its turn, urgent frames still go.
                while let Ok(frame) = urgent.try_recv() {
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

/// The next frame, a ping when there was none for a while, or nothing when the connection was dropped.
fn wait_for_frame(urgent: &Receiver<Frame>, bulk: &Receiver<Frame>) -> io::Result<Option<Frame>> {
    let mut select = crossbeam_channel::Select::new();
    select.recv(urgent);
    select.recv(bulk);
    match select.ready_timeout(PING_EVERY) {
        Err(_) => Ok(Some(ping())),
        Ok(_) => match urgent.try_recv() {
            Ok(frame) => Ok(Some(frame)),
            Err(TryRecvError::Disconnected) => Ok(None),
            Err(TryRecvError::Empty) => match bulk.recv_timeout(PING_EVERY) {
                Ok(frame) => Ok(Some(frame)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
            },
        },
    }
}

/// Bandwidth limit and pause switch, shared by all connections over which one side sends.
#[derive(Debug)]
pub(crate) struct Throttle {
    state: Mutex<ThrottleState>,
    changed: Condvar,
    epoch: Instant,
}

#[derive(Debug)]
struct ThrottleState {
    bucket: TokenBucket,
    paused: bool,
    /// Counts changes, so that a sleeper notices one.
    generation: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        let bucket = TokenBucket::new(None, Duration::ZERO);
        Self {
            state: Mutex::new(ThrottleState { bucket, paused: false, generation: 0 }),
            changed: Condvar::new(),
            epoch: Instant::now(),
        }
    }
}

impl Throttle {
    /// The longest single sleep, so that urgent frames and pings are not held up.
    const NAP: Duration = Duration::from_millis(200);

    /// Sets the limit in bytes per second; none is unlimited.
    pub(crate) fn set_rate(&self, rate: Option<u64>) {
        let now = self.epoch.elapsed();
        self.change(|state| state.bucket.set_rate(rate, now));
    }

    /// Stops or restarts all sending of answers.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// Whether sending is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    fn change(&self, change: impl FnOnce(&mut ThrottleState)) {
        let mut state = self.lock();
        change(&mut state);
        state.generation += 1;
        self.changed.notify_all();
    }

    /// Returns when `bytes` may be sent; calls `meanwhile` between naps.
    fn admit(&self, bytes: u64, mut meanwhile: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut debt = bytes;
        loop {
            let state = self.lock();
            let generation = state.generation;
            let mut state = state;
            let wait = if state.paused {
                Self::NAP
            } else {
                // The bytes are taken once; a later round only pays off the debt, at whatever rate holds then.
                let wait = state.bucket.take(std::mem::take(&mut debt), self.epoch.elapsed());
                if wait.is_zero() {
                    return Ok(());
                }
                wait.min(Self::NAP)
            };
            let (state, _) = self
                .changed
                .wait_timeout_while(state, wait, |state| state.generation == generation)
                .unwrap_or_else(PoisonError::into_inner);
            drop(state);
            meanwhile()?;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ThrottleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
