//! Encryption version 1, which everyone on the grid speaks: secp256k1 and AES-256-GCM.
//!
//! ```text
//!  key   SHA-256 of the x coordinate of (our secret × their point)
//!  wire  nonce (12, random) │ ciphertext │ tag (16)          nothing else is authenticated
//! ```
//!
//! Both keys are the twins' long-term ones, so there is no forward secrecy, and both directions share
//! one AES key. The envelope's signature, made after encryption, ties the payload to its envelope.

use k256::elliptic_curve::sec1::ToSec1Point as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::{CipherError, KEY_SIZE};
use crate::identity::SEED_SIZE;
use crate::random;

const TAG_SIZE: usize = 16;

/// A point of secp256k1, compressed, that was checked to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    bytes: [u8; KEY_SIZE],
    point: k256::PublicKey,
}

impl PublicKey {
    /// Reads a compressed point.
    pub fn parse(bytes: &[u8; KEY_SIZE]) -> Option<Self> {
        let point = k256::PublicKey::from_sec1_bytes(bytes).ok()?;
        Some(Self { bytes: *bytes, point })
    }

    /// The compressed point.
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.bytes
    }
}

/// A scalar of secp256k1, which wipes itself.
pub(crate) struct SecretKey(k256::SecretKey);

impl SecretKey {
    /// The seed, if it is a scalar; nearly every one is.
    pub(crate) fn from_seed(seed: &[u8; SEED_SIZE]) -> Option<Self> {
        k256::SecretKey::from_slice(seed).ok().map(Self)
    }

    pub(crate) fn public(&self) -> PublicKey {
        let point = self.0.public_key();
        let bytes = point.to_sec1_point(true);
        let bytes = bytes.as_bytes().try_into().expect("a compressed point has 33 bytes");
        PublicKey { bytes, point }
    }

    /// The AES key that we share with the owner of `other`.
    pub(crate) fn shared(&self, other: &PublicKey) -> Zeroizing<[u8; 32]> {
        let shared =
            k256::ecdh::diffie_hellman(self.0.to_nonzero_scalar(), other.point.as_affine());
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(digest(&SHA256, shared.raw_secret_bytes()).as_ref());
        key
    }

    /// Encrypts for the owner of `other`.
    pub(super) fn encrypt(&self, other: &PublicKey, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        let nonce = random::bytes::<NONCE_LEN>()?;
        Ok(seal(&self.shared(other), nonce, plain))
    }

    /// Decrypts what the owner of `other` encrypted for us.
    pub(super) fn decrypt(&self, other: &PublicKey, cipher: &[u8]) -> Result<Vec<u8>, CipherError> {
        let min = NONCE_LEN + TAG_SIZE;
        let size = CipherError::Size { size: cipher.len(), min };
        let (nonce, rest) = cipher.split_first_chunk::<NONCE_LEN>().ok_or(size)?;
        if rest.len() < TAG_SIZE {
            return Err(size);
        }
        let key = aead(&self.shared(other));
        let mut plain = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::empty(), &mut plain);
        let size = opened.map_err(|_| CipherError::Wrong)?.len();
        plain.truncate(size);
        Ok(plain)
    }
}

/// The wire form of `plain`.
fn seal(key: &[u8; 32], nonce: [u8; NONCE_LEN], plain: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_SIZE);
    wire.extend_from_slice(&nonce);
    wire.extend_from_slice(plain);
    let body = wire.get_mut(NONCE_LEN..).unwrap_or_default();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = aead(key).seal_in_place_separate_tag(nonce, Aad::empty(), body);
    wire.extend_from_slice(tag.expect("payloads are far below 64 GiB").as_ref());
    wire
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::signature::Scheme;

    /// `reference: rmb.json, e2e`: the recorded nonce gives the recorded bytes.
    #[test]
    fn recorded_encryptions_come_out_again() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ci/vectors/rmb.json");
        let vectors: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = vectors["e2e"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let hex = |name: &str| unhex(case[name].as_str().unwrap());
            let key: [u8; 32] = hex("shared_sha256_x").try_into().unwrap();
            let nonce = hex("nonce_hex").try_into().unwrap();
            let wire = seal(&key, nonce, &hex("plain_hex"));
            assert_eq!(wire, hex("cipher_hex_nonce_ct_tag"));

            let [a, b] = ["a_key", "b_key"].map(|name| {
                Identity::from_phrase(Scheme::Sr25519, case[name].as_str().unwrap()).unwrap()
            });
            let publics = [(&a, "a_pub"), (&b, "b_pub")];
            for (ours, name) in publics {
                assert_eq!(ours.v1().public().as_bytes()[..], hex(name));
            }
            for (ours, theirs) in [(&a, &b), (&b, &a)] {
                assert_eq!(*ours.v1().shared(&theirs.v1().public()), key);
                let plain = ours.v1().decrypt(&theirs.v1().public(), &wire).unwrap();
                assert_eq!(plain, hex("plain_hex"));
            }
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        let pairs = text.as_bytes().chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn short_payloads_are_refused() {
        let key = SecretKey::from_seed(&[1; 32]).unwrap();
        for size in [0, 11, 12, 27] {
            let refused = key.decrypt(&key.public(), &vec![0; size]);
            assert_eq!(refused, Err(CipherError::Size { size, min: 28 }));
        }
        assert_eq!(key.decrypt(&key.public(), &[0; 28]), Err(CipherError::Wrong));
    }
}
