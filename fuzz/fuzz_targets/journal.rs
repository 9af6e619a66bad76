//! The journal of a transfer as it lies in a work folder: as it is, and with the right checksums.
#![no_main]

use goldwire_fuzz::scratch;
use goldwire_replicate::fuzzing::{journal, journal_record};
use goldwire_store::Root;
use libfuzzer_sys::fuzz_target;

const ROOT: Root = Root([7; 32]);
const RECORD: usize = 24;
/// Chunks of the disk.
const CHUNKS: u64 = 1000;

fuzz_target!(|input: &[u8]| {
    read(input);
    // Nobody guesses a checksum.
    let mut forged = input.to_vec();
    for record in forged.chunks_exact_mut(RECORD) {
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
        let whole = journal_record(&ROOT, number(0), number(8));
        record.copy_from_slice(&whole);
    }
    let present = read(&forged);
    let mut expected = vec![false; CHUNKS as usize];
    for record in forged.chunks_exact(RECORD) {
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
        let (first, count) = (number(0).min(CHUNKS), number(8).min(CHUNKS));
        expected[first as usize..(first + count).min(CHUNKS) as usize].fill(true);
    }
    assert!(present == expected, "the chunks that the records name");
});

/// Which chunks the journal names; reading it changes only a torn tail.
fn read(bytes: &[u8]) -> Vec<bool> {
    let path = scratch("journal");
    std::fs::write(&path, bytes).expect("room for an input");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("the file just made");
    let (present, kept) = journal(file, ROOT, CHUNKS).expect("a file can be read");
    assert!(bytes.starts_with(&std::fs::read(&path).expect("the file just made")));
    assert!(kept <= bytes.len() as u64);
    present
}
