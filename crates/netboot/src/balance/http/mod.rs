//! The HTTP front.

pub(crate) mod chunks;
mod client;
pub(crate) mod head;
mod pass;
mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{CONNECTIONS_MAX, CONNECTIONS_PER_CLIENT_MAX, Phase, Shared};

/// How long to wait after a failed accept: it fails when descriptors run out, and then at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until the front stops, then waits for those that are under way.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let clients = Arc::new(Clients::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shared.reached(Phase::Stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = Arc::clone(&room).acquire_owned().await;
                listener.accept().await.map(|(stream, peer)| (place, stream, peer))
            } => accepted,
        };
        let (place, stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(guest) = Clients::enter(&clients, peer.ip()) else { continue };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            if let Err(error) = client::serve(stream, peer, &shared).await {
                tracing::debug!(%peer, %error, "a connection broke");
            }
            drop((place, guest));
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// How many connections each address has.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

impl Clients {
    /// Counts a connection, unless its address has too many.
    fn enter(clients: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let mut counts = clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Guest { clients: Arc::clone(clients), address })
    }
}

struct Guest {
    clients: Arc<Clients>,
    address: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
