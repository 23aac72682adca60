//! The half of Noise without keys of curves: a chain of hashes, and the cipher whose key it yields
//! (Noise §5.1, §5.2). Names are those of the specification.

use blake2::{Blake2s256, Digest};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{NoiseError, TrafficKey};

/// Size of a tag, in bytes.
pub(super) const TAG_SIZE: usize = 16;

const HASH_SIZE: usize = 32;
/// Block size of BLAKE2s, in bytes: what HMAC pads its key to.
const BLOCK_SIZE: usize = 64;

type Hash = [u8; HASH_SIZE];

/// The chaining key, the hash of all that was said, and the cipher's key once there is one.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Symmetric {
    chaining_key: Hash,
    hash: Hash,
    key: Option<Hash>,
    nonce: u64,
}

impl Symmetric {
    /// Begins with the protocol's name, which is longer than a hash, and the prologue.
    pub(super) fn new(protocol_name: &str, prologue: &[u8]) -> Self {
        debug_assert!(protocol_name.len() > HASH_SIZE);
        let hash = hash(&[protocol_name.as_bytes()]);
        let mut symmetric = Self { chaining_key: hash, hash, key: None, nonce: 0 };
        symmetric.mix_hash(prologue);
        symmetric
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    pub(super) fn mix_key(&mut self, input: &[u8]) {
        let (chaining_key, key) = hkdf(&self.chaining_key, input);
        self.chaining_key = *chaining_key;
        self.key = Some(*key);
        self.nonce = 0;
    }

    /// Whether what is written is sealed by now.
    pub(super) const fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Appends `plaintext`, sealed if there is a key, to `out`.
    pub(super) fn encrypt_and_hash(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(plaintext);
        if let Some((key, nonce)) = self.next_cipher() {
            let (_, sealed) = out.split_at_mut(begin);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&self.hash), sealed);
            out.extend_from_slice(tag.expect("no message is too large for the cipher").as_ref());
        }
        let (_, written) = out.split_at(begin);
        self.hash = hash(&[&self.hash, written]);
    }

    /// Appends what `text` holds to `out`.
    pub(super) fn decrypt_and_hash(
        &mut self,
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NoiseError> {
        let begin = out.len();
        out.extend_from_slice(text);
        if let Some((key, nonce)) = self.next_cipher() {
            let (_, sealed) = out.split_at_mut(begin);
            let opened = key.open_in_place(nonce, Aad::from(&self.hash), sealed);
            let size = opened.map_err(|_| NoiseError::Forged)?.len();
            out.truncate(begin + size);
        }
        self.mix_hash(text);
        Ok(())
    }

    /// The keys of the two directions: the initiator's first.
    pub(super) fn split(&self) -> (TrafficKey, TrafficKey) {
        let (first, second) = hkdf(&self.chaining_key, &[]);
        (TrafficKey(*first), TrafficKey(*second))
    }

    pub(super) const fn hash(&self) -> Hash {
        self.hash
    }

    fn next_cipher(&mut self) -> Option<(LessSafeKey, Nonce)> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, self.key.as_ref()?);
        let mut bytes = [0; 12];
        let (_zeros, counter) = bytes.split_at_mut(4);
        counter.copy_from_slice(&self.nonce.to_le_bytes());
        // A handshake seals four times at most.
        self.nonce += 1;
        let key = LessSafeKey::new(key.expect("a hash is as long as a key"));
        Some((key, Nonce::assume_unique_for_key(bytes)))
    }
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Blake2s256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// RFC 2104 with BLAKE2s.
fn hmac(key: &Hash, parts: &[&[u8]]) -> Hash {
    let pad = |byte: u8| {
        let mut block = Zeroizing::new([byte; BLOCK_SIZE]);
        block.iter_mut().zip(key).for_each(|(padded, byte)| *padded ^= byte);
        block
    };
    let mut inner = Blake2s256::new();
    inner.update(pad(0x36).as_slice());
    for part in parts {
        inner.update(part);
    }
    let inner: Hash = inner.finalize().into();
    hash(&[pad(0x5c).as_slice(), &inner])
}

/// Two outputs of Noise's HKDF (§4.3).
fn hkdf(chaining_key: &Hash, input: &[u8]) -> (Zeroizing<Hash>, Zeroizing<Hash>) {
    let secret = Zeroizing::new(hmac(chaining_key, &[input]));
    let first = Zeroizing::new(hmac(&secret, &[&[1]]));
    let second = Zeroizing::new(hmac(&secret, &[first.as_slice(), &[2]]));
    (first, second)
}
