//! Signatures under a deployment: two schemes, two styles.
//!
//! The message is the deployment's 16-byte hash, or, in the style of browser wallets, which sign only
//! what they can show, the hash's digits between `<Bytes>` and `</Bytes>`. A signature says which scheme
//! it has; whatever isn't called `sr25519` is ed25519. The key is that of the twin's account on the
//! chain, 32 bytes in either scheme.
//!
//! # Deviations
//!
//! Existing nodes cut an sr25519 signature that is too long, and pad one that is too short. Here it has
//! 64 bytes. Keys and signatures of small order, which hold for many messages, are refused.

use std::fmt;

use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use schnorrkel::{PublicKey as Sr25519Key, Signature as Sr25519Signature};

use crate::challenge::DeploymentHash;

/// Bytes of a signature in either scheme.
pub const SIGNATURE_SIZE: usize = 64;

/// The name of the style of browser wallets.
pub const STYLE_POLKA_WALLET: &str = "polka-wallet";

/// The context that Substrate signs in with sr25519.
const SR25519_CONTEXT: &[u8] = b"substrate";

/// The public key of an account on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountKey(pub [u8; 32]);

/// How an account signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RFC 8032.
    Ed25519,
    /// Schnorr signatures over Ristretto, as Substrate uses them.
    Sr25519,
}

impl Scheme {
    /// The scheme of a signature that calls itself so.
    pub fn of_type(signature_type: &str) -> Self {
        if signature_type == "sr25519" { Self::Sr25519 } else { Self::Ed25519 }
    }

    /// Whether `signature` is `key`'s under `message`.
    pub fn verify(self, key: &AccountKey, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519 => verify_ed25519(key, message, signature),
            Self::Sr25519 => verify_sr25519(key, message, signature),
        }
    }
}

impl fmt::Display for Scheme {
    /// What a signature of this scheme calls itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ed25519 => "ed25519",
            Self::Sr25519 => "sr25519",
        })
    }
}

fn verify_ed25519(key: &AccountKey, message: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = Ed25519Signature::from_slice(signature) else { return false };
    let Ok(key) = VerifyingKey::from_bytes(&key.0) else { return false };
    key.verify_strict(message, &signature).is_ok()
}

fn verify_sr25519(key: &AccountKey, message: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = Sr25519Signature::from_bytes(signature) else { return false };
    // The identity holds for every message that somebody else chooses.
    let Ok(key) = Sr25519Key::from_bytes(&key.0) else { return false };
    key.to_bytes() != [0; 32] && key.verify_simple(SR25519_CONTEXT, message, &signature).is_ok()
}

/// What is signed for a deployment with this hash, in this style.
pub fn message(hash: &DeploymentHash, style: &str) -> Vec<u8> {
    if style == STYLE_POLKA_WALLET {
        format!("<Bytes>{hash}</Bytes>").into_bytes()
    } else {
        hash.as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    #[test]
    fn messages_of_both_styles() {
        let hash = DeploymentHash::from_bytes([0xab; 16]);
        assert_eq!(message(&hash, ""), [0xab; 16]);
        assert_eq!(message(&hash, "other"), [0xab; 16]);
        let expected = format!("<Bytes>{}</Bytes>", "ab".repeat(16)).into_bytes();
        assert_eq!(message(&hash, STYLE_POLKA_WALLET), expected);
    }

    #[test]
    fn signatures_hold_for_their_message_key_and_scheme_alone() {
        let secret = SigningKey::from_bytes(&[7; 32]);
        let key = AccountKey(secret.verifying_key().to_bytes());
        let signature = secret.sign(b"message").to_bytes();
        assert!(Scheme::Ed25519.verify(&key, b"message", &signature));
        assert!(!Scheme::Ed25519.verify(&key, b"massage", &signature));
        assert!(!Scheme::Ed25519.verify(&AccountKey([8; 32]), b"message", &signature));
        assert!(!Scheme::Sr25519.verify(&key, b"message", &signature));
        for len in [0, 63] {
            assert!(!Scheme::Ed25519.verify(&key, b"message", &signature[..len]));
        }
    }

    #[test]
    fn keys_that_anybody_can_sign_for_are_refused() {
        // The identity of edwards25519 as key and as R, and S = 0, satisfy the equation.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; SIGNATURE_SIZE];
        signature[0] = 1;
        assert!(!Scheme::Ed25519.verify(&AccountKey(identity), b"anything", &signature));
        // The same of Ristretto, whose identity is zero.
        let mut signature = [0; SIGNATURE_SIZE];
        signature[63] = 0x80;
        assert!(!Scheme::Sr25519.verify(&AccountKey([0; 32]), b"anything", &signature));
    }
}
