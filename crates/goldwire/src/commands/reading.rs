//! One line of progress for work that reads a lot on this machine.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use goldwire_stdx::{Report, Stop, printable, spawn, watched};
use goldwire_store::{BuildOptions, Progress, Store};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The kind of an error that is somebody's wish.
pub(crate) const STOPPED: &str = "stopped";

/// How often a terminal shows how far it is.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What INT and TERM ask for.
static STOP: LazyLock<Stop> = LazyLock::new(Stop::new);

/// Lets people hear when other writers to a store are waited for. What waits has to run in [`reading`], which can stop it.
pub(crate) fn tell_waits(store: &Store) {
    store.when_waiting(STOP.clone(), |text| drop(writeln!(io::stderr(), "{}", printable(text))));
}

/// Waits for a time, in work that runs in [`reading`], or until somebody wants it to stop.
pub(crate) fn pause(time: Duration) {
    STOP.wait(time);
}

/// Does `work`, which says how far it is, and shows that on a terminal. INT and TERM stop it in order.
pub(crate) fn reading<T: Send, E: Send + Into<Report>>(
    what: &str,
    work: impl FnOnce(&BuildOptions<'_>) -> Result<T, E> + Send,
) -> Result<T, Report> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    spawn("signals", move || {
        for _ in &mut signals {
            STOP.request();
        }
    })?;
    let progress = Progress::default();
    let options = BuildOptions { threads: None, stop: STOP.flag(), progress: &progress };
    let mut done = with_line(what, &progress, || work(&options))?.map_err(Into::into);
    if STOP.is_requested()
        && let Err(report) = &mut done
    {
        report.kind = Some(STOPPED);
        report.hints =
            vec!["give the same command again: a publish or a repack goes on from what is durable".into()];
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
            let total = progress.bytes_total.load(Ordering::Relaxed);
            if total == 0 {
                return;
            }
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
