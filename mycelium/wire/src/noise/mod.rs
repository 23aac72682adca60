//! Handshakes: two nodes agree on keys that nobody else has, and that nobody can have later.
//!
//! This is the Noise Protocol Framework, revision 34, unchanged, with the suite
//! `25519_ChaChaPoly_BLAKE2s` and two of its patterns:
//!
//! ```text
//!  IK   the initiator knows the responder's key         XX   neither knows the other's
//!       <- s                                                 -> e
//!       ...                                                  <- e, ee, s, es
//!       -> e, es, s, ss                                      -> s, se
//!       <- e, ee, se
//! ```
//!
//! ```text
//!  Initiator::new ─> write ─> read ─(XX: write)─> Step::Done ─> finish ─> Keys
//!  Responder::new ─> read ─> write ─(XX: read)──> Step::Done ─> finish ─> Keys
//! ```
//!
//! There is no socket, no time and no retry in here: messages in, messages out. A message that is
//! forged, cut off or out of turn is an error and changes nothing, so that the right one may still come.
//! Shared secrets that are zero, which points of low order give, are refused: they would be no secret.
//!
//! What a responder reads with the first message of IK may be a repetition of what somebody recorded;
//! whoever uses it must see to that ([`crate::session`] does).

mod handshake;
mod symmetric;
#[cfg(test)]
mod tests;

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::identity::{KEY_SIZE, PublicKey, SecretKey};
use crate::random::RandomError;
use handshake::Handshake;

/// Largest message, in bytes (Noise §3).
pub const MESSAGE_SIZE_MAX: usize = 65535;
/// What IK's first message has besides its payload: e, s and its tag, the payload's tag.
pub const IK_FIRST_OVERHEAD: usize =
    KEY_SIZE + KEY_SIZE + symmetric::TAG_SIZE + symmetric::TAG_SIZE;
/// What IK's second message has besides its payload: e, the payload's tag.
pub const IK_SECOND_OVERHEAD: usize = KEY_SIZE + symmetric::TAG_SIZE;

/// What the two know of each other before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The initiator knows the responder's key.
    Ik,
    /// Neither knows the other's.
    Xx,
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// There are more messages to come.
    More,
    /// That was the last one: the keys are there.
    Done,
}

/// The one that writes first.
#[derive(Debug)]
pub struct Initiator(Handshake);

/// The one that reads first.
#[derive(Debug)]
pub struct Responder(Handshake);

impl Initiator {
    /// Begins a handshake with `peer`, whose key IK needs and XX finds out. Both must give the same
    /// `prologue`, which says what the handshake is for.
    ///
    /// # Errors
    /// When IK is not given the peer's key; or when there are no random bytes.
    pub fn new(
        pattern: Pattern,
        secret: &SecretKey,
        peer: Option<&PublicKey>,
        prologue: &[u8],
    ) -> Result<Self, NoiseError> {
        let known = match pattern {
            Pattern::Ik => Some(*peer.ok_or(NoiseError::NoPeer)?),
            Pattern::Xx => None,
        };
        Handshake::new(pattern, true, secret, known, prologue).map(Self)
    }

    /// Appends the next message, with `payload` in it, to `out`.
    ///
    /// # Errors
    /// When it is the other's turn, the payload is too large, or the peer's keys are of no use. `out`
    /// and the handshake are as before then.
    pub fn write(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<Step, NoiseError> {
        self.0.write(payload, out)
    }

    /// Reads the next message, and appends the payload in it to `payload_out`.
    ///
    /// # Errors
    /// When it is not the message that the peer would write now. All is as before then.
    pub fn read(&mut self, message: &[u8], payload_out: &mut Vec<u8>) -> Result<Step, NoiseError> {
        self.0.read(message, payload_out)
    }

    /// The peer's key, once it is known.
    #[must_use]
    pub fn peer(&self) -> Option<PublicKey> {
        self.0.peer()
    }

    /// The keys.
    ///
    /// # Errors
    /// When messages are missing.
    pub fn finish(self) -> Result<Keys, NoiseError> {
        self.0.finish()
    }
}

impl Responder {
    /// Awaits a handshake.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn new(pattern: Pattern, secret: &SecretKey, prologue: &[u8]) -> Result<Self, NoiseError> {
        Handshake::new(pattern, false, secret, None, prologue).map(Self)
    }

    /// As [`Initiator::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<Step, NoiseError> {
        self.0.write(payload, out)
    }

    /// As [`Initiator::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, message: &[u8], payload_out: &mut Vec<u8>) -> Result<Step, NoiseError> {
        self.0.read(message, payload_out)
    }

    /// The peer's key, once it is known.
    #[must_use]
    pub fn peer(&self) -> Option<PublicKey> {
        self.0.peer()
    }

    /// As [`Initiator::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(self) -> Result<Keys, NoiseError> {
        self.0.finish()
    }
}

/// What a handshake was for.
#[derive(Debug)]
pub struct Keys {
    /// For what this node sends.
    pub send: TrafficKey,
    /// For what it receives.
    pub receive: TrafficKey,
    /// Names this handshake: both have the same, and no other handshake has it (Noise §11.2).
    pub hash: [u8; 32],
}

/// A key for one direction; forgotten on drop and shown by nobody.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TrafficKey([u8; KEY_SIZE]);

impl TrafficKey {
    /// The key itself, for a cipher.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }
}

impl fmt::Debug for TrafficKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficKey(..)")
    }
}

/// A handshake that does not go on, at least not with this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// IK needs to know to whom it speaks.
    #[error("a handshake of pattern IK needs the peer's key")]
    NoPeer,
    /// It is the other's turn, or all has been said.
    #[error("message {0} of the handshake is not this side's to take or give")]
    Turn(usize),
    /// There are messages to come.
    #[error("the handshake is not done after {0} messages")]
    NotDone(usize),
    /// A message or its payload is too large.
    #[error("a handshake message of {0} bytes, at most {MESSAGE_SIZE_MAX} are allowed")]
    Large(usize),
    /// A message ends before its keys or tags do.
    #[error("a handshake message of {0} bytes is cut off")]
    Short(usize),
    /// The peer did not write this message now, or not to this node.
    #[error("a handshake message is not the peer's, or not for now")]
    Forged,
    /// A key of the peer gives a secret that everybody knows.
    #[error("a key of the peer is a point of low order")]
    LowOrder,
    /// There are no random bytes.
    #[error("no ephemeral key")]
    Random(#[from] RandomError),
}
