//! Signatures by the key that a node has already: XEdDSA (Signal's specification, revision 1, section 2).
//!
//! A node's key is an X25519 key, made for agreeing on secrets. The same number is a key for signatures
//! on the twisted Edwards form of the curve, once both sides agree on which of two points it stands for:
//! the one whose sign bit is 0. A signer whose point has the other sign uses the negative of its key.
//!
//! ```text
//!  k, clamped ── E = kB ── sign bit 1? ──> a = -k, else k          A = y of E, sign bit 0
//!  r = SHA-512(fe ff^31 ‖ a ‖ M ‖ Z) mod q      R = rB             Z: 64 random bytes
//!  h = SHA-512(R ‖ A ‖ M) mod q                 s = r + ha mod q   signature R ‖ s
//!  verify: A from u by y = (u-1)/(u+1), sign bit 0; R = sB - hA
//! ```
//!
//! Signing takes the same time whatever the key; the random bytes make up for a hash that would be weaker
//! than it is, and a machine that repeats them does not give the key away. Verifying is about public things
//! and takes what time it takes, some 0.1 ms. More is refused than the specification asks for: numbers
//! `s` of q and above, of which each signature would have several forms, and keys of small order, whose
//! signatures anybody can make.

use std::fmt;

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use ring::digest;
use zeroize::{Zeroize as _, Zeroizing};

use crate::identity::{KEY_SIZE, PublicKey, SecretKey};
use crate::random::{RandomError, random_bytes};

/// Size of a signature, in bytes.
pub const SIGNATURE_SIZE: usize = 64;

/// Random bytes that a signature takes.
const RANDOM_SIZE: usize = 64;
/// What sets the hash for nonces apart from the other: 2^256 - 2, little endian.
const NONCE_PREFIX: [u8; 32] = {
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    prefix
};
/// The field's prime, little endian: larger numbers are no coordinates.
const PRIME: [u8; KEY_SIZE] = {
    let mut prime = [0xff; KEY_SIZE];
    prime[0] = 0xed;
    prime[KEY_SIZE - 1] = 0x7f;
    prime
};

/// A signature: a point and a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; SIGNATURE_SIZE]);

impl Signature {
    /// The signature with these bytes, which may be anybody's.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SIGNATURE_SIZE]) -> Self {
        Self(bytes)
    }

    /// The signature's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SIGNATURE_SIZE] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

impl SecretKey {
    /// Signs `message`, which must say what it is for: the key signs more than one thing.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, RandomError> {
        let random = Zeroizing::new(random_bytes()?);
        Ok(self.sign_with(message, &random))
    }

    fn sign_with(&self, message: &[u8], random: &[u8; RANDOM_SIZE]) -> Signature {
        let clamped = Zeroizing::new(clamp_integer(*self.as_bytes()));
        let mut key = Scalar::from_bytes_mod_order(*clamped);
        let mut point = EdwardsPoint::mul_base(&key).compress().to_bytes();
        let [.., last] = &mut point;
        // 1 or -1, without a branch on either.
        key *= Scalar::ONE - Scalar::from(2 * (*last >> 7));
        *last &= 0x7f;
        let key_bytes = Zeroizing::new(key.to_bytes());
        let mut nonce = hash(&[&NONCE_PREFIX, &key_bytes[..], message, random]);
        let commitment = EdwardsPoint::mul_base(&nonce).compress().to_bytes();
        let mut proof = hash(&[&commitment, &point, message]) * key + nonce;
        let mut signature = [0; SIGNATURE_SIZE];
        let (first, second) = signature.split_at_mut(KEY_SIZE);
        first.copy_from_slice(&commitment);
        second.copy_from_slice(proof.as_bytes());
        key.zeroize();
        nonce.zeroize();
        proof.zeroize();
        Signature(signature)
    }
}

impl PublicKey {
    /// Whether the owner of this key signed `message`.
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &Signature) -> bool {
        self.checks(message, signature).unwrap_or(false)
    }

    fn checks(&self, message: &[u8], signature: &Signature) -> Option<bool> {
        let (commitment, rest) = signature.0.split_first_chunk::<KEY_SIZE>()?;
        let number = Option::<Scalar>::from(Scalar::from_canonical_bytes(*rest.first_chunk()?))?;
        if !is_coordinate(self.as_bytes()) {
            return None;
        }
        let point = MontgomeryPoint(*self.as_bytes()).to_edwards(0)?;
        if point.is_small_order() {
            return None;
        }
        let challenge = hash(&[commitment, point.compress().as_bytes(), message]);
        let expected =
            EdwardsPoint::vartime_double_scalar_mul_basepoint(&challenge, &-point, &number);
        Some(expected.compress().as_bytes() == commitment)
    }
}

/// SHA-512 of all parts, one behind the other, as a number below the order of the curve.
fn hash(parts: &[&[u8]]) -> Scalar {
    let mut context = digest::Context::new(&digest::SHA512);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    let bytes = digest.as_ref().first_chunk().expect("SHA-512 has 64 bytes");
    Scalar::from_bytes_mod_order_wide(bytes)
}

