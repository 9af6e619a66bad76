//! One line of progress for work that reads a lot on this machine.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use goldwire_stdx::{Report, spawn, watched};
use goldwire_store::{BuildOptions, Progress};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The kind of an error that is somebody's wish.
pub(crate) const STOPPED: &str = "stopped";

/// How often a terminal shows how far it is.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Does `work`, which says how far it is, and shows that on a terminal. INT and TERM stop it in order.
pub(crate) fn reading<T: Send, E: Send + Into<Report>>(
    what: &str,
    work: impl FnOnce(&BuildOptions<'_>) -> Result<T, E> + Send,
) -> Result<T, Report> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    spawn("signals", move || {
        for _ in &mut signals {
            STOP.store(true, Ordering::Relaxed);
        }
    })?;
    let progress = Progress::default();
    let options = BuildOptions { threads: None, stop: &STOP, progress: &progress };
    let mut done = with_line(what, &progress, || work(&options))?.map_err(Into::into);
    if STOP.load(Ordering::Relaxed)
        && let Err(report) = &mut done
    {
        report.kind = Some(STOPPED);
        report.hints = vec!["give the same command again: a publish goes on from what is durable".into()];
    }
    done
}

/// Does `work` while a terminal is shown how far `progress` is.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn with_line<T: Send>(
    what: &str,
    progress: &Progress,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let is_shown = io::stderr().is_terminal();
    let mut was_shown = false;
    let done = watched(SHOW_EVERY, work, || {
        if is_shown {
            let done = progress.bytes_done.load(Ordering::Relaxed);
            let total = progress.bytes_total.load(Ordering::Relaxed).max(1);
            let percent = (done as f64 * 100.0 / total as f64).min(100.0);
            let _ = write!(io::stderr(), "\r{what}, {percent:.0}%  ");
            was_shown = true;
        }
    });
    if was_shown {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    done
}
