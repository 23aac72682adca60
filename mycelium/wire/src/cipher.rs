//! Bodies of data packets: sealed by their sender for one other node.
//!
//! ```text
//!  body = AES-256-GCM(key, nonce, no associated data, inner header 4 ‖ payload) ‖ tag 16 ‖ nonce 12
//! ```
//!
//! The key is the X25519 secret that both nodes share, for ever and in both directions
//! (`reference: mycelium 1.6`); its schedule is computed once, in [`PairKey::new`]. A packet is sealed
//! and opened in the buffer that it lies in.
//!
//! The wire only says that nonces have 12 bytes. A random nonce would cost a system call a packet, so
//! [`Nonces`] counts: 8 random bytes, new with each counter and each wrap, then 4 that count up. Two
//! counters meet when 64 random bits do, which takes some 2^32 starts of threads with the same key.

use std::fmt;

use ring::aead::{self, AES_256_GCM, Aad, LessSafeKey, UnboundKey};

use crate::identity::SharedSecret;
use crate::random::{RandomError, random_bytes};

/// Size of a nonce, in bytes.
pub const NONCE_SIZE: usize = 12;
/// Size of a tag, in bytes.
pub const TAG_SIZE: usize = 16;
/// What sealing adds behind a body.
pub const SEAL_OVERHEAD: usize = TAG_SIZE + NONCE_SIZE;

/// The key of a pair of nodes, ready for use.
pub struct PairKey(LessSafeKey);

impl PairKey {
    /// The key for what two nodes share.
    #[must_use]
    pub fn new(secret: &SharedSecret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret.as_bytes()).expect("a secret has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Seals `body`, which is inner header, payload, and [`SEAL_OVERHEAD`] bytes of room.
    ///
    /// # Panics
    /// When there is no room.
    pub fn seal_in_place(&self, nonce: Nonce, body: &mut [u8]) {
        let size = body.len().checked_sub(SEAL_OVERHEAD).expect("room for tag and nonce");
        let (plaintext, room) = body.split_at_mut(size);
        let (tag_room, nonce_room) = room.split_at_mut(TAG_SIZE);
        let ring_nonce = aead::Nonce::assume_unique_for_key(nonce.0);
        let tag = self.0.seal_in_place_separate_tag(ring_nonce, Aad::empty(), plaintext);
        tag_room.copy_from_slice(tag.expect("no packet is too large for AES-GCM").as_ref());
        nonce_room.copy_from_slice(&nonce.0);
    }

    /// Opens `body` and gives inner header and payload.
    ///
    /// # Errors
    /// When the other node has not sealed it; its bytes are of no use then.
    pub fn open_in_place<'a>(&self, body: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let size = body.len();
        let (sealed, nonce) =
            body.split_last_chunk_mut::<NONCE_SIZE>().ok_or(OpenError::Short(size))?;
        if sealed.len() < TAG_SIZE {
            return Err(OpenError::Short(size));
        }
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        self.0.open_in_place(nonce, Aad::empty(), sealed).map_err(|_| OpenError::Forged)
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}

/// A sealed body that can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It has no tag or no nonce.
    #[error("a sealed body has at least 28 bytes, not {0}")]
    Short(usize),
    /// It was sealed with another key, or changed.
    #[error("the body was not sealed by the node that the packet names")]
    Forged,
}

/// Must not be used twice with a key; [`Nonces`] sees to it.
#[derive(Debug)]
pub struct Nonce([u8; NONCE_SIZE]);

impl Nonce {
    /// A nonce that its caller knows to be unused.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; NONCE_SIZE]) -> Self {
        Self(bytes)
    }
}

/// Unused nonces for all keys of a node. Each thread has a counter of its own.
#[derive(Debug)]
pub struct Nonces {
    prefix: [u8; 8],
    /// None after the last one with this prefix.
    next: Option<u32>,
}

impl Nonces {
    /// A new counter.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new() -> Result<Self, RandomError> {
        Ok(Self { prefix: random_bytes()?, next: Some(0) })
    }

    /// The next nonce.
    ///
    /// # Errors
    /// When it needs a new prefix, which is once in 2^32 calls, and the operating system gives no
    /// random bytes.
    #[expect(clippy::should_implement_trait, reason = "an iterator's next can't fail")]
    pub fn next(&mut self) -> Result<Nonce, RandomError> {
        let count = match self.next {
            Some(count) => count,
            None => {
                self.prefix = random_bytes()?;
                0
            }
        };
        self.next = count.checked_add(1);
        let mut bytes = [0; NONCE_SIZE];
        let (prefix, counter) = bytes.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(&self.prefix);
        counter.copy_from_slice(&count.to_be_bytes());
        Ok(Nonce(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SecretKey;

    fn pair() -> PairKey {
        let (a, b) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        PairKey::new(&a.shared(&b.public()))
    }

    #[test]
    fn a_body_is_opened_by_its_pair_alone() {
        let mut body = b"\x01\0\0\0payload".to_vec();
        body.resize(body.len() + SEAL_OVERHEAD, 0);
        pair().seal_in_place(Nonces::new().unwrap().next().unwrap(), &mut body);
        assert_eq!(pair().open_in_place(&mut body.clone()).unwrap(), b"\x01\0\0\0payload");
        for place in 0..body.len() {
            let mut changed = body.clone();
            changed[place] ^= 1;
            assert_eq!(pair().open_in_place(&mut changed), Err(OpenError::Forged), "byte {place}");
        }
        let (a, b) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([3; 32]));
        let other = PairKey::new(&a.shared(&b.public()));
        assert_eq!(other.open_in_place(&mut body), Err(OpenError::Forged));
    }

    #[test]
    fn a_short_body_is_refused() {
        for size in 0..SEAL_OVERHEAD {
            assert_eq!(pair().open_in_place(&mut vec![0; size]), Err(OpenError::Short(size)));
        }
        assert_eq!(pair().open_in_place(&mut [0; SEAL_OVERHEAD]), Err(OpenError::Forged));
    }

    #[test]
    fn nonces_count_and_take_a_new_prefix_when_they_wrap() {
        let mut nonces = Nonces::new().unwrap();
        let prefix = nonces.prefix;
        assert_eq!(nonces.next().unwrap().0[8..], [0, 0, 0, 0]);
        let second = nonces.next().unwrap();
        assert_eq!((&second.0[..8], &second.0[8..]), (&prefix[..], &[0, 0, 0, 1][..]));
        nonces.next = Some(u32::MAX);
        assert_eq!(nonces.next().unwrap().0[8..], [0xff; 4]);
        let wrapped = nonces.next().unwrap();
        assert_eq!(wrapped.0[8..], [0, 0, 0, 0]);
        assert_ne!(wrapped.0[..8], prefix);
        assert_ne!(Nonces::new().unwrap().prefix, prefix);
    }
}
