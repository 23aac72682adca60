//! How long a packet takes to another node and back, measured by this node itself, in one of two ways:
//!
//! - to a node that it has a session with, a question inside the session, which the node itself answers:
//!   `0 │ token 8 │ padding`, and back `1 │` the rest;
//! - to others, existing releases too, an ICMPv6 echo request, whose answer is taken before this node's own
//!   device gets it. What nodes on the way say, that there is no route or that the hop limit is used up,
//!   is an answer as well.
//!
//! So nobody needs a privilege or a device to ask, only the API.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycelium_wire::RandomError;
use mycelium_wire::icmp::{self, Echo, EchoKind, IcmpError};
use mycelium_wire::identity::PublicKey;
use mycelium_wire::inner::InnerType;
use mycelium_wire::session::Kind;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::data::DataPlane;
use crate::data::session::State;
use crate::data::table::Prefix;

/// Smallest payload: what proves that an answer is one.
pub(crate) const SIZE_MIN: usize = TOKEN_SIZE;
/// Largest payload: what fits the MTU behind the headers of IPv6 and ICMPv6.
pub(crate) const SIZE_MAX: usize =
    crate::tun::MTU as usize - icmp::IPV6_HEADER_SIZE - icmp::ICMPV6_HEADER_SIZE;
/// Longest wait for an answer.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Probes that wait for an answer.
const WAITING_COUNT_MAX: usize = 256;
const TOKEN_SIZE: usize = 8;
/// What a probe in a session begins with.
const QUESTION: u8 = 0;
const ANSWER: u8 = 1;

/// What became of a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It was answered.
    Answered {
        /// After this time.
        round_trip: Duration,
        /// What is left of the answer's hop limit; none if it came inside a session.
        hop_limit: Option<u8>,
    },
    /// A node, perhaps this one, says why it was not.
    Refused {
        /// Why.
        error: IcmpError,
        /// Which node.
        by: Ipv6Addr,
    },
    /// Nobody said anything in time.
    Silent,
}

/// Why there was no probe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The address is this node's.
    #[error("{0} is in this node's own subnet")]
    Own(Ipv6Addr),
    /// The address is no node's.
    #[error("{0} is outside the overlay (400::/7)")]
    Outside(Ipv6Addr),
    /// The payload has an impossible size.
    #[error("a payload has {SIZE_MIN} to {SIZE_MAX} bytes, not {0}")]
    Size(usize),
    /// Too many wait.
    #[error("{WAITING_COUNT_MAX} probes wait for an answer already")]
    TooMany,
    /// The operating system gives no random bytes.
    #[error("no token can be made")]
    Random(#[from] RandomError),
}

/// Probes that wait for an answer.
#[derive(Debug)]
pub(crate) struct Probes {
    identifier: u16,
    next: AtomicU16,
    waiting: Mutex<HashMap<u16, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    token: [u8; TOKEN_SIZE],
    /// Who answers inside a session; none if by ICMPv6.
    peer: Option<PublicKey>,
    sender: oneshot::Sender<(Answer, Instant)>,
}

#[derive(Debug)]
enum Answer {
    Echo { hop_limit: u8 },
    Session,
    Error { error: IcmpError, by: Ipv6Addr },
}

impl Probes {
    pub(crate) fn new() -> Result<Self, RandomError> {
        let identifier = u16::from_be_bytes(mycelium_wire::random_bytes()?);
        Ok(Self { identifier, next: AtomicU16::new(0), waiting: Mutex::default() })
    }

    /// Takes a packet for this node if it is the answer to a probe, and says whether it is.
    pub(crate) fn answered(&self, packet: &[u8], hop_limit: u8) -> bool {
        let Some(echo) = Echo::parse(packet) else { return false };
        echo.kind == EchoKind::Reply && self.give(echo, Answer::Echo { hop_limit })
    }

    /// Takes an error about a packet of this node if that is a probe, and says whether it is.
    pub(crate) fn refused(&self, packet: &[u8], error: IcmpError, by: Ipv6Addr) -> bool {
        let Some(echo) = Echo::parse(packet) else { return false };
        echo.kind == EchoKind::Request && self.give(echo, Answer::Error { error, by })
    }

