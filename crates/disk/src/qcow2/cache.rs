//! A bounded cache of clusters, the least recently used of which go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::units::FileOffset;

/// Clusters by their offset in the file.
pub(super) struct Cache {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    clock: u64,
    entries: HashMap<FileOffset, (u64, Arc<[u8]>)>,
    by_age: BTreeMap<u64, FileOffset>,
}

impl Cache {
    /// A cache that keeps at most `bytes_max` bytes, and always the newest entry.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// The cluster at `host`, loaded when it is not here. Two threads may load the same cluster; loading happens
    /// without the lock.
    pub(super) fn get<E>(
        &self,
        host: FileOffset,
        load: impl FnOnce() -> Result<Arc<[u8]>, E>,
    ) -> Result<Arc<[u8]>, E> {
        if let Some(found) = self.state().touch(host) {
            return Ok(found);
        }
        let loaded = load()?;
        self.state().insert(host, &loaded, self.bytes_max);
        Ok(loaded)
    }

    /// The cluster at `host` if it is here.
    pub(super) fn peek(&self, host: FileOffset) -> Option<Arc<[u8]>> {
        self.state().touch(host)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        crate::sync::lock(&self.state)
    }
}

impl State {
    fn touch(&mut self, host: FileOffset) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (age, bytes) = self.entries.get_mut(&host)?;
        self.by_age.remove(age);
        *age = self.clock;
        self.by_age.insert(self.clock, host);
        Some(Arc::clone(bytes))
    }

    fn insert(&mut self, host: FileOffset, bytes: &Arc<[u8]>, bytes_max: usize) {
        self.clock += 1;
        self.bytes += bytes.len();
        self.by_age.insert(self.clock, host);
        if let Some((age, old)) = self.entries.insert(host, (self.clock, Arc::clone(bytes))) {
            self.by_age.remove(&age);
            self.bytes -= old.len();
        }
        while self.bytes > bytes_max && self.entries.len() > 1 {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some((_, bytes)) = self.entries.remove(&oldest) {
                self.bytes -= bytes.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = Cache::new(1024);
        let load = |host: u64| {
            cache.get(FileOffset(host), || Ok::<_, ()>(Arc::from(vec![host as u8; 512]))).unwrap()
        };
        let is_here = |host: u64| cache.get(FileOffset(host), || Err(())).is_ok();
        load(1);
        load(2);
        load(1);
        load(3);
        assert!(is_here(1) && is_here(3) && !is_here(2));
    }
}
