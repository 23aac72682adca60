//! Handing over a namespace's key so that nobody who listens learns it (`NSKEY`).
//!
//! ```text
//!  administrator                          server
//!    NSKEY ─────────────────────────────> makes a pair of keys for this one time
//!    <──────────────────── its public half, 64 hex digits
//!    makes a pair, agrees (X25519), seals the key (ChaCha20-Poly1305)
//!    NSKEY name public||sealed ─────────> agrees, opens
//! ```
//!
//! The sealing key is HKDF-SHA-256 of the agreed secret, salted with both public halves; the namespace's
//! name is authenticated too, so that a sealed key opens no other namespace. A pair seals once.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey, X25519};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::SystemRandom;
use zdb_engine::MasterKey;
use zeroize::Zeroizing;

/// Bytes of a key, of an X25519 public key too.
pub const KEY_SIZE: usize = 32;
/// Bytes of what seals a key: the sealer's public key, the sealed key, the tag.
pub const SEALED_SIZE: usize = KEY_SIZE + KEY_SIZE + TAG_SIZE;
const TAG_SIZE: usize = 16;
const INFO: &[u8] = b"zdb nskey 1";

/// The server's half of an agreement, good for one key.
pub struct Agreement {
    private: EphemeralPrivateKey,
    public: [u8; KEY_SIZE],
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Agreement")
    }
}

impl Agreement {
    /// A new pair; `None` if the system has no randomness.
    #[must_use]
    pub fn new() -> Option<Self> {
        let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).ok()?;
        let public = private.compute_public_key().ok()?;
        let public = public.as_ref().try_into().ok()?;
        Some(Self { private, public })
    }

    /// What the other side needs.
    #[must_use]
    pub fn public(&self) -> &[u8; KEY_SIZE] {
        &self.public
    }

    /// Opens a key that was sealed for us; `None` if it was not.
    #[must_use]
    pub fn open(self, name: &[u8], sealed: &[u8; SEALED_SIZE]) -> Option<MasterKey> {
        let (theirs, sealed) = sealed.split_first_chunk::<KEY_SIZE>()?;
        let salt = [self.public, *theirs].concat();
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let key = agree(self.private, theirs, &salt)?;
        let opened = key.open_in_place(nonce(), Aad::from(name), &mut sealed).ok()?;
        Some(MasterKey::new(opened.try_into().ok()?))
    }
}

/// Seals a key for a server whose public half is `theirs`.
#[must_use]
pub fn seal(
    name: &[u8],
    key: &[u8; KEY_SIZE],
    theirs: &[u8; KEY_SIZE],
) -> Option<[u8; SEALED_SIZE]> {
    let ours = Agreement::new()?;
    let salt = [*theirs, ours.public].concat();
    let sealing = agree(ours.private, theirs, &salt)?;
    let mut sealed = key.to_vec();
    sealing.seal_in_place_append_tag(nonce(), Aad::from(name), &mut sealed).ok()?;
    [ours.public.as_slice(), &sealed].concat().try_into().ok()
}

/// Each sealing key is used once, so one nonce is enough.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn agree(private: EphemeralPrivateKey, theirs: &[u8], salt: &[u8]) -> Option<LessSafeKey> {
    let theirs = UnparsedPublicKey::new(&X25519, theirs);
    agreement::agree_ephemeral(private, &theirs, |secret| {
        let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(secret);
        let output = pseudorandom.expand(&[INFO], &CHACHA20_POLY1305).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(output)))
    })
    .ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_key_opens_for_its_server_and_namespace_only() {
        let key = [7; KEY_SIZE];
        let server = Agreement::new().unwrap();
        let sealed = seal(b"ns", &key, server.public()).unwrap();
        assert_eq!(server.open(b"ns", &sealed), Some(MasterKey::new(key)));

        let server = Agreement::new().unwrap();
        assert_eq!(server.open(b"ns", &sealed), None, "another server");
        let server = Agreement::new().unwrap();
        let sealed = seal(b"ns", &key, server.public()).unwrap();
        assert_eq!(server.open(b"other", &sealed), None, "another namespace");
    }
}
