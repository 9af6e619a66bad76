//! What std lacks, with no word of the domain: byte sizes, aligned buffers, bounded reading, rate limits, error chains with
//! hints, words of a shell, hex, UUIDs, threads that may be refused, one way to stop, strangers' strings made fit to be shown,
//! folders that are held by their descriptor, what a medium answers.

mod bucket;
mod buffer;
mod file;
mod folder;
mod hex;
mod host_name;
mod medium;
mod printable;
mod report;
mod shell;
mod size;
mod spawn;
mod stop;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod uuid;

pub use bucket::TokenBucket;
pub use buffer::AlignedBuffer;
pub use file::{read_bounded, read_open_bounded, read_open_text_bounded, read_text_bounded};
pub use folder::{ENTRIES_MAX, Existing, Folder, Manners, Owner, is_scratch};
pub use hex::{from_hex, to_hex};
pub use host_name::is_host_name;
pub use medium::{is_out_of_space, is_unavailable, read_at_once};
pub use printable::{PRINTABLE_MAX, printable, printable_bytes};
pub use report::{Context, Hints, Report};
pub use shell::{shell_path, shell_word};
pub use size::{ByteSize, ParseSizeError};
pub use spawn::{spawn, spawn_scoped, watched};
pub use stop::Stop;
pub use uuid::{ParseUuidError, Uuid};