    fn give(&self, echo: Echo<'_>, answer: Answer) -> bool {
        if echo.identifier != self.identifier {
            return false;
        }
        let is_it =
            |waiting: &Waiting| waiting.peer.is_none() && echo.data.starts_with(&waiting.token);
        let mut waiting = self.waiting();
        let is_ours = waiting.get(&echo.sequence).is_some_and(is_it);
        if is_ours && let Some(waiting) = waiting.remove(&echo.sequence) {
            // Whoever asked may have gone.
            let _ = waiting.sender.send((answer, Instant::now()));
        }
        is_ours
    }

    /// Takes what a peer says inside a session, if it is the answer to a probe.
    fn answered_in_session(&self, from: PublicKey, token: &[u8]) {
        let mut waiting = self.waiting();
        let is_it = |waiting: &Waiting| waiting.peer == Some(from) && token == waiting.token;
        let found = waiting.iter().find(|(_, waiting)| is_it(waiting));
        let sequence = found.map(|(sequence, _)| *sequence);
        if let Some(waiting) = sequence.and_then(|sequence| waiting.remove(&sequence)) {
            // Whoever asked may have gone.
            let _ = waiting.sender.send((Answer::Session, Instant::now()));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u16, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A probe that somebody waits for, which is forgotten with the wait.
struct Turn<'a> {
    probes: &'a Probes,
    sequence: u16,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.probes.waiting().remove(&self.sequence);
    }
}

impl DataPlane {
    /// Sends a probe with `size` bytes of payload and waits for its answer.
    pub(crate) async fn probe(
        &self,
        destination: Ipv6Addr,
        size: usize,
        wait: Duration,
    ) -> Result<Outcome, ProbeError> {
        if !mycelium_wire::identity::OVERLAY.contains(destination) {
            return Err(ProbeError::Outside(destination));
        }
        if Prefix::of(destination) == self.own {
            return Err(ProbeError::Own(destination));
        }
        if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
            return Err(ProbeError::Size(size));
        }
        let peer = self.in_session(destination);
        let (turn, token, answer) = self.probes.begin(peer)?;
        let mut data = vec![0; size];
        data[..TOKEN_SIZE].copy_from_slice(&token);
        let start = Instant::now();
        match peer {
            Some(peer) => {
                data.insert(0, QUESTION);
                // What is lost is noticed by the silence.
                let _ = self.send_session(peer, Kind::PROBE, &data);
            }
            None => {
                let (identifier, sequence) = (self.probes.identifier, turn.sequence);
                let echo = Echo { kind: EchoKind::Request, identifier, sequence, data: &data };
                let mut packet = Vec::new();
                echo.encode(self.address, destination, icmp::ERROR_HOP_LIMIT, &mut packet);
                self.send(InnerType::Packet, self.address, destination, &packet);
            }
        }
        let round_trip = |at: Instant| at.saturating_duration_since(start);
        Ok(match timeout(wait.min(WAIT_MAX), answer).await {
            Ok(Ok((Answer::Echo { hop_limit }, at))) => {
                Outcome::Answered { round_trip: round_trip(at), hop_limit: Some(hop_limit) }
            }
            Ok(Ok((Answer::Session, at))) => {
                Outcome::Answered { round_trip: round_trip(at), hop_limit: None }
            }
            Ok(Ok((Answer::Error { error, by }, _))) => Outcome::Refused { error, by },
            _ => Outcome::Silent,
        })
    }
}

impl DataPlane {
    /// The node with this very address, if there is a session with it.
    fn in_session(&self, address: Ipv6Addr) -> Option<PublicKey> {
        let destination = self.table().get(Prefix::of(address))?;
        let key = destination.public_key();
        let state = self.sessions().state(&destination, Instant::now())?;
        let is_it = matches!(state, State::ForwardSecret { .. }) && key.address() == address;
        is_it.then_some(key)
    }
}

