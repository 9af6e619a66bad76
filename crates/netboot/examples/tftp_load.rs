//! Many TFTP clients in a thread for each core, for measuring: `tftp_load SERVER NAME COPY BLOCK WINDOW CLIENTS`. Every client
//! fetches NAME once and compares each byte with the file COPY. Prints one line:
//! `seconds bytes block window repeated`: the time until the last client was done, the bytes of all of them, what the
//! server agreed to, and how often a client had to repeat itself. Any client's failure fails the whole.
//!
//! A single client never sleeps, so that what is measured is the server.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use goldwire_netboot::fuzzing::tftp::{OptionName, Options, Packet, Receiver, Step};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// A client says again what it said last after so long without an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// So long without a single byte for anybody is a failure.
const DEADLINE: Duration = Duration::from_secs(30);

struct Client {
    socket: UdpSocket,
    receiver: Receiver,
    is_connected: bool,
    is_done: bool,
    heard: Instant,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, name, copy, block, window, clients] = arguments.as_slice() else {
        return Err("tftp_load SERVER NAME COPY BLOCK WINDOW CLIENTS".into());
    };
    let server: SocketAddr = server.parse()?;
    let (block, window): (u64, u64) = (block.parse()?, window.parse()?);
    let expected = std::fs::read(copy)?;
    let mut options = Options::default();
    // What the RFC has as its default need not be asked for, and RFC 1350 alone is measured so too.
    if block != 512 {
        options.add(OptionName::BlockSize, block);
    }
    if window != 1 {
        options.add(OptionName::WindowSize, window);
    }

    let clients: usize = clients.parse()?;
    let threads = std::thread::available_parallelism()?.get().min(clients);
    let start = Instant::now();
    let load = Load { server, name, options: &options, expected: &expected, is_alone: clients == 1 };
    let ends = std::thread::scope(|scope| {
        let share = |thread| clients / threads + usize::from(thread < clients % threads);
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                goldwire_stdx::spawn_scoped(scope, "clients", move || {
                    load.run(share(thread)).map_err(|e| e.to_string())
                })
                .map_err(|e| e.to_string())
            })
            .collect::<Result<_, _>>()?;
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread failed".to_owned())?)
            .collect::<Result<Vec<_>, _>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let repeated: u64 = ends.iter().map(|end| end.repeated).sum();
    let (block, window) = ends.first().map_or((0, 0), |end| end.agreed);
    writeln!(std::io::stdout(), "{seconds:.6} {} {block} {window} {repeated}", expected.len() * clients)?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Load<'a> {
    server: SocketAddr,
    name: &'a str,
    options: &'a Options,
    expected: &'a [u8],
    is_alone: bool,
}

/// How one thread's clients ended.
struct End {
    agreed: (u16, u16),
    repeated: u64,
}

impl Load<'_> {
    /// Runs one thread's clients to their end.
    fn run(&self, clients: usize) -> Result<End, Box<dyn Error>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = (0..clients)
            .map(|number| Client::new(self.server, self.options, &epoll, number as u64))
            .collect::<Result<Vec<_>, _>>()?;
        for client in &mut clients {
            client.socket.send_to(&client.receiver.request(self.name), self.server)?;
            client.heard = Instant::now();
        }
        let (mut left, mut repeated, mut progress) = (clients.len(), 0, Instant::now());
        let mut events = Vec::with_capacity(64);
        while left > 0 {
            events.clear();
            let pause = Timespec { tv_sec: 0, tv_nsec: if self.is_alone { 0 } else { 100_000_000 } };
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&pause))?;
            for event in &events {
                let client = &mut clients[event.data.u64() as usize];
                client.receive(self.expected)?;
                left -= usize::from(client.is_done);
                progress = client.heard;
            }
            if !events.is_empty() {
                continue;
            }
            let now = Instant::now();
            if now > progress + DEADLINE {
                return Err(format!("{left} clients wait in vain").into());
            }
            for client in clients.iter_mut().filter(|client| !client.is_done && now > client.heard + PATIENCE)
            {
                repeated += 1;
                client.heard = now;
                match client.receiver.reminder() {
                    Some(packet) => client.socket.send(&packet)?,
                    None => client.socket.send_to(&client.receiver.request(self.name), self.server)?,
                };
            }
        }
        Ok(End { agreed: clients.first().map_or((0, 0), |client| client.receiver.agreed()), repeated })
    }
}

impl Client {
    fn new(
        server: SocketAddr,
        options: &Options,
        epoll: &OwnedFd,
        number: u64,
    ) -> Result<Self, Box<dyn Error>> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::DGRAM, None)?;
        // Room for a window and more, as a network card has.
        socket.set_recv_buffer_size(4 << 20)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(any, 0).into())?;
        let socket = UdpSocket::from(socket);
        epoll::add(epoll, &socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        let receiver = Receiver::new(options.clone());
        Ok(Self { socket, receiver, is_connected: false, is_done: false, heard: Instant::now() })
    }

    /// Takes all that has come.
    fn receive(&mut self, expected: &[u8]) -> Result<(), Box<dyn Error>> {
        let mut buffer = [0; 1 << 16];
        let (mut is_right, mut end) = (true, 0);
        while !self.is_done {
            let length = if self.is_connected {
                self.socket.recv(&mut buffer)
            } else {
                self.socket.recv_from(&mut buffer).and_then(|(length, from)| {
                    self.is_connected = true;
                    self.socket.connect(from).map(|()| length)
                })
            };
            let length = match length {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            let step =
                self.receiver.handle_packet(&Packet::decode(&buffer[..length])?, &mut |offset, bytes| {
                    let at = offset as usize;
                    is_right &= expected.get(at..at + bytes.len()) == Some(bytes);
                    end = at + bytes.len();
                });
            match step {
                Step::Wait => {}
                Step::Acknowledge(packet) => {
                    self.socket.send(&packet)?;
                    // Without a window, nothing else can be there already.
                    if self.receiver.agreed().1 == 1 {
                        break;
                    }
                }
                Step::Done(packet) => {
                    self.socket.send(&packet)?;
                    self.is_done = true;
                    is_right &= end == expected.len();
                }
                Step::Failed(code, message) => return Err(format!("ERROR {}: {message}", code.0).into()),
                Step::Refuse(_) => return Err("the server changed the options".into()),
            }
        }
        self.heard = Instant::now();
        is_right.then_some(()).ok_or_else(|| "the server sent wrong bytes".into())
    }
}
