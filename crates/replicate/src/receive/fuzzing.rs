//! Doors for the fuzz targets `journal` and `work_state`: what a work folder holds is read before anything proves it.

use std::fs::File;
use std::io;
use std::path::Path;

use goldwire_store::Root;

use super::bitmap::Bitmap;
use super::journal::{Journal, encode};
use super::work::{STATE_MAX, State, WorkPlace};
use crate::wire::WireFormat;

/// A journal's record of `count` chunks from `first` on.
pub fn journal_record(root: &Root, first: u64, count: u64) -> [u8; 24] {
    encode(root, first, count)
}

/// Opens the journal in `file` for a disk of `chunks` chunks: which of them it names, and its length from then on.
///
/// # Errors
/// The file cannot be read or cut.
pub fn journal(file: File, root: Root, chunks: u64) -> io::Result<(Vec<bool>, u64)> {
    let done = Bitmap::new(chunks);
    let looked = file.try_clone()?;
    let (_, named) = Journal::open(file, root, &done)?;
    let present: Vec<bool> = (0..chunks).map(|index| done.get(index)).collect();
    assert!(named >= present.iter().filter(|is_there| **is_there).count() as u64);
    Ok((present, looked.metadata()?.len()))
}

/// Claims the place of a target in `folder` over an unfinished attempt whose state is `bytes`, for another attempt.
pub fn work_state(folder: &Path, bytes: &[u8]) {
    let ours = State { layout: 1, root: [7; 32], size: 1 << 20, created: 0, format: WireFormat::Raw };
    let Ok(place) = WorkPlace::claim(&folder.join("a.raw")) else { return };
    let put = |name: &str, bytes: &[u8]| place.folder().replace(name, bytes, 0o600).is_ok();
    assert!(put("state", bytes) && put("disk", b"d") && put("tree", b"t"));
    let found = postcard::from_bytes::<State>(bytes).ok().filter(|_| bytes.len() as u64 <= STATE_MAX);
    let is_continued = place.prepare(&ours).unwrap_or(false);
    assert_eq!(is_continued, found.as_ref() == Some(&ours), "only the same attempt is continued");
    if !is_continued {
        assert!(!place.has("state") && !place.has("disk"), "another attempt's files are out of the way");
        assert_eq!(place.previous().map(|(_, state)| state), found);
    }
    assert!(place.record(&ours).is_ok() && place.prepare(&ours).unwrap_or(false));
    place.clear();
}
