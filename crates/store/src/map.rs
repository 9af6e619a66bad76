//! Where the chunks of a version lie: runs of chunks that lie one after another in a pack.
//!
//! An open map keeps the first chunk of each page of 204 runs, and the page that was read last.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_stdx::{Folder, read_at_once};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::pack::{PackNumber, Reader, SLOTS_MAX, header};
use crate::store::{StoreError, StoreResult};
use crate::tree::{Root, TreeGeometry};

const MAGIC: &[u8; 8] = b"GWMAP\r\n\0";
const PAGE: usize = 4096;
const HEADER: usize = 104;
const RUN: usize = 20;
const RUNS_PER_PAGE: usize = 204;
/// The most runs of a map. A version of more, which only a store that was never put in order could have, is refused.
pub(crate) const RUNS_MAX: u64 = 16_777_216;

/// Chunks of a version that lie one after another in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first chunk's index in the disk.
    pub(crate) first: u64,
    /// Chunks, at least 1.
    pub(crate) count: u32,
    /// The pack.
    pub(crate) pack: PackNumber,
    /// The first chunk's slot.
    pub(crate) slot: u32,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Whether `next` goes on where this one ends.
    fn goes_on(&self, next: &Self) -> bool {
        self.end() == next.first
            && self.pack == next.pack
            && self.slot.checked_add(self.count) == Some(next.slot)
            && self.count < SLOTS_MAX
    }
}

/// What a map says of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is in a pack, as are those after it: the run from it on.
    In(Run),
    /// It is zero, as are all before this one.
    Zero(u64),
}

/// A map in the making. Runs come in the order of the disk.
pub(crate) struct MapWriter {
    out: BufWriter<File>,
    path: PathBuf,
    last: Option<Run>,
    page: Vec<Run>,
    pages: u64,
    runs: u64,
    chunks: u64,
}

impl MapWriter {
    /// Begins the map `name`, in the place of what has the name.
    pub(crate) fn create(folder: &Folder, name: &str) -> StoreResult<Self> {
        let path = folder.path().join(name);
        folder.remove_file(name).map_err(StoreError::file("replace", &path))?;
        let file = folder.create_new(name, 0o644).map_err(StoreError::file("make", &path))?;
        let mut out = BufWriter::with_capacity(64 << 10, file);
        // Until the end says what stands there, it is no map.
        out.write_all(&[0; PAGE]).map_err(StoreError::file("write", &path))?;
        Ok(Self { out, path, last: None, page: Vec::new(), pages: 0, runs: 0, chunks: 0 })
    }

