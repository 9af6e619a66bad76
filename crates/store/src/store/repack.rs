//! Putting versions in order: the stretches of a disk that lie in the most pieces are copied into a new pack in the order of
//! the guest, every version names the copies, and what was there before is given back. The chunks of a pack whose holes
//! the file system cannot give back are brought into a new one in the same way.
//!
//! What is being copied stands in `work/repack/map`: a map whose chunks are the slots of the new pack, each in the place from
//! where it is copied. It is there before the pack and goes when every version names the copies, so that whoever comes
//! next goes on, and no prune takes away what is read or written.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map};
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use goldwire_stdx::{AlignedBuffer, Folder, is_out_of_space};

use super::layout::{next_number, remove_pack};
use super::moves::Moves;
use super::pieces::{Lying, Pieces, RANGES_MAX, STRETCH, for_each_stretch, pieces, ranges};
use super::{MAP, Store, StoreError, StoreResult};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::{Map, MapWriter, Run};
use crate::pack::{Have, Ids, Pack, PackNumber, SLOTS_MAX, Slots};
use crate::tree::{BuildOptions, Root};

/// What is in hand, in `work`.
const FOLDER: &str = "repack";
const HOLDS: &str = "repack.lock";
/// Chunks that are read and written at a time.
const STEP: u32 = 16;
/// Bytes after which what was written is made durable and noted.
const NOTE_EVERY: u64 = 64 << 20;
/// Files of packs that are kept open.
const OPEN_MAX: usize = 64;
/// A version is brought below this many ranges of a stretch, in halves, so that the next publish needs no new order.
const TARGET_HALVES: u64 = 7;
/// One chunk in so many may be here twice, so that two versions are both in order.
const TWICE_ONE_IN: u64 = 5;

type Slot = (PackNumber, u32);

/// How far a repack may go.
#[derive(Clone, Copy)]
pub struct RepackBounds<'a> {
    /// Bytes by which the store may grow meanwhile.
    pub space: u64,
    /// Told of so many bytes before they are copied: whoever wants them slower waits there.
    pub pace: &'a (dyn Fn(u64) + Sync),
}

/// A version that was out of order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reordered {
    /// What names it, and how it lay.
    pub before: Lying,
    /// How it lies.
    pub after: Pieces,
    /// Why it is still out of order.
    pub left: Option<OutOfOrder>,
}

/// Why a version stays out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfOrder {
    /// Nothing was to be changed.
    DryRun,
    /// The store would grow by more than it may.
    Space,
    /// Its chunks repeat, or other versions have them in another order: too many would have to be here twice.
    Shared,
}

/// What a repack did, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repacked {
    /// The versions that were out of order.
    pub versions: Vec<Reordered>,
    /// Packs that were emptied, because the file system could not give their holes back.
    pub packs_emptied: usize,
    /// Such packs that stay, since the store would grow by more than it may.
    pub packs_left: usize,
    /// Chunks that were copied.
    pub chunks: u64,
    /// Of those, chunks that an earlier repack had made durable.
    pub chunks_resumed: u64,
    /// Bytes that came back.
    pub bytes: u64,
}

/// Why chunks are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// To have a version in order.
    Order,
    /// To have a pack empty: every version has to leave it.
    Empty,
}

/// Copies in the making.
struct InHand {
    why: Why,
    number: PackNumber,
    ids: Ids,
    /// Where the chunk of each slot is copied from.
    pins: Map,
}

/// One run of a repack.
struct Course<'a> {
    store: &'a Store,
    /// Locked for as long as it goes on.
    held: File,
    bounds: &'a RepackBounds<'a>,
    options: &'a BuildOptions<'a>,
    /// Versions that must not fall apart when another one is put in order: those that are newer, or were dealt with.
    guarded: HashSet<Root>,
    /// Chunks that may be here twice.
    spare: u64,
    /// Bytes that may still be taken.
    space: u64,
    done: Repacked,
}

