//! A device in memory whose reads and writes fail when a test says so, and which knows what a crash would leave.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use crate::device::check_range;
use crate::sync::lock;
use crate::{BlockDevice, Error, Extent, ExtentKind, FilePlace, Result};

/// What the device calls allocated is counted in these.
const PAGE: usize = 4096;

/// A disk in memory.
pub struct MemDevice {
    state: Mutex<State>,
    size: u64,
}

struct State {
    content: Vec<u8>,
    is_page_used: Vec<bool>,
    /// The content at the last flush, and the writes since.
    durable: Vec<u8>,
    unflushed: Vec<(Range<usize>, Vec<u8>)>,
    reads_until_failure: Option<u64>,
    writes_until_failure: Option<u64>,
    torn_bytes: usize,
    is_flush_failing: bool,
}

impl MemDevice {
    /// A zeroed disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        let mut device = Self::with_content(vec![0; size as usize]);
        let state = device.state.get_mut().unwrap();
        state.is_page_used.fill(false);
        device
    }

    /// A disk that holds `content`.
    pub fn with_content(content: Vec<u8>) -> Self {
        let state = State {
            is_page_used: vec![true; content.len().div_ceil(PAGE)],
            durable: content.clone(),
            unflushed: Vec::new(),
            reads_until_failure: None,
            writes_until_failure: None,
            torn_bytes: 0,
            is_flush_failing: false,
            content,
        };
        Self { size: state.content.len() as u64, state: Mutex::new(state) }
    }

    /// Lets `count` reads pass and fails all after them. `None` heals the device.
    pub fn fail_reads_after(&self, count: Option<u64>) {
        lock(&self.state).reads_until_failure = count;
    }

    /// Lets `count` writes pass and fails all after them. `None` heals the device.
    pub fn fail_writes_after(&self, count: Option<u64>) {
        self.tear_writes_after(count, 0);
    }

    /// As [`fail_writes_after`](Self::fail_writes_after), but the first `bytes` of each failing write arrive.
    pub fn tear_writes_after(&self, count: Option<u64>, bytes: usize) {
        let mut state = lock(&self.state);
        state.writes_until_failure = count;
        state.torn_bytes = bytes;
    }

    /// Whether flushes fail.
    pub fn fail_flushes(&self, fail: bool) {
        lock(&self.state).is_flush_failing = fail;
    }

    /// What reads return now.
    pub fn content(&self) -> Vec<u8> {
        lock(&self.state).content.clone()
    }

    /// How many writes arrived since the last flush.
    pub fn unflushed_writes(&self) -> usize {
        lock(&self.state).unflushed.len()
    }

    /// What a crash could leave: the content at the last flush, and of the writes since those whose index `keep`
    /// chooses. A disk may make them durable in any order.
    pub fn crash_image(&self, keep: impl Fn(usize) -> bool) -> Vec<u8> {
        let state = lock(&self.state);
        let mut image = state.durable.clone();
        for (range, bytes) in state.unflushed.iter().enumerate().filter(|(at, _)| keep(*at)).map(|(_, w)| w) {
            image[range.clone()].copy_from_slice(bytes);
        }
        image
    }
}

impl State {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let range = offset..offset + bytes.len();
        self.content[range.clone()].copy_from_slice(bytes);
        self.is_page_used[range.start / PAGE..range.end.div_ceil(PAGE)].fill(true);
        self.unflushed.push((range, bytes.to_vec()));
    }

    /// Makes the bytes zero. Pages that lie between them as a whole are no longer used.
    fn zero(&mut self, start: usize, end: usize) {
        let used = self.is_page_used.clone();
        self.write(&vec![0; end - start], start);
        let whole = start.div_ceil(PAGE)..end / PAGE;
        for (page, was_used) in used.into_iter().enumerate() {
            // What was not used holds zeros already.
            self.is_page_used[page] &= was_used && !whole.contains(&page);
        }
    }
}

/// Whether this operation is one that fails.
fn fails(until_failure: &mut Option<u64>) -> bool {
    match until_failure {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn failure(doing: &str) -> Error {
    Error::io(name(), doing, io::Error::other("the test wants it so"))
}

fn name() -> &'static Path {
    Path::new("memory")
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(name(), self.size, offset, buf.len() as u64)?;
        let mut state = lock(&self.state);
        if fails(&mut state.reads_until_failure) {
            return Err(failure("read data"));
        }
        buf.copy_from_slice(&state.content[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }

    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    /// None: it lies in no file.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>> {
        check_range(name(), self.size, offset, 1)?;
        Ok(None)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(name(), self.size, offset, buf.len() as u64)?;
        let mut state = lock(&self.state);
        if fails(&mut state.writes_until_failure) {
            let torn = state.torn_bytes.min(buf.len());
            state.write(&buf[..torn], offset as usize);
            return Err(failure("write data"));
        }
        state.write(buf, offset as usize);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(name(), self.size, offset, 1)?;
        let state = lock(&self.state);
        let pages = &state.is_page_used[offset as usize / PAGE..];
        let is_used = pages[0];
        let run = pages.iter().take_while(|&&page| page == is_used).count();
        let end = ((offset as usize / PAGE + run) * PAGE) as u64;
        let kind = if is_used { ExtentKind::Data } else { ExtentKind::Hole };
        Ok(Extent { length: end.min(self.size) - offset, kind })
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        check_range(name(), self.size, offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        check_range(name(), self.size, offset, length)?;
        let mut state = lock(&self.state);
        if fails(&mut state.writes_until_failure) {
            return Err(failure("discard data"));
        }
        // Whole pages only, as formats give back whole blocks.
        let end = offset + length;
        let start = offset.next_multiple_of(PAGE as u64).min(end);
        let end = (end / PAGE as u64 * PAGE as u64).max(start);
        state.zero(start as usize, end as usize);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        check_range(name(), self.size, offset, length)?;
        let mut state = lock(&self.state);
        if fails(&mut state.writes_until_failure) {
            let torn = length.min(state.torn_bytes as u64);
            state.zero(offset as usize, (offset + torn) as usize);
            return Err(failure("write zeroes"));
        }
        state.zero(offset as usize, (offset + length) as usize);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if state.is_flush_failing {
            return Err(failure("make the data durable"));
        }
        state.durable = state.content.clone();
        state.unflushed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn keeps_the_promises() {
        crate::testing::conformance(|size| Arc::new(MemDevice::new(size)));
    }

    #[test]
    fn fails_and_tears_when_told() {
        let device = MemDevice::new(16);
        device.tear_writes_after(Some(1), 2);
        device.write_at(&[1; 4], 0).unwrap();
        assert!(device.write_at(&[2; 4], 4).is_err());
        assert_eq!(device.content()[..8], [1, 1, 1, 1, 2, 2, 0, 0]);
        device.fail_writes_after(None);
        device.fail_reads_after(Some(0));
        assert!(device.read_at(&mut [0; 4], 0).is_err());
    }

    #[test]
    fn a_crash_leaves_any_part_of_what_was_not_flushed() {
        let device = MemDevice::new(4);
        device.write_at(&[1], 0).unwrap();
        device.flush().unwrap();
        device.write_at(&[2], 0).unwrap();
        device.write_at(&[3], 1).unwrap();
        assert_eq!(device.crash_image(|_| false), [1, 0, 0, 0]);
        assert_eq!(device.crash_image(|at| at == 1), [1, 3, 0, 0]);
        assert_eq!(device.crash_image(|_| true), [2, 3, 0, 0]);
    }
}
