//! Files that only this node can read.
//!
//! Deployments hold passwords and private keys, and disks are sold. So what is stored is sealed with
//! ChaCha20-Poly1305 (RFC 8439) under a key that comes of the node's seed, each piece bound to its
//! place: a piece that was moved, renamed or cut does not open.
//!
//! ```text
//! sealed = nonce[12] ciphertext tag[16]        nonce random, place authenticated
//! ```

use blake2b_simd::Params;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// What the key's hash is bound to (BLAKE2b personalization).
const PERSONAL: &[u8; 16] = b"zos-node-store-1";

/// Bytes that sealing adds.
pub(crate) const OVERHEAD: usize = NONCE_LEN + 16;

/// Why a piece could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("the operating system gives no random bytes")]
    Random,
    #[error("it is too large to be sealed")]
    Size,
    #[error("it was cut, changed or moved, or another node wrote it")]
    Wrong,
}

/// The key of a node's files.
pub struct StoreKey(LessSafeKey);

impl StoreKey {
    /// The key that comes of a node's seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let hash = Params::new().hash_length(32).personal(PERSONAL).hash(seed);
        let key = UnboundKey::new(&CHACHA20_POLY1305, hash.as_bytes());
        Self(LessSafeKey::new(key.expect("the hash is as long as a key")))
    }

    /// Seals `plain` for `place`.
    pub(crate) fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let (_, text) = sealed.split_at_mut(NONCE_LEN);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(place.as_bytes()), text);
        sealed.extend_from_slice(tag.map_err(|_| SealError::Size)?.as_ref());
        Ok(sealed)
    }

    /// Opens what was sealed for `place`.
    pub(crate) fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Wrong)?;
        let mut text = text.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(place.as_bytes()), &mut text);
        let size = opened.map_err(|_| SealError::Wrong)?.len();
        text.truncate(size);
        Ok(text)
    }
}

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreKey(<secret>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_opens_in_its_place_alone() {
        let key = StoreKey::from_seed(&[7; 32]);
        let sealed = key.seal("a", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(key.open("a", &sealed).unwrap(), b"secret");
        assert_eq!(key.open("b", &sealed), Err(SealError::Wrong));
        assert_eq!(key.open("a", &sealed[..sealed.len() - 1]), Err(SealError::Wrong));
        assert_eq!(key.open("a", &sealed[..5]), Err(SealError::Wrong));
        assert_eq!(StoreKey::from_seed(&[8; 32]).open("a", &sealed), Err(SealError::Wrong));
        assert_ne!(key.seal("a", b"secret").unwrap(), sealed);
        assert_eq!(format!("{key:?}"), "StoreKey(<secret>)");
    }
}
