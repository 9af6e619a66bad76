//! The journal of a transfer: which chunks are in the work file, verified and durable.
//!
//! A record is written only after the work file was flushed, so whatever it names is there after a power cut too.
//! Records are 24 bytes: `first` u64, `count` u64, and a checksum over both and the root, all little endian. A
//! torn tail is simply where reading stops. Layout in `docs/protocol.md`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use goldwire_store::{Root, block_hash};

use super::bitmap::Bitmap;

const RECORD_LENGTH: usize = 24;

/// An open journal, positioned at its end.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    root: Root,
}

impl Journal {
    /// Takes `file` for the journal of the transfer of `root`, adds every chunk that it names to `done`, cuts off a
    /// torn tail and returns how many chunks it named.
    pub(crate) fn open(mut file: File, root: Root, done: &Bitmap) -> io::Result<(Self, u64)> {
        let (valid, chunks) = Self::read(&file, &root, done)?;
        file.set_len(valid)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self { file, root }, chunks))
    }

    /// Adds every chunk that the journal in `file` names to `done`, changing nothing.
    pub(crate) fn load(file: &File, root: &Root, done: &Bitmap) -> io::Result<u64> {
        Ok(Self::read(file, root, done)?.1)
    }

    fn read(file: &File, root: &Root, done: &Bitmap) -> io::Result<(u64, u64)> {
        let mut reader = BufReader::new(file);
        let mut record = [0; RECORD_LENGTH];
        let (mut valid, mut chunks) = (0, 0);
        loop {
            match reader.read_exact(&mut record) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((valid, chunks)),
                Err(error) => return Err(error),
            }
            let (numbers, _) = record.as_chunks::<8>();
            let [first, count, _] = [0, 1, 2].map(|n| u64::from_le_bytes(numbers[n]));
            if record != encode(root, first, count) {
                return Ok((valid, chunks));
            }
            // An honest count never passes the end of the disk; the bitmap ignores what would.
            for index in first..first.saturating_add(count) {
                if !done.set(index) && !done.get(index) {
                    break;
                }
                chunks += 1;
            }
            valid += RECORD_LENGTH as u64;
        }
    }

    /// Appends runs of chunks (first, count) and makes them durable.
    pub(crate) fn append(&mut self, runs: &[(u64, u64)]) -> io::Result<()> {
        let bytes: Vec<u8> =
            runs.iter().flat_map(|(first, count)| encode(&self.root, *first, *count)).collect();
        self.file.write_all(&bytes)?;
        self.file.sync_data()
    }
}

pub(super) fn encode(root: &Root, first: u64, count: u64) -> [u8; RECORD_LENGTH] {
    let mut covered = [0; 48];
    covered[..8].copy_from_slice(&first.to_le_bytes());
    covered[8..16].copy_from_slice(&count.to_le_bytes());
    covered[16..].copy_from_slice(&root.0);
    let mut record = [0; RECORD_LENGTH];
    record[..16].copy_from_slice(&covered[..16]);
    record[16..].copy_from_slice(&block_hash(&covered).to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn opened(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn a_torn_tail_is_cut_and_what_came_before_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let root = Root([5; 32]);
        let (mut journal, _) = Journal::open(opened(&path), root, &Bitmap::new(100)).unwrap();
        journal.append(&[(3, 2), (90, 10)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let done = Bitmap::new(100);
            let (_, chunks) = Journal::open(opened(&path), root, &done).unwrap();
            let expected = [0, 2, 12][length / RECORD_LENGTH];
            assert_eq!(chunks, expected, "{length}");
            assert_eq!((0..100).filter(|index| done.get(*index)).count() as u64, expected);
            assert_eq!(
                std::fs::metadata(&path).unwrap().len(),
                (length / RECORD_LENGTH * RECORD_LENGTH) as u64
            );
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(
            Journal::load(&opened(&path), &Root([6; 32]), &Bitmap::new(100)).unwrap(),
            0,
            "another version's journal"
        );
    }

    #[test]
    fn a_count_past_the_end_does_not_run_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, encode(&Root([0; 32]), 5, u64::MAX)).unwrap();
        assert_eq!(Journal::load(&opened(&path), &Root([0; 32]), &Bitmap::new(10)).unwrap(), 5);
    }
}