impl Store {
    /// Puts the versions in order that channels name, now or from a time on, and the newest of each image: all, or those of
    /// the images named. Without names, packs are emptied that hold more holes than data which the file system cannot
    /// give back. Others may read, publish and prune meanwhile. With `is_dry` nothing is changed.
    ///
    /// # Errors
    /// `Repacking` if another process does this; `Unknown` for an image; `Corrupt` for a chunk that is damaged, with its
    /// version; `Medium`, `File`, `Stopped`.
    pub fn repack(
        &self,
        images: &[String],
        bounds: &RepackBounds<'_>,
        is_dry: bool,
        options: &BuildOptions<'_>,
    ) -> StoreResult<Repacked> {
        // What is newer comes first: what comes next is made from it.
        let out_of_order = |mut lying: Vec<Lying>| {
            let mut seen = HashSet::new();
            lying.retain(|lying| lying.pieces.is_out_of_order() && seen.insert(lying.root));
            lying.sort_by_key(|lying| lying.age);
            lying
        };
        if is_dry {
            let why = Some(OutOfOrder::DryRun);
            let versions = out_of_order(self.lying(images)?).into_iter();
            let versions = versions.map(|before| Reordered { after: before.pieces, before, left: why });
            return Ok(Repacked { versions: versions.collect(), ..Repacked::default() });
        }
        let held = self.hold_repack()?;
        let mut served = self.served(&[])?;
        served.sort_by_key(|served| served.age);
        let mut ranks: Vec<Root> = Vec::new();
        for root in served.into_iter().map(|served| served.root) {
            if !ranks.contains(&root) {
                ranks.push(root);
            }
        }
        let guarded = ranks.iter().copied().collect();
        let space = bounds.space;
        let done = Repacked::default();
        let mut course = Course { store: self, held, bounds, options, guarded, spare: 0, space, done };
        course.spare = course.spare_chunks()?;
        course.go_on()?;
        course.sweep()?;
        course.spare = course.spare_chunks()?;
        if images.is_empty() {
            course.empty_packs()?;
        }
        for lying in out_of_order(self.lying(images)?) {
            let rank = ranks.iter().position(|root| *root == lying.root).unwrap_or(ranks.len());
            course.guarded = ranks[..rank].iter().copied().collect();
            course.put_in_order(lying)?;
        }
        Ok(course.done)
    }

    /// Lets nobody else repack for as long as the file is held.
    fn hold_repack(&self) -> StoreResult<File> {
        // A prune that looks whether somebody does holds the writers' lock.
        let _lock = self.lock()?;
        let path = self.work.path().join(HOLDS);
        let held = self.work.open_or_create(HOLDS, 0o600).map_err(StoreError::file("make", &path))?;
        match held.try_lock() {
            Ok(()) => {
                is_going_on(&held);
                Ok(held)
            }
            Err(_) => Err(StoreError::Repacking),
        }
    }

