//! Dialing: one handshake with whoever answers first at some addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mycelium_wire::identity::PublicKey;
use tokio::time::{Instant, sleep_until};

use crate::link::udp::UdpCarrier;
use crate::link::udp::entries::{Entry, Reply};
use crate::link::udp::handshake::{Dialer, Established, HandshakeError};
use crate::link::udp::packet::COOKIE_SIZE;
use crate::link::udp::socket::Sockets;

/// When inits are sent, in milliseconds after the start.
const SCHEDULE_MS: [u64; 6] = [0, 200, 500, 1000, 2000, 4000];
/// When there is no use in waiting any longer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(6);

/// A dialer's index, until its link has it or it gives up.
pub(crate) struct Dialing {
    pub(super) sockets: Arc<Sockets>,
    pub(super) index: u32,
}

impl Dialing {
    /// The index belongs to a link from now on.
    pub(crate) fn establish(
        self,
        established: Established,
        address: SocketAddr,
        finish: Option<Vec<u8>>,
    ) -> UdpCarrier {
        let sockets = Arc::clone(&self.sockets);
        // Dialers may move between networks, so their own address is the kernel's choice.
        let link = sockets.link(self.index, established, address, None, finish);
        sockets.entries().0.insert(self.index, Entry::Link(Arc::clone(&link)));
        UdpCarrier::new(link)
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        let mut entries = self.sockets.entries();
        if let Some(Entry::Dialing(_)) = entries.0.get(&self.index) {
            entries.0.remove(&self.index);
        }
    }
}

/// Why an address is dialed, which decides how often something may be sent to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// A person named it.
    Chosen,
    /// Another node did.
    Named,
}

/// Makes a link to `peer`, or to whoever is there, at the first of `addresses` that answers.
pub(crate) async fn dial(
    sockets: &Arc<Sockets>,
    addresses: &[SocketAddr],
    peer: Option<&PublicKey>,
    reason: Reason,
) -> Result<UdpCarrier, HandshakeError> {
    let (dialing, mut replies) = sockets.begin_dial().ok_or(HandshakeError::Unavailable)?;
    let mut dialer = Dialer::new(&sockets.secret, peer, dialing.index)?;
    let send = |to, init: &[u8]| match reason {
        Reason::Chosen => sockets.send_one(to, None, init),
        Reason::Named => sockets.send_unasked(to, init),
    };
    let start = Instant::now();
    let mut cookie = [0; COOKIE_SIZE];
    let mut rounds = SCHEDULE_MS.iter().map(|after| start + Duration::from_millis(*after));
    let mut next = rounds.next();
    let end = start + GIVE_UP_AFTER;
    loop {
        tokio::select! {
            reply = replies.recv() => match reply.ok_or(HandshakeError::Unavailable)? {
                Reply::Cookie { from, cookie: given } if cookie != given => {
                    cookie = given;
                    send(from, &dialer.init(cookie));
                }
                Reply::Cookie { .. } => {}
                Reply::Response { from, sender, noise } => {
                    // A forged one is no reason not to wait for the right one.
                    if dialer.response(sender, &noise).is_ok() {
                        let dialed = dialer.finish(&sockets.secret)?;
                        return Ok(dialing.establish(dialed.established, from, dialed.finish));
                    }
                }
            },
            () = sleep_until(next.unwrap_or(end)) => {
                if next.is_none() {
                    return Err(HandshakeError::Timeout);
                }
                let init = dialer.init(cookie);
                addresses.iter().for_each(|address| send(*address, &init));
                next = rounds.next();
            }
        }
    }
}
