//! How many transfers there may be at a time, in all and to one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::settings::Settings;

/// Counts the transfers of all workers.
#[derive(Debug)]
pub struct Admission {
    transfers_max: usize,
    transfers_per_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_address: HashMap<IpAddr, usize>,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            transfers_max: settings.transfers_max,
            transfers_per_address_max: settings.transfers_per_address_max,
            counts: Mutex::default(),
        })
    }

    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Permit, Full> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= self.transfers_max {
            return Err(Full::All);
        }
        let of_address = counts.of_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.transfers_per_address_max {
            return Err(Full::Address);
        }
        counts.all += 1;
        counts.of_address.insert(address, of_address + 1);
        Ok(Permit { admission: Arc::clone(self), address })
    }
}

/// Whose place another one is given, of those that nobody has been heard of since they began: they may be forged. The
/// oldest, if its client would have answered within `patience`; else the youngest, for the others' clients may be about
/// to answer.
pub(crate) fn gives_way<K: Copy>(
    unheard: impl Iterator<Item = (Instant, K)>,
    now: Instant,
    patience: Duration,
) -> Option<K> {
    let mut ends: Option<[(Instant, K); 2]> = None;
    for one in unheard {
        let [oldest, youngest] = ends.get_or_insert([one, one]);
        if one.0 < oldest.0 {
            *oldest = one;
        }
        if one.0 > youngest.0 {
            *youngest = one;
        }
    }
    let [oldest, youngest] = ends?;
    let is_late = now.saturating_duration_since(oldest.0) >= patience;
    Some(if is_late { oldest.1 } else { youngest.1 })
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Address,
}

impl Full {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::All => "there are as many transfers as may be at a time",
            Self::Address => "this address has as many transfers as it may have at a time",
        }
    }
}

/// A place among the transfers, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(count) = counts.of_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.of_address.remove(&self.address);
            }
        }
    }
}
