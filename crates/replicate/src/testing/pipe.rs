//! A byte stream in memory that gives itself in pieces, holds only so much, and is cut after any byte; and a connection
//! whose other end a test plays.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};

use crossbeam_channel::{Receiver, unbounded};

use super::Random;
use crate::connection::{Connection, Throttle};
use crate::wire::{Frame, WireError};

struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    bytes: VecDeque<u8>,
    capacity: usize,
    is_closed: bool,
    /// Bytes that still pass before the stream is cut.
    left: u64,
    random: Random,
}

/// The writing end. Dropping it ends the stream.
pub(crate) struct PipeWriter(Arc<Pipe>);

/// The reading end. Dropping it breaks the stream.
pub(crate) struct PipeReader(Arc<Pipe>);

/// A stream that holds `capacity` bytes and is cut after `cut` bytes.
pub(crate) fn pipe(seed: u64, capacity: usize, cut: u64) -> (PipeWriter, PipeReader) {
    let state =
        State { bytes: VecDeque::new(), capacity, is_closed: false, left: cut, random: Random::new(seed) };
    let pipe = Arc::new(Pipe { state: Mutex::new(state), changed: Condvar::new() });
    (PipeWriter(Arc::clone(&pipe)), PipeReader(pipe))
}

impl Pipe {
    fn close(&self) {
        self.state.lock().unwrap().is_closed = true;
        self.changed.notify_all();
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap();
        while state.bytes.len() >= state.capacity && !state.is_closed {
            state = self.0.changed.wait(state).unwrap();
        }
        if state.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = state.capacity - state.bytes.len();
        let count = (state.random.below(bytes.len().max(1) as u64) as usize + 1).min(room).min(bytes.len());
        let passing = (count as u64).min(state.left) as usize;
        state.bytes.extend(&bytes[..passing]);
        state.left -= passing as u64;
        state.is_closed |= state.left == 0;
        self.0.changed.notify_all();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap();
        while state.bytes.is_empty() && !state.is_closed {
            state = self.0.changed.wait(state).unwrap();
        }
        let most = buffer.len().min(state.bytes.len());
        let count = if most == 0 { 0 } else { state.random.below(most as u64) as usize + 1 };
        for (place, byte) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
            *place = byte;
        }
        self.0.changed.notify_all();
        Ok(count)
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A connection of ours whose other end the test plays.
pub(crate) struct Peer {
    /// Ours.
    pub(crate) connection: Connection,
    /// What our reader gives.
    pub(crate) frames: Receiver<Result<Option<Frame>, WireError>>,
    /// What we write comes out here.
    from_us: PipeReader,
    /// What goes in here we read.
    to_us: PipeWriter,
}

impl Peer {
    /// It takes what fits into a pipe and reads nothing.
    pub(crate) fn that_never_reads() -> Self {
        Self::new(1, 64 << 10)
    }

    /// It reads with [`Self::next`].
    pub(crate) fn that_reads() -> Self {
        Self::new(2, 64 << 10)
    }

    fn new(seed: u64, capacity: usize) -> Self {
        let (ours, from_us) = pipe(seed, capacity, u64::MAX);
        let (to_us, theirs) = pipe(seed + 1, capacity, u64::MAX);
        let (frame_in, frames) = unbounded();
        let throttle = Arc::new(Throttle::default());
        let connection = Connection::start(theirs, ours, throttle, move |frame| {
            let _ = frame_in.send(frame);
        });
        Self { connection: connection.unwrap(), frames, from_us, to_us }
    }

    /// The next frame that we wrote.
    pub(crate) fn next(&mut self) -> Frame {
        Frame::read(&mut self.from_us).unwrap().unwrap()
    }

    /// Says something to us.
    pub(crate) fn say(&mut self, frame: &Frame) {
        // We may have hung up already.
        let _ = frame.write(&mut self.to_us);
    }

    /// Says bytes to us.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.to_us.write_all(bytes);
    }

    /// Breaks both directions.
    pub(crate) fn break_off(&self) {
        self.from_us.0.close();
        self.to_us.0.close();
    }
}
