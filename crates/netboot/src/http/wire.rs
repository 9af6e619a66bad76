//! What a connection's bytes travel on: TCP, or TLS over it.

use std::fs::File;
use std::io::{self, IoSlice};

use rustix::io::{ReadWriteFlags, preadv2};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::disk::Disk;

/// Most bytes of one `sendfile`, after which others get their turn on the thread.
const SENDFILE_MAX: u64 = 512 << 10;

pub(super) enum Wire {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Appends what comes; 0 is the end. CANCEL-SAFETY: nothing is lost.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(buffer).await,
            Self::Secure(stream) => stream.read_buf(buffer).await,
        }
    }

    /// Writes some of these bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes).await,
            Self::Secure(stream) => stream.write(bytes).await,
        }
    }

    /// Writes some of these bytes, which more will follow at once: they wait for it and share its packet.
    pub(super) async fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                let flags = rustix::net::SendFlags::MORE | rustix::net::SendFlags::NOSIGNAL;
                let send = || Ok(rustix::net::send(&*stream, bytes, flags)?);
                stream.async_io(Interest::WRITABLE, send).await
            }
            Self::Secure(stream) => stream.write(bytes).await,
        }
    }

    /// Writes some of these bytes, or all of them and some of those behind them.
    pub(super) async fn write_both(&mut self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        match self {
            Self::Plain(stream) => stream.write_vectored(&slices).await,
            Self::Secure(stream) => stream.write_vectored(&slices).await,
        }
    }

    /// Whether files go from the page cache to the socket.
    pub(super) fn has_sendfile(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Sends some bytes of a file from an offset on; 0 is the file's end. Only where there is [`has_sendfile`].
    ///
    /// [`has_sendfile`]: Self::has_sendfile
    pub(super) async fn send_file(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        disk: &Disk,
    ) -> io::Result<usize> {
        let Self::Plain(stream) = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let count = length.min(SENDFILE_MAX) as usize;
        let send = || {
            let mut at = offset;
            Ok(rustix::fs::sendfile(&*stream, file, Some(&mut at), count)?)
        };
        loop {
            let at_once = || {
                let is_in_memory =
                    is_in_memory(file, offset) && is_in_memory(file, offset + count as u64 - 1);
                is_in_memory.then(send).transpose()
            };
            if let Some(sent) = stream.async_io(Interest::WRITABLE, at_once).await? {
                return Ok(sent);
            }
            let _turn = disk.turn().await;
            match stream.try_io(Interest::WRITABLE, || disk.read_in_turn(send)) {
                // Nobody keeps a turn while his client takes nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    /// Sends what TLS still holds.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Secure(stream) => stream.flush().await,
        }
    }

    /// Says that nothing more comes from us.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Secure(stream) => stream.shutdown().await,
        }
    }
}

/// Whether the page cache has this byte. Of a range its first and last one are asked for: the kernel reads ahead, so
/// what lies between is rarely missing alone. Where the file system cannot tell, as of NFS, it does not.
fn is_in_memory(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::http::testing::evicted;

    /// On a runtime of one thread, `block_in_place` panics: the proof that a read that would have to wait for a disk
    /// leaves the thread to other connections first, and that one that would not does not.
    #[test]
    fn a_cold_file_is_not_read_on_the_thread_of_other_connections() {
        let content: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        let Some(file) = evicted(&content) else { return };
        let file = std::sync::Arc::new(file);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let send = |file: &std::sync::Arc<File>| {
            let file = std::sync::Arc::clone(file);
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let mut wire = Wire::Plain(listener.accept().await.unwrap().0);
                let sent =
                    tokio::spawn(async move { wire.send_file(&file, 0, 8192, &Disk::default()).await }).await;
                (sent, client)
            })
        };
        let (cold, _) = send(&file);
        assert!(cold.unwrap_err().is_panic(), "it was read at once");
        let mut all = vec![0; content.len()];
        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut all, 0).unwrap();
        assert!(all == content);
        let (warm, mut client) = send(&file);
        let count = warm.unwrap().unwrap();
        let mut got = vec![0; count];
        client.read_exact(&mut got).unwrap();
        assert!(count > 0 && got == content[..count]);
    }
}
