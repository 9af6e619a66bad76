//! Everybody we talk to, for signals that concern all and for noticing silence.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use goldwire_stdx::Stop;

use super::lock;
use crate::connection::{Connection, SILENCE_MAX, Throttle};
use crate::dial::Process;
use crate::job::Signal;
use crate::wire::{Command, Frame, Kind};

/// How long a target may take to end after it was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Everybody we talk to, for signals that concern all and for noticing silence.
pub(super) struct Peers {
    pub(super) connections: Mutex<Vec<(Connection, Process)>>,
    /// Connections that have not answered yet.
    pub(super) dialing: Mutex<Vec<Process>>,
    pub(super) throttle: Arc<Throttle>,
    pub(super) stopping: Stop,
}

impl Peers {
    pub(super) fn new(throttle: Arc<Throttle>) -> Self {
        let (connections, dialing) = (Mutex::default(), Mutex::default());
        Self { connections, dialing, throttle, stopping: Stop::new() }
    }

    pub(super) fn add(&self, connection: &Connection, process: &Process) {
        self.lock().push((connection.clone(), process.clone()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Connection, Process)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command_all(&self, command: &Command) {
        for (connection, _) in self.lock().iter() {
            connection.send(Frame::of(Kind::Command, 0, 0, command));
        }
    }

    pub(super) fn kill_all(&self) {
        self.lock().drain(..).for_each(|(_, process)| process.kill());
    }

    /// Passes signals on until the sync is over.
    pub(super) fn watch_signals(&self, signals: &Receiver<Signal>, over: &Stop) {
        let mut stopped_at: Option<Instant> = None;
        let mut is_disconnected = false;
        while !over.is_requested() {
            let next = if is_disconnected {
                over.wait(Duration::from_millis(100));
                Err(RecvTimeoutError::Timeout)
            } else {
                signals.recv_timeout(Duration::from_millis(100))
            };
            match next {
                Ok(Signal::Stop) if stopped_at.is_some() => self.kill_all(),
                Ok(Signal::Stop) => {
                    stopped_at = Some(Instant::now());
                    self.stopping.request();
                    self.throttle.set_paused(false);
                    self.command_all(&Command::Stop);
                    // Whoever has not answered yet has nothing to finish.
                    lock(&self.dialing).drain(..).for_each(|process| process.kill());
                }
                Ok(Signal::Pause) => {
                    self.throttle.set_paused(true);
                    self.command_all(&Command::Pause);
                }
                Ok(Signal::Resume) => {
                    self.throttle.set_paused(false);
                    self.command_all(&Command::Resume);
                }
                Ok(Signal::Limit(rate)) => {
                    self.throttle.set_rate(rate);
                    self.command_all(&Command::Limit(rate));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_disconnected = true,
            }
            if stopped_at.is_some_and(|at| at.elapsed() > STOP_GRACE) {
                self.kill_all();
            }
            if !self.throttle.is_paused() {
                let silent = |(connection, _): &(Connection, Process)| {
                    connection.is_lost() || connection.silent_for() > SILENCE_MAX
                };
                self.lock().iter().filter(|peer| silent(peer)).for_each(|(_, process)| process.kill());
            }
        }
    }
}
