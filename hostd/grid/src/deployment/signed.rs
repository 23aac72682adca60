//! From bytes that somebody sent to a deployment that a node acts on.
//!
//! [`SignedDeployment`] has been read, no more: each workload's data is there, or why it can't be read,
//! so that errors come out in the order of the workloads. [`VerifiedDeployment`] kept all rules, and its
//! owner signed it. Both carry the bytes as they came. A node stores those: a deployment's hash can be
//! computed from nothing else, since order and spelling matter, and with it
//! [`SignedDeployment::recheck`] gives the verified deployment back after a restart, whether the chain
//! answers or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::{CreateError, Deployment, SignatureError, ValidationError, WireDeployment};
use crate::challenge::{DeploymentHash, Form};
use crate::id::{ContractId, Name, TwinId};
use crate::json::{self, RawJson};
use crate::limits::{DEPLOYMENT_SIZE_MAX, VALUE_COUNT_MAX};
use crate::signature::AccountKey;
use crate::workload::{ReadData, SentData, WireWorkload, Workload, WorkloadError};

/// Keys of twins' accounts, as the chain has them.
pub type Keys = BTreeMap<TwinId, AccountKey>;

/// A deployment that somebody sent.
#[derive(Clone)]
pub struct SignedDeployment {
    original: Arc<[u8]>,
    deployment: Deployment<ReadData>,
}

impl SignedDeployment {
    /// Reads a deployment's JSON.
    ///
    /// # Errors
    ///
    /// The text is too large, is no JSON, or is no deployment. What is wrong inside a workload's `data` is
    /// no error yet.
    pub fn read(original: impl Into<Arc<[u8]>>) -> Result<Self, json::Error> {
        let original = original.into();
        if original.len() > DEPLOYMENT_SIZE_MAX {
            return Err(json::Error::TooLarge { size: original.len() });
        }
        let mut budget = VALUE_COUNT_MAX;
        let text = json::Checked::new(&original)?;
        let wire: WireDeployment<'_> = json::from_checked(text, &mut budget)?;
        let read = |workload: WireWorkload<'_>| workload.read(&mut budget);
        let workloads = wire.workloads.into_iter().map(read).collect();
        let deployment = Deployment { workloads, ..wire.head };
        Ok(Self { original, deployment })
    }

    /// The bytes as they came.
    pub fn original(&self) -> &Arc<[u8]> {
        &self.original
    }

    /// What was read.
    pub fn deployment(&self) -> &Deployment<ReadData> {
        &self.deployment
    }

    /// Whose deployment it is, if it is not a lie.
    pub fn twin_id(&self) -> TwinId {
        self.deployment.twin_id
    }

    /// The contract that it names.
    pub fn contract_id(&self) -> ContractId {
        self.deployment.contract_id
    }