    /// Adds chunks that follow those before.
    pub(crate) fn push(&mut self, run: Run) -> StoreResult<()> {
        self.chunks += u64::from(run.count);
        match &mut self.last {
            Some(last) if last.goes_on(&run) => last.count += run.count,
            _ => {
                if let Some(last) = self.last.replace(run) {
                    self.add(last)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, run: Run) -> StoreResult<()> {
        self.runs += 1;
        if self.runs > RUNS_MAX {
            let what = format!("the version would lie in more than {RUNS_MAX} pieces");
            return Err(StoreError::TooMuch { what });
        }
        self.page.push(run);
        if self.page.len() == RUNS_PER_PAGE { self.end_page() } else { Ok(()) }
    }

    fn end_page(&mut self) -> StoreResult<()> {
        self.pages += 1;
        let page = encode_page(self.pages, &self.page);
        self.page.clear();
        self.out.write_all(&page).map_err(StoreError::file("write", &self.path))
    }

    /// Ends the map of version `root`, durably.
    pub(crate) fn finish(mut self, root: &Root, size: u64) -> StoreResult<()> {
        if let Some(last) = self.last.take() {
            self.add(last)?;
        }
        if !self.page.is_empty() {
            self.end_page()?;
        }
        let header = encode_header(root, size, self.runs, self.chunks);
        let written = self.out.into_inner().map_err(std::io::IntoInnerError::into_error);
        let done = written.and_then(|file| {
            // What the header says has to be there when it is.
            file.sync_data()?;
            file.write_all_at(&header, 0)?;
            file.sync_all()
        });
        done.map_err(StoreError::file("write", &self.path))
    }
}

/// The map of a version, open for reading.
#[derive(Debug)]
pub(crate) struct Map {
    file: File,
    path: PathBuf,
    root: Root,
    size: u64,
    runs: u64,
    chunks: u64,
    /// The first chunk of each page.
    firsts: Vec<u64>,
    last: Mutex<Option<(usize, Arc<[Run]>)>>,
}

impl Map {
    /// Opens the map and looks at all of it.
    pub(crate) fn open(folder: &Folder, name: &str) -> StoreResult<Self> {
        let path = folder.path().join(name);
        let file = folder.read_file(name).map_err(StoreError::file("open", &path))?;
        Self::over(file, path)
    }

    /// Opens the map as readers do: what it names stays for as long as it is open, whoever puts another one in its place.
    pub(crate) fn open_to_read(folder: &Folder, name: &str) -> StoreResult<Self> {
        loop {
            let map = Self::open(folder, name)?;
            // Who takes a map away locks it against everybody, so it is either there for as long as we hold it or gone
            // already.
            map.file.lock_shared().map_err(StoreError::file("lock", &map.path))?;
            let data = map.file.metadata().map_err(StoreError::file("stat", &map.path))?;
            if std::os::unix::fs::MetadataExt::nlink(&data) > 0 {
                return Ok(map);
            }
        }
    }

    pub(crate) fn over(file: File, path: PathBuf) -> StoreResult<Self> {
        let (header, length) = header(&file, &path, HEADER)?;
        let mut reader = Reader::new(&header, &path);
        reader.begins(MAGIC)?;
        if reader.u32("zero")? != 0 {
            return Err(StoreError::corrupt(&path, "zero", 12, "made by a newer goldwire"));
        }
        let root = Root(reader.array("root")?);
        let size = reader.u64("size")?;
        let runs = reader.u64("runs")?;
        let chunks = reader.u64("chunks")?;
        if reader.array::<32>("digest")? != *blake3::hash(&header[..HEADER - 32]).as_bytes() {
            return Err(StoreError::corrupt(&path, "digest", 72, "it does not fit the header"));
        }
        let Some(shape) = TreeGeometry::new(size) else {
            return Err(StoreError::corrupt(&path, "size", 48, "it is larger than 64 TiB"));
        };
        if runs > RUNS_MAX {
            return Err(StoreError::corrupt(&path, "runs", 56, format!("{runs} is more than {RUNS_MAX}")));
        }
        let pages = runs.div_ceil(RUNS_PER_PAGE as u64);
        let expected = (1 + pages) * PAGE as u64;
        if length != expected {
            let why = format!("the file has {length} bytes instead of {expected}");
            return Err(StoreError::corrupt(&path, "length", length, why));
        }
        // The file has as many, so that no header asks for memory.
        let firsts = Vec::with_capacity(pages as usize);
        let mut map = Self { file, path, root, size, runs, chunks, firsts, last: Mutex::default() };
        let (mut end, mut seen) = (0, 0);
        for number in 0..pages as usize {
            let page = map.read_page(number)?;
            for (at, run) in page.iter().enumerate() {
                if run.first < end || run.end() > shape.chunks() {
                    let why = format!("chunks {}..{} overlap or pass the disk's end", run.first, run.end());
                    return Err(map.corrupt_run(number, at, why));
                }
                end = run.end();
                seen += u64::from(run.count);
            }
            map.firsts.push(page[0].first);
        }
        if seen != chunks {
            let why = format!("{chunks} chunks, and the runs have {seen}");
            return Err(StoreError::corrupt(&map.path, "chunks", 64, why));
        }
        Ok(map)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Chunks that are not zero.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }

    /// Where chunk `index` is.
    pub(crate) fn place(&self, index: u64) -> StoreResult<Place> {
        match self.page_of(index) {
            (None, next) => Ok(Place::Zero(next)),
            (Some(number), next) => Ok(Self::place_in(&self.page(number)?, index, next)),
        }
    }

    /// The same, if the page that says it is in memory; what is wrong with it is for [`place`](Self::place) to tell.
    pub(crate) fn place_at_once(&self, index: u64) -> Option<Place> {
        let (Some(number), next) = self.page_of(index) else { return self.place(index).ok() };
        let page = match self.kept(number) {
            Some(page) => page,
            None => {
                let mut bytes = [0; PAGE];
                if !read_at_once(&self.file, &mut bytes, page_offset(number)) {
                    return None;
                }
                let page: Arc<[Run]> = self.decode_page(number, &bytes).ok()?.into();
                self.keep(number, &page);
                page
            }
        };
        Some(Self::place_in(&page, index, next))
    }

    /// The page that knows where chunk `index` is, and the first chunk of the page behind it.
    fn page_of(&self, index: u64) -> (Option<usize>, u64) {
        let after = self.firsts.partition_point(|first| *first <= index);
        (after.checked_sub(1), self.firsts.get(after).copied().unwrap_or(u64::MAX))
    }

    fn place_in(page: &[Run], index: u64, next: u64) -> Place {
        let after = page.partition_point(|run| run.first <= index);
        let next = page.get(after).map_or(next, |run| run.first);
        match after.checked_sub(1).map(|at| page[at]) {
            Some(run) if index < run.end() => {
                let skipped = (index - run.first) as u32;
                let (count, slot) = (run.count - skipped, run.slot + skipped);
                Place::In(Run { first: index, count, slot, pack: run.pack })
            }
            _ => Place::Zero(next),
        }
    }

    /// Every run in turn.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Run) -> StoreResult<()>) -> StoreResult<()> {
        for number in 0..self.firsts.len() {
            self.read_page(number)?.into_iter().try_for_each(&mut each)?;
        }
        Ok(())
    }

    fn page(&self, number: usize) -> StoreResult<Arc<[Run]>> {
        if let Some(page) = self.kept(number) {
            return Ok(page);
        }
        let page: Arc<[Run]> = self.read_page(number)?.into();
        self.keep(number, &page);
        Ok(page)
    }

    fn kept(&self, number: usize) -> Option<Arc<[Run]>> {
        let kept = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(kept, _)| *kept == number).map(|(_, page)| Arc::clone(page))
    }

    fn keep(&self, number: usize, page: &Arc<[Run]>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, Arc::clone(page)));
    }

    fn read_page(&self, number: usize) -> StoreResult<Vec<Run>> {
        let mut bytes = [0; PAGE];
        let at = page_offset(number);
        self.file.read_exact_at(&mut bytes, at).map_err(StoreError::file("read", &self.path))?;
        self.decode_page(number, &bytes)
    }

    fn decode_page(&self, number: usize, bytes: &[u8; PAGE]) -> StoreResult<Vec<Run>> {
        let at = page_offset(number);
        let mut reader = Reader::new(bytes, &self.path);
        let checksum = reader.u64("checksum")?;
        if checksum != xxh3_64_with_seed(&bytes[8..], number as u64 + 1) {
            return Err(StoreError::corrupt(&self.path, "page", at, "its checksum does not fit"));
        }
        let count = reader.u32("runs of a page")? as usize;
        let before = number * RUNS_PER_PAGE;
        let expected = (self.runs as usize).saturating_sub(before).min(RUNS_PER_PAGE);
        if count != expected {
            let why = format!("{count} instead of {expected}");
            return Err(StoreError::corrupt(&self.path, "runs of a page", at + 8, why));
        }
        let mut runs = Vec::with_capacity(count);
        for at in 0..count {
            let run = Run {
                first: reader.u64("first chunk")?,
                count: reader.u32("count")?,
                pack: PackNumber(reader.u32("pack")?),
                slot: reader.u32("slot")?,
            };
            let fits = run.count > 0
                && run.pack.0 > 0
                && run.slot.checked_add(run.count).is_some_and(|end| end <= SLOTS_MAX)
                && run.first.checked_add(u64::from(run.count)).is_some();
            if !fits {
                return Err(self.corrupt_run(number, at, "it is empty or leaves its pack".into()));
            }
            runs.push(run);
        }
        Ok(runs)
    }

    fn corrupt_run(&self, page: usize, at: usize, why: String) -> StoreError {
        let offset = (page + 1) * PAGE + 12 + at * RUN;
        StoreError::corrupt(&self.path, "run", offset as u64, why)
    }
}

