//! Passing an answer on, and going on with it at another member when one breaks off.

use std::io;
use std::time::{Duration, Instant as Clock};

use tokio::time::{Instant, sleep};

use super::super::{CLIENT_STALL_TIMEOUT, FIRST_BYTE_TIMEOUT, RESUME_WITHIN, RESUMES_MAX, STALL_TIMEOUT};
use super::chunks::Chunks;
use super::client::{Client, address_of};
use super::head::{Framing, Method, Part, Persistence, RequestHead, ResponseHead};
use super::upstream::Upstream;
use crate::event::{EventKind, Protocol};
use crate::http1::Version;

/// Pause between two rounds of asking all members for the rest.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// How a body came to its end.
enum End {
    /// It is whole. Whether the member's connection can be used again.
    Whole(Upstream),
    /// The member broke off, and nobody else could go on.
    Broken,
}

impl Client<'_> {
    /// Passes an answer on; whether the connection stays.
    pub(super) async fn pass(
        &mut self,
        request: &RequestHead,
        upstream: Upstream,
        head: ResponseHead,
        persistence: Persistence,
        started: Clock,
    ) -> io::Result<Persistence> {
        let framing = match head.framing {
            // HTTP/1.0 knows no chunks; where it does, a cut can be told from an end.
            Framing::Chunked | Framing::UntilClose if request.version == Version::Http11 => Framing::Chunked,
            Framing::Chunked => Framing::UntilClose,
            as_it_is => as_it_is,
        };
        let persistence = persistence.and(|| framing != Framing::UntilClose);
        let member_keeps = head.persistence == Persistence::Keep;
        self.write(&head.pass_on(request, framing, persistence)).await?;
        let mut sent = 0;
        let ended = self.pass_body(request, upstream, &head, framing, &mut sent).await;
        let is_whole = matches!(ended, Ok(End::Whole(_)));
        self.tell(EventKind::Transferred {
            protocol: Protocol::Balance,
            path: &request.target,
            bytes: sent,
            seconds: started.elapsed().as_secs_f64(),
            is_complete: is_whole,
        });
        match ended? {
            End::Whole(upstream) => {
                // More than was announced is not to be taken for the next answer.
                self.idle = (member_keeps && upstream.rest.is_empty()).then(|| upstream.rest_a_while());
                Ok(persistence)
            }
            End::Broken => {
                // The client has to see that this is not all, even where a body ends with its connection: reset it.
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "a transfer broke at its member"))
            }
        }
    }

    async fn pass_body(
        &mut self,
        request: &RequestHead,
        mut upstream: Upstream,
        head: &ResponseHead,
        framing: Framing,
        sent: &mut u64,
    ) -> io::Result<End> {
        let mut body = match head.framing {
            Framing::Empty => return Ok(End::Whole(upstream)),
            Framing::Length(length) => return self.pass_length(request, upstream, head, length, sent).await,
            Framing::Chunked => Some(Chunks::default()),
            Framing::UntilClose => None,
        };
        let mut content = Vec::new();
        loop {
            content.clear();
            let taken = match &mut body {
                Some(chunks) => chunks.take(&upstream.rest, |data| content.extend_from_slice(data)),
                None => {
                    content.extend_from_slice(&upstream.rest);
                    Ok(content.len())
                }
            };
            let Ok(taken) = taken else { return Ok(End::Broken) };
            upstream.rest.drain(..taken);
            self.write_content(&content, framing).await?;
            *sent += content.len() as u64;
            if body.as_ref().is_some_and(Chunks::is_end) {
                break;
            }
            // Nobody can go on here, so nobody is impatient either.
            let deadline = Instant::now() + CLIENT_STALL_TIMEOUT;
            match upstream.fill(deadline).await {
                Ok(()) => {}
                Err(error) if body.is_none() && error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(_) => return Ok(End::Broken),
            }
        }
        if framing == Framing::Chunked {
            self.write(b"0\r\n\r\n").await?;
        }
        Ok(End::Whole(upstream))
    }

    async fn write_content(&mut self, content: &[u8], framing: Framing) -> io::Result<()> {
        if framing == Framing::Chunked && !content.is_empty() {
            self.write(format!("{:x}\r\n", content.len()).as_bytes()).await?;
            self.write(content).await?;
            return self.write(b"\r\n").await;
        }
        self.write(content).await
    }

    /// A body of known length: the one that can be continued.
    async fn pass_length(
        &mut self,
        request: &RequestHead,
        mut upstream: Upstream,
        head: &ResponseHead,
        length: u64,
        sent: &mut u64,
    ) -> io::Result<End> {
        let part = head.part();
        let mut resumes = 0;
        loop {
            let count = usize::try_from(length - *sent).unwrap_or(usize::MAX).min(upstream.rest.len());
            self.write(&upstream.rest[..count]).await?;
            upstream.rest.drain(..count);
            *sent += count as u64;
            if *sent == length {
                return Ok(End::Whole(upstream));
            }
            let stall = if part.is_some() { STALL_TIMEOUT } else { CLIENT_STALL_TIMEOUT };
            let Err(error) = upstream.fill(Instant::now() + stall).await else { continue };
            let Some(part) = part.as_ref().filter(|_| resumes < RESUMES_MAX) else { return Ok(End::Broken) };
            resumes += 1;
            let broken = std::mem::take(&mut upstream.name);
            let Some(next) = self.resume(request, part, *sent, &broken).await else { return Ok(End::Broken) };
            tracing::warn!(
                client = %self.address, path = request.shown_target(), member = broken, by = next.name, at = *sent, %error,
                "a transfer broke at its member and goes on at another"
            );
            upstream = next;
        }
    }

    /// Finds somebody with the same bytes who goes on behind the first `done` of them.
    async fn resume(
        &mut self,
        request: &RequestHead,
        part: &Part,
        done: u64,
        broken: &str,
    ) -> Option<Upstream> {
        let deadline = Instant::now() + RESUME_WITHIN;
        while Instant::now() < deadline {
            let mut configs = self.configs();
            // Whoever broke off comes last: it may only have been the connection.
            configs.sort_by_key(|config| config.member.name == broken);
            for config in configs {
                let bytes = request.forward_rest(self.address, address_of(&config), self.sender, part, done);
                match self.ask(&config, &bytes, Method::Get, FIRST_BYTE_TIMEOUT).await {
                    Ok((upstream, head)) if head.is_rest_of(part, done) => return Some(upstream),
                    Ok((_, head)) => tracing::debug!(
                        member = config.member.name,
                        status = head.status,
                        "a member has no such rest"
                    ),
                    Err(failure) => {
                        tracing::debug!(
                            member = config.member.name,
                            why = failure.why,
                            "a member cannot go on"
                        );
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            sleep(ROUND_PAUSE).await;
        }
        None
    }
}
