//! Asking members whether they are healthy, where they do not say so by themselves.
//!
//! One thread for each member asks `GET /health`: 200 is healthy, 503 drains, everything else, silence and a connection
//! that is accepted and never answered are failures. Three failures in a row are death: with the usual settings at most
//! 1.6 s after the last good answer, so that a dead member leaves the replies within 2 s. A dead member comes back
//! after several good answers in a row.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::health::Health;
use super::{MemberConfig, MemberState, Table};

/// Most bytes of a health answer's head that are read.
const HEAD_MAX: usize = 8 * 1024;

/// How members are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// From the start of one question to the start of the next.
    pub interval: Duration,
    /// How long one question may take in all, from the connection to the end of the head.
    pub timeout: Duration,
    /// Failures in a row that are death.
    pub failures: u32,
    /// Good answers in a row that bring a dead member back.
    pub returns: u32,
    /// A file that the member's TFTP server has to answer for too; an error is an answer. None: TFTP is not asked.
    pub tftp_path: Option<String>,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        let beat = Duration::from_millis(400);
        Self { interval: beat, timeout: beat, failures: 3, returns: 3, tftp_path: None }
    }
}

/// The threads that ask. To be replaced after the table was configured anew; what is known stays in the table.
pub struct Prober {
    stopping: Arc<Stopping>,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    /// Starts asking every member of the table but this process.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(table: &Arc<Table>, settings: &ProbeSettings) -> io::Result<Self> {
        let mut prober = Self { stopping: Arc::default(), threads: Vec::new() };
        for known in table.all().iter().filter(|known| Some(known.config.member.name.as_str()) != table.own())
        {
            let asking = Asking {
                config: known.config.clone(),
                settings: settings.clone(),
                table: Arc::clone(table),
                stopping: Arc::clone(&prober.stopping),
            };
            let thread = std::thread::Builder::new().name("health".into()).spawn(move || asking.run())?;
            prober.threads.push(thread);
        }
        Ok(prober)
    }

    /// Ends the threads.
    pub fn stop(self) {}
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stopping.stop();
        for thread in self.threads.drain(..) {
            // A panic in there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Stopping {
    is_stopping: Mutex<bool>,
    changed: Condvar,
}

impl Stopping {
    fn stop(&self) {
        *self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits; true when it is time to stop.
    fn wait(&self, time: Duration) -> bool {
        let guard = self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, time, |is_stopping| !*is_stopping);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

struct Asking {
    config: MemberConfig,
    settings: ProbeSettings,
    table: Arc<Table>,
    stopping: Arc<Stopping>,
}

impl Asking {
    fn run(self) {
        let epoch = Instant::now();
        let name = &self.config.member.name;
        let mut health = Health::new(self.settings.returns);
        let mut failures = 0;
        loop {
            let asked_at = Instant::now();
            match ask(&self.config, &self.settings, asked_at + self.settings.timeout) {
                Ok(state) => {
                    failures = 0;
                    health.sign(epoch.elapsed());
                    if health.is_up() {
                        self.table.report(name, state, "it answers that it is healthy");
                    }
                }
                Err(why) => {
                    failures += 1;
                    tracing::debug!(member = name, why, failures, "a health check failed");
                    // A dead member that fails once between good answers starts anew.
                    if failures >= self.settings.failures || !health.is_up() {
                        health.fail(epoch.elapsed());
                        self.table.report(name, MemberState::Dead, &why);
                    }
                }
            }
            if self.stopping.wait(self.settings.interval.saturating_sub(asked_at.elapsed())) {
                return;
            }
        }
    }
}

/// Asks once.
fn ask(config: &MemberConfig, settings: &ProbeSettings, deadline: Instant) -> Result<MemberState, String> {
    let state = ask_http(config, deadline)?;
    if let Some(path) = &settings.tftp_path {
        ask_tftp(config, path, deadline).map_err(|error| format!("its TFTP server: {error}"))?;
    }
    Ok(state)
}

fn ask_http(config: &MemberConfig, deadline: Instant) -> Result<MemberState, String> {
    let address = SocketAddr::new(config.member.address, config.member.http_port);
    let status = status_of(address, deadline).map_err(|error| format!("its HTTP server: {error}"))?;
    match status {
        200 => Ok(MemberState::Alive),
        503 => Ok(MemberState::Draining),
        other => Err(format!("its HTTP server answers {other} for /health")),
    }
}

/// The status of `GET /health`.
fn status_of(address: SocketAddr, deadline: Instant) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while head.len() < HEAD_MAX {
        // One deadline for the whole answer: a byte now and then is no health.
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = stream.read(&mut part).map_err(as_timeout)?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&part[..count]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&head) {
            Ok(httparse::Status::Complete(_)) => return Ok(response.code.unwrap_or(0)),
            Ok(httparse::Status::Partial) => {}
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection within its answer"))
}

/// Asks for a file and takes anything that comes back from the member for an answer.
fn ask_tftp(config: &MemberConfig, path: &str, deadline: Instant) -> io::Result<()> {
    let address = SocketAddr::new(config.member.address, config.tftp_port);
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    let request = [b"\0\x01", path.as_bytes(), b"\0octet\0tsize\x000\0"].concat();
    socket.send_to(&request, address)?;
    let mut answer = [0; 1024];
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let (length, from) = socket.recv_from(&mut answer).map_err(as_timeout)?;
        if from.ip() == address.ip() && length >= 4 {
            // As firmware does that only wanted to know the size, so that the server need not wait for us. An error
            // (5) ends a transfer by itself.
            if answer[1] != 5 {
                socket.send_to(b"\0\x05\0\0checked\0", from)?;
            }
            return Ok(());
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")) } else { Ok(left) }
}

/// A socket's own timeout is `WouldBlock`, which reads as nonsense.
fn as_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::super::Member;
    use super::*;
    use crate::event::NoopObserver;

    /// Answers with the status that is set; 0 accepts and never answers.
    fn server(status: Arc<AtomicU16>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().flatten() {
                match status.load(Ordering::Relaxed) {
                    0 => held.push(stream),
                    status => {
                        let mut request = [0; 1024];
                        let _ = stream.read(&mut request);
                        let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                    }
                }
            }
        });
        address
    }

