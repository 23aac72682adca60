//! What the owner of a subnet says of its route, and can prove: under which router id it announces its
//! subnet now, and with which sequence number.
//!
//! The subnet follows from the key in the router id, and the signature is that key's: whoever has the
//! claim needs to know nothing else to check it. It says nothing about the way: how far the owner is, each
//! node on the way adds for itself, and nobody can prove.
//!
//! ```text
//!  signed: "mycelium route 1" 16 │ router id 40 │ seqno 2
//! ```

use crate::control::Seqno;
use crate::identity::{ROUTER_ID_SIZE, RouterId, SecretKey};
use crate::random::RandomError;
use crate::xeddsa::Signature;

/// A bit of the zone in router ids of nodes that prove their claims, and understand those of others.
pub const ZONE: [u8; 2] = [0, 2];

/// What claims are signed as.
const CONTEXT: [u8; 16] = *b"mycelium route 1";
const SIZE: usize = CONTEXT.len() + ROUTER_ID_SIZE + 2;

/// That a router id's owner announces its subnet with a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose, and in which of its lives.
    pub router_id: RouterId,
    /// How new.
    pub seqno: Seqno,
}

impl Claim {
    /// Signs it; `secret` is of the router id's key.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn sign(&self, secret: &SecretKey) -> Result<Signature, RandomError> {
        secret.sign(&self.bytes())
    }

    /// Whether the owner of the router id's key signed it. Takes some 0.1 ms.
    #[must_use]
    pub fn is_proved_by(&self, signature: &Signature) -> bool {
        self.router_id.public_key().has_signed(&self.bytes(), signature)
    }

    fn bytes(&self) -> [u8; SIZE] {
        let seqno = self.seqno.0.to_be_bytes();
        let parts = CONTEXT.iter().chain(self.router_id.as_bytes()).chain(&seqno);
        let mut bytes = [0; SIZE];
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = *part;
        }
        bytes
    }
}

/// Whether the node with this router id says that it exchanges proved claims.
#[must_use]
pub fn is_announced(router_id: &RouterId) -> bool {
    let [_, low] = router_id.zone();
    let [_, bit] = ZONE;
    low & bit == bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_its_owners_life_and_number() {
        let (owner, other) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let id = |secret: &SecretKey, life| RouterId::new(secret.public(), [0, 3], [life; 6]);
        let claim =
            |secret, life, seqno| Claim { router_id: id(secret, life), seqno: Seqno(seqno) };
        let signature = claim(&owner, 5, 7).sign(&owner).unwrap();
        assert!(claim(&owner, 5, 7).is_proved_by(&signature));
        for wrong in [claim(&owner, 5, 8), claim(&owner, 6, 7), claim(&other, 5, 7)] {
            assert!(!wrong.is_proved_by(&signature), "{wrong:?}");
        }
        let forged = claim(&owner, 5, 7).sign(&other).unwrap();
        assert!(!claim(&owner, 5, 7).is_proved_by(&forged));
    }

    /// Signed by another implementation.
    #[test]
    fn what_is_signed_is_as_the_format_says() {
        let secret = SecretKey::from_bytes([1; 32]);
        let router_id = RouterId::new(secret.public(), [0, 3], [0x6b, 0x49, 0xd2, 0, 0, 7]);
        let claim = Claim { router_id, seqno: Seqno(0x1234) };
        let signature = "ed254a92d1c020b62462c17349e76e64d12dd977de2450162251ed869eb9ffe8\
                         34c5cba970be06c376265f10f109ec9925ac1294ade489eeec42dfa06941cf00";
        let digits = |at: usize| u8::from_str_radix(&signature[2 * at..2 * at + 2], 16).unwrap();
        assert!(claim.is_proved_by(&Signature::from_bytes(std::array::from_fn(digits))));
    }

    #[test]
    fn who_proves_claims_says_so_in_a_bit_of_its_zone() {
        let id = |zone| RouterId::new(SecretKey::from_bytes([1; 32]).public(), [9, zone], [0; 6]);
        let announced = [0, 1, 2, 3, 4, 0xff].map(|zone| is_announced(&id(zone)));
        assert_eq!(announced, [false, false, true, true, false, true]);
    }
}
