//! Messages with deployments: the checks, in the order in which existing nodes make them and with their
//! texts, and what is written before the answer.
//!
//! Whether there is a contract is not among them: the client is told *taken*, and finds the verdict in
//! the states of its workloads (`reference: zero-os 2.6`). Three things are refused here that existing
//! nodes find out later or never: types that this node does not run, more deployments than a twin may
//! have, and an update while the one before still waits for the chain's word. And one is not refused: the
//! same bytes again, since an answer may get lost.

use std::sync::Arc;

use hostd_grid::deployment::{
    CreateError, SenderError, UpgradeError, ValidationError, VerifyError,
};
use hostd_grid::workload::State;
use hostd_grid::{
    Deployment, Name, SignedDeployment, TwinId, VerifiedDeployment, WorkloadType, json,
};
use tracing::info;

use super::record::{Record, Standing};
use super::{Engine, Shared, Slot, blocking, result};
use crate::ledger::LedgerError;
use crate::store::{Entry, Key, Log, StoreError};

/// Deployments of one twin.
const DEPLOYMENT_COUNT_PER_TWIN_MAX: usize = 1024;
/// Deployments of a node.
const DEPLOYMENT_COUNT_MAX: usize = 16_384;
/// Deployments of one twin of which the chain has not said that they are paid for.
const UNPAID_COUNT_PER_TWIN_MAX: usize = 32;

