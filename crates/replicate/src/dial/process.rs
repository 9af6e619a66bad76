//! The child process that carries a connection, and its last words.

use std::io::{self, BufRead, BufReader, Read};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use goldwire_stdx::{printable_bytes, spawn};

/// How much of what `ssh` says is kept for an error message.
const STDERR_KEPT: usize = 2048;

/// The longest piece of a line that is passed on at once.
const STDERR_LINE_MAX: usize = 4096;

/// The local end of a connection. Dropping it kills `ssh`, and with it the remote agent.
#[derive(Clone)]
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    pub(super) fn of(child: Child) -> Self {
        Self { child: Arc::new(Mutex::new(child)), stderr: Arc::default() }
    }

    /// Keeps the end of what `stderr` says as the last words, and passes all of it on to `echo`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn listen(
        &self,
        stderr: impl Read + Send + 'static,
        echo: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let kept = Arc::clone(&self.stderr);
        spawn("ssh stderr", move || keep_stderr(stderr, &kept, echo))
    }

    /// A process that has ended already, for tests.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::of(std::process::Command::new("true").spawn().unwrap())
    }

    /// A process that waits to be ended, for tests.
    #[cfg(test)]
    pub(crate) fn waiting() -> Self {
        Self::of(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    /// Whether it has ended.
    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Whether both are the same process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.child, &other.child)
    }

    /// Ends the connection at once.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that it is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// The last that the process wrote to standard error.
    pub(crate) fn last_words(&self) -> String {
        let bytes = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        // Line ends stay: what ssh says has several lines at times.
        let lines = bytes.trim_ascii().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
        lines.map(printable_bytes).collect::<Vec<_>>().join("\n")
    }

    /// Waits a moment for the process to end by itself; its exit code if it did.
    pub(super) fn exit_code(&self) -> Option<i32> {
        for _ in 0..50 {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            match child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) => {}
                Err(_) => return None,
            }
            drop(child);
            thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

/// Keeps the end of what `stderr` says, and passes it on line by line to `echo`. A line without end comes in pieces.
fn keep_stderr(stderr: impl Read, kept: &Mutex<Vec<u8>>, mut echo: impl FnMut(&str)) {
    let mut reader = BufReader::with_capacity(STDERR_LINE_MAX, stderr);
    let mut line = Vec::with_capacity(STDERR_LINE_MAX);
    loop {
        line.clear();
        match reader.by_ref().take(STDERR_LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        echo(&printable_bytes(line.trim_ascii_end()));
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&line);
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{memory_of, runs_alone};

    /// A host that never ends its line costs no more than a piece of it.
    #[test]
    fn a_line_without_end_is_kept_in_pieces_of_which_the_last_remain() {
        if !runs_alone() {
            return;
        }
        let before = memory_of();
        let kept = Mutex::default();
        let (mut pieces, mut longest) = (0, 0);
        keep_stderr(io::repeat(b'x').take(60 << 20), &kept, |piece| {
            pieces += 1;
            longest = longest.max(piece.len());
        });
        assert_eq!((pieces, longest), ((60 << 20) / STDERR_LINE_MAX, STDERR_LINE_MAX));
        assert_eq!(kept.lock().unwrap().len(), STDERR_KEPT);
        assert!(memory_of().saturating_sub(before) < 16 << 20);
    }

    #[test]
    fn lines_are_passed_on_as_they_are_but_for_what_a_terminal_obeys() {
        let kept = Mutex::default();
        let mut lines = Vec::new();
        keep_stderr(b"one\r\ntwo \x1b[2J\nlast".as_slice(), &kept, |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two \\u{1b}[2J", "last"]);
        assert_eq!(*kept.lock().unwrap(), b"one\r\ntwo \x1b[2J\nlast");
    }
}
