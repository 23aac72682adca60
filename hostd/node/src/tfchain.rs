//! TFChain as the [ledger](crate::ledger) of a node.

use std::collections::BTreeSet;

use hostd_chain::types::{ContractData, ContractResources, ContractState as State, Resources};
use hostd_chain::{ChainError, SigningChain};
use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::signature::AccountKey;
use hostd_grid::{ContractId, TwinId};

use crate::kyc::Kyc;
use crate::ledger::{Contract, ContractState, Ledger, LedgerError, Reply, Subject};

/// The chain, asked and told in the name of a node.
pub struct TfChain {
    chain: SigningChain,
    node_id: u32,
    kyc: Option<Kyc>,
}

impl TfChain {
    /// For the node of that number, whose identity `chain` signs with.
    pub fn new(chain: SigningChain, node_id: u32) -> Self {
        Self { chain, node_id, kyc: None }
    }

    /// Asks the service at that address who is somebody; nobody is asked if it is empty.
    #[must_use]
    pub fn with_kyc(self, url: &str) -> Self {
        Self { kyc: Kyc::new(url), ..self }
    }
}

impl Ledger for TfChain {
    fn contract(&self, id: ContractId) -> Reply<'_, Option<Contract>> {
        Box::pin(async move {
            let contract = self.chain.chain().contract(id.0).await.map_err(told_apart)?;
            Ok(contract.map(understood))
        })
    }

    fn contracts(&self, ids: Vec<ContractId>) -> Reply<'_, Vec<Contract>> {
        Box::pin(async move {
            let ids: Vec<_> = ids.into_iter().map(|id| id.0).collect();
            let found = self.chain.chain().contracts(&ids).await.map_err(told_apart)?;
            Ok(found.into_iter().map(understood).collect())
        })
    }

    fn active_contracts(&self) -> Reply<'_, Vec<ContractId>> {
        Box::pin(async move {
            let active = self.chain.chain().node_contracts(self.node_id).await;
            Ok(active.map_err(told_apart)?.ids.into_iter().map(ContractId).collect())
        })
    }

    fn keys(&self, twins: BTreeSet<TwinId>) -> Reply<'_, Keys> {
        Box::pin(async move {
            let mut keys = Keys::new();
            for id in twins {
                let twin = self.chain.chain().twin_by_id(id.0).await.map_err(told_apart)?;
                keys.extend(twin.map(|twin| (id, AccountKey(twin.account_id))));
            }
            Ok(keys)
        })
    }

    fn is_verified(&self, twin: TwinId) -> Reply<'_, bool> {
        Box::pin(async move {
            match &self.kyc {
                Some(kyc) => kyc.is_verified(twin).await.map_err(LedgerError::Refused),
                None => Ok(true),
            }
        })
    }

    fn report_resources(&self, used: Vec<(ContractId, Capacity)>) -> Reply<'_, ()> {
        Box::pin(async move {
            let reports = used.into_iter().map(|(id, used)| ContractResources {
                contract_id: id.0,
                used: Resources { hru: used.hru, sru: used.sru, cru: used.cru, mru: used.mru },
            });
            let reports: Vec<_> = reports.collect();
            self.chain.report_resources(&reports).await.map_err(told_apart)
        })
    }
}

/// What the chain refuses, it refuses again; whatever else goes wrong may pass.
fn told_apart(error: ChainError) -> LedgerError {
    match error {
        ChainError::Refused { .. } => LedgerError::Refused(error.to_string()),
        _ => LedgerError::Unreachable(error.to_string()),
    }
}

fn understood(contract: hostd_chain::types::Contract) -> Contract {
    let state = match contract.state {
        State::Created => ContractState::Created,
        State::GracePeriod(_) => ContractState::Grace,
        State::Deleted(_) => ContractState::Deleted,
    };
    let subject = match contract.contract_type {
        ContractData::NodeContract(node) => Subject::Node {
            node_id: node.node_id,
            hash: String::from_utf8_lossy(&node.deployment_hash).into_owned(),
        },
        _ => Subject::Other,
    };
    let (id, twin_id) = (ContractId(contract.contract_id), TwinId(contract.twin_id));
    Contract { id, twin_id, state, subject }
}