    /// Checks all rules that don't need a node or a chain.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ValidationError> {
        self.deployment.validate()
    }

    /// Checks that the twin that sent it is the twin that it belongs to.
    ///
    /// # Errors
    ///
    /// It is another.
    pub fn check_sender(&self, sender: TwinId) -> Result<(), SenderError> {
        let deployment = self.deployment.twin_id;
        if deployment == sender { Ok(()) } else { Err(SenderError { deployment, sender }) }
    }

    /// The twins whose keys [`SignedDeployment::verify`] needs.
    pub fn signers(&self) -> BTreeSet<TwinId> {
        let requests = &self.deployment.signature_requirement.requests;
        requests.iter().map(|request| request.twin_id).collect()
    }

    /// Checks the signatures alone. Says in which form of the challenge they hold, and the hash.
    ///
    /// # Errors
    ///
    /// A workload's data can't be read, so there is no hash; or a signature is missing or wrong.
    pub fn verify_signatures(&self, keys: &Keys) -> Result<(Form, DeploymentHash), VerifyError> {
        let Deployment { twin_id, signature_requirement, .. } = &self.deployment;
        let mut first = None;
        for form in self.deployment.forms() {
            let hash = self.deployment.hash(*form)?;
            match signature_requirement.verify(*twin_id, &hash, keys) {
                Ok(()) => return Ok((*form, hash)),
                // Only another message can make wrong signatures right.
                Err(error @ SignatureError::Wrong) => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(first.unwrap_or(SignatureError::Wrong).into())
    }

    /// Checks everything that can be checked with the signers' keys at hand.
    ///
    /// # Errors
    ///
    /// A rule is broken, or a signature is missing or wrong.
    pub fn verify(self, keys: &Keys) -> Result<VerifiedDeployment, VerifyError> {
        self.validate()?;
        let (form, hash) = self.verify_signatures(keys)?;
        Ok(self.into_verified(form, hash)?)
    }

    /// Takes what was verified once, and stored with its hash, for verified again. Rules are checked anew;
    /// keys are not needed, since the hash stands for all that was signed.
    ///
    /// The hash must come from where only verified ones are: a [`VerifiedDeployment`] that this node
    /// stored, or the contract on the chain.
    ///
    /// # Errors
    ///
    /// A rule is broken, or the bytes have another hash.
    pub fn recheck(self, hash: DeploymentHash) -> Result<VerifiedDeployment, RecheckError> {
        self.validate()?;
        for form in self.deployment.forms() {
            if self.deployment.hash(*form).map_err(ValidationError::from)? == hash {
                return Ok(self.into_verified(*form, hash).map_err(ValidationError::from)?);
            }
        }
        let found = self.deployment.hash(Form::Current).map_err(ValidationError::from)?;
        Err(RecheckError::Hash { expected: hash, found })
    }

    fn into_verified(
        self,
        form: Form,
        hash: DeploymentHash,
    ) -> Result<VerifiedDeployment, WorkloadError> {
        let Self { original, deployment } = self;
        let read = |workload: Workload<ReadData>| {
            let Workload { version, name, data, metadata, description, result } = workload;
            Ok(Workload { version, name, data: data?, metadata, description, result })
        };
        let deployment = Deployment {
            version: deployment.version,
            twin_id: deployment.twin_id,
            contract_id: deployment.contract_id,
            metadata: deployment.metadata,
            description: deployment.description,
            expiration: deployment.expiration,
            signature_requirement: deployment.signature_requirement,
            workloads: deployment.workloads.into_iter().map(read).collect::<Result<_, _>>()?,
        };
        Ok(VerifiedDeployment { original, deployment, form, hash })
    }
}

impl fmt::Debug for SignedDeployment {
    /// Not the bytes, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SignedDeployment");
        shown.field("original_size", &self.original.len());
        shown.field("deployment", &self.deployment).finish()
    }
}

/// A deployment that keeps all rules, and that its owner signed.
#[derive(Clone)]
pub struct VerifiedDeployment {
    original: Arc<[u8]>,
    deployment: Deployment,
    form: Form,
    hash: DeploymentHash,
}

impl VerifiedDeployment {
    /// The bytes as they came.
    pub fn original(&self) -> &Arc<[u8]> {
        &self.original
    }

    /// What it says.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The same, with each workload's data as its client wrote it.
    pub fn sent(&self) -> Deployment<SentData> {
        // The bytes were read before, and are read as then.
        let mut texts: BTreeMap<Name, RawJson> = BTreeMap::new();
        if let Ok(checked) = json::Checked::new(&self.original) {
            let mut budget = VALUE_COUNT_MAX;
            let wire = json::from_checked::<WireDeployment<'_>>(checked, &mut budget);
            let workloads = wire.map(|wire| wire.workloads).unwrap_or_default();
            texts.extend(
                workloads.iter().map(|workload| (workload.name().clone(), workload.text())),
            );
        }
        let sent = |workload: &Workload| {
            let Workload { version, name, data, metadata, description, result } = workload.clone();
            let json = texts.remove(&name).unwrap_or_default();
            let data = SentData { kind: data.kind(), json };
            Workload { version, name, data, metadata, description, result }
        };
        let deployment = &self.deployment;
        Deployment {
            version: deployment.version,
            twin_id: deployment.twin_id,
            contract_id: deployment.contract_id,
            metadata: deployment.metadata.clone(),
            description: deployment.description.clone(),
            expiration: deployment.expiration,
            signature_requirement: deployment.signature_requirement.clone(),
            workloads: deployment.workloads.iter().map(sent).collect(),
        }
    }

    /// The hash that was signed.
    pub fn hash(&self) -> DeploymentHash {
        self.hash
    }

    /// The form of the challenge that was signed.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Checks that its contract was made for it, and by its owner: existing nodes look at the hash alone,
    /// so that somebody may pay for a deployment that its owner never reserved there. `hash` is the text
    /// that the contract has, and `twin_id` its twin.
    ///
    /// # Errors
    ///
    /// It was made for something else, or by somebody else.
    pub fn check_contract(&self, hash: &str, twin_id: TwinId) -> Result<(), ContractError> {
        let deployment = self.deployment.twin_id;
        if hash.parse() != Ok(self.hash) {
            Err(ContractError::Hash)
        } else if twin_id != deployment {
            Err(ContractError::Twin { contract: twin_id, deployment })
        } else {
            Ok(())
        }
    }

