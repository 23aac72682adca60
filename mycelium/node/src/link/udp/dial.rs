//! Dialing: one handshake with whoever answers first at some addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mycelium_wire::identity::PublicKey;
use tokio::time::{Instant, sleep_until};

use crate::link::udp::UdpCarrier;
use crate::link::udp::handshake::{Dialer, HandshakeError};
use crate::link::udp::packet::COOKIE_SIZE;
use crate::link::udp::socket::{Reply, Sockets};

/// When inits are sent, after the start.
const SCHEDULE: [Duration; 6] = [0, 200, 500, 1000, 2000, 4000].map(Duration::from_millis);
/// How long the last one may take.
const LAST_WAIT: Duration = Duration::from_secs(2);

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
    let mut dialer = Dialer::new(&sockets.secret, peer, dialing.index())?;
    let send = |to, init: &[u8]| match reason {
        Reason::Chosen => sockets.send_one(to, None, init),
        Reason::Named => sockets.send_unasked(to, init),
    };
    let start = Instant::now();
    let mut cookie = [0; COOKIE_SIZE];
    let mut rounds = SCHEDULE.iter().map(|after| start + *after);
    let mut next = rounds.next();
    let end = start + SCHEDULE[SCHEDULE.len() - 1] + LAST_WAIT;
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
