//! Boot media as content: made in advance and kept in memory, so that asking for one costs what any small file costs.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Body, Content, Digest};
use crate::event::Stage;
use crate::media::{Media, Medium};

/// Where the ISO image is served.
pub const ISO_PATH: &str = "m/goldwire.iso";
/// Where the disk image is served.
pub const DISK_PATH: &str = "m/goldwire.img";

/// Which medium a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediumName {
    Iso,
    Disk,
}

impl MediumName {
    /// The path in its own spelling.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Iso => ISO_PATH,
            Self::Disk => DISK_PATH,
        }
    }
}

/// The media that are served; none at first.
#[derive(Debug, Default)]
pub(super) struct MediaStore(RwLock<Option<Pair>>);

#[derive(Debug)]
struct Pair {
    iso: Content,
    disk: Content,
}

impl MediaStore {
    /// Serves these from now on. Whoever is fetching one gets the rest of what it began with.
    pub(super) fn put(&self, media: Option<Media>) {
        let pair = media.map(|media| Pair { iso: content_of(media.iso), disk: content_of(media.disk) });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
    }

    pub(super) fn get(&self, name: MediumName) -> Option<Content> {
        let pair = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let pair = pair.as_ref()?;
        Some(match name {
            MediumName::Iso => pair.iso.clone(),
            MediumName::Disk => pair.disk.clone(),
        })
    }
}

/// There is no time of change: the same medium is made anew at every start, and on every member.
fn content_of(medium: Medium) -> Content {
    Content {
        length: medium.report.size,
        digest: Some(Digest::from(medium.report.digest)),
        body: Body::Memory(Arc::from(medium.bytes)),
        media_type: medium.media_type,
        modified: None,
        stage: Stage::Bootstrap,
    }
}
