//! How an answer leaves: at the client's pace, with no more memory than there is room for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Limits;
use super::connection::Connection;
use super::disk::Disk;
use super::range::Part;
use super::respond::{Answer, Piece};
use crate::content::{Body, Content};
use crate::room::Room;

/// An answer up to this size is copied and sent in one write: iPXE's disk reads are 2 to 64 KiB. Above it, `sendfile`
/// saves more than the second call costs.
const ONE_WRITE_MAX: u64 = 64 << 10;
/// Bytes read at once from a file that cannot go by `sendfile`.
const COPY: usize = 64 << 10;
/// The same where all the room for copies is taken.
const COPY_LEAST: usize = 4 << 10;

impl Connection {
    /// Sends an answer: in one write where it is small, else the head and each piece after the other.
    pub(super) async fn send(&mut self, answer: &Answer, content: Option<&Content>) -> io::Result<()> {
        let mut pace = Pace::new(&self.shared.limits);
        let _made = self.room_for(made_for(answer, content))?;
        if let ([Piece::Part(part)], Some(Content { body: Body::Memory(bytes), .. })) =
            (&answer.pieces[..], content)
        {
            self.write_both(&answer.head, slice(bytes, part)?, &mut pace).await?;
        } else if let Some(_room) = self.room_to_copy(answer) {
            let mut bytes = Vec::with_capacity(answer.head.len() + answer.body_length() as usize);
            bytes.extend_from_slice(&answer.head);
            for piece in &answer.pieces {
                match piece {
                    Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                    Piece::Part(part) => append(&mut bytes, content, part, &self.shared.disk).await?,
                }
            }
            self.write(&bytes, false, &mut pace).await?;
        } else {
            self.write(&answer.head, true, &mut pace).await?;
            for piece in &answer.pieces {
                match piece {
                    Piece::Bytes(piece) => self.write(piece, false, &mut pace).await?,
                    Piece::Part(part) => self.send_part(content, part, &mut pace).await?,
                }
            }
        }
        timeout(self.shared.limits.stall, self.wire.flush()).await.map_err(|_| too_slow())?
    }

    fn take_room(&self, bytes: usize) -> Option<Room> {
        self.shared.gate.rooms.take(self.requester.address, bytes)
    }

    /// Room for what only this answer is made of.
    fn room_for(&self, bytes: usize) -> io::Result<Option<Room>> {
        if bytes <= COPY_LEAST {
            return Ok(None);
        }
        let room = self.take_room(bytes);
        room.map(Some).ok_or_else(|| io::Error::other("too many clients take their bytes slowly"))
    }

    /// Room for a copy of a small answer. Without it the answer goes piece by piece, which needs next to none.
    fn room_to_copy(&self, answer: &Answer) -> Option<Room> {
        let length = answer.body_length();
        (length <= ONE_WRITE_MAX).then(|| self.take_room(answer.head.len() + length as usize))?
    }

    async fn send_part(&mut self, content: Option<&Content>, part: &Part, pace: &mut Pace) -> io::Result<()> {
        let Some(content) = content else { return Err(io::ErrorKind::NotFound.into()) };
        let end = part.offset + part.length;
        let mut offset = part.offset;
        match &content.body {
            Body::Memory(bytes) => self.write(slice(bytes, part)?, false, pace).await,
            Body::File(file) if self.wire.has_sendfile() => {
                while offset < end {
                    let sent = self.wire.send_file(file, offset, end - offset, &self.shared.disk);
                    let sent = timeout(pace.stall, sent).await.map_err(|_| too_slow())?? as u64;
                    if sent == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into()); // Someone cut the file short.
                    }
                    offset += sent;
                    pace.sent(sent)?;
                }
                Ok(())
            }
            Body::File(_) => {
                let room = self.take_room(COPY);
                let most = if room.is_some() { COPY } else { COPY_LEAST };
                let mut bytes = Vec::new();
                while offset < end {
                    let length = (end - offset).min(most as u64);
                    bytes.clear();
                    append(&mut bytes, Some(content), &Part { offset, length }, &self.shared.disk).await?;
                    self.write(&bytes, false, pace).await?;
                    offset += length;
                }
                Ok(())
            }
        }
    }

    /// Writes a head and a body, in one write as far as the socket takes it.
    async fn write_both(&mut self, head: &[u8], body: &[u8], pace: &mut Pace) -> io::Result<()> {
        let mut done = 0;
        while done < head.len() {
            let written = self.wire.write_both(&head[done..], body);
            let count = timeout(pace.stall, written).await.map_err(|_| too_slow())??;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += count;
            pace.sent(count as u64)?;
        }
        self.write(&body[done - head.len()..], false, pace).await
    }

    async fn write(&mut self, mut bytes: &[u8], is_more_to_come: bool, pace: &mut Pace) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = async {
                if is_more_to_come { self.wire.write_more(bytes).await } else { self.wire.write(bytes).await }
            };
            let count = timeout(pace.stall, written).await.map_err(|_| too_slow())??;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
            pace.sent(count as u64)?;
        }
        Ok(())
    }
}

