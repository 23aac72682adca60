//! Who we are on the grid: one 32-byte seed, and four keys that come of it.
//!
//! ```text
//!  mnemonic ─ entropy ─ PBKDF2 ─┐
//!  0x… hex ─────────────────────┼─> seed ─┬─> sr25519 or ed25519: the account on the chain, signatures
//!  …//junction (hard) ──────────┘         ├─> secp256k1: encryption version 1 (the seed itself)
//!                                         └─> X25519:    encryption version 2 (a hash of the seed)
//! ```
//!
//! The chain does not record which of the two signature schemes an account uses; users have sr25519,
//! nodes ed25519, and every signature says which it is. The version 1 encryption key is the very seed
//! taken as a secp256k1 scalar, as every other peer does (`reference: tfchain-rmb 3.3`). For version
//! 2 the seed is hashed first, so that the keys have nothing to do with one another.
//!
//! All secrets are wiped when dropped, and an [`Identity`] shows its address and nothing else.

mod phrase;
mod ss58;

use std::fmt;

use blake2b_simd::Params;
use ed25519_dalek::Signer as _;
use schnorrkel::{ExpansionMode, MiniSecretKey};
use zeroize::Zeroizing;

use crate::seal::{EncryptionKey, v1, v2};
use crate::signature::{SIGNATURE_SIZE, Scheme, Version};

pub use phrase::PhraseError;
pub use ss58::AddressError;

/// Size of a seed in bytes.
pub const SEED_SIZE: usize = 32;

/// What an X25519 secret's hash is bound to (BLAKE2b personalization).
const X25519_PERSONAL: &[u8; 16] = b"zos-rmb-v2-x2551";

/// A seed, wiped when dropped.
pub(crate) type Seed = Zeroizing<[u8; SEED_SIZE]>;

/// An account on the chain: a public key, sr25519 or ed25519.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId([u8; 32]);

impl AccountId {
    /// The account with that public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads an SS58 address with the grid's prefix, 42.
    pub fn from_ss58(address: &str) -> Result<Self, AddressError> {
        ss58::decode(address).map(Self)
    }
}

/// The SS58 address.
impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ss58::encode(&self.0))
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What can go wrong when an identity is made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is no mnemonic, seed or path.
    #[error(transparent)]
    Phrase(#[from] PhraseError),
    /// One seed in 2^127 is none of secp256k1.
    #[error("the seed is not a secp256k1 secret: it is 0 or too large")]
    Seed,
}

/// The secret half of the account's key.
enum Signing {
    Sr25519(Box<schnorrkel::Keypair>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

/// A seed and all its keys.
pub struct Identity {
    signing: Signing,
    account: AccountId,
    v1: v1::SecretKey,
    v2: v2::SecretKey,
}

impl Identity {
    /// Reads what a user may call a secret: a mnemonic of English words, or a seed as `0x` and 64 hex
    /// digits, either with hard junctions (`//Alice`) and, a mnemonic, with a password (`///…`). A
    /// path alone starts at the well-known development mnemonic, as Substrate's tools have it.
    pub fn from_phrase(scheme: Scheme, phrase: &str) -> Result<Self, IdentityError> {
        Self::from_seed(scheme, &*phrase::seed(scheme, phrase)?)
    }

    /// The identity with that seed.
    pub fn from_seed(scheme: Scheme, seed: &[u8; SEED_SIZE]) -> Result<Self, IdentityError> {
        let signing = match scheme {
            Scheme::Sr25519 => Signing::Sr25519(Box::new(sr25519(seed))),
            Scheme::Ed25519 => {
                Signing::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(seed)))
            }
        };
        let account = match &signing {
            Signing::Sr25519(keys) => AccountId(keys.public.to_bytes()),
            Signing::Ed25519(key) => AccountId(key.verifying_key().to_bytes()),
        };
        let v1 = v1::SecretKey::from_seed(seed).ok_or(IdentityError::Seed)?;
        let hash = Params::new().hash_length(32).personal(X25519_PERSONAL).hash(seed);
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(hash.as_bytes());
        Ok(Self { signing, account, v1, v2: v2::SecretKey::from_bytes(&secret) })
    }

