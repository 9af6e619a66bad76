//! What the strange file system holds, and how it answers one request.

mod power;

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use self::power::{Kept, Power};
use super::{Manners, Request, WRITE_MAX};
use crate::disks::Random;

const PAGE: u64 = 4096;
const ROOT: u64 = 1;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

#[derive(Clone)]
pub(crate) struct Store {
    pub(super) manners: Manners,
    nodes: HashMap<u64, Node>,
    next: u64,
    /// Writes of whole pages so far, and those of them that were lied about.
    writes: u64,
    pub(super) lies: u64,
    power: Power,
}

#[derive(Clone)]
struct Node {
    mode: u32,
    owner: (u32, u32),
    modified: (u64, u32),
    links: u32,
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    entries: BTreeMap<String, u64>,
    /// What of a file is durable.
    kept: Kept,
}

type Answer = Result<Vec<u8>, Errno>;

impl Store {
    pub(super) fn new(manners: Manners) -> Self {
        let (nodes, power) = (HashMap::new(), Power::default());
        let mut store = Self { manners, nodes, next: ROOT, writes: 0, lies: 0, power };
        store.make(FOLDER | 0o755);
        store
    }

    fn make(&mut self, mode: u32) -> u64 {
        let node = Node {
            mode,
            owner: (0, 0),
            modified: (0, 0),
            links: 1,
            size: 0,
            pages: BTreeMap::new(),
            entries: BTreeMap::new(),
            kept: Kept::default(),
        };
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    pub(super) fn occupied(&self) -> u64 {
        let of = |node: &Node| match self.manners.has_holes {
            true => node.pages.len() as u64 * PAGE,
            false => node.size.next_multiple_of(PAGE),
        };
        self.nodes.values().filter(|node| node.links > 0).map(of).sum()
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&id).ok_or(Errno::NOENT)
    }

