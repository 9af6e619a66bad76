//! Waiting for the disk of the boot tree: on threads beside those that serve, and not on more of them than are of use.

use std::io;
use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::{block_in_place, spawn_blocking};

use crate::member::Fitness;

/// Reads at a time. Each has a thread meanwhile; more would not make a disk faster, and everybody could ask for them.
const READERS_MAX: usize = 64;

/// Threads for them: after a read its thread may still be busy with what was read.
pub(super) const THREADS_MAX: usize = READERS_MAX + 16;

/// The way to the disk.
#[derive(Debug)]
pub(super) struct Disk {
    fitness: Arc<Fitness>,
    readers: Semaphore,
}

impl Default for Disk {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Disk {
    /// Tells `fitness` when the disk does not answer.
    pub(super) fn new(fitness: Arc<Fitness>) -> Self {
        Self { fitness, readers: Semaphore::new(READERS_MAX) }
    }

    /// Does what may wait for the disk, when it is its turn, on a thread that is kept for this.
    pub(super) async fn read_apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let _turn = self.turn().await;
        let working = self.fitness.begin_read();
        let work = move || {
            let _working = working;
            work()
        };
        spawn_blocking(work).await.map_err(io::Error::other)
    }

    /// Does what may wait for the disk, when it is its turn. The thread's other work goes on elsewhere.
    pub(super) async fn read<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.turn().await;
        self.read_in_turn(work)
    }

    /// Waits for a turn, which ends when this is dropped.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.readers.acquire().await.ok()
    }

    /// Does what may wait for the disk, in a [`turn`](Self::turn).
    pub(super) fn read_in_turn<T>(&self, work: impl FnOnce() -> T) -> T {
        let _working = self.fitness.begin_read();
        block_in_place(work)
    }
}
