//! Letting versions name other copies of their chunks. A version's map is replaced by rename; the one before keeps a name
//! beside it, and what it names stays, for as long as somebody reads by it.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use goldwire_disk::FileIdentity;
use goldwire_stdx::{Existing, Folder};

use super::pieces::{RANGES_MAX, for_each_stretch, ranges};
use super::repack::step;
use super::{MAP, Store, StoreError, StoreResult};
use crate::map::{Map, MapWriter, Run};
use crate::pack::PackNumber;
use crate::tree::Root;

/// A map that is being written beside the one that it replaces.
const NEW: &str = "map.new";
/// What the names of replaced maps begin with; a number follows.
const BEFORE: &str = "map.";
/// The most replaced maps that a version keeps for its readers.
const BEFORE_MAX: u32 = 1000;

/// Where chunks lay, and where a copy of each lies now.
pub(super) struct Moves {
    /// The pack of all copies.
    to: PackNumber,
    /// Place before and slot now, sorted. A chunk may have several copies.
    slots: Vec<((PackNumber, u32), u32)>,
}

impl Moves {
    /// From a map whose chunks are the slots of pack `to`, and which says where each was copied from.
    pub(super) fn new(pins: &Map, to: PackNumber) -> StoreResult<Self> {
        let mut slots = Vec::new();
        pins.for_each(|run| {
            slots.extend((0..run.count).map(|at| ((run.pack, run.slot + at), run.first as u32 + at)));
            Ok(())
        })?;
        slots.sort_unstable();
        Ok(Self { to, slots })
    }

    /// As they will be when what lies in `sources` has been copied into pack `to`.
    pub(super) fn planned(sources: &[(PackNumber, u32)], to: PackNumber) -> Self {
        let mut slots: Vec<_> = sources.iter().copied().zip(0..).collect();
        slots.sort_unstable();
        Self { to, slots }
    }

    /// Whether a chunk of the run was copied.
    fn touches(&self, run: &Run) -> bool {
        let first = self.slots.partition_point(|(place, _)| *place < (run.pack, run.slot));
        self.slots.get(first).is_some_and(|(place, _)| *place < (run.pack, run.slot + run.count))
    }

    /// The copy of what lies in `place`: the one in slot `wanted` if there is that.
    fn copy_of(&self, place: (PackNumber, u32), wanted: Option<u32>) -> Option<u32> {
        let first = self.slots.partition_point(|(before, _)| *before < place);
        let copies = self.slots[first..].iter().take_while(|(before, _)| *before == place);
        let any = self.slots.get(first).filter(|(before, _)| *before == place).map(|(_, slot)| *slot);
        copies.map(|(_, slot)| *slot).find(|slot| Some(*slot) == wanted).or(any)
    }

    /// The runs of a stretch where they are copied, and how many chunks of it are.
    fn apply(&self, runs: &[Run]) -> (Vec<Run>, u64) {
        let (mut moved, mut count) = (Vec::new(), 0);
        let mut wanted = None;
        for run in runs {
            for at in 0..run.count {
                let first = run.first + u64::from(at);
                let place = (run.pack, run.slot + at);
                let (pack, slot) = match self.copy_of(place, wanted) {
                    Some(slot) => {
                        count += 1;
                        wanted = slot.checked_add(1);
                        (self.to, slot)
                    }
                    None => place,
                };
                moved.push(Run { first, count: 1, pack, slot });
            }
        }
        (moved, count)
    }
}

impl Store {
    /// Lets every version name the copies. The caller holds the writers' lock, and the copies are durable. What a version of
    /// `guarded` has in order stays where it is if it would fall apart otherwise, as long as there are `spare` chunks that
    /// may be here twice for that.
    pub(super) fn move_maps(
        &self,
        moves: &Moves,
        guarded: &HashSet<Root>,
        spare: &mut u64,
    ) -> StoreResult<()> {
        for root in self.versions()? {
            self.move_map(&root, moves, guarded.contains(&root), spare)?;
        }
        Ok(())
    }

    /// How many chunks would have to stay where they are, so that no version of `guarded` falls apart. The caller holds the
    /// writers' lock.
    pub(super) fn chunks_torn(&self, moves: &Moves, guarded: &HashSet<Root>) -> StoreResult<u64> {
        let mut torn = 0;
        for root in self.versions()?.into_iter().filter(|root| guarded.contains(root)) {
            let map = Map::open(&self.version_folder(&root)?, MAP)?;
            for_each_stretch(&map, |runs| {
                if runs.iter().any(|run| moves.touches(run)) {
                    let (moved, count) = moves.apply(runs);
                    torn += if falls_apart(runs, &moved) { count } else { 0 };
                }
                Ok(())
            })?;
        }
        Ok(torn)
    }