    /// `None` for what has no answer.
    pub(super) fn answer(&mut self, request: &Request<'_>) -> Option<Answer> {
        let id = request.node();
        if let Err(error) = self.pass(request.opcode()) {
            return Some(Err(error));
        }
        Some(match request.opcode() {
            2 | 36 | 42 => return None,
            26 => Ok(words(&[7, 31, WRITE_MAX, 1 << 5, 0, WRITE_MAX, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            1 => self.lookup(id, &request.names(0)[0]),
            3 => self.attributes(id),
            4 => self.set(id, request),
            9 => self.add(id, FOLDER | request.u32(0) & 0o7777, &request.names(8)[0]),
            35 => self.add(id, FILE | request.u32(4) & 0o7777, &request.names(16)[0]).map(|mut entry| {
                entry.extend([0; 16]);
                entry
            }),
            10 => self.remove(id, &request.names(0)[0], false),
            11 => self.remove(id, &request.names(0)[0], true),
            12 => self.rename(id, request.u64(0), &request.names(8), 0),
            45 => self.rename(id, request.u64(0), &request.names(16), request.u32(8)),
            13 => self.link(request.u64(0), id, &request.names(8)[0]),
            14 | 27 => Ok(vec![0; 16]),
            15 => self.read(id, request.u64(8), request.u32(16)),
            16 => self.write(id, request.u64(8), &request.bytes[80..]),
            17 => Ok(self.space()),
            20 | 30 => self.manners.fsync.map(|()| self.keep(id)),
            43 if self.manners.punches => self.punch(id, request.u64(8), request.u64(16), request.u32(24)),
            18 | 25 | 29 | 38 => Ok(Vec::new()),
            28 => self.list(id, request.u64(8), request.u32(16)),
            46 if self.manners.has_holes => self.seek(id, request.u64(8), request.u32(16)),
            _ => Err(Errno::NOSYS),
        })
    }

    fn attributes_of(&mut self, id: u64) -> Answer {
        let manners = self.manners.clone();
        let node = self.node(id)?;
        let mode = if manners.keeps_modes { node.mode } else { node.mode & 0o170_000 | 0o777 };
        let stored = match manners.has_holes {
            true => node.pages.len() as u64 * PAGE,
            false => node.size.next_multiple_of(PAGE),
        };
        let (seconds, nanoseconds) = node.modified;
        let mut bytes = longs(&[id, node.size, stored / 512, seconds, seconds, seconds]);
        let links = node.links.max(1);
        bytes.extend(words(&[nanoseconds, nanoseconds, nanoseconds, mode, links]));
        let user = manners.squashes_to.unwrap_or(node.owner.0);
        bytes.extend(words(&[user, node.owner.1, 0, PAGE as u32, 0]));
        Ok(bytes)
    }

    /// `struct fuse_entry_out`, valid for no time.
    fn entry(&mut self, id: u64) -> Answer {
        let mut bytes = longs(&[id, 0, 0, 0, 0]);
        bytes.extend(self.attributes_of(id)?);
        Ok(bytes)
    }

    fn attributes(&mut self, id: u64) -> Answer {
        let mut bytes = longs(&[0, 0]);
        bytes.extend(self.attributes_of(id)?);
        Ok(bytes)
    }

    fn lookup(&mut self, folder: u64, name: &str) -> Answer {
        self.check_name(name)?;
        let id = *self.node(folder)?.entries.get(name).ok_or(Errno::NOENT)?;
        self.entry(id)
    }

    fn check_name(&self, name: &str) -> Result<(), Errno> {
        if name.len() > self.manners.name_max { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }

    fn set(&mut self, id: u64, request: &Request<'_>) -> Answer {
        let valid = request.u32(0);
        if valid & 0b11_0111 != 0 && !self.manners.keeps_modes {
            return Err(Errno::PERM);
        }
        if valid & 8 != 0 {
            self.resize(id, request.u64(16))?;
        }
        let node = self.node(id)?;
        if valid & 1 != 0 {
            node.mode = node.mode & 0o170_000 | request.u32(68) & 0o7777;
        }
        if valid & 2 != 0 {
            node.owner.0 = request.u32(76);
        }
        if valid & 4 != 0 {
            node.owner.1 = request.u32(80);
        }
        if valid & 32 != 0 {
            node.modified = (request.u64(40), request.u32(60));
        }
        self.attributes(id)
    }

    fn resize(&mut self, id: u64, size: u64) -> Result<(), Errno> {
        if size > self.manners.file_max {
            return Err(Errno::FBIG);
        }
        let now = self.node(id)?.size;
        if !self.manners.has_holes && size > now && self.occupied() + (size - now) > self.manners.capacity {
            return Err(Errno::NOSPC);
        }
        let node = self.node(id)?;
        node.size = size;
        let cut: Vec<u64> = node.pages.range(size / PAGE..).map(|(page, _)| *page).collect();
        node.kept.dirty.extend(cut);
        node.pages.retain(|page, _| page * PAGE < size);
        if let Some(page) = node.pages.get_mut(&(size / PAGE)) {
            page[(size % PAGE) as usize..].fill(0);
        }
        Ok(())
    }

    fn add(&mut self, folder: u64, mode: u32, name: &str) -> Answer {
        self.check_name(name)?;
        if self.node(folder)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let id = self.make(mode);
        self.node(folder)?.entries.insert(name.to_owned(), id);
        self.power.note([(folder, name, Some(id))]);
        self.entry(id)
    }

    fn remove(&mut self, folder: u64, name: &str, is_folder: bool) -> Answer {
        let id = *self.node(folder)?.entries.get(name).ok_or(Errno::NOENT)?;
        if is_folder && !self.node(id)?.entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.node(folder)?.entries.remove(name);
        self.node(id)?.links -= 1;
        self.power.note([(folder, name, None)]);
        Ok(Vec::new())
    }

    fn rename(&mut self, from: u64, to: u64, names: &[String], flags: u32) -> Answer {
        let [old, new, ..] = names else { return Err(Errno::INVAL) };
        self.check_name(new)?;
        if from != to && !self.manners.renames_across {
            return Err(Errno::XDEV);
        }
        if flags != 0 && !self.manners.knows_noreplace {
            return Err(Errno::INVAL);
        }
        let id = *self.node(from)?.entries.get(old).ok_or(Errno::NOENT)?;
        if let Some(there) = self.node(to)?.entries.get(new).copied() {
            if flags & 1 != 0 {
                return Err(Errno::EXIST);
            }
            self.node(there)?.links -= 1;
        }
        self.node(from)?.entries.remove(old);
        self.node(to)?.entries.insert(new.clone(), id);
        self.power.note([(from, old.as_str(), None), (to, new.as_str(), Some(id))]);
        Ok(Vec::new())
    }

    fn link(&mut self, id: u64, folder: u64, name: &str) -> Answer {
        if !self.manners.has_links {
            return Err(Errno::PERM);
        }
        self.check_name(name)?;
        if self.node(folder)?.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.node(id)?.links += 1;
        self.node(folder)?.entries.insert(name.to_owned(), id);
        self.power.note([(folder, name, Some(id))]);
        self.entry(id)
    }

    fn read(&mut self, id: u64, offset: u64, length: u32) -> Answer {
        let node = self.node(id)?;
        let end = (offset + u64::from(length)).min(node.size);
        let mut bytes = Vec::new();
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, at % PAGE);
            let part = (PAGE - within).min(end - at) as usize;
            match node.pages.get(&page) {
                Some(stored) => bytes.extend(&stored[within as usize..within as usize + part]),
                None => bytes.resize(bytes.len() + part, 0),
            }
            at += part as u64;
        }
        Ok(bytes)
    }

    fn write(&mut self, id: u64, offset: u64, bytes: &[u8]) -> Answer {
        let end = offset + bytes.len() as u64;
        if self.node(id)?.size < end {
            self.resize(id, end)?;
        }
        if self.manners.has_holes && self.occupied() + bytes.len() as u64 > self.manners.capacity {
            return Err(Errno::NOSPC);
        }
        let is_whole = offset.is_multiple_of(PAGE) && (bytes.len() as u64).is_multiple_of(PAGE);
        let mut bytes = bytes.to_vec();
        let mut end = end;
        if let (true, Some(lies)) = (is_whole, self.manners.lies) {
            self.writes += 1;
            let mut random = Random(lies.seed ^ self.writes << 20);
            if random.below(lies.one_in) == 0 && self.lies < lies.most {
                self.lies += 1;
                match random.below(3) {
                    0 => end = offset,
                    1 => end = offset + random.below(bytes.len()) as u64,
                    _ => {
                        let at = random.below(bytes.len());
                        bytes[at] ^= 1 << random.below(8);
                    }
                }
            }
        }
        let node = self.node(id)?;
        let mut at = offset;
        while at < end {
            let within = (at % PAGE) as usize;
            let part = (PAGE as usize - within).min((end - at) as usize);
            let page = node.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + part].copy_from_slice(&bytes[(at - offset) as usize..][..part]);
            node.kept.dirty.insert(at / PAGE);
            at += part as u64;
        }
        Ok(words(&[bytes.len() as u32, 0]))
    }

    /// `fallocate`, for holes that keep the size only.
    fn punch(&mut self, id: u64, offset: u64, length: u64, mode: u32) -> Answer {
        let is_whole = offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        if mode != 3 || !is_whole {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(id)?;
        for page in offset / PAGE..(offset + length) / PAGE {
            if node.pages.remove(&page).is_some() {
                node.kept.dirty.insert(page);
            }
        }
        Ok(Vec::new())
    }

    fn space(&self) -> Vec<u8> {
        let free = self.manners.capacity.saturating_sub(self.occupied()) / PAGE;
        let mut bytes = longs(&[self.manners.capacity / PAGE, free, free, 1 << 20, 1 << 20]);
        bytes.extend(words(&[PAGE as u32, self.manners.name_max as u32, PAGE as u32]));
        bytes.resize(80, 0);
        bytes
    }

    fn list(&mut self, id: u64, offset: u64, length: u32) -> Answer {
        let mut bytes = Vec::new();
        for (place, (name, id)) in self.node(id)?.entries.iter().enumerate().skip(offset as usize) {
            let mut entry = longs(&[*id, place as u64 + 1]);
            entry.extend(words(&[name.len() as u32, 0]));
            entry.extend(name.as_bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            if bytes.len() + entry.len() > length as usize {
                break;
            }
            bytes.extend(entry);
        }
        Ok(bytes)
    }

    /// `SEEK_DATA` is 3, `SEEK_HOLE` 4.
    fn seek(&mut self, id: u64, offset: u64, whence: u32) -> Answer {
        let node = self.node(id)?;
        if offset >= node.size {
            return Err(Errno::NXIO);
        }
        let mut page = offset / PAGE;
        let found = if whence == 3 {
            let next = node.pages.range(page..).next().map(|(page, _)| *page).ok_or(Errno::NXIO)?;
            offset.max(next * PAGE)
        } else {
            while node.pages.contains_key(&page) {
                page += 1;
            }
            offset.max(page * PAGE).min(node.size)
        };
        Ok(longs(&[found]))
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
