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
                    self.throttle.resume();
                    self.command_all(&Command::Stop);
                    // Whoever has not answered yet has nothing to finish.
                    lock(&self.dialing).drain(..).for_each(|process| process.kill());
                }
                Ok(Signal::Pause) => {
                    self.throttle.pause();
                    self.command_all(&Command::Pause);
                }
                Ok(Signal::Resume) => {
                    self.throttle.resume();
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

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, unbounded};
    use goldwire_stdx::spawn_scoped;

    use super::*;
    use crate::testing::{Peer, until};

    /// Plays `script` while signals are watched.
    fn watch(peers: &Peers, script: impl FnOnce(&Sender<Signal>)) {
        let (signal, signals) = unbounded();
        let over = Stop::new();
        std::thread::scope(|scope| {
            let watcher = spawn_scoped(scope, "signals", || peers.watch_signals(&signals, &over)).unwrap();
            script(&signal);
            // Nobody can send any more; that alone ends nothing.
            drop(signal);
            over.request();
            watcher.join().unwrap();
        });
    }

    fn heard(peer: &mut Peer) -> Command {
        peer.next().message("command").unwrap()
    }

    #[test]
    fn signals_reach_every_peer_and_our_own_sending() {
        let peers = Peers::new(Arc::default());
        let mut all = [Peer::that_reads(), Peer::that_reads()];
        all.iter().for_each(|peer| peers.add(&peer.connection, &Process::none()));
        watch(&peers, |signal| {
            for (said, command) in [
                (Signal::Pause, Command::Pause),
                (Signal::Resume, Command::Resume),
                (Signal::Limit(Some(5)), Command::Limit(Some(5))),
                (Signal::Limit(None), Command::Limit(None)),
            ] {
                signal.send(said).unwrap();
                all.iter_mut().for_each(|peer| assert_eq!(heard(peer), command));
                assert_eq!(peers.throttle.is_paused(), said == Signal::Pause);
            }
            assert!(!peers.stopping.is_requested());
        });
        assert_eq!(peers.lock().len(), 2);
    }

    #[test]
    fn the_first_stop_asks_and_the_second_ends() {
        let peers = Peers::new(Arc::default());
        let mut peer = Peer::that_reads();
        peers.add(&peer.connection, &Process::none());
        peers.throttle.pause();
        let (dialing, reached) = (Process::waiting(), Process::waiting());
        peers.dialing.lock().unwrap().push(dialing.clone());
        let other = Peer::that_reads();
        peers.add(&other.connection, &reached);
        watch(&peers, |signal| {
            signal.send(Signal::Stop).unwrap();
            assert_eq!(heard(&mut peer), Command::Stop);
            until("who has not answered yet is ended", || dialing.has_ended());
            assert!(peers.stopping.is_requested() && !peers.throttle.is_paused());
            assert!(!reached.has_ended());
            signal.send(Signal::Stop).unwrap();
            until("everybody is ended", || reached.has_ended());
        });
        assert!(peers.lock().is_empty());
    }

    #[test]
    fn a_peer_that_is_lost_is_ended_and_the_others_are_not() {
        let peers = Peers::new(Arc::default());
        let (lost, well) = (Peer::that_never_reads(), Peer::that_reads());
        let processes = [Process::waiting(), Process::waiting()];
        peers.add(&lost.connection, &processes[0]);
        peers.add(&well.connection, &processes[1]);
        lost.break_off();
        for _ in 0..3 {
            lost.connection.send(Frame::of(Kind::Command, 0, 0, &Command::Resume));
        }
        watch(&peers, |_| until("it is ended", || processes[0].has_ended()));
        assert!(!processes[1].has_ended());
        peers.kill_all();
        assert!(processes[1].has_ended());
    }
}
