//! From an envelope that says something to bytes that only one twin can read, and back.
//!
//! A [`Desk`] is where one twin's letters are closed and opened. What is used between two twins
//! depends on the keys that both published on the chain, and on nothing else, so that nobody in
//! between can talk them into less:
//!
//! | ours | theirs | payload | signature |
//! |---|---|---|---|
//! | version 2 | version 2 | [`v2`] | version 2 |
//! | version 1 | version 1 | [`v1`] | version 1 |
//! | any, none | none | plain | version 1 |
//! | none | any | plain | version 1 |
//! | version 1 or 2 | the other one | refused | version 1 |
//!
//! Readable payloads are what the grid does with twins that published no key. A caller that would
//! rather not send then says so ([`Privacy::Required`]).
//!
//! Closing goes stamp, encrypt, sign; opening goes the other way and stops at the first thing wrong.

pub mod v1;
pub mod v2;

use std::sync::Arc;

use bytes::Bytes;

use crate::envelope::{Address, Envelope, EnvelopeError, Payload};
use crate::identity::Identity;
use crate::random::RandomError;
use crate::signature::{self, SignatureError, Version};
use crate::twins::{Twin, TwinId};

/// Size of an encryption key on the chain, of either version.
pub const KEY_SIZE: usize = 33;
/// First byte of a version 2 key.
const V2_KEY_PREFIX: u8 = 0x78;

/// A public key that a twin published to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionKey {
    /// A compressed point of secp256k1, 33 bytes.
    V1(v1::PublicKey),
    /// `x`, then an X25519 key of 32 bytes.
    V2(v2::PublicKey),
}

/// Why bytes are no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error(
    "a twin's key has {KEY_SIZE} bytes and begins with 02, 03 or 78; this one has {size} bytes"
)]
pub struct KeyError {
    /// How many bytes there are.
    pub size: usize,
}

impl EncryptionKey {
    /// Reads the field `pk` of a twin.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let error = KeyError { size: bytes.len() };
        let bytes: &[u8; KEY_SIZE] = bytes.try_into().map_err(|_| error)?;
        match bytes {
            [V2_KEY_PREFIX, key @ ..] => Ok(Self::V2(v2::PublicKey::from_bytes(*key))),
            _ => v1::PublicKey::parse(bytes).map(Self::V1).ok_or(error),
        }
    }

    /// What belongs into the field `pk` of a twin.
    pub fn to_bytes(&self) -> [u8; KEY_SIZE] {
        match self {
            Self::V1(key) => *key.as_bytes(),
            Self::V2(key) => {
                let mut bytes = [V2_KEY_PREFIX; KEY_SIZE];
                bytes.iter_mut().skip(1).zip(key.as_bytes()).for_each(|(to, from)| *to = *from);
                bytes
            }
        }
    }

    fn version(&self) -> Version {
        match self {
            Self::V1(_) => Version::V1,
            Self::V2(_) => Version::V2,
        }
    }
}

/// Whether a payload may be sent readable, if the other twin published no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Privacy {
    /// Then it may, as all peers of the grid do.
    #[default]
    Preferred,
    /// It may not.
    Required,
}

/// Why a payload could not be encrypted or decrypted.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum CipherError {
    /// Fewer bytes than the frame of any.
    #[error("a sealed payload has at least {min} bytes, this one {size}")]
    Size {
        /// How many there are.
        size: usize,
        /// How many there would have to be.
        min: usize,
    },
    /// A sealed payload of a version that nobody knows.
    #[error("sealed payloads of version {0} are unknown")]
    UnknownVersion(u8),
    /// Made with another key, or changed on the way.
    #[error("the payload can't be decrypted: another key, or it was changed on the way")]
    Wrong,
    /// An ephemeral key that leads to no secret.
    #[error("the key that came with the payload leads to no secret")]
    WeakKey,
    /// We do not encrypt at all.
    #[error("encryption is switched off here")]
    Off,
    /// Keys of different versions.
    #[error("twin {twin} has a key of {theirs:?} and we one of {ours:?}")]
    NoCommonVersion {
        /// The other twin.
        twin: TwinId,
        /// Of its key.
        theirs: Version,
        /// Of ours.
        ours: Version,
    },
    /// A key of no kind that we know.
    #[error("twin {twin}: {error}")]
    UnknownKey {
        /// The other twin.
        twin: TwinId,
        /// What is wrong with it.
        error: KeyError,
    },
    /// No randomness for nonce or key.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Why an envelope could not be closed.
#[derive(Debug, thiserror::Error, PartialEq, Clone)]
pub enum CloseError {
    /// It can't be encrypted as these twins have to.
    #[error("{0}")]
    Cipher(#[from] CipherError),
    /// It would have to be readable.
    #[error("twin {0} published no key to encrypt with")]
    NoKey(TwinId),
    /// It has become too large.
    #[error("{0}")]
    Envelope(#[from] EnvelopeError),
    /// It has waited for too long.
    #[error("the message has expired before it was sent")]
    Expired,
}

/// Why an envelope could not be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum OpenError {
    /// Not by whom it claims, or not signed as these twins have to.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// Encrypted by a twin that published no key.
    #[error("sender twin has no public key")]
    NoKey,
    /// Signed, and still not to be decrypted.
    #[error("{0}")]
    Cipher(#[from] CipherError),
}

/// A payload that was opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// The payload, empty if there was none.
    pub payload: Bytes,
    /// Whether only we could read it.
    pub is_encrypted: bool,
}

/// Where the envelopes of one twin are closed and opened.
#[derive(Debug, Clone)]
pub struct Desk {
    identity: Arc<Identity>,
    address: Address,
    encryption: Option<Version>,
}

impl Desk {
    /// The desk of a twin's session. `encryption` says of which version the key is that the twin
    /// published on the chain, none if it published none.
    pub fn new(identity: Arc<Identity>, address: Address, encryption: Option<Version>) -> Self {
        Self { identity, address, encryption }
    }

