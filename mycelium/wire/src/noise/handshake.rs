//! The half of Noise with keys of curves: patterns as lists of tokens, carried out one by one
//! (Noise §5.3, §7).

use std::fmt;

use super::symmetric::{Symmetric, TAG_SIZE};
use super::{Keys, MESSAGE_SIZE_MAX, NoiseError, Pattern, Step};
use crate::identity::{KEY_SIZE, PublicKey, SecretKey};
use crate::reader::Reader;

/// What a message has, one after the other.
#[derive(Clone, Copy)]
enum Token {
    /// The sender's ephemeral key.
    E,
    /// The sender's static key, sealed if there is a key.
    S,
    /// The secret of both ephemeral keys.
    Ee,
    /// That of the initiator's ephemeral and the responder's static key.
    Es,
    /// That of the initiator's static and the responder's ephemeral key.
    Se,
    /// That of both static keys.
    Ss,
}

/// The messages of a pattern; the initiator writes the first, and then they take turns.
type Messages = &'static [&'static [Token]];

const IK: Messages =
    &[&[Token::E, Token::Es, Token::S, Token::Ss], &[Token::E, Token::Ee, Token::Se]];
const XX: Messages =
    &[&[Token::E], &[Token::E, Token::Ee, Token::S, Token::Es], &[Token::S, Token::Se]];

/// One side of a handshake.
#[derive(Clone)]
pub(super) struct Handshake {
    messages: Messages,
    /// How many were written and read.
    done: usize,
    is_initiator: bool,
    symmetric: Symmetric,
    secret: SecretKey,
    ephemeral: SecretKey,
    peer: Option<PublicKey>,
    peer_ephemeral: Option<PublicKey>,
}

impl Handshake {
    pub(super) fn new(
        pattern: Pattern,
        is_initiator: bool,
        secret: &SecretKey,
        peer: Option<PublicKey>,
        prologue: &[u8],
    ) -> Result<Self, NoiseError> {
        let (messages, name) = match pattern {
            Pattern::Ik => (IK, "Noise_IK_25519_ChaChaPoly_BLAKE2s"),
            Pattern::Xx => (XX, "Noise_XX_25519_ChaChaPoly_BLAKE2s"),
        };
        let mut symmetric = Symmetric::new(name, prologue);
        if pattern == Pattern::Ik {
            // The message before the first: the responder's key.
            let responder = if is_initiator { peer } else { Some(secret.public()) };
            symmetric.mix_hash(responder.ok_or(NoiseError::NoPeer)?.as_bytes());
        }
        Ok(Self {
            messages,
            done: 0,
            is_initiator,
            symmetric,
            secret: secret.clone(),
            ephemeral: SecretKey::generate()?,
            peer,
            peer_ephemeral: None,
        })
    }

    pub(super) const fn peer(&self) -> Option<PublicKey> {
        self.peer
    }

    pub(super) fn write(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<Step, NoiseError> {
        let tokens = self.tokens(true)?;
        let begin = out.len();
        let mut next = self.clone();
        let written = next.write_tokens(tokens, payload, out);
        let size = out.len() - begin;
        if written.is_err() || size > MESSAGE_SIZE_MAX {
            out.truncate(begin);
        }
        written?;
        if size > MESSAGE_SIZE_MAX {
            return Err(NoiseError::Large(size));
        }
        *self = next;
        Ok(self.step())
    }

    pub(super) fn read(
        &mut self,
        message: &[u8],
        payload_out: &mut Vec<u8>,
    ) -> Result<Step, NoiseError> {
        let tokens = self.tokens(false)?;
        if message.len() > MESSAGE_SIZE_MAX {
            return Err(NoiseError::Large(message.len()));
        }
        let begin = payload_out.len();
        let mut next = self.clone();
        if let Err(error) = next.read_tokens(tokens, message, payload_out) {
            payload_out.truncate(begin);
            return Err(error);
        }
        *self = next;
        Ok(self.step())
    }

    pub(super) fn finish(self) -> Result<Keys, NoiseError> {
        if self.done < self.messages.len() {
            return Err(NoiseError::NotDone(self.done));
        }
        let (first, second) = self.symmetric.split();
        let (send, receive) = if self.is_initiator { (first, second) } else { (second, first) };
        Ok(Keys { send, receive, hash: self.symmetric.hash() })
    }

    /// The tokens of the next message, if it is this side's to write or to read.
    fn tokens(&self, is_write: bool) -> Result<&'static [Token], NoiseError> {
        let is_initiators = self.done.is_multiple_of(2);
        let is_own = is_initiators == self.is_initiator;
        let message = self.messages.get(self.done).filter(|_| is_own == is_write);
        message.copied().ok_or(NoiseError::Turn(self.done))
    }

