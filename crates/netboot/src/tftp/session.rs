//! One transfer with what it needs: its file, and what is read of it ahead.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::admission::Permit;
use super::transfer::Transfer;
use crate::content::{Body, Content};
use crate::device::Mac;
use crate::member::Fitness;

/// Bytes that are read from a file at once for a client without windows, to which they go block by block. A read costs
/// about a tenth of what a block costs in all; every transfer may hold this much.
const READ_AHEAD: usize = 16 << 10;

/// One transfer with what it needs.
pub(super) struct Session {
    pub(super) transfer: Transfer,
    pub(super) content: Content,
    pub(super) path: String,
    pub(super) mac: Option<Mac>,
    /// The request as it came, to know it again.
    pub(super) request: Box<[u8]>,
    pub(super) started: Instant,
    pub(super) heard: Instant,
    /// Whether it stands in the server's queue.
    pub(super) is_ready: bool,
    /// What was read of a file for the next blocks, and where it begins.
    pub(super) ahead: (u64, Vec<u8>),
    pub(super) _permit: Permit,
}

impl Session {
    /// Reads at an offset; fewer bytes than asked for only at the end.
    pub(super) fn read_at(
        &mut self,
        buffer: &mut [u8],
        offset: u64,
        fitness: &Arc<Fitness>,
    ) -> io::Result<usize> {
        if buffer.len() > READ_AHEAD / 2 || matches!(self.content.body, Body::Memory(_)) {
            return read(&self.content, buffer, offset, fitness);
        }
        let (start, ahead) = &mut self.ahead;
        let is_held = *start <= offset && offset + buffer.len() as u64 <= *start + ahead.len() as u64;
        if !is_held {
            // Not past the end: what comes short is read a second time, as if the disk were slow.
            let left = self.content.length.saturating_sub(offset).min(READ_AHEAD as u64) as usize;
            ahead.resize(left.max(buffer.len()), 0);
            let count = read(&self.content, ahead, offset, fitness).inspect_err(|_| ahead.clear())?;
            ahead.truncate(count);
            *start = offset;
        }
        let held = &ahead[(offset - *start) as usize..];
        let count = held.len().min(buffer.len());
        buffer[..count].copy_from_slice(&held[..count]);
        Ok(count)
    }
}

/// Reads at an offset, and says so where that may wait for the disk.
fn read(content: &Content, buffer: &mut [u8], offset: u64, fitness: &Arc<Fitness>) -> io::Result<usize> {
    if content.read_at_once(buffer, offset) {
        return Ok(buffer.len());
    }
    let _working = fitness.begin_read();
    content.read_at(buffer, offset)
}