    /// Whose desk it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Who signs here.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes an envelope with a readable payload into the bytes for a relay: it is given its source
    /// and the time, encrypted and signed.
    pub fn close(
        &self,
        mut envelope: Envelope,
        destination: &Twin,
        privacy: Privacy,
        now: u64,
    ) -> Result<Bytes, CloseError> {
        envelope.source = Some(self.address.clone());
        envelope.stamp(now);
        if envelope.is_expired(now) {
            return Err(CloseError::Expired);
        }
        let key = self.common_key(destination)?;
        let plain = match envelope.payload.take() {
            Some(Payload::Plain(bytes) | Payload::Cipher(bytes)) => bytes,
            None => Bytes::new(),
        };
        envelope.payload = Some(match (key, privacy) {
            (Some(EncryptionKey::V1(key)), _) => {
                Payload::Cipher(self.identity.v1().encrypt(&key, &plain)?.into())
            }
            (Some(EncryptionKey::V2(key)), _) => {
                Payload::Cipher(self.identity.v2().encrypt(&key, &envelope, &plain)?.into())
            }
            (None, Privacy::Preferred) => Payload::Plain(plain),
            (None, Privacy::Required) if self.encryption.is_none() => {
                return Err(CipherError::Off.into());
            }
            (None, Privacy::Required) => return Err(CloseError::NoKey(destination.id)),
        });
        let version = key.map_or(Version::V1, |key| key.version());
        Ok(self.signed(envelope, version)?)
    }

    /// As [`close`](Self::close), but what it says may be read by all: why there is no answer, to a
    /// twin with which there may be no common version.
    pub(crate) fn close_readable(
        &self,
        mut envelope: Envelope,
        destination: &Twin,
        now: u64,
    ) -> Result<Bytes, CloseError> {
        envelope.source = Some(self.address.clone());
        envelope.stamp(now);
        if envelope.is_expired(now) {
            return Err(CloseError::Expired);
        }
        Ok(self.signed(envelope, self.signature_version(destination))?)
    }

    fn signed(&self, mut envelope: Envelope, version: Version) -> Result<Bytes, EnvelopeError> {
        let signature = match version {
            Version::V1 => self.identity.sign(version, &envelope.challenge_v1()),
            Version::V2 => self.identity.sign(version, &envelope.challenge_v2()),
        };
        envelope.signature = Some(signature.to_vec().into());
        envelope.to_bytes()
    }

    /// Checks that `source` wrote an envelope, to us, and decrypts what it says. Whether it is still
    /// fresh is for the caller to say.
    pub fn open(&self, envelope: &Envelope, source: &Twin) -> Result<Opened, OpenError> {
        let signature = envelope.signature.as_deref().unwrap_or_default();
        let version = self.signature_version(source);
        match version {
            Version::V1 => {
                let challenge = envelope.challenge_v1();
                signature::verify(source.account, version, &challenge, signature)?;
            }
            Version::V2 => {
                let challenge = envelope.challenge_v2();
                signature::verify(source.account, version, &challenge, signature)?;
            }
        }
        let cipher = match &envelope.payload {
            None => return Ok(Opened { payload: Bytes::new(), is_encrypted: false }),
            Some(Payload::Plain(bytes)) => {
                return Ok(Opened { payload: bytes.clone(), is_encrypted: false });
            }
            Some(Payload::Cipher(bytes)) => bytes,
        };
        let payload = match self.common_key(source)? {
            Some(EncryptionKey::V1(key)) => self.identity.v1().decrypt(&key, cipher)?,
            Some(EncryptionKey::V2(key)) => self.identity.v2().decrypt(&key, envelope, cipher)?,
            None if self.encryption.is_none() => return Err(CipherError::Off.into()),
            None => return Err(OpenError::NoKey),
        };
        Ok(Opened { payload: payload.into(), is_encrypted: true })
    }

    /// Of which version signatures between us and `other` are.
    fn signature_version(&self, other: &Twin) -> Version {
        match (self.encryption, other.encryption_key) {
            (Some(Version::V2), Ok(Some(EncryptionKey::V2(_)))) => Version::V2,
            _ => Version::V1,
        }
    }

    /// The key with which to encrypt between us and `other`, if both have one.
    fn common_key(&self, other: &Twin) -> Result<Option<EncryptionKey>, CipherError> {
        let Some(ours) = self.encryption else { return Ok(None) };
        let key = other.encryption_key;
        match key.map_err(|error| CipherError::UnknownKey { twin: other.id, error })? {
            Some(key) if key.version() != ours => {
                let theirs = key.version();
                Err(CipherError::NoCommonVersion { twin: other.id, theirs, ours })
            }
            key => Ok(key),
        }
    }
}

/// Not what it says.
impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { payload, is_encrypted } = self;
        write!(f, "Opened({} bytes, is_encrypted: {is_encrypted})", payload.len())
    }
}

#[cfg(test)]
mod tests;