    const fn step(&self) -> Step {
        if self.done == self.messages.len() { Step::Done } else { Step::More }
    }

    fn write_tokens(
        &mut self,
        tokens: &[Token],
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NoiseError> {
        for token in tokens {
            match token {
                Token::E => {
                    let key = self.ephemeral.public();
                    out.extend_from_slice(key.as_bytes());
                    self.symmetric.mix_hash(key.as_bytes());
                }
                Token::S => {
                    let key = self.secret.public();
                    self.symmetric.encrypt_and_hash(key.as_bytes(), out);
                }
                Token::Ee | Token::Es | Token::Se | Token::Ss => self.mix_secret(*token)?,
            }
        }
        self.symmetric.encrypt_and_hash(payload, out);
        self.done += 1;
        Ok(())
    }

    fn read_tokens(
        &mut self,
        tokens: &[Token],
        message: &[u8],
        payload_out: &mut Vec<u8>,
    ) -> Result<(), NoiseError> {
        let short = NoiseError::Short(message.len());
        let mut reader = Reader::new(message);
        for token in tokens {
            match token {
                Token::E => {
                    let key = reader.array::<KEY_SIZE>().ok_or(short)?;
                    self.symmetric.mix_hash(&key);
                    self.peer_ephemeral = Some(PublicKey::from_bytes(key));
                }
                Token::S => {
                    let tag_size = if self.symmetric.has_key() { TAG_SIZE } else { 0 };
                    let sealed = reader.bytes(KEY_SIZE + tag_size).ok_or(short)?;
                    let mut key = Vec::with_capacity(sealed.len());
                    self.symmetric.decrypt_and_hash(sealed, &mut key)?;
                    let key = key.first_chunk::<KEY_SIZE>().ok_or(short)?;
                    self.peer = Some(PublicKey::from_bytes(*key));
                }
                Token::Ee | Token::Es | Token::Se | Token::Ss => self.mix_secret(*token)?,
            }
        }
        let rest = reader.rest();
        if self.symmetric.has_key() && rest.len() < TAG_SIZE {
            return Err(short);
        }
        self.symmetric.decrypt_and_hash(rest, payload_out)?;
        self.done += 1;
        Ok(())
    }

    fn mix_secret(&mut self, token: Token) -> Result<(), NoiseError> {
        let (own_is_ephemeral, peers_is_ephemeral) = match (token, self.is_initiator) {
            (Token::Ee, _) => (true, true),
            (Token::Es, true) | (Token::Se, false) => (true, false),
            (Token::Es, false) | (Token::Se, true) => (false, true),
            (Token::Ss | Token::E | Token::S, _) => (false, false),
        };
        let own = if own_is_ephemeral { &self.ephemeral } else { &self.secret };
        let peers = if peers_is_ephemeral { self.peer_ephemeral } else { self.peer };
        // Patterns name no key before it was sent.
        let shared = own.shared(&peers.ok_or(NoiseError::NoPeer)?);
        if shared.as_bytes().iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(NoiseError::LowOrder);
        }
        self.symmetric.mix_key(shared.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handshake({} of {} messages)", self.done, self.messages.len())
    }
}
