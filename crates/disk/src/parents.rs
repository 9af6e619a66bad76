//! What a format may ask about the files that its image names. The answer lies above the formats, in the chain.

use std::path::Path;
use std::sync::Arc;

use crate::image::{Allowed, ParentReference};
use crate::{BlockDevice, Result};

/// Opens parents for an image that names them.
pub(crate) trait Parents {
    /// Opens the parent that the image at `child` names, for reading only; `Ok(None)` if `reference` names no path.
    ///
    /// The parent's format is the one that `reference.format` claims in QEMU's words (`raw`, `qcow2`, `vpc`), and is
    /// detected from its content if nothing is claimed. A parent must carry `reference.uuid` if there is one.
    ///
    /// # Errors
    /// `NotFound` when no named file exists, `Denied` by the gate, `Corrupt` for a loop, a chain that is too deep
    /// or the wrong uuid, and whatever opening the parent answers.
    fn open_parent(
        &mut self,
        child: &Path,
        reference: &ParentReference,
    ) -> Result<Option<Arc<dyn BlockDevice>>>;

    /// Something that the user should hear before the disk is used: a sentence.
    fn notice(&mut self, text: String);

    /// The files that may be opened among those that `reference` names.
    ///
    /// # Errors
    /// `Denied` by the gate.
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>>;
}
