//! The writers' lock, and what is done while others have it.

use std::fmt;
use std::fs::{File, TryLockError};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use goldwire_stdx::Stop;

use super::{LOCK, Store, StoreError, StoreResult};
use crate::error::Error;

/// A wait that is shorter is not worth a word.
const TOLD_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Who is told of a wait, and who may end it.
#[derive(Default)]
pub(super) struct Waiting(OnceLock<(Stop, Tell)>);

type Tell = Box<dyn Fn(&str) + Send + Sync>;

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waiting").field(&self.0.get().map(|(stop, _)| stop)).finish()
    }
}

impl Store {
    /// Says who is told when other writers are waited for, and who ends that wait. Without, it has neither word nor end. Only
    /// the first call says it.
    pub fn when_waiting(&self, stop: Stop, tell: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.waiting.0.set((stop, Box::new(tell)));
    }

    /// Waits for the writers' lock. It is held until the file is dropped.
    pub(crate) fn lock(&self) -> StoreResult<File> {
        self.check_ours()?;
        let path = self.path().join(LOCK);
        let file = self.folder.write_file(LOCK).map_err(StoreError::file("open", &path))?;
        let Some((stop, tell)) = self.waiting.0.get() else {
            file.lock().map_err(StoreError::file("lock", &path))?;
            return Ok(file);
        };
        let began = Instant::now();
        let mut is_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(StoreError::file("lock", &path)(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if began.elapsed() >= TOLD_AFTER && !std::mem::replace(&mut is_told, true) {
                tell(&format!("waiting for another goldwire that writes to {}", self.path().display()));
            }
            if stop.wait(LOOK_EVERY) {
                return Err(Error::Stopped.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Whoever waits says so once, ends when he is asked to, and goes on when the others have ended.
    #[test]
    fn a_wait_is_told_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::init(&folder.path().join("store")).unwrap();
        let open = || Store::open(store.path()).unwrap();
        let held = Arc::new(Mutex::new(Some(open().lock().unwrap())));
        let told = Arc::new(Mutex::new(Vec::new()));
        let patient = open();
        let (holder, heard) = (Arc::clone(&held), Arc::clone(&told));
        patient.when_waiting(Stop::new(), move |text| {
            heard.lock().unwrap().push(text.to_owned());
            holder.lock().unwrap().take();
        });
        let again = patient.lock().unwrap();
        assert_eq!(
            *told.lock().unwrap(),
            [format!("waiting for another goldwire that writes to {}", store.path().display())]
        );
        let (impatient, stop) = (open(), Stop::new());
        let asking = stop.clone();
        impatient.when_waiting(stop, move |_| asking.request());
        assert!(matches!(impatient.lock(), Err(StoreError::Tree(Error::Stopped))));
        drop(again);
        impatient.lock().unwrap();
    }
}
