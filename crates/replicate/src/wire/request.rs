//! What a target asks for, and the bytes that answer it.

use serde::{Deserialize, Serialize};

use super::{ANSWER_RAW_MAX, WireError};

/// Which content a target wants, in terms of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The children's ids of these nodes of a level, concatenated.
    Nodes {
        /// 1 or more.
        level: u8,
        /// Ascending.
        indices: Vec<u64>,
    },
    /// For each of the 16 blocks of each chunk its XXH3-64 (u64) and its rolling checksum (u32), concatenated.
    BlockHashes {
        /// Ascending.
        chunks: Vec<u64>,
    },
    /// The wanted 4 KiB blocks of each chunk, concatenated.
    Blocks {
        /// Chunk index and the set of its blocks, ascending.
        wants: Vec<(u64, u16)>,
        /// Whether the target works from a seed: then the bytes are few, and worth compressing well.
        is_delta: bool,
    },
    /// Nothing, answered once the source has made sure that it is still what it was.
    Unchanged,
    /// This many bytes that do not compress, to measure the connection.
    Probe {
        /// How many.
        bytes: u32,
    },
}

impl Request {
    /// The most bytes that the payload of its answer has. A request that a source would refuse has the largest.
    pub fn answer_max(&self) -> u32 {
        let raw = match self {
            // A node has at most 256 children of 32 bytes each.
            Self::Nodes { indices, .. } => indices.len().saturating_mul(256 * 32),
            Self::BlockHashes { chunks } => chunks.len().saturating_mul(16 * 12),
            Self::Blocks { wants, .. } => {
                let blocks: usize = wants.iter().map(|(_, mask)| mask.count_ones() as usize).sum();
                blocks.saturating_mul(4096)
            }
            Self::Unchanged => 0,
            Self::Probe { bytes } => *bytes as usize,
        };
        (ANSWER_HEADER + raw.min(ANSWER_RAW_MAX)) as u32
    }
}

/// Bytes before an answer's content: codec (0 plain, 1 zstd), three reserved bytes, raw length.
pub(super) const ANSWER_HEADER: usize = 8;

/// An answer's payload: `raw`, compressed if that makes it smaller.
pub fn pack_answer(raw: &[u8], compressor: Option<&mut zstd::bulk::Compressor<'_>>) -> Vec<u8> {
    let mut payload = vec![0; ANSWER_HEADER];
    payload[4..8].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    if let Some(compressor) = compressor {
        payload.resize(ANSWER_HEADER + zstd::zstd_safe::compress_bound(raw.len()), 0);
        if let Ok(length) = compressor.compress_to_buffer(raw, &mut payload[ANSWER_HEADER..])
            && length < raw.len()
        {
            payload[0] = 1;
            payload.truncate(ANSWER_HEADER + length);
            return payload;
        }
        payload.truncate(ANSWER_HEADER);
    }
    payload.extend_from_slice(raw);
    payload
}

/// An answer's content, which must have exactly `length` bytes.
///
/// # Errors
/// `Payload`.
pub fn unpack_answer(payload: &[u8], length: usize) -> Result<Vec<u8>, WireError> {
    let malformed = WireError::Payload { what: "answer" };
    let Some((header, content)) = payload.split_first_chunk::<ANSWER_HEADER>() else { return Err(malformed) };
    let [codec, _, _, _, claimed @ ..] = *header;
    if u32::from_le_bytes(claimed) as usize != length || length > ANSWER_RAW_MAX {
        return Err(malformed);
    }
    let raw = match codec {
        0 => content.to_vec(),
        1 => zstd::bulk::decompress(content, length)
            .map_err(|_| WireError::Payload { what: "compressed answer" })?,
        _ => return Err(malformed),
    };
    if raw.len() == length { Ok(raw) } else { Err(malformed) }
}
