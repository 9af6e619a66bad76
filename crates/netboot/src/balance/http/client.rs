//! One connection of a client: its requests, one after the other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant as Clock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::{
    ATTEMPTS_MAX, CLIENT_STALL_TIMEOUT, FIRST_BYTE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT,
    LAST_FIRST_BYTE_TIMEOUT, Phase, Shared,
};
use super::head::{Method, Persistence, Refusal, RequestHead, ResponseHead, Sender};
use super::upstream::{Failure, Upstream, within};
use crate::event::{Event, EventKind, Protocol};
use crate::http1::HEAD_MAX;
use crate::http1::put;
use crate::member::MemberConfig;
use crate::proxy_header::{self, HEADER_MAX, Origin};

/// A client's connection.
pub(super) struct Client<'a> {
    pub(super) stream: TcpStream,
    pub(super) shared: &'a Shared,
    /// The client itself, whoever stands in front of us.
    pub(super) address: IpAddr,
    /// Whether a trusted balancer stands in front of us.
    pub(super) sender: Sender,
    /// What a member is told in a PROXY header.
    proxy_header: Option<Vec<u8>>,
    /// What was read and not yet used.
    rest: Vec<u8>,
    /// The connection to the member that answered last.
    pub(super) idle: Option<Upstream>,
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let address = peer.ip().to_canonical();
    let is_balancer = shared.proxies.iter().any(|subnet| subnet.contains(address));
    let sender = if is_balancer { Sender::Balancer } else { Sender::Stranger };
    let mut client =
        Client { stream, shared, address, sender, proxy_header: None, rest: Vec::new(), idle: None };
    let mut ends = (peer, local);
    if is_balancer && let Origin::Client { source, destination } = client.origin().await? {
        client.address = source.ip();
        ends = (source, destination);
    }
    if shared.sends_proxy_header {
        client.proxy_header = Some(proxy_header::encode(ends.0, ends.1));
    }
    let mut is_first = true;
    while let Some(request) = client.request(is_first).await? {
        is_first = false;
        let persistence = match request {
            Ok(request) => client.answer(&request).await?,
            Err(refusal) => client.refuse_request(refusal).await?,
        };
        if persistence == Persistence::Close {
            break;
        }
    }
    client.stream.shutdown().await
}

