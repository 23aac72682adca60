//! Who must sign a deployment, and whether they did.
//!
//! A deployment names the twins that are asked, each with a weight, and the weight that it takes. It
//! always takes the signature of the twin that it belongs to. A twin's first signature counts, and
//! signatures of twins that nobody asked are ignored.
//!
//! Every twin that is asked must sign, even where `required` says that it needn't: existing nodes take
//! a missing signature for an empty one, which fails. Clients rely on neither, so this stays.
//!
//! # Deviations
//!
//! Weights that add up beyond 64 bits stay there instead of wrapping round.

use std::fmt;

use serde::Serialize;

use super::Keys;
use crate::challenge::{Challenge, DeploymentHash};
use crate::hex;
use crate::id::TwinId;
use crate::json;
use crate::limits::SIGNATURE_REQUEST_COUNT_MAX;
use crate::signature::{SIGNATURE_SIZE, Scheme, message};

/// Who must sign.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SignatureRequirement {
    /// Who is asked.
    pub requests: Vec<SignatureRequest>,
    /// The weight that it takes.
    pub weight_required: u64,
    /// Who signed. Not hashed.
    pub signatures: Vec<Signature>,
    /// What was signed: see [`signature`](crate::signature).
    pub signature_style: String,
}
json::object!(SignatureRequirement as "gridtypes.SignatureRequirement" {
    "requests" => requests,
    "weight_required" => weight_required: "uint",
    "signatures" => signatures,
    "signature_style" => signature_style: "gridtypes.SignatureStyle",
});

/// A twin that is asked to sign.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SignatureRequest {
    /// Who.
    pub twin_id: TwinId,
    /// Without effect, but hashed.
    pub required: bool,
    /// What its signature counts.
    pub weight: u64,
}
json::object!(SignatureRequest as "gridtypes.SignatureRequest" {
    "twin_id" => twin_id,
    "required" => required,
    "weight" => weight: "uint",
});

/// A twin's signature.
#[derive(Clone, PartialEq, Eq, Default, Serialize)]
pub struct Signature {
    /// Whose.
    pub twin_id: TwinId,
    /// Hexadecimal digits.
    signature: String,
    /// The scheme's name.
    signature_type: String,
}
json::object!(Signature as "gridtypes.Signature" {
    "twin_id" => twin_id,
    "signature" => signature,
    "signature_type" => signature_type,
});

impl Signature {
    /// A signature as it is sent.
    pub fn new(twin_id: TwinId, scheme: Scheme, bytes: &[u8; SIGNATURE_SIZE]) -> Self {
        Self { twin_id, signature: hex::encode(bytes), signature_type: scheme.to_string() }
    }

    /// The scheme that it calls itself.
    pub fn scheme(&self) -> Scheme {
        Scheme::of_type(&self.signature_type)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} signature of twin {}>", self.scheme(), self.twin_id)
    }
}

/// Why a deployment's signatures are not enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum SignatureError {
    #[error("{0} signatures are asked for, at most {SIGNATURE_REQUEST_COUNT_MAX} are accepted")]
    TooMany(usize),
    #[error("missing required signature for twin '{0}'")]
    Missing(TwinId),
    #[error("failed to get public key for twin '{0}'")]
    NoKey(TwinId),
    #[error("invalid signature: {0}")]
    Digits(String),
    #[error("failed to verify signature")]
    Wrong,
    #[error("originator twin id must be in the signature requests")]
    NoOriginator,
    #[error("required signature weight is not reached")]
    Weight,
}

impl SignatureRequirement {
    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        for SignatureRequest { twin_id, required, weight } in &self.requests {
            out.add(twin_id);
            out.add(required);
            out.add(weight);
        }
        out.add(self.weight_required);
        out.add(&self.signature_style);
    }

    /// Checks the signatures under a deployment of `originator` with this hash.
    pub(super) fn verify(
        &self,
        originator: TwinId,
        hash: &DeploymentHash,
        keys: &Keys,
    ) -> Result<(), SignatureError> {
        if self.requests.len() > SIGNATURE_REQUEST_COUNT_MAX {
            return Err(SignatureError::TooMany(self.requests.len()));
        }
        let message = message(hash, &self.signature_style);
        let mut weight = 0_u64;
        for request in &self.requests {
            self.verify_request(request, originator, &message, keys)?;
            weight = weight.saturating_add(request.weight);
        }
        if !self.requests.iter().any(|request| request.twin_id == originator) {
            return Err(SignatureError::NoOriginator);
        }
        if weight < self.weight_required {
            return Err(SignatureError::Weight);
        }
        Ok(())
    }

    fn verify_request(
        &self,
        request: &SignatureRequest,
        originator: TwinId,
        message: &[u8],
        keys: &Keys,
    ) -> Result<(), SignatureError> {
        let twin = request.twin_id;
        let signature = self.signatures.iter().find(|signature| signature.twin_id == twin);
        let required = request.required || twin == originator;
        let key = || keys.get(&twin).ok_or(SignatureError::NoKey(twin));
        let Some(signature) = signature else {
            if required {
                return Err(SignatureError::Missing(twin));
            }
            return key().and(Err(SignatureError::Wrong));
        };
        let key = key()?;
        let bytes = hex::decode(&signature.signature).map_err(SignatureError::Digits)?;
        if signature.scheme().verify(key, message, &bytes) {
            Ok(())
        } else {
            Err(SignatureError::Wrong)
        }
    }
}
