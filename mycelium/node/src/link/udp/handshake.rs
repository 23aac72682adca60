//! How a link begins: Noise in datagrams, with a cookie when many knock.
//!
//! ```text
//!  dialer                                               listener
//!    init (Noise 1, 256 bytes) ────────────────────────────>   too many at a time?
//!    <──────────────────────────────── cookie (21 bytes) ──   yes: answers nothing else
//!    init again, with the cookie ──────────────────────────>
//!    <──────────────────────────── response (Noise 2) ─────   remembers, for 5 s
//!    XX: finish (Noise 3)   IK: the first sealed datagram ─>   proves that the dialer is there:
//!                                                             only now there is a link
//! ```
//!
//! A listener sends to an address that has not proved itself one answer a datagram, and none is larger
//! than what it answers. It computes at most [`HANDSHAKES_PER_SECOND`] secrets a second; above
//! [`UNPROVED_PER_SECOND`], only for dialers that returned a cookie, which is a hash of their address
//! and a secret that changes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mycelium_wire::identity::{PublicKey, SecretKey};
use mycelium_wire::noise::{Initiator, Keys, NoiseError, Pattern, Responder, Step};
use mycelium_wire::random_bytes;

use crate::link::udp::crypt::{Algorithm, Opener, Sealer};
use crate::link::udp::limits::Bucket;
use crate::link::udp::packet::{COOKIE_SIZE, Datagram, Kind};

/// What both ends mix into the handshake, so that no other one can be taken for it.
const PROLOGUE: &[u8] = b"mycelium udp link 1";
/// Handshakes that are answered a second.
const HANDSHAKES_PER_SECOND: u32 = 200;
/// Of those, without a cookie.
const UNPROVED_PER_SECOND: u32 = 20;
/// How long a cookie is good, at least.
const COOKIE_AGE: Duration = Duration::from_secs(60);
/// This end has AES in hardware.
const FLAG_AES: u8 = 1;

/// A link's keys, both directions.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) peer: PublicKey,
    pub(crate) peer_index: u32,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

/// Keys and algorithm from a finished handshake and the flags of both ends.
fn establish(
    keys: &Keys,
    peer: Option<PublicKey>,
    peer_index: u32,
    flags: &[u8],
) -> Result<Established, HandshakeError> {
    let peer = peer.ok_or(HandshakeError::Anonymous)?;
    let theirs = flags.first().copied().unwrap_or(0);
    let algorithm = if own_flags() & theirs & FLAG_AES != 0 {
        Algorithm::Aes256Gcm
    } else {
        Algorithm::ChaCha20Poly1305
    };
    let sealer = Sealer::new(algorithm, keys.send.as_bytes());
    let opener = Opener::new(algorithm, keys.receive.as_bytes());
    Ok(Established { peer, peer_index, sealer, opener })
}

fn own_flags() -> u8 {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    if has_aes { FLAG_AES } else { 0 }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// Noise says no.
    #[error("the handshake failed")]
    Noise(#[from] NoiseError),
    /// Noise gave no key: it always does.
    #[error("the peer has no key")]
    Anonymous,
    /// The peer is this node.
    #[error("that is this node itself")]
    Itself,
    /// Nobody answered.
    #[error("no answer")]
    Timeout,
    /// No random number, or the socket is closed.
    #[error("no new link can be made")]
    Unavailable,
}

/// A dialer's handshake.
#[derive(Debug)]
pub(crate) struct Dialer {
    noise: Initiator,
    kind: Kind,
    index: u32,
    first: Vec<u8>,
}

/// What a dialer has in the end.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) established: Established,
    /// To be sent until the peer is heard.
    pub(crate) finish: Option<Vec<u8>>,
}

impl Dialer {
    /// Begins a handshake with `peer`, if it is known, under this end's `index`.
    pub(crate) fn new(
        secret: &SecretKey,
        peer: Option<&PublicKey>,
        index: u32,
    ) -> Result<Self, HandshakeError> {
        if peer == Some(&secret.public()) {
            return Err(HandshakeError::Itself);
        }
        let (pattern, kind) = match peer {
            Some(_) => (Pattern::Ik, Kind::Known),
            None => (Pattern::Xx, Kind::Unknown),
        };
        let mut noise = Initiator::new(pattern, secret, peer, PROLOGUE)?;
        let mut first = Vec::new();
        // What XX sends first is not sealed, and says nothing.
        let flags: &[u8] = if kind == Kind::Known { &[own_flags()] } else { &[] };
        let _ = noise.write(flags, &mut first)?;
        Ok(Self { noise, kind, index, first })
    }

