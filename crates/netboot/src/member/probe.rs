//! Asking members whether they are healthy, where they do not say so by themselves.
//!
//! One thread for each member asks `GET /health`: 200 is healthy, 503 drains, everything else, silence and a connection
//! that is accepted and never answered are failures. Three failures in a row are death: with the usual settings at most
//! 1.6 s after the last good answer, so that a dead member leaves the replies within 2 s. A dead member comes back
//! after several good answers in a row.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goldwire_stdx::Stop;

use super::health::Health;
use super::{MemberConfig, MemberState, Table};
use crate::http1::{Exchange, exchange};

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
    /// Whether the connection begins with a PROXY header: of a front from which members take no other.
    pub sends_proxy_header: bool,
    /// A file that the member's TFTP server has to answer for too; an error is an answer. None: TFTP is not asked.
    pub tftp_path: Option<String>,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        let beat = Duration::from_millis(400);
        Self {
            interval: beat,
            timeout: beat,
            failures: 3,
            returns: 3,
            sends_proxy_header: false,
            tftp_path: None,
        }
    }
}

/// The threads that ask: one for each member of the table, and one that begins and ends those when members come, go or
/// move.
pub struct Prober {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts asking every member of the table but this process, now and after every change of the table.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn run(table: &Arc<Table>, settings: &ProbeSettings) -> io::Result<Self> {
        let stop = Stop::new();
        let mut asked = Asked { table: Arc::clone(table), settings: settings.clone(), threads: Vec::new() };
        asked.reconcile()?;
        let stopping = stop.clone();
        let thread = goldwire_stdx::spawn("health", move || {
            while !stopping.wait(asked.settings.interval) {
                if let Err(error) = asked.reconcile() {
                    tracing::warn!(%error, "a member is not asked for its health yet");
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the threads.
    pub fn stop(self) {}
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// Who is asked at present.
struct Asked {
    table: Arc<Table>,
    settings: ProbeSettings,
    threads: Vec<AskedMember>,
}

struct AskedMember {
    config: MemberConfig,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Asked {
    /// Asks whom the table names now, where it says, and nobody else. What is taken over once, at the start, misses the
    /// members that a new boot file names and goes on asking where one no longer is.
    fn reconcile(&mut self) -> io::Result<()> {
        let own = self.table.own();
        let wanted: Vec<MemberConfig> = self
            .table
            .all()
            .iter()
            .map(|known| known.config.clone())
            .filter(|config| Some(config.member.name.as_str()) != own)
            .collect();
        self.threads.retain(|asked| wanted.iter().any(|config| asked.is_for(config)));
        for config in wanted {
            if self.threads.iter().any(|asked| asked.is_for(&config)) {
                continue;
            }
            let stop = Stop::new();
            let asking = Asking {
                config: config.clone(),
                settings: self.settings.clone(),
                table: Arc::clone(&self.table),
                stop: stop.clone(),
            };
            let thread = Some(goldwire_stdx::spawn("health", move || asking.run())?);
            self.threads.push(AskedMember { config, stop, thread });
        }
        Ok(())
    }
}

impl AskedMember {
    /// Whether it asks this member where the member is.
    fn is_for(&self, config: &MemberConfig) -> bool {
        self.config.member == config.member && self.config.tftp_port == config.tftp_port
    }
}

impl Drop for AskedMember {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

struct Asking {
    config: MemberConfig,
    settings: ProbeSettings,
    table: Arc<Table>,
    stop: Stop,
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
            if self.stop.wait(self.settings.interval.saturating_sub(asked_at.elapsed())) {
                return;
            }
        }
    }
}

/// Asks once.
fn ask(config: &MemberConfig, settings: &ProbeSettings, deadline: Instant) -> Result<MemberState, String> {
    let state = ask_http(config, settings, deadline)?;
    if let Some(path) = &settings.tftp_path {
        ask_tftp(config, path, deadline).map_err(|error| format!("its TFTP server: {error}"))?;
    }
    Ok(state)
}

fn ask_http(
    config: &MemberConfig,
    settings: &ProbeSettings,
    deadline: Instant,
) -> Result<MemberState, String> {
    let address = SocketAddr::new(config.member.address, config.member.http_port);
    let status =
        status_of(address, settings, deadline).map_err(|error| format!("its HTTP server: {error}"))?;
    match status {
        200 => Ok(MemberState::Alive),
        503 => Ok(MemberState::Draining),
        other => Err(format!("its HTTP server answers {other} for /health")),
    }
}

/// The status of `GET /health`.
fn status_of(address: SocketAddr, settings: &ProbeSettings, deadline: Instant) -> io::Result<u16> {
    let host = address.to_string();
    let ask = Exchange {
        address,
        host: &host,
        method: "GET",
        target: "/health",
        range: None,
        is_proxied: settings.sends_proxy_header,
        agent: "goldwire-health",
        body_max: 0,
    };
    Ok(exchange(&ask, deadline)?.0.status)
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
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::super::Member;
    use super::*;
    use crate::event::NoopObserver;

    /// Answers with the status that is set; 0 accepts and never answers.
    fn server(status: Arc<AtomicU16>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        goldwire_stdx::spawn("test", move || {
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
        })
        .unwrap();
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

    fn wait_for(table: &Table, name: &str, state: MemberState) {
        goldwire_stdx::testing::until(&format!("{name} is {state:?}"), || table.state_of(name) == state);
    }

    #[test]
    fn who_answers_is_alive_and_who_accepts_and_hangs_is_dead() {
        let status = Arc::new(AtomicU16::new(200));
        let address = server(Arc::clone(&status));
        let table = Arc::new(Table::new(vec![config(address)], None, Arc::new(NoopObserver)).unwrap());
        // A loaded machine answers late; that is not what is tested here.
        let settings = ProbeSettings { timeout: Duration::from_secs(2), ..ProbeSettings::default() };
        let prober = Prober::run(&table, &settings).unwrap();
        wait_for(&table, "a", MemberState::Alive);
        status.store(503, Ordering::Relaxed);
        wait_for(&table, "a", MemberState::Draining);
        status.store(0, Ordering::Relaxed);
        wait_for(&table, "a", MemberState::Dead);
        assert_eq!(table.all()[0].why, "its HTTP server: it does not answer");
        status.store(200, Ordering::Relaxed);
        wait_for(&table, "a", MemberState::Alive);
        status.store(500, Ordering::Relaxed);
        wait_for(&table, "a", MemberState::Dead);
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
        let answering = goldwire_stdx::spawn("test", move || {
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
        })
        .unwrap();
        assert_eq!(ask(&config, &settings, Instant::now() + Duration::from_secs(30)), Ok(MemberState::Alive));
        answering.join().unwrap();
    }

    // A boot file that is read again names another address, or another member: whoever asks only those of the start
    // calls the one dead that moved and never uses the one that is new.
    #[test]
    fn members_that_come_move_and_go_are_asked_where_they_are() {
        let all_well = || server(Arc::new(AtomicU16::new(200)));
        let named = |name: &str, address| MemberConfig {
            member: Member { name: name.into(), ..config(address).member },
            ..config(address)
        };
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let table = Table::new(vec![named("a", silent.local_addr().unwrap())], None, Arc::new(NoopObserver));
        let table = Arc::new(table.unwrap());
        let settings = ProbeSettings { timeout: Duration::from_secs(2), ..ProbeSettings::default() };
        let prober = Prober::run(&table, &settings).unwrap();
        wait_for(&table, "a", MemberState::Dead);
        table.configure(vec![named("a", all_well()), named("b", all_well())]).unwrap();
        wait_for(&table, "a", MemberState::Alive);
        wait_for(&table, "b", MemberState::Alive);
        table.configure(vec![named("b", silent.local_addr().unwrap())]).unwrap();
        wait_for(&table, "b", MemberState::Dead);
        assert_eq!(table.all().len(), 1);
        prober.stop();
    }
}
