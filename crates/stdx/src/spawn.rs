//! Threads that may be refused. `std::thread::spawn` panics when the system gives no thread (RLIMIT_NPROC, a container's
//! `pids.max`, memory); a server that is short of threads has to say so instead.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

/// Starts a thread. `name` is what `ps -T` and a panic show; Linux keeps its first 15 bytes.
///
/// # Errors
/// The system gives no thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work)
}

/// Starts a thread that ends within `scope`.
///
/// # Errors
/// The system gives no thread.
pub fn spawn_scoped<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work)
}

/// Runs `work` on a thread of its own, and `look` here, every `every` while it runs.
///
/// # Errors
/// The system gives no thread, or `work` panicked.
pub fn watched<T: Send>(
    every: Duration,
    work: impl FnOnce() -> T + Send,
    mut look: impl FnMut(),
) -> io::Result<T> {
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let worker = spawn_scoped(scope, "watched", move || {
            // Dropped at the end, also by a panic.
            let _done = done;
            work()
        })?;
        while is_done.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            look();
        }
        worker.join().map_err(|_| io::Error::other("a thread panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_looked_at_while_it_runs_and_its_result_comes_back() {
        // The work ends when it was looked at twice.
        let (look_in, looks) = std::sync::mpsc::channel();
        let work = move || {
            let is_seen = |_: &i32| looks.recv_timeout(Duration::from_secs(60)).is_ok();
            (0..2).filter(is_seen).count()
        };
        let look = || {
            let _ = look_in.send(());
        };
        assert_eq!(watched(Duration::from_millis(5), work, look).unwrap(), 2);
        let began = std::time::Instant::now();
        watched(Duration::from_secs(60), || (), || ()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "nobody waits for the next look");
        assert!(watched(Duration::from_secs(60), || panic!("on purpose"), || ()).is_err());
    }
}