    /// The account on the chain.
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// How this identity signs.
    pub fn scheme(&self) -> Scheme {
        match self.signing {
            Signing::Sr25519(_) => Scheme::Sr25519,
            Signing::Ed25519(_) => Scheme::Ed25519,
        }
    }

    /// The public key that others encrypt with, as it belongs into a twin's field on the chain.
    pub fn encryption_key(&self, version: Version) -> EncryptionKey {
        match version {
            Version::V1 => EncryptionKey::V1(self.v1.public()),
            Version::V2 => EncryptionKey::V2(self.v2.public()),
        }
    }

    /// The bare signature of `message` by the account's key, as the chain's transactions carry it.
    pub fn sign_bare(&self, message: &[u8]) -> [u8; 64] {
        match &self.signing {
            Signing::Sr25519(keys) => {
                keys.sign_simple(crate::signature::SR25519_CONTEXT, message).to_bytes()
            }
            Signing::Ed25519(key) => key.sign(message).to_bytes(),
        }
    }

    /// A signature of `message`, with the byte in front that says of which kind.
    pub(crate) fn sign(&self, version: Version, message: &[u8]) -> [u8; SIGNATURE_SIZE] {
        let bytes = self.sign_bare(message);
        let mut signature = [0; SIGNATURE_SIZE];
        if let Some((first, rest)) = signature.split_first_mut() {
            *first = self.scheme().type_byte(version);
            rest.copy_from_slice(&bytes);
        }
        signature
    }

    pub(crate) fn v1(&self) -> &v1::SecretKey {
        &self.v1
    }

    pub(crate) fn v2(&self) -> &v2::SecretKey {
        &self.v2
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, {})", self.scheme(), self.account)
    }
}

/// The sr25519 keys of a seed, which Substrate calls a mini-secret.
fn sr25519(seed: &[u8; SEED_SIZE]) -> schnorrkel::Keypair {
    let mini = MiniSecretKey::from_bytes(seed).expect("a seed has the size of a mini-secret");
    mini.expand_to_keypair(ExpansionMode::Ed25519)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_development_accounts_are_substrates() {
        let alice = Identity::from_phrase(Scheme::Sr25519, "//Alice").unwrap();
        let address = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(alice.account().to_string(), address);
        assert_eq!(AccountId::from_ss58(address).unwrap(), alice.account());
        let alice = Identity::from_phrase(Scheme::Ed25519, "//Alice").unwrap();
        let address = "5FA9nQDVg267DEd8m1ZypXLBnvN7SFxYwV7ndqSYGiN9TTpu";
        assert_eq!(alice.account().to_string(), address);
    }

    #[test]
    fn an_identity_shows_no_secret() {
        let identity = Identity::from_seed(Scheme::Ed25519, &[7; 32]).unwrap();
        let shown = format!("{identity:?}");
        assert_eq!(shown, format!("Identity(Ed25519, {})", identity.account()));
    }

    #[test]
    fn a_seed_outside_of_the_curve_is_refused() {
        for seed in [[0; 32], [0xff; 32]] {
            let refused = Identity::from_seed(Scheme::Sr25519, &seed);
            assert!(matches!(refused, Err(IdentityError::Seed)));
        }
    }

    #[test]
    fn the_keys_of_the_two_versions_have_nothing_in_common() {
        let identity = Identity::from_seed(Scheme::Sr25519, &[7; 32]).unwrap();
        let v1 = identity.encryption_key(Version::V1).to_bytes();
        let v2 = identity.encryption_key(Version::V2).to_bytes();
        assert!(matches!(v1[0], 2 | 3));
        assert_eq!(v2[0], 0x78);
        assert_ne!(v1[1..], v2[1..]);
        // An X25519 key made of the seed itself would be this one.
        let naive = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from([7; 32]));
        assert_ne!(v2[1..], *naive.as_bytes());
    }
}