    /// Checks that it can be the first of its contract.
    ///
    /// # Errors
    ///
    /// Its version is not 0.
    pub fn check_new(&self) -> Result<(), CreateError> {
        if self.deployment.version == 0 { Ok(()) } else { Err(CreateError) }
    }
}

impl fmt::Debug for VerifiedDeployment {
    /// Not the bytes, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("VerifiedDeployment");
        shown.field("original_size", &self.original.len());
        shown.field("deployment", &self.deployment);
        shown.field("form", &self.form);
        shown.field("hash", &format_args!("{}", self.hash)).finish()
    }
}

/// Somebody sent the deployment of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("twin id mismatch (deployment: {deployment}, message: {sender})")]
pub struct SenderError {
    deployment: TwinId,
    sender: TwinId,
}

/// Why a contract does not pay for a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// It was made for another one.
    #[error("contract hash does not match deployment hash")]
    Hash,
    /// It was made by somebody else.
    #[error("contract of twin {contract} cannot pay for a deployment of twin {deployment}")]
    Twin {
        /// Whose the contract is.
        contract: TwinId,
        /// Whose the deployment is.
        deployment: TwinId,
    },
}

/// Why a deployment is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It breaks a rule.
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    /// It has no hash, since a workload can't be read.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// It is not signed, or by somebody else.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Why a deployment is not what was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecheckError {
    /// It breaks a rule.
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    /// The bytes are others.
    #[error("stored deployment has hash {found}, expected {expected}")]
    Hash {
        /// The hash that was stored.
        expected: DeploymentHash,
        /// The hash of the bytes.
        found: DeploymentHash,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version":0,"twin_id":1,"signature_requirement":{"requests":[{"twin_id":1}]},
        "workloads":[{"name":"db","type":"zdb","data":{"size":1,"mode":"seq","password":"s3cr3t"}}]}"#;

    fn read(text: &str) -> SignedDeployment {
        SignedDeployment::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_client_wrote_is_given_back_as_it_wrote_it() {
        let data = r#"{"size":1, "mode":"seq","password":"s3cr3t","future":{"a":[1,2.50]}}"#;
        let text = TEXT.replace(r#"{"size":1,"mode":"seq","password":"s3cr3t"}"#, data);
        let signed = read(&text);
        let hash = signed.deployment().hash(Form::Current).unwrap();
        let sent = signed.recheck(hash).unwrap().sent();
        assert_eq!(sent.workloads[0].data.json.as_str(), data);
        let shown = serde_json::to_string(&sent).unwrap();
        assert!(shown.contains(data) && shown.contains(r#""type":"zdb""#), "{shown}");
        assert!(!format!("{sent:?}").contains("s3cr3t"));
    }

    #[test]
    fn what_was_verified_is_taken_back_by_its_hash() {
        let signed = read(TEXT);
        let hash = signed.deployment().hash(Form::Current).unwrap();
        let again = signed.recheck(hash).unwrap();
        assert_eq!(again.hash(), hash);
        assert_eq!(&**again.original(), TEXT.as_bytes());
        let text = hash.to_string();
        assert_eq!(again.check_contract(&text, TwinId(1)), Ok(()));
        assert_eq!(again.check_contract(&text.to_uppercase(), TwinId(1)), Err(ContractError::Hash));
        let error = again.check_contract(&text, TwinId(2)).unwrap_err();
        let expected = "contract of twin 2 cannot pay for a deployment of twin 1";
        assert_eq!(error.to_string(), expected);
        let other = read(&TEXT.replace("seq", "user"));
        let error = other.recheck(hash).unwrap_err();
        assert!(
            matches!(error, RecheckError::Hash { expected, .. } if expected == hash),
            "{error}"
        );
    }

    #[test]
    fn secrets_do_not_show() {
        let shown = format!("{:?}", read(TEXT));
        assert!(shown.contains("db") && !shown.contains("s3cr3t"), "{shown}");
        let hash = read(TEXT).deployment().hash(Form::Current).unwrap();
        let shown = format!("{:?}", read(TEXT).recheck(hash).unwrap());
        assert!(shown.contains("db") && !shown.contains("s3cr3t"), "{shown}");
    }

    #[test]
    fn the_sender_is_the_owner() {
        assert_eq!(read(TEXT).check_sender(TwinId(1)), Ok(()));
        let error = read(TEXT).check_sender(TwinId(2)).unwrap_err();
        assert_eq!(error.to_string(), "twin id mismatch (deployment: 1, message: 2)");
    }
}
