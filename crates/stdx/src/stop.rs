//! One way to stop: a flag that work looks at, sleepers wait on and pollers poll.

use std::io::{self, PipeReader, PipeWriter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A request to stop, shared by whoever asks for it and everybody who heeds it. It is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    is_requested: AtomicBool,
    /// Dropped on request, which makes their readers readable.
    wakers: Mutex<Vec<PipeWriter>>,
    changed: Condvar,
}

impl Stop {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to stop. Wakes sleepers and pollers.
    pub fn request(&self) {
        let mut wakers = self.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.is_requested.store(true, Ordering::Release);
        wakers.clear();
        self.shared.changed.notify_all();
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        self.shared.is_requested.load(Ordering::Acquire)
    }

    /// The flag, for a callee that wants a plain one.
    pub fn flag(&self) -> &AtomicBool {
        &self.shared.is_requested
    }

    /// Sleeps for `time`, or until somebody asks. Whether somebody has asked.
    pub fn wait(&self, time: Duration) -> bool {
        let guard = self.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.shared.changed.wait_timeout_while(guard, time, |_| !self.is_requested()));
        self.is_requested()
    }

    /// A descriptor that becomes readable (at its end) once somebody asks, for `poll` and `epoll`.
    ///
    /// # Errors
    /// The system gives no pipe.
    pub fn waker(&self) -> io::Result<PipeReader> {
        let (reader, writer) = io::pipe()?;
        let mut wakers = self.shared.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_requested() {
            wakers.push(writer);
        }
        Ok(reader)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[test]
    fn sleepers_and_pollers_wake_when_somebody_asks() {
        let stop = Stop::new();
        let mut waker = stop.waker().unwrap();
        assert!(!stop.wait(Duration::ZERO) && !stop.is_requested());
        let asking = stop.clone();
        let asker = crate::spawn("asker", move || {
            std::thread::sleep(Duration::from_millis(20));
            asking.request();
        });
        let began = Instant::now();
        assert!(stop.wait(Duration::from_secs(60)));
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(waker.read(&mut [0]).unwrap(), 0, "at its end");
        assert_eq!(stop.waker().unwrap().read(&mut [0]).unwrap(), 0, "asked for already");
        asker.unwrap().join().unwrap();
    }
}
