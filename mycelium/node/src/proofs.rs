//! The router's access to this node's key: signatures of its announcements, and checks of others'.

use mycelium_router::Proofs;
use mycelium_wire::claim::Claim;
use mycelium_wire::identity::SecretKey;
use mycelium_wire::xeddsa::Signature;

/// Signs with a node's key.
#[derive(Debug)]
pub(crate) struct KeyProofs(SecretKey);

impl KeyProofs {
    pub(crate) const fn new(secret: SecretKey) -> Self {
        Self(secret)
    }
}

impl Proofs for KeyProofs {
    fn sign(&self, claim: &Claim) -> Option<Signature> {
        // Without random bytes nothing is proved, and all else goes on.
        claim.sign(&self.0).ok()
    }

    fn holds(&self, claim: &Claim, signature: &Signature) -> bool {
        claim.is_proved_by(signature)
    }
}