impl Client<'_> {
    /// The PROXY header that a trusted balancer starts with.
    async fn origin(&mut self) -> io::Result<Origin> {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        loop {
            let decoded = proxy_header::decode(&self.rest);
            let decoded = decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some((origin, length)) = decoded {
                self.rest.drain(..length);
                return Ok(origin);
            }
            if self.fill(deadline, HEADER_MAX).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next request; none at the end of the connection.
    async fn request(&mut self, is_first: bool) -> io::Result<Option<Result<RequestHead, Refusal>>> {
        let mut deadline = Instant::now() + if is_first { HEAD_TIMEOUT } else { IDLE_TIMEOUT };
        loop {
            match RequestHead::decode(&self.rest) {
                Ok(Some((request, length))) => {
                    self.rest.drain(..length);
                    return Ok(Some(Ok(request)));
                }
                Ok(None) => {}
                Err(refusal) => return Ok(Some(Err(refusal))),
            }
            let was_idle = self.rest.is_empty();
            let shared = self.shared;
            let count = tokio::select! {
                // Nobody waits for a request that may never come.
                () = shared.reached(Phase::Stopping), if was_idle => return Ok(None),
                count = self.fill(deadline, HEAD_MAX) => count?,
            };
            if count == 0 {
                return if was_idle { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if was_idle {
                deadline = Instant::now() + HEAD_TIMEOUT;
            }
        }
    }

    async fn fill(&mut self, deadline: Instant, limit: usize) -> io::Result<usize> {
        let mut part = [0; 4096];
        let room = limit.saturating_sub(self.rest.len()).clamp(1, part.len());
        let count = within(deadline, self.stream.read(&mut part[..room])).await?;
        self.rest.extend_from_slice(&part[..count]);
        Ok(count)
    }

    /// Answers one request; whether the connection stays.
    async fn answer(&mut self, request: &RequestHead) -> io::Result<Persistence> {
        let persistence = request.persistence.and(|| self.shared.phase() == Phase::Serving);
        let configs = self.configs();
        if request.is_for("/health") {
            let is_healthy = !configs.is_empty() && self.shared.phase() == Phase::Serving;
            let status = if is_healthy { "200 OK" } else { "503 Service Unavailable" };
            return self.say(request, status, "", persistence).await;
        }
        let started = Clock::now();
        // What a member said that could not serve: better than what we would say, if nobody can.
        let mut excuse = None;
        let mut failure = Failure { why: "no member of the group is alive".into(), is_timeout: false };
        let attempts = configs.len().min(ATTEMPTS_MAX);
        for (at, config) in configs.into_iter().take(attempts).enumerate() {
            let patience = if at + 1 == attempts { LAST_FIRST_BYTE_TIMEOUT } else { FIRST_BYTE_TIMEOUT };
            let bytes = request.forward(self.address, address_of(&config), self.sender);
            match self.ask(&config, &bytes, request.method, patience).await {
                Ok((upstream, head)) if head.is_failure() => {
                    failure.why = format!("the member {} answers {}", upstream.name, head.status);
                    tracing::warn!(client = %self.address, why = failure.why, "another member is tried");
                    excuse = Some((upstream, head));
                }
                Ok((upstream, head)) => {
                    return self.pass(request, upstream, head, persistence, started).await;
                }
                Err(wrong) => {
                    failure = wrong;
                    failure.why = format!("the member {}: {}", config.member.name, failure.why);
                    tracing::warn!(client = %self.address, why = failure.why, "another member is tried");
                }
            }
        }
        self.refused(&request.target, &failure.why);
        match excuse {
            Some((upstream, head)) => self.pass(request, upstream, head, persistence, started).await,
            None if failure.is_timeout => self.say(request, "504 Gateway Timeout", "", persistence).await,
            None if attempts > 0 => self.say(request, "502 Bad Gateway", "", persistence).await,
            // iPXE waits and asks again.
            None => self.say(request, "503 Service Unavailable", "Retry-After: 2\r\n", persistence).await,
        }
    }

    /// The members for this client, the best first.
    pub(super) fn configs(&self) -> Vec<MemberConfig> {
        let key = match self.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        self.shared.table.ranked_for(&key, Some(self.address))
    }

    /// Asks a member, over the connection that is there already if it is to this one.
    pub(super) async fn ask(
        &mut self,
        config: &MemberConfig,
        request: &[u8],
        method: Method,
        patience: Duration,
    ) -> Result<(Upstream, ResponseHead), Failure> {
        if let Some(mut kept) = self.idle.take_if(|idle| idle.name == config.member.name) {
            match kept.ask(request, method, patience).await {
                Ok(head) => return Ok((kept, head)),
                Err(failure) if failure.is_timeout => return Err(failure),
                // The member closed it while nobody asked: that says nothing about the member.
                Err(_) => {}
            }
        }
        let mut upstream =
            Upstream::connect(config, self.proxy_header.as_deref(), &self.shared.rooms, self.address).await?;
        let head = upstream.ask(request, method, patience).await?;
        Ok((upstream, head))
    }

    async fn refuse_request(&mut self, refusal: Refusal) -> io::Result<Persistence> {
        let (status, extra, why) = match refusal {
            Refusal::Malformed(why) => ("400 Bad Request", "", why),
            Refusal::Method => {
                ("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "a method other than GET and HEAD")
            }
            Refusal::TooLong => ("431 Request Header Fields Too Large", "", "the request's head is too long"),
        };
        self.refused("", why);
        self.write(
            format!("HTTP/1.1 {status}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await?;
        Ok(Persistence::Close)
    }

    /// An answer of our own.
    async fn say(
        &mut self,
        request: &RequestHead,
        status: &str,
        extra: &str,
        persistence: Persistence,
    ) -> io::Result<Persistence> {
        let mut head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: 0\r\n").into_bytes();
        if let Some(value) = persistence.field(request.version) {
            put(&mut head, "Connection", value.as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        self.write(&head).await?;
        Ok(persistence)
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            // A deadline for each piece that is taken, not for the whole: slow is no crime.
            let deadline = Instant::now() + CLIENT_STALL_TIMEOUT;
            let count = within(deadline, self.stream.write(left)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            left = &left[count..];
        }
        Ok(())
    }

    pub(super) fn tell(&self, kind: EventKind<'_>) {
        self.shared.observer.observe(&Event { mac: None, address: Some(self.address), kind });
    }

    fn refused(&self, path: &str, reason: &str) {
        self.tell(EventKind::Refused { protocol: Protocol::Balance, path, reason });
    }
}

/// Where a member takes HTTP.
pub(super) fn address_of(config: &MemberConfig) -> SocketAddr {
    SocketAddr::new(config.member.address, config.member.http_port)
}
