//! The thread that answers.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

use goldwire_stdx::Stop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::clock::Clock;
use super::commit::{LogState, Work};
use super::probe::Prober;
use super::socket::{Datagram, Received, SocketSet};
use super::{Command, Counters, Wake};
use crate::dhcp::destination::SERVER_PORT;
use crate::dhcp::lease::Time;
use crate::dhcp::proxy::{BINL_PORT, ProxyResponder};
use crate::dhcp::server::{Outputs, Reply, Server};
use crate::dhcp::wire::{Message, MessageType};
use crate::member::{Fitness, Part};

/// Requests that wait; of more, the oldest is dropped: its client has asked again since, or has given up.
const QUEUE_MAX: usize = 4096;
/// Requests that are answered before we look at the sockets again.
const ROUND_MAX: usize = 256;
/// With so many records on their way to the disk, requests wait in the queue.
const IN_FLIGHT_MAX: usize = 4096;
/// A request that has waited so long is stale: its client has asked again since, or has gone to another server. They come
/// together when this process was stopped for a while.
const AGE_MAX: std::time::Duration = std::time::Duration::from_secs(2);
/// How often the machine's clock is looked at when nothing else happens.
const CLOCK_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// Addresses in one piece of a rewriting: some 500 KiB.
const PIECE: usize = 4096;
/// Pieces that wait for the disk.
const PIECES_MAX: usize = 2;

/// All that the thread has.
pub(super) struct ServeLoop {
    pub(super) sockets: Arc<SocketSet>,
    pub(super) server: Option<Server>,
    pub(super) proxy: Option<ProxyResponder>,
    pub(super) prober: Option<Prober>,
    pub(super) work: SyncSender<Work>,
    pub(super) log: Arc<LogState>,
    pub(super) wake: Arc<Wake>,
    pub(super) stop: Stop,
    pub(super) commands: Receiver<Command>,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: Clock,
    pub(super) fitness: Arc<Fitness>,
    pub(super) queue: VecDeque<Received>,
    /// Batches that the log's thread has no room for yet.
    pub(super) backlog: VecDeque<Work>,
    /// The last address of the piece before, while the log is being rewritten.
    pub(super) rewriting: Option<Option<Ipv4Addr>>,
}

impl ServeLoop {
    /// Serves until it is told to stop.
    pub(super) fn run(mut self) {
        while !self.stop.is_requested() {
            match self.wait() {
                Ok(ready) => ready.into_iter().for_each(|socket| self.drain(socket)),
                Err(error) => {
                    tracing::error!(%error, "wait for requests");
                    self.stop.wait(std::time::Duration::from_millis(100));
                }
            }
            self.follow_clock();
            let now = self.clock.now();
            let mut outputs = Outputs::default();
            self.handle_commands();
            self.answer(now, &mut outputs);
            self.poll_probes(now, &mut outputs);
            self.send_outputs(outputs);
            self.rewrite(now);
            self.hand_over();
            let is_awaited = self.is_congested() || self.rewriting.is_some();
            self.log.is_awaited.store(is_awaited, Ordering::SeqCst);
            if is_awaited {
                // Where the log's thread got on before it could know that we wait.
                self.hand_over();
            }
        }
        // What was promised to the log is written before the thread ends; the channel's end tells the log's thread.
        while let Some(work) = self.backlog.pop_front() {
            if self.work.send(work).is_err() {
                break;
            }
        }
    }

    /// Moves with the machine's clock if somebody has set it: what was decided by the wrong time moves too, and the log is
    /// written anew, or after the next start its times would say that other clients may have the addresses.
    fn follow_clock(&mut self) {
        let Some(step_ms) = self.clock.follow() else { return };
        let Some(server) = &mut self.server else { return };
        server.shift_times(self.clock.started(), step_ms);
        self.clock.moved_start(step_ms);
        self.log.wants_rewrite.store(true, Ordering::Release);
        tracing::warn!(
            step_s = step_ms as f64 / 1000.0,
            "the machine's clock was set; the leases of this run move with it, and their log is rewritten"
        );
    }

    fn is_congested(&self) -> bool {
        !self.backlog.is_empty() || self.log.in_flight.load(Ordering::SeqCst) >= IN_FLIGHT_MAX
    }

    /// Whether the next piece of a rewriting may go to the log's thread.
    fn has_piece(&self) -> bool {
        self.rewriting.is_some() && self.log.pieces.load(Ordering::SeqCst) < PIECES_MAX
    }

    /// Waits for a datagram, a timer, the log's thread or a command. Returns the sockets that have datagrams.
    fn wait(&self) -> io::Result<Vec<usize>> {
        let mut waiting: Vec<PollFd<'_>> =
            self.sockets.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        waiting.push(PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN));
        let probers = self.prober.iter().flat_map(Prober::sockets);
        waiting.extend(probers.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        let timer = self.server.as_ref().and_then(Server::poll_timeout);
        let timer = timer.map(|time| time.remaining(self.clock.now()));
        let timer = if self.server.is_some() {
            Some(timer.unwrap_or(CLOCK_INTERVAL).min(CLOCK_INTERVAL))
        } else {
            timer
        };
        let has_work = (!self.queue.is_empty() && !self.is_congested()) || self.has_piece();
        let timeout = if has_work { Some(std::time::Duration::ZERO) } else { timer };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let sockets = self.sockets.sockets.len();
        let is_ready = |waiting: &PollFd<'_>| !waiting.revents().is_empty();
        if waiting.get(sockets).is_some_and(is_ready) {
            self.wake.clear();
        }
        Ok((0..sockets).filter(|socket| waiting.get(*socket).is_some_and(is_ready)).collect())
    }