    fn config(address: SocketAddr) -> MemberConfig {
        MemberConfig::new(Member {
            name: "a".into(),
            address: address.ip(),
            http_port: address.port(),
            https_port: None,
            https_name: None,
        })
    }

    fn wait_for(table: &Table, state: MemberState) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while table.state_of("a") != state {
            assert!(Instant::now() < deadline, "{state:?} did not come: {:?}", table.all());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn who_answers_is_alive_and_who_accepts_and_hangs_is_dead() {
        let status = Arc::new(AtomicU16::new(200));
        let address = server(Arc::clone(&status));
        let table = Arc::new(Table::new(vec![config(address)], None, Arc::new(NoopObserver)).unwrap());
        // A loaded machine answers late; that is not what is tested here.
        let settings = ProbeSettings { timeout: Duration::from_secs(2), ..ProbeSettings::default() };
        let prober = Prober::start(&table, &settings).unwrap();
        wait_for(&table, MemberState::Alive);
        status.store(503, Ordering::Relaxed);
        wait_for(&table, MemberState::Draining);
        status.store(0, Ordering::Relaxed);
        wait_for(&table, MemberState::Dead);
        assert_eq!(table.all()[0].why, "its HTTP server: it does not answer");
        status.store(200, Ordering::Relaxed);
        wait_for(&table, MemberState::Alive);
        status.store(500, Ordering::Relaxed);
        wait_for(&table, MemberState::Dead);
        prober.stop();
    }

    #[test]
    fn a_silent_tftp_server_fails_the_check_and_any_answer_passes_it() {
        let http = server(Arc::new(AtomicU16::new(200)));
        let tftp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = MemberConfig { tftp_port: tftp.local_addr().unwrap().port(), ..config(http) };
        let settings = ProbeSettings { tftp_path: Some("x".into()), ..ProbeSettings::default() };
        let soon = || Instant::now() + Duration::from_millis(300);
        assert!(ask(&config, &settings, soon()).unwrap_err().contains("TFTP"));
        let answering = std::thread::spawn(move || {
            let mut request = [0; 512];
            loop {
                let (length, from) = tftp.recv_from(&mut request).unwrap();
                assert_eq!(&request[..length], b"\0\x01x\0octet\0tsize\x000\0");
                tftp.send_to(b"\0\x05\0\x01no\0", from).unwrap();
                tftp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                if tftp.peek_from(&mut request).is_err() {
                    return;
                }
            }
        });
        assert_eq!(ask(&config, &settings, Instant::now() + Duration::from_secs(30)), Ok(MemberState::Alive));
        answering.join().unwrap();
    }
}
