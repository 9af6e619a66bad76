//! What std lacks, with no word of the domain: byte sizes, aligned buffers, bounded reading, rate limits, error chains with
//! hints, hex.

mod bucket;
mod buffer;
mod file;
mod hex;
mod report;
mod size;

pub use bucket::TokenBucket;
pub use buffer::AlignedBuffer;
pub use file::{read_bounded, read_text_bounded};
pub use hex::{from_hex, to_hex};
pub use report::Report;
pub use size::{ByteSize, ParseSizeError};