    /// The init, with a cookie if there is one.
    pub(crate) fn init(&self, cookie: [u8; COOKIE_SIZE]) -> Vec<u8> {
        let (kind, sender) = (self.kind, self.index);
        Datagram::Init { kind, sender, cookie, noise: &self.first }.encode()
    }

    /// Takes a response. A forged one changes nothing, so that the right one may still come.
    pub(crate) fn response(&mut self, sender: u32, noise: &[u8]) -> Result<(), HandshakeError> {
        let mut flags = Vec::new();
        let _ = self.noise.read(noise, &mut flags)?;
        self.first = flags;
        self.index = sender;
        Ok(())
    }

    /// What results from the response.
    pub(crate) fn finish(mut self, secret: &SecretKey) -> Result<Dialed, HandshakeError> {
        let (receiver, flags) = (self.index, self.first);
        let finish = match self.kind {
            Kind::Known => None,
            Kind::Unknown => {
                let mut last = Vec::new();
                let _ = self.noise.write(&[own_flags()], &mut last)?;
                Some(Datagram::Finish { receiver, noise: &last }.encode())
            }
        };
        let peer = self.noise.peer();
        if peer == Some(secret.public()) {
            return Err(HandshakeError::Itself);
        }
        let established = establish(&self.noise.finish()?, peer, receiver, &flags)?;
        Ok(Dialed { established, finish })
    }
}

/// A listener's handshake that waits for its end.
#[derive(Debug)]
pub(crate) struct Pending {
    state: State,
    pub(crate) from: SocketAddr,
    /// To which of this node's addresses the init came.
    pub(crate) local: Option<IpAddr>,
    /// The dialer's index.
    pub(crate) sender: u32,
    /// Sent again when the init comes again.
    pub(crate) response: Vec<u8>,
    pub(crate) since: Instant,
}

#[derive(Debug)]
enum State {
    /// XX: its third message is missing, or was just read, with the dialer's flags.
    Reading(Box<Responder>, Vec<u8>),
    /// IK: the dialer has not shown yet that it has the keys.
    Unproved(Box<Established>),
}

impl Pending {
    /// Answers an init under this end's `index`.
    pub(crate) fn new(
        secret: &SecretKey,
        index: u32,
        (kind, sender, first): (Kind, u32, &[u8]),
        (from, local): (SocketAddr, Option<IpAddr>),
        now: Instant,
    ) -> Result<Self, HandshakeError> {
        let pattern = if kind == Kind::Known { Pattern::Ik } else { Pattern::Xx };
        let mut noise = Responder::new(pattern, secret, PROLOGUE)?;
        let mut flags = Vec::new();
        let _ = noise.read(first, &mut flags)?;
        let mut second = Vec::new();
        let step = noise.write(&[own_flags()], &mut second)?;
        let response =
            Datagram::Response { receiver: sender, sender: index, noise: &second }.encode();
        let state = if step == Step::Done {
            let peer = noise.peer().filter(|peer| *peer != secret.public());
            State::Unproved(Box::new(establish(&noise.finish()?, peer, sender, &flags)?))
        } else {
            State::Reading(Box::new(noise), Vec::new())
        };
        Ok(Self { state, from, local, sender, response, since: now })
    }

    /// Takes XX's third message. False when it is not that, and nothing has changed.
    pub(crate) fn read(&mut self, noise: &[u8]) -> bool {
        match &mut self.state {
            State::Reading(responder, flags) => responder.read(noise, flags).is_ok(),
            State::Unproved(_) => false,
        }
    }

    /// Whether a sealed datagram proves that IK's dialer is there.
    pub(crate) fn is_proved_by(&self, counter: u64, sealed: &[u8]) -> bool {
        match &self.state {
            State::Unproved(established) => established.opener.is_genuine(counter, sealed),
            State::Reading(..) => false,
        }
    }

