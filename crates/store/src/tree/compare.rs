//! Which chunks of two trees differ.

use super::file::TreeFile;
use super::geometry::FANOUT;
use crate::error::Result;

/// Calls `each` with the index of every chunk that both trees have and that differs, in order. Subtrees of one id are
/// not looked into.
///
/// # Errors
/// `TreeFile`.
pub fn for_each_difference(left: &TreeFile, right: &TreeFile, mut each: impl FnMut(u64)) -> Result<()> {
    let chunks = left.shape().chunks().min(right.shape().chunks());
    // A node covers the same chunks in both trees only while both have all of its children.
    let whole_nodes =
        |tree: &TreeFile| if tree.shape().levels() > 1 { tree.shape().chunks() / FANOUT } else { 0 };
    let nodes = whole_nodes(left).min(whole_nodes(right));
    for node in 0..chunks.div_ceil(FANOUT) {
        if node < nodes && left.id(1, node)? == right.id(1, node)? {
            continue;
        }
        let range = node * FANOUT..((node + 1) * FANOUT).min(chunks);
        let pairs = left.ids(0, range.clone())?.into_iter().zip(right.ids(0, range.clone())?);
        for (index, _) in range.zip(pairs).filter(|(_, (left, right))| left != right) {
            each(index);
        }
    }
    Ok(())
}

/// How far two disks differ in what both have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Chunks that differ.
    pub chunks: u64,
    /// The first of them.
    pub first: Option<u64>,
}

/// Counts the chunks that both trees have and that differ.
///
/// # Errors
/// `TreeFile`.
pub fn differences(left: &TreeFile, right: &TreeFile) -> Result<Differences> {
    let mut found = Differences::default();
    for_each_difference(left, right, |index| {
        found.first = found.first.or(Some(index));
        found.chunks += 1;
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use goldwire_disk::BlockDevice;
    use goldwire_disk::testing::MemDevice;
    use goldwire_stdx::testing::cases;
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::CHUNK_SIZE;
    use crate::tree::{BuildOptions, Progress, TreeGeometry, build_tree};

    fn tree(device: &MemDevice) -> TreeFile {
        let tree = TreeFile::unnamed(TreeGeometry::new(device.size()).unwrap()).unwrap();
        let (stop, progress) = (false.into(), Progress::default());
        build_tree(device, &tree, &BuildOptions { threads: None, stop: &stop, progress: &progress }).unwrap();
        tree
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases(24)))]
        /// The judge compares the bytes.
        #[test]
        fn the_chunks_that_differ_are_those_whose_bytes_differ(
            chunks in (1_u64..600, 1_u64..600),
            common in proptest::collection::vec((0_u64..600, any::<u8>()), 0..8),
            own in proptest::collection::vec((any::<bool>(), 0_u64..600, any::<u8>()), 0..8),
        ) {
            let size = CHUNK_SIZE as u64;
            let devices = [MemDevice::new(chunks.0 * size), MemDevice::new(chunks.1 * size)];
            let write = |device: &MemDevice, chunk: u64, byte: u8| {
                if chunk * size < device.size() {
                    device.write_at(&[byte; 16], chunk * size + 4096).unwrap();
                }
            };
            for (chunk, byte) in common {
                devices.iter().for_each(|device| write(device, chunk, byte));
            }
            for (which, chunk, byte) in own {
                write(&devices[usize::from(which)], chunk, byte);
            }
            let mut expected = Vec::new();
            for chunk in 0..chunks.0.min(chunks.1) {
                let mut bytes = [vec![0; CHUNK_SIZE], vec![0; CHUNK_SIZE]];
                for (device, bytes) in devices.iter().zip(&mut bytes) {
                    device.read_at(bytes, chunk * size).unwrap();
                }
                if bytes[0] != bytes[1] {
                    expected.push(chunk);
                }
            }
            let mut found = Vec::new();
            for_each_difference(&tree(&devices[0]), &tree(&devices[1]), |chunk| found.push(chunk)).unwrap();
            prop_assert_eq!(&found, &expected);
            let counted = differences(&tree(&devices[0]), &tree(&devices[1])).unwrap();
            prop_assert_eq!((counted.chunks, counted.first), (expected.len() as u64, expected.first().copied()));
        }
    }
}