    /// Empties a socket into the queue.
    fn drain(&mut self, socket: usize) {
        for _ in 0..QUEUE_MAX {
            match self.sockets.receive(socket) {
                Ok(Some(received)) => {
                    if self.queue.len() >= QUEUE_MAX {
                        self.queue.pop_front();
                        self.counters.congestion_drops.fetch_add(1, Ordering::Relaxed);
                    }
                    self.queue.push_back(received);
                    // Last, and after what it drops: who sees that it came sees what became of it.
                    self.counters.received.fetch_add(1, Ordering::Release);
                }
                Ok(None) => {}
                // Also what ICMP told about an earlier answer: the next call goes on behind it.
                Err(_) => break,
            }
        }
    }

    fn handle_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            let Some(server) = &mut self.server else { continue };
            match command {
                Command::Snapshot(after, count, answer) => {
                    // Who asked may have gone away.
                    let _ = answer.send(server.table().snapshot(after, count).0);
                }
            }
        }
    }

    fn answer(&mut self, now: Time, outputs: &mut Outputs) {
        // Before there is congestion: who waits in a queue for a disk that hangs is not served by another member.
        let is_fit = self.server.is_none() || self.fitness.is_fit(Part::LeaseLog);
        if is_fit && self.is_congested() {
            return;
        }
        if !is_fit {
            self.fitness.trouble();
        }
        for _ in 0..ROUND_MAX {
            let Some(received) = self.queue.pop_front() else { break };
            let message = match Message::decode(&received.bytes) {
                Ok(message) => message,
                Err(error) => {
                    self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(from = %received.arrival.from, %error, "not a DHCP message");
                    continue;
                }
            };
            let arrival = received.arrival;
            let is_binl = self.sockets.is_binl(&arrival);
            if received.came.elapsed().is_ok_and(|age| age > AGE_MAX) {
                self.counters.stale_drops.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let needs_log = matches!(message.kind(), Some(MessageType::DISCOVER | MessageType::REQUEST));
            if !is_fit && !is_binl && needs_log {
                self.counters.unfit_drops.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if let Some(server) = self.server.as_mut().filter(|_| !is_binl) {
                server.handle(now, &message, arrival, outputs);
            } else if let Some(proxy) = &self.proxy {
                let port = if is_binl { BINL_PORT } else { SERVER_PORT };
                if let Some((reply, destination)) =
                    proxy.handle(&message, arrival.from, arrival.received_on, port)
                {
                    let size_max = message.reply_size_max();
                    outputs.replies.push(Reply { message: reply, size_max, destination, arrival });
                }
            }
        }
    }

    fn poll_probes(&mut self, now: Time, outputs: &mut Outputs) {
        let Some(server) = &mut self.server else { return };
        if let Some(prober) = &self.prober {
            prober
                .answers(QUEUE_MAX, |seen| server.handle_probe_answer(now, seen.address, seen.mac, outputs));
        }
        server.handle_timeout(now, outputs);
        if let Some(prober) = &self.prober {
            outputs.probes.iter().for_each(|probe| prober.ask(probe));
        }
    }

    fn send_outputs(&mut self, outputs: Outputs) {
        let Outputs { replies, records, durable_replies, .. } = outputs;
        for reply in replies {
            super::send(&self.sockets, &datagram(reply));
        }
        self.log.in_flight.fetch_add(records.len(), Ordering::SeqCst);
        self.backlog.extend(Work::commit(records, durable_replies.into_iter().map(datagram).collect()));
    }

    /// Hands one more piece over while the log is being rewritten, or begins with it.
    fn rewrite(&mut self, now: Time) {
        let Some(server) = &self.server else { return };
        if self.rewriting.is_none() && self.log.wants_rewrite.swap(false, Ordering::AcqRel) {
            self.backlog.push_back(Work::Begin(now, server.table().member_sequence()));
            self.rewriting = Some(None);
        }
        if !self.has_piece() {
            return;
        }
        let Some(after) = self.rewriting else { return };
        let (records, last) = server.table().snapshot(after, PIECE);
        self.rewriting = last.map(Some);
        self.log.pieces.fetch_add(1, Ordering::SeqCst);
        self.backlog.push_back(Work::Piece(records));
        if last.is_none() {
            // A request that came in the meantime must not be taken for this rewriting's.
            self.log.wants_rewrite.store(false, Ordering::Release);
            self.backlog.push_back(Work::Finish);
        }
    }

    fn hand_over(&mut self) {
        while let Some(work) = self.backlog.pop_front() {
            match self.work.try_send(work) {
                Ok(()) => {}
                Err(TrySendError::Full(work)) => {
                    self.backlog.push_front(work);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.stop.request();
                    break;
                }
            }
        }
    }
}

fn datagram(reply: Reply) -> Datagram {
    Datagram {
        bytes: reply.message.encode(reply.size_max),
        destination: reply.destination,
        arrival: reply.arrival,
    }
}
