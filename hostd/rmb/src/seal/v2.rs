//! Encryption version 2, between twins that both published an X25519 key.
//!
//! For each envelope the sender makes a new key pair. The payload's key comes of two agreements: the
//! ephemeral key's with the destination's, and the source's with the destination's. So what was
//! recorded can't be read with the source's secret later, each envelope and direction has a key of its
//! own, nonces can't collide, and only the source can have made it. All other fields of the envelope
//! are authenticated along. `FORMAT.md` ("Sealed payload") has the bytes.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use x25519_dalek::{SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use super::CipherError;
use crate::envelope::{Address, Envelope};
use crate::random;

/// First byte of a sealed payload.
const WIRE_VERSION: u8 = 2;
const EPHEMERAL_SIZE: usize = 32;
const TAG_SIZE: usize = 16;
/// Salt of the key derivation: what it is for.
const SALT: &[u8] = b"zos rmb v2 payload";
/// A key is used once, so its nonce may be the same.
const NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];

/// An X25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Any 32 bytes are one.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// An X25519 secret, which wipes itself.
pub(crate) struct SecretKey(StaticSecret);

impl SecretKey {
    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    fn agree(&self, other: &PublicKey) -> Result<SharedSecret, CipherError> {
        let shared = self.0.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        if shared.was_contributory() { Ok(shared) } else { Err(CipherError::WeakKey) }
    }

    /// Encrypts for the owner of `to` what `envelope`, complete but for payload and signature, says.
    pub(super) fn encrypt(
        &self,
        to: &PublicKey,
        envelope: &Envelope,
        plain: &[u8],
    ) -> Result<Vec<u8>, CipherError> {
        let secret = Zeroizing::new(random::bytes()?);
        let ephemeral = Self::from_bytes(&secret);
        let public = ephemeral.public();
        let secrets = [ephemeral.agree(to)?, self.agree(to)?];
        let keys = Keys { ephemeral: public, source: self.public(), destination: *to };
        let key = keys.payload_key(&secrets, envelope);

        let mut wire = Vec::with_capacity(1 + EPHEMERAL_SIZE + plain.len() + TAG_SIZE);
        wire.push(WIRE_VERSION);
        wire.extend_from_slice(public.as_bytes());
        wire.extend_from_slice(plain);
        let body = wire.get_mut(1 + EPHEMERAL_SIZE..).unwrap_or_default();
        let header = Aad::from(envelope.header_hash_v2());
        let nonce = Nonce::assume_unique_for_key(NONCE);
        let tag = key.seal_in_place_separate_tag(nonce, header, body);
        wire.extend_from_slice(tag.expect("payloads are far below 64 GiB").as_ref());
        Ok(wire)
    }

    /// Decrypts what the owner of `from` encrypted for us in `envelope`.
    pub(super) fn decrypt(
        &self,
        from: &PublicKey,
        envelope: &Envelope,
        cipher: &[u8],
    ) -> Result<Vec<u8>, CipherError> {
        let min = 1 + EPHEMERAL_SIZE + TAG_SIZE;
        let size = CipherError::Size { size: cipher.len(), min };
        let (version, rest) = cipher.split_first().ok_or(size)?;
        if *version != WIRE_VERSION {
            return Err(CipherError::UnknownVersion(*version));
        }
        let (ephemeral, rest) = rest.split_first_chunk::<EPHEMERAL_SIZE>().ok_or(size)?;
        if rest.len() < TAG_SIZE {
            return Err(size);
        }
        let ephemeral = PublicKey(*ephemeral);
        let secrets = [self.agree(&ephemeral)?, self.agree(from)?];
        let keys = Keys { ephemeral, source: *from, destination: self.public() };
        let key = keys.payload_key(&secrets, envelope);

        let mut plain = rest.to_vec();
        let header = Aad::from(envelope.header_hash_v2());
        let nonce = Nonce::assume_unique_for_key(NONCE);
        let opened = key.open_in_place(nonce, header, &mut plain);
        let size = opened.map_err(|_| CipherError::Wrong)?.len();
        plain.truncate(size);
        Ok(plain)
    }
}

/// The public keys that have to do with a payload.
struct Keys {
    ephemeral: PublicKey,
    source: PublicKey,
    destination: PublicKey,
}

impl Keys {
    /// The payload's key: HKDF-SHA256 of both secrets, bound to all keys and to who writes to whom.
    fn payload_key(&self, secrets: &[SharedSecret; 2], envelope: &Envelope) -> LessSafeKey {
        let [ephemeral, fixed] = secrets;
        let mut secret = Zeroizing::new([0; 64]);
        let parts = ephemeral.as_bytes().iter().chain(fixed.as_bytes());
        secret.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
        let twin = |address: &Option<Address>| {
            address.as_ref().map_or(0, |address| address.twin).to_le_bytes()
        };
        let (source, destination) = (twin(&envelope.source), twin(&envelope.destination));
        let info = [
            &source[..],
            &destination,
            self.ephemeral.as_bytes(),
            self.source.as_bytes(),
            self.destination.as_bytes(),
        ];
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(&*secret);
        let expanded =
            extracted.expand(&info, &CHACHA20_POLY1305).expect("one key is not too long");
        LessSafeKey::new(UnboundKey::from(expanded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (SecretKey, SecretKey) {
        (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]))
    }

    fn envelope() -> Envelope {
        Envelope { uid: "u".into(), ..Envelope::default() }
    }

    #[test]
    fn only_the_destination_reads_it_and_only_from_the_source() {
        let (a, b) = pair();
        let wire = a.encrypt(&b.public(), &envelope(), b"secret").unwrap();
        assert_eq!(wire.len(), 1 + 32 + 6 + 16);
        assert_eq!(b.decrypt(&a.public(), &envelope(), &wire).unwrap(), b"secret");
        // Neither from itself, nor by the sender, nor with another header.
        assert_eq!(b.decrypt(&b.public(), &envelope(), &wire), Err(CipherError::Wrong));
        assert_eq!(a.decrypt(&b.public(), &envelope(), &wire), Err(CipherError::Wrong));
        let other = Envelope { expiration: 1, ..envelope() };
        assert_eq!(b.decrypt(&a.public(), &other, &wire), Err(CipherError::Wrong));
    }

    #[test]
    fn any_changed_byte_is_found() {
        let (a, b) = pair();
        let wire = a.encrypt(&b.public(), &envelope(), b"secret").unwrap();
        for index in 0..wire.len() {
            let mut changed = wire.clone();
            changed[index] ^= 1;
            assert!(b.decrypt(&a.public(), &envelope(), &changed).is_err(), "byte {index}");
        }
        for size in 1..49 {
            let refused = b.decrypt(&a.public(), &envelope(), &wire[..size]);
            assert_eq!(refused, Err(CipherError::Size { size, min: 49 }));
        }
    }

    #[test]
    fn no_two_payloads_are_alike() {
        let (a, b) = pair();
        let wire = || a.encrypt(&b.public(), &envelope(), b"secret").unwrap();
        assert_ne!(wire(), wire());
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let (a, b) = pair();
        let zero = PublicKey::from_bytes([0; 32]);
        assert_eq!(a.encrypt(&zero, &envelope(), b""), Err(CipherError::WeakKey));
        let mut wire = a.encrypt(&b.public(), &envelope(), b"").unwrap();
        wire[1..33].fill(0);
        assert_eq!(b.decrypt(&a.public(), &envelope(), &wire), Err(CipherError::WeakKey));
    }
}
