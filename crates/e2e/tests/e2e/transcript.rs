//! What a guest's serial console or a server said, line by line with the time, for a test that waits for words.

use std::fmt::Write as _;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The lines so far, in the order in which they came.
pub(crate) struct Transcript {
    name: String,
    start: Instant,
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Default)]
struct Text {
    lines: Vec<(Duration, String)>,
    /// The line that has not ended yet: prompts never do.
    unfinished: String,
    has_ended: bool,
}

impl Transcript {
    /// Follows a stream in the background until its end. `react` sees each line as far as it has come, again whenever
    /// it grew.
    pub(crate) fn follow(
        name: &str,
        start: Instant,
        stream: impl Read + Send + 'static,
        react: impl FnMut(&str) + Send + 'static,
    ) -> Arc<Self> {
        let transcript = Arc::new(Self {
            name: name.to_owned(),
            start,
            text: Mutex::new(Text::default()),
            grown: Condvar::new(),
        });
        let writer = Arc::clone(&transcript);
        goldwire_stdx::spawn("transcript", move || writer.write(stream, react)).unwrap();
        transcript
    }

    fn write(&self, mut stream: impl Read, mut react: impl FnMut(&str)) {
        let mut filter = EscapeFilter::Text;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let mut text = self.text.lock().unwrap();
            for byte in buffer[..count].iter().filter_map(|byte| filter.pass(*byte)) {
                if byte == b'\n' || byte == b'\r' {
                    let line = std::mem::take(&mut text.unfinished);
                    if !line.trim().is_empty() {
                        react(&line);
                        text.lines.push((self.start.elapsed(), line));
                    }
                } else {
                    text.unfinished.push(char::from(byte));
                }
            }
            react(&text.unfinished);
            self.grown.notify_all();
        }
        self.text.lock().unwrap().has_ended = true;
        self.grown.notify_all();
    }

    /// Waits for a line with these words; false when the stream ended or `patience` did before.
    pub(crate) fn wait(&self, words: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut text = self.text.lock().unwrap();
        loop {
            if text.lines.iter().any(|(_, line)| line.contains(words)) || text.unfinished.contains(words) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.has_ended || left.is_zero() {
                return false;
            }
            text = self.grown.wait_timeout(text, left).unwrap().0;
        }
    }

    /// Whether these words came so far.
    pub(crate) fn has(&self, words: &str) -> bool {
        self.wait(words, Duration::ZERO)
    }

    /// The lines with these words so far.
    pub(crate) fn lines_with(&self, words: &str) -> Vec<String> {
        let text = self.text.lock().unwrap();
        text.lines.iter().map(|(_, line)| line.clone()).filter(|line| line.contains(words)).collect()
    }

    /// Everything, for a person.
    pub(crate) fn story(&self) -> String {
        let text = self.text.lock().unwrap();
        let mut story = format!("--- {}\n", self.name);
        for (time, line) in &text.lines {
            let _ = writeln!(story, "{:8.3} {}", time.as_secs_f64(), line.trim_end());
        }
        if !text.unfinished.trim().is_empty() {
            let _ = writeln!(story, "         {}", text.unfinished);
        }
        story
    }
}

/// Takes out what moves the cursor and sets colours, which firmware does at every line.
enum EscapeFilter {
    Text,
    /// After the escape character.
    Escape,
    /// After `ESC [`: parameters, until a letter.
    Control,
    /// After `ESC (` or `ESC )`: one more character.
    Charset,
}

impl EscapeFilter {
    /// The byte, if it belongs to the text.
    fn pass(&mut self, byte: u8) -> Option<u8> {
        let (next, passed) = match (&self, byte) {
            (Self::Text, 0x1b) => (Self::Escape, None),
            (Self::Text, 0) => (Self::Text, None),
            (Self::Text, byte) => (Self::Text, Some(byte)),
            (Self::Escape, b'[') => (Self::Control, None),
            (Self::Escape, b'(' | b')') => (Self::Charset, None),
            (Self::Escape | Self::Charset, _) | (Self::Control, 0x40..=0x7e) => (Self::Text, None),
            (Self::Control, _) => (Self::Control, None),
        };
        *self = next;
        passed
    }
}
