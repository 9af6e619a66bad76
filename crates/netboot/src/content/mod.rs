//! What can be fetched: files of the boot tree, rendered scripts and boot media, the same over HTTP and TFTP.

mod digests;
mod guard;
mod library;
mod medium;
mod path;
mod small;
mod token;
mod tree;
mod url_builder;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::{ReadWriteFlags, preadv2};

pub use library::{Library, LibraryError, LibrarySettings};
pub use medium::{DISK_PATH, ISO_PATH};
pub(crate) use path::{BadPath, clean, mac_in, one_spelling};
pub use token::TokenKey;
pub use url_builder::{Digest, UrlBuilder, without_tokens};

use crate::device::Mac;
use crate::event::Protocol;

/// Answers for paths. HTTP and TFTP ask the same one, so nothing is allowed on one and denied on the other.
pub trait Contents: Send + Sync {
    /// What is at `path` (percent-decoded, without a leading slash) for who asks. Does not wait for anybody but the
    /// disk.
    fn open(&self, path: &str, requester: &Requester) -> Result<Content, ContentError>;

    /// The same for who must not wait: nothing where it cannot be told without asking a disk, or takes its time.
    fn open_at_once(&self, path: &str, requester: &Requester) -> Option<Result<Content, ContentError>> {
        let _ = (path, requester);
        None
    }
}

/// Who asks for content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, if somebody knows it.
    pub mac: Option<Mac>,
    /// How it asks.
    pub protocol: Protocol,
}

/// Something that can be served, opened: it stays the same while it is read, whatever happens to its name.
#[derive(Clone, Debug)]
pub struct Content {
    /// Where the bytes are.
    pub body: Body,
    /// How many there are.
    pub length: u64,
    /// Their digest, the strong ETag; absent while a large file has not been read yet.
    pub digest: Option<Digest>,
    /// The `Content-Type`.
    pub media_type: &'static str,
    /// When a file was changed last.
    pub modified: Option<SystemTime>,
    /// What kind of step in a boot this is, for the timeline.
    pub stage: crate::event::Stage,
}

/// Where content's bytes are.
#[derive(Clone, Debug)]
pub enum Body {
    /// In memory.
    Memory(Arc<[u8]>),
    /// In a file.
    File(Arc<File>),
}

impl Content {
    /// Fills the buffer from an offset on, if memory has all of it; where it does not, the buffer holds nothing of use.
    pub(crate) fn read_at_once(&self, buffer: &mut [u8], offset: u64) -> bool {
        let length = buffer.len();
        let count = match &self.body {
            Body::Memory(_) => self.read_at(buffer, offset).ok(),
            Body::File(file) => {
                preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).ok()
            }
        };
        count == Some(length)
    }

    /// Reads at an offset; fewer bytes than asked for only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.body {
            Body::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or(&[]);
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
            Body::File(file) => {
                let mut done = 0;
                while done < buffer.len() {
                    match file.read_at(&mut buffer[done..], offset + done as u64) {
                        Ok(0) => break,
                        Ok(count) => done += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(done)
            }
        }
    }
}

/// Why there is no content.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Nothing has this path, or what had it is not the same any more.
    #[error("no such file")]
    NotFound,
    /// The policy does not allow it, or a token is missing, wrong or old. The reason is for the log, not for who asks.
    #[error("not allowed: {0}")]
    Forbidden(&'static str),
    /// It is there and large, and its digest, on which the answer depends, is not known yet. Asking again helps.
    #[error("not read yet")]
    NotReady,
    /// It is there and cannot be had.
    #[error("read {path}")]
    Failed {
        /// The path as it was asked for.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A script could not be rendered.
    #[error("render the script {name}: {reason}")]
    Script {
        /// The template's name.
        name: String,
        /// Line and reason.
        reason: String,
    },
}

impl goldwire_stdx::Hints for ContentError {}