/// Whether a little-endian number is below the field's prime.
fn is_coordinate(bytes: &[u8; KEY_SIZE]) -> bool {
    bytes.iter().rev().lt(PRIME.iter().rev())
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }

    fn counted() -> [u8; RANDOM_SIZE] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    /// Computed by another implementation, with whole numbers and nothing else. The points of the first
    /// two keys have sign 0, that of the last has sign 1.
    const VECTORS: [(u8, &str, &str); 3] = [
        (
            1,
            "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
            "2ceba48c6f57455abc215568db775b7d23bccfa86253194be39d9fc99d88820b\
             075e62d93b5975a0b21a39965e21e155aa76e87f33a25e85cd641092ebfef00b",
        ),
        (
            2,
            "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59",
            "0636a5b2312b1cc9d9c59c2b5fdb57f263f1689d795e7cbc7dc0cd75c91d5a4e\
             e5ddcb0260db58e97df1b939a2aea32db2305077df941d6ea6eb00ff5c613506",
        ),
        (
            3,
            "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
            "c88177d2ff85fdbc7a990143ae5f8113a4ede1fddc71a9238725b1d79a9afa5e\
             a874ecf876bcaea6be3cc0c10a1ea0d5d3a95835731724166c91043b36281409",
        ),
    ];

    #[test]
    fn signatures_are_those_of_the_specification() {
        for (key, public, signature) in VECTORS {
            let secret = SecretKey::from_bytes([key; 32]);
            assert_eq!(secret.public().as_bytes(), &hex::<32>(public));
            let signed = secret.sign_with(b"", &counted());
            assert_eq!(signed.0, hex(signature), "key {key}");
            assert!(secret.public().has_signed(b"", &signed));
        }
    }

    /// Whoever verifies Ed25519 verifies these, given the point in place of the coordinate.
    #[test]
    fn an_implementation_of_ed25519_takes_our_signatures() {
        for key in 1..20 {
            let secret = SecretKey::from_bytes([key; 32]);
            let point = MontgomeryPoint(*secret.public().as_bytes()).to_edwards(0).unwrap();
            let signature = secret.sign(b"message").unwrap();
            let verifier = UnparsedPublicKey::new(&ED25519, point.compress().to_bytes());
            verifier.verify(b"message", &signature.0).unwrap();
            assert!(verifier.verify(b"another", &signature.0).is_err());
        }
    }

    #[test]
    fn nothing_may_be_changed() {
        let secret = SecretKey::from_bytes([7; 32]);
        let signature = secret.sign(b"message").unwrap();
        assert!(secret.public().has_signed(b"message", &signature));
        assert!(!secret.public().has_signed(b"messagf", &signature));
        assert!(!SecretKey::from_bytes([8; 32]).public().has_signed(b"message", &signature));
        for bit in 0..8 * SIGNATURE_SIZE {
            let mut changed = signature;
            changed.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!secret.public().has_signed(b"message", &changed), "bit {bit}");
        }
    }

    #[test]
    fn a_signature_has_one_form_and_random_bytes() {
        let secret = SecretKey::from_bytes([7; 32]);
        let signature = secret.sign(b"message").unwrap();
        assert_ne!(secret.sign(b"message").unwrap(), signature);
        // The order of the curve added to the number: the same number, written otherwise.
        let order: [u8; 32] = hex(ORDER);
        let (mut larger, mut carry) = (signature, 0);
        for (byte, add) in larger.0[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        assert_ne!(larger, signature);
        assert!(!secret.public().has_signed(b"message", &larger));
    }

    #[test]
    fn keys_that_are_nobodys_sign_nothing() {
        // R and s of zero satisfy the equation for every message and a key of order 4, one time in four.
        for number in [0_u8, 1] {
            let mut key = [0; 32];
            key[0] = number;
            let key = PublicKey::from_bytes(key);
            for message in 0..20_u8 {
                let mut signature = [0; SIGNATURE_SIZE];
                signature[0] = 1;
                let signature = Signature::from_bytes(signature);
                assert!(!key.has_signed(&[message], &signature));
            }
        }
        let secret = SecretKey::from_bytes([7; 32]);
        let signature = secret.sign(b"message").unwrap();
        // Another form of the same coordinate, as X25519 would take it.
        let mut key = *secret.public().as_bytes();
        key[31] |= 0x80;
        assert!(!PublicKey::from_bytes(key).has_signed(b"message", &signature));
        let largest = |first| {
            let mut bytes = PRIME;
            bytes[0] = first;
            is_coordinate(&bytes)
        };
        assert!(largest(0xec) && !largest(0xed) && !largest(0xff));
    }

    #[test]
    fn a_secret_is_not_in_a_signature_that_is_shown() {
        let secret = SecretKey::from_bytes([0xab; 32]);
        let text = format!("{:?}", secret.sign(b"").unwrap());
        assert!(text.starts_with("Signature(") && !text.contains("abababab"), "{text}");
    }

    /// 2^252 + 27742317777372353535851937790883648493, little endian.
    const ORDER: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
}