    /// What is being copied, or was when somebody was killed. None if that can be forgotten.
    fn in_hand(&self) -> StoreResult<Option<InHand>> {
        let folder = match self.work.child(FOLDER) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(StoreError::file("open", &self.work.path().join(FOLDER)))?,
        };
        // What is damaged or gone needs not be gone on with: no version relies on it.
        let Some(pins) = if_fit(Map::open(&folder, MAP))? else { return Ok(None) };
        for number in self.packs_with("ids")?.into_iter().rev() {
            let whys = [Why::Order, Why::Empty];
            let Some(why) = whys.into_iter().find(|why| self.repack_root(*why, number) == *pins.root())
            else {
                continue;
            };
            let Some(ids) = if_fit(Ids::open(&self.packs, number))? else { return Ok(None) };
            let fits = ids.root() == pins.root() && u64::from(ids.slots()) == pins.chunks();
            return Ok(fits.then_some(InHand { why, number, ids, pins }));
        }
        Ok(None)
    }

    /// What stands in the place of a version in the ids of a pack of copies. No other repack of this store has it.
    fn repack_root(&self, why: Why, number: PackNumber) -> Root {
        let mut hasher = blake3::Hasher::new();
        hasher.update(match why {
            Why::Order => b"goldwire repack order",
            Why::Empty => b"goldwire repack empty",
        });
        hasher.update(&self.uuid().0).update(&number.0.to_le_bytes());
        Root(*hasher.finalize().as_bytes())
    }

    /// For a prune, which holds the writers' lock: the copies that somebody makes or will go on with, by the root of their
    /// pack, with the map that says what they are copied from. What was all copied is ended, and what nobody has gone
    /// on with since `is_old` goes.
    pub(super) fn tidy_repack(
        &self,
        is_dry: bool,
        is_old: impl FnOnce(&Folder, &File) -> StoreResult<bool>,
    ) -> StoreResult<Option<(Root, Map)>> {
        let path = self.work.path().join(HOLDS);
        let held = match self.work.read_file(HOLDS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(StoreError::file("open", &path))?,
        };
        let is_busy = held.try_lock().is_err();
        match self.in_hand()? {
            Some(hand) if is_busy => Ok(Some((*hand.pins.root(), hand.pins))),
            Some(hand) if !Have::is_there(&self.packs, hand.number)? => {
                if is_dry {
                    return Ok(Some((*hand.pins.root(), hand.pins)));
                }
                match self.finish_repack(&hand, &HashSet::new(), &mut 0) {
                    Ok(()) => Ok(None),
                    // A full disk, or maps that are still read: a prune makes room, and this is ended another time.
                    Err(StoreError::File { .. } | StoreError::TooMuch { .. }) => {
                        Ok(Some((*hand.pins.root(), hand.pins)))
                    }
                    Err(error) => Err(error),
                }
            }
            Some(hand) => {
                let folder = self.work.child(FOLDER).map_err(StoreError::file("open", &path))?;
                if !is_old(&folder, &held)? {
                    return Ok(Some((*hand.pins.root(), hand.pins)));
                }
                if !is_dry {
                    self.forget_repack()?;
                }
                Ok(None)
            }
            // Who has it has not laid out yet.
            None if is_busy || is_dry => Ok(None),
            None => self.forget_repack().map(|()| None),
        }
    }

    /// Lets every version name the copies, which are whole and durable. The caller holds the writers' lock.
    fn finish_repack(&self, hand: &InHand, guarded: &HashSet<Root>, spare: &mut u64) -> StoreResult<()> {
        step()?;
        // Every version will rely on what lies under this name, and not on the file that was filled.
        let is_there = if_fit(Pack::open(&self.packs, hand.number))?.is_some()
            && if_fit(Ids::open(&self.packs, hand.number))?
                .is_some_and(|ids| ids.root() == hand.pins.root() && ids.slots() == hand.ids.slots());
        if !is_there {
            self.forget_repack()?;
            let path = self.packs.path().join(hand.number.file("pack"));
            return Err(StoreError::corrupt(&path, "pack", 0, "it was taken away while it was filled"));
        }
        let name = hand.number.file("have");
        let path = self.packs.path().join(&name);
        self.packs.remove_file(&name).map_err(StoreError::file("remove", &path))?;
        self.packs.sync().map_err(StoreError::file("make durable", self.packs.path()))?;
        step()?;
        let moves = Moves::new(&hand.pins, hand.number)?;
        match hand.why {
            Why::Order => self.move_maps(&moves, guarded, spare)?,
            Why::Empty => self.move_maps(&moves, &HashSet::new(), spare)?,
        }
        step()?;
        self.forget_repack()
    }

    fn forget_repack(&self) -> StoreResult<()> {
        let gone = self.work.remove_tree(FOLDER).and_then(|()| self.work.sync());
        gone.map_err(StoreError::file("remove", &self.work.path().join(FOLDER)))
    }

    /// The version and the chunk of it that lies in `place`.
    fn named_in(&self, place: Slot) -> StoreResult<Option<(Root, u64)>> {
        let mut found = None;
        for root in self.versions()? {
            Map::open(&self.version_folder(&root)?, MAP)?.for_each(|run| {
                let slots = run.slot..run.slot + run.count;
                if found.is_none() && run.pack == place.0 && slots.contains(&place.1) {
                    found = Some((root, run.first + u64::from(place.1 - run.slot)));
                }
                Ok(())
            })?;
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }
}

