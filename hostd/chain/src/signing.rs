//! Calls, signed by somebody and sent, with what came of them.
//!
//! One transaction at a time: the next is signed only when the last is in a block, so that nonces never
//! race. Whoever needs several calls at once makes a batch.

use std::sync::Arc;

use hostd_rmb::identity::Identity;
use tokio::sync::Mutex;

use crate::calls::{self, BATCH_COUNT_MAX, Call, NodeContractSpec, NodeSpec};
use crate::chain::Chain;
use crate::error::ChainError;
use crate::event::Event;
use crate::transaction::{self, Outcome};
use crate::types::{ContractResources, Ip4, NruConsumption, Power, PublicConfig};

/// The chain, for somebody with an account. Clones share the queue of transactions.
#[derive(Clone)]
pub struct SigningChain {
    chain: Chain,
    identity: Arc<Identity>,
    sending: Arc<Mutex<()>>,
}

impl SigningChain {
    pub(crate) fn new(chain: Chain, identity: Arc<Identity>) -> Self {
        Self { chain, identity, sending: Arc::default() }
    }

    /// The chain, to ask.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The account that signs: its public key.
    pub fn account(&self) -> [u8; 32] {
        *self.identity.account().as_bytes()
    }

    /// Sends any call.
    ///
    /// # Errors
    ///
    /// As [`ChainError`] tells them apart.
    pub async fn call(&self, call: &Call) -> Result<Vec<Event>, ChainError> {
        let _one_at_a_time = self.sending.lock().await;
        let Outcome { events } = transaction::send(&self.chain, &self.identity, call).await?;
        Ok(events)
    }

    /// See [`calls::accept_terms`].
    pub async fn accept_terms(&self, link: &str, hash: &str) -> Result<(), ChainError> {
        self.done(calls::accept_terms(link, hash)).await
    }

    /// See [`calls::create_twin`]. Returns its number.
    pub async fn create_twin(
        &self,
        relay: Option<&str>,
        pk: Option<&[u8]>,
    ) -> Result<u32, ChainError> {
        let made = |event: &Event| match event {
            Event::TwinStored(twin) => Some(twin.id),
            _ => None,
        };
        self.made(calls::create_twin(relay, pk), made).await
    }

    /// See [`calls::update_twin`].
    pub async fn update_twin(
        &self,
        relay: Option<&str>,
        pk: Option<&[u8]>,
    ) -> Result<(), ChainError> {
        self.done(calls::update_twin(relay, pk)).await
    }

    /// See [`calls::create_farm`]. Returns its number.
    pub async fn create_farm(&self, name: &str, public_ips: &[Ip4]) -> Result<u32, ChainError> {
        let made = |event: &Event| match event {
            Event::FarmStored(farm) => Some(farm.id),
            _ => None,
        };
        self.made(calls::create_farm(name, public_ips), made).await
    }

    /// See [`calls::add_farm_ip`].
    pub async fn add_farm_ip(&self, farm: u32, address: &Ip4) -> Result<(), ChainError> {
        self.done(calls::add_farm_ip(farm, address)).await
    }

    /// See [`calls::create_node`]. Returns its number.
    pub async fn create_node(&self, spec: &NodeSpec) -> Result<u32, ChainError> {
        let made = |event: &Event| match event {
            Event::NodeStored(node) => Some(node.id),
            _ => None,
        };
        self.made(calls::create_node(spec), made).await
    }

    /// See [`calls::update_node`].
    pub async fn update_node(&self, node: u32, spec: &NodeSpec) -> Result<(), ChainError> {
        self.done(calls::update_node(node, spec)).await
    }

    /// See [`calls::report_uptime`].
    pub async fn report_uptime(&self, uptime: u64, timestamp: u64) -> Result<(), ChainError> {
        self.done(calls::report_uptime(uptime, timestamp)).await
    }

    /// See [`calls::set_power_state`].
    pub async fn set_power_state(&self, state: Power) -> Result<(), ChainError> {
        self.done(calls::set_power_state(state)).await
    }

    /// See [`calls::set_power_target`].
    pub async fn set_power_target(&self, node: u32, target: Power) -> Result<(), ChainError> {
        self.done(calls::set_power_target(node, target)).await
    }

    /// See [`calls::set_public_config`].
    pub async fn set_public_config(
        &self,
        farm: u32,
        node: u32,
        config: Option<&PublicConfig>,
    ) -> Result<(), ChainError> {
        self.done(calls::set_public_config(farm, node, config)).await
    }

