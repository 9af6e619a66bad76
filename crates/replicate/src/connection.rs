//! One connection: a thread that reads frames, a thread that writes them, and what both know about its health.
//!
//! Every bound is kept on this side. A frame waits in memory only if this side asked for it, or made it and the peer does
//! read: answers come only to requests that are out, as long as those allow ([`Connection::ask`]); what waits to be
//! written is bounded by whoever makes it, with a [`Credit`] that comes back when the frame has left; and words for a
//! peer that reads none are dropped with the connection ([`WORDS_WAITING_MAX`]).

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use goldwire_stdx::{TokenBucket, spawn};

use crate::failure::Result;
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

    /// Stops all sending of answers.
    pub(crate) fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Goes on sending.
    pub(crate) fn resume(&self) {
        self.change(|state| state.paused = false);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Peer, memory_of, pipe, until};
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
}