/// Answers probes inside sessions, and takes answers, for as long as the node runs.
pub(crate) async fn serve(plane: Arc<DataPlane>) {
    let mut payloads = plane.sessions().subscribe(Kind::PROBE);
    while let Some((from, mut payload)) = payloads.recv().await {
        match payload.first_mut() {
            // As large as the question, and to who asked: nobody else can be made to get it.
            Some(first @ &mut QUESTION) => {
                *first = ANSWER;
                // What is lost is lost.
                let _ = plane.send_session(from, Kind::PROBE, &payload);
            }
            Some(&mut ANSWER) => {
                let token = payload.get(1..=TOKEN_SIZE).unwrap_or_default();
                plane.probes.answered_in_session(from, token);
            }
            // Something that a later version says.
            _ => {}
        }
    }
}

type Begun<'a> = (Turn<'a>, [u8; TOKEN_SIZE], oneshot::Receiver<(Answer, Instant)>);

impl Probes {
    fn begin(&self, peer: Option<PublicKey>) -> Result<Begun<'_>, ProbeError> {
        let token = mycelium_wire::random_bytes()?;
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_COUNT_MAX {
            return Err(ProbeError::TooMany);
        }
        waiting.insert(sequence, Waiting { token, peer, sender });
        Ok((Turn { probes: self, sequence }, token, receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(probes: &Probes, kind: EchoKind, sequence: u16, data: &[u8]) -> Vec<u8> {
        let (from, to) = ("400::1".parse().unwrap(), "401::1".parse().unwrap());
        let mut packet = Vec::new();
        let echo = Echo { kind, identifier: probes.identifier, sequence, data };
        echo.encode(from, to, 64, &mut packet);
        packet
    }

    #[test]
    fn only_the_answer_to_a_probe_is_taken_and_once() {
        let probes = Probes::new().unwrap();
        let (turn, token, mut receiver) = probes.begin(None).unwrap();
        let good = packet(&probes, EchoKind::Reply, turn.sequence, &token);
        assert!(!probes.answered(&packet(&probes, EchoKind::Reply, 9, &token), 60));
        assert!(!probes.answered(&packet(&probes, EchoKind::Reply, turn.sequence, b"other"), 60));
        assert!(!probes.answered(&packet(&probes, EchoKind::Request, turn.sequence, &token), 60));
        assert!(!probes.answered(&good[..40], 60));
        assert!(probes.answered(&good, 60));
        assert!(!probes.answered(&good, 60));
        assert!(matches!(receiver.try_recv(), Ok((Answer::Echo { hop_limit: 60 }, _))));
    }

    #[test]
    fn only_who_was_asked_answers_in_a_session() {
        let probes = Probes::new().unwrap();
        let (peer, other) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
        let (turn, token, mut receiver) = probes.begin(Some(peer)).unwrap();
        let echo = packet(&probes, EchoKind::Reply, turn.sequence, &token);
        assert!(!probes.answered(&echo, 60), "by ICMPv6 nobody proves who he is");
        probes.answered_in_session(other, &token);
        probes.answered_in_session(peer, b"another.");
        assert!(receiver.try_recv().is_err());
        probes.answered_in_session(peer, &token);
        assert!(matches!(receiver.try_recv(), Ok((Answer::Session, _))));
    }

    #[test]
    fn an_error_about_a_probe_is_an_answer() {
        let probes = Probes::new().unwrap();
        let (turn, token, mut receiver) = probes.begin(None).unwrap();
        let sent = packet(&probes, EchoKind::Request, turn.sequence, &token);
        let by = "402::".parse().unwrap();
        assert!(probes.refused(&sent, IcmpError::TimeExceeded, by));
        assert!(matches!(receiver.try_recv(), Ok((Answer::Error { .. }, _))));
        drop(turn);
        assert!(!probes.refused(&sent, IcmpError::TimeExceeded, by));
    }

    #[test]
    fn who_waits_no_more_is_forgotten_and_all_are_bounded() {
        let probes = Probes::new().unwrap();
        let turns: Vec<_> = (0..WAITING_COUNT_MAX).map(|_| probes.begin(None).unwrap()).collect();
        assert!(matches!(probes.begin(None), Err(ProbeError::TooMany)));
        drop(turns);
        assert!(probes.waiting().is_empty() && probes.begin(None).is_ok());
    }
}
