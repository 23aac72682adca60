//! Connections to relays, kept alive.
//!
//! A twin may name several relays on the chain, and is connected to all of them at once: whoever
//! writes to it picks one. Each connection is a task with a bounded
//! queue of what is to be sent; all of them hand what they receive to one bounded queue. When that is
//! full, nothing is read any more, and relays keep what they have.
//!
//! ```text
//!  send ─ choose ─┬─> queue ─> Connection ──> relay a ──┐
//!                 └─> queue ─> Connection ──> relay b ──┴─> Incoming queue ─> the peer
//! ```
//!
//! An envelope takes a relay that its destination is at too, if we are connected to one: there it need
//! not be passed on. Answers prefer the relay that brought the question.

mod address;
mod backoff;
mod connection;
mod dial;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::identity::Identity;
use crate::twins::TwinId;

pub use address::{RelayAddress, RelayAddressError};
pub use dial::{DialError, TlsError, TrustedRoots};

/// Most relays of a twin.
pub const RELAY_COUNT_MAX: usize = 8;
/// Envelopes that wait to be sent to one relay.
const OUTBOUND_COUNT_MAX: usize = 256;
/// Envelopes that were received and wait to be looked at.
const INBOUND_COUNT_MAX: usize = 256;

/// Who connects.
pub(crate) struct Credentials {
    pub(crate) identity: Arc<Identity>,
    pub(crate) twin: TwinId,
    pub(crate) session: Option<String>,
}

/// What a relay brought.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Which relay, as [`Relays::send`] takes it.
    pub(crate) relay: usize,
    pub(crate) bytes: Bytes,
}

/// Why an envelope was not handed to a relay. It was not sent, for sure.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SendError {
    /// No connection, for all the time there was.
    #[error("not connected to any relay")]
    NotConnected,
    /// A connection that takes nothing, for all the time there was.
    #[error("the relay takes messages too slowly")]
    Slow,
    /// The peer is being shut down.
    #[error("the connections are closed")]
    Closed,
}

/// All connections of a twin.
pub(crate) struct Relays {
    links: Vec<Link>,
    /// For each link, whether it is connected.
    connected: watch::Receiver<Vec<bool>>,
    /// Dropped with the rest, and aborts the connections then.
    _tasks: JoinSet<()>,
}

struct Link {
    host: String,
    outbound: mpsc::Sender<Bytes>,
}

impl Relays {
    /// Starts to connect, and goes on for ever.
    pub(crate) fn start(
        addresses: Vec<RelayAddress>,
        credentials: Credentials,
        roots: &TrustedRoots,
    ) -> (Self, mpsc::Receiver<Incoming>) {
        let credentials = Arc::new(credentials);
        let (inbound, incoming) = mpsc::channel(INBOUND_COUNT_MAX);
        let (state, connected) = watch::channel(vec![false; addresses.len()]);
        let state = Arc::new(state);
        let mut tasks = JoinSet::new();
        let mut links = Vec::new();
        for (relay, address) in addresses.into_iter().enumerate() {
            let (outbound, waiting) = mpsc::channel(OUTBOUND_COUNT_MAX);
            links.push(Link { host: address.host().to_owned(), outbound });
            let connection = connection::Connection {
                relay,
                address,
                credentials: Arc::clone(&credentials),
                tls: roots.client(),
                waiting,
                unsent: Vec::new(),
                inbound: inbound.clone(),
                connected: Arc::clone(&state),
            };
            tasks.spawn(connection.run());
        }
        (Self { links, connected, _tasks: tasks }, incoming)
    }

    /// How many relays we are connected to.
    pub(crate) fn connected_count(&self) -> usize {
        self.connected.borrow().iter().filter(|connected| **connected).count()
    }

    /// Waits until there is a connection, but not longer than until `deadline`.
    pub(crate) async fn wait_connected(&self, deadline: Instant) -> Result<(), SendError> {
        let mut connected = self.connected.clone();
        let any = connected.wait_for(|connected| connected.contains(&true));
        match timeout_at(deadline, any).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(SendError::Closed),
            Err(_) => Err(SendError::NotConnected),
        }
    }

    /// Hands an envelope over to the best connection for twins at `destination_relays`.
    pub(crate) async fn send(
        &self,
        bytes: Bytes,
        destination_relays: &[String],
        arrived_by: Option<usize>,
        deadline: Instant,
    ) -> Result<(), SendError> {
        self.wait_connected(deadline).await?;
        let chosen = {
            let connected = self.connected.borrow();
            let hosts = self.links.iter().map(|link| link.host.as_str());
            choose(hosts.zip(connected.iter().copied()), destination_relays, arrived_by)
        };
        let link = chosen.and_then(|relay| self.links.get(relay)).ok_or(SendError::NotConnected)?;
        match timeout_at(deadline, link.outbound.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SendError::Closed),
            Err(_) => Err(SendError::Slow),
        }
    }
}

/// The connection to take: one at a relay that the destination has as well, else the one that brought
/// the question, else any.
fn choose<'a>(
    links: impl Iterator<Item = (&'a str, bool)>,
    destination_relays: &[String],
    arrived_by: Option<usize>,
) -> Option<usize> {
    let connected = links.enumerate().filter(|(_, (_, is_connected))| *is_connected);
    let rank = |relay: usize, host: &str| {
        let is_shared = destination_relays.iter().any(|other| other.eq_ignore_ascii_case(host));
        (is_shared, arrived_by == Some(relay), std::cmp::Reverse(relay))
    };
    connected.max_by_key(|(relay, (host, _))| rank(*relay, host)).map(|(relay, _)| relay)
}

/// How long all waits of connections are.
pub(crate) mod times {
    use super::Duration;

    /// For TCP, TLS and the websocket's handshake together.
    pub(crate) const DIAL: Duration = Duration::from_secs(20);
    /// Between pings.
    pub(crate) const PING: Duration = Duration::from_secs(20);
    /// A connection that brings nothing for so long, not even an answer to a ping, is none.
    pub(crate) const STALL: Duration = Duration::from_secs(40);
    /// Nor is one that takes nothing for so long.
    pub(crate) const WRITE: Duration = Duration::from_secs(40);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destinations_relay_comes_first() {
        let hosts = ["a", "b", "c"];
        let choose = |connected: [bool; 3], theirs: &[&str], arrived_by| {
            let theirs: Vec<String> = theirs.iter().map(|host| (*host).to_owned()).collect();
            choose(hosts.into_iter().zip(connected), &theirs, arrived_by)
        };
        assert_eq!(choose([true, true, true], &["c"], None), Some(2));
        assert_eq!(choose([true, true, true], &["C", "b"], None), Some(1));
        assert_eq!(choose([true, true, true], &["c", "b"], Some(2)), Some(2));
        assert_eq!(choose([true, true, true], &["x"], Some(2)), Some(2));
        assert_eq!(choose([true, true, true], &[], None), Some(0));
        assert_eq!(choose([false, true, true], &["a"], Some(0)), Some(1));
        assert_eq!(choose([false; 3], &["a"], Some(0)), None);
    }
}