    fn move_map(&self, root: &Root, moves: &Moves, is_guarded: bool, spare: &mut u64) -> StoreResult<()> {
        let folder = self.version_folder(root)?;
        let moved = Self::move_map_in(&folder, root, moves, is_guarded, spare);
        if moved.is_err() {
            // It would take the room that is missing.
            let _ = folder.remove_file(NEW);
        }
        moved
    }

    fn move_map_in(
        folder: &Folder,
        root: &Root,
        moves: &Moves,
        is_guarded: bool,
        spare: &mut u64,
    ) -> StoreResult<()> {
        let map = Map::open(folder, MAP)?;
        if map.root() != root {
            return Err(StoreError::corrupt(map.path(), "root", 16, "it is the map of another version"));
        }
        let mut is_touched = false;
        map.for_each(|run| {
            is_touched |= moves.touches(&run);
            Ok(())
        })?;
        if !is_touched {
            return Ok(());
        }
        let mut is_changed = false;
        let mut new = MapWriter::create(folder, NEW)?;
        for_each_stretch(&map, |runs| {
            if !runs.iter().any(|run| moves.touches(run)) {
                return runs.iter().try_for_each(|run| new.push(*run));
            }
            let (moved, count) = moves.apply(runs);
            if is_guarded && count <= *spare && falls_apart(runs, &moved) {
                *spare -= count;
                return runs.iter().try_for_each(|run| new.push(*run));
            }
            is_changed = true;
            moved.into_iter().try_for_each(|run| new.push(run))
        })?;
        step()?;
        new.finish(root, map.size())?;
        if is_changed {
            return replace_map(folder, &map);
        }
        folder.remove_file(NEW).map_err(StoreError::file("remove", &folder.path().join(NEW)))
    }

    /// The maps that were replaced and by which somebody still reads the version; the others go. The caller holds the
    /// writers' lock.
    pub(super) fn maps_before(&self, root: &Root, is_dry: bool) -> StoreResult<Vec<String>> {
        let folder = self.version_folder(root)?;
        let mut read = Vec::new();
        for name in Self::entries(&folder)?.into_iter().filter_map(|name| name.into_string().ok()) {
            if name.strip_prefix(BEFORE).is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            let path = folder.path().join(&name);
            let map = folder.read_file(&name).map_err(StoreError::file("open", &path))?;
            // A second name of the map itself is left where the power went before that was replaced.
            if is_same(&folder, &map)? {
                if !is_dry {
                    folder.remove_file(&name).map_err(StoreError::file("remove", &path))?;
                }
                continue;
            }
            // Held until it is gone: who opened it meanwhile sees that it has no name.
            if map.try_lock().is_err() {
                read.push(name);
            } else if !is_dry {
                folder.remove_file(&name).map_err(StoreError::file("remove", &path))?;
            }
        }
        Ok(read)
    }
}

/// Whether a file is the version's map by another name.
fn is_same(folder: &Folder, file: &File) -> StoreResult<bool> {
    let path = folder.path().join(MAP);
    let same = folder.read_file(MAP).and_then(|map| Ok(FileIdentity::of(&map)? == FileIdentity::of(file)?));
    match same {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        same => same.map_err(StoreError::file("stat", &path)),
    }
}

/// Whether a stretch that is in order would not be any more, or another would be in more pieces than it is.
fn falls_apart(runs: &[Run], moved: &[Run]) -> bool {
    ranges(moved) > ranges(runs).max(RANGES_MAX)
}

/// Puts the new map in the place of the old one, which keeps a name for its readers.
fn replace_map(folder: &Folder, old: &Map) -> StoreResult<()> {
    let path = folder.path().join(MAP);
    let kept: Option<File> = keep_before(folder, old)?;
    step()?;
    let done = folder.rename(NEW, folder, MAP, Existing::Replace).and_then(|()| folder.sync());
    drop(kept);
    done.map_err(StoreError::file("replace", &path))
}

/// Gives the map one more name. Where the file system has no second names nobody may be reading by it: the file is then
/// locked against everybody for as long as it is held.
fn keep_before(folder: &Folder, old: &Map) -> StoreResult<Option<File>> {
    let path = folder.path().join(MAP);
    for number in 1..=BEFORE_MAX {
        match folder.hard_link(MAP, folder, format!("{BEFORE}{number}")) {
            Ok(()) => {
                // What the new map has to do without is known before it is there.
                folder.sync().map_err(StoreError::file("make durable", folder.path()))?;
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let held = old.file().try_clone().map_err(StoreError::file("open", &path))?;
                let is_free = held.try_lock().is_ok();
                return if is_free { Ok(Some(held)) } else { Err(StoreError::file("keep", &path)(error)) };
            }
        }
    }
    let what = format!("{} is kept for readers more than {BEFORE_MAX} times", path.display());
    Err(StoreError::TooMuch { what })
}
