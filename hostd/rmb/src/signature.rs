//! The 65 bytes that say who wrote something: one byte for the kind, 64 for the signature.
//!
//! | byte | scheme | over |
//! |---|---|---|
//! | `s` | sr25519 | version 1: the MD5 challenge of an envelope, or a token's text |
//! | `e` | ed25519 | likewise |
//! | `S` | sr25519 | version 2: the BLAKE2b challenge of an envelope |
//! | `E` | ed25519 | likewise |
//!
//! The account on the chain is a bare key that does not say of which scheme it is, hence the byte.
//! Someone who knows a signature of one scheme can't make one of another for the same key.

use crate::identity::AccountId;

/// Size of a signature in bytes, the kind included.
pub const SIGNATURE_SIZE: usize = 65;
/// The context of sr25519 signatures, which is Substrate's.
pub(crate) const SR25519_CONTEXT: &[u8] = b"substrate";

/// The two kinds of keys that accounts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Schnorr signatures on Ristretto: users.
    Sr25519,
    /// EdDSA: nodes.
    Ed25519,
}

impl Scheme {
    /// The byte in front of a signature.
    pub(crate) const fn type_byte(self, version: Version) -> u8 {
        match (self, version) {
            (Self::Sr25519, Version::V1) => b's',
            (Self::Ed25519, Version::V1) => b'e',
            (Self::Sr25519, Version::V2) => b'S',
            (Self::Ed25519, Version::V2) => b'E',
        }
    }
}

/// The two versions of what twins say to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MD5 challenge, secp256k1 and AES-256-GCM: everyone.
    V1,
    /// BLAKE2b challenge, X25519 and ChaCha20-Poly1305: twins that both published such a key.
    V2,
}

/// Why a signature is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SignatureError {
    /// There is none.
    #[error("there is no signature")]
    Missing,
    /// Not as long as a signature.
    #[error("a signature has {SIGNATURE_SIZE} bytes, this one {0}")]
    Size(usize),
    /// A first byte that means nothing.
    #[error("signatures of kind {0:#04x} are unknown")]
    Kind(u8),
    /// A signature of the version that these two twins do not use with one another.
    #[error("the signature is of {found:?} where {expected:?} is due")]
    Version {
        /// What the twins' keys ask for.
        expected: Version,
        /// What came.
        found: Version,
    },
    /// Made by somebody else, or of something else.
    #[error("the signature is not of this message by account {0}")]
    Wrong(AccountId),
}

/// Of which version a signature says to be.
pub fn version(signature: &[u8]) -> Result<Version, SignatureError> {
    kind(split(signature)?.0).map(|(_, version)| version)
}

/// Checks that `account` signed `message`, and in that version.
pub fn verify(
    account: AccountId,
    version: Version,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let (first, bytes) = split(signature)?;
    let (scheme, found) = kind(first)?;
    if found != version {
        return Err(SignatureError::Version { expected: version, found });
    }
    let right = match scheme {
        Scheme::Sr25519 => sr25519_signed(account, message, bytes),
        Scheme::Ed25519 => ed25519_signed(account, message, bytes),
    };
    if right { Ok(()) } else { Err(SignatureError::Wrong(account)) }
}

fn kind(byte: u8) -> Result<(Scheme, Version), SignatureError> {
    match byte {
        b's' => Ok((Scheme::Sr25519, Version::V1)),
        b'e' => Ok((Scheme::Ed25519, Version::V1)),
        b'S' => Ok((Scheme::Sr25519, Version::V2)),
        b'E' => Ok((Scheme::Ed25519, Version::V2)),
        other => Err(SignatureError::Kind(other)),
    }
}

fn split(signature: &[u8]) -> Result<(u8, &[u8; 64]), SignatureError> {
    let error = match signature.len() {
        0 => SignatureError::Missing,
        size => SignatureError::Size(size),
    };
    let (kind, bytes) = signature.split_first().ok_or(error)?;
    Ok((*kind, bytes.try_into().map_err(|_| error)?))
}

fn sr25519_signed(account: AccountId, message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = schnorrkel::PublicKey::from_bytes(account.as_bytes()) else { return false };
    let Ok(signature) = schnorrkel::Signature::from_bytes(signature) else { return false };
    key.verify_simple(SR25519_CONTEXT, message, &signature).is_ok()
}

fn ed25519_signed(account: AccountId, message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(account.as_bytes()) else { return false };
    // Strict: an account whose key is of small order would have signed everything.
    key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn signatures_hold_for_their_message_key_and_version_alone() {
        for scheme in [Scheme::Sr25519, Scheme::Ed25519] {
            let ours = Identity::from_seed(scheme, &[7; 32]).unwrap();
            let other = Identity::from_seed(scheme, &[8; 32]).unwrap();
            for version in [Version::V1, Version::V2] {
                let signature = ours.sign(version, b"message");
                let check = |account, version, message: &[u8], signature: &[u8]| {
                    verify(account, version, message, signature)
                };
                assert_eq!(check(ours.account(), version, b"message", &signature), Ok(()));
                let wrong = Err(SignatureError::Wrong(ours.account()));
                assert_eq!(check(ours.account(), version, b"massage", &signature), wrong);
                let wrong = Err(SignatureError::Wrong(other.account()));
                assert_eq!(check(other.account(), version, b"message", &signature), wrong);
                let (expected, found) = match version {
                    Version::V1 => (Version::V2, Version::V1),
                    Version::V2 => (Version::V1, Version::V2),
                };
                let wrong = Err(SignatureError::Version { expected, found });
                assert_eq!(check(ours.account(), expected, b"message", &signature), wrong);
            }
        }
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        let account = AccountId::from_bytes([0xff; 32]);
        let check = |bytes: &[u8]| verify(account, Version::V1, b"", bytes);
        assert_eq!(check(&[]), Err(SignatureError::Missing));
        assert_eq!(check(&[b's'; 64]), Err(SignatureError::Size(64)));
        assert_eq!(check(&[b'x'; 65]), Err(SignatureError::Kind(b'x')));
        assert_eq!(check(&[b's'; 65]), Err(SignatureError::Wrong(account)));
        assert_eq!(check(&[b'e'; 65]), Err(SignatureError::Wrong(account)));
    }

    #[test]
    fn a_key_of_small_order_signs_nothing() {
        // The neutral element verifies an all-zero signature of anything when one is not strict.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 65];
        signature[0] = b'e';
        signature[1] = 1;
        let account = AccountId::from_bytes(neutral);
        let checked = verify(account, Version::V1, b"anything", &signature);
        assert_eq!(checked, Err(SignatureError::Wrong(account)));
    }
}
