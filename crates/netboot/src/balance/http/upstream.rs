//! One request to one member, up to its answer's head.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::super::CONNECT_TIMEOUT;
use super::head::{Method, ResponseHead};
use crate::member::MemberConfig;
use crate::room::{Room, Rooms};

/// Bytes that are read at once.
const BUFFER: usize = 64 * 1024;

/// The same where all the room for buffers is taken.
const BUFFER_LEAST: usize = 4 * 1024;

/// Interim answers (1xx) that are skipped.
const INTERIM_MAX: usize = 4;

/// A connection to a member.
pub(super) struct Upstream {
    /// The member's name.
    pub(super) name: String,
    stream: TcpStream,
    /// What was read and not yet used.
    pub(super) rest: Vec<u8>,
    rooms: Arc<Rooms>,
    /// For whom it is asked.
    client: IpAddr,
    /// The room that a whole buffer takes.
    room: Option<Room>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    /// As a sentence.
    pub(super) why: String,
    /// Whether it was a matter of time: 504 instead of 502.
    pub(super) is_timeout: bool,
}

impl Failure {
    fn of(what: &str, error: &io::Error) -> Self {
        Self { why: format!("{what}: {error}"), is_timeout: error.kind() == io::ErrorKind::TimedOut }
    }
}

impl Upstream {
    /// Connects, and writes the PROXY header if there is one.
    pub(super) async fn connect(
        config: &MemberConfig,
        proxy_header: Option<&[u8]>,
        rooms: &Arc<Rooms>,
        client: IpAddr,
    ) -> Result<Self, Failure> {
        let address = SocketAddr::new(config.member.address, config.member.http_port);
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let connecting = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            if let Some(header) = proxy_header {
                stream.write_all(header).await?;
            }
            Ok(stream)
        };
        match within(deadline, connecting).await {
            Ok(stream) => {
                let (name, rooms) = (config.member.name.clone(), Arc::clone(rooms));
                Ok(Self { name, stream, rest: Vec::new(), rooms, client, room: None })
            }
            Err(error) => Err(Failure::of("connect", &error)),
        }
    }

    /// Sends a request and reads the head of its answer.
    pub(super) async fn ask(
        &mut self,
        request: &[u8],
        method: Method,
        patience: Duration,
    ) -> Result<ResponseHead, Failure> {
        let deadline = Instant::now() + patience;
        within(deadline, self.stream.write_all(request))
            .await
            .map_err(|error| Failure::of("send the request", &error))?;
        let mut interim = 0;
        loop {
            let malformed = |why: &str| Failure { why: why.to_owned(), is_timeout: false };
            match ResponseHead::decode(&self.rest, method).map_err(malformed)? {
                Some((head, length)) => {
                    self.rest.drain(..length);
                    if !matches!(head.status, 100..=199) {
                        return Ok(head);
                    }
                    interim += 1;
                    if interim > INTERIM_MAX || head.status == 101 {
                        return Err(malformed("it answers nothing but interim answers"));
                    }
                }
                None => {
                    self.fill(deadline).await.map_err(|error| Failure::of("wait for the answer", &error))?
                }
            }
        }
    }

    /// An answer is over: what is kept until the next one is next to nothing.
    pub(super) fn rest_a_while(mut self) -> Self {
        (self.rest, self.room) = (Vec::new(), None);
        self
    }

    /// Reads more into `rest`. The end of the connection is an error.
    pub(super) async fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        if self.room.is_none() {
            self.room = self.rooms.take(self.client, BUFFER);
        }
        let most = if self.room.is_some() { BUFFER } else { BUFFER_LEAST };
        self.rest.reserve_exact(most);
        match within(deadline, self.stream.read_buf(&mut self.rest)).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the member closed the connection")),
            _ => Ok(()),
        }
    }
}

/// Time's up is an error like others.
pub(super) async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it takes too long");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()))
}
