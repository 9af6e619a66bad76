//! Log lines. Devices, members and files say much of what stands in them, so that whatever is logged, by whichever room,
//! passes here through [`printable`] before a terminal or a file has it.

use std::fmt;
use std::io::{self, Write};

use goldwire_stdx::printable;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::args::boot::LogFormat;
use crate::commands::json_line;

/// Who takes the lines and writes them with `make_writer`.
pub(super) fn to<W>(
    make_writer: impl Fn() -> W + Send + Sync + 'static,
    filter: EnvFilter,
    format: LogFormat,
    has_colours: bool,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: Write + 'static,
{
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(has_colours);
    match format {
        LogFormat::Text => {
            Box::new(log.fmt_fields(debug_fn(field).delimited(" ")).with_writer(make_writer).finish())
        }
        LogFormat::Json => {
            let make_writer = move || Json(make_writer());
            Box::new(log.json().flatten_event(true).with_writer(make_writer).finish())
        }
    }
}

/// The message, or `name=value` on one line. Further lines of a message are indented, so that no text in it begins a line
/// that looks like another entry.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    if field.name() != "message" {
        return write!(writer, "{field}={}", printable(&text));
    }
    for (at, line) in text.split('\n').enumerate() {
        let before = if at > 0 { "\n    " } else { "" };
        write!(writer, "{before}{}", printable(line))?;
    }
    Ok(())
}

/// Takes a whole line at a time, as the subscriber writes them.
struct Json<W>(W);

impl<W: Write> Write for Json<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let end = if text.ends_with('\n') { "\n" } else { "" };
        self.0.write_all(format!("{}{end}", json_line(&text.trim_end_matches('\n'))).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, has_colours: bool, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = to(move || writer.clone(), EnvFilter::new("trace"), format, has_colours);
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    /// However it is logged: as a text, by its Display or its Debug, in a message.
    #[test]
    fn nothing_in_a_log_is_obeyed_by_a_terminal() {
        let evil = "a\u{1b}[2J\u{9b}31m\r\u{202e}b";
        let error = io::Error::other(format!("{evil}\n2026-01-01 INFO all is well"));
        let path = std::path::Path::new(evil);
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, false, || {
                tracing::warn!(member = evil, %error, ?path, name = %path.display(), "{evil}");
                tracing::error!("{evil}");
            });
            assert_eq!(text.lines().count(), 2, "{text}");
            for line in text.lines() {
                assert_eq!(printable(line), line);
                if matches!(format, LogFormat::Json) {
                    let json: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(json["message"], evil, "programs get it as it is");
                }
            }
        }
    }

    #[test]
    fn what_is_plain_stays_as_it_is() {
        let text = logged(LogFormat::Text, false, || {
            tracing::info!(name = "boot1", seconds = 3, "ready\nin two lines");
        });
        assert!(text.ends_with("INFO ready\n    in two lines name=\"boot1\" seconds=3\n"), "{text}");
        assert!(logged(LogFormat::Text, true, || tracing::info!("x")).contains('\u{1b}'), "our colours");
    }
}