    /// See [`calls::create_node_contract`]. Returns its number.
    pub async fn create_node_contract(&self, spec: &NodeContractSpec) -> Result<u64, ChainError> {
        self.made(calls::create_node_contract(spec), contract_id).await
    }

    /// Makes all of these contracts, or none. Returns their numbers, in the same order.
    pub async fn create_node_contracts(
        &self,
        specs: &[NodeContractSpec],
    ) -> Result<Vec<u64>, ChainError> {
        let calls: Vec<_> = specs.iter().map(calls::create_node_contract).collect();
        let events = self.batch(&calls).await?;
        let ids: Vec<_> = events.iter().filter_map(contract_id).collect();
        if ids.len() == specs.len() {
            Ok(ids)
        } else {
            let text =
                format!("{} contracts were made, and the chain shows {}", specs.len(), ids.len());
            Err(ChainError::Incompatible(text))
        }
    }

    /// See [`calls::update_node_contract`].
    pub async fn update_node_contract(
        &self,
        contract: u64,
        hash: &[u8; 32],
        data: &[u8],
    ) -> Result<(), ChainError> {
        self.done(calls::update_node_contract(contract, hash, data)).await
    }

    /// See [`calls::cancel_contract`].
    pub async fn cancel_contract(&self, contract: u64) -> Result<(), ChainError> {
        self.done(calls::cancel_contract(contract)).await
    }

    /// Ends all of these contracts, or none.
    pub async fn cancel_contracts(&self, contracts: &[u64]) -> Result<(), ChainError> {
        let calls: Vec<_> = contracts.iter().copied().map(calls::cancel_contract).collect();
        self.batch(&calls).await.map(drop)
    }

    /// See [`calls::create_name_contract`]. Returns its number.
    pub async fn create_name_contract(&self, name: &str) -> Result<u64, ChainError> {
        self.made(calls::create_name_contract(name), contract_id).await
    }

    /// See [`calls::create_rent_contract`]. Returns its number.
    pub async fn create_rent_contract(
        &self,
        node: u32,
        solution_provider: Option<u64>,
    ) -> Result<u64, ChainError> {
        self.made(calls::create_rent_contract(node, solution_provider), contract_id).await
    }

    /// See [`calls::report_resources`].
    pub async fn report_resources(&self, reports: &[ContractResources]) -> Result<(), ChainError> {
        self.done(calls::report_resources(reports)).await
    }

    /// See [`calls::add_nru_reports`].
    pub async fn add_nru_reports(&self, reports: &[NruConsumption]) -> Result<(), ChainError> {
        self.done(calls::add_nru_reports(reports)).await
    }

    /// See [`calls::kv_set`].
    pub async fn kv_set(&self, key: &[u8], value: &[u8]) -> Result<(), ChainError> {
        self.done(calls::kv_set(key, value)).await
    }

    /// See [`calls::kv_delete`].
    pub async fn kv_delete(&self, key: &[u8]) -> Result<(), ChainError> {
        self.done(calls::kv_delete(key)).await
    }

    /// See [`calls::transfer`].
    pub async fn transfer(&self, to: &[u8; 32], amount: u128) -> Result<(), ChainError> {
        self.done(calls::transfer(to, amount)).await
    }

    /// Sends a call that makes nothing with a number.
    async fn done(&self, call: Call) -> Result<(), ChainError> {
        self.call(&call).await.map(drop)
    }

    /// Sends a call, and picks what it made out of its events.
    async fn made<T>(
        &self,
        call: Call,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> Result<T, ChainError> {
        let events = self.call(&call).await?;
        events.iter().find_map(pick).ok_or_else(|| {
            ChainError::Incompatible(format!("{} does not say what it made", call.title()))
        })
    }

    async fn batch(&self, calls: &[Call]) -> Result<Vec<Event>, ChainError> {
        match calls {
            [] => Ok(Vec::new()),
            [call] => self.call(call).await,
            calls if calls.len() <= BATCH_COUNT_MAX => self.call(&calls::batch_all(calls)).await,
            calls => {
                let text =
                    format!("a batch has at most {BATCH_COUNT_MAX} calls, not {}", calls.len());
                Err(ChainError::Config(text))
            }
        }
    }
}

/// The number of the contract that an event says was made.
fn contract_id(event: &Event) -> Option<u64> {
    match event {
        Event::ContractCreated(contract) => Some(contract.contract_id),
        _ => None,
    }
}