/// Why a message is not taken. The texts reach its sender.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum AcceptError {
    #[error(transparent)]
    Json(#[from] json::Error),
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    #[error(transparent)]
    Sender(#[from] SenderError),
    #[error("user with twin id {0} is not verified")]
    Unverified(TwinId),
    #[error("failed to get twin verification status: {0}")]
    Verification(LedgerError),
    #[error("failed to get the keys of its signers: {0}")]
    Keys(LedgerError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("{}", .0.to_wire())]
    Upgrade(#[from] UpgradeError),
    #[error("this node does not support workloads of type '{0}' yet")]
    Unsupported(WorkloadType),
    #[error("this node takes no deployments: {0}")]
    Unfit(String),
    #[error("exists")]
    Exists,
    #[error("deployment does not exist")]
    Absent,
    #[error("global workload with the same name '{0}' exists: conflict")]
    Conflict(String),
    #[error("twin {twin} has {count} deployments here already, and no more are accepted")]
    TooManyOfTwin { twin: TwinId, count: usize },
    #[error("twin {twin} has {count} deployments here that no contract pays for yet")]
    TooManyUnpaid { twin: TwinId, count: usize },
    #[error("this node has {0} deployments, and no more are accepted")]
    TooMany(usize),
    #[error("version {0} still waits for the chain to confirm it, try again later")]
    Waiting(u32),
    #[error("the deployment could not be stored")]
    Store(#[source] StoreError),
}

impl Engine {
    /// Takes in a new deployment that `sender` sent.
    ///
    /// # Errors
    ///
    /// Why not, in words for the sender.
    pub async fn deploy(&self, sender: TwinId, message: &[u8]) -> Result<(), AcceptError> {
        let body = self.shared.verified(sender, message).await?;
        body.check_new()?;
        let key = key_of(&body);
        let accepting = self.shared.accepting.lock().await;
        if let Some(slot) = self.shared.slot(key) {
            let is_rejected = {
                let record = slot.record();
                if record.standing != Standing::Rejected {
                    let first = record.bodies.get(&0).map(|body| Arc::clone(body.original()));
                    let is_same = first.is_some_and(|first| first == *body.original());
                    return if is_same { Ok(()) } else { Err(AcceptError::Exists) };
                }
                true
            };
            // It never ran and holds nothing.
            if is_rejected {
                self.shared.forget(&slot).await.map_err(AcceptError::Store)?;
            }
        }
        self.shared.check_room(key.twin_id)?;
        self.shared.check_names(key, body.deployment())?;
        let slot = self.shared.create(key, body).await?;
        drop(accepting);
        info!(deployment = %key, "accepted");
        self.shared.spawn(slot);
        Ok(())
    }

    /// Takes in the next version of a deployment that `sender` sent.
    ///
    /// # Errors
    ///
    /// Why not, in words for the sender.
    pub async fn update(&self, sender: TwinId, message: &[u8]) -> Result<(), AcceptError> {
        let body = self.shared.verified(sender, message).await?;
        let key = key_of(&body);
        let _accepting = self.shared.accepting.lock().await;
        let slot = self.shared.slot(key).ok_or(AcceptError::Absent)?;
        {
            let record = slot.record();
            if record.is_over() {
                return Err(AcceptError::Absent);
            }
            let newest = record.newest();
            if newest.original() == body.original() {
                return Ok(());
            }
            // What can't follow is said before what must wait.
            newest.deployment().changes_to(body.deployment())?;
            if record.is_unconfirmed() {
                return Err(AcceptError::Waiting(record.version()));
            }
        }
        self.shared.check_names(key, body.deployment())?;
        self.shared.add_version(&slot, body).await.map_err(AcceptError::Store)?;
        info!(deployment = %key, "update accepted");
        slot.wake.notify_one();
        Ok(())
    }
}

fn key_of(body: &VerifiedDeployment) -> Key {
    let Deployment { twin_id, contract_id, .. } = *body.deployment();
    Key { twin_id, contract_id }
}

impl Shared {
    /// All checks that need nothing of what is here already.
    async fn verified(
        &self,
        sender: TwinId,
        message: &[u8],
    ) -> Result<VerifiedDeployment, AcceptError> {
        self.check_fit()?;
        let signed = SignedDeployment::read(message)?;
        signed.validate()?;
        signed.check_sender(sender)?;
        self.check_verified(sender).await?;
        let keys = self.ledger.keys(signed.signers()).await.map_err(AcceptError::Keys)?;
        let body = signed.verify(&keys)?;
        let kinds = body.deployment().workloads.iter().map(|workload| workload.data.kind());
        let (supported, tolerated) = (self.host.supported(), self.host.tolerated());
        match { kinds }.find(|kind| !supported.contains(kind) && !tolerated.contains(kind)) {
            Some(kind) => Err(AcceptError::Unsupported(kind)),
            None => Ok(body),
        }
    }

    /// Checks that this machine can be a node at all, or still.
    pub(super) fn check_fit(&self) -> Result<(), AcceptError> {
        self.host.unfit().map_or(Ok(()), |reason| Err(AcceptError::Unfit(reason)))
    }

    /// Checks that the grid's operator knows who that is.
    pub(super) async fn check_verified(&self, twin: TwinId) -> Result<(), AcceptError> {
        match self.ledger.is_verified(twin).await.map_err(AcceptError::Verification)? {
            true => Ok(()),
            false => Err(AcceptError::Unverified(twin)),
        }
    }

    pub(super) fn check_room(&self, twin: TwinId) -> Result<(), AcceptError> {
        let slots = self.slots();
        if slots.len() >= DEPLOYMENT_COUNT_MAX {
            return Err(AcceptError::TooMany(slots.len()));
        }
        let ours: Vec<_> = slots.iter().filter(|slot| slot.key.twin_id == twin).collect();
        if ours.len() >= DEPLOYMENT_COUNT_PER_TWIN_MAX {
            return Err(AcceptError::TooManyOfTwin { twin, count: ours.len() });
        }
        let unpaid = |slot: &&&Arc<Slot>| {
            matches!(slot.record().standing, Standing::Unconfirmed | Standing::Rejected)
        };
        let count = ours.iter().filter(unpaid).count();
        if count >= UNPAID_COUNT_PER_TWIN_MAX {
            return Err(AcceptError::TooManyUnpaid { twin, count });
        }
        Ok(())
    }

    /// Checks that no other deployment of the twin has a network of the same name.
    fn check_names(&self, key: Key, body: &Deployment) -> Result<(), AcceptError> {
        match self.taken_name(key, &shared_names(body)) {
            Some(name) => Err(AcceptError::Conflict(name.to_string())),
            None => Ok(()),
        }
    }

    /// Which of these names another deployment of the twin has for something that all may use.
    pub(super) fn taken_name(&self, key: Key, wanted: &[Name]) -> Option<Name> {
        self.slots().into_iter().find_map(|slot| {
            if slot.key == key || slot.key.twin_id != key.twin_id {
                return None;
            }
            let record = slot.record();
            if matches!(record.standing, Standing::Rejected) {
                return None;
            }
            let taken = shared_names(record.newest().deployment());
            wanted.iter().find(|name| taken.contains(name)).cloned()
        })
    }

    /// Writes a new deployment down.
    async fn create(&self, key: Key, body: VerifiedDeployment) -> Result<Arc<Slot>, AcceptError> {
        let body = Arc::new(body);
        let entries = first_entries(&body);
        let store = Arc::clone(&self.store);
        let (stored, written) = (Arc::clone(&body), entries.clone());
        let put = move || {
            let mut log = Log::default();
            store.put_body(key, &stored)?;
            store.append(key, &mut log, &written)?;
            Ok(log)
        };
        let log = match blocking(put).await {
            Ok(log) => log,
            Err(error) => {
                let store = Arc::clone(&self.store);
                // What can't be removed either goes at the next start.
                let _ = blocking(move || store.remove(key)).await;
                return Err(AcceptError::Store(error));
            }
        };
        let record = Record::new(key, [(0, body)].into(), entries);
        let slot = Arc::new(Slot::new(record, log));
        super::lock(&self.deployments).insert(key, Arc::clone(&slot));
        Ok(slot)
    }

    /// Writes a new version down.
    async fn add_version(&self, slot: &Slot, body: VerifiedDeployment) -> Result<(), StoreError> {
        let body = Arc::new(body);
        let (key, version) = (slot.key, body.deployment().version);
        let (store, stored) = (Arc::clone(&self.store), Arc::clone(&body));
        blocking(move || store.put_body(key, &stored)).await?;
        let entries = first_entries(&body);
        slot.record().bodies.insert(version, body);
        let written = self.write(slot, entries).await;
        if written.is_err() {
            slot.record().bodies.remove(&version);
        }
        written
    }
}

/// Names of workloads that other deployments may use.
fn shared_names(deployment: &Deployment) -> Vec<Name> {
    let workloads = deployment.workloads.iter();
    let shared = workloads.filter(|workload| workload.data.kind().is_shared());
    shared.map(|workload| workload.name.clone()).collect()
}

fn first_entries(body: &VerifiedDeployment) -> Vec<Entry> {
    let deployment = body.deployment();
    let mut entries = vec![Entry::Accepted { version: deployment.version }];
    entries.extend(Record::init_entries(deployment, || result(State::Init, "")));
    entries
}
