//! Deployments: what a user reserved, as one signed document.
//!
//! ```text
//!              read()                  verify(keys), recheck(hash)
//!   bytes ───────────► SignedDeployment ──────────────────────────► VerifiedDeployment
//!                       │ check_sender                                │ check_new
//!                       │ validate                                    │ check_contract
//!                       └ hash, signers                               └ Deployment::changes_to(new)
//! ```
//!
//! A node that receives one goes through these in this order: [`SignedDeployment::validate`], then
//! [`SignedDeployment::check_sender`], then whatever it wants to know of the user, then
//! [`SignedDeployment::verify`]; later, when the chain has answered,
//! [`VerifiedDeployment::check_contract`]. Errors so come out as on existing nodes.
//!
//! Clients build a [`Deployment`], sign it ([`Deployment::signing_message`],
//! [`Deployment::add_signature`]), and send its JSON.

mod requirement;
mod signed;
mod upgrade;
mod validate;

use serde::Serialize;

use crate::capacity::Capacity;
use crate::challenge::{Challenge, DeploymentHash, Form, HashWriter};
use crate::id::{ContractId, TwinId};
use crate::json::{self, Decode, Decoder};
use crate::signature::{self, SIGNATURE_SIZE, Scheme};
use crate::timestamp::Timestamp;
use crate::workload::{ReadData, Readable, WireWorkload, Workload, WorkloadData, WorkloadError};

pub use requirement::{Signature, SignatureError, SignatureRequest, SignatureRequirement};
pub use signed::{
    ContractError, Keys, RecheckError, SenderError, SignedDeployment, VerifiedDeployment,
    VerifyError,
};
pub use upgrade::{Change, CreateError, UpgradeError};
pub use validate::ValidationError;

/// What a user reserved. `D` is a workload's data, or the data and why it can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(bound = "Workload<D>: Serialize")]
pub struct Deployment<D = WorkloadData> {
    /// 0 at first, and one more with each update.
    pub version: u32,
    /// Who reserved it.
    pub twin_id: TwinId,
    /// The contract that pays for it. Not hashed.
    pub contract_id: ContractId,
    /// For clients alone; the contract has the same.
    pub metadata: String,
    /// For people.
    pub description: String,
    /// Deprecated: hashed, and otherwise without effect.
    pub expiration: Timestamp,
    /// Who must sign.
    pub signature_requirement: SignatureRequirement,
    /// What is reserved.
    pub workloads: Vec<Workload<D>>,
}

impl<D> Default for Deployment<D> {
    fn default() -> Self {
        Self {
            version: 0,
            twin_id: TwinId::default(),
            contract_id: ContractId::default(),
            metadata: String::new(),
            description: String::new(),
            expiration: Timestamp::default(),
            signature_requirement: SignatureRequirement::default(),
            workloads: Vec::new(),
        }
    }
}

impl<D: Readable> Deployment<D> {
    /// The text that is hashed.
    ///
    /// # Errors
    ///
    /// The first workload whose data can't be read.
    pub fn challenge(&self, form: Form) -> Result<String, WorkloadError> {
        let mut text = String::new();
        self.write_challenge(&mut Challenge::new(&mut text, form))?;
        Ok(text)
    }

    /// The hash, which the contract has.
    ///
    /// # Errors
    ///
    /// The first workload whose data can't be read.
    pub fn hash(&self, form: Form) -> Result<DeploymentHash, WorkloadError> {
        let mut hash = HashWriter::default();
        self.write_challenge(&mut Challenge::new(&mut hash, form))?;
        Ok(hash.finish())
    }

    fn write_challenge(&self, out: &mut Challenge<'_>) -> Result<(), WorkloadError> {
        out.add(self.version);
        out.add(self.twin_id);
        out.add(&self.metadata);
        out.add(&self.description);
        out.add(self.expiration.0);
        self.workloads.iter().try_for_each(|workload| workload.challenge(out))?;
        self.signature_requirement.challenge(out);
        Ok(())
    }

    /// The forms of the challenge that clients may have meant: one, unless a workload leaves out what
    /// they disagree about.
    pub fn forms(&self) -> &'static [Form] {
        let two = self.workloads.iter().any(|workload| {
            matches!(
                workload.data.readable(),
                Ok(WorkloadData::NetworkLight(network)) if network.has_two_forms()
            )
        });
        if two { &[Form::Current, Form::Omitting] } else { &[Form::Current] }
    }
}

impl Deployment {
    /// What all workloads take together.
    pub fn capacity(&self) -> Capacity {
        let mut sum = Capacity::default();
        self.workloads.iter().for_each(|workload| sum += workload.data.capacity());
        sum
    }

    /// What its signers sign.
    pub fn signing_message(&self) -> Vec<u8> {
        // Data that is there can be read.
        let hash = self.hash(Form::Current).unwrap_or_else(|error| unreachable!("{error}"));
        signature::message(&hash, &self.signature_requirement.signature_style)
    }

    /// Adds a twin's signature under [`Deployment::signing_message`], in place of one that it gave
    /// before.
    pub fn add_signature(&mut self, twin_id: TwinId, scheme: Scheme, bytes: &[u8; SIGNATURE_SIZE]) {
        let signature = Signature::new(twin_id, scheme, bytes);
        let signatures = &mut self.signature_requirement.signatures;
        match signatures.iter_mut().find(|signature| signature.twin_id == twin_id) {
            Some(old) => *old = signature,
            None => signatures.push(signature),
        }
    }
}

/// A deployment as it stands in JSON, its workloads' data still to be read.
#[derive(Default)]
struct WireDeployment<'a> {
    head: Deployment<ReadData>,
    workloads: Vec<WireWorkload<'a>>,
}

impl<'a> Decode<'a> for WireDeployment<'a> {
    const GO_TYPE: &'static str = "gridtypes.Deployment";

    fn decode(
        &mut self,
        decoder: &mut Decoder<'a>,
        go_type: &'static str,
    ) -> Result<(), json::Error> {
        let head = &mut self.head;
        decoder.object(go_type, |decoder, name| match name {
            name if name.is("version") => decoder.member("version", &mut head.version),
            name if name.is("twin_id") => decoder.member("twin_id", &mut head.twin_id),
            name if name.is("contract_id") => decoder.member("contract_id", &mut head.contract_id),
            name if name.is("metadata") => decoder.member("metadata", &mut head.metadata),
            name if name.is("description") => decoder.member("description", &mut head.description),
            name if name.is("expiration") => decoder.member("expiration", &mut head.expiration),
            name if name.is("signature_requirement") => {
                decoder.member("signature_requirement", &mut head.signature_requirement)
            }
            name if name.is("workloads") => decoder.member("workloads", &mut self.workloads),
            _ => {
                decoder.skip();
                Ok(())
            }
        })
    }
}
