//! How much data the tables of an image claim, held against what its file holds.
//!
//! An entry costs eight bytes and maps up to 2 MiB, so that tables which name one cluster over and over make terabytes
//! of work out of some kilobytes. Whoever reads a disk from end to end must not meet more data than there is: clusters
//! that nobody shares add up to the file at most. An image that claims more shares them. QEMU's refcounts would allow
//! that, no writer makes it, and it is refused as a whole at the table with which the sum passes the file.
//!
//! A table is counted when it is read for the first time, so that opening a large image reads no tables.

use std::sync::Mutex;

use super::header::{Compression, be64};
use super::tables::{Geometry, InSpan, Mapping};

/// A deflate stream gives at most 258 bytes for two bits.
const DEFLATE_RATIO_MAX: u64 = 1032;
/// The shortest zstd frame has a magic number and two bytes of header.
const ZSTD_FRAME_MIN: u64 = 6;
/// A block of a zstd frame gives at most this many bytes.
const ZSTD_BLOCK_MAX: u64 = 128 << 10;
/// The shortest block repeats one byte behind a header of three.
const ZSTD_BLOCK_MIN: u64 = 4;

/// The sum over the tables that were read.
#[derive(Debug)]
pub(super) struct Claims {
    host_length: u64,
    shortest_stream: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A bit for each L1 entry whose table is counted.
    counted: Vec<u64>,
    bytes: u64,
}

impl Claims {
    /// No claims yet on a file of `host_length` bytes.
    pub(super) fn new(geometry: Geometry, compression: Compression, host_length: u64) -> Self {
        let cluster = geometry.cluster_size();
        let shortest_stream = match compression {
            Compression::Deflate => (cluster / DEFLATE_RATIO_MAX).max(1),
            Compression::Zstd => ZSTD_FRAME_MIN + cluster.div_ceil(ZSTD_BLOCK_MAX) * ZSTD_BLOCK_MIN,
        };
        Self { host_length, shortest_stream, state: Mutex::default() }
    }

    /// Counts `table`, the one of L1 entry `index`, unless it is counted already. Of its span the first `disk` bytes are
    /// inside the disk.
    ///
    /// # Errors
    /// Why the tables so far cannot be true.
    pub(super) fn count(
        &self,
        geometry: Geometry,
        index: usize,
        table: &[u8],
        disk: u64,
    ) -> Result<(), String> {
        let (word, bit) = (index / 64, 1 << (index % 64));
        let is_counted = |state: &State| state.counted.get(word).is_some_and(|word| word & bit != 0);
        if is_counted(&crate::sync::lock(&self.state)) {
            return Ok(());
        }
        let claimed = self.of_table(geometry, table, disk);
        let mut state = crate::sync::lock(&self.state);
        if is_counted(&state) {
            return Ok(());
        }
        let bytes = state.bytes.saturating_add(claimed);
        if bytes <= self.host_length {
            if state.counted.len() <= word {
                state.counted.resize(word + 1, 0);
            }
            state.counted[word] |= bit;
            state.bytes = bytes;
            return Ok(());
        }
        Err(format!(
            "with it the tables claim {} bytes of data in a file of {}: clusters stand for several places of the disk",
            bytes, self.host_length
        ))
    }

    /// The bytes of the file that the entries of `table` need at least if no two of them share any. What an entry names
    /// past the end of the file is another fault, which is found when it is read.
    fn of_table(&self, geometry: Geometry, table: &[u8], disk: u64) -> u64 {
        let cluster = geometry.cluster_size();
        let entries = (cluster / geometry.entry_size()).min(disk.div_ceil(cluster));
        let mut claimed = 0u64;
        for entry in 0..entries {
            let start = entry * cluster;
            if be64(table, geometry.entry_at(InSpan(start)) as usize) == Some(0) {
                continue;
            }
            let mut within = start;
            let end = (start + cluster).min(disk);
            while within < end {
                let Ok(run) = geometry.mapping(table, InSpan(within)) else { break };
                let length = run.length.min(end - within);
                match run.mapping {
                    Mapping::Data { host } if host.0.saturating_add(length) <= self.host_length => {
                        claimed += length;
                    }
                    Mapping::Compressed { host, .. } if host.0 < self.host_length => {
                        claimed += self.shortest_stream;
                    }
                    _ => {}
                }
                within += run.length;
            }
        }
        claimed
    }
}
