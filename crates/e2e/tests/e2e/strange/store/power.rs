//! What is left when the power fails. Of a file's pages that were written since its last sync each is as it was, as it is or
//! torn between two sectors, and the length is the old or the new one. Names are a journal: of what was changed since the
//! last sync of a folder that it concerns a beginning is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustix::io::Errno;

use super::{FILE, PAGE, ROOT, Store};
use crate::disks::Random;

const SECTOR: usize = 512;

/// What of a file is durable.
#[derive(Clone, Default)]
pub(super) struct Kept {
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    /// Pages that are not as they were, or may not be.
    pub(super) dirty: BTreeSet<u64>,
}

/// A name of a folder, and what it leads to from then on.
type Change = (u64, String, Option<u64>);

/// Names, and the cut.
#[derive(Clone, Default)]
pub(super) struct Power {
    /// The folders' entries that are durable.
    entries: HashMap<u64, BTreeMap<String, u64>>,
    /// What was changed since, each step atomic.
    journal: Vec<Vec<Change>>,
    changes: u64,
    /// Changes that still come through.
    left: Option<u64>,
}

impl Power {
    pub(super) fn note<const N: usize>(&mut self, step: [(u64, &str, Option<u64>); N]) {
        self.journal.push(step.map(|(folder, name, to)| (folder, name.to_owned(), to)).into());
    }

    /// Makes the first steps of the journal durable.
    fn commit(&mut self, steps: usize) {
        for (folder, name, to) in self.journal.drain(..steps).flatten() {
            let entries = self.entries.entry(folder).or_default();
            match to {
                Some(id) => entries.insert(name, id),
                None => entries.remove(&name),
            };
        }
    }
}

impl Store {
    /// Counts what changes or syncs something; fails behind the cut.
    pub(super) fn pass(&mut self, opcode: u32) -> Result<(), Errno> {
        let is_change = matches!(opcode, 4 | 9..=13 | 16 | 20 | 30 | 35 | 43 | 45);
        self.power.changes += u64::from(is_change);
        match &mut self.power.left {
            Some(0) => Err(Errno::IO),
            Some(left) => {
                *left -= u64::from(is_change);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(in super::super) fn changes(&self) -> u64 {
        self.power.changes
    }

    pub(in super::super) fn cut_after(&mut self, changes: u64) {
        self.power.left = Some(changes);
    }

    /// A file or a folder is synced.
    pub(super) fn keep(&mut self, id: u64) -> Vec<u8> {
        let last = self.power.journal.iter().rposition(|step| step.iter().any(|(folder, ..)| *folder == id));
        self.power.commit(last.map_or(0, |last| last + 1));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.kept.size = node.size;
            for page in std::mem::take(&mut node.kept.dirty) {
                match node.pages.get(&page) {
                    Some(bytes) => node.kept.pages.insert(page, bytes.clone()),
                    None => node.kept.pages.remove(&page),
                };
            }
        }
        Vec::new()
    }

    /// Everything is synced.
    pub(in super::super) fn keep_all(&mut self) {
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        all.into_iter().for_each(|id| drop(self.keep(id)));
        self.power.commit(self.power.journal.len());
        self.power.left = None;
    }

    pub(in super::super) fn lose_power(&mut self, random: &mut Random) {
        let mut ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.mode & 0o170_000 == FILE) else {
                continue;
            };
            let mut pages = std::mem::take(&mut node.kept.pages);
            for page in std::mem::take(&mut node.kept.dirty) {
                let nothing = vec![0; PAGE as usize];
                let new = node.pages.get(&page);
                match random.below(3) {
                    0 => {}
                    1 => match new {
                        Some(new) => drop(pages.insert(page, new.clone())),
                        None => drop(pages.remove(&page)),
                    },
                    _ => {
                        let torn = pages.entry(page).or_insert_with(|| nothing.clone());
                        let new = new.unwrap_or(&nothing).chunks_exact(SECTOR);
                        for (there, new) in torn.chunks_exact_mut(SECTOR).zip(new) {
                            if random.below(2) == 0 {
                                there.copy_from_slice(new);
                            }
                        }
                    }
                }
            }
            node.size = if random.below(2) == 0 { node.size } else { node.kept.size };
            let size = node.size;
            pages.retain(|page, _| page * PAGE < size);
            if let Some(last) = pages.get_mut(&(size / PAGE)) {
                last[(size % PAGE) as usize..].fill(0);
            }
            node.pages = pages;
            node.kept.dirty = node.pages.keys().copied().collect();
        }
        let steps = random.below(self.power.journal.len() + 1);
        self.power.commit(steps);
        self.power.journal.clear();
        let mut links: HashMap<u64, u32> = HashMap::from([(ROOT, 1)]);
        self.power
            .entries
            .values()
            .flat_map(BTreeMap::values)
            .for_each(|id| *links.entry(*id).or_default() += 1);
        for (id, node) in &mut self.nodes {
            node.entries = self.power.entries.get(id).cloned().unwrap_or_default();
            node.links = links.get(id).copied().unwrap_or(0);
        }
        self.keep_all();
    }
}