    /// What results when one of these was true.
    pub(crate) fn establish(self, secret: &SecretKey) -> Result<Established, HandshakeError> {
        match self.state {
            State::Unproved(established) => Ok(*established),
            State::Reading(responder, flags) => {
                let peer = responder.peer().filter(|peer| *peer != secret.public());
                establish(&responder.finish()?, peer, self.sender, &flags)
            }
        }
    }
}

/// Who may begin a handshake now.
#[derive(Debug)]
pub(crate) struct Doorman {
    all: Bucket,
    unproved: Bucket,
    secret: [u8; 32],
    previous: [u8; 32],
    changed: Instant,
}

/// What to do about an init.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    /// Answer it.
    Welcome,
    /// Send a cookie.
    Cookie([u8; COOKIE_SIZE]),
    /// Drop it.
    Refused,
}

impl Doorman {
    pub(crate) fn new(now: Instant) -> Result<Self, mycelium_wire::RandomError> {
        Ok(Self {
            all: Bucket::new(HANDSHAKES_PER_SECOND, now),
            unproved: Bucket::new(UNPROVED_PER_SECOND, now),
            secret: random_bytes()?,
            previous: random_bytes()?,
            changed: now,
        })
    }

    /// What to do about an init.
    pub(crate) fn admit(
        &mut self,
        from: SocketAddr,
        sender: u32,
        cookie: [u8; COOKIE_SIZE],
        now: Instant,
    ) -> Admission {
        if now.saturating_duration_since(self.changed) >= COOKIE_AGE
            && let Ok(secret) = random_bytes()
        {
            self.previous = std::mem::replace(&mut self.secret, secret);
            self.changed = now;
        }
        let is_good = |secret: &[u8; 32]| is_equal(&cookie_for(secret, from, sender), &cookie);
        let is_proved = is_good(&self.secret) || is_good(&self.previous);
        match is_proved || self.unproved.take(now) {
            true if self.all.take(now) => Admission::Welcome,
            true => Admission::Refused,
            false => Admission::Cookie(cookie_for(&self.secret, from, sender)),
        }
    }
}

fn cookie_for(secret: &[u8; 32], from: SocketAddr, sender: u32) -> [u8; COOKIE_SIZE] {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&crate::link::udp::packet::mapped(from.ip()).octets());
    hasher.update(&from.port().to_be_bytes());
    hasher.update(&sender.to_be_bytes());
    let mut cookie = [0; COOKIE_SIZE];
    hasher.finalize_xof().fill(&mut cookie);
    cookie
}

