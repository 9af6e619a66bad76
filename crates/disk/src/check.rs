//! What is wrong with a container, all of it, in words for its owner.

use std::path::Path;
use std::sync::Arc;

use crate::chain::Chain;
use crate::detect::{Detected, NamedBy, detect_file};
use crate::finding::Finding;
use crate::host::open_named_file;
use crate::image::{Access, Format};
use crate::open::OpenOptions;
use crate::{Result, qcow2, raw, vhd};

/// Everything that is wrong with the image at `path`; an empty list when nothing is. Of its parents only what
/// keeps the image from being read.
///
/// # Errors
/// When the file cannot be opened or read at all. Contradictions inside it are findings.
pub fn check(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Vec<Finding>> {
    let path = path.as_ref();
    let file = open_named_file(path, Access::Read)?;
    let Detected { format, notice } = match options.format {
        Some(format) => Detected { format, notice: None },
        None => detect_file(&file, path, NamedBy::User)?,
    };
    let mut parents = Chain::new(Arc::clone(&options.gate));
    let mut findings: Vec<_> = notice.map(|text| Finding::warning("format", 0, text)).into_iter().collect();
    findings.extend(match format {
        Format::Raw => raw::check(&file, path),
        Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => {
            vhd::check(file, path, &mut parents)
        }
        Format::Qcow2 => qcow2::check(file, path, &mut parents),
    }?);
    Ok(findings)
}