fn page_offset(number: usize) -> u64 {
    (number as u64 + 1) * PAGE as u64
}

fn encode_header(root: &Root, size: u64, runs: u64, chunks: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&1_u32.to_le_bytes());
    header[16..48].copy_from_slice(&root.0);
    for (at, number) in [(48, size), (56, runs), (64, chunks)] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let digest = *blake3::hash(&header[..HEADER - 32]).as_bytes();
    header[HEADER - 32..].copy_from_slice(&digest);
    header
}

fn encode_page(number: u64, runs: &[Run]) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[8..12].copy_from_slice(&(runs.len() as u32).to_le_bytes());
    for (bytes, run) in page[12..].chunks_exact_mut(RUN).zip(runs) {
        bytes[..8].copy_from_slice(&run.first.to_le_bytes());
        bytes[8..12].copy_from_slice(&run.count.to_le_bytes());
        bytes[12..16].copy_from_slice(&run.pack.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&run.slot.to_le_bytes());
    }
    let checksum = xxh3_64_with_seed(&page[8..], number);
    page[..8].copy_from_slice(&checksum.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The runs of a disk of which every chunk is put somewhere, or nowhere.
    fn write(folder: &Folder, places: &[Option<(u32, u32)>]) {
        let mut map = MapWriter::create(folder, "map").unwrap();
        for (first, place) in (0..).zip(places) {
            if let Some((pack, slot)) = *place {
                map.push(Run { first, count: 1, pack: PackNumber(pack), slot }).unwrap();
            }
        }
        map.finish(&Root([9; 32]), places.len() as u64 * 65_536).unwrap();
    }

    proptest! {
        #[test]
        fn every_chunk_is_where_it_was_put(
            parts in proptest::collection::vec((1_usize..900, proptest::option::of((1_u32..4, 0_u32..5000))), 1..60),
            scattered in any::<bool>(),
        ) {
            let scene = tempfile::tempdir().unwrap();
            let folder = Folder::open(scene.path()).unwrap();
            let mut places = Vec::new();
            for (count, start) in parts {
                for step in 0..count as u32 {
                    let step = if scattered { step * 2 } else { step };
                    places.push(start.map(|(pack, slot)| (pack, slot + step)));
                }
            }
            write(&folder, &places);
            let map = Map::open(&folder, "map").unwrap();
            prop_assert_eq!(map.chunks(), places.iter().flatten().count() as u64);
            for (index, place) in places.iter().enumerate() {
                match (map.place(index as u64).unwrap(), place) {
                    (Place::In(run), Some((pack, slot))) => {
                        prop_assert_eq!((run.first, run.pack.0, run.slot), (index as u64, *pack, *slot));
                        let end = index + run.count as usize;
                        let promised: Vec<_> = (0..run.count).map(|step| Some((*pack, slot + step))).collect();
                        prop_assert_eq!(&places[index..end], &promised[..]);
                    }
                    (Place::Zero(until), None) => {
                        let end = (until as usize).min(places.len());
                        prop_assert!(end > index && places[index..end].iter().all(Option::is_none));
                    }
                    other => prop_assert!(false, "chunk {}: {:?}", index, other),
                }
            }
            let mut seen = 0;
            map.for_each(|run| { seen += u64::from(run.count); Ok(()) }).unwrap();
            prop_assert_eq!(seen, map.chunks());
        }
    }

    /// Any flipped bit, any cut, and runs that nobody sane writes under a right checksum.
    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        let scene = tempfile::tempdir().unwrap();
        let folder = Folder::open(scene.path()).unwrap();
        let places: Vec<_> = (0..500).map(|chunk| (chunk % 5 != 0).then_some((1, chunk * 2))).collect();
        write(&folder, &places);
        let path = scene.path().join("map");
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..HEADER).chain((PAGE..bytes.len()).step_by(13)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&path, &damaged).unwrap();
            assert!(matches!(Map::open(&folder, "map"), Err(StoreError::Corrupt { .. })), "byte {at}");
        }
        for length in (0..bytes.len()).step_by(501) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Map::open(&folder, "map").is_err(), "{length} bytes");
        }
        let run = |first, count, pack, slot| Run { first, count, pack: PackNumber(pack), slot };
        for (runs, why) in [
            (vec![run(3, 2, 1, 0), run(4, 1, 1, 9)], "overlap"),
            (vec![run(3, 2, 1, 0), run(1, 1, 1, 9)], "overlap"),
            (vec![run(9, 2, 1, 0)], "pass the disk's end"),
            (vec![run(0, 0, 1, 0)], "empty"),
            (vec![run(0, 1, 0, 0)], "leaves its pack"),
            (vec![run(0, 2, 1, SLOTS_MAX - 1)], "leaves its pack"),
            (vec![run(0, 2, 1, u32::MAX)], "leaves its pack"),
            (vec![run(u64::MAX, 2, 1, 0)], "leaves its pack"),
        ] {
            let chunks = runs.iter().map(|run| u64::from(run.count)).sum();
            let mut bytes = encode_header(&Root([9; 32]), 10 * 65_536, runs.len() as u64, chunks).to_vec();
            bytes.resize(PAGE, 0);
            bytes.extend(encode_page(1, &runs));
            std::fs::write(&path, &bytes).unwrap();
            let error = Map::open(&folder, "map").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("run at byte 4"), "{error}");
        }
    }
}