/// Compares in a time that says nothing.
fn is_equal(a: &[u8; COOKIE_SIZE], b: &[u8; COOKIE_SIZE]) -> bool {
    a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::udp::packet::{INIT_SIZE, TAG_SIZE};

    fn secret(number: u8) -> SecretKey {
        SecretKey::from_bytes([number; 32])
    }

    fn from() -> (SocketAddr, Option<IpAddr>) {
        ("192.0.2.1:1".parse().unwrap(), None)
    }

    fn pending(init: &[u8]) -> Pending {
        let Some(Datagram::Init { kind, sender, noise, .. }) = Datagram::parse(init) else {
            panic!("no init")
        };
        Pending::new(&secret(2), 22, (kind, sender, noise), from(), Instant::now()).unwrap()
    }

    fn answer(dialer: &mut Dialer, pending: &Pending) {
        let Some(Datagram::Response { receiver, sender, noise }) =
            Datagram::parse(&pending.response)
        else {
            panic!("no response")
        };
        assert_eq!((receiver, sender), (11, 22));
        assert!(pending.response.len() <= INIT_SIZE);
        let mut forged = noise.to_vec();
        forged[40] ^= 1;
        assert!(dialer.response(sender, &forged).is_err());
        dialer.response(sender, noise).unwrap();
    }

    fn agree(mut a: Established, mut b: Established) {
        assert_eq!((a.peer, b.peer), (secret(2).public(), secret(1).public()));
        assert_eq!((a.peer_index, b.peer_index), (22, 11));
        for _ in 0..2 {
            let mut bytes = [b"hello".as_slice(), &[0; TAG_SIZE]].concat();
            let counter = a.sealer.next_counter();
            a.sealer.seal(&mut bytes);
            assert_eq!(b.opener.open(counter, &mut bytes).unwrap(), b"hello");
            std::mem::swap(&mut a, &mut b);
        }
    }

    #[test]
    fn ends_that_do_not_know_each_other_agree_and_learn_who_they_are() {
        let mut dialer = Dialer::new(&secret(1), None, 11).unwrap();
        let mut pending = pending(&dialer.init([0; COOKIE_SIZE]));
        answer(&mut dialer, &pending);
        let dialed = dialer.finish(&secret(1)).unwrap();
        let finish = dialed.finish.unwrap();
        let Some(Datagram::Finish { receiver: 22, noise }) = Datagram::parse(&finish) else {
            panic!("no finish")
        };
        assert!(!pending.read(&noise[1..]));
        assert!(pending.read(noise));
        agree(dialed.established, pending.establish(&secret(2)).unwrap());
    }

    #[test]
    fn who_knows_the_peer_needs_no_third_message_but_must_prove_itself() {
        let mut dialer = Dialer::new(&secret(1), Some(&secret(2).public()), 11).unwrap();
        let pending = pending(&dialer.init([0; COOKIE_SIZE]));
        answer(&mut dialer, &pending);
        let mut dialed = dialer.finish(&secret(1)).unwrap();
        assert!(dialed.finish.is_none());
        let mut bytes = vec![1; 1 + TAG_SIZE];
        assert!(!pending.is_proved_by(0, &bytes));
        dialed.established.sealer.seal(&mut bytes);
        assert!(pending.is_proved_by(0, &bytes));
        dialed.established.sealer = {
            let mut dialer = Dialer::new(&secret(1), Some(&secret(2).public()), 11).unwrap();
            let pending = self::pending(&dialer.init([0; COOKIE_SIZE]));
            answer(&mut dialer, &pending);
            dialer.finish(&secret(1)).unwrap().established.sealer
        };
        let mut other = vec![1; 1 + TAG_SIZE];
        dialed.established.sealer.seal(&mut other);
        assert!(!pending.is_proved_by(0, &other));
    }

    #[test]
    fn nobody_dials_itself_and_a_wrong_key_gets_no_answer() {
        let own = secret(2).public();
        assert!(matches!(Dialer::new(&secret(2), Some(&own), 1), Err(HandshakeError::Itself)));
        let dialer = Dialer::new(&secret(1), Some(&secret(3).public()), 11).unwrap();
        let init = dialer.init([0; COOKIE_SIZE]);
        let Some(Datagram::Init { kind, sender, noise, .. }) = Datagram::parse(&init) else {
            panic!("no init")
        };
        // e, s and its tag, flags and theirs.
        assert_eq!(noise.len(), 32 + 32 + 16 + 1 + 16);
        let begun = (kind, sender, noise);
        assert!(Pending::new(&secret(2), 22, begun, from(), Instant::now()).is_err());
    }

    #[test]
    fn a_flood_gets_cookies_and_who_returns_his_is_served() {
        let now = Instant::now();
        let mut doorman = Doorman::new(now).unwrap();
        let (flooder, honest) = (from().0, "198.51.100.1:7".parse().unwrap());
        let mut welcome = 0;
        for sender in 0..10_000 {
            welcome +=
                u32::from(doorman.admit(flooder, sender, [0; 16], now) == Admission::Welcome);
        }
        assert_eq!(welcome, UNPROVED_PER_SECOND);
        let Admission::Cookie(cookie) = doorman.admit(honest, 5, [0; 16], now) else {
            panic!("no cookie")
        };
        assert_eq!(doorman.admit(honest, 5, cookie, now), Admission::Welcome);
        assert_ne!(doorman.admit(flooder, 5, cookie, now), Admission::Welcome);
        // It is good for a while and not for ever.
        for (age, is_good) in [(COOKIE_AGE, true), (3 * COOKIE_AGE, false)] {
            let now = now + age;
            for sender in 0..100 {
                doorman.admit(flooder, sender, [0; 16], now);
            }
            assert_eq!(doorman.admit(honest, 5, cookie, now) == Admission::Welcome, is_good);
        }
    }
}
