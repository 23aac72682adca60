//! TFChain as the [ledger](crate::ledger) of a node.

use std::collections::BTreeSet;
use std::sync::Arc;

use hostd_chain::types::{ContractData, ContractResources, ContractState as State, Resources};
use hostd_chain::{ChainError, SigningChain};
use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::signature::AccountKey;
use hostd_grid::{ContractId, TwinId};
use hostd_rmb::twins::{self, Twins};

use crate::kyc::Kyc;
use crate::ledger::{Contract, ContractState, Ledger, LedgerError, Reply, Subject};

/// The chain, asked and told in the name of a node.
pub struct TfChain {
    chain: SigningChain,
    node_id: u32,
    twins: Arc<dyn Twins>,
    kyc: Option<Kyc>,
}

impl TfChain {
    /// For the node of that number, whose identity `chain` signs with. Keys of twins come from `twins`, who
    /// may remember them: a twin's account never changes.
    pub fn new(chain: SigningChain, node_id: u32, twins: Arc<dyn Twins>) -> Self {
        Self { chain, node_id, twins, kyc: None }
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
                let Some(number) = twins::TwinId::new(id.0) else { continue };
                let twin = self.twins.twin(number).await;
                let twin = twin.map_err(|error| LedgerError::Unreachable(error.to_string()))?;
                keys.extend(twin.map(|twin| (id, AccountKey(*twin.account.as_bytes()))));
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use hostd_chain::{Chain, ChainConfig};
    use hostd_rmb::identity::Identity;
    use hostd_rmb::relay::TrustedRoots;
    use hostd_rmb::signature::Scheme;
    use hostd_rmb::twins::{CachedTwins, Twin, TwinLookup};

    use super::*;

    /// Twin 7 alone, as long as somebody is there to be asked.
    #[derive(Default)]
    struct Table(AtomicU32);

    impl Twins for Table {
        fn twin(&self, id: twins::TwinId) -> TwinLookup<'_> {
            let count = self.0.fetch_add(1, Ordering::Relaxed);
            let account = Identity::from_seed(Scheme::Ed25519, &[7; 32]).unwrap().account();
            Box::pin(async move {
                match (count, id.number()) {
                    (0..2, 7) => Ok(Some(Arc::new(Twin::from_chain(id, account, None, None)))),
                    (0..2, _) => Ok(None),
                    _ => Err(twins::TwinsError("nobody listens".into())),
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_remembered_and_a_twin_that_is_not_known_is_told_from_an_outage() {
        let roots = TrustedRoots::new(None).unwrap();
        let chain = ChainConfig::new(vec!["ws://127.0.0.1:1".into()], roots);
        let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &[1; 32]).unwrap());
        let signing = Chain::new(chain).unwrap().signed_by(identity);
        let table = Arc::new(Table::default());
        let twins = Arc::new(CachedTwins::new(Arc::clone(&table) as Arc<dyn Twins>));
        let ledger = TfChain::new(signing, 1, twins);
        let asked: BTreeSet<_> = [TwinId(0), TwinId(7), TwinId(8)].into();
        for _ in 0..3 {
            let keys = ledger.keys(asked.clone()).await.unwrap();
            assert_eq!(keys.into_keys().collect::<Vec<_>>(), [TwinId(7)]);
        }
        assert_eq!(table.0.load(Ordering::Relaxed), 2);
        let error = ledger.keys([TwinId(9)].into()).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable(_)), "{error}");
        // What is remembered holds through the outage.
        assert_eq!(ledger.keys([TwinId(7)].into()).await.unwrap().len(), 1);
    }
}
