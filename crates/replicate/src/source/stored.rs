//! A version of a store as a source, named `STORE/IMAGE`, `STORE/IMAGE:CHANNEL` or `STORE/ROOT`.

use std::path::Path;
use std::sync::Arc;

use goldwire_disk::{Format, Image, ImageInfo};
use goldwire_store::{Root, Store, StoredVersion, TreeFile, Version};

use crate::failure::Result;
use crate::wire::Candidate;

/// A version that a path leads to.
pub(crate) struct Stored {
    store: Store,
    root: Root,
    /// What it is.
    pub(crate) version: Version,
    /// The bytes of its descriptor.
    pub(crate) descriptor: Vec<u8>,
    /// What a target's folder calls it.
    pub(crate) name: String,
}

/// Where a version of a store on this machine is found whatever its names come to mean, or nothing if `path` leads into no
/// store.
pub(crate) fn place_of_version(path: &str, root: &Root) -> Option<String> {
    let folder = Path::new(path).parent()?;
    let is_there = Store::is_one(folder) && !Path::new(path).exists();
    is_there.then(|| folder.join(root.to_string()).to_str().map(str::to_owned))?
}

impl Stored {
    /// The version that `path` names, or nothing if it leads into no store.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Ok(None);
        };
        if !Store::is_one(folder) || path.exists() {
            return Ok(None);
        }
        let store = Store::open(folder)?;
        let root = store.find(name)?;
        let (version, descriptor) = store.describe(&root)?;
        let image = name.split(':').next().unwrap_or(name);
        let name = format!("{image}.raw");
        Ok(Some(Self { store, root, version, descriptor, name }))
    }

    /// What a list of images says of it.
    pub(crate) fn candidate(&self, path: &Path) -> Candidate {
        Candidate {
            path: path.display().to_string(),
            format: Format::Raw.name().to_owned(),
            size: self.version.size,
            file_length: self.version.chunks_used * goldwire_store::CHUNK_SIZE as u64,
            uuid: None,
            hidden: false,
            has_parent: false,
            modified: self.version.created,
            created: None,
        }
    }

    /// The version as a disk, with a tree that is whole.
    pub(crate) fn open(&self) -> Result<(Image, TreeFile)> {
        self.open_as(self.store.version(&self.root)?)
    }

    /// The same, for whoever reads back what he copies from it.
    pub(crate) fn open_unproven(&self) -> Result<(Image, TreeFile)> {
        self.open_as(self.store.version(&self.root)?.unproven())
    }

    fn open_as(&self, version: StoredVersion) -> Result<(Image, TreeFile)> {
        let tree = version.open_tree()?;
        tree.verify(&self.root)?;
        let info = ImageInfo {
            format: Format::Raw,
            size: self.version.size,
            uuid: None,
            created: None,
            hidden: None,
            details: Vec::new(),
        };
        // Nothing of a version changes: there is no file whose times would have to be watched.
        let image = Image { device: Arc::new(version), chain: Vec::new(), info, notices: Vec::new() };
        Ok((image, tree))
    }
}
