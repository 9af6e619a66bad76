//! A process that says what a test wrote down, as an agent would, and reads nothing.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::wire::{Frame, Hello, Kind, PREAMBLE, PROTOCOL_VERSION};

/// What an agent says first, if its program is `program`.
pub(crate) fn greeting(program: &[u8]) -> Vec<u8> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        version: "test".into(),
        host: "evil".into(),
        program: *blake3::hash(program).as_bytes(),
    };
    let mut bytes = PREAMBLE.to_vec();
    Frame::of(Kind::Hello, 0, 0, &hello).write(&mut bytes).unwrap();
    bytes
}

/// The program, in a folder of its own.
pub(crate) struct Script {
    folder: TempDir,
}

impl Script {
    /// Greets, says `once`, and then `again` so many times or for ever. Afterwards it waits to be ended.
    pub(crate) fn new(once: &[Frame], again: &Frame, times: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut first = greeting(b"");
        once.iter().for_each(|frame| frame.write(&mut first).unwrap());
        let mut more = Vec::new();
        again.write(&mut more).unwrap();
        fs::write(folder.path().join("first"), first).unwrap();
        let more = match times {
            Some(times) => more.repeat(times as usize),
            // Large enough that not starting `cat` is what takes the time.
            None => more.repeat((1 << 20) / more.len().max(1) + 1),
        };
        fs::write(folder.path().join("more"), more).unwrap();
        Self::write(folder, if times.is_some() { "cat more" } else { "while cat more; do :; done" })
    }

    /// Greets, says `once`, and then `again` some times a second, for whoever was not listening yet.
    pub(crate) fn repeating(once: &[Frame], again: &[Frame]) -> Self {
        let Self { folder } = Self::new(once, &again[0], Some(1));
        let mut more = Vec::new();
        again.iter().for_each(|frame| frame.write(&mut more).unwrap());
        fs::write(folder.path().join("more"), more).unwrap();
        Self::write(folder, "while cat more; do sleep 0.05; done")
    }

    fn write(folder: TempDir, rest: &str) -> Self {
        let text = format!("cd {}\ncat first\n{rest}\nexec sleep 600\n", folder.path().display());
        fs::write(folder.path().join("script"), text).unwrap();
        Self { folder }
    }

    /// The command that runs it.
    pub(crate) fn local(&self) -> Vec<PathBuf> {
        vec!["/bin/sh".into(), self.folder.path().join("script")]
    }
}