impl Course<'_> {
    fn check_stop(&self) -> StoreResult<()> {
        match self.options.stop.load(Ordering::Relaxed) {
            true => Err(Error::Stopped.into()),
            false => Ok(()),
        }
    }

    /// Chunks that may come to be here twice.
    fn spare_chunks(&self) -> StoreResult<u64> {
        let (chunks, distinct) = self.store.distinct(self.options.stop)?;
        Ok((distinct / TWICE_ONE_IN).saturating_sub(chunks - distinct))
    }

    /// Slots for which there is room.
    fn room(&self) -> usize {
        (self.space / CHUNK_SIZE as u64).min(SLOTS_MAX.into()) as usize
    }

    /// Gives back what no version names.
    fn sweep(&mut self) -> StoreResult<()> {
        let bytes = self.store.give_back(self.options.stop)?;
        self.done.bytes += bytes;
        self.space = self.space.saturating_add(bytes).min(self.bounds.space);
        Ok(())
    }

    /// Ends what an earlier run began.
    fn go_on(&mut self) -> StoreResult<()> {
        match self.store.in_hand()? {
            Some(hand) => self.copy(&hand),
            None => self.store.forget_repack(),
        }
    }

    fn put_in_order(&mut self, before: Lying) -> StoreResult<()> {
        let mut after = before.pieces;
        let mut left = None;
        while after.is_out_of_order() {
            self.check_stop()?;
            let lock = self.store.lock()?;
            let Some(map) = self.map_of(&before.root)? else { return Ok(()) };
            let plan = self.plan(&map)?;
            // What it names is to be free soon.
            drop(map);
            if plan.sources.is_empty() {
                left = Some(if plan.is_cut { OutOfOrder::Space } else { OutOfOrder::Shared });
                break;
            }
            self.spare = self.spare.saturating_sub(plan.copies);
            self.lay_out(Why::Order, &plan.sources)?;
            drop(lock);
            self.go_on()?;
            self.sweep()?;
            let Some(map) = self.map_of(&before.root)? else { return Ok(()) };
            let now = pieces(&map)?;
            if now.ranges >= after.ranges {
                left = Some(OutOfOrder::Shared);
                after = now;
                break;
            }
            after = now;
        }
        self.done.versions.push(Reordered { before, after, left });
        Ok(())
    }

    /// The map of a version; none if it was pruned meanwhile.
    fn map_of(&self, root: &Root) -> StoreResult<Option<Map>> {
        match self.store.version_folder(root).and_then(|folder| Map::open_to_read(&folder, MAP)) {
            Err(StoreError::Unknown { .. }) => Ok(None),
            Err(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// What can be copied so that the version of the map lies better and no other that matters falls apart. The caller holds
    /// the writers' lock.
    fn plan(&self, map: &Map) -> StoreResult<Plan> {
        let number = next_number(self.store)?;
        let mut room = self.room();
        loop {
            let mut plan = Plan::of(map, room, self.spare)?;
            let moves = Moves::planned(&plan.sources, number);
            let torn = self.store.chunks_torn(&moves, &self.guarded)?;
            if plan.copies + torn <= self.spare || plan.sources.is_empty() {
                plan.is_cut &= room == self.room();
                return Ok(plan);
            }
            room = plan.sources.len() / 2;
        }
    }

    /// Brings what is in packs of many holes into a new one, where those holes stay.
    fn empty_packs(&mut self) -> StoreResult<()> {
        loop {
            self.check_stop()?;
            let lock = self.store.lock()?;
            let mut plan = Emptying::of(self.store, self.room())?;
            self.done.packs_left = plan.left;
            if plan.packs.is_empty() {
                return Ok(());
            }
            let count = plan.packs.len();
            let sources = plan.in_order(self.store)?;
            if sources.is_empty() {
                return Ok(());
            }
            self.lay_out(Why::Empty, &sources)?;
            drop(lock);
            self.go_on()?;
            let before = self.done.bytes;
            self.sweep()?;
            // What somebody still reads or brings stays where it is; the next run tries again.
            if self.done.bytes == before {
                return Ok(());
            }
            self.done.packs_emptied += count;
        }
    }

    /// Makes a pack for the chunks that lie in `sources`. The caller holds the writers' lock.
    fn lay_out(&mut self, why: Why, sources: &[Slot]) -> StoreResult<()> {
        let store = self.store;
        let number = next_number(store)?;
        let root = store.repack_root(why, number);
        let ids = ids_of(store, sources)?;
        let path = store.work.path().join(FOLDER);
        step()?;
        let folder = store.work.make_child(FOLDER, 0o755).map_err(StoreError::file("make", &path))?;
        let mut pins = MapWriter::create(&folder, MAP)?;
        for (first, (pack, slot)) in (0..).zip(sources) {
            pins.push(Run { first, count: 1, pack: *pack, slot: *slot })?;
        }
        step()?;
        pins.finish(&root, sources.len() as u64 * CHUNK_SIZE as u64)?;
        let durable = folder.sync().and_then(|()| store.work.sync());
        durable.map_err(StoreError::file("make durable", &path))?;
        step()?;
        // From here on there is a pack, and it is not whole.
        Have::create(&store.packs, number)?;
        step()?;
        Ids::write(&store.packs, number, &root, &ids)?;
        step()
    }

    /// Copies what is in hand, proves it and lets versions name it.
    fn copy(&mut self, hand: &InHand) -> StoreResult<()> {
        let store = self.store;
        match self.fill(hand) {
            Ok(()) => {}
            // It would stop every later run, too, and take the room that is missing.
            Err(error) if is_hopeless(&error) => {
                let _lock = store.lock()?;
                store.forget_repack()?;
                remove_pack(store, hand.number)?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        let _lock = store.lock()?;
        store.finish_repack(hand, &self.guarded, &mut self.spare)
    }

    fn fill(&mut self, hand: &InHand) -> StoreResult<()> {
        let store = self.store;
        let progress = self.options.progress;
        let all = u64::from(hand.ids.slots()) * CHUNK_SIZE as u64;
        progress.bytes_done.store(0, Ordering::Relaxed);
        progress.bytes_total.store(2 * all, Ordering::Relaxed);
        let Some((mut have, slots)) = Have::open(&store.packs, hand.number)? else { return Ok(()) };
        let pack = Pack::open_to_fill(&store.packs, hand.number, hand.ids.slots())?;
        store.packs.sync().map_err(StoreError::file("make durable", store.packs.path()))?;
        self.done.chunks += u64::from(hand.ids.slots());
        self.done.chunks_resumed += u64::from(slots.count());
        self.space = self.space.saturating_sub(all);
        progress.bytes_done.store(u64::from(slots.count()) * CHUNK_SIZE as u64, Ordering::Relaxed);
        let mut copying =
            Copying { hand, pack: &pack, have: &mut have, slots: &slots, sources: Opened::default() };
        copying.all(self)?;
        pack.sync()?;
        let mut buffer = AlignedBuffer::zeroed(STEP as usize * CHUNK_SIZE);
        for first in (0..hand.ids.slots()).step_by(STEP as usize) {
            self.check_stop()?;
            let ids = hand.ids.ids(first..(first + STEP).min(hand.ids.slots()))?;
            let chunks = &mut buffer[..ids.len() * CHUNK_SIZE];
            (self.bounds.pace)(chunks.len() as u64);
            pack.read(first, chunks)?;
            if ids.iter().zip(chunks.chunks_exact(CHUNK_SIZE)).any(|(id, chunk)| ChunkId::of(chunk) != *id) {
                return Err(StoreError::Medium { pack: hand.number.0 });
            }
            progress.bytes_done.fetch_add(chunks.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Filling the pack of copies.
struct Copying<'a> {
    hand: &'a InHand,
    pack: &'a Pack,
    have: &'a mut Have,
    /// Slots that an earlier run made durable.
    slots: &'a Slots,
    sources: Opened<Pack>,
}

impl Copying<'_> {
    fn all(&mut self, course: &Course<'_>) -> StoreResult<()> {
        let mut written = Slots::default();
        let mut bytes = 0;
        let hand = self.hand;
        let copied = hand.pins.for_each(|run| {
            let mut at = 0;
            while at < run.count {
                course.check_stop()?;
                let slot = run.first as u32 + at;
                let is_open = |at: &u32| !self.slots.contains(run.first as u32 + at);
                let count = (at..run.count.min(at + STEP)).take_while(is_open).count() as u32;
                if count > 0 {
                    self.some(course, slot, Run { count, slot: run.slot + at, ..run })?;
                    written.insert(slot..slot + count);
                    bytes += u64::from(count) * CHUNK_SIZE as u64;
                }
                if bytes >= NOTE_EVERY {
                    self.note(&mut written)?;
                    is_going_on(&course.held);
                    bytes = 0;
                }
                at += count.max(1);
            }
            Ok(())
        });
        // Also of a run that is stopped: what is written is not written again.
        let noted = self.note(&mut written);
        copied.and(noted)
    }

    /// Copies chunks of one run, each of which must be what the ids say.
    fn some(&mut self, course: &Course<'_>, slot: u32, from: Run) -> StoreResult<()> {
        let store = course.store;
        let mut buffer = AlignedBuffer::zeroed(from.count as usize * CHUNK_SIZE);
        (course.bounds.pace)(buffer.len() as u64);
        step()?;
        let source = self.sources.get(from.pack, |number| Pack::open(&store.packs, number))?;
        source.read(from.slot, &mut buffer)?;
        let ids = self.hand.ids.ids(slot..slot + from.count)?;
        for ((at, id), chunk) in (from.slot..).zip(&ids).zip(buffer.chunks_exact(CHUNK_SIZE)) {
            if ChunkId::of(chunk) != *id {
                let why = match store.named_in((from.pack, at))? {
                    Some((root, index)) => format!("it is not chunk {index} of version {root}"),
                    None => format!("it is not chunk {id}"),
                };
                let at = u64::from(at) * CHUNK_SIZE as u64;
                return Err(StoreError::corrupt(source.path(), "chunk", at, why));
            }
        }
        self.pack.write(slot, &buffer)?;
        course.options.progress.bytes_done.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn note(&mut self, written: &mut Slots) -> StoreResult<()> {
        step()?;
        self.pack.sync()?;
        step()?;
        let slots = std::mem::take(written);
        slots.runs().iter().try_for_each(|run| self.have.add(run.clone()))
    }
}

/// Says so to a prune, which takes away what nobody has gone on with for long. A file system without times has no such prune.
fn is_going_on(held: &File) {
    let _ = held.set_modified(std::time::SystemTime::now());
}

/// What was opened, or nothing if it is gone or damaged. That it cannot be looked at now says nothing about it.
fn if_fit<T>(opened: StoreResult<T>) -> StoreResult<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(StoreError::Corrupt { .. }) => Ok(None),
        Err(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the same would happen again, or what was copied takes the room that is missing.
fn is_hopeless(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt { .. } | StoreError::Medium { .. } => true,
        StoreError::File { source, .. } => is_out_of_space(source.kind()),
        _ => false,
    }
}

/// What has to be copied to have a version in order.
struct Plan {
    /// Where the chunks lie, in the order of the disk.
    sources: Vec<Slot>,
    /// How many of them are copied twice or more.
    copies: u64,
    /// Whether there was no room for some.
    is_cut: bool,
}

impl Plan {
    /// The stretches in the most pieces, as many as it takes, for at most `room` chunks of which `spare` may be copied again.
    fn of(map: &Map, room: usize, spare: u64) -> StoreResult<Self> {
        let mut counts = [0_u64; STRETCH as usize + 1];
        for_each_stretch(map, |runs| {
            counts[ranges(runs) as usize] += 1;
            Ok(())
        })?;
        let stretches: u64 = counts.iter().sum();
        let all: u64 = (0..).zip(&counts).map(|(ranges, count)| ranges * count).sum();
        let mut surplus = all.saturating_sub(stretches * TARGET_HALVES / 2);
        let mut take = [0_u64; STRETCH as usize + 1];
        for at in (RANGES_MAX as usize + 1..counts.len()).rev() {
            take[at] = counts[at].min(surplus.div_ceil(at as u64 - 1));
            surplus = surplus.saturating_sub(take[at] * (at as u64 - 1));
        }
        let mut plan = Self { sources: Vec::new(), copies: 0, is_cut: false };
        let mut copied: HashMap<Slot, u32> = HashMap::new();
        for_each_stretch(map, |runs| {
            let before = ranges(runs);
            if take[before as usize] == 0 {
                return Ok(());
            }
            let chunks: u32 = runs.iter().map(|run| run.count).sum();
            if plan.sources.len() + chunks as usize > room {
                plan.is_cut = true;
                return Ok(());
            }
            let (fresh, copies) = again(runs, &copied, spare - plan.copies);
            if let Some(fresh) = fresh {
                take[before as usize] -= 1;
                plan.copies += copies;
                for place in fresh {
                    copied.insert(place, plan.sources.len() as u32);
                    plan.sources.push(place);
                }
            }
            Ok(())
        })?;
        Ok(plan)
    }
}

/// The chunks of a stretch that are copied for it, with how many of them were copied before: all in a row, or only what was
/// not copied yet if no chunk may be there twice. None if it would not be in order then.
fn again(runs: &[Run], copied: &HashMap<Slot, u32>, spare: u64) -> (Option<Vec<Slot>>, u64) {
    let chunks = runs.iter().flat_map(|run| (run.slot..run.slot + run.count).map(|slot| (run.pack, slot)));
    let mut row: Vec<Slot> = chunks.collect();
    // A chunk that follows itself is there already.
    row.dedup();
    let mut here = HashSet::new();
    let twice =
        row.iter().filter(|place| copied.contains_key(*place) || !here.insert(**place)).count() as u64;
    if twice <= spare {
        return (Some(row), twice);
    }
    let mut here: HashMap<Slot, u32> = HashMap::new();
    let (mut fresh, mut new) = (Vec::new(), Vec::new());
    for place in &row {
        let slot = copied.get(place).or(here.get(place)).copied().unwrap_or_else(|| {
            // Beyond all that is there, in a row.
            let slot = u32::MAX / 2 + fresh.len() as u32;
            fresh.push(*place);
            slot
        });
        here.insert(*place, slot);
        new.push(Run { first: 0, count: 1, pack: PackNumber(1), slot });
    }
    if ranges(&new) <= RANGES_MAX { (Some(fresh), 0) } else { (None, 0) }
}

/// Packs that shall be emptied.
struct Emptying {
    /// The packs, each with the slots that are still to be found in a version.
    packs: BTreeMap<PackNumber, HashSet<u32>>,
    /// Packs for which there was no room.
    left: usize,
}

impl Emptying {
    /// The packs with more holes than data which take the space of both.
    fn of(store: &Store, room: usize) -> StoreResult<Self> {
        let mut plan = Self { packs: BTreeMap::new(), left: 0 };
        let mut chunks = 0;
        for number in store.packs_with("ids")? {
            let ids = Ids::open(&store.packs, number)?;
            let live = ids.entries();
            if live >= ids.slots() - live || Have::is_there(&store.packs, number)? {
                continue;
            }
            let taken = Pack::open(&store.packs, number)?.allocated()?;
            if taken <= 2 * u64::from(live) * CHUNK_SIZE as u64 {
                continue;
            }
            if chunks + live as usize > room {
                plan.left += 1;
                continue;
            }
            chunks += live as usize;
            plan.packs.insert(number, HashSet::new());
        }
        Ok(plan)
    }

    /// Where their chunks lie, in the order of the disks of the versions that have them: what channels name comes first.
    fn in_order(&mut self, store: &Store) -> StoreResult<Vec<Slot>> {
        let mut roots: Vec<Root> = store.served(&[])?.into_iter().map(|served| served.root).collect();
        roots.extend(store.versions()?);
        let mut seen = HashSet::new();
        let mut sources = Vec::new();
        for root in roots {
            if !seen.insert(root) {
                continue;
            }
            let folder = match store.version_folder(&root) {
                Err(StoreError::Unknown { .. }) => continue,
                folder => folder?,
            };
            Map::open(&folder, MAP)?.for_each(|run| {
                if let Some(found) = self.packs.get_mut(&run.pack) {
                    let slots = (run.slot..run.slot + run.count).filter(|slot| found.insert(*slot));
                    sources.extend(slots.map(|slot| (run.pack, slot)));
                }
                Ok(())
            })?;
        }
        Ok(sources)
    }
}

/// The ids of what lies in these places.
fn ids_of(store: &Store, sources: &[Slot]) -> StoreResult<Vec<ChunkId>> {
    let mut opened: Opened<Ids> = Opened::default();
    let mut ids = Vec::with_capacity(sources.len());
    let goes_on = |left: &Slot, right: &Slot| left.0 == right.0 && left.1 + 1 == right.1;
    for run in sources.chunk_by(goes_on) {
        let ((number, first), count) = (run[0], run.len() as u32);
        let of_pack = opened.get(number, |number| Ids::open(&store.packs, number))?;
        let found = of_pack.ids(first..first + count)?;
        if let Some(at) = found.iter().position(ChunkId::is_zero) {
            let slot = first + at as u32;
            let path = store.packs.path().join(number.file("ids"));
            let why = format!("slot {slot} is free, and a version names it");
            return Err(StoreError::corrupt(&path, "ids", 64 + u64::from(slot) * 32, why));
        }
        ids.extend(found);
    }
    Ok(ids)
}

/// Files of packs, a few of them open.
struct Opened<T>(HashMap<PackNumber, T>);

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Opened<T> {
    fn get(
        &mut self,
        number: PackNumber,
        open: impl FnOnce(PackNumber) -> StoreResult<T>,
    ) -> StoreResult<&T> {
        if !self.0.contains_key(&number) && self.0.len() >= OPEN_MAX {
            self.0.clear();
        }
        Ok(match self.0.entry(number) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(open(number)?),
        })
    }
}

/// A moment at which somebody may be killed: tests let it be the last one.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests let it fail")]
pub(super) fn step() -> StoreResult<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use cut::step;

#[cfg(test)]
pub(super) mod cut {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// After so many moments this thread's work ends; never if none.
        pub(crate) static AFTER: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub(crate) fn step() -> StoreResult<()> {
        let left = AFTER.get();
        AFTER.set(left.map(|left| left.saturating_sub(1)));
        if left == Some(0) { Err(Error::Stopped.into()) } else { Ok(()) }
    }
}