/// Watches that a client takes bytes at least at the pace that is asked of it.
struct Pace {
    stall: Duration,
    /// Bytes that each period of `stall` must see.
    least: u64,
    period: Instant,
    in_period: u64,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        let least = limits.pace.saturating_mul(limits.stall.as_secs());
        Self { stall: limits.stall, least, period: Instant::now(), in_period: 0 }
    }

    fn sent(&mut self, bytes: u64) -> io::Result<()> {
        self.in_period += bytes;
        if self.period.elapsed() < self.stall {
            return Ok(());
        }
        if self.in_period < self.least {
            return Err(too_slow());
        }
        (self.period, self.in_period) = (Instant::now(), 0);
        Ok(())
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client takes its bytes too slowly")
}

/// A part of a content in memory.
fn slice<'a>(bytes: &'a [u8], part: &Part) -> io::Result<&'a [u8]> {
    let begin = usize::try_from(part.offset).unwrap_or(usize::MAX);
    let rest = bytes.get(begin..).ok_or(io::ErrorKind::UnexpectedEof)?;
    rest.get(..part.length as usize).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Bytes in memory that nobody but this answer needs: not those of a file or a boot medium that is kept for all who ask.
fn made_for(answer: &Answer, content: Option<&Content>) -> usize {
    let own = match content.map(|content| &content.body) {
        // What is longer than any script is kept somewhere.
        Some(Body::Memory(bytes)) if Arc::strong_count(bytes) == 1 && bytes.len() as u64 <= ONE_WRITE_MAX => {
            bytes.len()
        }
        _ => 0,
    };
    let pieces = answer.pieces.iter().map(|piece| match piece {
        Piece::Bytes(bytes) => bytes.len(),
        Piece::Part(_) => 0,
    });
    own + pieces.sum::<usize>()
}

/// Appends a part of a content, all of it.
async fn append(bytes: &mut Vec<u8>, content: Option<&Content>, part: &Part, disk: &Disk) -> io::Result<()> {
    let content = content.ok_or(io::ErrorKind::NotFound)?;
    let before = bytes.len();
    bytes.resize(before + part.length as usize, 0);
    let rest = &mut bytes[before..];
    if content.read_at_once(rest, part.offset) {
        return Ok(());
    }
    if disk.read(|| content.read_at(rest, part.offset)).await? as u64 != part.length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stage;
    use crate::http::testing::evicted;

    /// As of `sendfile`: a runtime of one thread panics where other connections are to go on.
    #[test]
    fn a_cold_part_is_not_read_on_the_thread_of_other_connections() {
        let bytes: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        let Some(file) = evicted(&bytes) else { return };
        let content = Content {
            body: Body::File(Arc::new(file)),
            length: bytes.len() as u64,
            digest: None,
            media_type: "application/octet-stream",
            modified: None,
            stage: Stage::Kernel,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let part = Part { offset: 5, length: 100_000 };
        let read = |content: &Content| {
            let content = content.clone();
            let task = async move {
                let mut read = b"head".to_vec();
                append(&mut read, Some(&content), &part, &Disk::default()).await.map(|()| read)
            };
            runtime.block_on(async { tokio::spawn(task).await })
        };
        assert!(read(&content).unwrap_err().is_panic(), "it was read at once");
        assert_eq!(content.read_at(&mut vec![0; bytes.len()], 0).unwrap(), bytes.len());
        assert!(read(&content).unwrap().unwrap() == [b"head", &bytes[5..100_005]].concat());
    }
}
