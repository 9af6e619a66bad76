//! Reaching the source and the targets, each by its way.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

use super::advance::Advance;
use super::inbox::{Next, inbox};
use super::{Reached, Session, Source, Streams, heard, host_name, lock};
use crate::connection::{Connection, lost};
use crate::dial::{Dialed, Process, dial, ssh_command};
use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Questions, Route, TargetEvent};
use crate::source::{RemoteServer, Server, Serving};
use crate::wire::{Command, Event, Failure, FailureKind, Frame, Hello, Kind};

/// Targets that are dialed at a time: sshd drops connections from ten that have not yet authenticated on
/// (`MaxStartups`), and all may come through one bastion.
const DIALS_MAX: usize = 8;

impl Session<'_> {
    /// Dials every target. Who cannot be reached is reported at once and holds nobody up.
    pub(super) fn reach_targets(&self, source: &Source, shared: &Arc<dyn Server>) -> Vec<Result<Reached>> {
        let at_once = match self.job.reach.questions {
            Questions::OneByOne => 1,
            Questions::Nobody => DIALS_MAX,
        };
        let all = (0..self.job.targets.len()).map(Ok).collect();
        self.for_each_target(all, at_once, |target, _: Result<usize>| {
            self.reach_target(target, source, shared)
        })
    }

    fn dial(&self, place: &Endpoint) -> Result<Dialed> {
        let ssh = self.ssh_to(place.host.as_deref());
        let note = |process: &Process| {
            lock(&self.peers.dialing).push(process.clone());
            if self.peers.stopping.is_requested() {
                process.kill();
            }
        };
        let dialed = dial(&ssh, host_name(place), &self.job.reach.agents, &note);
        if let Ok(dialed) = &dialed {
            // From here on it is asked to stop instead.
            lock(&self.peers.dialing).retain(|process| !process.is(&dialed.process));
        }
        dialed.map_err(|failure| match self.peers.stopping.is_requested() {
            true => Failure::stopped(),
            false => failure,
        })
    }

    pub(super) fn reach_source(&self) -> Result<Source> {
        let place = &self.job.source;
        let dialed = self.dial(place).map_err(|failure| failure.context("the source"))?;
        let (events_in, events) = inbox();
        let mut inboxes = vec![Some(events_in)];
        inboxes.resize_with(self.job.targets.len() + 1, || None);
        let streams = Arc::new(Mutex::new(Streams { inboxes, ended: None }));
        let (server_in, server_out) = bounded::<Arc<RemoteServer>>(1);
        let mut server = None;
        let sorted = Arc::clone(&streams);
        let (connection, process, _) = dialed.into_connection(Arc::clone(&self.throttle), move |frame| {
            // The server needs the connection, which needs this closure.
            let server: &mut Option<Arc<RemoteServer>> = &mut server;
            if server.is_none() {
                *server = server_out.recv().ok();
            }
            let Some(server) = server else { return };
            match frame {
                Ok(Some(frame)) => match frame.kind {
                    Kind::Answer | Kind::Refusal if frame.stream == 0 => server.deliver(&frame),
                    Kind::Event => {
                        let stream = usize::from(frame.stream);
                        let mut streams = lock(&sorted);
                        if let Some(slot) = streams.inboxes.get_mut(stream)
                            && let Some(inbox) = slot
                            && inbox.put(heard::event(&frame)) == Next::Nothing
                        {
                            *slot = None;
                        }
                    }
                    _ => {}
                },
                end => {
                    let failure = lost("the source", end.err().as_ref());
                    server.end(&failure);
                    let mut streams = lock(&sorted);
                    for inbox in streams.inboxes.drain(..).flatten() {
                        inbox.put(Event::Failed(failure.clone()));
                    }
                    streams.ended = Some(failure);
                }
            }
        })?;
        let server = Arc::new(RemoteServer::new(connection.clone()));
        let _ = server_in.send(Arc::clone(&server));
        self.greet(&connection, &process);
        Ok(Source { connection, process, server, events, streams })
    }

    /// The first words to every peer.
    fn greet(&self, connection: &Connection, process: &Process) {
        self.peers.add(connection, process);
        let (nice, io) = (self.job.effort.nice, self.job.effort.io_priority);
        if nice.is_some() || io.is_some() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Priority { nice, io }));
        }
        if self.job.effort.limit.is_some() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Limit(self.job.effort.limit)));
        }
        if self.peers.stopping.is_requested() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
        }
    }

    fn ssh_to(&self, host: Option<&str>) -> Vec<String> {
        host.map(|host| ssh_command(&self.job.reach.ssh, host)).unwrap_or_default()
    }

    pub(super) fn reach_target(
        &self,
        target: usize,
        source: &Source,
        shared: &Arc<dyn Server>,
    ) -> Result<Reached> {
        let place = &self.job.targets[target];
        let meant = place.with_forgotten_colon().filter(|_| !self.job.reach.ssh.is_empty());
        if let Some(meant) = meant {
            let text =
                format!("{place} is a place on this machine; with a colon it is one on a host: {meant}");
            self.emit(target, TargetEvent::Notice(text));
        }
        let from = self.job.source.host.as_deref();
        // From a local source, this machine *is* the source host; a target on it needs no way at all.
        let can_be_direct = from.is_none() || place.host.is_some();
        if self.job.reach.route == Route::Direct && !can_be_direct {
            let text = format!("{place} is on this machine, which the source host cannot be asked to reach");
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        // On the direct route all that the target hears passes through the source host, which could show us one version
        // and the target another. Who asks for a signature does not trust that host.
        let must_relay = self.job.trust.require_signature.is_some() && from.is_some();
        if must_relay && self.job.reach.route == Route::Direct {
            let text =
                "with --require-signature the source host must not pass on what the target is asked for";
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        if can_be_direct && !must_relay && (self.job.reach.route != Route::Relay || from.is_none()) {
            match self.direct(target, source) {
                Ok((hello, events)) => {
                    self.emit(target, TargetEvent::Reached { route: Route::Direct, hello });
                    return Ok(Reached {
                        connection: source.connection.clone(),
                        stream: target as u16 + 1,
                        events,
                    });
                }
                Err(failure) if self.job.reach.route == Route::Direct || from.is_none() => {
                    return Err(failure);
                }
                Err(_) if self.peers.stopping.is_requested() => return Err(Failure::stopped()),
                Err(failure) => {
                    let text = format!("the source cannot reach it ({}); relaying", failure.report().line());
                    self.emit(target, TargetEvent::Notice(text));
                }
            }
        }
        self.relay(target, shared)
    }

    /// Has the source reach the target.
    fn direct(&self, target: usize, source: &Source) -> Result<(Hello, Receiver<Event>)> {
        let place = &self.job.targets[target];
        let stream = target as u16 + 1;
        let (events_in, events) = inbox();
        {
            let mut streams = lock(&source.streams);
            match streams.inboxes.get_mut(usize::from(stream)) {
                Some(slot) => *slot = Some(events_in),
                None => return Err(streams.ended.clone().unwrap_or_else(|| lost("the source", None))),
            }
        }
        let ssh = match (&self.job.source.host, &place.host) {
            (from, to) if from == to => Vec::new(),
            (from, Some(host)) => {
                let command = if from.is_none() { &self.job.reach.ssh } else { &self.job.reach.remote_ssh };
                command.iter().chain([host]).cloned().collect()
            }
            (_, None) => Vec::new(),
        };
        source.connection.send(Frame::of(Kind::Command, 0, 0, &Command::Dial { stream, ssh }));
        let (who, mut advance) = (place.to_string(), Advance::new(Instant::now()));
        loop {
            match self.next_event(&who, &events, &mut advance)? {
                Event::Dialed(hello) => {
                    // It answered too late to hear of a stop.
                    if self.peers.stopping.is_requested() {
                        return Err(Failure::stopped());
                    }
                    let (nice, io) = (self.job.effort.nice, self.job.effort.io_priority);
                    if nice.is_some() || io.is_some() {
                        source.connection.send(Frame::of(
                            Kind::Command,
                            stream,
                            0,
                            &Command::Priority { nice, io },
                        ));
                    }
                    return Ok((hello, events));
                }
                Event::Failed(failure) => return Err(failure),
                _ => {}
            }
        }
    }

    /// Reaches the target from here and passes its requests on.
    fn relay(&self, target: usize, shared: &Arc<dyn Server>) -> Result<Reached> {
        let place = &self.job.targets[target];
        let dialed = self.dial(place)?;
        let (events_in, events) = inbox();
        let mut events_in = Some(events_in);
        let (connection_in, connection_out) = bounded::<(Connection, Process)>(1);
        let mut own = None;
        let server = Arc::clone(shared);
        let (connection, process, hello) =
            dialed.into_connection(Arc::clone(&self.throttle), move |frame| {
                let own: &mut Option<(Serving, Process)> = &mut own;
                if own.is_none() {
                    *own = connection_out.recv().ok().map(|(connection, process)| {
                        (Serving::new(Arc::clone(&server), connection), process)
                    });
                }
                let Some((serving, process)) = own else { return };
                let event = match frame {
                    Ok(Some(frame)) if frame.kind == Kind::Request => match serving.take(&frame) {
                        Ok(()) => return,
                        Err(failure) => {
                            process.kill();
                            Event::Failed(failure)
                        }
                    },
                    Ok(Some(frame)) if frame.kind == Kind::Event => heard::event(&frame),
                    Ok(Some(_)) => return,
                    end => {
                        let mut failure = lost("the target", end.err().as_ref());
                        failure.chain.extend(Some(process.last_words()).filter(|words| !words.is_empty()));
                        Event::Failed(failure)
                    }
                };
                if let Some(inbox) = &events_in
                    && inbox.put(event) == Next::Nothing
                {
                    events_in = None;
                }
            })?;
        let _ = connection_in.send((connection.clone(), process.clone()));
        self.greet(&connection, &process);
        self.emit(target, TargetEvent::Reached { route: Route::Relay, hello });
        Ok(Reached { connection, stream: 0, events })
    }
}
